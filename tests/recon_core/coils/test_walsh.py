import numpy as np
import pytest
import torch

from recon_core.coils import walsh as module
from recon_core.coils.calibration import time_average
from recon_core.coils.walsh import walsh, walsh_maps
from recon_core.physics.fourier import fft, ifft


def correlation(maps, truth):
    return (maps.conj() * truth).sum(0).abs()


def lines_of(maps, image, measured):
    """Hybrid data with a trace of noise, so that no pixel is exactly zero."""
    noise = torch.randn(maps.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return (fft(maps * image, (1,)) + 1e-4 * noise) * measured[:, None]


def measured_lines(n_y, step, n_centre):
    measured = torch.zeros(n_y, dtype=torch.bool)
    measured[n_y // 2 % step :: step] = True
    measured[n_y // 2 - n_centre // 2 : n_y // 2 + n_centre // 2 + 1] = True
    return measured


def test_golden(golden, phantom_kspace):
    mask = golden("case_phantom")["mask_shift"].astype(bool)
    average, _ = time_average(torch.tensor(phantom_kspace * mask[:, None, :, None]), torch.tensor(mask))
    maps, strength = walsh(ifft(average, (1, 2)), neighbourhood=5, iterations=3)
    expected = golden("case_maps_tools")
    assert np.linalg.norm(maps[:4].numpy() - expected["walsh"]) < 1e-4 * np.linalg.norm(expected["walsh"])
    assert np.linalg.norm(strength.numpy() - expected["walsh_rho"]) < 1e-4 * np.linalg.norm(expected["walsh_rho"])


@pytest.mark.parametrize("neighbourhood", [1, 4, 5, 25])
def test_against_the_eigenvector(neighbourhood):
    """Pixel by pixel, with the mirrored border written out."""
    n_y, n_x = 7, 10
    images = torch.randn(3, n_y, n_x, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    images[0] += 3
    maps, strength = walsh(images, neighbourhood=neighbourhood, iterations=200)
    before, after = neighbourhood // 2, neighbourhood - 1 - neighbourhood // 2
    padded = np.pad(images.numpy(), ((0, 0), (before, after), (before, after)), mode="symmetric")
    for y, x in [(0, 0), (3, 4), (6, 9)]:
        window = padded[:, y : y + neighbourhood, x : x + neighbourhood].reshape(3, -1)
        values, vectors = np.linalg.eigh(window @ window.conj().T / neighbourhood**2)
        assert abs(np.vdot(vectors[:, -1], maps[:, y, x].numpy())) == pytest.approx(1, abs=1e-3)
        assert float(strength[y, x]) == pytest.approx(values[-1], rel=1e-3)


def test_bands_of_rows_change_nothing(monkeypatch):
    images = torch.randn(3, 21, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    whole, _ = walsh(images)
    monkeypatch.setitem(module._BAND_BYTES, "cpu", 4 * 9 * 8 * 8)
    banded, _ = walsh(images)
    torch.testing.assert_close(banded, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_unit_norm_in_any_unit(scale):
    images = torch.randn(4, 9, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    images[:, :3] *= 1e-8  # background
    maps, _ = walsh(images * scale, neighbourhood=3)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(9, 8))


@pytest.mark.parametrize(("n_y", "n_x"), [(48, 40), (47, 41)])
@pytest.mark.parametrize(("step", "n_centre"), [(1, 0), (2, 12), (3, 16), (48, 20)])
def test_finds_the_maps(smooth_maps, disc, n_y, n_x, step, n_centre):
    truth, image = torch.tensor(smooth_maps(6, n_y, n_x)), torch.tensor(disc(n_y, n_x))
    measured = measured_lines(n_y, step, n_centre)
    maps, notes = walsh_maps(lines_of(truth, image, measured), measured)
    assert not notes
    inside = image.abs() > 0.1
    similar = correlation(maps, truth)[inside]
    assert similar.mean() > 0.998
    assert similar.min() > 0.95
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(n_y, n_x))


def test_refinement_helps(smooth_maps, disc):
    truth, image = torch.tensor(smooth_maps(6, 48, 40)), torch.tensor(disc(48, 40))
    measured = measured_lines(48, 2, 6)
    lines = lines_of(truth, image, measured)
    inside = image.abs() > 0.1
    errors = [1 - correlation(walsh_maps(lines, measured, refinements=n)[0], truth)[inside].mean() for n in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2]


def test_no_phase_jumps(smooth_maps, disc):
    truth, image = torch.tensor(smooth_maps(6, 48, 40)), torch.tensor(disc(48, 40))
    measured = torch.ones(48, dtype=torch.bool)
    maps, _ = walsh_maps(lines_of(truth, image, measured), measured)
    object_only = image.abs() > 0.5
    for axis in (1, 2):
        first, second = maps.narrow(axis, 0, maps.shape[axis] - 1), maps.narrow(axis, 1, maps.shape[axis] - 1)
        both = object_only.narrow(axis - 1, 0, first.shape[axis]) & object_only.narrow(axis - 1, 1, first.shape[axis])
        assert (first - second).abs().square().sum(0)[both].sqrt().max() < 0.15


@pytest.mark.parametrize("n_coils", [1, 30])
def test_number_of_coils(smooth_maps, disc, n_coils):
    truth, image = torch.tensor(smooth_maps(n_coils, 24, 20)), torch.tensor(disc(24, 20))
    measured = measured_lines(24, 2, 8)
    maps, _ = walsh_maps(lines_of(truth, image, measured), measured)
    assert maps.shape == truth.shape
    assert correlation(maps, truth)[image.abs() > 0.1].mean() > 0.99
    if n_coils == 1:
        torch.testing.assert_close(maps, torch.ones_like(maps))


def test_without_a_centre_all_lines_are_used(smooth_maps, disc):
    truth, image = torch.tensor(smooth_maps(4, 32, 20)), torch.tensor(disc(32, 20))
    measured = torch.zeros(32, dtype=torch.bool)
    measured[1::2] = True
    maps, (note,) = walsh_maps(lines_of(truth, image, measured), measured)
    assert "16 of 32 lines" in note
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(32, 20))


def test_no_signal_gives_zero_and_no_nan():
    maps, notes = walsh_maps(torch.zeros(3, 12, 10, dtype=torch.complex64), torch.zeros(12, dtype=torch.bool))
    assert notes
    assert not maps.any()
