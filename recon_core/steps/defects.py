"""What may be wrong with a slice as it came, and is put right in the first step; each with a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.classical.kt_sense import LEAST_NOISE
from recon_core.coils.estimate import are_usable
from recon_core.steps.device import to_device
from recon_core.words import listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.data import CineSlice, HybridSlice

# A coil is loud if it has so many times the noise of most and at most so much of the ratio of signal to noise that
# most have: one of a higher gain has as much more signal.
_LOUD, _POOR = 2.5, 0.5
_QUIET = 1.5  # times the noise as stated that most coils may have where nothing but noise is in the corners of k-space
# Times the noise as stated that may be seen there, and of samples that are not lines, whose ends hold more signal. That
# makes it seem stronger, but to reckon with a little too much does less harm than noise that is taken for motion. What
# frames share makes it seem weaker.
_LEAST, _MOST, _MOST_OTHERS = 0.25, 1.4, 8.0


def zero_lines(cine: CineSlice) -> NDArray[np.bool_]:
    """Find lines ``(frame, ky)`` that were measured and are zero, where others are not: a receiver gives noise."""
    if cine.points is not None:  # which samples were measured is known
        return np.zeros_like(cine.mask)
    zero: NDArray[np.bool_] = cine.mask & ~cine.kspace[..., cine.kspace.shape[-1] // 2].any(1)
    where = np.nonzero(zero)
    zero[where] = ~cine.kspace[where[0], :, where[1]].any((1, 2))
    return zero if (cine.mask & ~zero).any() else np.zeros_like(zero)


def note_zero_lines(zero: NDArray[np.bool_]) -> list[str]:
    """Say which frames have lines of zeros; nothing if none has."""
    if not zero.any():
        return []
    frames = listed(np.flatnonzero(zero.any(1)).tolist())
    return [f"lines that hold only zeros count as not measured: {int(zero.sum())}, of frames {frames}"]


def usable_maps(cine: CineSlice, device: torch.device) -> tuple[torch.Tensor | None, list[str]]:
    """Give the coil maps that came with a slice if there are some and they are of use, and say where they are not."""
    maps = None if cine.maps is None else to_device(cine.maps, device)
    if maps is None or are_usable(maps):
        return maps, []
    return None, ["the coil maps that came with the slice are zero or not finite: others are estimated from its data"]


def loud_coils(
    of_coils: list[float], reference: torch.Tensor, stated: float | None
) -> tuple[torch.Tensor | None, list[str]]:
    """Give factors ``(coil, 1, 1)`` of coils whose noise would drown the others, or None; and say which they are.

    Parameters
    ----------
    of_coils
        Standard deviation of the noise that is seen of each coil, in real and imaginary part.
    reference
        ``(coil, ky, x)`` complex64 of the time average.
    stated
        That of all coils, where it is known. Where most have more in the corners of k-space, that is signal, and no
        coil is loud.
    """
    deviations = torch.tensor(of_coils)
    usual = torch.nanmedian(deviations)
    loud = deviations > _LOUD * usual
    if stated is not None:
        loud &= usual < _QUIET * stated
    if bool(loud.any()):  # as a rule none is, and this looks at all data
        quality = reference.abs().square().mean((-2, -1)).sqrt().cpu() / deviations
        loud &= quality < _POOR * torch.nanmedian(quality)
    if not bool(loud.any()):
        return None, []
    notes = [
        f"coil {coil} is weighed down: it has {float(deviations[coil] / usual):.2g} times the noise of most coils"
        for coil in loud.nonzero().flatten().tolist()
    ]
    return torch.where(loud, usual / deviations, 1).to(reference.real)[:, None, None], notes


def right_noise(data: HybridSlice, seen: float, *, lines: bool) -> tuple[float | None, list[str]]:
    """Give the variance of the noise that is reckoned with, and say where it is not as stated, after whitening.

    Parameters
    ----------
    data
        The slice, with the variance as stated.
    seen
        Its `HybridSlice.seen_noise`.
    lines
        Whether whole lines were measured.
    """
    stated = data.noise_variance
    if stated is None:
        return None, []
    ratio = (2 * seen**2 / stated) ** 0.5
    much = ratio > (_MOST if lines else _MOST_OTHERS)
    much = much and 2**0.5 * seen > LEAST_NOISE * float(data.average_images().abs().max())
    if not (ratio < _LEAST or much):  # as if nothing is seen
        return stated, []
    said = (
        f"what is in the corners of k-space has {ratio:.2g} times the deviation that the noise should have after "
        "whitening, or it is signal: that is reckoned with"
    )
    return 2 * seen**2, [said]
