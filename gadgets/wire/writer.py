"""Messages to bytes, each sent with one gathering write."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

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
    Bucket,
    BufferedData,
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
)
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Buffer = bytes | NDArray[Any]


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
        if len(name) >= CONFIG_FILE_BYTES:
            raise ProtocolError(f"a configuration name must be shorter than 1024 bytes, got {len(name)}")
        return [U2.pack(MessageId.CONFIG_FILE) + name.ljust(CONFIG_FILE_BYTES, b"\0")]
    if isinstance(message, ConfigText | Header | Text):
        text = message.text.encode()
        return [U2.pack(_TEXT_IDS[type(message)]) + U4.pack(len(text)) + text]
    if isinstance(message, Error):
        return [U2.pack(MessageId.ERROR), *_string(message.text)]
    if isinstance(message, Query):
        return [U2.pack(MessageId.QUERY) + U8.pack(0) + U8.pack(message.correlation), *_string(message.text)]
    if isinstance(message, Response):
        return [U2.pack(MessageId.RESPONSE) + U8.pack(message.correlation), *_string(message.text)]
    if isinstance(message, Waveform):
        return [U2.pack(MessageId.WAVEFORM), *_waveform_buffers(message)]
    if isinstance(message, ReconData):
        return _recon_data_buffers(message)
    if isinstance(message, ImageArray):
        return _image_array_buffers(message)
    if isinstance(message, Bucket):
        return _bucket_buffers(message)
    return [U2.pack(MessageId.CLOSE)]


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
    return [U8.pack(len(data)), data]


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
    front = U2.pack(MessageId.IMAGE) + header.tobytes() + U8.pack(len(attributes)) + attributes
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
        return [U8.pack(0)]
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
    buffers: list[Buffer] = [U2.pack(MessageId.RECON_DATA) + U8.pack(len(recon.bits))]
    for data, reference in recon.bits:
        buffers += _buffered_buffers(data)
        buffers += [b"\0"] if reference is None else [b"\1", *_buffered_buffers(reference)]
    return buffers


def _image_array_buffers(images: ImageArray) -> list[Buffer]:
    buffers: list[Buffer] = [U2.pack(MessageId.IMAGE_ARRAY)]
    buffers += _array_buffers(images.data, np.dtype("<c8"))
    buffers += _array_buffers(images.headers, IMAGE_HEADER)
    buffers.append(U8.pack(len(images.attributes)))
    for text in images.attributes:
        buffers += _string(text)
    if images.waveforms is None:
        buffers.append(b"\0")
    else:
        buffers.append(b"\1" + U8.pack(len(images.waveforms)))
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
        stats_bytes = U8.pack(len(stats)) + b"".join(
            U8.pack(len(values)) + np.array(values, "<u2").tobytes() for space in stats for values in space
        )
        sizes += [sum(len(part) for part in readouts), len(headers), len(data), len(trajectories)]
        stats_sizes.append(len(stats_bytes))
        parts += [headers, trajectories, data, stats_bytes]
    waveforms = [_waveform_buffers(waveform) for waveform in bucket.waveforms]
    waveform_headers = b"".join(_bytes_of(head) for head, _ in waveforms)
    waveform_data = b"".join(_bytes_of(data) for _, data in waveforms)
    sizes += [*stats_sizes, len(waveforms), len(waveform_headers), len(waveform_data)]
    return [U2.pack(MessageId.BUCKET) + struct.pack("<13Q", *sizes), *parts, waveform_headers, waveform_data]
