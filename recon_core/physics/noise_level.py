"""How strong the noise of k-space is, seen from the k-space alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Median magnitude of complex normal noise of unit deviation in real and imaginary part.
UNIT_MEDIAN = math.sqrt(2 * math.log(2))
_OUTER = 0.75  # quantile of the distance from the centre: beyond, signal is weakest
_BELIEVED = (0.3, 30.0)


def noise_deviation(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> float:
    """Estimate the standard deviation of the noise in the corners of k-space; the signal there makes it too large.

    The magnitude of complex normal noise with deviation s in real and imaginary part has the median s sqrt(2 ln 2).

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64, centre at ``N//2``.
    mask
        ``(frame, ky)`` bool, True where a line was measured.

    Returns
    -------
    float
        Of the real and of the imaginary part, in the units of the k-space; NaN where no corner was measured.
    """
    frame, row = outer_lines(mask)
    corners = np.abs(kspace[frame, :, row][:, :, is_outer(np.arange(kspace.shape[3]), kspace.shape[3])])
    corners = corners[corners > 0]  # an asymmetric echo leaves columns out
    return float(np.median(corners)) / UNIT_MEDIAN if corners.size else math.nan


def outer_lines(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Frames and rows of the measured lines ``(frame, ky)`` that are furthest out."""
    frame, row = np.nonzero(mask)
    far = is_outer(row, mask.shape[1])
    return frame[far], row[far]


def is_outer(index: NDArray[np.intp], size: int) -> NDArray[np.bool_]:
    """Tell which of some samples of an axis are furthest from its centre."""
    off = np.abs(index - size // 2)
    return off >= np.quantile(off, _OUTER) if off.size else np.zeros(0, np.bool_)


def is_unit_noise(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> bool:
    """Tell whether noise of unit deviation is plausible, as whitening leaves it; wrong scales are off by far more.

    Parameters
    ----------
    kspace, mask
        As for `noise_deviation`. Averages make the noise weaker, and signal in the corners makes it seem stronger.
    """
    return _BELIEVED[0] <= noise_deviation(kspace, mask) <= _BELIEVED[1]
