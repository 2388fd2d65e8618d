"""Messages to bytes, each sent with one gathering write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gadgets.wire.containers import (
    Bucket,
    ImageArray,
    ReconData,
    bucket_parts,
    image_array_parts,
    recon_data_parts,
    waveform_parts,
)
from gadgets.wire.framing import (
    CONFIG_FILE_BYTES,
    U2,
    U8,
    MessageId,
    error_message,
    query_message,
    text_message,
)
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
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
    Waveform,
)
from gadgets.wire.parts import bytes_of, text_parts
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from gadgets.wire.parts import Buffer

_DATA_TYPES = {dtype: number for number, dtype in IMAGE_DTYPES.items()}


def encode(message: Message) -> list[Buffer]:
    """Turn a message into the buffers that stand on the wire one after another.

    Raises
    ------
    ProtocolError
        If the message cannot be written: a configuration name of more than 1023 bytes, an image of an unknown type.
    """
    kind = next(kind for kind in type(message).__mro__ if kind in _ENCODERS)  # also of a class that adds to a message
    return _ENCODERS[kind](message)


@dataclass
class Writer:
    """Sends each message with one gathering write, whole, whatever the socket takes at a time."""

    sendmsg: Callable[[Sequence[Any]], int]
    """A connected socket's ``sendmsg``, or anything that takes a list of buffers and returns how many bytes it took."""
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
        pending = [view for view in map(bytes_of, buffers) if len(view)]
        while pending:
            sent = self.sendmsg(pending[: self._most_buffers])
            self.bytes_written += sent
            while pending and sent >= len(pending[0]):
                sent -= len(pending[0])
                pending.pop(0)
            if sent:
                pending[0] = pending[0][sent:]


def _readout_parts(readouts: Readouts) -> list[Buffer]:
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
    return [messages.view(np.uint8)]


def _image_parts(image: Image) -> list[Buffer]:
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


def _config_file_parts(message: ConfigFile) -> list[Buffer]:
    name = message.name.encode()
    if len(name) >= CONFIG_FILE_BYTES:
        raise ProtocolError(f"a configuration name must be shorter than 1024 bytes, got {len(name)}")
    return [U2.pack(MessageId.CONFIG_FILE) + name.ljust(CONFIG_FILE_BYTES, b"\0")]


_ENCODERS: dict[type[Message], Callable[[Any], list[Buffer]]] = {
    ConfigFile: _config_file_parts,
    ConfigText: lambda message: [text_message(MessageId.CONFIG_TEXT, message.text)],
    Header: lambda message: [text_message(MessageId.HEADER, message.text)],
    Close: lambda _: [U2.pack(MessageId.CLOSE)],
    Text: lambda message: [text_message(MessageId.TEXT, message.text)],
    Query: lambda query: [query_message(query.correlation, query.text)],
    Response: lambda answer: [U2.pack(MessageId.RESPONSE) + U8.pack(answer.correlation), *text_parts(answer.text)],
    Error: lambda error: [error_message(error.text)],
    Readouts: _readout_parts,
    Image: _image_parts,
    Waveform: lambda waveform: [U2.pack(MessageId.WAVEFORM), *waveform_parts(waveform)],
    ReconData: recon_data_parts,
    ImageArray: image_array_parts,
    Bucket: bucket_parts,
}
