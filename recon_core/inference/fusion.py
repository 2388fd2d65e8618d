"""How much of the image of a network, and how much of the image that it started from, is sent."""

from __future__ import annotations

import torch

from recon_core.physics.neighbourhood import box_mean

# Side of the square, in pixels, over which the error of the start is averaged: a few samples know it roughly.
_NEIGHBOURHOOD = 9


def fuse(start: torch.Tensor, deviation: torch.Tensor, image: torch.Tensor, error: float) -> torch.Tensor:
    """Weigh two images of a series by what is known of their errors.

    Where the data alone settle a pixel, a network can only lose; where they leave much open, it knows better. The
    weight of the network is v / (v + e^2), with the variance v that the start is left with, and its own error e.

    Parameters
    ----------
    start
        ``(frame, y, x)`` complex64: what the network started from.
    deviation
        ``(frame, y, x)`` float32: standard deviation that the real part of `start` is left with.
    image
        ``(frame, y, x)`` complex64: what the network made of it. Magnitudes alone get the phase of the start.
    error
        Typical error of the network, in the units of the images.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64.
    """
    variance = box_mean(2 * deviation.square().mean(0), _NEIGHBOURHOOD)
    if not bool(image.imag.any()):
        image = torch.polar(image.abs(), start.angle())
    fused: torch.Tensor = start + variance / (variance + error**2) * (image - start)
    return fused
