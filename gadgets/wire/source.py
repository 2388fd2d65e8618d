"""Bytes from a peer: a receive buffer, and typed values taken from it within limits.

Nothing here trusts a length that a peer claims: each is checked against `Limits` before memory is taken for it, and the
end of the stream is recognised wherever it comes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.wire.framing import MOST_DIMENSIONS, U8, EndOfStreamError
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Limits:
    """The largest claims that are believed; a claim above means a broken or hostile peer, not a large scan."""

    text_bytes: int = 16 << 20
    message_bytes: int = 1 << 30
    container_bytes: int = 8 << 30
    container_items: int = 1 << 22


class Source:
    """A receive buffer, and the values that messages consist of.

    Parameters
    ----------
    readinto
        Writes at most as many bytes as the given buffer holds and returns how many; 0 means end of stream.
    limits
        The largest claims that are believed.
    chunk_bytes
        Size of a receive buffer.
    grows
        Called before more memory is taken for a message that is larger than a buffer, with the bytes that it then
        takes; it may refuse with an error.

    Attributes
    ----------
    limits : Limits
    within : str
        What is being read, for the messages of errors.
    bytes_read : int
        How many bytes came in all, including those that wait in the buffer.
    """

    def __init__(
        self,
        readinto: Callable[[memoryview], int],
        limits: Limits | None = None,
        chunk_bytes: int = 2 << 20,
        grows: Callable[[int], None] | None = None,
    ) -> None:
        self._grows = grows
        self._message_begin = 0
        self._grown = False
        self.limits = limits or Limits()
        self.within = ""
        self.bytes_read = 0
        self._readinto = readinto
        self._chunk_bytes = chunk_bytes
        self._buffer: NDArray[np.uint8] = np.empty(chunk_bytes, np.uint8)
        self._view = self._buffer.data
        self._start = 0
        self._end = 0

    def begin_message(self) -> None:
        """Count the memory of a message from here."""
        self._message_begin = self.bytes_read - (self._end - self._start)
        if self._grown and self._grows is not None:
            self._grows(0)
        self._grown = False

    def check(self, claimed: int, limit: int, what: str) -> None:
        """Refuse a claim beyond a limit.

        Raises
        ------
        ProtocolError
            If it is beyond.
        """
        if claimed > limit:
            raise ProtocolError(
                f"{self.within} the peer claims {claimed} {what}; at most {limit} are believed. The length is "
                "forged or the stream is out of step, the rest of it cannot be read"
            )

    def take(self, count: int) -> NDArray[np.uint8]:
        """Take so many bytes, as a view of the receive buffer.

        Raises
        ------
        EndOfStreamError
            If the stream ends before.
        """
        if self._end - self._start < count:
            self._fill(count)
        begin = self._start
        self._start += count
        return self._buffer[begin : self._start]

    def skip(self, count: int) -> None:
        """Take so many bytes that nobody needs, a buffer at a time.

        Raises
        ------
        EndOfStreamError
            If the stream ends before.
        """
        while count:
            step = min(count, max(1, self._end - self._start))
            self.take(step)
            count -= step

    def u8(self) -> int:
        """Take a uint64."""
        return int(U8.unpack(self.take(8).data)[0])

    def flag(self) -> bool:
        """Take a byte that says whether something follows."""
        return bool(self.take(1)[0])

    def count(self, what: str, most: int | None = None) -> int:
        """Take the uint64 number of items that follow, `most` at most."""
        count = self.u8()
        self.check(count, self.limits.container_items if most is None else most, what)
        return count

    def text(self, length: struct.Struct) -> str:
        """Take a length of the given form and a text of so many bytes."""
        count = int(length.unpack(self.take(length.size).data)[0])
        self.check(count, self.limits.text_bytes, "bytes of text")
        # FIRE and Gadgetron's C++ side count a trailing NUL, others do not.
        return self.take(count).tobytes().rstrip(b"\0").decode("utf-8", "replace").removeprefix("\ufeff")

    def array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Take an array: uint64 axes and extents, then the values in Fortran order, which are copied."""
        dimensions = self.u8()
        self.check(dimensions, MOST_DIMENSIONS, "array dimensions")
        shape = tuple(self.u8() for _ in range(dimensions))
        # A zero next to a huge extent makes an empty array that NumPy cannot hold either.
        self.check(
            math.prod(max(1, extent) for extent in shape) * dtype.itemsize,
            self.limits.container_bytes,
            "bytes for one array",
        )
        if not shape:
            return np.empty(0, dtype)
        return self.take(math.prod(shape) * dtype.itemsize).copy().view(dtype).reshape(shape, order="F")

    def _fill(self, count: int) -> None:
        """Make `count` bytes available from `_start` on, taking whatever else the peer has ready."""
        if self._start + count > len(self._buffer):
            self._renew(count)
        while self._end - self._start < count:
            if self._end == len(self._buffer):
                self._renew(count)
            got = self._readinto(self._view[self._end :])
            if got == 0:
                missing = count - (self._end - self._start)
                raise EndOfStreamError(
                    f"the stream ended {self.within} after {self.bytes_read} bytes, at least {missing} more were "
                    "expected and no CLOSE came; the sender stopped or the connection broke"
                )
            self._end += got
            self.bytes_read += got

    def _renew(self, count: int) -> None:
        """Begin a buffer for `count` bytes: of those that have not come yet no more than there are already.

        A new one, not a move within the old one: blocks that were handed out still look into it.
        """
        rest = self._end - self._start
        size = max(self._chunk_bytes, min(count, 2 * rest))
        if self._grows is not None and size > self._chunk_bytes:
            self._grown = True
            self._grows(self.bytes_read - self._message_begin + size)
        fresh = np.empty(size, np.uint8)
        fresh[:rest] = self._buffer[self._start : self._end]
        self._buffer, self._view, self._start, self._end = fresh, fresh.data, 0, rest
