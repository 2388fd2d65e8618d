"""The part of k-space that each sample has, from the samples themselves: for spirals and other curved readouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.off_grid.transforms import grid_samples, sample_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 20  # more change the weights by less than one in a hundred
_TOLERANCE = 1e-3


def iterated_areas(positions: NDArray[np.float32], matrix: tuple[int, int]) -> NDArray[np.float32]:
    """Find density weights with which the samples add up to the same everywhere that they cover.

    Parameters
    ----------
    positions
        ``(readout, sample, 2)`` in cycles per pixel, of readouts that are used together.
    matrix
        ``(y, x)`` pixels of the image.

    Returns
    -------
    NDArray[np.float32]
        ``(readout, sample)`` in cells of the Cartesian grid.

    Notes
    -----
    Pipe, Menon, Magn Reson Med 1999, doi:10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V, with the
    transform of a triangle as wide as two fields of view for kernel, which is nowhere negative.
    """
    size = (2 * matrix[0], 2 * matrix[1])
    fades = [1 - (torch.arange(2 * n) - n).abs() / n for n in matrix]
    window = (fades[0][:, None] * fades[1]).to(torch.complex64)
    places = torch.from_numpy(np.ascontiguousarray(positions.reshape(-1, 2)))
    weights = torch.ones(1, len(places))
    for _ in range(_ROUNDS):
        image = grid_samples(weights.to(torch.complex64), places, size, _TOLERANCE) * window
        # per cell of the grid: a sample in every cell has weight one
        found = 4 * sample_image(image, places, _TOLERANCE).real
        weights = weights / found.clamp(min=1e-6)
    return np.asarray(weights.numpy().reshape(positions.shape[:-1]), np.float32)
