"""What the tests of the networks share."""

import torch

from recon_core.physics.consistency import DataConsistency


def random_series(n_frames, n_coils, n_y, n_x, batch=(), seed=0):
    """Zero-filled image and data consistency of random measurements, and what these were made of."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    mask = torch.rand(*batch, n_frames, n_y, generator=generator) < 0.4
    measured = torch.randn(*batch, n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    consistency = DataConsistency(maps, mask, measured)
    return consistency.zero_filled, consistency, (maps, mask, measured)
