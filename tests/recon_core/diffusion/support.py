"""What the tests of diffusion share: a small network, and a scan of a smooth beating object."""

from dataclasses import replace

import torch

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.diffusion.method import DSTDM
from recon_core.diffusion.score_network import ScoreConfig
from recon_core.networks.golden import fill
from recon_core.physics.fourier import fft
from tests.parity_cases.dstdm import value

TINY = ScoreConfig(channels=32, channel_factors=(1, 1, 1), blocks=1)


def tiny(**config):
    network = DSTDM(replace(TINY, **config)).eval()
    fill(network, value)
    return network


def filled(**config):
    return tiny(**config).score


def truth(n_frames, n_y, n_x):
    """A disc that breathes, with a phase; peak one."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, n_x), indexing="ij")
    turns = 2 * torch.pi * torch.arange(n_frames)[:, None, None] / n_frames
    radius = 0.5 + 0.1 * turns.sin()
    magnitude = torch.sigmoid(12 * (radius - (y.square() + x.square()).sqrt()))
    return torch.polar(magnitude, (0.8 * x - 0.5 * y).expand_as(magnitude))


#: Of the prior of `field`: power, width in space and in time.
PRIOR = (1.0, 3.0, 1.0)


def field(n_frames, n_y, n_x, seed=0):
    """A draw from Gaussian images whose planes of time and space have the spectrum of `PRIOR`; peak about one."""
    power, width, rate = PRIOR
    noise = torch.randn(n_frames, n_y, n_x, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    spectrum = torch.ones(n_frames, n_y, n_x)
    for axis, (length, scale) in enumerate(((n_frames, rate), (n_y, width), (n_x, width))):
        fall = 1 / (1 + (torch.fft.fftfreq(length) * length / scale).square())
        spectrum = spectrum * fall.reshape([-1 if axis == other else 1 for other in range(3)])
    # the sum over the frequencies of the axis that a plane does not have is its power
    spectrum = 2 * power * spectrum / fall.mean()
    return torch.fft.ifftn(torch.fft.fftn(noise) * spectrum.sqrt())


def scan(mask, n_x=12, n_coils=4, noise=0.01, seed=0, image=None):
    """The slice that is measured of an image, or of `truth`, with a mask ``(frame, ky)``."""
    n_frames, n_y = mask.shape
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, n_x), indexing="ij")
    angle = 2 * torch.pi * torch.arange(n_coils)[:, None, None] / n_coils
    magnitude = torch.exp(-((y - angle.sin()).square() + (x - angle.cos()).square()) / 2)
    maps = torch.polar(magnitude, x * angle.sin() + y * angle.cos())
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    image = truth(n_frames, n_y, n_x) if image is None else image
    hybrid = fft(image[:, None] * maps, (-2,))
    hybrid = hybrid + noise * torch.randn(hybrid.shape, dtype=hybrid.dtype, generator=generator)
    hybrid = hybrid * mask[:, None, :, None]
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask))


def moving_lines(n_frames, n_y, acceleration):
    frames, lines = torch.arange(n_frames)[:, None], torch.arange(n_y)
    return (lines - frames) % acceleration == 0
