"""Messages out of a socket, a binary file, or objects of the package ismrmrd."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Message,
    Query,
    Readouts,
    Text,
    Waveform,
)
from gadgets.wire.reader import Reader
from recon_core.errors import DataError, HeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BEFORE_THE_HEADER = (ConfigFile, ConfigText, Text, Query)


def messages_of(source: Any) -> Iterator[Message]:  # noqa: ANN401
    """The messages of a socket, a binary file, or what is iterated over, up to the end of the scan."""
    if isinstance(source, socket.socket):
        source = Reader.of_socket(source)
    elif hasattr(source, "readinto"):
        source = Reader(source.readinto)
    for item in source:
        message = _from_ismrmrd(item) if hasattr(item, "getHead") else item
        if isinstance(message, Close):
            return
        if not isinstance(message, Message):
            raise DataError(f"expected messages, or acquisitions and waveforms of ismrmrd, got {type(item).__name__}")
        yield message


def header_of(items: Iterator[Message]) -> str:
    """The scan header, which a configuration and texts may precede."""
    for message in items:
        if isinstance(message, Header):
            return message.text
        if not isinstance(message, _BEFORE_THE_HEADER):
            raise HeaderError(f"expected the scan header first, got {type(message).__name__}; give it as header=...")
    raise HeaderError("the stream ended before the scan header")


def _from_ismrmrd(item: Any) -> Readouts | Waveform:  # noqa: ANN401 - of a package without types
    """Make a message of an acquisition or a waveform of the package ismrmrd."""
    head = bytes(item.getHead())
    if len(head) == WAVEFORM_HEADER.itemsize:
        return Waveform(np.frombuffer(head, WAVEFORM_HEADER)[0], np.asarray(item.data, np.uint32))
    headers = np.frombuffer(head, ACQUISITION_HEADER).copy()
    path = np.asarray(item.traj, np.float32)[None] if item.traj.size else None
    return Readouts(headers, np.asarray(item.data, np.complex64)[None], path)
