"""Where the pixels of an MR slice lie in a CT, and what the CT has there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from recon_core.ct.volume import check_directions
from recon_core.errors import DataError, ResourceError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from recon_core.ct.volume import CtVolume

Vector = tuple[float, float, float]

AIR = -1000.0
_INSIDE = 1e-6  # voxels: a point on the outermost voxel centres is inside, whatever rounding says


@dataclass(frozen=True, kw_only=True)
class SliceGeometry:
    """The grid of an MR slice in the patient."""

    position: Vector
    """Centre of the slice, mm, LPS; the ISMRMRD header has it."""
    read_dir: Vector
    phase_dir: Vector
    slice_dir: Vector
    """`read_dir`, `phase_dir`, `slice_dir`: Unit vectors in LPS, of increasing column, of increasing row, and through
    the slice."""
    matrix: tuple[int, int]
    """Columns and rows of the image that the CT is brought to: unflipped, as the inverse FFT makes it."""
    field_of_view: tuple[float, float]
    """Of that image along columns and rows, mm."""
    thickness: float
    """Of the slice, mm."""
    table_position: Vector = (0.0, 0.0, 0.0)
    """The header's ``patient_table_position``, mm."""
    centre: tuple[float, float] | None = None
    """Column and row of the pixel that lies at `position`. None is half the matrix, which is how Gadgetron places
    images; in an image of the centred FFT it is ``N//2``, another place where a size is odd."""

    def check(self) -> None:
        """Refuse what is no slice.

        Raises
        ------
        DataError
            If sizes are not positive, numbers not finite, or directions not perpendicular.
        """
        if min(self.matrix) < 1 or not all(size > 0 for size in (*self.field_of_view, self.thickness)):
            raise DataError(
                f"a slice must have pixels, a field of view and a thickness; got {self.matrix}, "
                f"{self.field_of_view} mm and {self.thickness} mm"
            )
        numbers = (*self.position, *self.table_position, *self.field_of_view, self.thickness)
        if not np.isfinite(numbers).all():
            raise DataError(f"the place of the slice is not finite: {self.position} mm")
        check_directions(*(np.array(each, np.float64) for each in (self.read_dir, self.phase_dir, self.slice_dir)))


class Transform(NamedTuple):
    """From MR to CT."""

    matrix: NDArray[np.float64]
    """``(4, 4)`` float64: a point of the MR in LPS, mm, to that of the CT."""
    digest: str
    """SHA-256 of the file; empty where there is none."""


def load_transform(path: Path, space: Literal["lps", "ras"] = "lps") -> Transform:
    """Read a transform from fixed (MR) to moving (CT), as registration programs write it.

    Parameters
    ----------
    path
        Text of 4 x 4 numbers; lines that begin with # are passed over.
    space
        ``lps`` as in ITK, ``ras`` as in the matrices of ITK-SNAP and greedy.

    Returns
    -------
    Transform
        In LPS.

    Raises
    ------
    SettingsError
        If there is no such file.
    ResourceError
        If it cannot be read.
    DataError
        If it does not hold an affine transform.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        lines = [line for line in content.decode().splitlines() if not line.lstrip().startswith("#")]
        matrix = np.array([line.split() for line in lines if line.split()], np.float64)
    except ValueError as error:
        raise DataError(f"{path}: must be text of 4 x 4 numbers ({error})") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise DataError(f"{path}: must be 4 x 4 finite numbers, the last four 0 0 0 1; got {matrix.shape} numbers")
    if not np.linalg.det(matrix[:3, :3]) > 0:
        raise DataError(f"{path}: the transform mirrors or flattens; a registration does neither")
    if space == "ras":
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        matrix = flip @ matrix @ flip
    return Transform(matrix, hashlib.sha256(content).hexdigest())


def resample(
    volume: CtVolume,
    geometry: SliceGeometry,
    *,
    transform: NDArray[np.float64] | None = None,
    frame: Literal["patient", "table"] = "patient",
    slab_samples: int = 5,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring a CT to the grid of an MR slice, by trilinear interpolation, averaged across its thickness.

    Parameters
    ----------
    volume
        The CT.
    geometry
        The slice.
    transform
        ``(4, 4)``: a point of the MR to that of the CT, LPS, mm; None where they share the patient frame.
    frame
        ``table`` takes the position of the table off the points of the MR.
    slab_samples
        Planes across the thickness that are averaged; 1 takes the middle.

    Returns
    -------
    tuple of ndarray
        ``(y, x)`` float32 in HU, and ``(y, x)`` bool, True where all planes lie inside the CT; what lies outside has
        -1000 HU.

    Raises
    ------
    DataError
        If `SliceGeometry.check` refuses the slice.
    """
    geometry.check()
    to_index = np.linalg.inv(volume.affine)
    if transform is not None:
        to_index = to_index @ transform
    turn, shift = to_index[:3, :3], to_index[:3, 3]
    origin = np.array(geometry.position, np.float64)
    if frame == "table":
        origin = origin - geometry.table_position
    n_x, n_y = geometry.matrix
    centre_x, centre_y = geometry.centre or (n_x / 2, n_y / 2)
    per_x, per_y = geometry.field_of_view[0] / n_x, geometry.field_of_view[1] / n_y
    columns = (np.arange(n_x) - centre_x)[:, None] * (per_x * turn @ geometry.read_dir)
    rows = (np.arange(n_y) - centre_y)[:, None] * (per_y * turn @ geometry.phase_dir)
    middle = turn @ origin + shift + rows[:, None] + columns  # (y, x, 3)
    across = geometry.thickness * (turn @ geometry.slice_dir)
    total = np.zeros((n_y, n_x))
    cover = np.ones((n_y, n_x), bool)
    for place in (np.arange(slab_samples) + 0.5) / slab_samples - 0.5:
        values, inside = _interpolate(volume.hu, middle + place * across)
        total += values
        cover &= inside
    return (total / slab_samples).astype(np.float32), cover


def _interpolate(
    volume: NDArray[np.float32], index: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Trilinear values at ``(y, x, 3)``, and whether they lie inside."""
    n_i, n_j, n_k = volume.shape
    last = np.array(volume.shape) - 1
    inside = np.asarray(((index >= -_INSIDE) & (index <= last + _INSIDE)).all(-1))
    index = np.ascontiguousarray(index[inside].T)
    lower = np.clip(np.floor(index), 0, last[:, None] - 1)
    above = index - lower
    # Both orders in memory come from the readers; a lookup in one axis is several times as fast as in three.
    if volume.flags.f_contiguous:
        flat, steps = volume.T.reshape(-1), (1, n_i, n_i * n_j)
    else:
        flat, steps = volume.reshape(-1), (n_j * n_k, n_k, 1)
    corner = lower.astype(np.intp).T @ np.array(steps)
    values = np.zeros(len(corner))
    for bits in np.ndindex(2, 2, 2):
        shares = [part if bit else 1 - part for part, bit in zip(above, bits, strict=True)]
        offset = sum(step for step, bit in zip(steps, bits, strict=True) if bit)
        values += shares[0] * shares[1] * shares[2] * flat.take(corner + offset)
    result: NDArray[np.float64] = np.full(inside.shape, AIR)
    result[inside] = values
    return result, inside


def window(hu: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Bring HU from between the limits to [0, 1]; what lies beyond is cut."""
    low, high = limits
    return np.asarray(np.clip((hu - low) / (high - low), 0, 1), np.float32)
