"""What a batch finds to do: which files, under which names, and why again or not."""

import dataclasses
import os
from pathlib import Path

import pytest

from gadgets.files.images import ImageFile
from gadgets.replay import plan
from gadgets.replay.job import Job, Outcome, as_record, read_outcome
from gadgets.replay.plan import find_sources, made_by, make_plan, summary_of
from gadgets.settings.settings import Settings, apply
from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import write_tiny_chain

SETTINGS = Settings.of(method="zero_filled")


@pytest.fixture
def archive(tmp_path):
    """Raw files in two folders, with others that are none."""
    folder = tmp_path / "archive"
    for name in ("b.h5", "a.mrd", "sub/b.h5", "sub/C.HDF5", ".hidden.h5", ".git/d.h5", "notes.txt", "b_truth.npz"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def named(found, output):
    return {source.as_posix(): image.relative_to(output).as_posix() for source, image in found}


def test_a_folder_is_searched_through(archive, tmp_path):
    (archive / "out").mkdir()
    (archive / "out" / "b.h5").write_text("images of before")
    found, again = find_sources(archive, archive / "out")
    assert again == 0
    assert named(found, archive / "out") == {
        f"{archive}/a.mrd": "a.mrd.h5",
        f"{archive}/b.h5": "b.h5",
        f"{archive}/sub/C.HDF5": "sub/C.HDF5.h5",
        f"{archive}/sub/b.h5": "sub/b.h5",
    }


def test_a_list_names_files_relative_to_itself(archive, tmp_path):
    other = tmp_path / "other" / "b.h5"
    other.parent.mkdir()
    other.write_text("b")
    (archive / "list.txt").write_text(
        f"\ufeff# a comment\nsub/b.h5\n\n  b.h5  \n{other}\nabsent.h5\n", encoding="utf-8"
    )
    found, again = find_sources(archive / "list.txt", tmp_path / "out")
    assert again == 0
    assert named(found, tmp_path / "out") == {
        f"{archive}/sub/b.h5": "sub/b.h5",
        f"{archive}/b.h5": "b.h5",
        f"{other}": other.relative_to("/").as_posix(),
        f"{archive}/absent.h5": "absent.h5",
    }
    assert all(image.is_relative_to(tmp_path / "out") for _, image in found)


def test_no_image_lands_outside_of_the_folder(archive, tmp_path):
    (archive / "sub" / "list.txt").write_text("../b.h5\n../../archive/a.mrd\n")
    found, _ = find_sources(archive / "sub" / "list.txt", tmp_path / "out")
    assert [source.resolve() for source, _ in found] == [archive / "b.h5", archive / "a.mrd"]
    assert all(".." not in image.parts and image.is_relative_to(tmp_path / "out") for _, image in found)


def test_a_file_that_is_named_twice_is_taken_once(archive, tmp_path):
    (archive / "link.h5").symlink_to("b.h5")
    (archive / "list.txt").write_text("link.h5\nb.h5\n./b.h5\nsub/../b.h5\nsub/b.h5\n")
    found, again = find_sources(archive / "list.txt", tmp_path / "out")
    assert [source.name for source, _ in found] == ["link.h5", "b.h5"]
    assert again == 3


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"", SettingsError, "names no file"),
        (b"# nothing\n\n", SettingsError, "names no file"),
        (b"\x89HDF\r\n\x1a\n\0\0", SettingsError, "cinestream replay"),
        (b"caf\xe9.h5\n", ResourceError, "UTF-8"),
        (None, ResourceError, "cannot read"),
    ],
)
def test_what_is_no_list_is_refused(content, error, text, tmp_path):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=text):
        find_sources(path, tmp_path / "out")


def test_an_empty_folder_and_a_folder_on_itself_are_refused(archive, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"ends in \.h5"):
        find_sources(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(SettingsError, match="another folder"):
        find_sources(archive, archive / "sub" / "..")


# --- what is there ----------------------------------------------------------------------------------------------------


def planned(archive, output, settings=SETTINGS, group="dataset", **options):
    sources, _ = find_sources(archive, output)
    return {
        entry.source.relative_to(sources[0][0].parent).as_posix(): entry
        for entry in make_plan(sources, settings, group, **options)
    }


def finish(entry, **facts):
    """Leave what a worker leaves."""
    entry.output.parent.mkdir(parents=True, exist_ok=True)
    with ImageFile(entry.output, overwrite=True) as images:
        images.keep_record(as_record(entry.job.origin, Outcome(images=3, **facts)))


@pytest.fixture
def done(archive, tmp_path):
    """The folder of images of a finished batch."""
    for entry in planned(archive, tmp_path / "out").values():
        finish(entry)
    return tmp_path / "out"


def test_at_first_there_is_everything_to_do(archive, tmp_path):
    entries = planned(archive, tmp_path / "out")
    assert all(entry.job and entry.why == "there are no images yet" for entry in entries.values())
    job = entries["a.mrd"].job
    assert (job.source, job.output) == (f"{archive}/a.mrd", f"{tmp_path}/out/a.mrd.h5")
    assert apply(Settings(), job.settings) == SETTINGS
    assert summary_of(list(entries.values())) == "4 scans (0 MB) to reconstruct, 0 there already"


def test_what_is_done_is_not_done_again(archive, done):
    entries = planned(archive, done)
    assert not [entry for entry in entries.values() if entry.job or entry.why]
    assert {entry.before.images for entry in entries.values()} == {3}
    assert summary_of(list(entries.values())) == "0 scans (0 MB) to reconstruct, 4 there already"


def reasons(entries):
    return {entry.why for entry in entries.values() if entry.job}, sum(1 for entry in entries.values() if entry.job)


def test_other_settings_versions_and_groups_are_a_reason(archive, done, monkeypatch):
    other = Settings.of(method="zero_filled", series=3)
    assert reasons(planned(archive, done, other)) == ({"the images were made with other settings"}, 4)
    assert reasons(planned(archive, done, group="other")) == ({"the images were made of another group"}, 4)
    assert reasons(planned(archive, done, overwrite=True)) == ({"all are made anew"}, 4)
    monkeypatch.setattr(plan, "__version__", "9.9")
    assert reasons(planned(archive, done)) == ({"the images were made by another version"}, 4)


def test_other_weights_are_a_reason(archive, tmp_path, monkeypatch):
    network = Settings.of(method="crunet_mr")
    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(plan, "_weights", lambda _: {"crunet_mr": next(digests)})
    finish(planned(archive, tmp_path / "out", network)["b.h5"])
    assert planned(archive, tmp_path / "out", network)["b.h5"].why == ""
    assert planned(archive, tmp_path / "out", network)["b.h5"].why == "the images were made with other weights"


def test_weights_are_those_of_every_method_that_may_run(monkeypatch):
    class Found:
        def __init__(self, name, sha256):
            self.name, self.sha256, self.start = name, sha256, "kt_sense"

    def find(method, name):
        if name == "none":
            raise ModelError("there are none")
        return Found(name, f"digest of {name} for {method}")

    monkeypatch.setattr(plan, "find_weights", find)
    monkeypatch.setattr(plan, "list_weights", lambda: {"one": Found("one", "1"), "two": Found("two", "2")})
    assert plan._weights(SETTINGS) == {}
    chosen = Settings.of(method="crunet_mr", weights="mine")
    assert plan._weights(chosen) == {"mine": "digest of mine for crunet_mr"}
    assert plan._weights(apply(chosen, {"weights": "none"})) == {}
    assert plan._weights(Settings.of(method="auto")) == {"one": "1", "two": "2"}


def test_weights_that_are_started_from_are_a_reason_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    found = {
        name: find_weights(method, name).sha256 for name, method in (("second", "unet3d_mr"), ("first", "crunet_mr"))
    }
    assert plan._weights(Settings.of(method="unet3d_mr")) == found


@pytest.mark.parametrize("change", ["longer", "elsewhere", "touched"])
def test_a_raw_file_that_changed_is_a_reason(change, archive, done):
    path = archive / "a.mrd"
    times = path.stat()
    if change == "longer":
        path.write_text("a.mrd and more")
    elif change == "elsewhere":
        path.write_text("b.mrd")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + (change == "touched")))
    entries = planned(archive, done)
    assert [name for name, entry in entries.items() if entry.job] == ["a.mrd"]
    assert entries["a.mrd"].why == "the images were made before the raw file changed"


@pytest.mark.parametrize("foreign", ["images", "text"])
def test_files_of_others_are_not_touched(foreign, archive, tmp_path):
    output = tmp_path / "out" / "b.h5"
    output.parent.mkdir()
    if foreign == "images":
        with ImageFile(output):
            pass
    else:
        output.write_text("precious")
    (archive / "sub" / "b.h5").unlink()
    entry = planned(archive, tmp_path / "out")["b.h5"]
    assert entry.job is None
    assert entry.before.failed
    assert "was not made by cinestream batch" in entry.why
    assert "--overwrite" in entry.why
    assert planned(archive, tmp_path / "out", overwrite=True)["b.h5"].job is not None


def test_a_missing_file_is_one_that_cannot_be_done(archive, tmp_path):
    (archive / "list.txt").write_text("absent.h5\nb.h5\n")
    entries = planned(archive / "list.txt", tmp_path / "out")
    assert entries["absent.h5"].job is None
    assert entries["absent.h5"].before.problems == [f"cannot read {archive}/absent.h5: No such file or directory"]
    assert entries["b.h5"].job is not None
    assert summary_of(list(entries.values())).endswith("0 there already, 1 that cannot be")


def test_two_files_never_share_their_images(archive, tmp_path):
    (archive / "a.mrd.h5").write_text("another")
    entries = planned(archive, tmp_path / "out")
    assert entries["a.mrd"].job is not None
    assert entries["a.mrd.h5"].job is None
    assert str(archive / "a.mrd") in entries["a.mrd.h5"].why


def test_what_a_worker_made_before_it_died_counts(archive, tmp_path):
    entry = planned(archive, tmp_path / "out")["a.mrd"]
    assert made_by(entry.job) is None
    finish(entry, slices=2)
    assert made_by(entry.job).slices == 2
    assert made_by(dataclasses.replace(entry.job, origin={**entry.job.origin, "version": "0"})) is None


def test_records_that_are_none_are_not_read():
    for text in (
        "",
        "[]",
        "{}",
        '{"origin": {}}',
        '{"origin": 1, "outcome": {}}',
        '{"origin": {}, "outcome": {"x": 1}}',
    ):
        assert read_outcome(text) is None
    job = Job("a", "b", "c", {}, {"version": "1"})
    outcome = Outcome(["a", "b"], damaged=True, methods={"cg_sense": 2})
    assert read_outcome(as_record(job.origin, outcome)) == ({"version": "1"}, outcome)
    assert Path(job.source).name == "a"
