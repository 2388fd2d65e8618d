import numpy as np
import pytest
import torch

from recon_core.coils.calibration import time_average
from recon_core.coils.inati import inati, inati_maps
from recon_core.errors import DataError
from recon_core.physics.fourier import fft, ifft


def noise(*shape, seed=1):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def relative(actual, expected):
    return np.linalg.norm(actual.numpy() - expected) / np.linalg.norm(expected)


@pytest.fixture
def golden_images(golden, phantom_kspace):
    mask = torch.tensor(golden("case_phantom")["mask_shift"].astype(bool))
    average, _ = time_average(torch.tensor(phantom_kspace), mask)
    return ifft(average, (1, 2))


def test_golden(golden, golden_images):
    maps, combined = inati(golden_images)
    expected = golden("case_maps_tools")
    assert relative(maps[:4], expected["inati"]) < 1e-4
    assert relative(combined, expected["inati_combined"]) < 1e-4


def test_golden_larger_box_without_stop(golden, golden_images):
    maps, _ = inati(golden_images, neighbourhood=7, iterations=10, tolerance=0)
    assert relative(maps[:2], golden("case_maps_tools")["inati_box7_it10_first2"]) < 1e-4


def test_one_iteration_by_hand():
    """The definition, pixel by pixel in float64."""
    images = noise(3, 7, 6, seed=0)
    im = images.numpy().astype(complex)
    direction = im.sum((1, 2))
    direction /= np.linalg.norm(direction)
    combined = np.einsum("c,cyx->yx", direction.conj(), im)
    padded = np.pad(im * combined.conj(), ((0, 0), (1, 1), (1, 1)), mode="symmetric")
    maps = np.array([[[padded[c, y : y + 3, x : x + 3].mean() for x in range(6)] for y in range(7)] for c in range(3)])
    maps /= np.linalg.norm(maps, axis=0)
    combined = (im * maps.conj()).sum(0)
    direction = (maps * combined).sum((1, 2))
    direction /= np.linalg.norm(direction)
    turn = np.einsum("c,cyx->yx", direction.conj(), maps)
    turn /= abs(turn)
    actual_maps, actual_combined = inati(images, neighbourhood=3, iterations=1)
    np.testing.assert_allclose(actual_maps.numpy(), maps * turn.conj(), atol=1e-5)
    np.testing.assert_allclose(actual_combined.numpy(), combined * turn, atol=1e-5)


def test_stops_when_the_image_no_longer_changes(smooth_maps, disc):
    images = torch.tensor(smooth_maps(4, 24, 20) * disc(24, 20)) + 1e-3 * noise(4, 24, 20)
    stopped, _ = inati(images, iterations=100, tolerance=1e-2)
    few, _ = inati(images, iterations=2, tolerance=0)
    many, _ = inati(images, iterations=100, tolerance=0)
    inside = torch.tensor(disc(24, 20)).abs() > 0.1
    assert not torch.equal(stopped, many)
    assert (stopped - few)[:, inside].abs().max() < 0.05


@pytest.mark.parametrize(("n_y", "n_x"), [(48, 40), (47, 41)])
@pytest.mark.parametrize("n_central", [16, 48])
@pytest.mark.parametrize("n_coils", [1, 6])
def test_finds_the_maps(smooth_maps, disc, n_y, n_x, n_central, n_coils):
    truth, image = torch.tensor(smooth_maps(n_coils, n_y, n_x)), torch.tensor(disc(n_y, n_x))
    measured = torch.zeros(n_y, dtype=torch.bool)
    measured[max(0, n_y // 2 - n_central // 2) : n_y // 2 + n_central // 2 + 1] = True
    lines = (fft(truth * image, (1,)) + 1e-3 * noise(n_coils, n_y, n_x)) * measured[:, None]
    maps = inati_maps(lines, measured)
    similar = (maps.conj() * truth).sum(0).abs()[image.abs() > 0.1]
    assert similar.mean() > 0.998
    assert similar.min() > 0.9
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(n_y, n_x))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_unit(scale):
    images = noise(4, 16, 12)
    images[:, :4] *= 1e-6  # background
    expected, combined = inati(images)
    maps, scaled = inati(images * scale)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled / scale, combined, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(16, 12))


def test_no_signal_gives_zero_and_no_nan():
    images = noise(3, 16, 12)
    images[:, :6] = 0
    maps, combined = inati(images, neighbourhood=3)
    assert not maps[:, :5].any()
    assert not combined[:5].any()
    assert maps.isfinite().all()
    for result in inati(torch.zeros(3, 8, 8, dtype=torch.complex64)):
        assert not result.any()


def test_refusals():
    with pytest.raises(DataError, match="odd"):
        inati(noise(2, 8, 8), neighbourhood=4)
    measured = torch.zeros(16, dtype=torch.bool)
    measured[::2] = True
    with pytest.raises(DataError, match="found 1; choose Walsh"):
        inati_maps(noise(2, 16, 8), measured)


def test_maps_take_an_even_side():
    lines = noise(2, 16, 8)
    everything = torch.ones(16, dtype=torch.bool)
    assert torch.equal(inati_maps(lines, everything, neighbourhood=4), inati_maps(lines, everything, neighbourhood=5))
