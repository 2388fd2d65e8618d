"""Where the pixels of an image lie in the patient, from its ISMRMRD header.

Everything is in mm and in the coordinates of the header and of DICOM: towards the left, the back and the head (LPS).

The header says where the slice lies (``position``) and how it is turned, but not which pixel is at that place. Here it
is pixel ``n // 2``, counted from 0: images of a centred FFT have the origin of the encoding there, and that origin is
what the scanner puts at ``position``. With even sizes, the rule in practice, Gadgetron's DICOM writer does the same
(the first pixel is half a field of view away). With odd sizes ``n // 2`` is the middle of the field of view, and that
writer is half a pixel off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.ct.volume import check_directions
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SAME_PLACE = 0.01  # mm
_SAME_TURN = 1e-4  # of a direction cosine
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """The grid of an image in the patient."""

    position: NDArray[np.float64]
    """``(3,)`` centre of pixel ``n // 2`` along both axes."""
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    """`row`, `column`: ``(3,)`` unit vectors: along a row, towards the next column (x); along a column, towards the
    next row (y)."""
    normal: NDArray[np.float64]
    """``(3,)`` unit vector through the slice; with `row` and `column` it may make a left-handed system."""
    pixel: tuple[float, float]
    """Distance of columns and of rows."""
    matrix: tuple[int, int]
    """Columns and rows."""
    thickness: float
    """Of the slice."""
    doubt: str = ""
    """What the header lacks, in words; empty where it has all."""

    @property
    def first_pixel(self) -> NDArray[np.float64]:
        """``(3,)`` centre of the first pixel of the first row."""
        columns, rows = self.matrix
        back = (columns // 2) * self.pixel[0] * self.row + (rows // 2) * self.pixel[1] * self.column
        return np.asarray(self.position - back)

    @property
    def location(self) -> float:
        """Of the slice along the right-handed normal of rows and columns."""
        return float(self.position @ np.cross(self.row, self.column))

    def parallel(self, other: Plane) -> bool:
        """Whether another image has the same directions, pixels and matrix."""
        return (
            self.matrix == other.matrix
            and np.allclose(self.pixel, other.pixel)
            and np.allclose([self.row, self.column], [other.row, other.column], rtol=0, atol=_SAME_TURN)
        )


def plane_of(header: NDArray[np.void], matrix: tuple[int, int]) -> Plane:
    """Find the grid of an image.

    Parameters
    ----------
    header
        One record of `IMAGE_HEADER`.
    matrix
        Columns and rows of the pixels; there are senders that exchange them in the header.

    Returns
    -------
    Plane
        Without directions in the header that of an axial slice, rows to the left and columns to the back; without a
        field of view with pixels of 1 mm. `Plane.doubt` says so.
    """
    doubts = []
    position = header["position"].astype(np.float64)
    if not np.isfinite(position).all():
        position, doubts = np.zeros(3), ["position"]
    row, column, normal = (header[name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir"))
    try:
        check_directions(row, column)
    except DataError:
        row, column, normal = np.eye(3)
        doubts.append("directions (taken for axial)")
    row /= np.linalg.norm(row)
    column -= (column @ row) * row  # single precision and rounded texts leave some
    column /= np.linalg.norm(column)
    across = np.cross(row, column)
    width, height, thickness = header["field_of_view"].astype(np.float64).tolist()
    if not (width > 0 and height > 0 and np.isfinite((width, height)).all()):
        width, height = float(matrix[0]), float(matrix[1])
        doubts.append("field of view (taken for 1 mm pixels)")
    return Plane(
        position=position,
        row=row,
        column=column,
        normal=-across if normal @ across < 0 else across,
        pixel=(width / matrix[0], height / matrix[1]),
        matrix=matrix,
        thickness=thickness if np.isfinite(thickness) and thickness > 0 else 0.0,
        doubt=f"no usable {' and '.join(doubts)} in the image header" if doubts else "",
    )


def slice_step(planes: Sequence[Plane]) -> NDArray[np.float64] | None:
    """From each slice to the next.

    Parameters
    ----------
    planes
        In order.

    Returns
    -------
    ndarray or None
        ``(3,)``; of one slice its thickness along its normal, 1 mm where that is unknown. None if they are not
        parallel, not equally far apart, or not stacked along their normal.
    """
    first = planes[0]
    if len(planes) == 1:
        return first.normal * (first.thickness or 1.0)
    if not all(first.parallel(plane) for plane in planes):
        return None
    positions = np.stack([plane.position for plane in planes])
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    expected = positions[0] + np.arange(len(planes))[:, None] * step
    sideways = step - (step @ first.normal) * first.normal
    if np.abs(positions - expected).max() > _SAME_PLACE or np.abs(sideways).max() > _SAME_PLACE:
        return None
    return step if np.linalg.norm(step) > _SAME_PLACE else None


def affine_lps(plane: Plane, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(4, 4)`` from the indices of column, row and slice, from 0, to mm in LPS.

    Parameters
    ----------
    plane
        The first slice.
    step
        ``(3,)`` from a slice to the next.
    """
    affine = np.eye(4)
    affine[:3] = np.column_stack([plane.pixel[0] * plane.row, plane.pixel[1] * plane.column, step, plane.first_pixel])
    return affine


def affine_ras(plane: Plane, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `affine_lps`, to mm towards the right, the front and the head, as NIfTI wants it."""
    return np.asarray(_LPS_TO_RAS @ affine_lps(plane, step))
