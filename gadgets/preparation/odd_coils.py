"""Coils whose noise is not what the noise readouts say, or far from that of the others.

Whitening makes the noise of all coils alike. A coil that was weak or dead in the noise scan only would be blown up by
it. One with far more noise than the others is left out: its map is noise, and the shading that images are given back
would be too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_OUTER = 0.75  # quantile of the distance from the k-space centre: beyond, signal is weakest
_FEWEST = 8  # samples to judge by
_LOW = 0.1  # quantile of magnitudes that signal changes least
_NOT_MEASURED = 5.0  # times the noise that the noise readouts say, against the typical coil: they are not believed
_NOISY = 25.0  # times the noise of the typical coil: no use for an image
_DEAD = 1e-6


@dataclass(frozen=True)
class CheckedCoils:
    """The covariance of the noise, as far as it can be believed, and the coils that can be used."""

    covariance: NDArray[np.complex128]
    """``(coil, coil)`` complex128; of a coil that is not believed the noise of the data, free of correlations."""
    used: NDArray[np.bool_]
    """``(coil,)`` bool."""
    notes: tuple[str, ...]
    """What a reader of the images must know."""


def check_coils(
    covariance: NDArray[np.complex128], readout: tuple[NDArray[np.complex64], int] | None, names: Sequence[str]
) -> CheckedCoils:
    """Compare the noise of the coils with that of an image readout and with each other.

    Parameters
    ----------
    covariance
        ``(coil, coil)`` complex128 of the noise readouts.
    readout
        An image readout ``(coil, sample)`` complex64, and its sample of the k-space centre; the ends are compared. None
        compares with nothing.
    names
        ``(coil,)`` for the notes.
    """
    covariance, notes = covariance.copy(), []
    said = np.sqrt(np.diag(covariance).real)
    found = None if readout is None else _low_magnitude(*readout)
    live = said > _DEAD * np.median(said)
    if found is not None and live.any():
        typical = float(np.median(found[live] / said[live]))
        seen = found / typical if typical > 0 else np.zeros_like(found)
        for coil in np.flatnonzero(seen > _NOT_MEASURED * np.where(live, said, 0.0)).tolist():
            covariance[coil], covariance[:, coil] = 0.0, 0.0
            covariance[coil, coil] = seen[coil] ** 2
            found_more = f"{seen[coil] / said[coil]:.3g} times the noise of" if live[coil] else "noise, but none in"
            notes.append(f"coil {names[coil]} has {found_more} its noise readouts; that of the data is taken")
    deviation = np.sqrt(np.diag(covariance).real)
    typical = float(np.median(deviation))
    used = (deviation > _DEAD * typical) & (deviation <= _NOISY * typical)
    for coil in np.flatnonzero(~used).tolist():
        ratio = deviation[coil] / typical if typical > 0 else 0.0
        why = f"{ratio:.3g} times the noise of the typical coil" if ratio > 1 else "no noise, as if it were dead"
        notes.append(f"coil {names[coil]} has {why}; it is left out")
    return CheckedCoils(covariance, used, tuple(notes))


def _low_magnitude(readout: NDArray[np.complex64], center: int) -> NDArray[np.float64] | None:
    """A low quantile of the magnitudes of every coil at the ends of a readout; None if there are too few samples."""
    if not readout.shape[1]:
        return None
    away = np.abs(np.arange(readout.shape[1]) - center)
    ends = np.abs(readout[:, away >= np.quantile(away, _OUTER)])
    ends = ends[:, (ends > 0).any(axis=0)]  # some senders fill up with zeros
    return np.quantile(ends, _LOW, axis=1) if ends.shape[1] >= _FEWEST else None
