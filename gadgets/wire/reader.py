"""Messages from bytes: what follows an id, and runs of readouts as one block.

A message is a little-endian uint16 id and a body that contains its own length, so an unknown id makes the
rest of a stream unreadable. Ids that are known but not used are passed over (`gadgets.wire.framing.UNUSED`).

Readouts arrive by the thousand and all alike. `Reader` hands out runs of equally shaped readouts as one `Readouts`
block of views into its receive buffer: no copy and a handful of NumPy calls per run, whatever its length.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.containers import read_bucket, read_image_array, read_recon_data, read_waveform
from gadgets.wire.framing import CONFIG_FILE_BYTES, U2, U4, U8, UNUSED, MessageId
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Query,
    Readouts,
    Response,
    Text,
    flag_mask,
)
from gadgets.wire.source import Limits, Source
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

logger = logging.getLogger("cinestream")

_READOUT_SHAPE = struct.Struct("<H2xH")  # number_of_samples, active_channels
_ID_BYTES = 2
_COMPRESSED = flag_mask(AcquisitionFlag.COMPRESSION_ZFP, AcquisitionFlag.COMPRESSION_NHLBI)
_OFFSET = {name: ACQUISITION_HEADER.fields[name][1] for name in ACQUISITION_HEADER.names or ()}  # type: ignore[index]


class Reader(Source):
    """Reads messages from anything that fills a buffer: a socket's ``recv_into``, a raw file's ``readinto``.

    Parameters
    ----------
    readinto
        Writes at most as many bytes as the given buffer holds and returns how many; 0 means end of stream.
    limits
        The largest claims that are believed.
    chunk_bytes
        Size of a receive buffer; also the most that one `Readouts` block spans.
    """

    @classmethod
    def of_socket(cls, connection: socket.socket, limits: Limits | None = None) -> Reader:
        """Read from a connected socket."""
        return cls(connection.recv_into, limits)

    def __iter__(self) -> Iterator[Message]:
        """Yield every message up to CLOSE, which is not yielded.

        Raises
        ------
        ProtocolError
            If the stream ends before CLOSE, holds an unknown id, or claims a length beyond the limits.
        """
        while not isinstance(message := self.read(), Close):
            yield message

    def read(self) -> Message:
        """Read one message, or one run of readouts; messages that nothing here uses are passed over.

        Raises
        ------
        EndOfStreamError
            If the stream ends before or within the message.
        ProtocolError
            If the id is unknown or a claimed length is beyond the limits.
        """
        while (message := self._next()) is None:
            pass
        return message

    def _next(self) -> Message | None:
        """The next message; None for one that is passed over."""
        self.within = "between two messages"
        self.begin_message()
        if self._end - self._start < _ID_BYTES:
            self._fill(_ID_BYTES)
        number = U2.unpack_from(self._view, self._start)[0]
        if number == MessageId.ACQUISITION:
            return self._readouts()
        read_body = _BODIES.get(number)
        if read_body is None:
            position = self.bytes_read - (self._end - self._start)
            self._start += _ID_BYTES
            if number in UNUSED:
                self._pass_over(number)
                return None
            known = ", ".join(map(str, sorted((*map(int, MessageId), *UNUSED))))
            raise ProtocolError(
                f"unknown message id {number} after {position} bytes; expected one of {known}. The rest of the stream "
                "cannot be read"
            )
        self.within = f"within a message of id {number} ({MessageId(number).name})"
        self._start += _ID_BYTES
        return read_body(self)

    def _pass_over(self, number: int) -> None:
        """Take the body of a message that is not used from the stream, without keeping it."""
        what, body = UNUSED[number]
        self.within = f"within a message of id {number} ({what})"
        count = body(self)
        self.check(count, self.limits.message_bytes, "bytes")
        self.skip(count)
        logger.info("a message of id %d (%s, %d bytes) is not used here and was passed over", number, what, count)

    def _readouts(self) -> Readouts:
        self.within = "within a readout"
        head_bytes = _ID_BYTES + ACQUISITION_HEADER.itemsize
        if self._end - self._start < head_bytes:
            self._fill(head_bytes)
        head = self._start + _ID_BYTES
        samples, coils = _READOUT_SHAPE.unpack_from(self._view, head + _OFFSET["number_of_samples"])
        dimensions = U2.unpack_from(self._view, head + _OFFSET["trajectory_dimensions"])[0]
        trajectory_bytes = 4 * samples * dimensions
        size = head_bytes + trajectory_bytes + 8 * samples * coils
        self.check(size, self.limits.message_bytes, "bytes for one readout")
        if self._end - self._start < size:
            self._fill(size)
        count = self._run_length(size)
        begin = self._start
        self._start += count * size
        headers: NDArray[np.void] = np.ndarray(
            (count,), ACQUISITION_HEADER, self._buffer, offset=begin + _ID_BYTES, strides=(size,)
        )
        if np.any(headers["flags"] & _COMPRESSED):
            raise ProtocolError(
                f"readout {headers['scan_counter'][0]} is compressed (flag 53 or 54), its length cannot be known; "
                "switch the compression of the raw data off in the sender (FIRE: CompressionPrecision 0)"
            )
        data: NDArray[np.complex64] = np.ndarray(
            (count, coils, samples),
            np.complex64,
            self._buffer,
            offset=begin + head_bytes + trajectory_bytes,
            strides=(size, 8 * samples, 8),
        )
        trajectory: NDArray[np.float32] | None = None
        if dimensions:
            trajectory = np.ndarray(
                (count, samples, dimensions),
                np.float32,
                self._buffer,
                offset=begin + head_bytes,
                strides=(size, 4 * dimensions, 4),
            )
        return Readouts(headers, data, trajectory)

    def _run_length(self, size: int) -> int:
        """How many complete messages from `_start` on are readouts of the same shape as the first."""
        count = (self._end - self._start) // size
        if count == 1:
            return 1
        messages = self._buffer[self._start : self._start + count * size].reshape(count, size)
        same = np.ones(count, np.bool_)
        for offset in (
            0,
            _ID_BYTES + _OFFSET["number_of_samples"],
            _ID_BYTES + _OFFSET["active_channels"],
            _ID_BYTES + _OFFSET["trajectory_dimensions"],
        ):
            words = messages[:, offset : offset + 2]
            same &= (words == words[0]).all(axis=1)
        return count if same.all() else int(np.argmin(same))


def _read_config_file(source: Source) -> ConfigFile:
    return ConfigFile(source.take(CONFIG_FILE_BYTES).tobytes().split(b"\0", 1)[0].decode("utf-8", "replace"))


def _read_query(source: Source) -> Query:
    source.u8()  # reserved
    return Query(source.u8(), source.text(U8))


def _read_image(source: Source) -> Image:
    header = source.take(IMAGE_HEADER.itemsize).view(IMAGE_HEADER)[0].copy()
    attributes = source.text(U8)
    dtype = IMAGE_DTYPES.get(int(header["data_type"]))
    if dtype is None:
        raise ProtocolError(f"image has data type {header['data_type']}, expected 1 to 8")
    shape = (int(header["channels"]), *(int(n) for n in header["matrix_size"][::-1]))
    count = math.prod(shape) * dtype.itemsize
    source.check(count, source.limits.message_bytes, "bytes for one image")
    return Image(header, source.take(count).copy().view(dtype).reshape(shape), attributes)


_BODIES: dict[int, Callable[[Source], Message]] = {
    MessageId.CONFIG_FILE: _read_config_file,
    MessageId.CONFIG_TEXT: lambda source: ConfigText(source.text(U4)),
    MessageId.HEADER: lambda source: Header(source.text(U4)),
    MessageId.CLOSE: lambda _: Close(),
    MessageId.TEXT: lambda source: Text(source.text(U4)),
    MessageId.QUERY: _read_query,
    MessageId.RESPONSE: lambda source: Response(source.u8(), source.text(U8)),
    MessageId.ERROR: lambda source: Error(source.text(U8)),
    MessageId.IMAGE: _read_image,
    MessageId.RECON_DATA: read_recon_data,
    MessageId.IMAGE_ARRAY: read_image_array,
    MessageId.WAVEFORM: read_waveform,
    MessageId.BUCKET: read_bucket,
}
