"""Damaged files of every kind end in errors of cinestream's own: no traceback, no crash, no hang.

``CINESTREAM_FUZZ=5000 pytest tests/gadgets/test_damaged_files.py -m slow`` reads as many of each kind (a night);
``CINESTREAM_FUZZ_SEED`` draws others.
"""

import os

import pytest

from tests.helpers.fuzz import KINDS, damage, faults

#: How many of a kind take about half a minute.
COUNTS = {"raw": 120, "images": 120, "manifest": 100, "weights": 100, "checkpoint": 150}
SEED = int(os.environ.get("CINESTREAM_FUZZ_SEED", "1"))
#: What some earlier state of the code stumbled over, by kind: seed and number.
FOUND = {"mat": [(1, 34)], "fastmri": [(1, 20), (1, 25), (3, 2534)], "dicom": [(7, 294)]}


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_errors(kind, tmp_path):
    count = int(os.environ.get("CINESTREAM_FUZZ", COUNTS.get(kind, 300)))
    assert faults(kind, count, SEED, tmp_path / "files") == []


@pytest.mark.parametrize("kind", FOUND)
def test_files_that_once_were_a_surprise(kind, tmp_path):
    for seed, number in FOUND[kind]:
        assert faults(kind, 1, seed, tmp_path / "files", number) == []


def test_a_mutation_is_the_same_every_time(tmp_path):
    kind = KINDS["pipeline"]
    path = kind.make(tmp_path)
    sound = path.read_bytes()
    made = set()
    for _ in range(2):
        damage(kind, path, sound, (1, 5))
        made.add(path.read_bytes())
    assert len(made) == 1
    assert sound not in made


def test_what_is_no_error_of_our_own_is_found(tmp_path):
    """A reader that raises, and one that crashes."""
    assert "ZeroDivisionError" in faults("raises", 1, 1, tmp_path / "a")[0]
    assert "crashes with -" in faults("crashes", 2, 1, tmp_path / "b")[0]
    assert len(faults("crashes", 2, 1, tmp_path / "c")) == 2
