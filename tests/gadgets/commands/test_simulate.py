"""``cinestream simulate``: every field of the plan, and scans that cannot be."""

import numpy as np
import pytest

from gadgets.files.raw import open_scan
from gadgets.wire.messages import Readouts


def test_simulate_takes_every_field_of_the_plan(tmp_path, run):
    output = tmp_path / "scan.h5"
    options = ["--matrix-x", 32, "--matrix-y", 24, "--frames", 2, "--coils", 2, "--sampling", "full", "--slices", 2]
    options += ["--no-waveforms", "--ectopic-beat", "--snr", 30, "--vendor", "A & B", "--noise-readouts", 4]
    status, out, _ = run("simulate", output, *options)
    assert status == 0
    assert str(output) in out
    assert "scan_truth.npz" in out
    with open_scan(output) as raw:
        assert raw.readouts == 4 + 2 * 2 * 24
        assert "A &amp; B" in raw.header
        assert all(isinstance(item, Readouts) for item in raw.items)
    with np.load(tmp_path / "scan_truth.npz") as truth:
        assert truth["image"].shape == (2, 2, 24, 32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--frames", "0"], "'frames' must be a whole number from 1"),
        (["--frames", "few"], "few"),
        (["--snr", "nan"], "snr"),
        (["--sampling", "radial"], "variable_density"),
        (["--acs-lines", "500"], "do not fit"),
        (["--respiration", "5"], "real-time"),
        (["--segments", "100"], "per beat"),
    ],
)
def test_a_scan_that_cannot_be_is_status_2(options, text, tmp_path, run):
    status, _, err = run("simulate", tmp_path / "scan.h5", *options)
    assert status == 2
    assert text in err
    assert list(tmp_path.iterdir()) == []
