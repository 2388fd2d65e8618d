"""What raw files and image files have in common in HDF5."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.errors import DataError, ResourceError
from recon_core.storage import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

#: About how much is read and written at a time.
BLOCK_BYTES = 8 << 20


def read_header_of(node: h5py.Group) -> str:
    """The XML header in a group, whether it was stored as bytes or as text."""
    xml = np.ravel(read_rows(node["xml"], ()))[0]
    return xml.decode("utf-8", "replace") if isinstance(xml, bytes) else str(xml)


def read_rows(dataset: h5py.Dataset, rows: slice | tuple[()]) -> Any:  # noqa: ANN401 - an array, or one value
    """Read rows of a data set.

    Raises
    ------
    DataError
        If the file is damaged there.
    """
    try:
        return dataset[rows]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{dataset.file.filename} is damaged: {dataset.name} cannot be read further ({error})"
        ) from error


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
