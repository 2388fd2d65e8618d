"""Masks of points on the grid from the readouts to the images."""

import functools

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.inspection.raw_file import inspect
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.simulation.scan import write_simulation
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image, Readouts
from recon_core.engine import Engine
from recon_core.errors import SettingsError
from recon_core.simulate.sampling import pseudo_radial_mask

PLAN = {
    "matrix_x": 48,
    "matrix_y": 40,
    "frames": 6,
    "coils": 4,
    "sampling": "full",
    "oversampling": 1.0,
    "grid_spokes": 9,
    "waveforms": False,
}


@functools.cache
def engine():
    return Engine("cpu")


def error(images, truth):
    found, truth = np.abs(np.stack([image.data[0, 0] for image in images])), np.abs(truth)
    scale = (found * truth).sum() / np.square(found).sum()
    return float(np.linalg.norm(scale * found - truth) / np.linalg.norm(truth))


def test_readouts_have_zeros_beside_the_points():
    points = pseudo_radial_mask(6, 40, 48, 9)
    for item in simulate(ScanPlan(**PLAN)).items():
        if not isinstance(item, Readouts) or item.data.shape[2] != 48:
            continue
        for header, data in zip(item.headers, item.data, strict=True):
            expected = points[header["idx"]["phase"], header["idx"]["kspace_encode_step_1"]]
            np.testing.assert_array_equal((data != 0).any(0), expected)


def test_a_scan_comes_near_the_truth():
    scan = simulate(ScanPlan(**PLAN))
    items, errors = [*scan.items()], {}
    for method in ("zero_filled", "kt_sense"):
        chain = Chain(parse_header(scan.header), Settings.of(method=method, fallback="none"), engine)
        images = [item for item in chain(iter(items)) if isinstance(item, Image)]
        assert not chain.summary.problems.damage
        assert "a mask of points" in images[0].attributes
        errors[method] = error(images, scan.truth.image[0])
    assert errors["kt_sense"] < 0.35 * errors["zero_filled"]


def test_doctor_names_the_pattern(tmp_path):
    write_simulation(ScanPlan(**PLAN), tmp_path / "scan.h5")
    report = inspect(tmp_path / "scan.h5", Settings.of())
    assert '"points"' in report.json()


def test_plans_that_cannot_be():
    with pytest.raises(SettingsError, match="oversampling 1"):
        ScanPlan(**{**PLAN, "oversampling": 2.0})
    with pytest.raises(SettingsError, match="grid_spokes"):
        ScanPlan(**{**PLAN, "trajectory": "golden", "sampling": "uniform"})
