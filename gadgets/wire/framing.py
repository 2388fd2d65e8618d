"""Where messages begin and end on the wire, for whoever passes them on unread; light to import, without NumPy.

`gadgets.wire.reader` reads what is in them.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    class Source(Protocol):
        """What gives bytes: `Frames`, or `gadgets.wire.source.Source`."""

        def take(self, count: int) -> Any:  # noqa: ANN401 - bytes, or what has their buffer
            """Take a few bytes."""

        def u8(self) -> int:
            """Take a uint64."""


U2 = struct.Struct("<H")
U4 = struct.Struct("<I")
U8 = struct.Struct("<Q")


class MessageId(IntEnum):
    """Ids of the messages that are spoken here."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    IMAGE = 1022
    RECON_DATA = 1023
    IMAGE_ARRAY = 1024
    WAVEFORM = 1026
    BUCKET = 1050


CONFIG_FILE_BYTES = 1024
MOST_DIMENSIONS = 16

#: Sizes of records, and where in them it says how much follows.
ACQUISITION_BYTES, IMAGE_BYTES, WAVEFORM_BYTES, SAMPLING_BYTES = 340, 198, 40, 56
_READOUT_SHAPE = struct.Struct("<34xH2xH136xH")  # samples, coils, dimensions of the trajectory
_IMAGE_SHAPE = struct.Struct("<2xH12x3H12xH")  # data type, matrix, channels
_WAVEFORM_SHAPE = struct.Struct("<28x2H")  # samples, channels
BUCKET_SIZES = struct.Struct("<13Q")
STATS_SETS = 9  # of counters, for every encoding of a bucket
PIXEL_BYTES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}


class EndOfStreamError(ProtocolError):
    """The peer is gone: its stream ended without a CLOSE message, or inside a message."""


def text_message(number: MessageId, text: str) -> bytes:
    """A message that is a text: a configuration, a header, a line of log."""
    data = text.encode()
    return U2.pack(number) + U4.pack(len(data)) + data


def query_message(correlation: int, text: str) -> bytes:
    """A question."""
    data = text.encode()
    return U2.pack(MessageId.QUERY) + U8.pack(0) + U8.pack(correlation) + U8.pack(len(data)) + data


def error_message(text: str) -> bytes:
    """What went wrong, for a Gadgetron."""
    data = text.encode()
    return U2.pack(MessageId.ERROR) + U8.pack(len(data)) + data


@dataclass(frozen=True)
class Frame:
    """One message, unread."""

    number: int
    """Its id."""
    data: bytes
    """All its bytes, the id included; empty where they are not kept."""

    @property
    def closes(self) -> bool:
        """Whether it is the sender's last."""
        return self.number == MessageId.CLOSE

    @property
    def text(self) -> str:
        """The text of a message that ends with one of a length of 32 (`text_message`) or 64 bits (answers, errors)."""
        begin = {MessageId.RESPONSE: 18, MessageId.ERROR: 10}.get(MessageId(self.number), 6)
        return self.data[begin:].rstrip(b"\0").decode("utf-8", "replace")


class Frames:
    """Cuts a stream into messages.

    Parameters
    ----------
    readinto
        Writes at most as many bytes as the given buffer holds and returns how many; 0 means end of stream.
    keep
        Give the bytes of every message.
    most
        Largest message in bytes that is kept.

    Attributes
    ----------
    bytes_read : int
        How many bytes came.
    """

    def __init__(self, readinto: Callable[[memoryview], int], *, keep: bool = False, most: int = 8 << 30) -> None:
        self._readinto = readinto
        self._keep = keep
        self._most = most
        self._kept = bytearray()
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self.bytes_read = 0

    def read(self) -> Frame:
        """Read one message.

        Raises
        ------
        EndOfStreamError
            If the stream ends before or within it.
        ProtocolError
            If the id is unknown, or it is too large to be kept.
        """
        self._kept = bytearray()
        number = int(U2.unpack(self.take(U2.size))[0])
        read_body = _BODIES.get(number)
        if read_body is not None:
            read_body(self)
        elif number in UNUSED:
            self.skip(UNUSED[number][1](self))
        else:
            raise ProtocolError(f"unknown message id {number}; the rest of the stream cannot be read")
        return Frame(number, bytes(self._kept))

    def take(self, count: int) -> bytes:
        """Take a few bytes."""
        while self._end - self._start < count:
            if self._start + count > len(self._buffer):
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            self._fill()
        taken = bytes(self._view[self._start : self._start + count])
        self._start += count
        if self._keep:
            self._kept += taken
        return taken

    def skip(self, count: int) -> None:
        """Pass over any number of bytes."""
        if self._keep and len(self._kept) + count > self._most:
            raise ProtocolError(f"a message of {len(self._kept) + count} bytes, at most {self._most} are believed")
        while count:
            if self._start == self._end:
                self._start = self._end = 0
                self._fill()
            part = min(count, self._end - self._start)
            if self._keep:
                self._kept += self._view[self._start : self._start + part]
            self._start += part
            count -= part

    def _fill(self) -> None:
        got = self._readinto(self._view[self._end :])
        if not got:
            raise EndOfStreamError(f"the stream ended after {self.bytes_read} bytes and no CLOSE came")
        self._end += got
        self.bytes_read += got

    # --- bodies -------------------------------------------------------------------------------------------------------

    def u8(self) -> int:
        """Take a uint64."""
        return int(U8.unpack(self.take(U8.size))[0])

    def _long_text(self) -> None:
        self.skip(self.u8())

    def _short_text(self) -> None:
        self.skip(int(U4.unpack(self.take(U4.size))[0]))

    def _numbered_text(self, before: int) -> None:
        self.skip(before)
        self._long_text()

    def _readout(self) -> None:
        samples, coils, dimensions = _READOUT_SHAPE.unpack_from(self.take(ACQUISITION_BYTES))
        self.skip(samples * (4 * dimensions + 8 * coils))

    def _image(self) -> None:
        data_type, *matrix, channels = _IMAGE_SHAPE.unpack_from(self.take(IMAGE_BYTES))
        if data_type not in PIXEL_BYTES:
            raise ProtocolError(f"image has data type {data_type}, expected 1 to 8")
        self._long_text()
        self.skip(math.prod(matrix) * channels * PIXEL_BYTES[data_type])

    def _waveform(self) -> None:
        samples, channels = _WAVEFORM_SHAPE.unpack_from(self.take(WAVEFORM_BYTES))
        self.skip(4 * samples * channels)

    def _array(self, item: int) -> None:
        dimensions = self.u8()
        if dimensions > MOST_DIMENSIONS:
            raise ProtocolError(f"an array has {dimensions} dimensions, at most {MOST_DIMENSIONS} are believed")
        shape = [self.u8() for _ in range(dimensions)]
        self.skip(math.prod(shape) * item if shape else 0)

    def _optional(self, read: Callable[[], None]) -> None:
        if self.take(1) != b"\0":
            read()

    def _several(self, read: Callable[[], None]) -> None:
        for _ in range(self.u8()):
            read()

    def _buffered(self) -> None:
        self._array(8)
        for _ in range(2):  # trajectory and density
            self._optional(lambda: self._array(4))
        self._array(ACQUISITION_BYTES)
        self.skip(SAMPLING_BYTES)

    def _recon_bit(self) -> None:
        self._buffered()
        self._optional(self._buffered)  # the reference

    def _image_array(self) -> None:
        self._array(8)
        self._array(IMAGE_BYTES)
        self._several(self._long_text)
        self._optional(lambda: self._several(self._waveform))
        self._optional(lambda: self._array(ACQUISITION_BYTES))

    def _bucket(self) -> None:
        sizes = BUCKET_SIZES.unpack(self.take(BUCKET_SIZES.size))
        for first in (1, 5):  # data, then the reference; the counts are not needed
            self.skip(sum(sizes[first : first + 3]))
            for _ in range(STATS_SETS * self.u8()):
                self.skip(2 * self.u8())
        self.skip(sum(sizes[11:]))  # waveforms


_BODIES: dict[int, Callable[[Frames], None]] = {
    MessageId.CONFIG_FILE: lambda frames: frames.skip(CONFIG_FILE_BYTES),
    MessageId.CONFIG_TEXT: Frames._short_text,
    MessageId.HEADER: Frames._short_text,
    MessageId.CLOSE: lambda _: None,
    MessageId.TEXT: Frames._short_text,
    MessageId.QUERY: lambda frames: frames._numbered_text(2 * U8.size),
    MessageId.RESPONSE: lambda frames: frames._numbered_text(U8.size),
    MessageId.ERROR: Frames._long_text,
    MessageId.ACQUISITION: Frames._readout,
    MessageId.IMAGE: Frames._image,
    MessageId.RECON_DATA: lambda frames: frames._several(frames._recon_bit),
    MessageId.IMAGE_ARRAY: Frames._image_array,
    MessageId.WAVEFORM: Frames._waveform,
    MessageId.BUCKET: Frames._bucket,
}

# --- messages of other programs ---------------------------------------------------------------------------------------

_MOST_NDARRAY_DIMENSIONS = 7  # ISMRMRD_NDARRAY_MAXDIM


def _ndarray(source: Source) -> int:
    """Bytes of an array of ISMRMRD 1.14: type, version and number of dimensions, then the extents."""
    kind, _, dimensions = struct.unpack("<3H", source.take(6))
    if dimensions > _MOST_NDARRAY_DIMENSIONS:
        raise ProtocolError(f"an array has {dimensions} dimensions, at most {_MOST_NDARRAY_DIMENSIONS} are believed")
    extents = [source.u8() for _ in range(dimensions)]
    if kind not in PIXEL_BYTES:
        raise ProtocolError(f"an array has data type {kind}, expected 1 to 8")
    return math.prod(extents) * PIXEL_BYTES[kind]


def _old_image(pixel_bytes: int, *, attributes: bool) -> Callable[[Source], int]:
    """Bytes of an image of a Gadgetron before version 3.9: the id says the type of its pixels."""

    def body(source: Source) -> int:
        _, *matrix, channels = _IMAGE_SHAPE.unpack_from(source.take(IMAGE_BYTES))
        text = source.u8() if attributes else 0
        return text + math.prod(map(int, matrix)) * int(channels) * pixel_bytes

    return body


#: Messages that nothing here uses, but of known length, by id: a name, and what gives how many bytes follow.
UNUSED: dict[int, tuple[str, Callable[[Source], int]]] = {
    1009: ("complex image of old", _old_image(8, attributes=False)),
    1010: ("float image of old", _old_image(4, attributes=False)),
    1011: ("ushort image of old", _old_image(2, attributes=False)),
    1015: ("complex image of old, with attributes", _old_image(8, attributes=True)),
    1016: ("float image of old, with attributes", _old_image(4, attributes=True)),
    1017: ("ushort image of old, with attributes", _old_image(2, attributes=True)),
    1019: ("measurement dependency", lambda source: source.u8()),
    1020: ("short image of old", _old_image(2, attributes=False)),
    1021: ("short image of old, with attributes", _old_image(2, attributes=True)),
    1030: ("array", _ndarray),
}
