"""The ISMRMRD message protocol: every message a session can meet, read and written byte for byte.

A message is a little-endian uint16 id and a body whose length follows from the body itself, so an unknown id makes the
rest of a stream unreadable. Nothing here trusts a length that a peer claims: each is checked against `Limits` before
memory is taken for it, and the end of the stream is recognised wherever it comes.

Readouts arrive by the thousand and all alike. `Reader` therefore hands out runs of equally shaped readouts as one
`Readouts` block of views into its receive buffer: no copy and a handful of NumPy calls per run, whatever its length.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Buffer = bytes | NDArray[Any]


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


class AcquisitionFlag(IntEnum):
    """Flags of a readout by their 1-based ISMRMRD numbers; `bit` is what stands in the header."""

    FIRST_IN_ENCODE_STEP1 = 1
    LAST_IN_ENCODE_STEP1 = 2
    FIRST_IN_SLICE = 7
    LAST_IN_SLICE = 8
    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    NOISE = 19
    PARALLEL_CALIBRATION = 20
    CALIBRATION_AND_IMAGING = 21
    REVERSE = 22
    NAVIGATION = 23
    PHASE_CORRECTION = 24
    LAST_IN_MEASUREMENT = 25
    HP_FEEDBACK = 26
    DUMMY = 27
    RT_FEEDBACK = 28
    SURFACE_COIL_CORRECTION = 29
    PHASE_STABILIZATION_REFERENCE = 30
    PHASE_STABILIZATION = 31
    COMPRESSION_ZFP = 53
    COMPRESSION_NHLBI = 54

    @property
    def bit(self) -> np.uint64:
        """The mask of this flag in the header's flag word."""
        return np.uint64(1 << (self.value - 1))


def flag_mask(*flags: AcquisitionFlag) -> np.uint64:
    """Mask with the bits of all given flags."""
    return np.uint64(sum(1 << (flag.value - 1) for flag in flags))


ENCODING_COUNTERS = np.dtype(
    [
        ("kspace_encode_step_1", "<u2"),
        ("kspace_encode_step_2", "<u2"),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("segment", "<u2"),
        ("user", "<u2", (8,)),
    ]
)
ACQUISITION_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", ENCODING_COUNTERS),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
IMAGE_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", (3,)),
        ("field_of_view", "<f4", (3,)),
        ("channels", "<u2"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
        ("attribute_string_len", "<u4"),
    ]
)
WAVEFORM_HEADER = np.dtype(
    {
        "names": [
            "version",
            "flags",
            "measurement_uid",
            "scan_counter",
            "time_stamp",
            "number_of_samples",
            "channels",
            "sample_time_us",
            "waveform_id",
        ],
        "formats": ["<u2", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<f4", "<u2"],
        "offsets": [0, 8, 16, 20, 24, 28, 30, 32, 36],
        "itemsize": 40,
    }
)
SAMPLING_DESCRIPTION = np.dtype(
    {
        "names": ["encoded_fov", "recon_fov", "encoded_matrix", "recon_matrix", "limits"],
        "formats": [
            ("<f4", (3,)),
            ("<f4", (3,)),
            ("<u2", (3,)),
            ("<u2", (3,)),
            ([("minimum", "<u2"), ("center", "<u2"), ("maximum", "<u2")], (3,)),
        ],
        "offsets": [0, 12, 24, 30, 36],
        "itemsize": 56,
    }
)
IMAGE_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
IMAGE_TYPE_MAGNITUDE = 1
IMAGE_TYPE_COMPLEX = 5


# --- messages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigFile:
    """Name of a configuration that the server knows (id 1)."""

    name: str


@dataclass(frozen=True)
class ConfigText:
    """A configuration itself, as XML (id 2)."""

    text: str


@dataclass(frozen=True)
class Header:
    """The ISMRMRD header of the scan, as XML (id 3)."""

    text: str


@dataclass(frozen=True)
class Close:
    """The sender's last message (id 4)."""


@dataclass(frozen=True)
class Text:
    """A line of log, or FIRE's JSON parameters (id 5)."""

    text: str


@dataclass(frozen=True)
class Query:
    """A question about the server (id 6)."""

    correlation: int
    text: str


@dataclass(frozen=True)
class Response:
    """The answer to a `Query` (id 7)."""

    correlation: int
    text: str


@dataclass(frozen=True)
class Error:
    """What went wrong, told to a Gadgetron by its external peer (id 8)."""

    text: str


@dataclass(frozen=True)
class Readouts:
    """A run of equally shaped readouts (id 1008, one message each).

    Parameters
    ----------
    headers
        ``(readout,)`` array of `ACQUISITION_HEADER`.
    data
        ``(readout, coil, sample)`` complex64; may be a read-only or unaligned view of a receive buffer.
    trajectory
        ``(readout, sample, dimension)`` float32, or None when the header claims no dimensions.
    """

    headers: NDArray[np.void]
    data: NDArray[np.complex64]
    trajectory: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Count the readouts."""
        return len(self.headers)

    def __getitem__(self, which: slice | NDArray[Any]) -> Readouts:
        """Pick some of the readouts."""
        return Readouts(
            self.headers[which], self.data[which], None if self.trajectory is None else self.trajectory[which]
        )


@dataclass(frozen=True)
class Waveform:
    """A stretch of a physiological signal (id 1026): ``data`` is ``(channel, sample)`` uint32."""

    header: NDArray[np.void]
    data: NDArray[np.uint32]


@dataclass(frozen=True)
class Image:
    """One image (id 1022): ``data`` is ``(channel, z, y, x)``, ``attributes`` its meta data as XML or empty."""

    header: NDArray[np.void]
    data: NDArray[Any]
    attributes: str = ""


@dataclass(frozen=True)
class BufferedData:
    """One buffer of `ReconData`.

    ``data`` ``[E0, E1, E2, CHA, N, S, LOC]`` complex64, ``trajectory`` ``[TRAJ, E0, E1, E2, N, S, LOC]`` and
    ``density`` ``[E0, E1, E2, N, S, LOC]`` float32 or None, ``headers`` ``[E1, E2, N, S, LOC]`` of
    `ACQUISITION_HEADER` (all zero where a line was never measured), ``sampling`` one `SAMPLING_DESCRIPTION`. Arrays
    are in Fortran order, as sent.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    sampling: NDArray[np.void]
    trajectory: NDArray[np.float32] | None = None
    density: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ReconData:
    """Buffered k-space (id 1023): a (data, reference or None) pair for every encoding space."""

    bits: tuple[tuple[BufferedData, BufferedData | None], ...]


@dataclass(frozen=True)
class ImageArray:
    """Complex images together (id 1024).

    ``data`` ``[X, Y, Z, CHA, N, S, LOC]`` complex64, ``headers`` ``[N, S, LOC]`` of `IMAGE_HEADER`, ``attributes`` one
    XML text per image (index ``n + s*N + loc*N*S``) or none, ``waveforms`` and ``acquisitions`` ``[Y, Z, N, S, LOC]``
    or None. Arrays are in Fortran order, as sent.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    attributes: tuple[str, ...] = ()
    waveforms: tuple[Waveform, ...] | None = None
    acquisitions: NDArray[np.void] | None = None


@dataclass(frozen=True)
class Bucket:
    """Readouts that were gathered by a trigger (id 1050).

    ``data_stats`` and ``reference_stats`` hold, per encoding space, the sets of counter values seen, in the order E1,
    E2, slice, phase, contrast, repetition, set, segment, average.
    """

    data: tuple[Readouts, ...]
    reference: tuple[Readouts, ...]
    data_stats: tuple[tuple[tuple[int, ...], ...], ...]
    reference_stats: tuple[tuple[tuple[int, ...], ...], ...]
    waveforms: tuple[Waveform, ...]


Message = (
    ConfigFile
    | ConfigText
    | Header
    | Close
    | Text
    | Query
    | Response
    | Error
    | Readouts
    | Waveform
    | Image
    | ReconData
    | ImageArray
    | Bucket
)


class EndOfStreamError(ProtocolError):
    """The peer is gone: its stream ended without a CLOSE message, or inside a message."""


@dataclass(frozen=True)
class Limits:
    """The largest claims that are believed; a claim above means a broken or hostile peer, not a large scan."""

    text_bytes: int = 64 << 20
    message_bytes: int = 1 << 30
    container_bytes: int = 8 << 30
    container_items: int = 1 << 22


# --- reading ----------------------------------------------------------------------------------------------------------

_U2 = struct.Struct("<H")
_U4 = struct.Struct("<I")
_U8 = struct.Struct("<Q")
_READOUT_SHAPE = struct.Struct("<H2xH")  # number_of_samples, active_channels
_CONFIG_FILE_BYTES = 1024
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
            MessageId.CONFIG_TEXT: lambda: ConfigText(self._text(_U4)),
            MessageId.HEADER: lambda: Header(self._text(_U4)),
            MessageId.CLOSE: Close,
            MessageId.TEXT: lambda: Text(self._text(_U4)),
            MessageId.QUERY: self._query,
            MessageId.RESPONSE: lambda: Response(self._u8(), self._text(_U8)),
            MessageId.ERROR: lambda: Error(self._text(_U8)),
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
        number = _U2.unpack_from(self._view, self._start)[0]
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
        return int(_U8.unpack(self._take(8).data)[0])

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
        return ConfigFile(self._take(_CONFIG_FILE_BYTES).tobytes().split(b"\0", 1)[0].decode("utf-8", "replace"))

    def _query(self) -> Query:
        self._u8()  # reserved
        return Query(self._u8(), self._text(_U8))

    def _readouts(self) -> Readouts:
        self._within = "within a readout"
        head_bytes = _ID_BYTES + ACQUISITION_HEADER.itemsize
        if self._end - self._start < head_bytes:
            self._fill(head_bytes)
        head = self._start + _ID_BYTES
        samples, coils = _READOUT_SHAPE.unpack_from(self._view, head + _OFFSET["number_of_samples"])
        dimensions = _U2.unpack_from(self._view, head + _OFFSET["trajectory_dimensions"])[0]
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
        attributes = self._text(_U8)
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
        attributes = tuple(self._text(_U8) for _ in range(self._count("meta texts")))
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


# --- writing ----------------------------------------------------------------------------------------------------------


def encode(message: Message) -> list[Buffer]:
    """Turn a message into the buffers that stand on the wire one after another.

    Raises
    ------
    ProtocolError
        If the message cannot be written: a configuration name of more than 1023 bytes, an image of an unknown type.
    """
    if isinstance(message, Readouts):
        return [_readout_bytes(message)]
    if isinstance(message, Image):
        return _image_buffers(message)
    if isinstance(message, ConfigFile):
        name = message.name.encode()
        if len(name) >= _CONFIG_FILE_BYTES:
            raise ProtocolError(f"a configuration name must be shorter than 1024 bytes, got {len(name)}")
        return [_U2.pack(MessageId.CONFIG_FILE) + name.ljust(_CONFIG_FILE_BYTES, b"\0")]
    if isinstance(message, ConfigText | Header | Text):
        text = message.text.encode()
        return [_U2.pack(_TEXT_IDS[type(message)]) + _U4.pack(len(text)) + text]
    if isinstance(message, Error):
        return [_U2.pack(MessageId.ERROR), *_string(message.text)]
    if isinstance(message, Query):
        return [_U2.pack(MessageId.QUERY) + _U8.pack(0) + _U8.pack(message.correlation), *_string(message.text)]
    if isinstance(message, Response):
        return [_U2.pack(MessageId.RESPONSE) + _U8.pack(message.correlation), *_string(message.text)]
    if isinstance(message, Waveform):
        return [_U2.pack(MessageId.WAVEFORM), *_waveform_buffers(message)]
    if isinstance(message, ReconData):
        return _recon_data_buffers(message)
    if isinstance(message, ImageArray):
        return _image_array_buffers(message)
    if isinstance(message, Bucket):
        return _bucket_buffers(message)
    return [_U2.pack(MessageId.CLOSE)]


_TEXT_IDS: dict[type, MessageId] = {
    ConfigText: MessageId.CONFIG_TEXT,
    Header: MessageId.HEADER,
    Text: MessageId.TEXT,
}


@dataclass
class Writer:
    """Sends each message with one gathering write, whole, whatever the socket takes at a time.

    Parameters
    ----------
    sendmsg
        A connected socket's ``sendmsg``, or anything that takes a list of buffers and returns how many bytes it took.
    """

    sendmsg: Callable[[Sequence[Any]], int]
    _most_buffers: ClassVar[int] = 512  # below IOV_MAX of every system
    bytes_written: int = field(default=0, init=False)

    @classmethod
    def of_socket(cls, connection: socket.socket) -> Writer:
        """Write to a connected socket."""
        return cls(connection.sendmsg)

    def send(self, message: Message) -> None:
        """Send one message."""
        self.send_buffers(encode(message))

    def send_buffers(self, buffers: Sequence[Buffer]) -> None:
        """Send buffers that already are messages, whole."""
        pending = [view for view in map(_bytes_of, buffers) if len(view)]
        while pending:
            sent = self.sendmsg(pending[: self._most_buffers])
            self.bytes_written += sent
            while pending and sent >= len(pending[0]):
                sent -= len(pending[0])
                pending.pop(0)
            if sent:
                pending[0] = pending[0][sent:]


def _bytes_of(buffer: Buffer) -> memoryview:
    return memoryview(buffer) if isinstance(buffer, bytes) else buffer.reshape(-1).view(np.uint8).data


def _string(text: str) -> list[Buffer]:
    data = text.encode()
    return [_U8.pack(len(data)), data]


def _readout_bytes(readouts: Readouts) -> NDArray[np.uint8]:
    count, coils, samples = readouts.data.shape
    dimensions = 0 if readouts.trajectory is None else readouts.trajectory.shape[2]
    message = np.dtype(
        [
            ("id", "<u2"),
            ("head", ACQUISITION_HEADER),
            ("trajectory", "<f4", (samples, dimensions)),
            ("data", "<c8", (coils, samples)),
        ]
    )
    messages = np.empty(count, message)
    messages["id"] = MessageId.ACQUISITION
    messages["head"] = readouts.headers
    messages["head"]["number_of_samples"] = samples
    messages["head"]["active_channels"] = coils
    messages["head"]["trajectory_dimensions"] = dimensions
    if readouts.trajectory is not None:
        messages["trajectory"] = readouts.trajectory
    messages["data"] = readouts.data
    return messages.view(np.uint8)


def _image_buffers(image: Image) -> list[Buffer]:
    data = np.ascontiguousarray(image.data)
    data_type = _DATA_TYPES.get(data.dtype)
    if data_type is None or data.ndim != 4:
        raise ProtocolError(f"an image must be (channel, z, y, x) of an ISMRMRD type, got {data.shape} {data.dtype}")
    attributes = image.attributes.encode()
    header = np.array(image.header, IMAGE_HEADER)
    header["data_type"] = data_type
    header["channels"] = data.shape[0]
    header["matrix_size"] = data.shape[:0:-1]
    header["attribute_string_len"] = len(attributes)
    front = _U2.pack(MessageId.IMAGE) + header.tobytes() + _U8.pack(len(attributes)) + attributes
    return [front, data]


_DATA_TYPES = {dtype: number for number, dtype in IMAGE_DTYPES.items()}


def _waveform_buffers(waveform: Waveform) -> list[Buffer]:
    data = np.ascontiguousarray(waveform.data, "<u4")
    header = _zero_padded(waveform.header, WAVEFORM_HEADER)
    header["channels"], header["number_of_samples"] = data.shape
    return [header.tobytes(), data]


def _zero_padded(record: NDArray[np.void], dtype: np.dtype[Any]) -> NDArray[np.void]:
    """Copy a record field by field, so that equal records are equal bytes and no stale memory leaves."""
    out = np.zeros((), dtype)
    for name in dtype.names or ():
        out[name] = record[name]
    return out


def _array_buffers(array: NDArray[Any], dtype: np.dtype[Any]) -> list[Buffer]:
    if array.size == 0 and array.ndim <= 1:
        return [_U8.pack(0)]
    if array.dtype != dtype:
        wanted, got = ("header records" if kind.names else kind.name for kind in (dtype, array.dtype))
        raise ProtocolError(f"expected an array of {wanted}, got {got}")
    return [struct.pack(f"<{array.ndim + 1}Q", array.ndim, *array.shape), array.tobytes(order="F")]


def _optional(array: NDArray[Any] | None, dtype: np.dtype[Any]) -> list[Buffer]:
    return [b"\0"] if array is None else [b"\1", *_array_buffers(array, dtype)]


def _buffered_buffers(buffered: BufferedData) -> list[Buffer]:
    return [
        *_array_buffers(buffered.data, np.dtype("<c8")),
        *_optional(buffered.trajectory, np.dtype("<f4")),
        *_optional(buffered.density, np.dtype("<f4")),
        *_array_buffers(buffered.headers, ACQUISITION_HEADER),
        _zero_padded(buffered.sampling, SAMPLING_DESCRIPTION).tobytes(),
    ]


def _recon_data_buffers(recon: ReconData) -> list[Buffer]:
    buffers: list[Buffer] = [_U2.pack(MessageId.RECON_DATA) + _U8.pack(len(recon.bits))]
    for data, reference in recon.bits:
        buffers += _buffered_buffers(data)
        buffers += [b"\0"] if reference is None else [b"\1", *_buffered_buffers(reference)]
    return buffers


def _image_array_buffers(images: ImageArray) -> list[Buffer]:
    buffers: list[Buffer] = [_U2.pack(MessageId.IMAGE_ARRAY)]
    buffers += _array_buffers(images.data, np.dtype("<c8"))
    buffers += _array_buffers(images.headers, IMAGE_HEADER)
    buffers.append(_U8.pack(len(images.attributes)))
    for text in images.attributes:
        buffers += _string(text)
    if images.waveforms is None:
        buffers.append(b"\0")
    else:
        buffers.append(b"\1" + _U8.pack(len(images.waveforms)))
        for waveform in images.waveforms:
            buffers += _waveform_buffers(waveform)
    buffers += _optional(images.acquisitions, ACQUISITION_HEADER)
    return buffers


def _bucket_buffers(bucket: Bucket) -> list[Buffer]:
    sizes: list[int] = []
    parts: list[Buffer] = []
    stats_sizes: list[int] = []
    for readouts, stats in ((bucket.data, bucket.data_stats), (bucket.reference, bucket.reference_stats)):
        headers = b"".join(part.headers.tobytes() for part in readouts)
        trajectories = b"".join(part.trajectory.tobytes() for part in readouts if part.trajectory is not None)
        data = b"".join(part.data.tobytes() for part in readouts)
        stats_bytes = _U8.pack(len(stats)) + b"".join(
            _U8.pack(len(values)) + np.array(values, "<u2").tobytes() for space in stats for values in space
        )
        sizes += [sum(len(part) for part in readouts), len(headers), len(data), len(trajectories)]
        stats_sizes.append(len(stats_bytes))
        parts += [headers, trajectories, data, stats_bytes]
    waveforms = [_waveform_buffers(waveform) for waveform in bucket.waveforms]
    waveform_headers = b"".join(_bytes_of(head) for head, _ in waveforms)
    waveform_data = b"".join(_bytes_of(data) for _, data in waveforms)
    sizes += [*stats_sizes, len(waveforms), len(waveform_headers), len(waveform_data)]
    return [_U2.pack(MessageId.BUCKET) + struct.pack("<13Q", *sizes), *parts, waveform_headers, waveform_data]
