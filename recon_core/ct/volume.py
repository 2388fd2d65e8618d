"""A CT volume in memory, and the choice of who can read its file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recon_core.errors import DataError, ResourceError
from recon_core.physics.memory import available_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 20
_UNIT_ERROR = 1e-3  # of direction cosines: they come with few digits
_SPACING_ERROR = 0.01
_LARGEST_TILT = np.deg2rad(1)


@dataclass(frozen=True, eq=False)
class CtVolume:
    """A CT volume and where it lies in the patient.

    Raises
    ------
    DataError
        If it is no volume, holds values that are not finite, or the affine has no inverse.
    """

    hu: NDArray[np.float32]
    """``(i, j, k)`` float32, Hounsfield units."""
    affine: NDArray[np.float64]
    """``(4, 4)`` float64: index ``(i, j, k, 1)`` of a voxel to its centre in LPS, mm."""
    digest: str
    """SHA-256 of what it was read from."""

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.hu.ndim != 3 or min(self.hu.shape) < 2:
            raise DataError(f"a CT must have two voxels or more along three axes, got {self.hu.shape}")
        if not np.isfinite(self.hu).all():
            raise DataError("the CT has values that are not finite; replace them by -1000 HU")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise DataError("the affine of the CT must be 4 x 4 finite numbers")
        edges = np.linalg.norm(self.affine[:3, :3], axis=0)
        if edges.min() <= 0 or abs(np.linalg.det(self.affine[:3, :3] / edges)) < _UNIT_ERROR:
            raise DataError("the affine of the CT is singular: its voxels have no volume")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def ras_to_lps(affine: NDArray[Any]) -> NDArray[np.float64]:
    """Bring an affine from index to RAS to one from index to LPS."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, np.float64)


def check_size(n_voxels: int) -> None:
    """Refuse what would take the machine down: a volume too large, or a forged header.

    Raises
    ------
    ResourceError
        If float32 values of so many voxels, and a copy of them, do not fit into the memory that is free.
    """
    free = available_bytes(torch.device("cpu"))
    needed = 8 * n_voxels
    if free is not None and needed > free:
        raise ResourceError(
            f"reading {n_voxels} voxels takes {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; cut the "
            "volume to the part that the MR slices cover"
        )


def stack_slices(
    first: NDArray[np.float64], column_step: NDArray[np.float64], row_step: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Put slices in order and find where the volume lies.

    Parameters
    ----------
    first
        ``(slice, 3)`` centre of the first pixel of every slice, mm, LPS.
    column_step, row_step
        ``(3,)`` from a pixel to the one in the next column, and in the next row, mm.

    Returns
    -------
    tuple of ndarray
        Order of the slices ``(slice,)``, and the affine ``(4, 4)`` for an index of column, row and ordered slice.

    Raises
    ------
    DataError
        If directions are not perpendicular, there is only one slice, slices are missing, doubled or not equally far
        apart, or they are sheared (gantry tilt).
    """
    check_directions(column_step / np.linalg.norm(column_step), row_step / np.linalg.norm(row_step))
    if len(first) < 2:
        raise DataError(f"{len(first)} slice is no volume; give the whole series")
    normal = np.cross(column_step, row_step)
    normal /= np.linalg.norm(normal)
    place = first @ normal
    order = np.argsort(place, kind="stable")
    gaps = np.diff(place[order])
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() < _SPACING_ERROR * usual:
        at = place[order][int(np.argmin(gaps))]
        raise DataError(f"several slices lie at {at:.2f} mm along the normal; give a folder with one series, each once")
    if gaps.max() - gaps.min() > _SPACING_ERROR * usual:
        worst = int(np.argmax(np.abs(gaps - usual)))
        raise DataError(
            f"slices are missing or not equally far apart: {gaps[worst]:.3f} mm between slices {worst + 1} and "
            f"{worst + 2}, {usual:.3f} mm elsewhere; give the complete series, or resample it"
        )
    step = (first[order[-1]] - first[order[0]]) / (len(first) - 1)
    tilt = np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))
    if tilt > _LARGEST_TILT:
        raise DataError(
            f"the slices are stacked {np.rad2deg(tilt):.1f} degrees off their normal (gantry tilt); resample the "
            "series to an upright one"
        )
    affine = np.eye(4)
    affine[:3] = np.column_stack([column_step, row_step, step, first[order[0]]])
    return order, affine


def check_directions(*directions: NDArray[np.float64]) -> None:
    """Refuse directions that are not of length one and perpendicular to each other.

    Raises
    ------
    DataError
        Giving them.
    """
    matrix = np.stack(directions)
    if not np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < _UNIT_ERROR:  # NaN too
        found = ", ".join(str(np.round(direction, 4).tolist()) for direction in directions)
        raise DataError(f"directions must be of length one and perpendicular, got {found}")
