"""``cinestream import-weights``."""

import pytest
import torch

from gadgets.files.images import read_images
from tests.helpers.networks import tiny, write_tiny_chain


def test_imported_weights_make_images(tmp_path, scan, run, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    network = tiny("crunet_mr")
    tensors = {network.authors_key(key): value for key, value in network.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "authors.pth")
    config = ["--config", "cascades=2", "--config", "channels=4"]
    facts = ["--range", "acceleration=1:8", "--range", "patterns=constant,full", "--licence", "CC0"]
    status, out, err = run("import-weights", "crunet_mr", tmp_path / "authors.pth", *config, *facts)
    assert (status, err) == (0, "")
    assert str(tmp_path / "data" / "cinestream" / "weights" / "crunet_mr.safetensors") in out
    _, out, _ = run("methods")
    assert "weights crunet_mr: acceleration 1 to 8, constant or full pattern (CC0)" in out
    assert run("replay", scan, "-p", "crunet_mr", "-o", tmp_path / "images.h5")[0] == 0
    (images,) = read_images(tmp_path / "images.h5").values()
    assert all("cinestream crunet_mr; weights crunet_mr" in image.attributes for image in images)


def test_weights_that_are_started_from_no_longer_are_mentioned(tmp_path, run, monkeypatch):
    """Imported ones hide them by their name, and start from the zero-filled image."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    write_tiny_chain(tmp_path / "weights", "crunet_mr", "unet3d_mr")
    first = str(tmp_path / "weights" / "first.safetensors")
    config = ["--config", "cascades=2", "--config", "channels=4", "--folder", tmp_path / "weights"]
    status, out, _ = run("import-weights", "crunet_mr", first, *config, "--name", "another")
    assert (status, "of no use" in out) == (0, False)
    status, out, _ = run("import-weights", "crunet_mr", first, *config, "--name", "first")
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.startswith("of no use from now on: "))
    assert "entry 'second': a network cannot start from 'first'" in line


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ([], ["CRUNetMR", "missing"]),
        (["--config", "colour=red"], ["colour", "channels"]),
        (["--range", "acceleration=fast"], ["acceleration", "least, most"]),
        (["--range", "speed=1:2"], ["speed", "acceleration"]),
        (["--name", "../weights"], ["../weights"]),
    ],
    ids=["another network", "config", "range", "unknown range", "name"],
)
def test_weights_that_do_not_fit_are_not_imported(options, texts, tmp_path, run, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    status, _, err = run("import-weights", "crunet_mr", tmp_path / "other.pth", *options)
    assert status in (1, 2)
    assert all(text in err for text in texts)
    assert not (tmp_path / "data").exists()
