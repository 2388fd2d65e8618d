"""``cinestream send``."""

import shutil
from pathlib import Path

import pytest

from gadgets.connection.session import SessionOptions
from gadgets.files.images import read_images
from tests.helpers.peers import serving


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


@pytest.mark.parametrize(
    "text", ['{"parameters": {"series": 3}', "series=3", "[1]", '{"series": 3}', '{"parameters": 3}']
)
def test_broken_parameters_are_told_before_anything_is_sent(text, scan, tmp_path, run):
    status, _, err = run("send", scan, "-o", tmp_path / "images.h5", "--parameters", text, "--port", "1")
    assert status == 2
    assert '--parameters: expected {"parameters": {"name": value}}, got' in err


def test_a_wrong_pipeline_sends_no_data_and_does_not_block_the_repeat(scan, tmp_path, run, caplog):
    output = tmp_path / "images.h5"
    with serving(options=SessionOptions(save_raw=tmp_path / "raw")) as server:
        port = server.address[1]
        status, out, _ = run("send", scan, "-o", output, "-c", "cg_sens", "--port", port)
        assert (status, "no file was written" in out) == (1, True)
        assert "did you mean cg_sense" in caplog.text
        assert not output.exists()
        assert sum(path.stat().st_size for path in (tmp_path / "raw").iterdir()) < 50_000
        assert run("send", scan, "-o", output, "-c", "cg_sense", "--port", port)[0] == 0
    assert len(read_images(output)[1]) == 3
