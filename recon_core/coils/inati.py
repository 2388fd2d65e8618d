"""Coil maps and combined image in turns: each is an average that the other weights.

Inati, Hansen, Kellman, A fast optimal method for coil sensitivity estimation and adaptive coil combination for complex
images, Proc Intl Soc Mag Reson Med 2014, 4407.
"""

from __future__ import annotations

import torch

from recon_core.coils.calibration import MINIMUM_LINES, calibration_lines, coil_images
from recon_core.coils.vectors import normalise
from recon_core.errors import DataError
from recon_core.physics.neighbourhood import box_average


def inati(
    images: torch.Tensor, *, neighbourhood: int = 5, iterations: int = 5, tolerance: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate coil maps and combine the coils.

    Parameters
    ----------
    images
        ``(coil, y, x)`` complex64 coil images; any unit.
    neighbourhood
        Side, in pixels, of the square over which maps are taken as constant; odd. Beyond the border the image is
        mirrored, edge pixels included.
    iterations
        Iterations at most.
    tolerance
        Stop when the combined image changes by less than this part of its norm.

    Returns
    -------
    tuple of torch.Tensor
        Maps ``(coil, y, x)`` complex64 of unit norm over the coils, zero only where the neighbourhood is, and the
        combined image ``(y, x)`` complex64 in the unit of the coil images. Phase: the signal-weighted mean of the maps,
        used to combine the coils, sees phase zero everywhere.

    Raises
    ------
    DataError
        If the side of the square is even: its centre would lie between pixels.
    """
    if neighbourhood % 2 == 0:
        raise DataError(f"the neighbourhood of Inati maps must be odd, got {neighbourhood}")
    # Unit maximum: products of images of 1e-12 and their squares would underflow.
    peak = images.abs().amax().clamp(min=torch.finfo(images.real.dtype).tiny)
    images = images / peak
    average_y, average_x = (
        box_average(size, neighbourhood, images.device).to(images.real) for size in images.shape[1:]
    )
    maps = torch.zeros_like(images)
    combined = _combine(_direction(images), images)
    for _ in range(iterations):
        previous = combined
        products = torch.view_as_real(images * combined.conj()).movedim(-1, 0)
        maps, _ = normalise(torch.complex(*(average_y @ products @ average_x.mT).unbind(0)))
        combined = _combine(maps, images)
        # A pixel may turn its map and turn its image back; one fixed combination of coils settles the angle.
        angle = _combine(_direction(maps * combined), maps).angle()
        turn = torch.polar(torch.ones_like(angle), angle)
        combined, maps = combined * turn, maps * turn.conj()
        if bool(torch.linalg.vector_norm(combined - previous) < tolerance * torch.linalg.vector_norm(combined)):
            break
    return maps, combined * peak


def inati_maps(
    hybrid: torch.Tensor,
    measured: torch.Tensor,
    *,
    neighbourhood: int = 5,
    iterations: int = 5,
    tolerance: float = 1e-3,
) -> torch.Tensor:
    """Estimate coil maps from the central lines.

    Parameters
    ----------
    hybrid
        ``(coil, ky, x)`` complex64, lines averaged over time, transformed along the readout.
    measured
        ``(ky,)`` bool, True where `hybrid` holds a line.
    neighbourhood
        Side of the averaging square, in pixels; it grows to two resolution cells of a short centre, and to be odd.
    iterations, tolerance
        As for `inati`.

    Returns
    -------
    torch.Tensor
        ``(coil, y, x)`` complex64, unit norm over the coils, phase as for `inati`.

    Raises
    ------
    DataError
        If too few adjacent lines around the centre were measured.
    """
    n_lines = measured.numel()
    lines = calibration_lines(measured)
    n_block = lines.stop - lines.start
    if n_block < min(MINIMUM_LINES, n_lines):
        raise DataError(
            f"Inati maps need at least {MINIMUM_LINES} adjacent measured lines around the centre of k-space, found "
            f"{n_block}; choose Walsh maps, or average a pattern that moves"
        )
    # Two resolution cells of the centre are the least that can tell a coil from the object.
    side = max(neighbourhood, 2 * round(n_lines / n_block) + 1 if n_block < n_lines else 1)
    maps, _ = inati(coil_images(hybrid, lines), neighbourhood=side | 1, iterations=iterations, tolerance=tolerance)
    return maps


def _combine(weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Sum the coils of ``(coil, y, x)`` with the conjugates of the weights, ``(coil, ...)``."""
    return (weights.conj() * images).sum(0)


def _direction(images: torch.Tensor) -> torch.Tensor:
    """Sum over the pixels of ``(coil, y, x)``, divided by its norm over the coils, ``(coil, 1, 1)``."""
    total, _ = normalise(images.sum((1, 2), keepdim=True))
    return total
