"""Coil maps again, once it is known what moved between the lines that they are made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from recon_core.classical.kt_prior import principal_components
from recon_core.classical.kt_sense import KtSense
from recon_core.coils.calibration import time_average
from recon_core.coils.estimate import are_usable
from recon_core.coils.joint import fitted_columns, joint_maps
from recon_core.errors import DataError
from recon_core.options import KtSenseOptions

if TYPE_CHECKING:
    from recon_core.data import HybridSlice

# Measurements of a line, in the mean, with which its average hardly knows of motion.
_MANY = 10
# More rounds take what the maps leave unexplained for motion; so do more components, and all of them the most.
_ROUNDS, _COMPONENTS = KtSenseOptions(rounds=2), 3
# The priors of the maps count more by this power of the share of lines that the average has: through its gaps, what is
# left of motion gets into the maps.
_GAPS = -2
# Times what slow motion would, and a little, that averages of lines may differ from each other by what moved, beside
# how the frames of a line do; beyond it is what one set of maps does not explain, as where the body folds.
_MOST_STILL, _LITTLE = 1.75, 0.02
_MOST_LINES = 0.75  # share of the lines that must have been measured in several frames to tell


def still_maps(data: HybridSlice, implementation: str) -> torch.Tensor | None:
    """Estimate coil maps from the average that the lines would have had if nothing had moved.

    Where the lines differ from frame to frame, each line of the average is that of a few frames, in which the heart was
    elsewhere than in those of its neighbours; a fit of maps takes that for sensitivity. So the series is estimated with
    the maps that there are, what it changes is measured as the data were and averaged in the same way, and that is
    taken off.

    Parameters
    ----------
    data
        The slice, whose reference is the average of its frames, with maps of kind ``auto``.
    implementation
        As for `KtSense`.

    Returns
    -------
    torch.Tensor or None
        ``(coil, y, x)`` complex64; None where motion cannot matter, or the data allow no better maps.
    """
    filled = data.mask[data.mask.any(-1)]
    few = bool(filled.sum() < _MANY * data.measured.sum())
    if not few or bool((filled == filled[:1]).all()) or not bool(data.reference.isfinite().all()):
        return None
    try:
        again = _maps_without_motion(data, implementation)
    except (DataError, torch.linalg.LinAlgError):  # type: ignore[attr-defined] # no signal, or values too large
        return None
    return again if again is not None and are_usable(again) else None


def _maps_without_motion(data: HybridSlice, implementation: str) -> torch.Tensor | None:
    """The maps; None where what moves cannot be told from what the present ones do not explain."""
    columns = fitted_columns(data.hybrid.shape[-1])
    hybrid, maps, lines = (part[..., columns].contiguous() for part in (data.hybrid, data.maps, data.reference))
    few_columns = replace(data, hybrid=hybrid, maps=maps, reference=lines, ct=None, ct_cover=None, notes=[], extra={})
    series = KtSense(_ROUNDS, implementation)(few_columns)
    moved = few_columns.operator(implementation).forward(_largest_changes(series))
    if _stillness(moved, data.mask) > _MOST_STILL * _slow_stillness(data.mask) + _LITTLE:
        return None
    caution = float(data.measured.float().mean()) ** _GAPS
    reference = data.reference.clone()
    reference[..., columns] -= time_average(moved, data.mask)[0]
    return joint_maps(reference, data.measured, caution=caution)[0]


def _largest_changes(series: torch.Tensor) -> torch.Tensor:
    """What the strongest principal components of a series ``(frame, y, x)`` make of its change."""
    change = torch.view_as_real(series - series.mean(0)).flatten(1)
    basis = principal_components(change, _COMPONENTS)
    return torch.view_as_complex((basis.mT @ (basis @ change)).view(*series.shape, 2))


def _stillness(moved: torch.Tensor, mask: torch.Tensor) -> float:
    """How far averages of lines are from zero, over what is expected of how their frames differ; 0 if few lines tell.

    Parameters
    ----------
    moved
        ``(frame, coil, ky, x)``, with a mean of zero over all frames.
    mask
        ``(frame, ky)`` bool.
    """
    counts = mask.sum(0)
    several = (counts > 1) & (counts < mask.any(-1).sum())
    if several.sum() < _MOST_LINES * (counts > 0).sum():
        return 0.0
    lines, counts = torch.where(mask[:, None, :, None], moved, 0)[:, :, several], counts[several]
    squares = counts * (lines.sum(0) / counts[:, None]).abs().square().sum((0, 2))
    spread = (lines.abs().square().sum((0, 1, 3)) - squares) / (counts - 1)
    total = float(spread.sum())
    return float(squares.sum()) / total if total > 0 else 0.0


def _slow_stillness(mask: torch.Tensor) -> float:
    """The same of motion that is slow: once there and back in the series, or steadily on."""
    time = torch.linspace(-1, 1, len(mask) + 1, device=mask.device)[:-1]
    motions = torch.stack(((torch.pi * time).cos(), (torch.pi * time).sin(), time))
    motions = motions - motions.mean(1, keepdim=True)
    return max(_stillness(motion[:, None, None, None].expand(-1, 1, mask.shape[1], 1), mask) for motion in motions)
