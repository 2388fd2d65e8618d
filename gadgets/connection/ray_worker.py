"""Workers of a server on the machines of a Ray cluster, each of which the front reaches by a port of its own.

Ray starts and ends them, and says where they are. Scans do not go through it: each has a TCP connection from the front
to its worker, which begins with a secret of the server and with what it is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import importlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from gadgets import __version__
from gadgets.connection.news import news_of
from gadgets.connection.worker import serve
from recon_core.budget import Budget
from recon_core.children import end_with, is_closed
from recon_core.cluster import check_same, first_line, versions
from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gadgets.connection.news import News
    from gadgets.connection.worker import WorkerOptions
    from recon_core.cluster import Cluster

logger = logging.getLogger("cinestream")

_LONGEST_LINE = 1 << 16
_OPENING_SECONDS = 30.0  # for a connection to be there, to say what it is for, and to be taken
_TAKEN = b"\n"  # answer of a worker to who opens a connection
_RETRY_SECONDS = 0.1  # until accepting is tried again
_ASK_SECONDS = 2.0  # why an actor has died
# When a machine lost power, this shows after half a minute.
_ALIVE = {"SO_KEEPALIVE": (socket.SOL_SOCKET, 1)} | {
    name: (socket.IPPROTO_TCP, value)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
}


class Door:
    """A port through which a front opens connections, each with a secret and with what it is for.

    Parameters
    ----------
    host
        Address of this machine.
    secret
        Whoever does not know it is turned away.

    Attributes
    ----------
    address : tuple of str and int
        Where it is.
    """

    def __init__(self, host: str, secret: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self._secret = secret.encode()
        self._in_order = threading.Lock()
        self._opened: SimpleQueue[tuple[Mapping[str, Any], socket.socket | None] | None] = SimpleQueue()
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="cinestream-door", daemon=True)
        self._thread.start()

    def first(self) -> dict[str, socket.socket]:
        """Wait for the two connections that come first: for ``news`` and ``log`` of the worker."""
        found: dict[str, socket.socket] = {}
        for message, connection in self.messages():
            if connection is not None:
                found[message["open"]] = connection
            if len(found) == 2:
                break
        return found

    def messages(self) -> Iterator[tuple[Mapping[str, Any], socket.socket | None]]:
        """What the front wants, with the connection of what needs one; until it is closed."""
        while (opened := self._opened.get()) is not None:
            yield opened

    def close(self) -> None:
        """Let nobody in any more."""
        self._opened.put(None)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:  # it is closed
                    return
                time.sleep(_RETRY_SECONDS)  # the process has no file left for it, which passes
                continue
            threading.Thread(target=self._open, args=(connection,), name="cinestream-opening", daemon=True).start()

    def _open(self, connection: socket.socket) -> None:
        """Read what a connection is for."""
        try:
            connection.settimeout(_OPENING_SECONDS)
            with connection.makefile("rb", buffering=0) as lines:  # takes no byte behind the lines
                if not hmac.compare_digest(lines.readline(_LONGEST_LINE).strip(), self._secret):
                    raise ConnectionRefusedError("the secret is another")
                message = json.loads(lines.readline(_LONGEST_LINE))
            connection.settimeout(None)
            with self._in_order:  # who is answered may say the next thing, which is not to overtake this one
                connection.sendall(_TAKEN)
                self._opened.put((message, None if "stop" in message else connection))
        except (OSError, ValueError):
            connection.close()
        else:
            if "stop" in message:
                connection.close()


class WorkerActor:
    """A worker on the machine where Ray puts it; an actor.

    Parameters
    ----------
    options
        Of the worker.
    secret
        With which connections begin.
    sharing
        How many workers may be on the machine, which share its memory.
    """

    def __init__(self, options: WorkerOptions, secret: str, sharing: int) -> None:
        if options.session.memory_bytes is None:
            session = dataclasses.replace(options.session, memory_bytes=Budget().limit // sharing)
            options = dataclasses.replace(options, session=session)
        ray: Any = importlib.import_module("ray")
        self._door = Door(ray.util.get_node_ip_address(), secret)
        threading.Thread(target=self._work, args=(options,), name="cinestream-worker", daemon=True).start()

    def place(self) -> dict[str, Any]:
        """Where it is, and what must be the same as here."""
        name = f"{os.getpid()} on {socket.gethostname()}"
        return {"address": self._door.address, "name": name, "versions": versions(__version__)}

    def clock(self) -> float:
        """What `time.monotonic` says here."""
        return time.monotonic()

    def _work(self, options: WorkerOptions) -> None:
        """Serve what the front wants, and end with it."""
        first = self._door.first()
        threading.Thread(target=end_with, args=(first["news"],), name="cinestream-front", daemon=True).start()
        sys.stderr = first["log"].makefile("w", encoding="utf-8", errors="backslashreplace", buffering=1)
        try:
            serve(options, self._door.messages(), first["news"])
        except Exception:
            logger.exception("unexpected error")
        os._exit(1)


class RayWorker:
    """A worker of a cluster as the front has it; `gadgets.connection.worker.Worker`.

    Parameters
    ----------
    cluster
        Has it.
    secret
        With which connections to it begin.
    actor
        It; that it is a `WorkerActor` Ray alone knows.
    """

    def __init__(self, cluster: Cluster, secret: str, actor: Any) -> None:  # noqa: ANN401 - Ray has no types here
        self.name = "of the cluster"
        self.is_ready = self._has_ended = self._closed = False
        self.answer = actor.place.remote()  # comes when it is there
        self._cluster, self._actor = cluster, actor
        self._secret = secret
        self._why = "its connection broke"
        self._address = ("", 0)
        self._there = threading.Event()  # or ended
        self._news: socket.socket | None = None
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def has_ended(self) -> bool:
        """It is gone; its connection shows this before all that it told is read."""
        return self._has_ended or (self._news is not None and is_closed(self._news))

    def news(self) -> Iterator[News]:
        """Wait until it is there, and give what it tells of its scans until it is gone."""
        ray = self._cluster.ray
        try:
            place = ray.get(self.answer)
            check_same(place["versions"], versions(__version__))
            self._address, self.name = tuple(place["address"]), place["name"]
            with self._open({"open": "log"}) as log, self._open({"open": "news"}) as self._news:
                threading.Thread(target=_pass_on, args=(log,), name="cinestream-log", daemon=True).start()
                late = time.monotonic() - ray.get(self._actor.clock.remote())
                self.is_ready = True
                self._there.set()
                yield from news_of(self._news, late)
        except Exception as error:
            self._why = first_line(error)
            usual = isinstance(error, ray.exceptions.RayError | OSError | ResourceError)
            if not usual and not self._closed:  # else Ray is, too
                raise
        finally:
            self.is_ready, self._has_ended = False, True
            self._there.set()
        if not self._closed:
            self._ask_why()

    def _ask_why(self) -> None:
        """Have Ray say why it died."""
        ray = self._cluster.ray
        try:
            ray.get(self._actor.clock.remote(), timeout=_ASK_SECONDS)
        except Exception as error:  # noqa: BLE001 - of other kinds where Ray is gone itself
            if isinstance(error, ray.exceptions.RayError) and not isinstance(error, TimeoutError):
                self._why = first_line(error)

    def connect(self, message: Mapping[str, Any]) -> socket.socket:
        """Open a connection to it; waits for one that the cluster has not given yet.

        Raises
        ------
        OSError
            If it is gone.
        ResourceError
            If the cluster does not give it.
        """
        if not self._there.wait(self._cluster.patience):
            raise self._cluster.nothing_given()
        return self._open(message)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell it to do something."""
        self._open(message).close()

    def end(self) -> str:
        """End it, and connections that may not show it: those to a machine that lost power."""
        self._closed = self._has_ended = True
        self._cluster.end(self._actor)
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return self._why

    def _open(self, message: Mapping[str, Any]) -> socket.socket:
        if self.has_ended:
            raise ConnectionError("the worker is gone")
        try:
            connection = socket.create_connection(self._address, _OPENING_SECONDS)
        except OSError:
            self._has_ended = True
            raise
        self._connections.add(connection)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for name, (level, value) in _ALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(level, getattr(socket, name), value)
            connection.sendall(f"{self._secret}\n{json.dumps(dict(message))}\n".encode())
            connection.settimeout(_OPENING_SECONDS)
            if connection.recv(len(_TAKEN)) != _TAKEN:
                raise ConnectionResetError("the worker is going")
            connection.settimeout(None)
        except OSError:
            connection.close()
            raise
        return connection


def _pass_on(log: socket.socket) -> None:
    """Write what a worker logs where this process does, until it is gone."""
    with contextlib.suppress(OSError, ValueError), log.makefile(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stderr.write(line)


class RayCrew:
    """Starts the workers of a server on a cluster.

    Parameters
    ----------
    cluster
        Closed with this.
    options
        Of each worker.

    Raises
    ------
    ResourceError
        If the cluster gives no worker, or one that cannot be started or is of another version.
    """

    def __init__(self, cluster: Cluster, options: WorkerOptions) -> None:
        self._cluster = cluster
        self._secret = secrets.token_hex(32)
        self._options = options
        self._begun: list[RayWorker] = []
        try:
            with cluster.calls():
                for _ in range(cluster.count):
                    self._begun.append(self._begin())
            self._check_first()
        except BaseException:
            self.close()
            raise

    def start(self) -> RayWorker:
        """Give a worker, which the cluster may have ready later.

        Raises
        ------
        ResourceError
            If the cluster is gone.
        """
        if self._begun:
            return self._begun.pop()
        with self._cluster.calls():
            self._cluster.connect_again()
            return self._begin()

    def close(self) -> None:
        """End the workers that nobody took, and leave the cluster."""
        for worker in self._begun:
            worker.end()
        self._cluster.close()

    def _begin(self) -> RayWorker:
        actors = self._cluster.actors(WorkerActor)
        actor = actors.remote(self._options, self._secret, self._cluster.most_on_one)
        return RayWorker(self._cluster, self._secret, actor)

    def _check_first(self) -> None:
        """Wait for a worker, so that what keeps all from working is said at the begin."""
        ray = self._cluster.ray
        ready, _ = ray.wait([worker.answer for worker in self._begun], num_returns=1, timeout=self._cluster.patience)
        if not ready:
            raise self._cluster.nothing_given()
        try:
            place = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            raise self._cluster.nothing_starts(error) from error
        check_same(place["versions"], versions(__version__))
