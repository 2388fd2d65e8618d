"""Values to bytes, the parts that messages consist of; `gadgets.wire.source` reads what is written here."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.wire.framing import U8
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Buffer = bytes | NDArray[Any]


def bytes_of(buffer: Buffer) -> memoryview:
    """The bytes of a buffer, without a copy."""
    return memoryview(buffer) if isinstance(buffer, bytes) else buffer.reshape(-1).view(np.uint8).data


def text_parts(text: str) -> list[Buffer]:
    """Length as uint64, and the text."""
    data = text.encode()
    return [U8.pack(len(data)), data]


def array_parts(array: NDArray[Any], dtype: np.dtype[Any]) -> list[Buffer]:
    """Axes and extents as uint64, then the values in Fortran order.

    Raises
    ------
    ProtocolError
        If the array is of another type.
    """
    if array.size == 0 and array.ndim <= 1:
        return [U8.pack(0)]
    if array.dtype != dtype:
        wanted, got = ("header records" if kind.names else kind.name for kind in (dtype, array.dtype))
        raise ProtocolError(f"expected an array of {wanted}, got {got}")
    return [struct.pack(f"<{array.ndim + 1}Q", array.ndim, *array.shape), array.tobytes(order="F")]


def optional_array_parts(array: NDArray[Any] | None, dtype: np.dtype[Any]) -> list[Buffer]:
    """A byte that says whether there is an array, then the array."""
    return [b"\0"] if array is None else [b"\1", *array_parts(array, dtype)]


def zero_padded(record: NDArray[np.void], dtype: np.dtype[Any]) -> NDArray[np.void]:
    """Copy a record field by field, so that equal records are equal bytes and no stale memory leaves."""
    out = np.zeros((), dtype)
    for name in dtype.names or ():
        out[name] = record[name]
    return out
