"""A process that reconstructs scans for the front of a server: connections come as open sockets of this machine."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import pickle
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gadgets.connection.news import Room, ToldRecord
from gadgets.connection.scan_log import log_as_server
from gadgets.connection.server import SharedEngine, warm_up
from gadgets.connection.session import Resources, Session, SessionOptions
from recon_core.budget import return_freed, share_freed
from recon_core.children import Child
from recon_core.own_methods import allow_methods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gadgets.connection.looks import Images, Viewer

logger = logging.getLogger("cinestream")

_MOST_SOCKETS = 64  # that come at a time


@dataclass(frozen=True)
class WorkerOptions:
    """What all workers of a server have in common."""

    session: SessionOptions
    """For every session."""
    methods: tuple[str, ...] = ()
    """Methods of the operator's own that a peer may ask for."""
    log_format: str = "text"
    """One of `gadgets.connection.scan_log.FORMATS`."""
    level: int = logging.WARNING
    """Of what is logged."""
    names: bool = False
    """Tell the front the names of patients."""
    viewer: Callable[[], Viewer] | None = None
    """Makes what keeps images for the page of the front; None where there is no page. What can be pickled."""

    def start(self, environment: Mapping[str, str]) -> Child:
        """Start a worker.

        Raises
        ------
        ResourceError
            If no process can be started.
        """
        packed = base64.b64encode(pickle.dumps(self)).decode()
        return Child("gadgets.connection.worker:work", {"packed": packed}, environment)


def work(control: socket.socket, packed: str) -> None:
    """Run a session for every socket that comes, until the front is gone; in a `recon_core.children.Child`."""
    options: WorkerOptions = pickle.loads(base64.b64decode(packed))  # noqa: S301 - of our own parent
    logging.basicConfig(level=max(options.level, logging.INFO), stream=sys.stderr)
    logger.setLevel(options.level)
    log_as_server(options.log_format)
    share_freed()
    allow_methods(options.methods)
    engine, scans = SharedEngine(), ToldRecord(control, lambda: _room(resources), names=options.names)
    resources = Resources(options.session, scans)
    if options.viewer is not None:
        scans.viewer = options.viewer()
        logging.getLogger().addHandler(scans.log)

    def prepare() -> None:
        scans.fault = warm_up(engine)

    for name, task in (("warm-up", prepare), ("news", scans.keep_telling)):
        threading.Thread(target=task, name=f"cinestream-{name}", daemon=True).start()
    sessions: dict[int, Session] = {}

    def run(number: int, connection: socket.socket) -> None:
        try:
            with connection:
                sessions[number].run()
        finally:
            del sessions[number]
            return_freed()

    for message, connection in _messages(control):
        if "look" in message:
            arguments = (scans.viewer, message["look"], connection)
            threading.Thread(target=show, args=arguments, name="cinestream-look", daemon=True).start()
            continue
        number = int(message["number"])
        if connection is not None:
            sessions[number] = Session(
                connection, engine, options.session, resources=resources, peer=str(message["peer"])
            )
            threading.Thread(target=run, args=(number, connection), name="cinestream-session", daemon=True).start()
        elif number in sessions:
            with contextlib.suppress(KeyError):  # it has ended meanwhile
                sessions[number].stop(str(message["stop"]))


def show(images: Images | None, look: tuple[str, str, int], connection: socket.socket) -> None:
    """Send what the front wants to look at: the name of a method of `Images`, scan and number; then close."""
    name, scan, number = look
    with connection, contextlib.suppress(OSError):
        if images is not None:
            connection.sendall(getattr(images, name)(scan, number))


def _room(resources: Resources) -> Room:
    queues, budget = resources.queues, resources.budget
    return Room(queues.used, queues.limit, budget.used, budget.limit)


def send_session(control: socket.socket, number: int, peer: str, connection: socket.socket) -> None:
    """Hand a connection to a worker; the number is what `send_stop` takes. As `_send_socket`."""
    _send_socket(control, {"number": number, "peer": peer}, connection)


def send_look(control: socket.socket, name: str, scan: str, number: int, connection: socket.socket) -> None:
    """Let a worker write into a connection what this method of `Images` gives. As `_send_socket`."""
    _send_socket(control, {"look": (name, scan, number)}, connection)


def _send_socket(control: socket.socket, message: dict[str, Any], connection: socket.socket) -> None:
    """Send a message with a socket, which the caller closes.

    Parameters
    ----------
    control
        Our end of the socket of the worker.
    message, connection
        What is sent.

    Raises
    ------
    OSError
        If the worker is gone.
    """
    socket.send_fds(control, [_line({**message, "socket": True})], [connection.fileno()])


def send_stop(control: socket.socket, number: int, why: str) -> None:
    """Let a worker end a session.

    Raises
    ------
    OSError
        If the worker is gone.
    """
    control.sendall(_line({"number": number, "stop": why}))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _messages(control: socket.socket) -> Iterator[tuple[dict[str, Any], socket.socket | None]]:
    """Messages of the front, with the socket of those that carry one."""
    begun, sockets = b"", list[socket.socket]()
    while True:
        block, numbers, _, _ = socket.recv_fds(control, 1 << 16, _MOST_SOCKETS)
        if not block:
            return
        sockets += [socket.socket(fileno=number) for number in numbers]
        *lines, begun = (begun + block).split(b"\n")
        for line in lines:
            message = json.loads(line)
            yield message, sockets.pop(0) if message.get("socket") else None
