"""Whether a CT is aligned with the MR, from the edges of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHIFTS = (-16, -8, 0, 8, 16)  # pixels, along both axes
_AS_GOOD = 0.98  # of the best similarity


@dataclass(frozen=True)
class Alignment:
    """How well edges agree where they are and where they could be."""

    similarity: float
    """At no shift; between 0 and 1."""
    best: float
    """The highest of all shifts."""
    shift: tuple[int, int]
    """Rows and columns that the CT would move for that."""

    @property
    def suspect(self) -> bool:
        """Whether a shift is clearly better than none."""
        return self.similarity < _AS_GOOD * self.best


def check_alignment(ct: NDArray[Any], magnitude: NDArray[Any], cover: NDArray[np.bool_]) -> Alignment:
    """Compare the edges of a CT with those of an MR image, at no shift and at shifts of 8 and 16 pixels.

    Parameters
    ----------
    ct
        ``(y, x)`` in [0, 1], on the grid of the MR.
    magnitude
        ``(y, x)`` in any unit: the time average, zero-filled.
    cover
        ``(y, x)`` bool, where there is CT.

    Returns
    -------
    Alignment
        Whether it is suspect has not been calibrated on patients. Without edges nothing is.

    Notes
    -----
    Normalised gradient fields: the mean of ``<a, b>^2 / ((|a|^2 + e_a^2) (|b|^2 + e_b^2))`` over the pixels of both,
    with gradients a and b, and their mean lengths e. Haber and Modersitzki, MICCAI 2006, doi:10.1007/11866763_89.
    """
    if min(ct.shape) < 2:
        return Alignment(0.0, 0.0, (0, 0))
    moving, fixed = (
        _directions(np.asarray(ct, np.float64), cover),
        _directions(np.asarray(magnitude, np.float64), cover),
    )
    n_y, n_x = ct.shape
    results: dict[tuple[int, int], float] = {}
    for rows in _SHIFTS:
        for columns in _SHIFTS:
            if abs(rows) >= n_y or abs(columns) >= n_x:
                continue
            there = slice(max(0, rows), n_y + min(0, rows)), slice(max(0, columns), n_x + min(0, columns))
            here = slice(max(0, -rows), n_y + min(0, -rows)), slice(max(0, -columns), n_x + min(0, -columns))
            both = cover[here]
            product = (moving[:, here[0], here[1]] * fixed[:, there[0], there[1]]).sum(0)[both]
            results[rows, columns] = float(np.square(product).mean()) if product.size else 0.0
    shift = max(results, key=lambda key: results[key])
    return Alignment(results[0, 0], results[shift], shift)


def _directions(image: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Gradients ``(2, y, x)`` of length below one: near one at edges, near zero where there are none."""
    gradient = np.stack([np.gradient(image, axis=axis) for axis in (0, 1)])
    length = np.sqrt(np.square(gradient).sum(0))
    typical = length[where].mean() if where.any() else 0.0
    scale = np.sqrt(np.square(length) + typical**2)
    return gradient / np.where(scale > 0, scale, 1)


def time_average_magnitude(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Make the image that a CT is compared with.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64.
    mask
        ``(frame, ky)`` bool.

    Returns
    -------
    ndarray
        ``(y, x)`` float32: root sum of squares of the coils of the average over the frames that measured a line.
    """
    counts = np.maximum(mask.sum(0), 1)[:, None]
    average = np.einsum("fckx,fk->ckx", kspace, mask.astype(np.float32)) / counts
    axes = (-2, -1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(average, axes), norm="ortho"), axes)
    return np.asarray(np.sqrt(np.square(np.abs(coils)).sum(0)), np.float32)
