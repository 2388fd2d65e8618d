"""A slice for what does not depend on what is in it, and its image by a method."""

import torch

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.engine import create_method
from recon_core.options import ReconOptions
from recon_core.simulate.sampling import interleaved_mask


def noise_slice(n_frames=6, n_coils=2, n_y=16, n_x=12, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    mask = torch.from_numpy(interleaved_mask(n_frames, n_y, 2))
    hybrid = scale * torch.randn(n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    hybrid = hybrid * mask[:, None, :, None]
    maps = torch.full((n_coils, n_y, n_x), n_coils**-0.5, dtype=torch.complex64)
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask))


def reconstruct(slice_, **options):
    with torch.inference_mode():
        return create_method(options["method"], ReconOptions.of(**options))(slice_)
