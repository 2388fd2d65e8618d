"""CT volumes from a group of images in an ISMRMRD HDF5 file, of any version of its header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.ct.volume import CtVolume, check_directions, check_size, file_digest, stack_slices
from recon_core.errors import CinestreamError, DataError, ResourceError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_CLOSE = 1e-4


def load_hdf5(path: Path, group: str) -> CtVolume:
    """Read a group of images; see `recon_core.ct.load.load_volume`.

    The images hold Hounsfield units, and are either one slice each or one volume. As everywhere in ISMRMRD, pixel
    ``N/2`` of every axis lies at the position.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            node = _find(file, path, group)
            n_images, n_channels, *size = node["data"].shape
            if n_channels != 1 or node["data"].dtype.kind not in "if":
                raise DataError(
                    f"{node.name} holds {n_channels} channels of {node['data'].dtype}; a CT is one channel of signed "
                    "integers or floating-point numbers, in HU"
                )
            check_size(int(np.prod([n_images, *size])))
            headers = node["header"][()]
            hu = np.asarray(node["data"][:, 0], np.float32)  # (image, z, y, x)
        if len(headers) != n_images:
            raise DataError(f"has {len(headers)} headers for {n_images} images")
        order, affine = _geometry(headers, tuple(size))
    except (CinestreamError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ResourceError(f"is damaged, or its images are no ISMRMRD images ({error})") from error
    volume = hu[order].reshape(-1, *hu.shape[2:]).T
    return CtVolume(volume, affine, file_digest(path))


def _find(file: Any, path: Path, group: str) -> Any:  # noqa: ANN401 - h5py is untyped
    """The group of images with this name, or the only one."""
    import h5py

    found = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Group) and {"header", "data"} <= set(item) and getattr(item["data"], "ndim", 0) == 5:
            found.append(name)

    file.visititems(note)
    if group in found or (not group and len(found) == 1):
        return file[group or found[0]]
    names = ", ".join(f"{path}/{name}" for name in sorted(found)) or "none"
    asked = f"there is no group of images {group!r}" if group else "there is not one group of images"
    raise SettingsError(f"{path}: {asked}; groups of images: {names}")


def _geometry(headers: NDArray[Any], size: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Order of the images, and the affine for an index of x, y and z."""
    names = ("matrix_size", "field_of_view", "position", "read_dir", "phase_dir", "slice_dir")
    matrix, field_of_view, position, read, phase, through = (headers[name].astype(np.float64) for name in names)
    for values, what in (
        (matrix, "sizes"),
        (field_of_view, "fields of view"),
        (read, "read_dir"),
        (phase, "phase_dir"),
    ):
        if not np.abs(values - values[0]).max() < _CLOSE * max(1, np.abs(values).max()):
            raise DataError(f"mixes images of different {what}; give a group with one series only")
    if tuple(matrix[0, ::-1].astype(int)) != size:
        raise DataError(f"has images of {size} (z, y, x) and headers that say {tuple(matrix[0, ::-1].astype(int))}")
    extent = field_of_view[0] / matrix[0]
    n_volume = 2 if size[0] == 1 else 3
    if not (extent[:n_volume] > 0).all() or not np.isfinite(extent).all():
        raise DataError(f"has a field of view of {field_of_view[0].tolist()} mm")
    check_directions(read[0], phase[0])
    column_step, row_step = read[0] * extent[0], phase[0] * extent[1]
    first = position - matrix[0, 0] / 2 * column_step - matrix[0, 1] / 2 * row_step
    if size[0] == 1:
        return stack_slices(first, column_step, row_step)
    if len(headers) != 1:
        raise DataError(f"holds {len(headers)} volumes; give a group with one")
    check_directions(read[0], phase[0], through[0])
    step = through[0] * extent[2]
    affine = np.eye(4)
    affine[:3] = np.column_stack([column_step, row_step, step, first[0] - matrix[0, 2] / 2 * step])
    return np.zeros(1, np.intp), affine
