import math

import pytest
import torch

from recon_core.physics.fourier import ifft
from recon_core.physics.hybrid_noise import coil_noise_deviations, hybrid_noise_deviation


def noise(deviation=1.0):
    """Hybrid data (frame, coil, ky, x) of noise alone, and their mask."""
    kspace = deviation * torch.randn(3, 4, 32, 32, 2, generator=torch.Generator().manual_seed(0))
    return ifft(torch.view_as_complex(kspace), (-1,)), torch.ones(3, 32, dtype=torch.bool)


@pytest.mark.parametrize("deviation", [1e-6, 1.0, 300.0])
def test_it_is_that_of_the_quietest_coil(deviation):
    hybrid, mask = noise(deviation)
    hybrid[:, 1:] *= 5  # signal in the corners
    assert hybrid_noise_deviation(hybrid, mask) == pytest.approx(deviation, rel=0.1)
    hybrid[:, 2] = 0  # a dead coil
    assert hybrid_noise_deviation(hybrid, mask) == pytest.approx(deviation, rel=0.1)


def test_what_was_not_measured_does_not_count():
    hybrid, mask = noise()
    mask[:, ::2] = False
    hybrid = torch.where(mask[:, None, :, None], hybrid, 0)
    assert hybrid_noise_deviation(hybrid, mask) == pytest.approx(1.0, rel=0.15)


def test_nothing_measured_is_no_noise():
    hybrid, mask = noise()
    assert math.isnan(hybrid_noise_deviation(hybrid, torch.zeros_like(mask)))
    assert math.isnan(hybrid_noise_deviation(torch.zeros_like(hybrid), mask))


def test_signal_that_stays_is_no_noise():
    """Lines that are measured again tell them apart, in whatever frames that is."""
    hybrid, mask = noise()
    mask[1, ::2], mask[2, 1::2] = False, False
    hybrid = torch.where(mask[:, None, :, None], hybrid + noise(50.0)[0][:1], 0)
    assert hybrid_noise_deviation(hybrid, mask) == pytest.approx(1.0, rel=0.15)
    assert hybrid_noise_deviation(hybrid[:1], mask[:1]) > 3


def test_frames_that_share_a_readout_are_not_silent():
    hybrid, mask = noise()
    hybrid[1:] = hybrid[:1]
    assert hybrid_noise_deviation(hybrid, mask) == pytest.approx(1.0, rel=0.15)


def test_each_coil_has_its_own():
    hybrid, mask = noise()
    hybrid[:, 1] *= 7
    hybrid[:, 2] = 0
    assert coil_noise_deviations(hybrid, mask) == pytest.approx([1, 7, math.nan, 1], rel=0.1, nan_ok=True)
