"""Folders of a user, and files that are never seen half written."""

from pathlib import Path

import pytest

from recon_core.errors import ResourceError
from recon_core.storage import replacing, write_file, xdg_folder


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_folder_in_the_home_unless_the_variable_names_another(value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert xdg_folder("XDG_STATE_HOME", ".local/state", "") == tmp_path / ".local" / "state" / "cinestream"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert xdg_folder("XDG_STATE_HOME", ".local/state", "") == tmp_path / "other" / "cinestream"


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("first")
        assert not path.exists()
    with replacing(path) as part:
        part.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fill_the_disk():
        with replacing(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="cannot write"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_pipe_is_written_to_and_a_link_is_followed(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    link.symlink_to(file)
    write_file(link, b"new")
    assert file.read_bytes() == b"new"
    assert link.is_symlink()
    write_file(Path("/dev/null"), b"new")
    assert not Path("/dev/null").is_file()


def test_a_folder_is_made_only_where_that_is_wanted(tmp_path):
    with pytest.raises(ResourceError, match=r"cannot write .*none"):
        write_file(tmp_path / "none" / "file", b"new")
    assert list(tmp_path.iterdir()) == []
