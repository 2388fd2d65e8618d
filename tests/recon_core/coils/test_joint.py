import numpy as np
import pytest
import torch

from recon_core.coils import joint as module
from recon_core.coils.calibration import time_average
from recon_core.coils.estimate import estimate_maps
from recon_core.coils.joint import joint_maps
from recon_core.coils.vectors import virtual_body_coil
from recon_core.coils.walsh import walsh_maps
from recon_core.errors import DataError
from recon_core.options import MapOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.coils import coil_maps


def correlation(maps, truth):
    return (maps.conj() * truth).sum(0).abs()


def direction_error(maps, truth, weight):
    """Part of the signal that points elsewhere: sine of the angle between the vectors of coils, weighted."""
    lost = 1 - correlation(maps, truth).square() / truth.abs().square().sum(0)
    return float((lost.clamp(min=0) * weight).sum() / weight.sum()) ** 0.5


def noise(*shape, seed=1):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def lines_of(maps, image, measured, level=1e-4):
    return (fft(maps * image, (1,)) + level * noise(*maps.shape)) * measured[:, None]


def every(step, n_lines, n_centre):
    measured = torch.zeros(n_lines, dtype=torch.bool)
    measured[n_lines // 2 % step :: step] = True
    measured[n_lines // 2 - n_centre // 2 : n_lines // 2 + (n_centre + 1) // 2] = True
    return measured


@pytest.fixture
def scan(smooth_maps, disc):
    """A function that makes maps, image, measured lines and data with a trace of noise."""

    def make(n_coils=6, n_y=48, n_x=40, step=3, n_centre=12, level=1e-4):
        maps, image = torch.tensor(smooth_maps(n_coils, n_y, n_x)), torch.tensor(disc(n_y, n_x))
        measured = every(step, n_y, n_centre)
        return maps, image, measured, lines_of(maps, image, measured, level)

    return make


# --- the fit ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def point():
    """A fit of noise and where it stands."""
    fit = module._Fit(noise(3, 21, 18), every(2, 21, 6), 18, 1.0)
    return fit, noise(18, 21, seed=2), noise(3, 16, 16, seed=3)


def inner(first, second):
    return (first.conj() * second).sum()


def test_waves_are_the_adjoint_of_maps(point):
    fit, _, series = point
    products = noise(3, 18, 21, seed=4)
    torch.testing.assert_close(inner(products, fit.maps(series)), inner(fit.waves(products), series))


def test_tangent_is_symmetric_and_positive(point):
    fit, image, series = point
    tangent = module._Tangent(fit, image, series, 0.1)
    first, second = (noise(1, 1, image.numel() + series.numel(), seed=seed) for seed in (5, 6))
    left, right = inner(tangent.normal(first), second), inner(first, tangent.normal(second))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-2)
    assert inner(first, tangent.normal(first)).real > 0


def test_steps_explain_the_lines(scan):
    """What the measured lines leave unexplained falls to the noise."""
    _, _, measured, lines = scan(level=1e-3)
    fit = module._Fit(lines, measured, 40, 1.0)
    image, series = fit.start()
    for step in range(10):
        image, series, _ = fit.step(image, series, 5 / 2**step)
    folded = ifft(lines.mT, (-1,))
    assert (fit.project(image * fit.maps(series)) - folded).norm() < 5e-3 * folded.norm()


def test_some_columns_are_enough(scan, monkeypatch):
    truth, image, measured, lines = scan(n_x=60)
    monkeypatch.setattr(module, "_COLUMNS", 20)
    assert module.fitted_columns(60) == slice(1, None, 3)
    maps, _ = joint_maps(lines, measured)
    assert maps.shape == truth.shape
    assert correlation(maps, truth)[image.abs() > 0.1].min() > 0.9999


def test_half_waves_have_one_size():
    for n_pixels in (1, 5, 16, 40):
        waves = module._half_waves(n_pixels)
        assert waves.shape == (min(16, n_pixels), n_pixels)
        torch.testing.assert_close(waves @ waves.mT / n_pixels, torch.eye(len(waves), dtype=waves.dtype))


# --- the maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_y", "n_x"), [(48, 40), (47, 41)])
@pytest.mark.parametrize(("step", "n_centre"), [(1, 0), (2, 12), (3, 16), (48, 20)])
def test_finds_the_maps(scan, n_y, n_x, step, n_centre):
    truth, image, measured, lines = scan(6, n_y, n_x, step, n_centre)
    maps, notes = joint_maps(lines, measured)
    assert not notes
    similar, body = correlation(maps, truth), image.abs() > 0.1
    assert similar[body].min() > 0.9999
    assert similar[~body].mean() > 0.9
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(n_y, n_x))


@pytest.mark.parametrize(("step", "n_centre"), [(3, 8), (4, 12), (6, 10)])
def test_nearer_to_a_thorax_array_than_walsh(disc, step, n_centre):
    truth = torch.tensor(coil_maps(10, (96, 80), (380.0, 380.0)))
    truth = truth / torch.linalg.vector_norm(truth, dim=0)
    image, measured = torch.tensor(disc(96, 80)), every(step, 96, n_centre)
    lines = lines_of(truth, image, measured, 3e-3)
    ours, theirs = (
        direction_error(find(lines, measured)[0], truth, image.abs().square()) for find in (joint_maps, walsh_maps)
    )
    assert ours < 0.02
    assert ours < 0.5 * theirs


def test_motion_that_meets_the_pattern(scan):
    """Lines of two images, in turns, fit no one image; the maps stay near."""
    truth, image, _, _ = scan()
    other = image * (1 + 0.1 * (torch.arange(48)[:, None] > 30))
    frames = torch.stack([lines_of(truth, each, torch.ones(48, dtype=torch.bool)) for each in (image, other)])
    mask = torch.stack([torch.arange(48) % 2 == 0, torch.arange(48) % 2 == 1])
    maps, _ = joint_maps(*time_average(frames, mask))
    assert direction_error(maps, truth, image.abs().square()) < 0.025


@pytest.mark.parametrize(("name", "bound"), [("mini", 0.015), ("scd201", 0.01), ("scd301", 0.015)])
def test_semi_real(semi_real, name, bound):
    for data in semi_real(name):
        average = time_average(ifft(torch.tensor(data.kspace), (-1,)), torch.tensor(data.mask))
        truth = torch.tensor(np.einsum("pq,qyx->pyx", np.linalg.inv(data.colouring), data.coil_maps))
        weight = torch.tensor(np.abs(data.reference)).square().mean(0)
        errors = [direction_error(find(*average)[0], truth, weight) for find in (joint_maps, walsh_maps)]
        assert errors[0] < bound
        assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("n_coils", [6, 16])
@pytest.mark.parametrize("apart", ["noise", "maps"])
def test_three_steps_from_near_maps_are_enough(scan, monkeypatch, n_coils, apart):
    """From maps of noisier lines, and even from those of other coils."""
    truth, image, measured, lines = scan(n_coils, level=1e-3)
    other = truth if apart == "noise" else truth.roll(1, 0)
    near, _ = joint_maps(lines_of(other, image, measured, 0.05), measured)
    steps, step = [], module._Fit.step
    monkeypatch.setattr(module._Fit, "step", lambda *given: steps.append(1) or step(*given))
    found, _ = joint_maps(lines, measured, near)
    assert len(steps) == 3
    before, after = (direction_error(maps, truth, image.abs().square()) for maps in (near, found))
    assert after < min(0.01, 0.2 * before)


def test_phase_of_the_virtual_body_coil_is_zero(scan):
    _, _, measured, lines = scan(step=1)
    maps, _ = joint_maps(lines, measured)
    seen = (virtual_body_coil(lines).conj()[:, None, None] * maps).sum(0)
    assert seen.angle().abs().max() < 1e-3


@pytest.mark.parametrize("n_coils", [1, 2, 12, 13, 32])
def test_number_of_coils(scan, n_coils):
    truth, image, measured, lines = scan(n_coils, step=2)
    maps, _ = joint_maps(lines, measured)
    assert maps.shape == truth.shape
    assert correlation(maps, truth)[image.abs() > 0.1].min() > 0.999
    if n_coils == 1:
        torch.testing.assert_close(maps, torch.ones_like(maps))


@pytest.mark.parametrize("level", [0, 3e-3])
def test_dead_coils(scan, level):
    """A channel of zeros, or of noise alone, has next to no sensitivity and leaves that of the others."""
    truth, image, measured, lines = scan(level=3e-3)
    lines[2] = level * noise(48, 40, seed=7) * measured[:, None]
    truth[2] = 0
    truth /= torch.linalg.vector_norm(truth, dim=0)
    maps, _ = joint_maps(lines, measured)
    inside = image.abs() > 0.1
    assert maps[2].abs()[inside].max() < 0.02
    assert correlation(maps, truth)[inside].min() > 0.998


def test_without_a_centre(scan):
    truth, image, measured, lines = scan(step=1)
    measured[::5] = False
    measured[24] = False
    lines *= measured[:, None]
    maps, (note,) = joint_maps(lines, measured)
    assert "maps may be aliased" in note
    ours, theirs = (
        direction_error(each, truth, image.abs().square()) for each in (maps, walsh_maps(lines, measured)[0])
    )
    assert ours < 0.5 * theirs


def test_partial_fourier(scan):
    truth, image, measured, lines = scan(step=2)
    measured[36:] = False
    maps, _ = joint_maps(lines * measured[:, None], measured)
    assert correlation(maps, truth)[image.abs() > 0.1].min() > 0.998


def test_asymmetric_echo(scan):
    truth, image, measured, lines = scan(step=2)
    kspace = fft(lines, (2,))
    kspace[:, :, :10] = 0
    maps, _ = joint_maps(ifft(kspace, (2,)), measured)
    assert direction_error(maps, truth, image.abs().square()) < 0.03


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_unit(scan, scale):
    _, _, measured, lines = scan()
    expected, _ = joint_maps(lines, measured)
    maps, _ = joint_maps(lines * scale, measured)
    assert correlation(maps, expected).min() > 0.9999


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 1)])
def test_smallest_images(shape):
    maps, _ = joint_maps(noise(3, *shape), torch.ones(shape[0], dtype=torch.bool))
    assert maps.dtype == torch.complex64
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(shape))


def test_same_data_same_maps_and_the_data_stay(scan):
    _, _, measured, lines = scan()
    before = lines.clone()
    first, second = (joint_maps(lines, measured)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(lines, before)


def test_signal_between_the_columns_that_are_looked_at():
    images = torch.zeros(3, 32, 128, dtype=torch.complex64)
    images[:, 10:20, 64] = torch.arange(1.0, 4)[:, None]
    measured = torch.ones(32, dtype=torch.bool)
    with pytest.raises(DataError, match="a signal in more than a few columns"):
        joint_maps(fft(images, (1,)), measured)
    maps, (note, *_) = estimate_maps(fft(images, (1,)), measured, MapOptions())
    assert note.startswith("walsh coil maps instead of auto: ")
    torch.testing.assert_close(maps[:, 15, 64].abs(), torch.arange(1.0, 4) / 14**0.5)


def test_near_maps_that_are_zero_where_it_is_looked_are_none(scan):
    _, _, measured, lines = scan(n_x=128)
    near = torch.zeros(6, 48, 128, dtype=torch.complex64)
    near[:, :, 0] = 1
    expected, _ = joint_maps(lines, measured)
    torch.testing.assert_close(joint_maps(lines, measured, near)[0], expected)


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "only zeros"), (torch.nan, "not finite"), (torch.inf, "not finite")]
)
def test_refuses_what_is_no_signal(value, reason):
    lines = torch.full((3, 12, 10), value, dtype=torch.complex64)
    with pytest.raises(DataError, match=reason):
        joint_maps(lines, torch.ones(12, dtype=torch.bool))
