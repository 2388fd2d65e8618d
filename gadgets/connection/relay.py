"""Passing a scan on to the resident server, which has a warm engine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

from gadgets.connection.drain import Drain
from gadgets.connection.handshake import Dialect
from gadgets.connection.questions import OWN_VERSION, UNKNOWN
from gadgets.connection.server import DEFAULT_HOST, DEFAULT_PORT
from gadgets.wire.messages import Close, Error, Query, Response
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gadgets.wire.messages import ConfigText, Header, Message


logger = logging.getLogger("cinestream")

SERVER_VARIABLE = "CINESTREAM_SERVER"
_PROBE_SECONDS = 1.0


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
        Writer.of_socket(server).send(Query(1, OWN_VERSION))
        answer = Reader(server.recv_into, chunk_bytes=4096).read()
        if isinstance(answer, Response) and answer.text != UNKNOWN:
            server.settimeout(None)
            logger.info("passing the scan on to the resident server %s", where)
            return server
    except (OSError, ValueError, ProtocolError):  # ValueError: a host or port that cannot be one
        pass
    if server is not None:
        server.close()
    return None


def relay(gadgetron: socket.socket, server: socket.socket, begun: Sequence[ConfigText | Header]) -> bool:
    """Pass a scan on to the resident server, and its images back.

    Parameters
    ----------
    gadgetron
        Connection of the external node; its bytes are passed on as they come.
    server
        From `resident_server`; it is closed at the end.
    begun
        Configuration and header, which were read from the Gadgetron already.

    Returns
    -------
    bool
        True if the server sent no error and the Gadgetron took everything.
    """

    def pass_on(block: memoryview) -> None:
        with contextlib.suppress(OSError):  # the answers show that the server is gone
            server.sendall(block)

    def end_scan() -> None:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)  # a Gadgetron that is gone must not leave the server waiting

    drain = Drain(gadgetron, deliver=lambda *_: None, tee=pass_on, ended=end_scan)
    with server:
        with contextlib.suppress(OSError):
            for message in begun:
                Writer.of_socket(server).send(message)
        drain.start()
        try:
            return _pass_back(server, gadgetron)
        except OSError as error:
            logger.warning("the Gadgetron is gone (%s); nothing more can be sent to it", error)
            return False
        finally:
            drain.finish()


def _pass_back(server: socket.socket, gadgetron: socket.socket) -> bool:
    """Send the server's messages to the Gadgetron, in the form that it takes, and CLOSE; gives whether all was well."""
    writer, good = Writer.of_socket(gadgetron), True
    for message in _answers(server):
        form = Dialect.GADGETRON.translate(message)
        if form is not None:
            writer.send(form)
        good = good and not isinstance(form, Error)
    writer.send(Close())
    return good


def _answers(server: socket.socket) -> Iterator[Message]:
    """Messages of the server up to its CLOSE; an error, if its stream ends before."""
    try:
        yield from Reader.of_socket(server)
    except (OSError, ProtocolError):
        yield Error("the resident cinestream server ended within the scan; see its log, and replay the raw data")
