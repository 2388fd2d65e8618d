"""Frames that differ as a whole, in phase or in brightness, made alike before any method sees them."""

from __future__ import annotations

import math

import torch

from recon_core.words import listed

_CENTRE = 4  # lines on either side of the middle where nearly all of the signal is
# What one image explains of the centre where frames are alike but for a factor, and what their sum keeps where they
# hardly differ in phase (by 11 degrees), which motion does to them, too.
_ALIKE, _COHERENT = 0.5, 0.982
# Times the brightness of most from which on, and up to which, a few frames are made as dark as these. Where many are
# brighter, as by a contrast agent, or the others hold hardly any signal, these would lose by it.
_BRIGHTER, _FEW = (1.5, 10.0), 0.25
_SMALL, _ROUNDING = 1e-12, 1e-3


def equal_frames(hybrid: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor | None, list[str]]:
    """Find factors ``(frame,)`` that make frames alike which differ as a whole, and say which; None if none does."""
    factors = frame_factors(hybrid, mask)
    if factors is None:
        return None, []
    notes = []
    if bool((factors.imag != 0).any()):
        notes.append("the phase of whole frames differs: they are turned to one phase, and their images back")
    bright = (factors.abs() < 1 - _ROUNDING).nonzero().flatten().tolist()
    if bright:
        notes.append(f"frames much brighter than most are reconstructed as bright as these: {listed(bright)}")
    return factors, notes


def frame_factors(kspace: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """Find factors that make frames alike which differ as a whole: whose phase drifts or jumps, or which are brighter.

    Parameters
    ----------
    kspace, mask
        As for `recon_core.coils.calibration.time_average`.

    Returns
    -------
    torch.Tensor or None
        ``(frame,)`` complex64 of magnitude one at most, as what is amplified has more noise than the rest. None where
        they need none or have no central line in common.
    """
    filled, centre = mask.any(1), mask.shape[1] // 2
    rows = slice(max(0, centre - _CENTRE), centre + _CENTRE + 1)
    common = mask[filled][:, rows].all(0)
    if int(filled.sum()) < 2 or not bool(common.any()):
        return None
    lines = kspace[:, :, rows][filled][:, :, common].flatten(1)
    likeness = (lines @ lines.mH).to(torch.complex128)
    total = float(likeness.diagonal().real.sum())
    if not (math.isfinite(total) and total > 0):
        return None
    values, vectors = torch.linalg.eigh(likeness)
    if float(values[-1]) < _ALIKE * total:
        return None
    first = vectors[:, -1]
    brighter = first.abs() / first.abs().median().clamp(min=_SMALL)
    turned = float(first.sum().abs() / first.abs().sum()) < _COHERENT
    bright = brighter > _BRIGHTER[0]
    if float(bright.double().mean()) > _FEW or float(brighter.max()) > _BRIGHTER[1]:
        bright = torch.zeros_like(bright)
    if not turned and not bool(bright.any()):
        return None
    magnitude = torch.where(bright, 1 / brighter, 1)
    factors = kspace.new_ones(len(mask))
    factors[filled] = torch.polar(magnitude, -first.angle() if turned else torch.zeros_like(magnitude)).to(factors)
    return factors
