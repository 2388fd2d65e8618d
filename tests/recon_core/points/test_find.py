import numpy as np
import pytest

from recon_core.points.find import are_gapped, find_points
from recon_core.simulate.sampling import pseudo_radial_mask


def kspace(frames=3, coils=2, lines=16, samples=20):
    rng = np.random.default_rng(0)
    shape = (frames, coils, lines, samples)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def test_points_are_what_is_not_zero():
    points = pseudo_radial_mask(3, 16, 20, 4)
    data = kspace() * points[:, None]
    np.testing.assert_array_equal(find_points(data, points.any(2)), points)


def test_whole_lines_are_none():
    data = kspace()
    mask = np.zeros((3, 16), bool)
    mask[:, ::2] = True
    data *= mask[:, None, :, None]
    assert find_points(data, mask) is None
    data[0, :, 2, 3] = 0  # happens to be zero
    assert find_points(data, mask) is None


def test_absent_columns_and_lines_are_no_points():
    data = kspace()
    data[..., :6] = 0  # an asymmetric echo
    data[0, :, :8] = 0  # lines that hold nothing
    assert find_points(data, np.ones((3, 16), bool)) is None


def test_one_coil_without_signal_makes_no_points():
    data = kspace()
    data[:, 0] = 0
    assert find_points(data, np.ones((3, 16), bool)) is None


@pytest.mark.parametrize("dead", [(0,), (0, 1), (2,)])
def test_dead_coils_hide_no_points(dead):
    points = pseudo_radial_mask(3, 16, 20, 4)
    data = kspace(coils=3) * points[:, None]
    data[:, dead] = 0
    np.testing.assert_array_equal(find_points(data, points.any(2)), points)
    readouts = data[points.any(2).nonzero()[0], :, points.any(2).nonzero()[1]]
    assert are_gapped(readouts)


def test_nothing_at_all():
    assert find_points(np.zeros((2, 1, 4, 4), np.complex64), np.ones((2, 4), bool)) is None
    assert find_points(np.zeros((2, 1, 4, 4), np.complex64), np.zeros((2, 4), bool)) is None
