import math

import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.metrics import best_scale, dynamic_psnr, dynamic_region, nrmse, psnr, ssim


@pytest.fixture
def series():
    return np.random.default_rng(1).uniform(0.1, 1, (4, 16, 12))


def test_perfect_image(series):
    assert nrmse(series, series) == 0
    assert psnr(series, series) == math.inf
    assert ssim(series, series) == pytest.approx(1)


def test_phase_does_not_count(series):
    turned = (series * np.exp(1.3j)).astype(np.complex64)
    assert nrmse(turned, series) < 1e-6
    assert nrmse(series, turned) < 1e-6


def test_known_values():
    reference = np.zeros((1, 8, 8))
    reference[0, 0, 0] = 4
    image = reference.copy()
    image[0, 0, 1] = 2
    assert nrmse(image, reference) == pytest.approx(0.5)
    assert psnr(image, reference) == pytest.approx(20 * math.log10(4 / math.sqrt(4 / 64)))


def test_best_scale_is_least_squares(series):
    image = series / 3 + 0.01
    scale = best_scale(image, series)
    errors = [nrmse(image * factor * scale, series) for factor in (0.999, 1, 1.001)]
    assert errors[1] == min(errors)
    assert best_scale(series / 5, series) == pytest.approx(5)
    assert best_scale(np.zeros_like(series), series) == 1


def test_the_peak_is_that_of_the_series(series):
    series[2, 3, 3] = 10
    image = series + 0.1
    assert psnr(image[:1], series[:1]) < psnr(image, series) == pytest.approx(40)


def test_dynamic_region_is_what_moves(series):
    still = np.broadcast_to(series[:1], series.shape).copy()
    still[:, 4:6, 4:6] += np.arange(4)[:, None, None]
    region = dynamic_region(still)
    assert region.sum() == 4
    assert region[4:6, 4:6].all()
    image = still.copy()
    image[:, 10, 10] += 1  # an error where nothing moves
    assert psnr(image, still) < math.inf
    assert dynamic_psnr(image, still) == math.inf


def test_ssim_against_one_window():
    generator = np.random.default_rng(2)
    reference, image = generator.uniform(0, 1, (1, 7, 7)), generator.uniform(0, 1, (1, 7, 7))
    peak = reference.max()
    covariance = np.cov(image.ravel(), reference.ravel())
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * image.mean() * reference.mean() + c1) / (image.mean() ** 2 + reference.mean() ** 2 + c1)
    structure = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
    assert ssim(image, reference) == pytest.approx(luminance * structure)


def test_ssim_falls_with_noise(series):
    noise = np.random.default_rng(3).standard_normal(series.shape)
    assert 1 > ssim(series + 0.01 * noise, series) > ssim(series + 0.1 * noise, series)


def test_what_cannot_be_compared(series):
    with pytest.raises(DataError, match="must both be"):
        nrmse(series[:2], series)
    with pytest.raises(DataError, match="zero everywhere"):
        psnr(series, np.zeros_like(series))
    with pytest.raises(DataError, match="7 x 7"):
        ssim(series[:, :6], series[:, :6])
