"""How far the image of a network is from the data, and from the image of another method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from recon_core.physics.neighbourhood import box_mean
from recon_core.trust.ranges import ImageFigures

if TYPE_CHECKING:
    from recon_core.data import HybridSlice

# A time average that leaves less of the signal unexplained is not contradicted by the data; hearts left 0.09 or more.
_STILL = 0.05
# A streak: over so many pixels, and beyond so many deviations of what the data leave open, which is averaged over more.
_STREAK, _DEVIATIONS, _NEIGHBOURHOOD = 5, 3.0, 9
# Signal of blood and fat, as a quantile of the time average, and the part of it that is never known better.
_BRIGHT, _UNCERTAIN = 0.97, 0.01
# Part of the columns along the readout that are taken to hold noise alone, and where a normal distribution has it.
_QUIET, _QUIET_DEVIATIONS = 0.05, 1.645


def image_figures(
    data: HybridSlice,
    image: torch.Tensor,
    reference: torch.Tensor | None = None,
    *,
    deviation: torch.Tensor | None = None,
    implementation: str = "auto",
) -> ImageFigures:
    """Measure an image without knowing the truth.

    Parameters
    ----------
    data
        The slice that it was made from.
    image
        ``(frame, y, x)`` complex64, in the units of the data.
    reference
        Image of the reference, a method without weights, of the same slice, or None.
    deviation
        ``(frame, y, x)`` float32: standard deviation that the real part of `reference` is left with, where it is known.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Returns
    -------
    ImageFigures
        Frames without a measured line do not count.

    Notes
    -----
    An image x leaves ``e(x) = ||A x - y||^2`` of a frame. Of that, ``o``, the larger of the energy of the noise and of
    ``e(reference)``, is nobody's fault: the truth leaves the noise, and what coil maps cannot explain the reference
    leaves too. The residual is the root of ``max_t (e - o)`` over ``mean_t (||y||^2 - o)``, the signal of a mean frame,
    as single frames may hold outer lines only. Where noise was not measured, the columns along the readout with the
    least energy are taken for air.

    A streak stands in the time average, where the eye sees it and the whole hides it. It is the largest difference of
    the average magnitudes over 5 x 5 pixels, over the signal of the bright tissue, among places where it is beyond
    three deviations of what the data leave open there: elsewhere the reference may as well be wrong.
    """
    filled = data.mask.any(-1)
    if not bool(filled.any()):
        return ImageFigures()
    consistency = data.consistency(implementation)
    measured = torch.stack([torch.view_as_real(frame).square().sum(dtype=torch.float64) for frame in data.hybrid])

    def left(image: torch.Tensor) -> torch.Tensor:
        # ||A x - y||^2 = <x, A^H A x - 2 A^H y> + ||y||^2; the k-space of the coils is never stored
        gap = consistency.residual(image) - consistency.zero_filled
        return measured + (image.conj() * gap).real.sum((-2, -1), dtype=torch.float64)

    ordinary = data.counted_samples.double() * _noise_of_a_sample(data)
    if reference is not None:
        ordinary = torch.maximum(ordinary, left(reference))
    signal = float((measured - ordinary)[filled].mean())
    if signal <= 0:
        return ImageFigures(change=_change(data, image, reference, filled))
    excess = float((left(image) - ordinary)[filled].max())
    average = image[filled].mean(0)
    unexplained = float((left(average.expand_as(image)) - ordinary)[filled].mean()) / signal
    size = _root_mean_square(image[filled])
    motion = _root_mean_square((image - average)[filled]) / size if size > 0 else 0.0
    return ImageFigures(
        residual=0.0 if excess <= 0 else (excess / signal) ** 0.5,  # not a number if the squares were too large
        change=_change(data, image, reference, filled),
        streak=None
        if reference is None or deviation is None
        else _streak(image[filled], reference[filled], deviation[filled]),
        motion=motion / unexplained**0.5 if unexplained > _STILL**2 else None,
    )


def _change(
    data: HybridSlice, image: torch.Tensor, reference: torch.Tensor | None, filled: torch.Tensor
) -> float | None:
    if reference is None or data.noise_variance is None:
        return None
    size = _root_mean_square(reference[filled])
    return float(_norms((image - reference)[filled]).max()) / size if size > 0 else None


def _streak(image: torch.Tensor, reference: torch.Tensor, deviation: torch.Tensor) -> float:
    average = reference.mean(0).abs()
    bright = torch.quantile(average, _BRIGHT)
    moved = box_mean((image.mean(0).abs() - average).square(), _STREAK).sqrt()
    left_open = box_mean(2 * deviation.square().mean(0), _NEIGHBOURHOOD).sqrt() + _UNCERTAIN * bright
    return float(torch.where(moved > _DEVIATIONS * left_open, moved, 0).max() / bright) if bright > 0 else 0.0


def _norms(image: torch.Tensor) -> torch.Tensor:
    """Norm of every frame."""
    norms: torch.Tensor = torch.linalg.vector_norm(image, dim=(-2, -1))
    return norms.double()


def _root_mean_square(image: torch.Tensor) -> float:
    """Norm of a mean frame."""
    return float(_norms(image).square().mean().sqrt())


def _noise_of_a_sample(data: HybridSlice) -> float:
    """Energy of the noise in a sample of all coils."""
    _, n_coils, _, n_x = data.hybrid.shape
    if data.noise_variance is not None:
        return data.noise_variance * n_coils
    power = torch.zeros(n_coils, n_x, device=data.hybrid.device)
    for frame in data.hybrid:
        power += torch.view_as_real(frame).square().sum((1, 3))
    n_lines = float(data.counted_samples.sum()) / n_x
    # of columns that all hold noise, this part lies so many standard deviations below their mean
    below = min(0.5, _QUIET_DEVIATIONS / math.sqrt(n_lines))
    return float(torch.quantile(power, _QUIET, dim=-1).sum()) / n_lines / (1 - below)
