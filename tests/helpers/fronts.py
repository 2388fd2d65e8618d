"""A front whose workers are threads of this process, which can be made to die."""

import contextlib
import socket
import threading
from functools import partial

from gadgets.connection.front import Front, local_starts
from gadgets.connection.news import Room, ToldRecord
from gadgets.connection.passage import Passage
from gadgets.connection.server import Server
from gadgets.connection.session import Resources, Session, SessionOptions
from gadgets.connection.worker import WorkerOptions, _messages, show
from tests.helpers.peers import PATIENCE, StubEngine, nothing_left


class Worker:
    """A worker as a thread of this process; to die it cuts all its connections."""

    numbers = iter(range(10**6, 10**9))

    def __init__(self, options, engine):
        self.socket, self._control = socket.socketpair()
        self.pid, self.has_ended, self.engine = next(self.numbers), False, engine
        self._sessions, self._connections = {}, []
        self.scans = ToldRecord(self._control, lambda: Room(1, 2, 3, 4), names=False)
        self._resources = Resources(options, self.scans)
        self._options = options
        self._thread = threading.Thread(target=self._work, name="cinestream-worker")
        self._thread.start()

    def _messages(self):
        return _messages(self._control)

    def _work(self):
        for message, connection in self._messages():
            if "look" in message:
                show(self.scans.viewer, message["look"], connection)
                continue
            number = message["number"]
            if connection is None:
                self._sessions[number].stop(message["stop"])
                continue
            self._connections.append(connection)
            session = Session(connection, lambda: self.engine, self._options, None, self._resources, message["peer"])
            self._sessions[number] = session
            threading.Thread(target=self._run, args=(session, connection), name="cinestream-session").start()

    def _run(self, session, connection):
        with connection:
            session.run()

    def die(self):
        self.has_ended = True
        for one in (self._control, *self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def end(self):
        self.die()
        self._thread.join(PATIENCE)
        self.socket.close()
        self._control.close()
        return -9


@contextlib.contextmanager
def serving(front, options=None, connections=32):
    """A server whose scans pass through a front, which is closed with it."""
    server = Server("127.0.0.1", 0, options, connections, partial(Passage, front=front))
    server.front = front
    thread = threading.Thread(target=server.serve, name="cinestream-accept")
    thread.start()
    try:
        yield server
    finally:
        server.stop(5.0)
        thread.join(PATIENCE)
        front.close()
    assert not thread.is_alive()
    assert not server._sessions
    assert front.space.used == 0


@contextlib.contextmanager
def fronted(engines=lambda _: StubEngine(), count=2, kept=1 << 30, options=None, connections=32):
    """A server with workers as threads; `engines` gives that of each that is started."""
    workers = []

    class Options(WorkerOptions):
        def start(self, environment):
            worker = Worker(self.session, None)
            worker.engine = engines(worker)
            workers.append(worker)
            return worker

    with nothing_left():
        options = options or SessionOptions()
        starts = local_starts(count, Options(options))
        front = Front(starts, kept, options.idle_seconds)
        with serving(front, options, connections) as server:
            server.workers = workers
            yield server


def deadly(at, deaths):
    """Engines of workers that die before a slice, so often."""

    def make(worker):
        def before(number):
            if number == at and deaths[0] > 0:
                deaths[0] -= 1
                worker.die()

        return StubEngine(before)

    return make
