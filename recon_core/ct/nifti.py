"""CT volumes from NIfTI files."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.ct.volume import CtVolume, check_size, file_digest, ras_to_lps
from recon_core.errors import CinestreamError, DataError, ResourceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_REMEDY = "convert the CT again with a tool that keeps its geometry (dcm2niix does)"


def load_nifti(path: Path, volume_index: int | None) -> CtVolume:
    """Read a NIfTI file; see `recon_core.ct.load.load_volume`."""
    try:
        import nibabel
    except ImportError as error:
        raise ResourceError("reading NIfTI needs the package nibabel, which is not installed") from error
    from nibabel.imageglobals import LoggingOutputSuppressor

    try:
        with warnings.catch_warnings(), LoggingOutputSuppressor():
            warnings.simplefilter("ignore")
            image: Any = nibabel.load(path, mmap=False)  # the file may go away during the scan
            if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
                raise DataError(f"is {type(image).__name__}, not NIfTI; {_REMEDY}")
            place = _voxels(image, volume_index)
            affine = _affine(image)
            check_size(math.prod(image.shape[:3]))
            hu = np.asarray(image.dataobj[place], np.float32)
    except (CinestreamError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ResourceError(f"cannot be read as NIfTI: {type(error).__name__}: {error}") from error
    return CtVolume(hu, affine, file_digest(path))


def _voxels(image: Any, volume_index: int | None) -> tuple[Any, ...]:  # noqa: ANN401 - nibabel's classes are untyped
    """Where in the array of the file the volume lies."""
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError(f"holds {kind} values; a CT has one number per voxel")
    if len(image.shape) < 3:
        raise DataError(f"has {len(image.shape)} axes; a CT has three")
    further = image.shape[3:]
    n_volumes = math.prod(further)
    if n_volumes != 1 and volume_index is None:
        raise DataError(
            f"holds {n_volumes} volumes ({'x'.join(map(str, image.shape))}); configure which, or cut one out"
        )
    if not 0 <= (volume_index or 0) < n_volumes:
        raise DataError(f"holds {n_volumes} volumes; there is none with the index {volume_index}")
    chosen = np.unravel_index(volume_index or 0, further, order="F") if further else ()
    return (..., *(int(index) for index in chosen)) if further else (...,)


def _affine(image: Any) -> NDArray[np.float64]:  # noqa: ANN401 - nibabel's classes are untyped
    """Index to LPS: the sform where it is set, else the qform."""
    unit = image.header.get_xyzt_units()[0]
    if unit != "mm":
        raise DataError(f"gives its geometry in units {unit!r}, not in mm; {_REMEDY}")
    for affine, code in (image.header.get_sform(coded=True), image.header.get_qform(coded=True)):
        if code > 0:
            return ras_to_lps(affine)
    raise DataError(f"does not say where it lies (sform_code and qform_code are 0); {_REMEDY}")
