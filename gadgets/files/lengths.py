"""Rows of HDF5 that make its library allocate gigabytes, or never come back.

HDF5 allocates whatever a row of variable length claims, up to 16 GiB, before it looks whether it is there, and goes
round in circles in a heap with an object of no size. So both are looked at first, as they are stored (HDF5 File
Format Specification, "Global Heap"): a row has a length of four bytes, the address of a heap and a number in it; a heap
has its size, then objects with number, size and content.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py
    from numpy.typing import NDArray

_ADDRESS = 8  # bytes of an address and of a size; other files are not looked at
_DESCRIPTOR = 16
_HEAP, _HEAP_BYTES = b"GCOL", 16
_OBJECT = struct.Struct("<H6xQ")  # number and size


def sound_rows(dataset: h5py.Dataset, begin: int, end: int) -> int:
    """Find the first of some rows that cannot be read without harm.

    Parameters
    ----------
    dataset
        Of one axis; of any other, and where rows are compressed, nothing is found.
    begin, end
        The rows.

    Returns
    -------
    int
        Its number, or `end`.
    """
    places = _places_of_lengths(dataset)
    if not places or dataset.ndim != 1 or dataset.file.id.get_create_plist().get_sizes() != (_ADDRESS, _ADDRESS):
        return end
    base = dataset.file.userblock_size
    with (
        open(dataset.file.filename, "rb") as file,  # noqa: PTH123 - HDF5 has its name
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        known: dict[int, bool] = {}
        for first, table in _stored(dataset, content, begin, end):
            for place, item in places:
                lengths = _numbers(table, place, "<u4").astype(np.int64)
                addresses = _numbers(table, place + 4, "<u8")
                wrong = lengths * item > len(content)
                for address in np.unique(addresses[lengths > 0]).tolist():
                    if address not in known:
                        known[address] = _is_sound_heap(content, base + address)
                    if not known[address]:
                        wrong |= (addresses == address) & (lengths > 0)
                rows = np.flatnonzero(wrong) + first
                rows = rows[(rows >= begin) & (rows < end)]
                end = int(rows[0]) if len(rows) else end
    return end


def _numbers(table: NDArray[np.uint8], place: int, kind: str) -> NDArray[np.unsignedinteger]:
    size = np.dtype(kind).itemsize
    return np.ascontiguousarray(table[:, place : place + size]).view(kind)[:, 0]


def _is_sound_heap(content: mmap.mmap, address: int) -> bool:
    """Whether the objects of a heap follow each other to its end; what is no heap at all is reported by HDF5."""
    if content[address : address + len(_HEAP)] != _HEAP or address + _HEAP_BYTES > len(content):
        return True
    end = address + int.from_bytes(content[address + 8 : address + 16], "little")
    if end > len(content):
        return True
    at = address + _HEAP_BYTES
    while at + _OBJECT.size <= end:
        number, size = _OBJECT.unpack_from(content, at)
        step = _OBJECT.size + -(-size // 8) * 8 if number else size  # 0 is the free rest, with its header
        if step < _OBJECT.size or at + step > end:
            return False
        at += step
    return True


def _places_of_lengths(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    """Where in a row its parts of variable length are described, and the bytes of an item."""
    from h5py import h5t

    kind = dataset.id.get_type()
    parts = [(0, kind)]
    if isinstance(kind, h5t.TypeCompoundID):
        parts = [(kind.get_member_offset(i), kind.get_member_type(i)) for i in range(kind.get_nmembers())]
    found = []
    for place, part in parts:
        if isinstance(part, h5t.TypeVlenID):
            found.append((place, part.get_super().get_size()))
        elif part is kind and isinstance(part, h5t.TypeStringID) and part.is_variable_str():
            found.append((place, 1))
    return found


def _stored(dataset: h5py.Dataset, content: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Blocks of rows ``(row, byte)`` as they are stored, each with the number of its first row."""
    from h5py import h5t

    kind = dataset.id.get_type()
    size = kind.get_size() if isinstance(kind, h5t.TypeCompoundID) else _DESCRIPTOR
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is not None:
            block = content[offset + begin * size : offset + end * size]
            yield begin, np.frombuffer(block[: len(block) // size * size], np.uint8).reshape(-1, size)
        return
    rows = dataset.chunks[0]
    for number in range(begin // rows, -(-end // rows)):
        try:
            _, block = dataset.id.read_direct_chunk((number * rows,))
        except (OSError, RuntimeError, ValueError):  # not stored; or damaged, which reading it reports
            continue
        if len(block) == rows * size:  # not compressed
            yield number * rows, np.frombuffer(block, np.uint8).reshape(rows, size)
