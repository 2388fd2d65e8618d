import dataclasses
import hashlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.methods import METHODS
from recon_core.trust.ranges import Limits, TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights import manifest
from recon_core.weights.manifest import (
    STARTS,
    WeightsEntry,
    find_weights,
    known_weights,
    list_weights,
    user_folder,
    weights_of,
    weights_of_start,
    weights_problems,
    write_entry,
)
from tests.conftest import PACKAGED

SHA = "0" * 64


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's folder; nothing of the person who runs the tests is looked at."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("CINESTREAM_WEIGHTS", raising=False)
    return tmp_path / "data" / "cinestream" / "weights"


def entry_in(folder, name="crnn_mri", method="crnn_mri", **facts):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    file.write_bytes(b"tensors")
    sha256 = hashlib.sha256(b"tensors").hexdigest()
    return WeightsEntry(name=name, method=method, file=file, sha256=sha256, **facts)


def write(folder, name="crnn_mri", method="crnn_mri", **facts):
    entry = entry_in(folder, name, method, **facts)
    write_entry(folder, entry)
    return entry


def change(folder, name, **fields):
    """Change fields of an entry as a person with an editor does; None takes a field out."""
    path = folder / "manifest.yaml"
    document = yaml.safe_load(path.read_text())
    document[name].update(fields)
    document[name] = {key: value for key, value in document[name].items() if value is not None}
    path.write_text(yaml.safe_dump(document))


def test_manifests_are_parsed_again_only_after_a_change(home, monkeypatch):
    write(home)
    first = find_weights("crnn_mri")
    monkeypatch.setattr("recon_core.weights.manifest.read_yaml", lambda _: pytest.fail("parsed again"))
    assert find_weights("crnn_mri") == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(home.parents[1]))
    change(home, "crnn_mri", notes="other")
    assert find_weights("crnn_mri").notes == "other"
    first.file.unlink()
    with pytest.raises(ModelError, match="there is no file"):
        find_weights("crnn_mri")


def test_an_entry_comes_back_as_it_was(home):
    written = write(
        home,
        config={"channels": 8, "sizes": [1, 2], "shared": True, "kind": "XF"},
        input_peak=2.5,
        window=15,
        range=TrainingRange(acceleration=(4, 11), patterns=("random",), snr=(10, 90)),
        limits=Limits(residual=0.1, change=0.35),
        reference="kt_sense",
        weighing=Weighing(level=-1.2, variance=1.1, change=-1.8),
        weighed_on=("points", "radial"),
        training={"recipe": "standard", "seed": 3, "hours": 2.5},
        metrics={"psnr": 38.5, "uniform R 4": {"psnr": 40.1, "ssim": 0.97}},
        source="doi:10.1/x: «a»",
        licence="Apache-2.0",
        notes="two\nlines",
    )
    assert find_weights("crnn_mri") == written
    assert list_weights() == {"crnn_mri": written}


def test_an_entry_describes_itself(home):
    assert write(home).describe() == "training not recorded"
    entry = write(
        home,
        range=TrainingRange(acceleration=(4, 8)),
        limits=Limits(change=0.35),
        training={"recipe": "standard", "seed": 3},
    )
    assert entry.describe() == "acceleration 4 to 8; change up to 35 %; recipe standard, seed 3"
    entry = dataclasses.replace(entry, start="first", limits=None, training={})
    assert entry.describe() == "acceleration 4 to 8; start from the image of the weights first"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    peak=st.floats(1e-30, 1e30),
    window=st.integers(0, 10**6),
    texts=st.tuples(TEXTS, TEXTS, TEXTS),
    config=st.dictionaries(TEXTS, st.integers() | st.floats(allow_nan=False) | st.booleans() | TEXTS, max_size=3),
)
def test_any_entry_comes_back_as_it_was(tmp_path_factory, name, peak, window, texts, config):
    folder = tmp_path_factory.mktemp("weights")
    source, licence, notes = texts
    entry = entry_in(folder, name, input_peak=peak, window=window, config=config)
    entry = dataclasses.replace(entry, source=source, licence=licence, notes=notes)
    write_entry(folder, entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CINESTREAM_WEIGHTS", str(folder))
        assert find_weights("crnn_mri", name) == entry


def test_an_entry_is_added_and_replaced_and_the_others_stay(home):
    write(home, "other", "promptmr")
    change(home, "other", colour="broken, but not ours to mend")
    write(home, input_peak=1.0)
    write(home, input_peak=2.0)
    document = yaml.safe_load((home / "manifest.yaml").read_text())
    assert list(document) == ["other", "crnn_mri"]
    assert document["crnn_mri"]["input_peak"] == 2.0
    assert document["other"]["colour"] == "broken, but not ours to mend"
    assert sorted(path.name for path in home.iterdir()) == [
        "crnn_mri.safetensors",
        "manifest.yaml",
        "other.safetensors",
    ]


def test_the_folders_of_the_variable_come_first_then_the_users(tmp_path, home, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("CINESTREAM_WEIGHTS", os.pathsep.join([str(first), "", str(second)]))
    in_home = write(home)
    assert find_weights("crnn_mri") == in_home
    in_second = write(second)
    assert find_weights("crnn_mri") == in_second
    in_first = write(first)
    only_home = write(home, "mine")
    assert find_weights("crnn_mri") == in_first
    assert weights_of("crnn_mri") == [in_first, only_home]
    assert weights_of("promptmr") == []


def test_without_a_name_the_one_called_like_the_method_is_taken_else_the_first(home):
    first = write(home, "b_first")
    write(home, "a_second")
    write(home, "not_ours", "promptmr")
    assert find_weights("crnn_mri") == first
    alike = write(home, "crnn_mri")
    assert find_weights("crnn_mri") == alike
    assert find_weights("crnn_mri", "a_second").name == "a_second"


def test_weights_called_like_another_method_are_not_taken_for_it(home):
    write(home, "promptmr", "crnn_mri")
    with pytest.raises(ModelError, match="there are no weights for promptmr"):
        find_weights("promptmr")
    with pytest.raises(ModelError, match=r"'promptmr' are for crnn_mri, not for promptmr$"):
        find_weights("promptmr", "promptmr")
    write(home, "right", "promptmr")
    with pytest.raises(ModelError, match="not for promptmr; for promptmr there are right"):
        find_weights("promptmr", "promptmr")


def test_what_is_not_there_is_said_with_where_it_was_looked_for_and_the_remedy(tmp_path, home, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError) as caught:
        find_weights("cinenet")
    text = str(caught.value)
    assert "there are no weights for cinenet" in text
    assert str(tmp_path / "nowhere") in text
    assert str(home) in text
    assert text.endswith("cinestream import-weights cinenet FILE")
    write(home, "one", "cinenet")
    with pytest.raises(ModelError, match=r"no weights 'two' for cinenet \(there are one\) .* FILE --name two$"):
        find_weights("cinenet", "two")


@pytest.mark.parametrize("name", ["../crnn_mri", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "a\n", " ", "x" * 101])
def test_names_have_no_path_parts(home, name):
    write(home)
    with pytest.raises(ModelError, match="bare name"):
        find_weights("crnn_mri", name)
    with pytest.raises(SettingsError, match="letters, digits"):
        write_entry(home, dataclasses.replace(entry_in(home), name=name))


BROKEN = {
    "no method": ({"method": None}, "method is missing"),
    "unknown method": ({"method": "magic"}, "method must be one of .* got 'magic'"),
    "no file": ({"file": None}, "file is missing"),
    "path as file": ({"file": "../secret"}, "file must be a bare file name"),
    "absent file": ({"file": "gone.safetensors"}, "there is no file .*gone.safetensors; import the weights again"),
    "no digest": ({"sha256": None}, "sha256 is missing"),
    "short digest": ({"sha256": "abc"}, "sha256 must be 64 hexadecimal digits"),
    "digest a number": ({"sha256": 12}, "sha256 must be a text, got 12"),
    "config a list": ({"config": [1]}, "config must be a mapping"),
    "config of numbers": ({"config": {1: 2}}, "config must be a mapping"),
    "peak a text": ({"input_peak": "1"}, "input_peak must be a positive number, got '1'"),
    "peak zero": ({"input_peak": 0}, "input_peak must be a positive number"),
    "peak infinite": ({"input_peak": float("inf")}, "input_peak must be a positive number"),
    "peak not a number": ({"input_peak": float("nan")}, "input_peak must be a positive number"),
    "peak yes": ({"input_peak": True}, "input_peak must be a positive number"),
    "peak too large for a float": ({"input_peak": 10**400}, "input_peak must be a positive number"),
    "window negative": ({"window": -1}, "window must be a whole number"),
    "window a fraction": ({"window": 1.5}, "window must be a whole number"),
    "start unknown": ({"start": "grappa"}, "a network cannot start from 'grappa'; there are zero_filled, cg_sense"),
    "start from itself": (
        {"start": "bad"},
        "a network cannot start from 'bad': those weights, .*, start from 'bad' instead",
    ),
    "start from what is not kt_sense's": (
        {"start": "good"},
        "a network cannot start from 'good': .* start from 'zero_filled' instead of kt_sense",
    ),
    "weighing without level": (
        {"weighing": {"change": 1}, "reference": "kt_sense"},
        "weighing needs level, got change",
    ),
    "weighing too large": (
        {"weighing": {"level": 10**400}, "reference": "kt_sense"},
        "level of weighing must be a number up to 100 in size",
    ),
    "weighed on a text": ({"weighed_on": "points"}, "weighed_on must be a list of some of constant, interleaved"),
    "weighed on the unknown": ({"weighed_on": ["zigzag"]}, r"weighed_on must be .*; got \['zigzag'\]"),
    "weighed against another": ({"weighing": {"level": 1}}, "reference must be kt_sense where there is a weighing"),
    "reference a network": ({"reference": "crunet_mr"}, "reference must be one of cg_sense, kt_sense, got 'crunet_mr'"),
    "range unknown": ({"range": {"speed": [1, 2]}}, "a training range has no 'speed'"),
    "range too large": ({"range": {"frames": [1, 10**400]}}, r"frames of a training range must be \[least, most\]"),
    "range a list": ({"range": [4, 8]}, "range must be a mapping"),
    "limits unknown": ({"limits": {"speed": 1}}, "limits of an image have no 'speed'"),
    "limits negative": ({"limits": {"change": -1}}, "change of limits must be a positive number"),
    "limits too large": ({"limits": {"change": 10**400}}, "change of limits must be a positive number"),
    "training nested": ({"training": {"a": {"b": 1}}}, "training must be names with texts and numbers; got 'a'"),
    "training yes": ({"training": {"a": True}}, "training must be names with texts and numbers"),
    "training infinite": ({"training": {"a": float("inf")}}, "training must be names with texts and numbers"),
    "training too large": ({"training": {"a": 10**400}}, "training must be names with texts and numbers"),
    "metrics a text": (
        {"metrics": {"psnr": "40"}},
        "metrics must be a mapping of names to numbers, .*got 'psnr': '40'",
    ),
    "metrics too deep": ({"metrics": {"a": {"b": {"c": 1}}}}, "metrics must be a mapping of names to numbers"),
    "metrics of numbers": ({"metrics": {"a": {1: 2}}}, "metrics must be a mapping of names to numbers"),
    "notes a list": ({"notes": ["a"]}, "notes must be a text"),
    "unknown field": ({"license": "MIT"}, "unknown field 'license'"),
}


@pytest.mark.parametrize(("fields", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_reported_and_hides_no_other(home, fields, message):
    good = write(home, "good", "promptmr")
    write(home, "bad")
    change(home, "bad", **fields)
    assert list_weights() == {"good": good}
    assert find_weights("promptmr") == good
    with pytest.raises(ModelError, match=f"manifest.yaml, entry 'bad': .*{message}"):
        find_weights("crnn_mri", "bad")
    (problem,) = weights_problems()
    assert "entry 'bad'" in problem


def test_weights_may_start_from_the_image_of_others_that_start_from_kt_sense(home):
    """Also from those of a later folder; once, so that there is no end to what a network needs, and no circle."""
    weighed = {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0)}
    first = write(home, "first", "promptmr", **weighed)
    second, third = write(home, "second", start="first"), write(home, "third", **weighed)
    assert list_weights() == {"first": first, "second": second, "third": third}
    assert [weights_of_start(name) for name in ("first", "third", *STARTS)] == [first, third, *[None] * len(STARTS)]
    with pytest.raises(SettingsError, match="cannot start from 'firs'; did you mean first"):
        weights_of_start("firs")
    change(home, "third", start="second")
    with pytest.raises(ModelError, match=r"entry 'third': a network cannot start from 'second': .* start from 'first'"):
        find_weights("crnn_mri", "third")
    change(home, "first", sha256="abc")  # what goes on from it cannot be used either
    assert list_weights() == {}
    assert len(weights_problems()) == 3
    with pytest.raises(ModelError, match=r"entry 'second': a network cannot start from 'first': .* sha256 must be 64"):
        find_weights("crnn_mri", "second")
    with pytest.raises(SettingsError, match=r"cannot start from 'first': .* sha256 must be 64"):
        weights_of_start("first")


def test_weights_that_are_not_weighed_are_nothing_to_start_from(home):
    """Where they are worse than kt_sense, nobody would see it."""
    write(home, "first", "promptmr", start="kt_sense")
    write(home, "second", start="first")
    with pytest.raises(ModelError, match=r"cannot start from 'first': those weights, of .*, have no weighing"):
        find_weights("crnn_mri", "second")


def test_weights_start_from_those_of_their_own_folder_where_it_has_such(tmp_path, home, monkeypatch):
    """They were found with those; what somebody trains under the same name does not change them."""
    weighed = {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0)}
    nearer, other = tmp_path / "nearer", tmp_path / "other"
    ours, theirs = write(nearer, "first", "promptmr", **weighed), write(home, "first", "promptmr", **weighed)
    second, third = write(home, "second", start="first"), write(other, "third", start="first")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", f"{nearer}{os.pathsep}{other}")
    assert weights_of_start("first", second) == theirs
    assert weights_of_start("first", third) == weights_of_start("first") == list_weights()["first"] == ours
    change(nearer, "first", start="zero_filled")
    assert find_weights("crnn_mri", "second") == second
    with pytest.raises(
        ModelError, match=r"'first': those weights, of .*/nearer/manifest\.yaml, start from 'zero_filled'"
    ):
        find_weights("crnn_mri", "third")


def test_a_broken_entry_is_the_reason_where_nothing_else_serves_the_method(home):
    write(home, "bad")
    change(home, "bad", sha256="abc")
    with pytest.raises(ModelError, match="entry 'bad': sha256"):
        find_weights("crnn_mri")
    other = write(home, "other")
    assert find_weights("crnn_mri") == other


def test_a_broken_entry_called_like_the_method_is_not_passed_over(home):
    """Other weights than those meant would make other images."""
    write(home)
    write(home, "other")
    change(home, "crnn_mri", sha256="abc")
    with pytest.raises(ModelError, match="entry 'crnn_mri': sha256"):
        find_weights("crnn_mri")


def test_a_broken_entry_hides_its_name_in_later_folders(tmp_path, home, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "first"))
    write(tmp_path / "first")
    change(tmp_path / "first", "crnn_mri", sha256="abc")
    write(home)
    with pytest.raises(ModelError, match="entry 'crnn_mri': sha256"):
        find_weights("crnn_mri", "crnn_mri")


@pytest.mark.parametrize(
    "text",
    ["{", "- a\n- b", "1: {}", "a: !!python/object/apply:os.system ['true']", "a: 2001-99-99", "[" * 1000, "text"],
    ids=["syntax", "list", "number as name", "python object", "impossible date", "too deep", "text"],
)
def test_a_broken_manifest_is_reported_and_hides_no_other_folder(tmp_path, home, monkeypatch, caplog, text):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "manifest.yaml").write_text(text)
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(folder))
    with pytest.raises(ModelError, match=r"no weights for crnn_mri .*first/manifest\.yaml"):
        find_weights("crnn_mri")
    good = write(home)
    with caplog.at_level(logging.WARNING, "cinestream"):
        assert find_weights("crnn_mri") == good
    assert "manifest.yaml" in caplog.text
    with pytest.raises(ModelError, match=r"manifest\.yaml"):
        write(folder)
    assert (folder / "manifest.yaml").read_text() == text


def test_a_manifest_that_is_no_text_or_no_file_is_reported(home):
    home.mkdir(parents=True)
    (home / "manifest.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "no readable YAML" in weights_problems()[0]
    (home / "manifest.yaml").unlink()
    (home / "manifest.yaml").mkdir()
    assert "cannot read" in weights_problems()[0]


def test_an_entry_that_is_no_mapping_or_has_an_impossible_name_is_reported(home):
    home.mkdir(parents=True)
    (home / "manifest.yaml").write_text("a: 3\n../b: {}\n")
    assert list_weights() == {}
    assert "entry 'a': expected the fields of weights, got 3" in weights_problems()[0]
    assert "entry '../b': a name has" in weights_problems()[1]


def test_an_empty_manifest_and_a_file_as_folder_hold_nothing(tmp_path, home, monkeypatch):
    home.mkdir(parents=True)
    (home / "manifest.yaml").write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "file"))
    assert list_weights() == {}
    assert weights_problems() == []


def test_the_file_of_an_entry_lies_in_its_folder(tmp_path, home):
    entry = entry_in(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="must lie in"):
        write_entry(home, entry)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    entry = WeightsEntry(name="a", method="crnn_mri", file=tmp_path / "file" / "a.safetensors", sha256=SHA)
    with pytest.raises(ResourceError, match="cannot write"):
        write_entry(tmp_path / "file", entry)


def test_a_manifest_is_replaced_whole_or_not_at_all(home, monkeypatch):
    write(home)
    before = (home / "manifest.yaml").read_text()

    def full(self, text, **_):
        self.open("w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_entry(home, entry_in(home, "next"))
    monkeypatch.undo()
    assert (home / "manifest.yaml").read_text() == before
    assert not list(home.glob(".*"))


def test_the_users_folder_follows_the_xdg_specification(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert user_folder() == tmp_path / "d" / "cinestream" / "weights"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert user_folder() == tmp_path / ".local" / "share" / "cinestream" / "weights"


def test_without_a_home_only_the_other_folders_are_searched(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ResourceError, match="set CINESTREAM_WEIGHTS"):
        user_folder()
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    written = write(tmp_path)
    assert find_weights("crnn_mri") == written


def test_known_weights_are_well_described():
    digests = manifest.read_manifest(PACKAGED / "known.yaml")
    assert digests
    for digest in digests:
        facts = known_weights(digest)
        assert METHODS[facts.method].network
        assert facts.source
        assert facts.licence
    assert known_weights(SHA) is None


def test_what_comes_with_cinestream_is_sound(monkeypatch):
    monkeypatch.setattr(manifest, "_packaged", lambda: PACKAGED)
    assert list_weights()
    assert weights_problems() == []


def test_importing_it_needs_no_torch_and_no_yaml():
    code = "import sys, recon_core.weights.manifest; sys.exit(any(name in sys.modules for name in ('torch', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("gain", "text"),
    [(0.24, "add 0.24 dB to kt_sense \\(0.10 dB where it moves\\) on 9 of 12"), (0.01, "add nothing to kt_sense")],
)
def test_weights_say_what_they_add(home, gain, text):
    survey = {"scans": 12, "served": 9, "median_gain": gain, "median_moving_gain": 0.1}
    entry = write(home, reference="kt_sense", weighing=Weighing(level=-1.0), metrics={"survey": survey})
    assert re.search(text, entry.describe())
    assert entry.helps == (gain > 0.05)
    assert dataclasses.replace(entry, weighing=None).helps  # compared with another method


def test_weighed_weights_are_for_lines_and_what_else_they_help_on(home):
    entry = write(home, reference="kt_sense", weighing=Weighing(level=-1.0), weighed_on=("points",))
    assert [bool(entry.why_not_on(pattern)) for pattern in ("random", "full", "points", "radial")] == [0, 0, 0, 1]
    assert entry.why_not_on("radial") == "the weights crnn_mri were not found to help on scans of radial pattern"
    assert dataclasses.replace(entry, weighing=None).why_not_on("radial") == ""
    survey = {"scans": 12, "served": 9, "median_gain": 0.2}
    told = dataclasses.replace(entry, metrics={"survey": survey}).describe()
    assert "on 9 of 12 surveyed scans, and help on points patterns; " in told


def test_weights_say_whether_the_scans_of_their_training_limit_them(home):
    entry = write(home, range=TrainingRange(acceleration=(4, 8)))
    assert entry.describe() == "acceleration 4 to 8"
    weighed = dataclasses.replace(entry, reference="kt_sense", weighing=Weighing(level=-1.0))
    assert weighed.describe() == "trained on acceleration 4 to 8, which limits nothing, as every image is weighed"
