"""K-space files that are not ISMRMRD: which layout a file has, and its k-space slice by slice in one order of axes.

Known are the MATLAB files of the CMRxRecon challenges (2023 to 2025), HDF5 files as fastMRI has them, with the variant
that PromptMR made of it for cine, and plain arrays of NumPy, HDF5 and BART. Nothing larger than some
slices is held in memory, where the file allows it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.files.arrays import open_arrays, times
from gadgets.files.hdf5 import complex_of, damage_of
from gadgets.wire.header import parse_header
from recon_core.budget import free_bytes
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.files.arrays import Arrays

    _Read = Callable[[int, int], NDArray[np.complex64]]

# the whole k-space before an undersampled one
_KEYS = (r"kspace(_single)?_full", r"kspace", r"kus", r"kspace(_single)?_sub\d+")
_MASK_KEYS = (r"mask", r"mask\d+")
_PLAIN_KEYS = ("kspace", "kdata", "ksp", "data")
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
    oversampling: float = 2.0
    """Of the readout, as files of this layout usually have it."""
    note: str = ""
    """What was found out about the order of the axes, if it is not that of the layout."""

    def slices(self) -> Iterator[NDArray[np.complex64]]:
        """The k-space of every slice ``(frame, coil, ky, kx)``, in order."""
        n_slices, *sizes = self.shape
        size, free = 8 * math.prod(sizes), free_bytes()
        if free is not None and size > free:
            raise ResourceError(
                f"a slice of {self.key} takes {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
            )
        step = max(1, min(self.together, _MOST_BYTES // size))
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
    with open_arrays(path) as arrays:
        with damage_of(path):
            scan = _layout(path, arrays)
        if min(scan.shape) < 1:
            raise DataError(f"{path} holds an empty k-space: {scan.key} ({times(scan.shape)})")
        yield dataclasses.replace(scan, read=_reporting(path, scan.read))


def _reporting(path: Path, read: _Read) -> _Read:
    """Read, and report damage."""

    def reporting(first: int, end: int) -> NDArray[np.complex64]:
        with damage_of(path, "its k-space"):
            return read(first, end)

    return reporting


def _layout(path: Path, arrays: Arrays) -> ForeignScan:
    """Whose layout the arrays of a file have."""
    node, file = arrays.named.get("kspace"), arrays.file
    if node is not None and node.dtype.kind == "c" and node.ndim < 5 and _is_fastmri(node, file):
        return _of_fastmri(path, file, node)
    if "dataset" in file and "xml" in file["dataset"]:
        raise DataError(f"{path} is an ISMRMRD file already; replay and doctor take it as it is")
    key = _first_key(_KEYS, arrays.named)
    if arrays.kind == "MATLAB" or (arrays.kind == "HDF5" and key not in (None, "kspace")):
        return _of_matlab(path, arrays)
    return _of_plain(path, arrays)


def _is_fastmri(node: Any, file: Mapping[str, Any]) -> bool:  # noqa: ANN401 - h5py's objects
    """Whether the file says what the axes are, as fastMRI and PromptMR do."""
    return "ismrmrd_header" in file or any("shape" in one.attrs for one in (node, file) if hasattr(one, "attrs"))


def _of_plain(path: Path, arrays: Arrays) -> ForeignScan:
    """``(frame, coil, ky, kx)`` or ``(slice, frame, coil, ky, kx)``."""
    fitting = [name for name, item in arrays.named.items() if len(item.shape) in (4, 5) and _is_complex(item.dtype)]
    key = next((name for name in _PLAIN_KEYS if name in fitting), fitting[0] if len(fitting) == 1 else None)
    if key is None:
        raise DataError(
            f"{path} has no k-space of a known layout: expected one complex array (frame, coil, ky, kx) or (slice, "
            "frame, coil, ky, kx), CMRxRecon (kspace_full, kspace_single_full, kspace, kus or kspace_sub04 of 4 or 5 "
            "axes, 4 for one coil) or fastMRI (complex kspace with ismrmrd_header or the attribute shape); it has "
            f"{arrays.contents()}"
        )
    array = arrays.named[key]
    slices, frames, coils, lines, samples = (1,) * (5 - len(array.shape)) + tuple(array.shape)

    def read(first: int, end: int) -> NDArray[np.complex64]:
        values = np.asarray(array[first:end]) if len(array.shape) == 5 else np.asarray(array[()])[None]
        return _complex64(values)

    origin = "BART" if arrays.kind == "BART" else "array"
    return ForeignScan(origin, key, (slices, frames, coils, lines, samples), read, oversampling=1.0)


def _is_complex(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "c" or bool(dtype.names and len(dtype.names) == 2)


def read_mask(path: Path, frames: int, lines: int, samples: int) -> NDArray[np.bool_]:
    """Read which lines, or points of them, were measured.

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
        ``(frame, ky, kx)``, the last axis of length one where it is the same all along every readout.

    Raises
    ------
    DataError
        If there is no mask of this size in the file.
    """
    with open_arrays(path) as arrays, damage_of(path):
        key = _first_key(_MASK_KEYS, arrays.named)
        if key is None:
            raise DataError(f"{path} holds no mask; it has {arrays.contents()}")
        mask = np.asarray(arrays.named[key][()]) != 0
    shapes = {
        (lines, samples): mask[None],
        (frames, lines, samples): mask,
        (lines,): mask[None, ..., None],
        (frames, lines): mask[..., None],
    }
    if mask.shape not in shapes:
        raise DataError(
            f"{key} of {path} has the size {times(mask.shape)}; the k-space has {frames} frames of {lines} lines x "
            f"{samples} samples"
        )
    full = shapes[mask.shape]
    if (full.any(axis=2) == full.all(axis=2)).all():
        full = full[:, :, :1]
    return np.broadcast_to(full, (frames, lines, full.shape[2]))


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


def _of_matlab(path: Path, arrays: Arrays) -> ForeignScan:
    """``(frame, slice, coil, ky, kx)``, MATLAB's order from behind; one coil has no axis for it."""
    key = _first_key(_KEYS, arrays.named)
    array = arrays.named.get(key or "")
    if key is None or array is None or array.dtype.kind not in "cfV" or len(array.shape) not in (4, 5):
        return _of_plain(path, arrays)
    frames, slices, *rest = array.shape
    lines, samples = rest[-2:]

    def read(first: int, end: int) -> NDArray[np.complex64]:
        values = _complex64(np.asarray(array[:, first:end]))
        return values.reshape(frames, end - first, -1, lines, samples).swapaxes(0, 1)

    shape = (slices, frames, rest[0] if len(rest) == 3 else 1, lines, samples)
    return ForeignScan("CMRxRecon", key, shape, read, chunks[1] if (chunks := getattr(array, "chunks", None)) else 1)


def _of_fastmri(path: Path, file: Any, node: Any) -> ForeignScan:  # noqa: ANN401 - h5py's objects
    """``(slice, coil, kx, ky)``; PromptMR's cine has ``frame * slices + slice`` on the first axis."""
    sizes = tuple(node.shape)
    stored = tuple(int(value) for value in np.ravel(node.attrs.get("shape", file.attrs.get("shape", ()))))
    xml = file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
    header = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else str(xml)
    if len(sizes) not in (3, 4) or not (header or len(stored) == 5):
        raise DataError(
            f"{path} has a complex kspace of {times(sizes)}; expected (slice, coil, readout, phase) with an "
            "ismrmrd_header, or with the attribute shape = (frame, slice, coil, ky, kx)"
        )
    frames, slices = stored[:2] if len(stored) == 5 else (1, sizes[0])
    coils = sizes[1] if len(sizes) == 4 else 1
    samples, lines = sizes[-2:]
    turned = _is_turned(header, samples, lines)
    if turned:
        samples, lines = lines, samples
    if frames * slices != sizes[0] or (len(stored) == 5 and stored[2:] != (coils, lines, samples)):
        raise DataError(f"{path} has a kspace of {times(sizes)}, but its attribute shape says {times(stored)}")

    def read(first: int, end: int) -> NDArray[np.complex64]:
        planes = [node[first + frame * slices : end + frame * slices] for frame in range(frames)]
        values = _complex64(np.stack(planes, axis=1))
        values = values.reshape(end - first, frames, coils, *sizes[-2:])
        return values if turned else values.swapaxes(3, 4)

    note = f"the axes are (slice, coil, ky, kx), as the header has readouts of {samples} samples" if turned else ""
    origin = "fastMRI" if header else "PromptMR"
    return ForeignScan(origin, "kspace", (slices, frames, coils, lines, samples), read, 1, header, note=note)


def _is_turned(header: str, samples: int, lines: int) -> bool:
    """Whether only the other order of the last two axes has readouts as long as the header says."""
    if not header or samples == lines:
        return False
    columns = parse_header(header).encodings[0].encoded.matrix[0]
    return lines == columns != samples


def _complex64(values: NDArray[Any]) -> NDArray[np.complex64]:
    """Complex numbers of either precision, or pairs as MATLAB stores them in HDF5."""
    if values.dtype == _PAIRS and values.flags.c_contiguous:
        return values.view(np.complex64)  # without a copy
    return complex_of(values).astype(np.complex64, copy=False)


def _first_key(patterns: tuple[str, ...], names: Mapping[str, object]) -> str | None:
    return next((name for pattern in patterns for name in sorted(names) if re.fullmatch(pattern, name)), None)
