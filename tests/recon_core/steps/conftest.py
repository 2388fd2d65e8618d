import numpy as np
import pytest
import torch

from recon_core.data import CineSlice, Receiver
from recon_core.physics.fourier import fft

SHAPE = (4, 5, 24, 18)


@pytest.fixture
def noise():
    """Noise of a seed, of unit variance per part."""

    def of(seed=0):
        return np.random.default_rng(seed).standard_normal((*SHAPE, 2), np.float32).view(np.complex64)[..., 0]

    return of


@pytest.fixture
def cine(smooth_maps, disc, noise):
    """Every second line of a disc of signal 100 in such noise."""
    mask = np.zeros(SHAPE[::2], bool)
    for frame in range(4):
        mask[frame, frame % 2 :: 2] = True
    clean = fft(torch.tensor(smooth_maps(5, 24, 18) * 100 * disc(24, 18)), (1, 2)).numpy()
    return CineSlice((clean + noise()) * mask[:, None, :, None], mask, receiver=Receiver(whitened=True))
