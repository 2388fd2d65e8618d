"""Windows over a series of frames, for networks that take a fixed number of them or a few at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def over_windows(
    reconstruct: Callable[[torch.Tensor], torch.Tensor],
    n_frames: int,
    window: int,
    device: torch.device,
    *,
    periodic: bool = True,
) -> torch.Tensor:
    """Reconstruct a series in windows of a given length and blend them.

    Parameters
    ----------
    reconstruct
        Takes the indices ``(window,)`` of frames and gives their images ``(window, ...)``.
    n_frames
        Frames of the series, one or more.
    window
        Frames of a window.
    device
        Where the indices live.
    periodic
        The first frame follows on the last.

    Returns
    -------
    torch.Tensor
        ``(frame, ...)``: with as many frames as the window has, the one result; with fewer, the cycle is repeated to
        fill it and a frame is the mean of its repetitions; with more, windows start every half window or less, around
        the end of the cycle too, and are blended with the weight ``sin^2`` of the place in the window. A series that is
        not periodic is mirrored instead, and no window goes beyond its end.
    """
    slots = torch.arange(window, device=device)
    if n_frames == window:
        return reconstruct(slots)
    if n_frames < window:
        starts, weights = [0], torch.ones(window, device=device)
        if not periodic:
            slots = _to_and_fro(slots, n_frames)
    else:
        span = n_frames if periodic else n_frames - window
        n_steps = math.ceil(span / max(1, window // 2))
        starts = [i * span // n_steps for i in range(n_steps if periodic else n_steps + 1)]
        weights = torch.sin(torch.pi * (slots + 0.5) / window).square()
    indices = [(start + slots) % n_frames for start in starts]
    images = (_along(weights, reconstruct(frames)) for frames in indices)
    blended = _scatter(next(images), indices[0], n_frames)
    for frames, image in zip(indices[1:], images, strict=True):
        blended.index_add_(0, frames, image)
    total = torch.zeros(n_frames, device=device)
    for frames in indices:
        total.index_add_(0, frames, weights)
    return _along(1 / total, blended)


def _to_and_fro(slots: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Indices that are mirrored at both ends of the series, without repeating the end frames."""
    turn = max(1, 2 * (n_frames - 1))
    place = slots % turn
    return torch.minimum(place, turn - place) if n_frames > 1 else torch.zeros_like(slots)


def _along(weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Weight images ``(frame, ...)`` by frame."""
    return weights.view(-1, *[1] * (images.ndim - 1)) * images


def _scatter(image: torch.Tensor, frames: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Sum the images of a window ``(window, ...)`` into the series ``(frame, ...)``."""
    return image.new_zeros((n_frames, *image.shape[1:])).index_add_(0, frames, image)
