"""What raw files and image files have in common in HDF5."""

from __future__ import annotations

import errno
import io
import logging
import uuid
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gadgets.files.lengths import sound_rows
from recon_core.budget import free_bytes
from recon_core.errors import CinestreamError, DataError, ResourceError
from recon_core.storage import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

_Item = TypeVar("_Item")

#: About how much is read and written at a time.
BLOCK_BYTES = 8 << 20


#: HDF5 group of a measurement that stands for the only one there is, whatever that is called.
USUAL_GROUP = "dataset"

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (0, 512, 1024, 2048)  # bytes that may stand before the signature
_DEEPEST, _MOST_GROUPS = 4, 1000  # that are searched for a measurement
_PARTS = (("real", "imag"), ("r", "i"))  # names of the fields of a complex number: MATLAB and the stock tools, h5py

logger = logging.getLogger("cinestream")


# --- reading ----------------------------------------------------------------------------------------------------------


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does, maybe behind a block of the user.

    Raises
    ------
    ResourceError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return any(
                stream.seek(begin) == begin and stream.read(len(_SIGNATURE)) == _SIGNATURE for begin in _USER_BLOCKS
            )
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, without HDF5's file lock, so that several readers may share it.

    Raises
    ------
    ResourceError
        If it cannot be opened.
    """
    import h5py

    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise nearly anything
        raise ResourceError(f"cannot read {path} as HDF5: {error}") from error
    with file:
        yield file


@contextmanager
def damage_of(path: object, what: str = "it") -> Iterator[None]:
    """Report whatever HDF5, h5py and NumPy raise about a damaged file as one kind of error.

    Nothing but reading belongs into the context: an error of any type within is taken for one of the file.

    Parameters
    ----------
    path
        The file, for the message.
    what
        What of it is read.

    Raises
    ------
    DataError
        If what is read is damaged or laid out otherwise.
    ResourceError
        If there is not enough memory for what the file claims.
    """
    try:
        yield
    except CinestreamError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{path} claims more than the memory can hold: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # of the system, in the middle of a read
            raise ResourceError(f"{path} cannot be read further: there is not enough memory") from error
        text = str(error).strip("'\"") or type(error).__name__
        raise DataError(f"{path} is damaged or laid out otherwise: {what} cannot be read further ({text})") from error


def each_of(path: object, items: Iterable[_Item]) -> Iterator[_Item]:
    """Hand through what is read of a file, its errors as `damage_of` reports them."""
    iterator = iter(items)
    while True:
        with damage_of(path):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def find_group(file: h5py.File, wanted: str, holds: Callable[[h5py.Group], object], what: str) -> h5py.Group:
    """Find the group of a measurement.

    Parameters
    ----------
    file
        Where to look.
    wanted
        Its name; `USUAL_GROUP` stands for the only one there is, too, whatever that is called.
    holds
        Whether a group is one.
    what
        What it holds, for messages.

    Raises
    ------
    DataError
        If it is not there, or none is there, or several; the message names those that are.
    """
    import h5py

    path = file.filename
    with damage_of(path):
        node = file.get(wanted or "/")
        if isinstance(node, h5py.Group) and holds(node):
            return node
        found = [group for group in groups_of(file) if holds(group)]
        names = sorted(str(group.name).strip("/") or "/" for group in found)
    if len(found) == 1 and wanted == USUAL_GROUP:
        logger.info("%s has %s in group %s only, which is taken", path, what, names[0])
        return found[0]
    if not found:
        raise DataError(f"{path} has no {what}, neither in group {wanted!r} nor in another")
    several = "choose one with --group" if len(names) > 1 else f"choose it with --group {names[0]}"
    raise DataError(f"{path} has no {what} in group {wanted!r}; groups with {what}: {', '.join(names)}; {several}")


def groups_of(group: h5py.Group, depth: int = 0) -> Iterator[h5py.Group]:
    """A group and those within, a few deep: links may go round in circles."""
    import h5py

    yield group
    if depth < _DEEPEST:
        for name in list(group)[:_MOST_GROUPS]:
            if group.get(name, getclass=True, getlink=True) is h5py.ExternalLink:
                continue  # another file, which nobody named
            node = group.get(name)
            if isinstance(node, h5py.Group):
                yield from groups_of(node, depth + 1)


def read_header_of(node: h5py.Group) -> str:
    """The XML header in a group, whether it was stored as bytes, as text, or byte by byte as numbers."""
    with damage_of(node.file.filename):
        xml = np.ravel(read_rows(node["xml"], ()))
        if xml.dtype.kind in "iu":
            return as_text(xml.astype(np.uint8).tobytes().rstrip(b"\0"))
        return as_text(xml[0])


def as_text(value: object) -> str:
    """A text as HDF5 has it: bytes, or a text already."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def check_fields(dataset: h5py.Dataset) -> None:
    """Check that the parts of a row lie side by side as h5py reads them, or it writes beyond their memory.

    h5py takes a larger type for a number whose description is damaged, and leaves its place as it is.

    Raises
    ------
    DataError
        If they overlap.
    """
    end = 0
    for kind, place, *_ in sorted((dataset.dtype.fields or {}).values(), key=lambda one: one[1]):
        if place < end:
            raise DataError(f"{dataset.file.filename} is damaged: the parts of a row of {dataset.name} overlap")
        end = place + kind.itemsize
    if end > dataset.dtype.itemsize:
        raise DataError(f"{dataset.file.filename} is damaged: the parts of {dataset.name} are longer than a row")


def read_rows(dataset: h5py.Dataset, rows: slice | tuple[()]) -> Any:  # noqa: ANN401 - an array, or one value
    """Read rows of a data set.

    Raises
    ------
    DataError
        If the file is damaged there.
    ResourceError
        If the memory cannot hold what it claims.
    """
    where = dataset.file.filename
    with damage_of(where, str(dataset.name)):
        whole = dataset.shape[0] if dataset.shape else 1
        check_fields(dataset)
        begin, end, _ = (0, whole, 1) if isinstance(rows, tuple) else rows.indices(whole)
        size = (end - begin) * int(np.prod(dataset.shape[1:], dtype=np.float64)) * dataset.dtype.itemsize
        free = free_bytes()
        if free is not None and size > free:
            raise ResourceError(
                f"{where}: {dataset.name} claims {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
            )
        if (sound := sound_rows(dataset, begin, end)) < end:
            raise DataError(f"{where} is damaged: row {sound} of {dataset.name} claims more than the file has")
        return dataset[rows]


def read_sound_rows(dataset: h5py.Dataset, begin: int, end: int) -> NDArray[np.void]:
    """Read rows of a data set up to the first one that is not sound.

    Raises
    ------
    DataError
        If the first one is not, or the file is damaged.
    """
    where = dataset.file.filename
    with damage_of(where, str(dataset.name)):
        check_fields(dataset)
        end = sound_rows(dataset, begin, end)
        if end == begin:
            raise DataError(f"{where} is damaged: row {begin} of {dataset.name} claims more than the file has")
        rows: NDArray[np.void] = dataset[begin:end]
        return rows


def stored_rows(dataset: h5py.Dataset) -> int:
    """How many rows of a data set a file holds at most: a damaged one, or one of a killed writer, may claim more."""
    with damage_of(dataset.file.filename):
        rows = len(dataset)
        return rows if dataset.chunks is None else min(rows, dataset.id.get_num_chunks() * dataset.chunks[0])


def numbers_of(rows: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """Join rows of numbers of any length.

    Parameters
    ----------
    rows
        ``(row,)`` of arrays as h5py reads them, or ``(row, number)``.
    kind
        Type of the field in the file: h5py leaves the bytes of rows of foreign byte order as they are, and says that
        they are native.
    """
    values = np.concatenate(list(rows))
    base = dict(kind.metadata or {}).get("vlen")
    if isinstance(base, np.dtype) and values.dtype == base.newbyteorder("=") != base and not _swaps_rows():
        return values.view(base)
    return values


@cache
def _swaps_rows() -> bool:
    """Whether this h5py brings rows of foreign byte order to that of the machine."""
    import h5py

    foreign = np.dtype(np.uint16).newbyteorder()
    with h5py.File(f"{uuid.uuid4()}.h5", "w", driver="core", backing_store=False) as file:
        rows = file.create_dataset("rows", (1,), h5py.vlen_dtype(foreign))
        rows[0] = np.array([1], foreign)
        return int(rows[0][0]) == 1


def complex_of(values: NDArray[Any]) -> NDArray[Any]:
    """Complex numbers of pairs as HDF5 stores them, of any number type and byte order; other numbers as they are.

    Parameters
    ----------
    values
        Array of any shape; a structured one has the fields ``real`` and ``imag``, or ``r`` and ``i``.

    Returns
    -------
    NDArray
        In the byte order of the machine: complex64, or complex128 for float64 and long integers.

    Raises
    ------
    DataError
        If it holds no numbers.
    """
    names = values.dtype.names
    if names is None:
        if values.dtype.kind not in "iufcb":
            raise DataError(f"expected numbers, got {values.dtype}")
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    pair = next((parts for parts in _PARTS if set(parts) <= set(names)), None)
    if pair is None or any(values.dtype[part].kind not in "iuf" for part in pair):
        raise DataError(f"expected pairs of real and imag, got {', '.join(names)}")
    kind = np.result_type(values.dtype[pair[0]], values.dtype[pair[1]], np.complex64)
    out = np.empty(values.shape, kind if kind.itemsize <= 16 else np.complex128)
    out.real, out.imag = values[pair[0]], values[pair[1]]
    return out


def with_fields(rows: NDArray[np.void], dtype: np.dtype[Any]) -> NDArray[np.void]:
    """Copy the fields of a stored header by name; files of other library versions order or pad them differently."""
    if rows.dtype == dtype:
        return rows
    out = np.zeros(rows.shape, dtype)
    for name in dtype.names or ():
        if name in (rows.dtype.names or ()):
            nested = dtype[name].names is not None
            out[name] = with_fields(rows[name], dtype[name]) if nested else rows[name]
    return out


# --- writing ----------------------------------------------------------------------------------------------------------


def write_header_of(node: h5py.Group, header: str) -> None:
    """Store the XML header in a group, as the stock client does."""
    import h5py

    node.create_dataset("xml", data=[header.encode()], dtype=h5py.special_dtype(vlen=bytes))


def append_rows(dataset: h5py.Dataset, rows: NDArray[Any]) -> None:
    """Add rows at the end of a data set that can grow."""
    begin = len(dataset)
    dataset.resize(begin + len(rows), axis=0)
    dataset[begin:] = rows


@contextmanager
def output_file(path: Path) -> Iterator[OutputFile]:
    """Make a file for HDF5 to write to, which is to be closed before the context ends.

    It has another name until then, and one that was there before is as it was; for good, if something fails.

    Raises
    ------
    ResourceError
        If it cannot be made or written.
    """
    with replacing(path, make_folder=False) as part, OutputFile(part, path) as disk:
        yield disk
        disk.check()


class OutputFile(io.FileIO):
    """A file for HDF5 to write to; its library crashes the process after an error of a write.

    After a failed write the rest stays in memory, where HDF5 finds it again, until `check` reports it.

    Parameters
    ----------
    path
        The file to make; an existing one is replaced.
    shown
        What it will be called.

    Raises
    ------
    ResourceError
        If it cannot be made.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self._failure: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []
        self._shown = shown
        try:
            super().__init__(path, "w+")
        except OSError as error:
            raise ResourceError(f"cannot write {shown}: {error.strerror}; choose another place") from error

    def check(self) -> None:
        """Raise a `ResourceError` if anything could not be written."""
        if self._failure is not None:
            raise ResourceError(
                f"cannot write {self._shown}: {self._failure.strerror}; free space or choose another folder"
            ) from self._failure

    def write(self, data: Any) -> int:  # noqa: ANN401 - whatever has a buffer
        """Write all of the data, or keep what cannot be written."""
        view, begin = memoryview(data), self.tell()
        if self._failure is None:
            try:
                while view:
                    view = view[super().write(view) :]
            except OSError as error:
                self._failure = error
        if self._failure is not None:
            self._unwritten.append((begin, bytes(data)))
        return len(data)

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has a buffer
        """Read, also what could only be kept."""
        view, begin = memoryview(buffer), self.tell()
        count = super().readinto(view) or 0
        for position, data in self._unwritten:
            first, last = max(begin, position), min(begin + len(view), position + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - position : last - position]
                count = max(count, last - begin)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Set the size; `check` reports a failure."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0
