import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.off_grid.trajectory import (
    GOLDEN_ANGLE,
    angle_law,
    cell_areas,
    check_positions,
    leave_kspace,
    spoke_positions,
    tiny_golden_angle,
    to_cycles_per_pixel,
)


def test_golden_angles():
    assert pytest.approx(111.246, abs=1e-3) == GOLDEN_ANGLE
    assert tiny_golden_angle(1) == pytest.approx(GOLDEN_ANGLE)
    assert tiny_golden_angle(7) == pytest.approx(23.63, abs=5e-3)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (GOLDEN_ANGLE * np.arange(9), "111.25 degrees from spoke to spoke (golden angle)"),
        (-GOLDEN_ANGLE * np.arange(9) + 20, "68.75 degrees from spoke to spoke (golden angle)"),
        (tiny_golden_angle(7) * np.arange(9), "23.63 degrees from spoke to spoke (tiny golden angle 7)"),
        (180 / 13 * np.tile(np.arange(13), 3), "13.85 degrees from spoke to spoke (uniform, 13 in half a turn)"),
        (360 / 12 * np.arange(12), "30.00 degrees from spoke to spoke (uniform, 6 in half a turn)"),
        (17.3 * np.arange(9), "17.30 degrees from spoke to spoke"),
        (np.array([0.0, 5, 50, 60, 100, 177]), "no one angle from spoke to spoke"),
        (np.zeros(1), "one spoke"),
    ],
)
def test_angle_law(degrees, expected):
    assert angle_law(spoke_positions(np.deg2rad(degrees), 8, 4, (16, 16))) == expected


def test_angle_law_of_a_spiral():
    turns = np.linspace(0, 6, 32)
    spiral = np.stack([turns * np.cos(turns), turns * np.sin(turns)], -1) / 20
    assert "no straight lines" in angle_law(spiral[None].astype(np.float32))


def test_positions_of_spokes():
    positions = spoke_positions(np.deg2rad([0.0, 90.0]), 8, 4, (16, 12))
    np.testing.assert_allclose(positions[0, :, 0], (np.arange(8) - 4) / 32, atol=1e-7)
    np.testing.assert_allclose(positions[0, :, 1], 0, atol=1e-7)
    np.testing.assert_allclose(positions[1, :, 1], (np.arange(8) - 4) / 32, atol=1e-7)


def test_areas_of_even_spokes_are_the_ramp():
    spokes, samples, size = 40, 64, 32
    positions = spoke_positions(np.pi / spokes * np.arange(spokes), samples, samples // 2, (size, size))
    areas = cell_areas(positions, (size, size))
    radius = np.abs(np.arange(samples) - samples // 2) / 2
    ramp = np.pi / spokes * radius * 0.5
    np.testing.assert_allclose(areas[:, radius > 0], np.tile(ramp[radius > 0], (spokes, 1)), rtol=1e-5)
    np.testing.assert_allclose(areas[:, samples // 2], np.pi / 16 / spokes, rtol=1e-5)


@pytest.mark.parametrize("angles", [np.deg2rad(GOLDEN_ANGLE) * np.arange(21), np.repeat([0.1, 0.9, 2.0], 4)])
def test_areas_add_up_to_the_disk(angles):
    size, samples = 64, 129
    positions = spoke_positions(angles, samples, 64, (size, size))
    assert cell_areas(positions, (size, size)).sum() == pytest.approx(np.pi * (size / 2 + 0.25) ** 2, rel=0.01)


def test_evenly_every_spoke_has_the_same_part():
    positions = spoke_positions(np.deg2rad(tiny_golden_angle(7)) * np.arange(5), 32, 16, (16, 16))
    areas = cell_areas(positions, (16, 16), evenly=True)
    np.testing.assert_allclose(areas, areas[:1].repeat(5, 0), rtol=1e-5)
    assert areas.sum() == pytest.approx(cell_areas(positions, (16, 16)).sum(), rel=1e-5)


def test_equal_spokes_share_their_area():
    angles = np.array([0.0, 0.5, 0.5, 0.5, 2.0])
    areas = cell_areas(spoke_positions(angles, 32, 16, (16, 16)), (16, 16))
    np.testing.assert_allclose(areas[1], areas[2])
    np.testing.assert_allclose(areas[1], areas[3])


def test_half_spokes_cover_the_circle():
    angles = 2 * np.pi / 30 * np.arange(30)
    areas = cell_areas(spoke_positions(angles, 33, 0, (32, 32)), (32, 32))
    assert areas.sum() == pytest.approx(np.pi * 16.25**2, rel=0.02)


def test_units_that_are_not_known_are_not_promised():
    """Radians per pixel, and cycles per metre of a field of view that is not known."""
    positions = spoke_positions(np.array([0.0, 1.0]), 64, 32, (64, 64), 1.0)
    for factor in (2 * np.pi, 64 / 0.3):
        with pytest.raises(DataError, match="in radians or per metre have to be converted"):
            to_cycles_per_pixel(np.float32(factor) * positions, (64, 64))


@pytest.mark.parametrize(("unit", "factor"), [("metre", 1.0), ("radian", 2 * np.pi)])
def test_units_with_metres_are_seen_where_the_field_of_view_is_known(unit, factor):
    """A field of view of 300 x 240 mm; along y the pixels are smaller."""
    positions = spoke_positions(np.array([0.0, np.pi / 2]), 64, 32, (64, 64), 1.0)
    values = np.float32(factor) * positions * np.float32([64 / 0.3, 64 / 0.24])
    for asked in ("auto", unit):
        found, taken = to_cycles_per_pixel(values, (64, 64), asked, (240.0, 300.0))
        assert taken == unit
        np.testing.assert_allclose(found, positions, atol=1e-6)
    short = np.float32(0.8) * values  # as far as no unit makes sure of
    with pytest.raises(DataError, match=r"133 \(cycles per metre\) or 838 \(radians per metre\)"):
        to_cycles_per_pixel(short, (64, 64), "auto", (240.0, 300.0))
    with pytest.raises(DataError, match="need the field of view"):
        to_cycles_per_pixel(values, (64, 64), unit)


@pytest.mark.parametrize("factor", [1.0, 48.0])
def test_few_broken_readouts_do_not_hide_the_unit(factor):
    positions = spoke_positions(np.deg2rad(GOLDEN_ANGLE) * np.arange(9), 96, 48, (48, 48)) * np.float32(factor)
    positions[[2, 5]] *= 1000
    found, _ = to_cycles_per_pixel(positions, (48, 48))
    np.testing.assert_array_equal(leave_kspace(found), np.isin(np.arange(9), [2, 5]))
    np.testing.assert_allclose(np.abs(found[0]).max(), 0.5, rtol=0.03)


def test_refusals():
    positions = spoke_positions(np.array([[0.0, 1.0]]), 8, 4, (16, 16))
    measured = np.ones((1, 2), bool)
    check_positions(positions, measured)
    for spoilt, message in (
        (np.where(positions > 0, np.nan, positions), "not finite"),
        (0 * positions, "zero everywhere"),
        (16 * positions, "cycles per pixel"),
    ):
        with pytest.raises(DataError, match=message):
            check_positions(spoilt.astype(np.float32), measured)
    positions[0, 1] = np.nan
    check_positions(positions, np.array([[True, False]]))
    positions = spoke_positions(np.array([[0.0, 1.0]]), 8, 4, (16, 16))
    curved = positions[0].copy()
    curved[0, :, 1] += np.linspace(-0.3, 0.3, 8) ** 2
    with pytest.raises(DataError, match="straight"):
        cell_areas(curved, (16, 16))
    with pytest.raises(DataError, match="two samples"):
        cell_areas(positions[0, :, :1], (16, 16))
