"""How strong the noise is, seen from data that were transformed along the readout already."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.physics.fourier import fft
from recon_core.physics.noise_level import UNIT_MEDIAN, is_outer, outer_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_LINES = 256  # that are looked at


def hybrid_noise_deviation(hybrid: torch.Tensor, mask: torch.Tensor) -> float:
    """Estimate the noise in the corners of k-space, as `noise_deviation` does, by the coil with least of it.

    Parameters
    ----------
    hybrid
        ``(frame, coil, ky, x)`` complex64, centre at ``N//2``.
    mask
        ``(frame, ky)`` bool, True where a line was measured.

    Returns
    -------
    float
        Standard deviation of the real and of the imaginary part, in the units of the data; NaN where no corner was
        measured. Coils that hold nothing but zeros do not count.
    """
    return least_deviation(coil_noise_deviations(hybrid, mask))


def least_deviation(deviations: list[float]) -> float:
    """That of the coil with least noise: others may have signal there; NaN where none is known."""
    return min(filter(math.isfinite, deviations), default=math.nan)


def coil_noise_deviations(hybrid: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Estimate the noise of each coil, as `hybrid_noise_deviation` does; NaN where a coil holds nothing there.

    Where signal is strong, it is stronger than the noise even in the corners. So lines that were measured again in a
    later frame are compared with that one too, which leaves noise and what moved; the lesser of both counts.
    """
    frame, row = outer_lines(mask.cpu().numpy())
    if not len(row):
        return [math.nan] * hybrid.shape[1]
    some = np.linspace(0, len(row) - 1, min(len(row), _MOST_LINES)).astype(int)
    later = _measured_again(mask.cpu().numpy(), frame[some], row[some])
    again = later >= 0
    lines = _corners(hybrid, frame[some], row[some])
    changes = (lines[again] - _corners(hybrid, later[again], row[some][again])) / 2**0.5
    # an asymmetric echo leaves columns out, and frames may share a readout: zero but for rounding
    magnitudes = [one.abs().cpu() for one in (lines, changes)]  # at once: a GPU need not be asked coil by coil
    least = 1e-5 * float(magnitudes[0].amax())
    pairs = zip(*(_medians(one, least) for one in magnitudes), strict=True)
    return [min(filter(math.isfinite, pair), default=math.nan) / UNIT_MEDIAN for pair in pairs]


def _measured_again(mask: NDArray[np.bool_], frame: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.intp]:
    """The next frame in which each line is measured, or -1."""
    later = [np.flatnonzero(mask[first + 1 :, line])[:1] + first + 1 for first, line in zip(frame, row, strict=True)]
    return np.array([int(found[0]) if len(found) else -1 for found in later], np.intp)


def _corners(hybrid: torch.Tensor, frame: NDArray[np.intp], row: NDArray[np.intp]) -> torch.Tensor:
    """The outer samples ``(line, coil, kx)`` of some lines."""
    where = [torch.from_numpy(index).to(hybrid.device) for index in (frame, row)]
    outer = torch.from_numpy(is_outer(np.arange(hybrid.shape[3]), hybrid.shape[3])).to(hybrid.device)
    lines = hybrid[where[0], :, where[1]]
    return (fft(lines, (-1,)) if len(lines) else lines)[..., outer]


def _medians(magnitudes: torch.Tensor, least: float) -> list[float]:
    """Median of each coil over what is above `least`; NaN where nothing is."""
    coils = (coil[coil > least] for coil in magnitudes.unbind(1))
    return [float(coil.median()) if len(coil) else math.nan for coil in coils]
