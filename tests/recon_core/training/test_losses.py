import numpy as np
import pytest
import torch

from recon_core.metrics.measures import ssim
from recon_core.training.losses import LOSSES, structural_similarity
from tests.helpers.paths import SHARED, needs

GOLDEN = SHARED / "parity" / "crunet_mr" / "case_loss_metrics.npz"
SIMILARITIES = ("similarity_of_frames", "similarity_of_series")


def series(seed=0, shape=(3, 13, 11)):
    """Two complex series of which the second is what the first should be."""
    rng = np.random.default_rng(seed)
    real, imaginary = rng.standard_normal((2, *shape))
    target = real + 1j * imaginary
    image = target + 0.3 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return image.astype(np.complex64), target.astype(np.complex64)


def loss(name, image, target):
    return float(LOSSES[name](torch.from_numpy(image), torch.from_numpy(target)))


def plain_ssim(ours, theirs, data_range):
    """Mean over the windows of one frame, each taken by itself."""
    values = []
    for y in range(ours.shape[0] - 6):
        for x in range(ours.shape[1] - 6):
            a, b = (each[y : y + 7, x : x + 7].astype(np.float64).ravel() for each in (ours, theirs))
            (va, common), (_, vb) = np.cov(a, b)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(luminance * (2 * common + c2) / (va + vb + c2))
    return np.mean(values)


# --- definitions ------------------------------------------------------------------------------------------------------


def test_decibel_weighs_what_moves_three_times():
    image, target = series()
    deviation = np.abs(target).std(0, ddof=1)
    weight = 1 + 2 * np.minimum(deviation / np.quantile(deviation, 0.95), 1)
    assert weight.max() == 3
    expected = np.log10(np.average(np.abs(image - target) ** 2, weights=np.broadcast_to(weight, image.shape)))
    assert loss("decibel", image, target) == pytest.approx(expected, abs=1e-5)


def test_decibel_of_one_frame_weighs_all_the_same():
    image, target = series(shape=(1, 9, 8))
    assert loss("decibel", image, target) == pytest.approx(np.log10((np.abs(image - target) ** 2).mean()), abs=1e-5)


def test_a_tenth_of_the_error_is_two_of_the_decibel_loss():
    image, target = series()
    closer = target + 0.1 * (image - target)
    assert loss("decibel", image, target) - loss("decibel", closer, target) == pytest.approx(2, abs=1e-3)


def test_squared_is_of_real_and_imaginary_parts():
    image, target = series()
    error = image - target
    expected = np.concatenate([error.real.ravel(), error.imag.ravel()])
    assert loss("squared", image, target) == pytest.approx(np.mean(expected**2), rel=1e-5)


def test_squared_magnitude_does_not_see_the_phase():
    image, target = series()
    expected = np.mean((np.abs(image) - np.abs(target)) ** 2)
    assert loss("squared_magnitude", image, target) == pytest.approx(expected, rel=1e-5)
    turned = image * np.complex64(np.exp(1j))
    assert loss("squared_magnitude", turned, target) == pytest.approx(expected, rel=1e-5)


def test_crunet_is_the_sum_of_its_terms():
    image, target = series()
    expected = 0.0
    for part in (np.real, np.imag):
        ours, theirs = part(image).astype(np.float64), part(target).astype(np.float64)
        expected += 0.75 / 2 * np.mean((ours - theirs) ** 2) + 0.5 / 2 * np.mean(np.abs(ours - theirs))
        ours, theirs = (each / (each.max() + 1e-6) + 1e-6 for each in (ours, theirs))
        expected += 0.5 * (1 - np.mean([plain_ssim(a, b, 1.0) for a, b in zip(ours, theirs, strict=True)]))
    assert loss("crunet", image, target) == pytest.approx(expected, rel=1e-4)


@needs(GOLDEN)
def test_crunet_gives_the_number_of_its_authors():
    golden = np.load(GOLDEN)
    image, target = golden["rec"], golden["gnd"]
    assert loss("crunet", image, target) == pytest.approx(float(golden["loss_total"]), rel=1e-5)
    assert loss("squared", image, target) == pytest.approx(float(golden["loss_mse_img"]), rel=1e-5)
    for name, part in (("loss_ssim_re", np.real), ("loss_ssim_im", np.imag)):
        ours, theirs = (part(each) / (part(each).max() + 1e-6) + 1e-6 for each in (image, target))
        similarity = structural_similarity(torch.from_numpy(ours), torch.from_numpy(theirs), torch.ones(len(image)))
        assert 1 - float(similarity.mean()) == pytest.approx(float(golden[name]), rel=1e-5)


def test_the_ranges_of_the_similarities():
    image, target = series()
    ours, theirs = np.abs(image), np.abs(target)
    by_frame = np.mean([plain_ssim(a, b, b.max()) for a, b in zip(ours, theirs, strict=True)])
    by_series = np.mean([plain_ssim(a, b, theirs.max()) for a, b in zip(ours, theirs, strict=True)])
    assert abs(by_frame - by_series) > 1e-4  # else this would not tell them apart
    assert loss("similarity_of_frames", image, target) == pytest.approx(1 - by_frame, abs=2e-5)
    assert loss("similarity_of_series", image, target) == pytest.approx(1 - by_series, abs=2e-5)
    assert 1 - loss("similarity_of_series", image, target) == pytest.approx(ssim(image, target), abs=2e-5)


def test_similarity_of_every_frame_by_itself():
    image, target = (np.abs(each) for each in series())
    ranges = np.float32([0.5, 1, 2])
    found = structural_similarity(*(torch.from_numpy(each) for each in (image, target, ranges)))
    expected = [plain_ssim(a, b, r) for a, b, r in zip(image, target, ranges, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_frames_smaller_than_the_window_are_one_window():
    image, target = (np.abs(each) for each in series(shape=(2, 4, 4)))
    found = structural_similarity(torch.from_numpy(image), torch.from_numpy(target), torch.ones(2))
    c1, c2 = 1e-4, 9e-4
    for ours, theirs, value in zip(image, target, found, strict=True):
        (va, common), (_, vb) = np.cov(ours.ravel(), theirs.ravel())
        luminance = (2 * ours.mean() * theirs.mean() + c1) / (ours.mean() ** 2 + theirs.mean() ** 2 + c1)
        assert float(value) == pytest.approx(luminance * (2 * common + c2) / (va + vb + c2), rel=1e-4)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_least_where_the_images_are_equal(name):
    image, target = series()
    least = -6 if name == "decibel" else 0
    assert loss(name, target, target) == pytest.approx(least, abs=1e-5)
    between = [loss(name, target + share * (image - target), target) for share in (0.0, 0.25, 0.5, 1.0)]
    assert between == sorted(between)
    assert between[1] > between[0] + 1e-4


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wanted", ["nothing", "something"])
def test_gradients_are_finite_at_zero(name, wanted):
    _, target = series()
    image = torch.zeros(target.shape, dtype=torch.complex64, requires_grad=True)
    LOSSES[name](image, torch.from_numpy(target if wanted == "something" else 0 * target)).backward()
    assert torch.view_as_real(image.grad).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_along_the_gradient_makes_it_smaller(name):
    image, target = (torch.from_numpy(each) for each in series())
    image.requires_grad_()
    before = LOSSES[name](image, target)
    before.backward()
    step = 1e-2 * image.grad / image.grad.abs().max()
    assert LOSSES[name](image.detach() - step, target) < before
