"""Arrays in files that are not ISMRMRD: MATLAB, HDF5, NumPy and BART, all by name."""

from __future__ import annotations

import math
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gadgets.files.hdf5 import check_fields, damage_of, is_hdf5, open_hdf5
from recon_core.budget import free_bytes
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_MATLAB_5 = b"MATLAB 5.0 MAT-file"
_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_BART = (".cfl", ".hdr")
_MOST_DIMENSIONS = 32
# of BART's dimensions, as its ``DIMS`` has them
_READ, _LINES, _COIL, _TIME, _TIME2, _SLICE = 0, 1, 3, 10, 11, 13


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file that is open for reading."""

    kind: Literal["MATLAB", "HDF5", "NumPy", "BART"]
    """Who writes such files."""
    named: Mapping[str, Any]
    """By name: data sets of h5py or arrays, which have `shape` and `dtype` and can be sliced."""
    file: Mapping[str, Any] = field(default_factory=dict)
    """All that the file has, where it is HDF5."""

    def contents(self) -> str:
        """What there is, for a message."""
        return ", ".join(f"{name} ({times(item.shape)})" for name, item in sorted(self.named.items())) or "no arrays"


def times(sizes: tuple[int, ...]) -> str:
    """Sizes for a message."""
    return " x ".join(map(str, sizes)) or "a single value"


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Open a file for reading.

    Parameters
    ----------
    path
        MATLAB file (version 5 needs scipy), HDF5, ``.npy``, ``.npz``, or ``.cfl`` with ``.hdr``, of which either may be
        named.

    Raises
    ------
    ResourceError
        If it cannot be read, or takes more memory than there is.
    DataError
        If it is none of these, or damaged.
    """
    if path.suffix in _BART:
        yield _bart(path)
        return
    begin = _beginning(path)
    if begin.startswith(_MATLAB_5):
        yield _matlab_5(path)
    elif begin.startswith((_NUMPY, _ZIP)):
        yield _numpy(path, begin)
    elif is_hdf5(path):
        with open_hdf5(path) as file:
            with damage_of(path):
                found = {name: item for name in file if hasattr(item := file.get(name), "shape")}
                for item in found.values():
                    check_fields(item)
                pairs = any({"real", "imag"} <= set(item.dtype.names or ()) for item in found.values())
                matlab = pairs or any("MATLAB_class" in item.attrs for item in found.values())
            yield Arrays("MATLAB" if matlab else "HDF5", found, file)
    else:
        raise DataError(f"{path} is neither HDF5 (as MATLAB's -v7.3 files are), nor a MATLAB 5, NumPy or BART file")


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MATLAB_5))
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error


def _check_size(path: Path, size: int) -> None:
    free = free_bytes()
    if free is not None and size > free:
        raise ResourceError(f"{path} holds {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free")


def _matlab_5(path: Path) -> Arrays:
    """All arrays, their axes from behind, as HDF5 has them."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ResourceError(
            f"{path} is a MATLAB 5 file, which is read with scipy: pip install scipy, or save it in MATLAB with -v7.3"
        ) from error
    with damage_of(path):
        document = loadmat(path)
    found = {name: np.transpose(value) for name, value in document.items() if isinstance(value, np.ndarray)}
    return Arrays("MATLAB", found)


def _numpy(path: Path, begin: bytes) -> Arrays:
    with damage_of(path):
        if begin.startswith(_NUMPY):
            return Arrays("NumPy", {"array": np.load(path, mmap_mode="r", allow_pickle=False)})
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(info.file_size for info in archive.infolist()))
        with np.load(path, allow_pickle=False) as archive:
            return Arrays("NumPy", {name: archive[name] for name in archive.files})


def _bart(path: Path) -> Arrays:
    """The one array, as ``(slice, frame, coil, ky, kx)``."""
    header, data = (path.with_suffix(suffix) for suffix in (".hdr", ".cfl"))
    try:
        lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
        stored = data.stat().st_size
    except OSError as error:
        raise ResourceError(f"cannot read {error.filename}: {error.strerror}; BART has a .hdr and a .cfl") from error
    with damage_of(header):
        at = next((number for number, line in enumerate(lines) if line.strip() == "# Dimensions"), len(lines))
        sizes = [int(word) for word in " ".join(lines[at + 1 : at + 2]).split()]
    if not 0 < len(sizes) <= _MOST_DIMENSIONS or min(sizes) < 1 or 8 * math.prod(sizes) != stored:
        raise DataError(f"{header} says {times(tuple(sizes))} complex numbers, and {data} has {stored} bytes")
    sizes += [1] * (_MOST_DIMENSIONS - len(sizes))
    time = _TIME if sizes[_TIME2] == 1 else _TIME2
    used = (_SLICE, time, _COIL, _LINES, _READ)
    further = [number for number, size in enumerate(sizes) if size > 1 and number not in used]
    if further:
        names = ", ".join(f"{number} ({sizes[number]})" for number in further)
        raise DataError(
            f"{header} has the dimensions {times(tuple(sizes[: max(further) + 1]))}; expected read, phase 1, coil (3), "
            f"time (10 or 11) and slice (13) only, got also {names}"
        )
    with damage_of(data):
        values: NDArray[np.complex64] = np.memmap(data, "<c8", "r", shape=tuple(sizes[number] for number in used))
    return Arrays("BART", {"cfl": values})
