"""Where the resident server of this machine is, and how it is known; light to import."""

from __future__ import annotations

import logging
import os
import socket

from gadgets.wire.framing import Frames, MessageId, query_message
from recon_core.errors import ProtocolError

logger = logging.getLogger("cinestream")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9012  # a Gadgetron on the same machine has 9002
SERVER_VARIABLE = "CINESTREAM_SERVER"
OWN_VERSION = "cinestream::version"
UNKNOWN_QUERY = "Unknown query"  # as a Gadgetron says it
_PROBE_SECONDS = 1.0
_LONGEST_ANSWER = 4096  # bytes


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
        server.sendall(query_message(1, OWN_VERSION))
        answer = Frames(server.recv_into, keep=True, most=_LONGEST_ANSWER).read()
        if answer.number == MessageId.RESPONSE and answer.text != UNKNOWN_QUERY:
            server.settimeout(None)
            logger.info("passing the scan on to the resident server %s", where)
            return server
    except (OSError, ValueError, ProtocolError):  # ValueError: a host or port that cannot be one
        pass
    if server is not None:
        server.close()
    return None
