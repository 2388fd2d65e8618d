import pytest

from recon_core.words import choose_from, listed, many, meant

FEW = ("cg_sense", "kt_sense", "grappa")
MANY = tuple(f"name_{number}" for number in range(20))


@pytest.mark.parametrize(("count", "words"), [(0, "0 images"), (1, "1 image"), (24, "24 images")])
def test_counts(count, words):
    assert many(count, "image") == words


def test_of_many_things_the_first_are_listed():
    assert listed(range(3)) == "0, 1, 2"
    assert listed("abcde", 3) == "a, b, c, and 2 more"
    assert len(listed(range(100_000))) < 60
    assert listed([]) == ""


@pytest.mark.parametrize(
    ("name", "question"),
    [("GRAPA", "did you mean grappa?"), ("kt-sense", "did you mean kt_sense or cg_sense?"), ("magic", ""), (7, "")],
)
def test_similar_names_are_asked_for(name, question):
    assert meant(name, FEW) == question


@pytest.mark.parametrize(
    ("name", "known", "lists", "words"),
    [
        ("grapa", FEW, "", "did you mean grappa? (there are cg_sense, kt_sense, grappa)"),
        ("magic", FEW, "cinestream methods", "there are cg_sense, kt_sense, grappa"),
        ("magic", (), "", "there are none"),
        ("zzz", MANY, "cinestream names", "cinestream names lists all 20"),
        ("name_20", MANY, "cinestream names", "did you mean name_2 or name_0? (cinestream names lists all 20)"),
        ("name_20", MANY, "", "did you mean name_2 or name_0?"),
    ],
)
def test_names_to_choose_from(name, known, lists, words):
    assert choose_from(name, known, lists) == words
