"""A process that reconstructs scans for the front of a server, and how the front has one on its own machine.

Connections come as open sockets of this machine; `gadgets.connection.ray_worker` has workers of other machines.
"""

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
from typing import TYPE_CHECKING, Any, Protocol

from gadgets.connection.news import Room, ToldRecord, news_of
from gadgets.connection.scan_log import log_as_server
from gadgets.connection.server import SharedEngine, warm_up
from gadgets.connection.session import Resources, Session, SessionOptions
from recon_core.budget import return_freed, share_freed
from recon_core.children import Child, death_in_words
from recon_core.own_methods import allow_methods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gadgets.connection.looks import Images, Viewer
    from gadgets.connection.news import News

logger = logging.getLogger("cinestream")

_MOST_SOCKETS = 64  # that come at a time
_BUFFER_BYTES = 1 << 22  # of the socket to a worker


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


class Worker(Protocol):
    """A worker as the front has it."""

    @property
    def name(self) -> str:
        """Of the process, for the log."""

    @property
    def is_ready(self) -> bool:
        """It takes connections at once."""

    @property
    def has_ended(self) -> bool:
        """It is gone."""

    def news(self) -> Iterator[News]:
        """Give what it tells of its scans, until it is gone; called once."""

    def connect(self, message: Mapping[str, Any]) -> socket.socket:
        """Open a connection, and tell it what for: `session_for` or `look_at`.

        Raises
        ------
        OSError
            If it is gone.
        """

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell it to do something that needs no connection: `stop_of`.

        Raises
        ------
        OSError
            If it is gone.
        """

    def end(self) -> str:
        """End it at once, with all connections; says how it had ended by itself."""


def session_for(number: int, peer: str) -> dict[str, Any]:
    """Let a worker serve a peer, whom it knows by this name; `stop_of` has the number."""
    return {"number": number, "peer": peer}


def look_at(name: str, scan: str, number: int) -> dict[str, Any]:
    """Let a worker write a picture: method of `gadgets.connection.looks.Images`, and its arguments."""
    return {"look": (name, scan, number)}


def stop_of(number: int, why: str) -> dict[str, Any]:
    """Let a worker end a session, and tell its peer why."""
    return {"number": number, "stop": why}


class LocalWorker:
    """A worker process of this machine; `Worker`.

    Parameters
    ----------
    options
        Of the worker.
    environment
        Variables that differ from those of this process.

    Raises
    ------
    ResourceError
        If no process can be started.
    """

    is_ready = True  # connections wait for it

    def __init__(self, options: WorkerOptions, environment: Mapping[str, str]) -> None:
        self._child = options.start(environment)
        self._sending = threading.Lock()
        self.name = f"{self._child.pid}"

    @property
    def has_ended(self) -> bool:
        """It is gone, or about to be."""
        return self._child.has_ended

    def news(self) -> Iterator[News]:
        """Give what it tells of its scans."""
        return news_of(self._child.socket)

    def connect(self, message: Mapping[str, Any]) -> socket.socket:
        """Hand it one end of a connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                with self._sending:
                    socket.send_fds(self._child.socket, [_line({**message, "socket": True})], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell it to do something."""
        with self._sending:
            self._child.socket.sendall(_line(message))

    def end(self) -> str:
        """End the process."""
        return death_in_words(self._child.end())


def work(control: socket.socket, packed: str) -> None:
    """Serve what comes through a socket, until the front is gone; in a `recon_core.children.Child`."""
    options: WorkerOptions = pickle.loads(base64.b64decode(packed))  # noqa: S301 - of our own parent
    serve(options, _messages(control), control)


def serve(
    options: WorkerOptions, messages: Iterable[tuple[Mapping[str, Any], socket.socket | None]], control: socket.socket
) -> None:
    """Do what the front wants, as long as messages come.

    Parameters
    ----------
    options
        The operator's.
    messages
        What the front wants, with the connection of those that need one.
    control
        Where the front is told of the scans.
    """
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

    for message, connection in messages:
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


def _line(message: Mapping[str, Any]) -> bytes:
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
