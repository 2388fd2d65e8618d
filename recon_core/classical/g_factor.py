"""How much a parallel reconstruction amplifies noise, per pixel, beyond what the shorter measurement costs.

The g-factor is sd / (sd_full sqrt(R)): noise of the image against that of the fully sampled one combined with the same
maps, R the lines of k-space per measured line. Pruessmann et al., Magn Reson Med 1999,
doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.classical.grappa import hybrid_weights

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


def grappa_g_factor(weights: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Compute the g-factor of GRAPPA from its weights, for regular lines without a reference block.

    The convolution with the weights is a product in image space, so that the image is a weighted sum of the aliased
    coil images, with weights n(y, x), and its noise the norm of n.

    Parameters
    ----------
    weights
        As `recon_core.classical.grappa.grappa_weights` gives them.
    maps
        ``(coil, y, x)`` complex64 that combine the coils.

    Returns
    -------
    torch.Tensor
        ``(y, x)`` float32; zero where the maps are zero. Noise of unit covariance (whitened data) is assumed.

    Notes
    -----
    Breuer et al., Magn Reson Med 2009, doi:10.1002/mrm.22066.
    """
    _, n_y, n_x = maps.shape
    n_sources, step = weights.shape[1], weights.shape[3] + 1
    factors = hybrid_weights(weights, n_x)
    position = torch.arange(n_y, dtype=torch.float64) - n_y // 2
    unmixing = maps.conj().resolve_conj()  # a measured line stands for itself
    for source in range(n_sources):
        for missing in range(step - 1):
            offset = (source - n_sources // 2 + 1) * step - (missing + 1)
            turns = -offset * position / n_y
            phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(maps.device, maps.dtype)
            mixed = torch.einsum("xqp,pyx->qyx", factors[:, source, :, missing], maps.conj())
            unmixing = unmixing + phase[:, None] * mixed
    # A zero-filled image has 1 / R of the noise power of a complete one.
    deviation = torch.linalg.vector_norm(unmixing, dim=0) / step**0.5
    return _relative(deviation, maps, 1 / step)


def _relative(deviation: torch.Tensor, maps: torch.Tensor, share: float) -> torch.Tensor:
    """Divide noise ``(y, x)`` by that of the complete measurement, and by the square root of R = 1 / share."""
    complete = torch.linalg.vector_norm(maps, dim=0)
    return torch.where(complete > 0, deviation * share**0.5 / torch.where(complete > 0, complete, 1), 0)
