"""Whether the readouts of a slice are whole lines, or hold zeros where nothing was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST = 0.1  # share of the samples that are zero; a sample that happens to be zero is not missing


def find_points(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Find the samples that were measured, from the zeros in measured lines.

    Columns that no line has are those of an asymmetric echo or of a resolution along the readout, and no points.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64.
    mask
        ``(frame, ky)`` bool, True where a line was measured.

    Returns
    -------
    ndarray or None
        ``(frame, ky, kx)`` bool; None where the lines are whole.
    """
    if not _has_gaps(kspace[:, _with_signal(kspace)] != 0, mask):
        return None
    samples = np.asarray((kspace != 0).any(axis=1) & mask[..., None])
    return samples if _has_gaps(samples, mask) else None


def are_gapped(readouts: NDArray[np.complex64]) -> bool:
    """Whether readouts ``(readout, coil, sample)`` hold zeros between their first and their last sample."""
    return _gapped(readouts[:, _with_signal(readouts)] != 0) and _gapped((readouts != 0).any(axis=1))


def _with_signal(array: NDArray[np.complex64]) -> int:
    """The first coil on axis 1 that is not dead: as a rule one look at it shows that lines are whole."""
    return next((coil for coil in range(array.shape[1]) if array[:, coil].any()), 0)


def _gapped(samples: NDArray[np.bool_]) -> bool:
    begun = np.logical_or.accumulate(samples, axis=1)
    inside = begun & np.logical_or.accumulate(samples[:, ::-1], axis=1)[:, ::-1]
    return bool(np.count_nonzero(inside & ~samples) > _FEWEST * np.count_nonzero(inside))


def _has_gaps(samples: NDArray[np.bool_], mask: NDArray[np.bool_]) -> bool:
    lines = samples[mask]
    columns = lines.any(axis=0) if len(lines) else np.zeros(0, np.bool_)
    measured = lines.any(axis=1) if len(lines) else columns
    return bool(columns.any()) and bool(1 - np.mean(lines[np.ix_(measured, columns)]) > _FEWEST)
