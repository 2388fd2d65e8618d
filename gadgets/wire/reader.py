"""Messages from bytes, without trust in any length that a peer claims.

Readouts arrive by the thousand and all alike. `Reader` hands out runs of equally shaped readouts as one `Readouts`
block of views into its receive buffer: no copy and a handful of NumPy calls per run, whatever its length.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    CONFIG_FILE_BYTES,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    SAMPLING_DESCRIPTION,
    U2,
    U4,
    U8,
    WAVEFORM_HEADER,
    AcquisitionFlag,
    Bucket,
    BufferedData,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    ImageArray,
    Message,
    MessageId,
    Query,
    Readouts,
    ReconData,
    Response,
    Text,
    Waveform,
    flag_mask,
)
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Buffer = bytes | NDArray[Any]


class EndOfStreamError(ProtocolError):
    """The peer is gone: its stream ended without a CLOSE message, or inside a message."""


@dataclass(frozen=True)
class Limits:
    """The largest claims that are believed; a claim above means a broken or hostile peer, not a large scan."""

    text_bytes: int = 64 << 20
    message_bytes: int = 1 << 30
    container_bytes: int = 8 << 30
    container_items: int = 1 << 22


_READOUT_SHAPE = struct.Struct("<H2xH")  # number_of_samples, active_channels
_ID_BYTES = 2
_COMPRESSED = flag_mask(AcquisitionFlag.COMPRESSION_ZFP, AcquisitionFlag.COMPRESSION_NHLBI)
_OFFSET = {name: ACQUISITION_HEADER.fields[name][1] for name in ACQUISITION_HEADER.names or ()}  # type: ignore[index]
_STATS_SETS = 9


class Reader:
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

    def __init__(
        self, readinto: Callable[[memoryview], int], limits: Limits | None = None, chunk_bytes: int = 2 << 20
    ) -> None:
        self._readinto = readinto
        self._limits = limits or Limits()
        self._chunk_bytes = chunk_bytes
        self._buffer: NDArray[np.uint8] = np.empty(chunk_bytes, np.uint8)
        self._view = self._buffer.data
        self._start = 0
        self._end = 0
        self.bytes_read = 0
        self._bodies: dict[int, Callable[[], Message]] = {
            MessageId.CONFIG_FILE: self._config_file,
            MessageId.CONFIG_TEXT: lambda: ConfigText(self._text(U4)),
            MessageId.HEADER: lambda: Header(self._text(U4)),
            MessageId.CLOSE: Close,
            MessageId.TEXT: lambda: Text(self._text(U4)),
            MessageId.QUERY: self._query,
            MessageId.RESPONSE: lambda: Response(self._u8(), self._text(U8)),
            MessageId.ERROR: lambda: Error(self._text(U8)),
            MessageId.IMAGE: self._image,
            MessageId.RECON_DATA: self._recon_data,
            MessageId.IMAGE_ARRAY: self._image_array,
            MessageId.WAVEFORM: self._waveform,
            MessageId.BUCKET: self._bucket,
        }

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
        """Read one message, or one run of readouts.

        Raises
        ------
        EndOfStreamError
            If the stream ends before or within the message.
        ProtocolError
            If the id is unknown or a claimed length is beyond the limits.
        """
        self._within = "between two messages"
        if self._end - self._start < _ID_BYTES:
            self._fill(_ID_BYTES)
        number = U2.unpack_from(self._view, self._start)[0]
        if number == MessageId.ACQUISITION:
            return self._readouts()
        body = self._bodies.get(number)
        if body is None:
            position = self.bytes_read - (self._end - self._start)
            raise ProtocolError(
                f"unknown message id {number} after {position} bytes; expected one of "
                f"{', '.join(str(int(known)) for known in MessageId)}. The rest of the stream cannot be read"
            )
        self._within = f"within a message of id {number} ({MessageId(number).name})"
        self._start += _ID_BYTES
        return body()

    def _fill(self, count: int) -> None:
        """Make `count` bytes available from `_start` on, taking whatever else the peer has ready."""
        if self._start + count > len(self._buffer):
            # A new buffer, not a move within the old one: blocks that were handed out still look into it.
            fresh = np.empty(max(self._chunk_bytes, count), np.uint8)
            rest = self._end - self._start
            fresh[:rest] = self._buffer[self._start : self._end]
            self._buffer, self._view, self._start, self._end = fresh, fresh.data, 0, rest
        while self._end - self._start < count:
            got = self._readinto(self._view[self._end :])
            if got == 0:
                missing = count - (self._end - self._start)
                raise EndOfStreamError(
                    f"the stream ended {self._within} after {self.bytes_read} bytes, at least {missing} more were "
                    "expected and no CLOSE came; the sender stopped or the connection broke"
                )
            self._end += got
            self.bytes_read += got

    def _take(self, count: int) -> NDArray[np.uint8]:
        if self._end - self._start < count:
            self._fill(count)
        begin = self._start
        self._start += count
        return self._buffer[begin : self._start]

    def _u8(self) -> int:
        return int(U8.unpack(self._take(8).data)[0])

    def _text(self, length: struct.Struct) -> str:
        count = int(length.unpack(self._take(length.size).data)[0])
        self._check(count, self._limits.text_bytes, "bytes of text")
        # FIRE and Gadgetron's C++ side count a trailing NUL, others do not.
        return self._take(count).tobytes().rstrip(b"\0").decode("utf-8", "replace").removeprefix("\ufeff")

    def _check(self, claimed: int, limit: int, what: str) -> None:
        if claimed > limit:
            raise ProtocolError(
                f"{self._within} the peer claims {claimed} {what}; at most {limit} are believed. The length is "
                "forged or the stream is out of step, the rest of it cannot be read"
            )

    def _config_file(self) -> ConfigFile:
        return ConfigFile(self._take(CONFIG_FILE_BYTES).tobytes().split(b"\0", 1)[0].decode("utf-8", "replace"))

    def _query(self) -> Query:
        self._u8()  # reserved
        return Query(self._u8(), self._text(U8))

    def _readouts(self) -> Readouts:
        self._within = "within a readout"
        head_bytes = _ID_BYTES + ACQUISITION_HEADER.itemsize
        if self._end - self._start < head_bytes:
            self._fill(head_bytes)
        head = self._start + _ID_BYTES
        samples, coils = _READOUT_SHAPE.unpack_from(self._view, head + _OFFSET["number_of_samples"])
        dimensions = U2.unpack_from(self._view, head + _OFFSET["trajectory_dimensions"])[0]
        trajectory_bytes = 4 * samples * dimensions
        size = head_bytes + trajectory_bytes + 8 * samples * coils
        self._check(size, self._limits.message_bytes, "bytes for one readout")
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

    def _waveform(self) -> Waveform:
        header = self._take(WAVEFORM_HEADER.itemsize).view(WAVEFORM_HEADER)[0]
        channels, samples = int(header["channels"]), int(header["number_of_samples"])
        self._check(4 * channels * samples, self._limits.message_bytes, "bytes for one waveform")
        data = self._take(4 * channels * samples).copy().view(np.uint32).reshape(channels, samples)
        return Waveform(header.copy(), data)

    def _image(self) -> Image:
        header = self._take(IMAGE_HEADER.itemsize).view(IMAGE_HEADER)[0].copy()
        attributes = self._text(U8)
        dtype = IMAGE_DTYPES.get(int(header["data_type"]))
        if dtype is None:
            raise ProtocolError(f"image has data type {header['data_type']}, expected 1 to 8")
        shape = (int(header["channels"]), *(int(n) for n in header["matrix_size"][::-1]))
        count = math.prod(shape) * dtype.itemsize
        self._check(count, self._limits.message_bytes, "bytes for one image")
        return Image(header, self._take(count).copy().view(dtype).reshape(shape), attributes)

    # Containers: the pieces of ids 1023, 1024 and 1050.

    def _count(self, what: str) -> int:
        count = self._u8()
        self._check(count, self._limits.container_items, what)
        return count

    def _flag(self) -> bool:
        return bool(self._take(1)[0])

    def _array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        dimensions = self._u8()
        self._check(dimensions, 16, "array dimensions")
        shape = tuple(self._u8() for _ in range(dimensions))
        # A zero beside a huge extent makes an empty array that NumPy cannot hold either.
        self._check(
            math.prod(max(1, extent) for extent in shape) * dtype.itemsize,
            self._limits.container_bytes,
            "bytes for one array",
        )
        if not shape:
            return np.empty(0, dtype)
        return self._take(math.prod(shape) * dtype.itemsize).copy().view(dtype).reshape(shape, order="F")

    def _buffered(self) -> BufferedData:
        data = self._array(np.dtype("<c8"))
        trajectory = self._array(np.dtype("<f4")) if self._flag() else None
        density = self._array(np.dtype("<f4")) if self._flag() else None
        headers = self._array(ACQUISITION_HEADER)
        sampling = self._take(SAMPLING_DESCRIPTION.itemsize).view(SAMPLING_DESCRIPTION)[0].copy()
        return BufferedData(data, headers, sampling, trajectory, density)

    def _recon_data(self) -> ReconData:
        return ReconData(
            tuple(
                (self._buffered(), self._buffered() if self._flag() else None)
                for _ in range(self._count("encoding spaces"))
            )
        )

    def _image_array(self) -> ImageArray:
        data = self._array(np.dtype("<c8"))
        headers = self._array(IMAGE_HEADER)
        attributes = tuple(self._text(U8) for _ in range(self._count("meta texts")))
        waveforms = tuple(self._waveform() for _ in range(self._count("waveforms"))) if self._flag() else None
        acquisitions = self._array(ACQUISITION_HEADER) if self._flag() else None
        return ImageArray(data, headers, attributes, waveforms, acquisitions)

    def _bucket(self) -> Bucket:
        sizes = [self._u8() for _ in range(13)]
        for claimed in sizes:
            self._check(claimed, self._limits.container_bytes, "bytes in a bucket")
        data = self._bucket_readouts(*sizes[0:4])
        data_stats = self._bucket_stats()
        reference = self._bucket_readouts(*sizes[4:8])
        reference_stats = self._bucket_stats()
        return Bucket(data, reference, data_stats, reference_stats, self._bucket_waveforms(*sizes[10:13]))

    def _bucket_readouts(
        self, count: int, header_bytes: int, data_bytes: int, trajectory_bytes: int
    ) -> tuple[Readouts, ...]:
        headers = self._bucket_headers(count, header_bytes, ACQUISITION_HEADER)
        trajectories, data = self._take(trajectory_bytes).copy(), self._take(data_bytes).copy()
        readouts, t, d = [], 0, 0
        for i in range(count):
            samples, coils = int(headers["number_of_samples"][i]), int(headers["active_channels"][i])
            dimensions = int(headers["trajectory_dimensions"][i])
            t_end, d_end = t + 4 * samples * dimensions, d + 8 * samples * coils
            if t_end > trajectory_bytes or d_end > data_bytes:
                raise ProtocolError(f"readout {i} of a bucket needs more bytes than the bucket says it holds")
            readouts.append(
                Readouts(
                    headers[i : i + 1],
                    data[d:d_end].view(np.complex64).reshape(1, coils, samples),
                    trajectories[t:t_end].view(np.float32).reshape(1, samples, dimensions) if dimensions else None,
                )
            )
            t, d = t_end, d_end
        return tuple(readouts)

    def _bucket_headers(self, count: int, header_bytes: int, dtype: np.dtype[Any]) -> NDArray[np.void]:
        if header_bytes != count * dtype.itemsize:
            raise ProtocolError(
                f"a bucket of {count} items must hold {count * dtype.itemsize} header bytes, it claims {header_bytes}"
            )
        return self._take(header_bytes).copy().view(dtype)

    def _bucket_stats(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        return tuple(
            tuple(
                tuple(int(n) for n in self._take(2 * self._count("counter values")).copy().view("<u2"))
                for _ in range(_STATS_SETS)
            )
            for _ in range(self._count("encoding spaces"))
        )

    def _bucket_waveforms(self, count: int, header_bytes: int, data_bytes: int) -> tuple[Waveform, ...]:
        headers = self._bucket_headers(count, header_bytes, WAVEFORM_HEADER)
        data = self._take(data_bytes).copy()
        waveforms, begin = [], 0
        for header in headers:
            channels, samples = int(header["channels"]), int(header["number_of_samples"])
            end = begin + 4 * channels * samples
            if end > data_bytes:
                raise ProtocolError("a waveform of a bucket needs more bytes than the bucket says it holds")
            waveforms.append(Waveform(header, data[begin:end].view(np.uint32).reshape(channels, samples)))
            begin = end
        return tuple(waveforms)
