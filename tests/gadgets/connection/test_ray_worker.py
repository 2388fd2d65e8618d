"""Workers of a cluster, as threads of this process behind ports of their own; and a real Ray on this machine."""

import contextlib
import importlib.util
import signal
import socket
import threading
import time

import pytest

from gadgets import __version__
from gadgets.connection import front as front_module
from gadgets.connection.front import Front
from gadgets.connection.ray_worker import Door, RayCrew
from gadgets.connection.session import SessionOptions
from gadgets.connection.worker import WorkerOptions
from gadgets.reports.gallery import Gallery
from gadgets.wire.messages import Close
from recon_core.cluster import Cluster, versions
from recon_core.errors import ResourceError
from tests.gadgets.connection.test_front import asked
from tests.gadgets.connection.test_server import OPENING, LongEngine, Process, stub
from tests.helpers.fronts import Worker, deadly, serving
from tests.helpers.peers import (
    DOORS,
    FRAMES,
    PATIENCE,
    SLICES,
    Peer,
    StubEngine,
    assert_whole_scan,
    expected_images,
    nothing_left,
    scan,
    talk_scan,
    wait_until,
    wire,
)
from tests.helpers.stand_in_ray import ADDRESS, ActorDiedError
from tests.recon_core.test_children import is_running

_, ITEMS = scan()
AHEAD = 1000.0


class ActorWorker(Worker):
    """A worker as a thread of this process, with a port; what an actor of the stand-in is."""

    def __init__(self, options, secret, engines):
        self.door, self.secret, self.log = Door("127.0.0.1", secret), secret, None
        self.theirs, self.joined = versions(__version__), threading.Event()
        super().__init__(options.session, None)
        self.engine = engines(self)

    def _messages(self):
        first = self.door.first()
        if len(first) < 2:  # it was closed before
            self._connections += first.values()
            return
        for one in (self._control, self.socket):
            one.close()
        self.scans._control = self._control = first["news"]
        self.log = first["log"]
        self._connections.append(self.log)
        self.joined.set()
        yield from self.door.messages()

    def place(self):
        return {"address": self.door.address, "name": f"{self.pid} on a machine", "versions": self.theirs}

    def clock(self):
        if self.has_ended:
            raise ActorDiedError("The actor died.\nWorker exit type: TEST")
        return time.monotonic() - AHEAD

    def die(self):
        super().die()
        self.door.close()

    def end(self):
        self.die()
        for thread in (self._thread, self.door._thread):
            thread.join(PATIENCE)
        wait_until(lambda: "cinestream-opening" not in [thread.name for thread in threading.enumerate()])
        while self.door._opened.qsize():
            _, connection = self.door._opened.get() or (None, None)
            self._connections.append(connection or self.socket)
        for one in (self.socket, self._control, *self._connections):
            one.close()


@pytest.fixture
def clustered(stand_in, monkeypatch):
    """Make a server with workers behind ports; `engines` gives that of each that is started."""
    monkeypatch.setattr("recon_core.cluster.START_SECONDS", PATIENCE)

    @contextlib.contextmanager
    def make(engines=lambda _: StubEngine(), count=2, **options):
        with nothing_left():
            ray = stand_in(make=lambda _, options, secret, sharing: ActorWorker(options, secret, engines), **options)
            cluster = Cluster(ADDRESS, count, 1)
            crew = RayCrew(cluster, WorkerOptions(SessionOptions()))
            front = Front([crew.start] * count, 1 << 30, 600.0)
            try:
                with serving(front) as server:
                    server.ray = ray
                    yield server
            finally:
                crew.close()
                for actor in ray.actors:
                    actor.behind.end()

    return make


def workers(server):
    return [actor.behind for actor in server.ray.actors]


def first_worker(server):
    """The first one, once it writes to the connections that the front has opened to it."""
    wait_until(lambda: server.front._places[0].worker.is_ready)
    worker = workers(server)[0]
    assert worker.joined.wait(PATIENCE)
    return worker


@pytest.mark.parametrize("door", DOORS)
def test_a_scan_to_a_worker_of_a_cluster_is_that_of_a_server(door, clustered):
    with clustered() as server:
        assert_whole_scan(server, door)
        assert_whole_scan(server, door)
        assert sum(worker.engine.slices for worker in workers(server)) == 2 * SLICES
    assert server.ray.shut == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("at", [1, 2])
def test_a_worker_of_a_cluster_that_dies_is_replaced_and_nothing_is_sent_twice(at, count, clustered, caplog):
    with clustered(deadly(at, [1]), count) as server:
        answer = talk_scan(server)
        assert answer.complaints("client") == []
        assert [wire(image) for image in answer.images] == expected_images()
        assert "another one begins it again" in caplog.text
        wait_until(lambda: server.ray.started == count + 1)
        assert_whole_scan(server)
        assert " on a machine died: " in caplog.text


def test_scans_images_and_log_of_a_cluster_are_shown(clustered, capsys):
    gate = threading.Event()
    with clustered(lambda _: StubEngine(lambda number: number < SLICES or gate.wait(PATIENCE)), 1) as server:
        worker, shown = first_worker(server), server.front.shown
        worker.scans.viewer = Gallery()
        with Peer(server.address) as peer:
            peer.send(*OPENING, *ITEMS, Close())
            wait_until(lambda: worker.engine.slices == SLICES)
            worker.scans._tell([])
            wait_until(lambda: server.front.scans.running)
            (running,) = server.front.scans.running
            assert running.began == pytest.approx(worker.scans.running[0].began + AHEAD, abs=1.0), "by our clock"
            gate.set()
            peer.collect()
        wait_until(lambda: server.front.scans.over)
        (over,) = server.front.scans.over
        assert over.summary.images == FRAMES * SLICES
        assert over.ended == pytest.approx(worker.scans.over[0].ended + AHEAD, abs=1.0)
        worker.scans._tell([])
        wait_until(lambda: shown.facts(over.scan))
        assert shown.loop(over.scan, 1) == worker.scans.viewer.loop(over.scan, 1)
        worker.log.sendall(b"a line of the log\n")
        said = []
        wait_until(lambda: said.append(capsys.readouterr().err) or "a line of the log\n" in "".join(said))


def test_the_peer_of_a_scan_that_is_stopped_is_told(clustered):
    engine = LongEngine()
    with clustered(lambda _: engine) as server, Peer(server.address) as peer:
        peer.send(*OPENING, *ITEMS, Close())
        assert engine.began.wait(PATIENCE)
        server.stop(0.0)
        answer = peer.collect()
        assert any("is being stopped before the scan was done" in text for text in answer.complaints("client"))


def test_a_worker_that_loses_power_is_missed_and_its_connections_closed(clustered):
    """Its connections do not close; that to its news shows it first, as the system probes it."""
    lost, over = [], threading.Event()

    def engine(worker):
        def before(number):
            if number == 2 and not lost:
                lost.append(worker)
                server.front._places[0].worker._has_ended = True  # as when its news end
                with server.front._lock:
                    server.front._replace_dead()
                over.wait(PATIENCE)

        return StubEngine(before)

    with clustered(engine, 1) as server:
        try:
            answer = talk_scan(server)
        finally:
            over.set()
        assert [wire(image) for image in answer.images] == expected_images()
        assert server.ray.started == 2


def test_the_death_of_a_worker_shows_before_its_news_are_read(clustered, monkeypatch):
    """Else a scan is begun again with the dead one first, which costs it one of its tries."""
    gate = threading.Event()
    with clustered(count=1) as server:
        worker, (place,) = first_worker(server), server.front._places
        monkeypatch.setattr(server.front.shown, "note", lambda *_: gate.wait(PATIENCE))
        worker.scans._tell([])
        worker.die()
        wait_until(lambda: place.worker.has_ended)
        gate.set()


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_of_a_cluster_that_cannot_be_understood_is_replaced(count, clustered, caplog, monkeypatch):
    monkeypatch.setattr(front_module, "_PAUSE_SECONDS", 0.01)
    with clustered(count=count) as server:
        wait_until(lambda: all(place.worker.is_ready for place in server.front._places))
        first_worker(server).scans._control.sendall(b'{"running": 1}\n')
        wait_until(lambda: server.ray.started == count + 1)
        assert " on a machine died: what it tells cannot be read: TypeError" in caplog.text
        assert_whole_scan(server)


def test_a_place_that_cannot_be_understood_is_replaced(clustered, caplog, monkeypatch):
    """An answer that nobody thought of."""
    monkeypatch.setattr(front_module, "_PAUSE_SECONDS", 0.01)
    place = ActorWorker.place
    with clustered(count=1) as server:
        worker = first_worker(server)
        answers = [{"versions": versions(__version__)}]
        monkeypatch.setattr(ActorWorker, "place", lambda self: answers.pop() if answers else place(self))
        worker.die()
        wait_until(lambda: server.ray.started == 3)
        assert "died: what it tells cannot be read: KeyError('address')" in caplog.text
        assert_whole_scan(server)


@pytest.mark.parametrize("door", DOORS)
def test_a_cluster_that_is_lost_is_said_and_reached_again(door, clustered, caplog, monkeypatch):
    """As when the port for Ray's clients breaks: Ray ends the actors, and knows nobody any more."""
    monkeypatch.setattr(front_module, "_PAUSE_SECONDS", 0.01)
    with clustered() as server:
        assert_whole_scan(server, door)
        server.ray.lose(ConnectionError("nobody answers"))
        for worker in workers(server):
            worker.die()
        wait_until(lambda: "nobody answers" in server.front.scans.fault)
        answer = talk_scan(server, door)
        (complaint,) = answer.complaints(door)
        assert "no Ray cluster at 127.0.0.1:1: nobody answers" in complaint
        assert answer.closed
        server.ray.lose()
        wait_until(lambda: server.ray.started == 4)
        wait_until(lambda: not server.front.scans.fault)
        assert_whole_scan(server, door)
    assert caplog.text.count(" died: ") == 2, "said once, however often it is tried"
    assert "Traceback" not in caplog.text


def test_scans_go_to_workers_that_are_there(clustered):
    with clustered(most=1) as server:
        wait_until(lambda: any(place.worker.is_ready for place in server.front._places))
        for _ in range(3):
            assert_whole_scan(server)
        assert [worker.engine.slices for worker in workers(server)] == [3 * SLICES, 0]


def test_connections_without_the_secret_are_closed():
    with nothing_left():
        door = Door("127.0.0.1", "a secret")
        for said in (b"another\n{}\n", b"\n", b"a secret\nno JSON\n", b"\0" * 100_000):
            with socket.create_connection(door.address) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(said)
                    connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        with socket.create_connection(door.address) as connection:
            connection.sendall(b'a secret\n{"number": 1}\nbytes of a scan')
            assert connection.recv(1) == b"\n"
            message, taken = next(door.messages())
            assert message == {"number": 1}
            with taken:
                assert taken.recv(100) == b"bytes of a scan"
        door.close()


def test_what_is_said_first_comes_first():
    """A scan is not stopped before it has begun, however the threads of the door take turns."""
    with nothing_left(), contextlib.ExitStack() as stack:
        door = Door("127.0.0.1", "")
        stack.callback(door.close)
        for number in range(200):
            connection = stack.enter_context(socket.create_connection(door.address))
            connection.sendall(b'\n{"%s": %d}\n' % (b"stop" if number % 2 else b"number", number))
            assert connection.recv(1) == b"\n"
        for number, (message, taken) in zip(range(200), door.messages(), strict=False):
            assert message == {"stop" if number % 2 else "number": number}
            if taken is not None:
                taken.close()


@pytest.mark.parametrize(
    ("theirs", "text"),
    [
        (versions("0.0.1"), r"a Ray worker has cinestream 0\.0\.1, and here it is .*install the same"),
        (ActorDiedError("No module named 'gadgets'"), "No module named 'gadgets'; cinestream must be installed"),
    ],
)
def test_workers_that_cannot_be_used_are_said_at_the_begin(theirs, text, stand_in):
    class Other:
        def place(self):
            if isinstance(theirs, Exception):
                raise theirs
            return {"address": ("127.0.0.1", 1), "name": "", "versions": theirs}

    ray = stand_in(make=lambda *_: Other())
    with pytest.raises(ResourceError, match=text):
        RayCrew(Cluster(ADDRESS, 2, 1), WorkerOptions(SessionOptions()))
    assert (ray.killed, ray.shut) == (2, 1)


def test_a_cluster_that_breaks_as_workers_are_started_is_left(stand_in):
    ray = stand_in(make=lambda *_: ray.lose())
    with pytest.raises(ResourceError, match=r"to the Ray cluster at .* broke: Ray has not been started yet"):
        RayCrew(Cluster(ADDRESS, 2, 1), WorkerOptions(SessionOptions()))
    assert (ray.started, ray.killed, ray.shut) == (1, 1, 1)


def test_that_a_cluster_gives_no_worker_is_said(stand_in):
    stand_in(make=lambda *_: None, most=0)
    with pytest.raises(ResourceError, match="gives no worker"):
        RayCrew(Cluster(ADDRESS, 1, 1), WorkerOptions(SessionOptions()))


# --- a real one -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install ".[cluster]"')
@pytest.mark.slow
@pytest.mark.timeout(900)  # a Ray on a busy machine takes minutes to start
def test_a_worker_of_ray_that_is_killed_in_mid_scan_costs_no_image(tmp_path, monkeypatch):
    killed = tmp_path / "killed"
    mark = f"import os, pathlib; mark = pathlib.Path({str(killed)!r}); me = os.getpid()"
    kill = f"{mark}; number == 2 and not mark.exists() and (mark.write_text(str(me)), os.kill(me, 9))"
    monkeypatch.setattr("tests.gadgets.connection.test_server.PATIENCE", 800.0)
    with Process(tmp_path, "--workers", "ray://local/2", "--web", "0", before=stub(kill)) as server:
        page = server.process.stdout.readline().removeprefix("monitor page: ").strip()
        answer = talk_scan(server)
        assert answer.complaints("client") == []
        assert [wire(image) for image in answer.images] == expected_images()
        assert int(killed.read_text()) != server.process.pid
        assert_whole_scan(server)
        wait_until(lambda: len(asked(page, "scans.json")["over"]) == 2)
        wait_until(lambda: all(one["loops"] for one in asked(page, "scans.json")["over"]))
        facts = asked(page, "scans.json")
        assert (facts["running"], facts["server"]["scans"], facts["server"]["workers"]) == ([], {"done": 2}, 2)
        assert asked(page, f"loops/{facts['over'][0]['scan']}/1")["frames"] == FRAMES
        code, error = server.stop(signal.SIGTERM)
    assert code == 0
    assert "begins it again" in error
    assert "Traceback" not in error
    for over in facts["over"]:
        assert error.count(f"[{over['scan']}] client") == 1, "the worker's line, once"
    wait_until(lambda: not is_running(int(killed.read_text())))
