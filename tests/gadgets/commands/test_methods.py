"""``cinestream methods``."""

import re

from recon_core.methods import METHODS
from recon_core.trust.ranges import TrainingRange
from tests.helpers.networks import write_tiny_weights


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
    assert "    no weights: scans go to the fallback; cinestream import-weights promptmr FILE brings some\n" in out


def test_a_method_by_name_comes_with_its_settings(run):
    status, out, _ = run("methods", "kt_sense", "grappa")
    assert status == 0
    assert re.findall(r"^\w+$", out, re.MULTILINE) == ["kt_sense", "grappa"]
    assert re.search(r"^    grappa\.\w+ \(", out, re.MULTILINE)


def test_a_mistyped_method(run):
    status, _, err = run("methods", "gappa")
    assert (status, "did you mean grappa?" in err) == (2, True)
