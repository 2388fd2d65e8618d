import numpy as np
import pytest

from recon_core.errors import SettingsError
from recon_core.simulate.coils import coil_maps, coil_maps_at, noise_covariance
from recon_core.simulate.phantom import pixel_positions

MATRIX = (60, 72)
FOV = (300.0, 360.0)


@pytest.mark.parametrize("n_coils", [1, 2, 5, 10, 34])
def test_maps_are_smooth_and_see_the_whole_body(n_coils):
    maps = coil_maps(n_coils, MATRIX, FOV)
    assert maps.shape == (n_coils, *MATRIX)
    assert maps.dtype == np.complex64
    magnitude = np.sqrt((np.abs(maps) ** 2).sum(0))
    assert magnitude.min() > 0.05
    assert magnitude[30, 36] == pytest.approx(1.0, abs=1e-3)
    for axis in (1, 2):
        step = np.sqrt((np.abs(np.diff(maps, axis=axis)) ** 2).sum(0))
        assert step.max() < 0.2 * magnitude.max()


def test_coils_differ():
    maps = coil_maps(10, MATRIX, FOV).reshape(10, -1)
    values = np.linalg.svd(maps, compute_uv=False)
    assert values[-1] > 0.02 * values[0]


def test_maps_depend_on_position_not_on_the_grid():
    coarse = coil_maps(4, MATRIX, FOV, seed=3)
    fine = coil_maps_at(4, pixel_positions(120, FOV[0]), pixel_positions(144, FOV[1]), seed=3)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=2e-4)
    assert np.abs(coarse - coil_maps(4, MATRIX, FOV, seed=4)).max() > 0.1


def test_noise_is_coloured_and_invertible():
    covariance = noise_covariance(10, seed=2)
    np.testing.assert_allclose(covariance, covariance.conj().T, atol=1e-6)
    assert np.trace(covariance).real == pytest.approx(10.0, rel=1e-4)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] > 0.05
    assert values[-1] > 1.5
    deviation = np.sqrt(np.diag(covariance).real)
    correlation = np.abs(covariance) / np.outer(deviation, deviation) - np.eye(10)
    assert 0.2 < correlation.max() < 0.9


def test_refuses_no_coils():
    with pytest.raises(SettingsError):
        coil_maps(0, MATRIX, FOV)
    with pytest.raises(SettingsError):
        noise_covariance(0)
