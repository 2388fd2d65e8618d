"""Losses: those of the papers, and one that weights easy and hard scans equally."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW = 7
_SMALL = 1e-6


def decibel(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logarithm (base 10) of the mean squared complex error, in which the pixels that move most count three times.

    It is the PSNR up to sign, scale and a constant, so easy scans count as much as hopeless ones; with the error
    itself the hopeless ones decide, and a network learns to blur.

    Parameters
    ----------
    image, target
        ``(frame, y, x)`` complex.
    """
    weight = torch.ones_like(target.real)
    if len(target) > 1:
        deviation = target.abs().std(0)
        weight = weight + 2 * (deviation / torch.quantile(deviation, 0.95).clamp(min=_SMALL)).clamp(max=1)
    error = torch.view_as_real(image - target).square().sum(-1)
    return torch.log10((weight * error).mean() / weight.mean() + _SMALL)


def squared(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of real and imaginary parts."""
    return torch.view_as_real(image - target).square().mean()


def squared_magnitude(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of magnitudes, the loss of the Dual U-Net with 3-D ResNet."""
    return (_magnitude(image) - target.abs()).square().mean()


def crunet(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of CRUNet-MR: 0.75 MSE + 0.5 L1 + 0.5 (SSIM losses of real and imaginary part).

    Lyu et al., PMC12754836. A quarter of the MSE replaces the error in k-space, which is the same by Parseval. For
    the SSIM either series is divided by its own signed maximum.
    """
    ours, theirs = torch.view_as_real(image), torch.view_as_real(target)
    total = 0.75 * functional.mse_loss(ours, theirs) + 0.5 * functional.l1_loss(ours, theirs)
    for part in (0, 1):
        first, second = (series[..., part] / (series[..., part].max() + _SMALL) + _SMALL for series in (ours, theirs))
        similarity = structural_similarity(first, second, torch.ones(len(image), device=image.device))
        total = total + 0.5 * (1 - similarity.mean())
    return total


def similarity_of_frames(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``1 - SSIM`` of magnitudes, with the maximum of every frame as its range: the loss of CineNet."""
    theirs = target.abs()
    return 1 - structural_similarity(_magnitude(image), theirs, theirs.amax((-2, -1))).mean()


def similarity_of_series(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``1 - SSIM`` of magnitudes, with the maximum of the series as range: the loss of PromptMR."""
    theirs = target.abs()
    return 1 - structural_similarity(_magnitude(image), theirs, theirs.max().expand(len(theirs))).mean()


def structural_similarity(image: torch.Tensor, target: torch.Tensor, data_range: torch.Tensor) -> torch.Tensor:
    """SSIM of every frame, uniform windows of 7 x 7 that fit into the image, sample covariance.

    Wang et al., IEEE Trans Image Process 2004, doi:10.1109/TIP.2003.819861.

    Parameters
    ----------
    image, target
        ``(frame, y, x)`` real.
    data_range
        ``(frame,)``.

    Returns
    -------
    torch.Tensor
        ``(frame,)``.
    """
    side = min(_WINDOW, *image.shape[-2:])
    count = side * side
    correction = count / max(count - 1, 1)

    def average(series: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(series[:, None], side, 1)[:, 0]

    ours, theirs = average(image), average(target)
    variance = correction * (average(image * image) - ours * ours)
    wanted = correction * (average(target * target) - theirs * theirs)
    common = correction * (average(image * target) - ours * theirs)
    scale = data_range.clamp(min=_SMALL)[:, None, None].square()
    c1, c2 = 0.01**2 * scale, 0.03**2 * scale
    luminance = (2 * ours * theirs + c1) / (ours * ours + theirs * theirs + c1)
    index: torch.Tensor = luminance * (2 * common + c2) / (variance + wanted + c2)
    return index.mean((-2, -1))


def _magnitude(image: torch.Tensor) -> torch.Tensor:
    """Magnitude with a finite gradient at zero."""
    return (torch.view_as_real(image).square().sum(-1) + _SMALL**2).sqrt()


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "decibel": decibel,
    "squared": squared,
    "squared_magnitude": squared_magnitude,
    "crunet": crunet,
    "similarity_of_frames": similarity_of_frames,
    "similarity_of_series": similarity_of_series,
}
