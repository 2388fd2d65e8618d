"""Passing a scan on to the resident server, whose engine is warm."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

from gadgets.connection.server import DEFAULT_HOST, DEFAULT_PORT
from gadgets.wire.messages import Close, ConfigText, Error, Header, Query, Response, Text
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gadgets.wire.messages import Message


logger = logging.getLogger("cinestream")

SERVER_VARIABLE = "CINESTREAM_SERVER"
_PROBE_SECONDS = 1.0
_SILENCE_SECONDS = 10.0  # how long a Gadgetron may take for its CLOSE after ours


def resident_server() -> socket.socket | None:
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


def relay(gadgetron: socket.socket, server: socket.socket, begun: Sequence[ConfigText | Header]) -> bool:
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
