import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gadgets.connection.resident import DEFAULT_HOST
from gadgets.connection.server import Server, SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.files.images import read_images
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.wire.messages import Close, ConfigFile, Header, Image, Query, Readouts
from recon_core.errors import ResourceError, ScanStoppedError
from recon_core.stopping import check
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import (
    CONFIGURATIONS,
    DOORS,
    FRAMES,
    PATIENCE,
    SLICES,
    Peer,
    StubEngine,
    assert_whole_scan,
    expected_images,
    images_of,
    nothing_left,
    one_by_one,
    scan,
    serving,
    talk,
    talk_scan,
    wait_until,
    wire,
)

HEADER, ITEMS = scan()
OPENING = [ConfigFile("zero_filled"), Header(HEADER)]


# --- the address ------------------------------------------------------------------------------------------------------


def test_loopback_by_default():
    assert DEFAULT_HOST == "127.0.0.1"
    with serving() as server:
        assert server.address[0] == "127.0.0.1"
        assert server._listener.getsockname()[0] == "127.0.0.1"


def test_free_port():
    with serving() as first, serving() as second:
        assert first.address[1] != second.address[1]
        assert min(first.address[1], second.address[1]) > 0


def test_port_in_use():
    with serving() as server, nothing_left(), pytest.raises(ResourceError, match="cannot listen on") as caught:
        Server(port=server.address[1])
    assert str(server.address[1]) in str(caught.value)
    assert "choose another port" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "a" * 70])
def test_address_that_is_not_ours(host):
    with nothing_left(), pytest.raises(ResourceError, match=f"cannot listen on {host}"):
        Server(host, 0)


def has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 loopback here")
def test_ipv6_loopback():
    with serving(host="::1") as server:
        assert server.address[0] == "::1"
        assert_whole_scan(server)


def test_port_can_be_taken_again_at_once():
    with serving() as server:
        assert_whole_scan(server)
        port = server.address[1]
    Server(port=port).stop()


# --- several sessions -------------------------------------------------------------------------------------------------


def test_four_clients_at_once():
    """Each gets its own images, although all four scans are under way together."""
    together = threading.Barrier(4, timeout=PATIENCE)
    engine = StubEngine()
    answers = {}

    def be_client(number):
        door = DOORS[number % 2]
        config = CONFIGURATIONS[door]
        if door == "client":
            config = ConfigFile("zero_filled")
        header = HEADER.replace("</ismrmrdHeader>", f"<!-- {number} --></ismrmrdHeader>")
        items = [scale(item, number + 1) for item in ITEMS]
        with Peer(server.address) as peer:
            peer.send(config, Header(header), *items[: 3 + number])
            together.wait()
            peer.send(*items[3 + number :], Close())
            answers[number] = peer.collect()

    with serving(engine, SessionOptions(overrides={"scale": "1", "whiten": "false"})) as server:
        threads = [threading.Thread(target=be_client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert engine.slices == 4 * SLICES
    for number in range(4):
        wanted = images_of(HEADER, [scale(item, number + 1) for item in ITEMS], scale=1.0, whiten=False)
        assert [wire(image) for image in answers[number].images] == [wire(image) for image in wanted]
        assert answers[number].complaints(DOORS[number % 2]) == []
        assert answers[number].closed


def scale(item, factor):
    return Readouts(item.headers, item.data * factor) if isinstance(item, Readouts) else item


def test_a_session_that_computes_does_not_hold_up_another():
    first_may_go = threading.Event()
    engine = StubEngine(lambda number: number > 1 or first_may_go.wait(PATIENCE))
    with serving(engine) as server, Peer(server.address) as slow:
        slow.send(*OPENING, *ITEMS, Close())
        wait_until(lambda: engine.slices == 1)
        assert_whole_scan(server)
        first_may_go.set()
        assert len(slow.collect().images) == FRAMES * SLICES


def test_many_connections_that_say_nothing():
    with serving(grace=0.1) as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Peer(server.address))
        assert_whole_scan(server)
        stack.close()
        wait_until(lambda: not server._sessions)


def test_no_file_left_for_a_connection(caplog):
    """The server outlives a shortage of file descriptors, and takes the connection when it is over."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving() as server, socket.socket() as early, caplog.at_level(logging.ERROR, "cinestream"):
        used = early.fileno() + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            early.connect(server.address)
            wait_until(lambda: "could not be accepted" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        early.close()
        assert_whole_scan(server)


# --- one engine -------------------------------------------------------------------------------------------------------


def test_engine_is_made_once(monkeypatch):
    import recon_core.engine

    made = []

    class Counted(StubEngine):
        def __init__(self):
            super().__init__()
            made.append(self)
            assert len(made) == 1

    monkeypatch.setattr(recon_core.engine, "Engine", Counted)
    with serving() as server:
        server._engine = SharedEngine()
        threads = [threading.Thread(target=talk_scan, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert_whole_scan(server)
        assert made[0].slices == 5 * SLICES
    assert len(made) == 1


def test_engine_that_could_not_be_made_is_tried_again(monkeypatch):
    import recon_core.engine

    calls = []

    def make():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no driver yet")
        return StubEngine()

    monkeypatch.setattr(recon_core.engine, "Engine", make)
    shared = SharedEngine()
    with pytest.raises(OSError, match="no driver yet"):
        shared()
    assert shared() is shared()
    assert len(calls) == 2


# --- stopping ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve, name="cinestream-accept")
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_stop_before_serving():
    with nothing_left():
        server = Server(port=0)
        server._engine = StubEngine
        server.stop(0.0)
        server.serve()


def test_stop_lets_a_scan_finish():
    with nothing_left():
        server = Server(port=0)
        engine = StubEngine()
        server._engine = lambda: engine
        with running(server), Peer(server.address) as peer:
            peer.send(*OPENING, *ITEMS[:3])
            wait_until(lambda: server._sessions)
            server.stop(PATIENCE)
            with pytest.raises(ConnectionRefusedError), socket.create_connection(server.address, timeout=5):
                pass
            peer.send(*ITEMS[3:], Close())
            answer = peer.collect()
    assert answer.complaints("client") == []
    assert [wire(image) for image in answer.images] == expected_images()


@pytest.mark.parametrize("said", [[], OPENING[:1], OPENING, [*OPENING, *ITEMS[:4]]], ids=len)
def test_stop_cuts_what_does_not_finish(said):
    with nothing_left():
        server = Server(port=0)
        server._engine = lambda: engine
        engine = StubEngine()
        with running(server), Peer(server.address) as peer:
            peer.send(*said)
            wait_until(lambda: server._sessions)
            server.stop(0.1)
            answer = peer.collect()
    assert answer.images == []
    assert not server._sessions
    assert bool(said) == any("the server is being stopped" in text for text in answer.complaints("client"))
    assert answer.closed == bool(said)


# --- peers that take without giving -----------------------------------------------------------------------------------


class LongEngine(StubEngine):
    """Takes a minute for a slice, unless it is stopped."""

    def __init__(self):
        super().__init__(self._work)
        self.began, self.stopped = threading.Event(), threading.Event()

    def _work(self, _):
        self.began.set()
        try:
            for _ in range(600):
                check()
                time.sleep(0.1)
        except ScanStoppedError:
            self.stopped.set()
            raise


LEAVE = {
    "reset": lambda peer: peer.reset(),
    "close": lambda peer: peer.socket.close(),
}


@pytest.mark.parametrize("said", ["whole scan", "first slice"])
@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("door", DOORS)
def test_scan_of_a_peer_that_is_gone_is_stopped(door, how, said):
    if (door, how, said) == ("gadgetron", "close", "whole scan"):
        pytest.skip("a Gadgetron that has said CLOSE may close its side and wait for its images")
    engine = LongEngine()
    with serving(engine) as server:
        peer = Peer(server.address)
        peer.send(CONFIGURATIONS[door], Header(HEADER), *ITEMS, *([Close()] if said == "whole scan" else []))
        assert engine.began.wait(PATIENCE)
        begin = time.monotonic()
        LEAVE[how](peer)
        assert engine.stopped.wait(PATIENCE)
        wait_until(lambda: not server._sessions)
        assert time.monotonic() - begin < 4
        assert engine.slices == 1  # the others are not begun
        engine.before = None
        assert_whole_scan(server)


@pytest.mark.parametrize("door", DOORS)
def test_peer_that_closes_its_side_gets_its_images(door):
    """Also when that takes longer than it takes to find out whether it is there."""
    with serving(StubEngine(lambda _: [(check(), time.sleep(0.1)) for _ in range(15)])) as server:
        answer = talk(server, CONFIGURATIONS[door], Header(HEADER), *ITEMS, Close(), end=True)
    texts = [text for text in answer.texts if not text.startswith("INFO    the images are still being made")]
    assert bool(len(answer.texts) - len(texts)) == (door == "client")
    assert [wire(image) for image in answer.images] == expected_images()
    assert answer.closed


def test_connections_are_limited():
    with serving(connections=2) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.address)) for _ in range(2)]
        for peer in peers:
            peer.send(*OPENING)
        wait_until(lambda: [session.silent for _, session in server._sessions.values()] == [False] * 2)
        for said in ([], [*OPENING, *ITEMS, Close()]):
            with Peer(server.address) as further:
                with contextlib.suppress(OSError):
                    further.send(*said)
                answer = further.collect()
                if not said:  # who sends on may lose the words to a reset
                    assert any("2 connections are served already" in text for text in answer.complaints("client"))
                assert not answer.images
        for peer in peers:
            peer.send(*ITEMS, Close())
            assert [wire(image) for image in peer.collect().images] == expected_images()
        wait_until(lambda: not server._sessions)
        assert_whole_scan(server)


@pytest.mark.parametrize("said", [[], OPENING[:1], OPENING, [*OPENING, *ITEMS[:4]]], ids=len)
def test_silent_peers_are_not_waited_for_ever(said):
    with serving(options=SessionOptions(idle_seconds=0.3)) as server, nothing_left(server):
        with Peer(server.address) as peer:
            peer.send(*said)
            answer = peer.collect()
        assert bool(answer.complaints("client")) == bool(said)
        assert_whole_scan(server)


def test_a_peer_may_be_silent_while_the_server_works():
    """It waits for its images before it goes on."""
    engine = StubEngine(lambda _: time.sleep(1.0))
    with serving(engine, SessionOptions(idle_seconds=0.5)) as server, Peer(server.address) as peer:
        peer.send(*OPENING, *ITEMS)
        wait_until(lambda: engine.slices == SLICES)
        peer.send(Close())
        answer = peer.collect()
    assert answer.complaints("client") == []
    assert [wire(image) for image in answer.images] == expected_images()


def test_machine_without_threads(monkeypatch):
    """The server survives, says why, and serves again once there are some."""
    start, failing = threading.Thread.start, ["session"]

    def fail(thread):
        if failing and failing[0] in thread.name and thread.name.startswith("cinestream-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with serving() as server:
        answer = talk(server)
        assert any("no session can be started" in text for text in answer.complaints("client"))
        failing[0] = "drain"
        answer = talk(server, *OPENING)
        assert any("can't start new thread" in text for text in answer.complaints("client"))
        failing[0] = "warm-up"
        assert_whole_scan(server)
        failing.clear()
        assert_whole_scan(server)


# --- the process ------------------------------------------------------------------------------------------------------

# Replaces the engine of a process by the stub, so that no test waits for torch.
STUB = """
    import sys, types
    sys.path.insert(0, {repository!r})
    module = types.ModuleType("recon_core.engine")
    def make():
        from tests.helpers.peers import StubEngine
        return StubEngine(before)
    def before(number):
        {before}
    module.Engine = make
    sys.modules["recon_core.engine"] = module
"""
# Stops the import of torch until a file is there.
SLOW_TORCH = """
    import importlib.abc, pathlib, sys, time
    class Wait(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "torch":
                pathlib.Path({folder!r}, "asked").touch()
                while not pathlib.Path({folder!r}, "go").exists():
                    time.sleep(0.01)
    sys.meta_path.insert(0, Wait())
"""
# Sessions that cannot end are not waited for as long as usual.
CUT_SHORT = "import gadgets.connection.server as server; server._STOP_SECONDS = server._CUT_SECONDS = 0.1\n"


class Process:
    """``cinestream serve`` with some code run before it."""

    def __init__(self, folder, *options, before="", port="0"):
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(textwrap.dedent(before), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])}
        command = [sys.executable, "-m", "gadgets", "serve", "--port", port, *options]
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self):
        watch = threading.Timer(PATIENCE, self.process.kill)  # ends the line below, too
        watch.start()
        self.line = self.process.stdout.readline()
        watch.cancel()
        found = re.search(r"listens on (\S+) port (\d+)", self.line)
        assert found, self.line + self.process.stderr.read()
        self.address = found[1], int(found[2])
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def stop(self, number):
        """Send a signal; give exit status and what was said on standard error."""
        self.process.send_signal(number)
        error = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, error


def stub(before="pass"):
    return STUB.format(repository=str(REPOSITORY), before=before)


def test_process_says_where_it_listens_and_serves(tmp_path):
    with Process(tmp_path, before=stub()) as server:
        assert server.line.startswith("cinestream ")
        assert server.address[0] == "127.0.0.1"
        assert_whole_scan(server)
        assert server.stop(signal.SIGTERM)[0] == 0


def test_process_that_was_stopped_does_not_wait_for_the_end_of_python(tmp_path):
    """Which takes seconds on a busy machine, after the last scan is over."""
    with Process(tmp_path, before=stub() + "    import atexit, os\n    atexit.register(os._exit, 7)\n") as server:
        assert_whole_scan(server)
        assert server.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_address_that_others_reach_is_warned_of(tmp_path, host, warned):
    with Process(tmp_path, "--host", host, before=stub()) as server:
        code, error = server.stop(signal.SIGTERM)
    assert code == 0
    assert ("can be reached from other machines" in error) == warned


def test_port_is_open_before_torch_is_imported(tmp_path):
    """FIRE gives a server a second; the import of torch takes longer. Here it does not even end."""
    before = textwrap.dedent(SLOW_TORCH.format(folder=str(tmp_path))) + CUT_SHORT
    with Process(tmp_path, "--grace", "0.2", before=before) as server:
        wait_until((tmp_path / "asked").exists)
        assert talk(server, Query(1, "cinestream::version"), Close()).answers
        with Peer(server.address) as peer:
            peer.send(*OPENING, *ITEMS, Close())  # is taken, too
        code, _ = server.stop(signal.SIGTERM)
        (tmp_path / "go").touch()
    assert code == 0


@pytest.mark.parametrize(
    ("state", "name"),
    [("idle", "SIGINT"), ("connected", "SIGTERM"), ("computing", "SIGTERM"), ("computing", "SIGINT")],
)
def test_signal_ends_the_process(tmp_path, state, name):
    computing = f'open({str(tmp_path / "computing")!r}, "w").close(); __import__("time").sleep(60)'
    before = textwrap.dedent(stub(computing)) + CUT_SHORT
    with Process(tmp_path, "--grace", "0.2", before=before) as server, contextlib.ExitStack() as stack:
        if state != "idle":
            peer = stack.enter_context(Peer(server.address))
            peer.send(*OPENING)
        if state == "computing":
            peer.send(*ITEMS, Close())
            wait_until((tmp_path / "computing").exists)
        code, error = server.stop(signal.Signals[name])
    assert code == 0
    assert "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_stops_what_takes_long(tmp_path, number):
    """In a few seconds, with an engine in the middle of its steps, and the peer is told."""
    computing = (
        f'open({str(tmp_path / "computing")!r}, "w").close(); from recon_core.stopping import check; '
        '[(check(), __import__("time").sleep(0.1)) for _ in range(600)]'
    )
    with Process(tmp_path, before=stub(computing)) as server, Peer(server.address) as peer:
        peer.send(*OPENING, *ITEMS, Close())
        wait_until((tmp_path / "computing").exists)
        begin = time.monotonic()
        server.process.send_signal(number)
        answer = peer.collect()
        error = server.process.communicate(timeout=PATIENCE)[1]
        assert time.monotonic() - begin < 5
        assert server.process.returncode == 0
    assert any("the server is being stopped" in text for text in answer.complaints("client"))
    assert answer.closed
    assert "Traceback" not in error


def test_signal_lets_a_scan_finish(tmp_path):
    computing = f'open({str(tmp_path / "computing")!r}, "w").close(); __import__("time").sleep(0.5)'
    with Process(tmp_path, before=stub(computing)) as server, Peer(server.address) as peer:
        peer.send(*OPENING, *ITEMS, Close())
        wait_until((tmp_path / "computing").exists)
        server.process.send_signal(signal.SIGTERM)
        answer = peer.collect()
        # no second signal: one that meets the interpreter at its end would kill it
        server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0
    assert [wire(image) for image in answer.images] == expected_images()
    assert answer.closed


@pytest.mark.slow
def test_signal_while_torch_is_imported(tmp_path):
    for delay in (0.0, 0.1, 0.3, 0.6, 1.0):
        folder = tmp_path / str(delay)
        folder.mkdir()
        with Process(folder) as server:
            threading.Event().wait(delay)
            code, error = server.stop(signal.SIGTERM)
            assert (code, error) == (0, "")


def test_process_with_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Process(tmp_path, port=str(taken.getsockname()[1]))
        out, error = server.process.communicate(timeout=PATIENCE)
    assert server.process.returncode == 1
    assert out == ""
    assert "choose another port" in error
    assert "Traceback" not in error


def test_process_called_wrongly(tmp_path):
    """What else is wrong the tests of the command show."""
    server = Process(tmp_path, "--alias", "openrecon=no_such")
    try:
        error = server.process.communicate(timeout=5)[1]
    finally:
        server.process.kill()
        server.process.communicate()
    assert server.process.returncode == 2
    assert "no_such" in error
    assert "Traceback" not in error


def test_killed_in_mid_scan_leaves_a_stream_to_replay(tmp_path):
    _, items = scan()
    sent = [item for item in one_by_one(items) if isinstance(item, Readouts)][:-20]
    with (
        Process(tmp_path, "--save-raw", str(tmp_path / "raw"), before=stub()) as server,
        Peer(server.address) as peer,
    ):
        peer.send(*OPENING, *sent)
        peer.send_bytes(wire(sent[-1])[:-100])
        assert len(peer.collect(Image, FRAMES).images) == FRAMES
        stream = wire(*OPENING, *sent) + wire(sent[-1])[:-100]
        (path,) = (tmp_path / "raw").iterdir()
        wait_until(lambda: path.stat().st_size == len(stream))
        server.process.kill()
        assert server.process.wait() == -signal.SIGKILL
    assert path.read_bytes() == stream
    _, summary = replay(path, tmp_path / "images.h5", Settings(method="zero_filled"), StubEngine)
    assert ["the stream ended" in problem.text for problem in summary.problems.damage] == [True]
    images = [wire(image) for image in read_images(tmp_path / "images.h5")[1]]
    assert len(images) >= FRAMES
    assert images[:FRAMES] == expected_images()[:FRAMES]


def test_process_with_a_full_disk(tmp_path):
    """A limit on the size of files stands for the disk."""
    pytest.importorskip("resource")
    limit = "\nimport resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    before = textwrap.dedent(stub('__import__("time").sleep(0.2)')) + limit
    with Process(tmp_path, "--save-raw", str(tmp_path / "raw"), before=before) as server:
        answer = talk_scan(server)
        assert [wire(image) for image in answer.images] == expected_images()
        assert answer.closed
        assert any("is incomplete" in complaint for complaint in answer.complaints("client"))
        assert server.stop(signal.SIGTERM)[0] == 0
