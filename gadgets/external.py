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
from typing import TYPE_CHECKING, Any

from gadgets.protocol import (
    Close,
    ConfigText,
    Error,
    Header,
    Query,
    Reader,
    Response,
    Writer,
)
from gadgets.server import DEFAULT_HOST, DEFAULT_PORT, SharedEngine
from gadgets.session import Session
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("cinestream")

SERVER_VARIABLE = "CINESTREAM_SERVER"
_PROBE_SECONDS = 1.0


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
            Session(gadgetron, SharedEngine(), begun=begun).run()
            if server is None
            else _relay(gadgetron, server, begun)
        )
    if not good:
        sys.exit(1)


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
    except (OSError, ProtocolError):
        pass
    if server is not None:
        server.close()
    return None


def _relay(gadgetron: socket.socket, server: socket.socket, begun: Sequence[ConfigText | Header]) -> bool:
    """Pass the scan on as its bytes come, and the server's messages back one by one."""
    to_gadgetron, to_server = Writer.of_socket(gadgetron), Writer.of_socket(server)
    with server:
        for start in begun:
            to_server.send(start)
        pump = threading.Thread(target=_pump, args=(gadgetron, server), name="cinestream-pump", daemon=True)
        pump.start()
        good, reader = True, Reader.of_socket(server)
        try:
            while not isinstance(message := reader.read(), Close):
                good = good and not isinstance(message, Error)
                to_gadgetron.send(message)
        except (OSError, ProtocolError):
            good = False
            text = "the resident cinestream server ended within the scan; see its log, and replay the raw data"
            to_gadgetron.send(Error(text))
        to_gadgetron.send(Close())
        pump.join()
    return good


def _pump(gadgetron: socket.socket, server: socket.socket) -> None:
    """Pass on all bytes up to CLOSE; take them in to the end even when the server is gone."""

    def receive(buffer: memoryview) -> int:
        count = gadgetron.recv_into(buffer)
        with contextlib.suppress(OSError):
            server.sendall(buffer[:count])
        return count

    reader = Reader(receive)
    with contextlib.suppress(OSError, ProtocolError):
        while not isinstance(reader.read(), Close):
            pass
