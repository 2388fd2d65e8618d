"""How much a parallel reconstruction amplifies noise, per pixel, beyond what the shorter measurement costs.

The g-factor is sd / (sd_full sqrt(R)): noise of the image against that of the fully sampled one combined with the same
maps, R the lines of k-space per measured line. Pruessmann et al., Magn Reson Med 1999,
doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Replicas in work at a time.
_BATCH = 16


def replica_g_factor(
    reconstruct: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    maps: torch.Tensor,
    measured: torch.Tensor,
    *,
    replicas: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """Measure the g-factor of any linear reconstruction with noise alone.

    Parameters
    ----------
    reconstruct
        Takes hybrid data ``(frame, coil, ky, x)``, maps ``(coil, y, x)`` and mask ``(frame, ky)``, gives the image
        ``(frame, y, x)``. Conjugate gradients are linear only when converged: give them iterations enough.
    maps
        ``(coil, y, x)`` complex64, unit norm over the coils where not zero.
    measured
        ``(ky,)`` bool.
    replicas
        Noise images; the relative error of the result is ``1 / sqrt(4 replicas)``.
    seed
        Same seed, same result.

    Returns
    -------
    torch.Tensor
        ``(y, x)`` float32; zero where the maps are zero or nothing was measured.

    Notes
    -----
    Pseudo multiple replica: Robson et al., Magn Reson Med 2008, doi:10.1002/mrm.21728.
    """
    n_coils, n_y, n_x = maps.shape
    generator = torch.Generator().manual_seed(seed)
    power = torch.zeros((n_y, n_x), device=maps.device)
    for start in range(0, replicas, _BATCH):
        shape = min(_BATCH, replicas - start), n_coils, n_y, n_x
        # Unit variance as a complex number, and white along x on both sides of the unitary transform.
        noise = torch.randn(shape, dtype=maps.dtype, generator=generator).to(maps.device)
        mask = measured.expand(shape[0], -1)
        image = reconstruct(torch.where(mask[:, None, :, None], noise, 0), maps, mask)
        power += image.abs().square().sum(0)
    deviation = (power / replicas).sqrt()
    return _relative(deviation, maps, float(measured.sum()) / n_y)


def _relative(deviation: torch.Tensor, maps: torch.Tensor, share: float) -> torch.Tensor:
    """Divide noise ``(y, x)`` by that of the complete measurement, and by the square root of R = 1 / share."""
    complete = torch.linalg.vector_norm(maps, dim=0)
    return torch.where(complete > 0, deviation * share**0.5 / torch.where(complete > 0, complete, 1), 0)
