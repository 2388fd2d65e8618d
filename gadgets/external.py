"""The target of a Gadgetron's ``<execute>``: ``python -m gadgetron PORT gadgets.external reconstruct``.

Gadgetron starts a process for every scan. When a resident server of ours runs on this machine the scan is passed on to
its warm engine; otherwise it is reconstructed here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets.noise_store import NoiseStore
from gadgets.protocol import (
    Close,
    ConfigText,
    Error,
    Header,
    Query,
    Reader,
    Response,
    Text,
    Writer,
)
from gadgets.server import DEFAULT_HOST, DEFAULT_PORT, SharedEngine
from gadgets.session import Session, SessionOptions
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gadgets.protocol import Message

logger = logging.getLogger("cinestream")

SERVER_VARIABLE = "CINESTREAM_SERVER"
#: Folders where a Gadgetron's pipelines may name files for CT, separated as in PATH.
CT_VARIABLE = "CINESTREAM_CT_FOLDERS"
#: Folder where noise is kept from scan to scan when no resident server runs; none is kept without it.
NOISE_VARIABLE = "CINESTREAM_NOISE_STORE"
_PROBE_SECONDS = 1.0
_SILENCE_SECONDS = 10.0  # how long a Gadgetron may take for its CLOSE after ours


class _Closed:
    """Stands where the gadgetron package keeps its socket: the session closed it already, and properly."""

    def close(self) -> None:
        """Do nothing."""


def reconstruct(connection: Any) -> None:  # noqa: ANN401 - gadgetron.external.Connection has no types
    """Reconstruct the scan that a Gadgetron sends to this process.

    Parameters
    ----------
    connection
        The ``gadgetron.external.Connection`` of the launcher. Only its socket and the configuration and header it has
        read are used: its read loop never ends when the Gadgetron dies.

    Raises
    ------
    SystemExit
        With status 1 if anything went wrong; the Gadgetron has been told by then.
    """
    begun = ConfigText(_text(connection.raw_bytes.config)), Header(_text(connection.raw_bytes.header))
    gadgetron = connection.socket.socket
    connection.socket = _Closed()
    with gadgetron:
        server = _resident_server()
        good = (
            Session(gadgetron, SharedEngine(), _options(), begun=begun).run()
            if server is None
            else _relay(gadgetron, server, begun)
        )
    if not good:
        sys.exit(1)


def _options() -> SessionOptions:
    folders = tuple(Path(folder) for folder in os.environ.get(CT_VARIABLE, "").split(os.pathsep) if folder)
    noise = os.environ.get(NOISE_VARIABLE, "")
    return SessionOptions(ct_folders=folders, noise_store=NoiseStore(Path(noise)) if noise else None)


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else bytes(raw).rstrip(b"\0").decode("utf-8", "replace")


def _resident_server() -> socket.socket | None:
    """Connect to the resident server, if one answers.

    ``CINESTREAM_SERVER`` may hold ``host:port``, or ``off``.
    """
    where = os.environ.get(SERVER_VARIABLE, f"{DEFAULT_HOST}:{DEFAULT_PORT}")
    host, _, port = where.rpartition(":")
    if where == "off" or not port.isdigit():
        return None
    server = None
    try:
        server = socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS)
        Writer.of_socket(server).send(Query(1, "cinestream::version"))
        answer = Reader(server.recv_into, chunk_bytes=4096).read()
        if isinstance(answer, Response) and answer.text != "Unknown query":
            server.settimeout(None)
            logger.info("passing the scan on to the resident server %s", where)
            return server
    except (OSError, ValueError, ProtocolError):  # ValueError: a host or port that cannot be one
        pass
    if server is not None:
        server.close()
    return None


def _relay(gadgetron: socket.socket, server: socket.socket, begun: Sequence[ConfigText | Header]) -> bool:
    """Pass the scan on as its bytes come, and the server's messages back one by one."""
    to_gadgetron, good = Writer.of_socket(gadgetron), True
    with server:
        pump = threading.Thread(target=_pump, args=(gadgetron, server, begun), name="cinestream-pump", daemon=True)
        pump.start()
        try:
            for message in _answers(server):
                good = good and not isinstance(message, Error | Text)
                # the server speaks to what it takes for a client; a Gadgetron knows errors only
                to_gadgetron.send(Error(message.text) if isinstance(message, Text) else message)
            to_gadgetron.send(Close())
        except OSError as error:
            logger.warning("the Gadgetron is gone (%s); nothing more can be sent to it", error)
            return False
        pump.join(_SILENCE_SECONDS)
    return good


def _answers(server: socket.socket) -> Iterator[Message]:
    """What the server says up to its CLOSE; if it ends before, that is said last."""
    try:
        yield from Reader.of_socket(server)
    except (OSError, ProtocolError):
        yield Error("the resident cinestream server ended within the scan; see its log, and replay the raw data")


def _pump(gadgetron: socket.socket, server: socket.socket, begun: Sequence[ConfigText | Header]) -> None:
    """Pass on all bytes up to CLOSE; take them in to the end even when the server is gone."""

    def receive(buffer: memoryview) -> int:
        count = gadgetron.recv_into(buffer)
        with contextlib.suppress(OSError):
            server.sendall(buffer[:count])
        return count

    with contextlib.suppress(OSError):
        to_server = Writer.of_socket(server)
        for start in begun:
            to_server.send(start)
    with contextlib.suppress(OSError):
        reader, scratch = Reader(receive), memoryview(bytearray(1 << 16))
        try:
            while not isinstance(reader.read(), Close):
                pass
        except ProtocolError:
            while receive(scratch):  # out of step, or gone; the server finds that itself and says so
                pass
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_WR)  # a Gadgetron that is gone must not leave the server waiting
