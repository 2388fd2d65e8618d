import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.engine import Engine
from recon_core.errors import ScanStoppedError
from recon_core.options import ReconOptions
from recon_core.stopping import check, stoppable
from recon_core.turns import Share, Turns, sharing, work_time
from tests.recon_core.test_stopping import cine


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


class Worker:
    """Has turns in a thread of its own, each a number of steps that the test lets it take."""

    def __init__(self, turns, log, name, share=None, until=math.inf, steps=0):
        self.turns, self.log, self.name, self.until, self.steps = turns, log, name, until, steps
        self.share = share or Share()
        self.go = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.work, daemon=True)

    def start(self):
        waiting, taken = len(self.turns._waiting), self.turns.taken
        self.thread.start()
        if taken:
            wait_until(lambda: len(self.turns._waiting) > waiting)
        return self

    def work(self):
        with sharing(self.share), self.turns.turn(self.until):
            self.log.append(self.name)
            for _ in range(self.steps):
                self.go.acquire()
                check()
                self.log.append(self.name)


def order(claims):
    """In which order claims have their turns that wait while another one has its own."""
    turns, log = Turns(), []
    with turns.turn():
        workers = [Worker(turns, log, name, share, until).start() for name, share, until in claims]
    for worker in workers:
        worker.thread.join(20)
    assert not turns.taken
    return log


def test_urgent_ones_go_first_then_deadlines_then_whoever_had_least():
    claims = [
        ("much", Share(used=9.0), math.inf),
        ("little", Share(used=1.0), math.inf),
        ("late", Share(), 200.0),
        ("soon", Share(used=5.0), 100.0),
        ("real time", Share(urgent=True, used=99.0), math.inf),
    ]
    assert order(claims) == ["real time", "soon", "late", "little", "much"]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([math.inf, 1.0, 2.0]), st.integers(0, 3)), max_size=6))
def test_the_order_is_that_of_the_description(claims):
    drawn = [(i, Share(urgent, float(used)), until) for i, (urgent, until, used) in enumerate(claims)]

    def key(one):
        i, share, until = one
        return (0 if share.urgent else 1 if until < math.inf else 2), until, share.used, i

    expected = [name for name, *_ in sorted(drawn, key=key)]
    assert order(drawn) == expected


def test_only_who_is_next_wakes_up(monkeypatch):
    """Threads that wake up for nothing take time from the one that works: with seven of them a third of it."""
    woken = []
    monkeypatch.setattr("recon_core.turns.ask", lambda: woken.append(threading.current_thread()))
    turns, log = Turns(), []
    with turns.turn():
        workers = [Worker(turns, log, name).start() for name in "abcd"]
    for worker in workers:
        worker.thread.join(20)
    assert log == [*"abcd"]
    assert woken == [worker.thread for worker in workers]


def test_scans_take_turns_slice_by_slice(monkeypatch):
    """One with many slices that wait at once does not keep another from its own."""
    now = [0.0]
    monkeypatch.setattr("recon_core.turns.time.perf_counter", lambda: now[0])
    turns, log = Turns(), []

    def scan(name, slices, ready):
        share = Share()
        for _ in range(slices):
            with sharing(share), turns.turn():
                log.append(name)
                ready.set()
                now[0] += 1.0
                wait_until(lambda: turns._waiting or log.count("b") == 3)

    begun = threading.Event()
    threads = [threading.Thread(target=scan, args=("a", 6, begun), daemon=True)]
    threads[0].start()
    begun.wait(20)
    threads.append(threading.Thread(target=scan, args=("b", 3, threading.Event()), daemon=True))
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert "".join(log) in ("abababaaa", "aabababaa")


def test_a_newcomer_does_not_get_all_that_others_had_before():
    turns = Turns()
    old, new = Share(used=50.0), Share()
    with sharing(old), turns.turn():
        pass
    with sharing(new), turns.turn():
        pass
    assert new.used >= 50.0


def test_urgent_ones_that_want_all_of_the_time_leave_a_quarter_of_it(monkeypatch):
    """One that falls behind goes on with most of the time, and a slice of another, however long, with the rest."""
    now, had, first = [0.0], {"urgent": 0.0, "other": 0.0}, []
    monkeypatch.setattr("recon_core.turns.time.perf_counter", lambda: now[0])
    turns, begun, done = Turns(), threading.Event(), threading.Event()

    def spend(name, seconds):
        now[0] += seconds
        had[name] += seconds

    def other():
        with turns.turn():
            begun.set()
            while True:
                wait_until(lambda: turns._waiting or done.is_set())
                if done.is_set():
                    return
                spend("other", 0.0005)
                if had["other"] > 0.1 and not first:  # more than it gets between two turns of the urgent one
                    first.append(had["urgent"])
                check()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    begun.wait(20)
    with sharing(Share(urgent=True)):
        for _ in range(400):
            with turns.turn():
                spend("urgent", 0.05)
    done.set()
    thread.join(20)
    assert first == [pytest.approx(4, abs=0.5)]
    assert had == {"urgent": pytest.approx(20), "other": pytest.approx(16 / 3, abs=0.2)}  # 16 s of 20 s at this share


@pytest.mark.parametrize(("share", "until"), [(Share(urgent=True), math.inf), (Share(), 5.0)])
def test_a_running_slice_gives_way_to_what_is_more_urgent_and_goes_on(share, until):
    turns, log = Turns(), []
    long = Worker(turns, log, "long", steps=2).start()
    wait_until(lambda: log == ["long"])
    urgent = Worker(turns, log, "urgent", share, until).start()
    alike = Worker(turns, log, "alike").start()
    long.go.release()
    urgent.thread.join(20)
    wait_until(lambda: log == ["long", "urgent", "long"])  # it has begun, so that it goes before what has not
    long.go.release()
    for worker in (long, alike):
        worker.thread.join(20)
    assert log == ["long", "urgent", "long", "long", "alike"]


def test_nothing_gives_way_to_its_like():
    turns, log = Turns(), []
    first = Worker(turns, log, "first", Share(urgent=True), steps=1).start()
    wait_until(lambda: log == ["first"])
    second = Worker(turns, log, "second", Share(urgent=True)).start()
    first.go.release()
    second.thread.join(20)
    assert log == ["first", "first", "second"]


def test_what_has_given_way_can_be_stopped():
    turns, stopped = Turns(), []
    going, urgent_done = threading.Event(), threading.Event()

    def work():
        with stoppable(lambda: "enough" if urgent_done.is_set() else ""), turns.turn():
            going.set()
            try:
                while True:
                    check()
            except ScanStoppedError:
                stopped.append(turns.taken)
                raise

    def expect():
        with pytest.raises(ScanStoppedError, match="enough"):
            work()

    thread = threading.Thread(target=expect, daemon=True)
    thread.start()
    going.wait(20)
    with sharing(Share(urgent=True)), turns.turn():
        urgent_done.set()
        thread.join(20)  # it stops while the other one still has its turn
        assert stopped == [True]
        assert turns.taken
    assert not turns.taken
    with turns.turn():
        pass


def test_time_stands_still_for_what_gives_way():
    turns, spent = Turns(), []
    going = threading.Event()

    def work():
        with sharing(share := Share()), turns.turn():
            begin = work_time()
            going.set()
            wait_until(lambda: turns._waiting)
            before = work_time() - begin
            check()
            spent.extend([before, work_time() - begin])
        spent.append(share.used)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    going.wait(20)
    with sharing(Share(urgent=True)), turns.turn():
        time.sleep(0.3)
    thread.join(20)
    before, after, used = spent
    assert before <= after < before + 0.25
    assert used < before + 0.28


def test_images_are_the_same_when_a_slice_gave_way():
    engine, options = Engine("cpu"), ReconOptions.of(method="kt_sense")
    alone = engine.reconstruct(cine(), options)
    small = engine.reconstruct(cine(frames=4), ReconOptions())
    results, during = [], []
    long = threading.Thread(target=lambda: results.append(engine.reconstruct(cine(), options)), daemon=True)
    long.start()
    wait_until(lambda: engine._turns.taken)
    with sharing(Share(urgent=True)):
        during.append(engine.reconstruct(cine(frames=4), ReconOptions()))
    assert not results  # the small one did not wait for it
    long.join(60)
    np.testing.assert_array_equal(results[0].image, alone.image)
    np.testing.assert_array_equal(during[0].image, small.image)
