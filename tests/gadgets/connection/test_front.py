"""The front of a server with workers: whoever of them dies, a peer gets all images once, or is told why not."""

import json
import os
import signal
import subprocess
import threading
import types
import urllib.request
from functools import partial

import pytest

from gadgets.connection import front as module
from gadgets.connection.front import local_starts
from gadgets.reports.gallery import Gallery
from gadgets.wire.messages import Close
from recon_core.errors import ResourceError
from tests.gadgets.connection.test_server import OPENING, Process, stub
from tests.helpers.fronts import fronted
from tests.helpers.peers import (
    FRAMES,
    PATIENCE,
    SLICES,
    Peer,
    StubEngine,
    assert_whole_scan,
    expected_images,
    scan,
    talk_scan,
    wait_until,
    wire,
)
from tests.recon_core.test_children import is_running

HEADER, ITEMS = scan()


def test_scans_at_a_time_are_spread_over_the_workers():
    gate = threading.Event()
    with fronted(lambda _: StubEngine(lambda _: gate.wait(PATIENCE))) as server:
        peers = [Peer(server.address) for _ in range(4)]
        for peer in peers:
            peer.send(*OPENING, *ITEMS, Close())
        wait_until(lambda: sum(one.engine.slices for one in server.workers) >= 4)
        assert [worker.engine.slices for worker in server.workers] == [2, 2]
        gate.set()
        for peer in peers:
            assert [wire(image) for image in peer.collect().images] == expected_images()
            peer.socket.close()


def test_the_front_knows_the_scans_of_all_workers():
    gate = threading.Event()
    with fronted(lambda _: StubEngine(lambda number: number < SLICES or gate.wait(PATIENCE))) as server:
        scans, peers = server.front.scans, [Peer(server.address) for _ in range(2)]
        for peer in peers:
            peer.send(*OPENING, *ITEMS, Close())
        wait_until(lambda: all(one.engine.slices == SLICES for one in server.workers))
        for worker in server.workers:
            worker.scans._tell([])
        wait_until(lambda: [one.summary.slices for one in scans.running] == [SLICES - 1] * 2)
        assert {one.scan for one in scans.running} == {one.scans.running[0].scan for one in server.workers}
        assert scans.running[0].facts()["verdict"] == "running"
        assert scans.totals().images == 0, "scans of workers may be begun again"
        load = server.front.load(server.load())
        assert (load.connections, load[2:]) == (2, (2, 4, 6, 8))
        gate.set()
        for peer in peers:
            peer.collect()
            peer.socket.close()
        wait_until(lambda: len(scans.over) == 2)
        assert scans.running == []
        theirs = {one.scans.over[0].scan: one.scans.over[0].facts() for one in server.workers}
        assert {one.scan: one.facts() for one in scans.over} == theirs
        totals = scans.totals()
    assert (totals.scans, totals.images) == ({"done": 2}, 2 * FRAMES * SLICES)
    assert totals.slices == {"zero_filled": 2 * SLICES}
    assert sum(totals.seconds["latency"][0]) == 2 * SLICES


def test_a_scan_that_is_begun_again_counts_once():
    known = []

    def engine(worker):
        def before(number):
            if number == 2 and not known:
                worker.scans._tell([])
                wait_until(lambda: server.front.scans.running)
                known.extend(server.front.scans.running)
                worker.die()

        return StubEngine(before)

    with fronted(engine) as server:
        assert_whole_scan(server, "client")
        scans = server.front.scans
        assert [one.summary.slices for one in known] == [1], "the front knew of the first try"
        wait_until(lambda: scans.over)
        totals = scans.totals()
        assert (totals.scans, totals.images, scans.running) == ({"done": 1}, FRAMES * SLICES, [])
        assert totals.slices == {"zero_filled": SLICES}


def test_a_worker_that_dies_takes_its_scans_from_the_list():
    gate = threading.Event()
    with fronted(lambda _: StubEngine(lambda _: gate.wait(PATIENCE)), count=1, kept=0) as server:
        scans = server.front.scans
        with Peer(server.address) as peer:
            peer.send(*OPENING, *ITEMS, Close())
            wait_until(lambda: server.workers[0].engine.slices)
            server.workers[0].scans._tell([])
            wait_until(lambda: scans.running)
            server.workers[0].die()
            wait_until(lambda: not scans.running)
            wait_until(lambda: scans.over)
            gate.set()
        (over,) = scans.over
        assert over.verdict == "damaged"
        assert "died" in str(next(iter(over.problems)))


def test_images_and_log_of_workers_can_be_looked_at():
    with fronted() as server:
        shown = server.front.shown
        for worker in server.workers:
            worker.scans.viewer = Gallery()
            worker.scans.log.add([("INFO", f"of {worker.pid}")])
        for _ in range(2):
            assert_whole_scan(server)
        wait_until(lambda: len(server.front.scans.over) == 2)
        for worker in server.workers:
            worker.scans._tell([])
            worker.scans._tell([])
        scans = [one.scan for one in server.front.scans.over]
        wait_until(lambda: all(len(shown.facts(scan)["loops"]) == SLICES for scan in scans))
        worker = next(one for one in server.workers if one.scans.over)
        scan, viewer = worker.scans.over[0].scan, worker.scans.viewer
        assert shown.facts(scan) == viewer.facts(scan)
        assert shown.loop(scan, 1) == viewer.loop(scan, 1) != shown.loop(scan, 0)
        assert shown.maps(scan, 0) == viewer.maps(scan, 0)
        assert shown.maps(scan, 0).startswith(b"\x89PNG")
        wait_until(lambda: len(shown.log.lines()) == 2)
        assert {text for _, _, text in shown.log.lines()} == {f"of {one.pid}" for one in server.workers}
        assert shown.loop(scan, SLICES) == shown.loop("none", 0) == b""
        changes = shown.changes
        worker.die()
        wait_until(lambda: not shown.facts(scan))
        assert shown.changes > changes
        assert shown.loop(scan, 0) == b""


def test_a_worker_that_does_not_answer_holds_no_page_up(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    with fronted(count=1) as server:
        gate = threading.Event()
        gallery = server.workers[0].scans.viewer = Gallery()
        monkeypatch.setattr(gallery, "loop", lambda *_: gate.wait(PATIENCE) and b"")
        server.front.shown.note(0, {"a": {}}, partial(server.front._look, server.front._places[0].worker))
        assert server.front.shown.loop("a", 0) == b""
        gate.set()


def test_no_worker_that_can_reconstruct_is_a_fault():
    with fronted() as server:
        for number, worker in enumerate(server.workers):
            assert server.front.scans.fault == ""
            worker.scans.fault = "no torch"
            worker.scans._tell([])
            wait_until(lambda number=number: server.front._places[number].fault)
        wait_until(lambda: server.front.scans.fault == "no torch")


def test_a_worker_that_dies_is_replaced_though_no_scan_comes(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    with fronted() as server:
        server.workers[0].die()
        wait_until(lambda: len(server.workers) == 3)
        assert_whole_scan(server)


@pytest.mark.parametrize("told", [b"no JSON\n", b"[]\n", b'{"running": [{}], "ended": []}\n'])
def test_a_worker_that_cannot_be_understood_is_replaced(told, caplog, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    with fronted() as server:
        broken = server.workers[0]
        broken._control.sendall(told)
        wait_until(lambda: len(server.workers) == 3)
        assert f"worker {broken.pid} died: what it tells cannot be read: " in caplog.text
        assert_whole_scan(server)
        wait_until(lambda: server.front.scans.over)


def test_that_a_worker_cannot_be_replaced_is_said_until_it_can(caplog, monkeypatch):
    """Scans go to the others meanwhile."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    with fronted() as server:
        wait_until(lambda: len(server.workers) == 2)
        starts, tries = server.front._starts, []

        def fail():
            tries.append(1)
            raise ResourceError("no further process can be started")

        monkeypatch.setattr(server.front, "_starts", [fail, fail])
        server.workers[0].die()
        wait_until(lambda: len(tries) > 2)
        assert_whole_scan(server)
        scans = server.front.scans
        assert (scans.fault, scans.doubt) == (
            "",
            "1 of 2 workers cannot reconstruct: no further process can be started",
        )
        server.workers[1].die()
        wait_until(lambda: scans.fault == "no further process can be started")
        assert caplog.text.count(" died: ") == 2, "said once, however often it is tried"
        monkeypatch.setattr(server.front, "_starts", starts)
        wait_until(lambda: not (scans.fault or scans.doubt))
        assert len(server.workers) == 4
        assert_whole_scan(server)


@pytest.mark.parametrize("count", [1, 2])
def test_that_no_worker_lives_long_enough_to_tell_anything_is_a_fault(count, monkeypatch, caplog):
    """As where a library cannot be loaded; they are begun ever more rarely."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    healthy = threading.Event()

    def engine(worker):
        if not healthy.is_set():
            worker.die()
        return StubEngine()

    with fronted(engine, count) as server:
        scans = server.front.scans
        wait_until(lambda: scans.fault)
        assert (
            scans.fault == "workers end as they begin: it was killed (SIGKILL), as the system does when memory runs out"
        )
        wait_until(lambda: len(server.workers) >= 5 * count)
        assert scans.fault, "also while none is begun"
        assert server.front._places[0].false_starts >= 3
        healthy.set()
        wait_until(lambda: not any(place.worker.has_ended for place in server.front._places))
        for worker in server.workers[-count:]:
            worker.scans._tell([])
        wait_until(lambda: not scans.fault)
        assert_whole_scan(server)
        assert all(place.false_starts == 0 for place in server.front._places)


def test_the_page_is_not_held_up_by_a_worker_that_is_slow_to_start(monkeypatch):
    """As where a cluster is reached again."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    with fronted(count=1) as server:
        begun, gate, (start,) = threading.Event(), threading.Event(), server.front._starts
        monkeypatch.setattr(server.front, "_starts", [lambda: begun.set() or (gate.wait(PATIENCE) and start())])
        server.workers[0].die()
        assert begun.wait(PATIENCE)
        looked = threading.Thread(target=server.front.load, args=(server.load(),))
        looked.start()
        looked.join(PATIENCE / 10)
        assert not looked.is_alive()
        gate.set()
        wait_until(lambda: len(server.workers) == 2)


def test_workers_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(module, "usable_gpus", lambda: ["0", "1"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def started(count):
        found = []
        options = types.SimpleNamespace(start=lambda environment: found.append(environment) or DEAD)
        for start in local_starts(count, options):
            start()
        return found

    assert [one["OMP_NUM_THREADS"] for one in started(3)] == ["2"] * 3
    assert [one["CUDA_VISIBLE_DEVICES"] for one in started(3)] == ["0", "1", "0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setattr(module, "usable_gpus", list)
    assert started(1) == [{"OMP_NUM_THREADS": "5"}]


DEAD = types.SimpleNamespace(pid=0)


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_worker_process_that_is_killed_in_mid_scan_costs_no_image(tmp_path):
    killed = tmp_path / "killed"
    mark = f"import os, pathlib; mark = pathlib.Path({str(killed)!r}); me = os.getpid()"
    kill = f"{mark}; number == 2 and not mark.exists() and (mark.write_text(str(me)), os.kill(me, 9))"
    with Process(tmp_path, "--workers", "2", "--web", "0", before=stub(kill)) as server:
        page = server.process.stdout.readline().removeprefix("monitor page: ").strip()
        answer = talk_scan(server)
        assert answer.complaints("client") == []
        assert [wire(image) for image in answer.images] == expected_images()
        assert answer.closed
        assert int(killed.read_text()) != server.process.pid
        assert_whole_scan(server)
        wait_until(lambda: len(asked(page, "scans.json")["over"]) == 2)
        facts = asked(page, "scans.json")
        assert (facts["running"], facts["server"]["scans"], facts["server"]["workers"]) == ([], {"done": 2}, 2)
        assert facts["server"]["images"] == 2 * len(expected_images()), "what was begun again counts once"
        assert asked(page, "healthz")["health"] == "well"
        workers = children_of(server.process.pid)
        assert len(workers) == 2
        code, error = server.stop(signal.SIGTERM)
    assert code == 0
    assert "begins it again" in error
    assert "Traceback" not in error
    wait_until(lambda: not [pid for pid in workers if is_running(pid)])


def test_the_page_shows_images_and_log_of_worker_processes(tmp_path):
    with Process(tmp_path, "--workers", "2", "--web", "0", before=stub()) as server:
        page = server.process.stdout.readline().removeprefix("monitor page: ").strip()
        assert_whole_scan(server)
        wait_until(lambda: any(one["loops"] for one in asked(page, "scans.json")["over"]))
        (over,) = asked(page, "scans.json")["over"]
        assert [loop["name"] for loop in over["loops"]] == [f"slice {number}" for number in range(SLICES)]
        assert over["snr"] > 0
        assert asked(page, f"loops/{over['scan']}/1")["frames"] == FRAMES
        with urllib.request.urlopen(f"{page}maps/{over['scan']}/0", timeout=PATIENCE) as answer:
            assert answer.read().startswith(b"\x89PNG")
        with urllib.request.urlopen(page + "events", timeout=PATIENCE) as news:
            while f"[{over['scan']}] client".encode() not in news.readline():
                pass  # until the line comes that the worker logged
        code, error = server.stop(signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in error
    assert error.count(f"[{over['scan']}] client") == 1, "nothing is logged twice"


def asked(page, path):
    with urllib.request.urlopen(page + path, timeout=PATIENCE) as answer:
        return json.load(answer)


def children_of(pid):
    outcome = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in outcome.stdout.split()]


def test_workers_end_with_a_server_that_is_killed(tmp_path):
    with Process(tmp_path, "--workers", "2", before=stub()) as server:
        assert_whole_scan(server)
        workers = children_of(server.process.pid)
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: not [pid for pid in workers if is_running(pid)])
    assert len(workers) == 2
