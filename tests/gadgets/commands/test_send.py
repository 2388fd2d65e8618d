"""``cinestream send``."""

import shutil
from pathlib import Path


def test_send_refuses_what_cannot_be(scan, tmp_path, run):
    output = tmp_path / "images.h5"
    assert run("send", scan, "-o", output, "--port", "99999")[0] == 2
    status, _, err = run("send", scan, "-o", output, "--host", "..")
    assert status == 1
    assert "no server answers at .." in err
    status, _, err = run("send", scan, "-o", output, "-C", tmp_path / "no.xml")
    assert status == 1
    assert "no.xml" in err
    status, _, err = run("send", tmp_path / "no.h5", "-o", output)
    assert status == 1
    assert "no.h5" in err
    source = Path(shutil.copy(scan, tmp_path))
    status, _, err = run("send", source, "-o", source, "--overwrite")
    assert status == 2
    assert source.read_bytes() == scan.read_bytes()
