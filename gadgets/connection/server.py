"""The resident server: one process, one warm engine, a thread for every connection.

The port is bound before anything heavy is imported, because FIRE waits a second for it; the engine is made meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

from gadgets.connection.session import Session, SessionOptions
from recon_core.errors import ModelError, ResourceError
from recon_core.methods import OWN_METHODS, find_method

if TYPE_CHECKING:
    from recon_core.engine import Engine

logger = logging.getLogger("cinestream")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9012  # a Gadgetron on the same machine has 9002

_RETRY_SECONDS = 0.1  # until accepting is tried again
_CUT_SECONDS = 5.0  # a session with its connection cut ends with the slice it is at


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

    Raises
    ------
    ResourceError
        If the address cannot be bound, for instance because the port is in use.
    """

    def __init__(
        self, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, options: SessionOptions | None = None
    ) -> None:
        self._options = options or SessionOptions()
        self._engine = SharedEngine()
        self._sessions: dict[threading.Thread, socket.socket] = {}
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

    def serve(self) -> None:
        """Accept connections until `stop` is called; then wait for the sessions that run."""
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
                thread = threading.Thread(target=self._run, args=(connection,), name="cinestream-session", daemon=True)
                with self._lock:
                    self._sessions[thread] = connection
                thread.start()
        for thread in self._running():
            thread.join(self._seconds_left())
        self._cut()
        for thread in self._running():
            thread.join(_CUT_SECONDS)
        logger.info("stopped")

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Stop accepting at once; sessions may finish within the grace period, then their connections are cut."""
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _running(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._sessions)

    def _cut(self) -> None:
        with self._lock:
            for connection in self._sessions.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection:
                good = Session(connection, self._engine, self._options).run()
            logger.info("session over%s", "" if good else " with errors")
        finally:
            with self._lock:
                self._sessions.pop(threading.current_thread(), None)

    def _warm_up(self) -> None:
        try:
            self._engine()
        except Exception:
            logger.exception("the reconstruction engine cannot be started; every scan will fail")
        for name in [*OWN_METHODS]:
            try:
                find_method(name)
            except ModelError as error:
                logger.error("scans that ask for the method %s will fail: %s", name, error)
