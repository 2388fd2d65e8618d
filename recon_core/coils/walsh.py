"""Coil maps by adaptive combination: in every pixel the strongest direction of the local coil covariance.

Walsh, Gmitro, Marcellin, Magn Reson Med 2000, doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.
"""

from __future__ import annotations

import torch

from recon_core.coils.calibration import central_lines, coil_images
from recon_core.coils.vectors import align_phase, normalise
from recon_core.physics.fourier import fft
from recon_core.physics.neighbourhood import box_average
from recon_core.physics.sense import SenseOperator
from recon_core.physics.solvers import conjugate_gradient

# Local covariances in work at a time. Those of 30 coils on a large matrix would take a gigabyte; on the CPU they should
# also stay near the cache.
_BAND_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


def walsh(
    images: torch.Tensor, *, neighbourhood: int = 5, iterations: int = 3, start: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the dominant eigenvector of the local coil covariance in every pixel, by power iterations.

    Parameters
    ----------
    images
        ``(coil, y, x)`` complex64 coil images.
    neighbourhood
        Side, in pixels, of the square over which ``image_p * conj(image_q)`` is averaged; beyond the border the image
        is mirrored, edge pixels included.
    iterations
        Power iterations.
    start
        ``(coil, y, x)`` vectors to start from: earlier maps, or the images themselves; None starts from the sum of the
        rows of the covariance.

    Returns
    -------
    tuple of torch.Tensor
        Maps ``(coil, y, x)`` complex64 of unit norm over the coils, zero only where neighbourhood or start is zero, and
        the eigenvalue ``(y, x)`` float32 in squared units of the images. The phase of each vector is that of the start.
    """
    n_coils, n_y, n_x = images.shape
    # Unit maximum here and unit trace below: the iteration squares squares, and float32 does not hold those of 1e-8.
    peak = images.abs().amax().clamp(min=torch.finfo(images.real.dtype).tiny)
    images = images / peak
    average_y = box_average(n_y, neighbourhood)
    average_x = box_average(n_x, neighbourhood).to(images.real).mT
    maps = torch.empty_like(images)
    strength = images.real.new_empty((n_y, n_x))
    row_bytes = n_coils**2 * n_x * images.element_size()
    band = max(1, _BAND_BYTES.get(images.device.type, _BAND_BYTES["cuda"]) // row_bytes)
    for first in range(0, n_y, band):
        rows = slice(first, min(first + band, n_y))
        used = average_y[rows].any(0).nonzero()
        halo = slice(int(used.min()), int(used.max()) + 1)
        part = images[:, halo]
        products = torch.view_as_real(part[:, None] * part[None].conj()).movedim(-1, 0)
        covariance = torch.complex(*(average_y[rows, halo].to(images.real) @ products @ average_x).unbind(0))
        trace = covariance.diagonal().real.sum(-1)
        covariance /= torch.where(trace > 0, trace, 1)
        vectors, values = normalise(covariance.sum(0) if start is None else start[:, rows])
        for _ in range(iterations):
            vectors, values = normalise(torch.einsum("pqyx,qyx->pyx", covariance, vectors))
        maps[:, rows] = vectors
        strength[rows] = values * trace
    return maps, strength * peak**2


def walsh_maps(
    hybrid: torch.Tensor, measured: torch.Tensor, *, neighbourhood: int = 7, refinements: int = 4
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Estimate coil maps from the central lines, then sharpen them with the lines further out.

    The first maps come from low-resolution images of the fully sampled centre. A short centre blurs across the border
    of the field of view and between tissues. Each refinement therefore completes the outer lines with what the present
    maps predict (SENSE of the one time-averaged frame), keeps every measured line, and estimates the maps again at full
    resolution. Without measured lines outside the centre, or with all lines measured, there is nothing to refine.

    Parameters
    ----------
    hybrid
        ``(coil, ky, x)`` complex64, lines averaged over time, transformed along the readout.
    measured
        ``(ky,)`` bool, True where `hybrid` holds a line.
    neighbourhood
        Side of the averaging square, in pixels; the first estimate takes at least two resolution cells of the centre.
    refinements
        How many times to refine.

    Returns
    -------
    tuple
        Maps ``(coil, y, x)`` complex64, unit norm over the coils, and notes on what had to be done differently. Phase:
        the combination of coils that sees most signal (virtual body coil) has phase zero everywhere.
    """
    lines, notes = central_lines(measured)
    n_lines, n_block = measured.numel(), lines.stop - lines.start
    images = coil_images(hybrid, lines)
    # Two resolution cells of the centre are the least that can tell a coil from the object.
    first_neighbourhood = max(neighbourhood, 2 * round(n_lines / n_block) + 1)
    maps, _ = walsh(images, neighbourhood=first_neighbourhood, iterations=8, start=images)
    if int(measured.sum()) in (n_lines, n_block):
        refinements = 0
    for _ in range(refinements):
        operator = SenseOperator(maps, measured[None])
        image = conjugate_gradient(operator, operator.adjoint(hybrid[None]), iterations=10, regularization=1e-3)
        completed = torch.where(measured[:, None], hybrid, fft(maps * image, (1,)))
        images = coil_images(completed, slice(0, n_lines))
        maps, _ = walsh(images, neighbourhood=neighbourhood, iterations=4, start=maps)
    return align_phase(maps, hybrid[:, lines]), notes
