"""The resident server: one process, one warm engine, a thread for every connection.

The port is bound before anything heavy is imported, because FIRE waits a second for it; the engine is made meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

from gadgets.connection.records import Load
from gadgets.connection.resident import DEFAULT_HOST, DEFAULT_PORT
from gadgets.connection.session import Resources, Session, SessionOptions
from gadgets.wire.messages import Close, Text
from gadgets.wire.writer import Writer
from recon_core.budget import return_freed
from recon_core.errors import ModelError, ResourceError
from recon_core.methods import OWN_METHODS, find_method

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.connection.records import ServerRecord
    from recon_core.engine import Engine

logger = logging.getLogger("cinestream")


_RETRY_SECONDS = 0.1  # until accepting is tried again
_STOP_SECONDS = 1.5  # a session that is told to stop does so between two steps, and tells its peer
_CUT_SECONDS = 0.5  # and with its connection cut it need not
#: Connections that are served at a time, where the operator does not say.
CONNECTIONS = 32


class SharedEngine:
    """The one engine of a process, made when it is first asked for."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Engine:
        """Give the engine; the first call imports torch."""
        with self._lock:
            if self._engine is None:
                from recon_core.engine import Engine

                self._engine = Engine()
            return self._engine


class Served(Protocol):
    """What serves a connection: a `Session` here, or a `gadgets.connection.passage.Passage` to another process."""

    @property
    def silent(self) -> bool:
        """Nothing has come from the peer."""

    def run(self) -> bool:
        """Serve it to its end; gives whether all was well."""

    def stop(self, why: str) -> None:
        """End it, and tell the peer why; from any thread."""


class Server:
    """Listens, and runs a session for every connection.

    Parameters
    ----------
    host
        Address to bind to; loopback unless the operator wants otherwise, because the protocol knows no passwords.
    port
        Port to bind to; 0 takes a free one.
    options
        The operator's choices for every session.
    connections
        How many are served at a time; a further one takes the place of one that says nothing, or is told so and closed.
    sessions
        Makes what serves a connection; None makes sessions of this process.
    scans
        Where sessions of this process report; None keeps what they report for itself.

    Raises
    ------
    ResourceError
        If the address cannot be bound, for instance because the port is in use.
    """

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        options: SessionOptions | None = None,
        connections: int = CONNECTIONS,
        sessions: Callable[[socket.socket], Served] | None = None,
        scans: ServerRecord | None = None,
    ) -> None:
        self._options = options or SessionOptions()
        self._resources = Resources(self._options, scans)
        self._connections = connections
        self._engine = SharedEngine()
        self._make = sessions or self._own_session
        self._has_engine = sessions is None
        self._sessions: dict[threading.Thread, tuple[socket.socket, Served]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._deadline = 0.0
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except (OSError, UnicodeError) as error:  # the latter for a host that is no name
            why, remedy = getattr(error, "strerror", "") or error, "choose another port, or stop what uses it"
            raise ResourceError(f"cannot listen on {host} port {port}: {why}; {remedy}") from error
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def serve(self) -> bool:
        """Accept connections until `stop` is called; then wait for the sessions that run.

        Returns
        -------
        bool
            False if a session does not end, whatever it is at.
        """
        if self._has_engine:
            threading.Thread(target=self._warm_up, name="cinestream-warm-up", daemon=True).start()
        logger.info("listening on %s port %d", *self.address)
        with self._listener:
            while not self._stopping.is_set():
                try:
                    connection, peer = self._listener.accept()
                except OSError as error:
                    # stop() closed the listener; or the process has no file left for a connection, which passes
                    if not self._stopping.wait(_RETRY_SECONDS):
                        logger.error("a connection could not be accepted: %s", error)
                    continue
                logger.info("connection from %s port %d", *peer[:2])
                self._begin(connection)
        self._join()
        for _, session in self._running().values():
            session.stop("the server is being stopped before the scan was done; send it again")
        self._deadline = time.monotonic() + _STOP_SECONDS
        self._join()
        for connection, _ in self._running().values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._deadline = time.monotonic() + _CUT_SECONDS
        self._join()
        left = len(self._running())
        logger.info("stopped%s", f" with {left} scans that did not end" if left else "")
        return not left

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Stop accepting at once; sessions may finish within the grace period, then their connections are cut."""
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def load(self) -> Load:
        """Tell how much there is to do."""
        queues, budget = self._resources.queues, self._resources.budget
        return Load(len(self._running()), self._connections, queues.used, queues.limit, budget.used, budget.limit)

    def _begin(self, connection: socket.socket) -> None:
        """Run a session in a thread of its own, or say why not."""
        running = self._running()
        if len(running) >= self._connections:
            silent = next((session for _, session in running.values() if session.silent), None)
            if silent is None:
                _turn_away(connection, f"{self._connections} connections are served already; try again later")
                return
            silent.stop("other connections need the place of one that says nothing")
        session = self._make(connection)
        thread = threading.Thread(target=self._run, args=(connection, session), name="cinestream-session", daemon=True)
        with self._lock:
            self._sessions[thread] = connection, session
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no more threads
            with self._lock:
                del self._sessions[thread]
            _turn_away(connection, f"no session can be started ({error}); try again later")

    def _own_session(self, connection: socket.socket) -> Session:
        return Session(connection, self._engine, self._options, resources=self._resources)

    def _join(self) -> None:
        """Wait for the sessions up to the deadline."""
        for thread in self._running():
            thread.join(max(0.0, self._deadline - time.monotonic()))

    def _warm_up(self) -> None:
        self._resources.scans.fault = warm_up(self._engine)

    def _running(self) -> dict[threading.Thread, tuple[socket.socket, Served]]:
        with self._lock:
            return dict(self._sessions)

    def _run(self, connection: socket.socket, session: Served) -> None:
        try:
            with connection:
                good = session.run()
            logger.info("session over%s", "" if good else " with errors")
        finally:
            with self._lock:
                self._sessions.pop(threading.current_thread(), None)
            return_freed()


def warm_up(engine: SharedEngine) -> str:
    """Make the engine before the first scan, and log what will fail; gives why every scan will, if so."""
    fault = ""
    try:
        engine()
    except Exception as error:
        fault = f"the reconstruction engine cannot be started: {error}"
        logger.exception("the reconstruction engine cannot be started; every scan will fail")
    for name in [*OWN_METHODS]:
        try:
            find_method(name)
        except ModelError as error:
            logger.error("scans that ask for the method %s will fail: %s", name, error)
    return fault


def _turn_away(connection: socket.socket, why: str) -> None:
    """Tell a peer why it is not served, if it listens, and close."""
    logger.error("%s", why)
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_RETRY_SECONDS)
        for message in (Text(f"ERROR   {why}"), Close()):
            Writer.of_socket(connection).send(message)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1 << 16)  # what is left unread would reset the connection, and lose the text
