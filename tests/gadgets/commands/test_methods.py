"""``cinestream methods``."""

import re

from recon_core.methods import METHODS
from recon_core.trust.ranges import TrainingRange
from tests.helpers.networks import write_tiny_chain, write_tiny_weights


def test_methods_lists_all_with_their_papers(run):
    status, out, _ = run("methods")
    assert status == 0
    assert all(f"{name}\n    {info.summary}\n    {info.reference}\n" in out for name, info in METHODS.items())
    assert all(info.reference.startswith("https://") for info in METHODS.values())


def test_methods_says_which_weights_there_are(tmp_path, run, monkeypatch):
    trained = TrainingRange.parse({"acceleration": [3, 12]})
    write_tiny_weights(tmp_path, "crunet_mr", range=trained, licence="Apache-2.0")
    write_tiny_weights(tmp_path, "cinenet", name="mine")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    _, out, _ = run("methods")
    assert "    weights crunet_mr: acceleration 3 to 12 (Apache-2.0)\n" in out
    assert "    weights mine: training not recorded\n" in out
    (missing,) = re.findall(
        "^    scans go to the fallback: there are no weights for promptmr in .*$", out, re.MULTILINE
    )
    assert missing.endswith("run: cinestream import-weights promptmr FILE")


def test_methods_says_why_weights_cannot_be_used(tmp_path, run, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    _, out, _ = run("methods")
    assert "    weights second: training not recorded; start from the image of the weights first\n" in out
    write_tiny_weights(tmp_path, "crunet_mr", name="first")
    _, out, _ = run("methods")
    why = "scans go to the fallback: .*, entry 'second': a network cannot start from 'first'"
    assert re.search(f"^unet3d_mr\n.*\n.*\n    {why}", out, re.MULTILINE)


def test_a_method_by_name_comes_with_its_settings(run):
    status, out, _ = run("methods", "kt_sense", "grappa")
    assert status == 0
    assert re.findall(r"^\w+$", out, re.MULTILINE) == ["kt_sense", "grappa"]
    assert re.search(r"^    grappa\.\w+ \(", out, re.MULTILINE)


def test_a_mistyped_method(run):
    status, _, err = run("methods", "gappa")
    assert (status, "did you mean grappa?" in err) == (2, True)
