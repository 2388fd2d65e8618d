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


def images_of(scan, method="kt_sense", **settings):
    """Images, and what was to be said of the scan."""
    chain = Chain(parse_header(scan.header), Settings.of(method=method, fallback="none", **settings), engine)
    images = [item for item in chain(iter([*scan.items()])) if isinstance(item, Image)]
    return images, " ".join(map(str, chain.summary.problems))


@pytest.mark.parametrize("changes", [{}, {"asymmetric_echo": 0.1}, {"oversampling": 1.5, "reversed_readouts": True}])
def test_points_of_readouts_with_oversampling_come_as_near(changes):
    scan = simulate(ScanPlan(**{**PLAN, "oversampling": 2.0, **changes}))
    found, said = images_of(scan)
    assert found[0].data.shape == (1, 1, 40, 48)
    assert found[0].header["field_of_view"].tolist() == pytest.approx(scan.truth.field_of_view.tolist())
    assert "their oversampling stays until the image" in said
    assert error(found, scan.truth.image[0]) < 0.1
    mixed, said = images_of(scan, oversampling="present")
    assert "oversampling=kept" in said
    assert error(mixed, scan.truth.image[0]) > 0.3


def test_oversampling_that_stays_of_whole_lines_changes_nothing_but_time():
    scan = simulate(
        ScanPlan(**{**PLAN, "oversampling": 2.0, "grid_spokes": 0, "sampling": "uniform", "acceleration": 2})
    )
    removed, said = images_of(scan, "cg_sense")
    assert "oversampling" not in said
    kept, _ = images_of(scan, "cg_sense", oversampling="kept")
    assert kept[0].data.shape == removed[0].data.shape
    assert error(kept, np.stack([image.data[0, 0] for image in removed])) < 0.02


def test_gaps_that_come_late_are_said():
    scan = simulate(ScanPlan(**{**PLAN, "oversampling": 2.0, "grid_spokes": 0}))
    items = [*scan.items()]
    images = [item for item in items if isinstance(item, Readouts) and item.data.shape[2] == 96]
    images[-1].data[:, :, 20:70:2] = 0
    chain = Chain(parse_header(scan.header), Settings.of(method="zero_filled"), engine)
    [*chain(iter(items))]
    assert "oversampling=kept leaves it until the image" in " ".join(map(str, chain.summary.problems))


def test_doctor_names_the_pattern(tmp_path):
    write_simulation(ScanPlan(**PLAN), tmp_path / "scan.h5")
    report = inspect(tmp_path / "scan.h5", Settings.of())
    assert '"points"' in report.json()


def test_plans_that_cannot_be():
    with pytest.raises(SettingsError, match="no removes_oversampling"):
        ScanPlan(**{**PLAN, "removes_oversampling": True})
    with pytest.raises(SettingsError, match="grid_spokes"):
        ScanPlan(**{**PLAN, "trajectory": "golden", "sampling": "uniform"})
