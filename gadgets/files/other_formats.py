"""K-space files that are not ISMRMRD: which layout a file has, and its k-space slice by slice in one order of axes.

Known are the MATLAB files of the CMRxRecon challenges (2023 to 2025), and HDF5 files as fastMRI has them, with the
variant that PromptMR made of it for cine. Nothing larger than some slices is held in memory, where the file allows it.
"""

from __future__ import annotations

import csv
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.files.hdf5 import is_hdf5, open_hdf5
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# the whole k-space before an undersampled one
_KEYS = (r"kspace(_single)?_full", r"kspace", r"kus", r"kspace(_single)?_sub\d+")
_MASK_KEYS = (r"mask", r"mask\d+")
_MATLAB_5 = b"MATLAB 5.0 MAT-file"
_PAIRS = np.dtype([("real", "<f4"), ("imag", "<f4")])
_MOST_BYTES = 1 << 30  # of the slices that are read at once because the file stores them together


@dataclass(frozen=True)
class ForeignScan:
    """A k-space file that is open for reading."""

    origin: str
    """Whose layout it has."""
    key: str
    """Name of the array in the file."""
    shape: tuple[int, int, int, int, int]
    """Slices, frames, coils, ky and kx."""
    read: Callable[[int, int], NDArray[np.complex64]]
    """Gives ``(slice, frame, coil, ky, kx)`` complex64 of a range of slices."""
    together: int = 1
    """Slices that the file stores together, so that they are best read at once."""
    header: str = ""
    """ISMRMRD header as XML, where the file has one."""

    def slices(self) -> Iterator[NDArray[np.complex64]]:
        """The k-space of every slice ``(frame, coil, ky, kx)``, in order."""
        n_slices, *sizes = self.shape
        step = max(1, min(self.together, _MOST_BYTES // (8 * int(np.prod(sizes)))))
        for first in range(0, n_slices, step):
            yield from self.read(first, min(first + step, n_slices))


@contextmanager
def open_foreign(path: Path) -> Iterator[ForeignScan]:
    """Open a k-space file of a known layout.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ResourceError
        If it cannot be opened, or needs scipy, which is not installed.
    DataError
        If the layout is not known; the message says what the file holds.
    """
    if _is_matlab_5(path):
        arrays = _load_matlab_5(path)
        yield _of_matlab(path, {name: _Array.of(array) for name, array in arrays.items()})
        return
    with _open_arrays(path) as file:
        arrays = {name: item for name, item in file.items() if hasattr(item, "shape")}
        node = file.get("kspace")
        if node is not None and hasattr(node, "shape") and node.dtype.kind == "c" and node.ndim < 5:
            yield _of_fastmri(path, file, node)
        elif "dataset" in file and "xml" in file["dataset"]:
            raise DataError(f"{path} is an ISMRMRD file already; replay and doctor take it as it is")
        else:
            yield _of_matlab(path, {name: _Array.of(item) for name, item in arrays.items()})


def read_mask(path: Path, frames: int, lines: int, samples: int) -> NDArray[np.bool_]:
    """Read which lines were measured.

    Parameters
    ----------
    path
        MATLAB file with ``mask`` or ``mask04`` and so on: (kx, ky) or (kx, ky, frame) in MATLAB's order; also (ky) or
        (frame, ky).
    frames, lines, samples
        Size of the k-space.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.

    Raises
    ------
    DataError
        If there is no mask of this size in the file, or it is not the same all along a readout.
    """
    if _is_matlab_5(path):
        arrays = _load_matlab_5(path)
    else:
        with _open_arrays(path) as file:
            arrays = {name: item[()] for name, item in file.items() if hasattr(item, "shape")}
    key = _first_key(_MASK_KEYS, arrays)
    if key is None:
        raise DataError(f"{path} holds no mask; it has {_contents(arrays)}")
    mask = np.asarray(arrays[key]) != 0
    shapes = {
        (lines, samples): mask[None],
        (frames, lines, samples): mask,
        (lines,): mask[None, ..., None],
        (frames, lines): mask[..., None],
    }
    if mask.shape not in shapes:
        raise DataError(
            f"{key} of {path} has the size {_times(mask.shape)}; the k-space has {frames} frames of {lines} lines x "
            f"{samples} samples"
        )
    full = shapes[mask.shape]
    if (full.any(axis=2) != full.all(axis=2)).any():
        raise DataError(
            f"{key} of {path} changes along the readout, as ktRadial masks do; only whole lines can be reconstructed, "
            "take a Uniform or Gaussian pattern"
        )
    return np.broadcast_to(full[:, :, 0], (frames, lines))


def read_info(path: Path) -> dict[str, float]:
    """Read the parameters next to a CMRxRecon file: ``cine_sax_info.csv`` for ``cine_sax.mat``.

    Parameters
    ----------
    path
        The k-space file.

    Returns
    -------
    dict
        Numbers by name without units; empty where there is no such file.
    """
    table = path.with_name(f"{path.stem}_info.csv")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"cannot read {table}: {error}") from error
    values = {}
    for name, value, *_ in (row for row in csv.reader(text.splitlines()) if len(row) > 1):
        try:
            number = float(value)
        except ValueError:
            continue
        if np.isfinite(number):
            values[re.sub(r"\(.*\)", "", name).strip()] = number
    return values


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Array:
    """An array in a file or in memory, with as many axes as it has."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    values: Any = field(repr=False)

    @classmethod
    def of(cls, values: Any) -> _Array:  # noqa: ANN401 - a dataset of h5py or an array
        return cls(tuple(values.shape), values.dtype, getattr(values, "chunks", None), values)


def _of_matlab(path: Path, arrays: Mapping[str, _Array]) -> ForeignScan:
    """``(frame, slice, coil, ky, kx)``, MATLAB's order from behind; one coil has no axis for it."""
    key = _first_key(_KEYS, arrays)
    array = arrays.get(key or "")
    if key is None or array is None or array.dtype.kind not in "cfV" or len(array.shape) not in (4, 5):
        raise DataError(
            f"{path} has no k-space of a known layout: expected CMRxRecon (kspace_full, kspace_single_full, kspace, "
            "kus or kspace_sub04 of 4 or 5 axes, 4 for one coil) or fastMRI (complex kspace with ismrmrd_header or "
            f"the attribute shape); it has {_contents(arrays)}"
        )
    frames, slices, *rest = array.shape
    lines, samples = rest[-2:]

    def read(first: int, end: int) -> NDArray[np.complex64]:
        values = _complex(_values(path, array.values, (slice(None), slice(first, end))))
        return values.reshape(frames, end - first, -1, lines, samples).swapaxes(0, 1)

    shape = (slices, frames, rest[0] if len(rest) == 3 else 1, lines, samples)
    return ForeignScan("CMRxRecon", key, shape, read, array.chunks[1] if array.chunks else 1)


def _of_fastmri(path: Path, file: Any, node: Any) -> ForeignScan:  # noqa: ANN401 - h5py's objects
    """``(slice, coil, kx, ky)``; PromptMR's cine has ``frame * slices + slice`` on the first axis."""
    sizes = tuple(node.shape)
    stored = tuple(int(value) for value in np.ravel(node.attrs.get("shape", file.attrs.get("shape", ()))))
    xml = file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
    header = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else str(xml)
    if len(sizes) not in (3, 4) or not (header or len(stored) == 5):
        raise DataError(
            f"{path} has a complex kspace of {_times(sizes)}; expected (slice, coil, readout, phase) with an "
            "ismrmrd_header, or with the attribute shape = (frame, slice, coil, ky, kx)"
        )
    frames, slices = stored[:2] if len(stored) == 5 else (1, sizes[0])
    coils = sizes[1] if len(sizes) == 4 else 1
    samples, lines = sizes[-2:]
    if frames * slices != sizes[0] or (len(stored) == 5 and stored[2:] != (coils, lines, samples)):
        raise DataError(f"{path} has a kspace of {_times(sizes)}, but its attribute shape says {_times(stored)}")

    def read(first: int, end: int) -> NDArray[np.complex64]:
        planes = [
            _values(path, node, (slice(first + frame * slices, end + frame * slices),)) for frame in range(frames)
        ]
        values = _complex(np.stack(planes, axis=1))
        return values.reshape(end - first, frames, coils, samples, lines).swapaxes(3, 4)

    return ForeignScan(
        "fastMRI" if header else "PromptMR", "kspace", (slices, frames, coils, lines, samples), read, 1, header
    )


def _complex(values: NDArray[Any]) -> NDArray[np.complex64]:
    """Complex numbers from pairs of ``real`` and ``imag``, as MATLAB stores them in HDF5, of either precision."""
    if values.dtype.names:
        if not {"real", "imag"} <= set(values.dtype.names):
            raise DataError(f"expected pairs of real and imag, got {', '.join(values.dtype.names)}")
        if values.dtype == _PAIRS and values.flags.c_contiguous:
            return values.view(np.complex64)  # without a copy
        out = np.empty(values.shape, np.complex64)
        out.real, out.imag = values["real"], values["imag"]
        return out
    return values.astype(np.complex64, copy=False)


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _open_arrays(path: Path) -> Iterator[Any]:
    if not is_hdf5(path):
        raise DataError(f"{path} is neither HDF5 (as MATLAB's -v7.3 files are) nor a MATLAB 5 file")
    with open_hdf5(path) as file:
        yield file


def _values(path: Path, array: Any, where: tuple[slice, ...]) -> NDArray[Any]:  # noqa: ANN401 - dataset or array
    try:
        return np.asarray(array[where])
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is damaged: its k-space cannot be read further ({error})") from error


def _is_matlab_5(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MATLAB_5)) == _MATLAB_5
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error


def _load_matlab_5(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a MATLAB 5 file, their axes from behind, as HDF5 has them."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ResourceError(
            f"{path} is a MATLAB 5 file, which is read with scipy: pip install scipy, or save it in MATLAB with -v7.3"
        ) from error
    try:
        document = loadmat(path)
    except Exception as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return {name: np.transpose(value) for name, value in document.items() if isinstance(value, np.ndarray)}


def _first_key(patterns: tuple[str, ...], names: Mapping[str, object]) -> str | None:
    return next((name for pattern in patterns for name in sorted(names) if re.fullmatch(pattern, name)), None)


def _contents(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_times(item.shape)})" for name, item in sorted(arrays.items())) or "no arrays"


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "a single value"
