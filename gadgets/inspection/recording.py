"""What stands in the place of the engine while a raw file is looked through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.data import CineSlice, Reconstruction
from recon_core.off_grid.trajectory import are_straight
from recon_core.points.find import find_points
from recon_core.trust.ranges import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.options import ReconOptions


class RecordingEngine:
    """Stands in for the engine: records how each slice would be reconstructed, and gives images and maps of ones."""

    def __init__(self) -> None:
        self.whitened = False
        self.coils = 0
        self.samplings: list[Sampling] = []

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        """Record the slice and give an image of ones."""
        frames, self.coils, lines, samples = cine_slice.kspace.shape
        self.whitened = cine_slice.receiver.colouring is not None
        self.samplings.append(_sampling(cine_slice))
        image = np.ones((frames, lines, samples), np.complex64)
        return Reconstruction(image, np.ones((1, lines, samples), np.complex64), options.method)

    def coil_maps(
        self,
        calibration: NDArray[np.complex64],
        options: ReconOptions,
        near: NDArray[np.complex64] | None = None,
    ) -> tuple[NDArray[np.complex64], tuple[str, ...]]:
        """Maps of ones."""
        del options, near
        return np.ones_like(calibration), ()


def _sampling(cine: CineSlice) -> Sampling:
    """A slice as a network sees it."""
    coils, samples = cine.kspace.shape[1::2]
    if cine.trajectory is not None:
        straight = are_straight(cine.trajectory.positions[cine.mask])
        return Sampling.off_grid(cine.mask, coils, cine.plane, straight=straight)
    points = find_points(cine.kspace, cine.mask)
    return Sampling.of(cine.mask if points is None else points, coils, samples)
