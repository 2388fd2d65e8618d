import math

import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.metrics.measures import (
    best_scale,
    block_psnr,
    block_ssim,
    dynamic_region,
    frame_mean,
    haarpsi,
    nrmse,
    psnr,
    ssim,
    window_centres,
)
from tests.helpers.paths import SHARED, existing

PARITY = SHARED / "parity"


@pytest.fixture
def series():
    return np.random.default_rng(1).uniform(0.1, 1, (4, 16, 12))


def test_perfect_image(series):
    assert nrmse(series, series) == 0
    assert psnr(series, series) == math.inf
    assert ssim(series, series) == pytest.approx(1)
    assert haarpsi(series, series) == pytest.approx(1)
    assert frame_mean(psnr, 3 * series, series) > 250


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
    assert psnr(image, still, region) == math.inf
    assert nrmse(image, still, region) == 0
    assert ssim(image, still) < ssim(image, still, region) == pytest.approx(1)


def test_measures_in_a_region(series):
    image = series.copy()
    image[:, 5:8] += 0.2
    region = np.zeros(series.shape[1:], bool)
    region[5:8] = True
    assert nrmse(image, series, region) == pytest.approx(nrmse(image[:, 5:8], series[:, 5:8]))
    assert psnr(image, series, region) == pytest.approx(20 * math.log10(series.max() / 0.2))
    image *= np.random.default_rng(9).uniform(0.9, 1.1, image.shape)
    everywhere = np.ones_like(region)
    for measure in (nrmse, psnr, ssim):
        assert measure(image, series, everywhere) == pytest.approx(measure(image, series))
        per_frame = np.broadcast_to(region, series.shape).copy()
        assert measure(image, series, per_frame) == measure(image, series, region)
        per_frame[1:] = False
        assert measure(image, series, per_frame) != measure(image, series, region)
    one = np.zeros_like(region)
    one[6, 4] = True  # the centre of one window
    peak = np.zeros((1, 7, 7))
    peak[0, 0, 0] = series.max()  # a row and column more, so that the range is that of the series

    def window(frames):
        return frames[:1, 3:10, 1:8]

    padded = [np.concatenate([window(frames), peak], axis=1) for frames in (image, series)]
    centre = np.zeros((14, 7), bool)
    centre[3, 3] = True
    only_first = np.zeros(series.shape, bool)
    only_first[0] = one
    assert ssim(image, series, only_first) == pytest.approx(ssim(*padded, centre))


def test_window_centres(series):
    assert window_centres(np.ones(series.shape, bool)).shape == (4, 10, 6)
    with pytest.raises(DataError, match="no pixel"):
        ssim(series, series, np.pad(np.zeros((10, 6), bool), 3, constant_values=True))


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


# --- HaarPSI ----------------------------------------------------------------------------------------------------------


def slow_haarpsi(image, reference):
    """One frame from the formulas of the paper, pixel by pixel, with two-dimensional filters."""

    def value(frame, y, x):
        return frame[y, x] if 0 <= y < frame.shape[0] and 0 <= x < frame.shape[1] else 0.0

    def halved(frame):
        rows, columns = math.ceil(frame.shape[0] / 2), math.ceil(frame.shape[1] / 2)
        return np.array(
            [
                [sum(value(frame, 2 * y + i, 2 * x + k) for i in (0, 1) for k in (0, 1)) / 4 for x in range(columns)]
                for y in range(rows)
            ]
        )

    def coefficient(frame, y, x, j, k):
        size = 2**j
        total = 0.0
        for row in range(size):
            for column in range(size):
                sign = 1 if (row, column)[k] < size // 2 else -1
                total += sign * value(frame, y + row - size // 2 + 1, x + column - size // 2 + 1)
        return abs(total) / size

    def logistic(value):
        return 1 / (1 + math.exp(-4.2 * value))

    first, second = (halved(frame * 255 / reference.max()) for frame in (image, reference))
    above = below = 0.0
    for y in range(first.shape[0]):
        for x in range(first.shape[1]):
            for k in (0, 1):
                pairs = [[coefficient(frame, y, x, j, k) for frame in (first, second)] for j in (1, 2, 3)]
                local = sum((2 * a * b + 30) / (a**2 + b**2 + 30) for a, b in pairs[:2]) / 2
                above += logistic(local) * max(pairs[2])
                below += max(pairs[2])
    share = above / below
    return (math.log(share / (1 - share)) / 4.2) ** 2


@pytest.mark.parametrize("shape", [(16, 12), (13, 17)])
def test_haarpsi_against_the_formulas(shape):
    generator = np.random.default_rng(4)
    reference = generator.uniform(0, 1, (1, *shape))
    image = reference + 0.1 * generator.standard_normal(reference.shape)
    assert haarpsi(image, reference) == pytest.approx(slow_haarpsi(np.abs(image[0]), reference[0]), rel=1e-12)


def test_haarpsi_is_the_mean_of_the_frames_in_one_range(series):
    image = series + 0.1 * np.random.default_rng(5).standard_normal(series.shape)
    series[1, 0, 0] = image[1, 0, 0] = 2
    brightest = (image / series.max(), series / series.max())
    marked = [np.concatenate([frames, np.zeros((4, 1, 12))], axis=1) for frames in brightest]
    assert haarpsi(image, series) == pytest.approx(haarpsi(*brightest))
    assert haarpsi(image, series) != pytest.approx(frame_mean(haarpsi, image, series))
    assert haarpsi(*marked) != haarpsi(*brightest)  # the border is part of the image


def test_haarpsi_is_symmetric_for_equal_maxima(series):
    other = np.random.default_rng(6).permuted(series, axis=2)
    assert haarpsi(series, other) == pytest.approx(haarpsi(other, series))


def test_haarpsi_falls_with_noise_and_blur():
    y, x = np.indices((48, 64))
    reference = (1.0 + np.sin(0.4 * x) * np.cos(0.3 * y) + (np.hypot(y - 24, x - 32) < 12))[None]
    noise = np.random.default_rng(7).standard_normal(reference.shape)
    noisy = [haarpsi(reference + sigma * noise, reference) for sigma in (0.02, 0.1, 0.5)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0
    blurred, scores = reference, []
    for _ in range(3):
        for _ in range(4):
            for axis in (1, 2):
                blurred = (np.roll(blurred, 1, axis) + 2 * blurred + np.roll(blurred, -1, axis)) / 4
        scores.append(haarpsi(blurred, reference))
    assert 1 > scores[0] > scores[1] > scores[2] > 0


def test_haarpsi_of_a_dark_frame(series):
    series[0] = 0
    assert haarpsi(series, series) == pytest.approx(1)


# --- as in the papers -------------------------------------------------------------------------------------------------


def test_frame_mean_takes_every_frame_by_its_own_maximum(series):
    brighter = series * np.array([1, 2, 3, 4])[:, None, None]
    image = series + 0.1 * np.random.default_rng(8).standard_normal(series.shape)
    assert frame_mean(nrmse, image, brighter) == pytest.approx(frame_mean(nrmse, image, series))
    single = [
        nrmse(np.abs(image[i : i + 1]) / np.abs(image[i]).max(), series[i : i + 1] / series[i].max()) for i in range(4)
    ]
    assert frame_mean(nrmse, image, series) == pytest.approx(np.mean(single))


@pytest.mark.parametrize("name", ["psnr", "ssim", "nmse", "haarpsi"])
def test_frame_mean_is_how_crunet_mr_was_scored(name):
    path = PARITY / "crunet_mr" / "case_loss_metrics.npz"
    existing(path)

    def nmse(image, reference):
        return nrmse(image, reference) ** 2

    measure = {"psnr": psnr, "ssim": ssim, "nmse": nmse, "haarpsi": haarpsi}[name]
    with np.load(path) as case:
        image, reference, expected = case["rec"], case["gnd"], case[f"metric_{name}"]
    got = [frame_mean(measure, image[i : i + 1], reference[i : i + 1]) for i in range(len(image))]
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert frame_mean(measure, image, reference) == pytest.approx(expected.mean(), rel=2e-5)


def test_block_measures_are_how_the_dual_u_net_was_scored():
    path = PARITY / "dual_unet_resnet3d" / "case_metrics_lr.npz"
    existing(path)
    with np.load(path) as case:
        image, reference = case["rec"], case["ref"]
        assert block_psnr(image, reference) == pytest.approx(float(case["psnr"]), rel=1e-6)
        assert block_ssim(image, reference) == pytest.approx(float(case["ssim"]), rel=1e-6)
        assert psnr(image, reference) == pytest.approx(float(case["psnr_max"]), rel=1e-5)


def test_block_ssim_against_one_window():
    generator = np.random.default_rng(10)
    reference, image = generator.uniform(0.2, 0.7, (2, 11, 11, 11))
    line = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights = line[:, None, None] * line[:, None] * line
    weights /= weights.sum()
    means = [(weights * frames).sum() for frames in (image, reference)]
    variances = [(weights * (frames - mean) ** 2).sum() for frames, mean in zip((image, reference), means, strict=True)]
    covariance = (weights * (image - means[0]) * (reference - means[1])).sum()
    spread = reference.max() - reference.min()
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    structure = (2 * covariance + c2) / (sum(variances) + c2)
    assert block_ssim(image, reference) == pytest.approx(luminance * structure)


def test_block_measures():
    reference = np.random.default_rng(11).uniform(0, 1, (12, 14, 13))
    assert block_psnr(reference, reference) == pytest.approx(80)
    assert block_psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-4)
    assert block_ssim(reference, reference) == pytest.approx(1)
    scores = [block_ssim(reference + noise * reference[::-1], reference) for noise in (0.01, 0.1, 1)]
    assert 1 > scores[0] > scores[1] > scores[2]


def test_what_cannot_be_compared(series):
    with pytest.raises(DataError, match="at least 11 frames"):
        block_ssim(series, series)
    with pytest.raises(DataError, match="no range"):
        block_ssim(np.ones((11, 11, 11)), np.ones((11, 11, 11)))
    with pytest.raises(DataError, match="must both be"):
        nrmse(series[:2], series)
    with pytest.raises(DataError, match="zero everywhere"):
        psnr(series, np.zeros_like(series))
    with pytest.raises(DataError, match="7 x 7"):
        ssim(series[:, :6], series[:, :6])
    with pytest.raises(DataError, match="no pixel"):
        psnr(series, series, np.zeros((16, 12), bool))
    dark = series.copy()
    dark[:, 2:4] = 0
    with pytest.raises(DataError, match="zero everywhere in the region"):
        nrmse(series, dark, (dark == 0).all(axis=0))
    for value in (np.nan, np.inf):
        broken = series.copy()
        broken[0, 0, 0] = value
        with pytest.raises(DataError, match="the image holds"):
            haarpsi(broken, series)
        with pytest.raises(DataError, match="the reference holds"):
            best_scale(series, broken)
