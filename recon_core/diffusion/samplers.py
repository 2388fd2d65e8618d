"""From noise, or from a noisy first image, to an image: steps along the score, each followed by data consistency."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from recon_core.diffusion.sde import Schedule

#: Standard normal numbers of a shape.
Noise = Callable[[tuple[int, ...]], torch.Tensor]
#: The score of slices ``(slice, 2, frame, position)`` at a noise level ``(1,)``.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: The image axis of the slices; the other one counts them.
Axis = Literal["y", "x"]
Directions = Literal["both", "alternating", "sequential", "y"]


def reverse_diffusion(
    image: torch.Tensor,
    score: Score,
    consistency: Callable[[torch.Tensor], torch.Tensor],
    schedule: Schedule,
    noise: Noise | None,
    *,
    directions: Directions = "both",
    denoise: bool = True,
    steps: range | None = None,
) -> torch.Tensor:
    """Reverse the diffusion of an image, kept consistent with its measurement.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64, with the noise of the first level of the schedule in it.
    score
        The prior, for slices of time and y as for those of time and x.
    consistency
        Brings an image into agreement with the data.
    schedule
        The steps.
    noise
        Called for every orientation of every step with the shape of its slices; None adds none.
    directions
        ``both``: both orientations from the same image, each with its own noise, and their mean, as published.
        ``alternating``: one orientation per step, in turn, time and y last; half the work. Its noise has half the
        variance, as the mean of two has. ``sequential``: first y, then x from its result. ``y``: only time and y.
    denoise
        The result is without the noise that the last step adds.
    steps
        Which steps of the schedule are taken, one after the other; None takes all.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64.

    Notes
    -----
    Wang et al., IEEE Trans Comput Imaging 2025, doi:10.1109/TCI.2025.3598421; the predictor of Song et al., ICLR 2021,
    doi:10.48550/arXiv.2011.13456, without corrector. Alternation as in Lee et al., ICCV 2023,
    doi:10.48550/arXiv.2303.08440. The published code evaluates the network twice at the same point; once is enough.
    """
    n_steps = len(schedule.gains)
    labels = schedule.labels.to(image.device)
    mean = image
    for step in range(n_steps) if steps is None else steps:
        gain = float(schedule.gains[step])
        label = labels[step : step + 1]
        if directions == "both":
            first = _step(image, "y", score, label, gain, gain, noise)
            second = _step(image, "x", score, label, gain, gain, noise)
            mean, image = ((one + other) / 2 for one, other in zip(first, second, strict=True))
        elif directions == "alternating":
            axis: Axis = "y" if (n_steps - step) % 2 else "x"
            mean, image = _step(image, axis, score, label, gain, gain * 0.5**0.5, noise)
        else:
            mean, image = _step(image, "y", score, label, gain, gain, noise)
            if directions == "sequential":
                mean, image = _step(image, "x", score, label, gain, gain, noise)
        image = consistency(image)
    return image if noise is None or not denoise else consistency(mean)


def _step(
    image: torch.Tensor,
    axis: Axis,
    score: Score,
    label: torch.Tensor,
    gain: float,
    noise_gain: float,
    noise: Noise | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step in one orientation: the mean of what it leads to, and a draw."""
    slices = to_slices(image, axis)
    slices = slices.add(score(slices, label), alpha=gain**2)  # training needs those before
    mean = from_slices(slices, axis)
    if noise is None:
        return mean, mean
    draw = noise(tuple(slices.shape))
    return mean, from_slices(slices.add_(draw, alpha=noise_gain), axis)


def to_slices(image: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Cut ``(frame, y, x)`` into planes of time and one axis, ``(slice, 2, frame, position)``; always a copy."""
    parts = torch.view_as_real(image.resolve_conj())
    order = (2, 3, 0, 1) if axis == "y" else (1, 3, 0, 2)
    return parts.permute(order).clone(memory_format=torch.contiguous_format)


def from_slices(slices: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Put planes ``(slice, 2, frame, position)`` together again, ``(frame, y, x)`` with y contiguous; always a copy."""
    planes = torch.complex(*slices.unbind(1))
    lines = planes.permute(1, 0, 2) if axis == "y" else planes.permute(1, 2, 0)  # (frame, x, y)
    return lines.contiguous().mT
