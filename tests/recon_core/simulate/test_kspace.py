"""Simulated k-space: what was measured, the noise in it, and the image behind it."""

import numpy as np

from recon_core.simulate.kspace import simulate_cine
from tests.recon_core.conftest import centred_ifft


def test_without_noise_the_maps_combine_the_coils_to_the_image():
    scan = simulate_cine(3, (32, 40), 4, sampling="full", snr=0)
    coils = centred_ifft(centred_ifft(scan.kspace, -1), -2)
    maps = scan.coil_maps / np.linalg.norm(scan.coil_maps, axis=0)
    np.testing.assert_allclose((maps.conj() * coils).sum(1), scan.image, atol=1e-4)


def test_the_noise_has_its_covariance():
    noisy, clean = (simulate_cine(4, (64, 64), 3, sampling="full", snr=snr) for snr in (5.0, 0.0))
    noise = (noisy.kspace - clean.kspace).swapaxes(0, 1).reshape(3, -1)
    found = noise @ noise.conj().T / noise.shape[1]
    np.testing.assert_allclose(found, noisy.noise_covariance, atol=0.05 * np.abs(noisy.noise_covariance).max())


def test_only_the_lines_of_the_mask_are_measured():
    scan = simulate_cine(4, (48, 40), 2, acceleration=4, acs_lines=8)
    np.testing.assert_array_equal(scan.kspace.any((1, 3)), scan.mask)
    assert scan.kspace.dtype == scan.image.dtype == np.complex64
