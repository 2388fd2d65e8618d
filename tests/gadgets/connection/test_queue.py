import threading
from types import SimpleNamespace

import numpy as np
import pytest

from gadgets.connection.queue import MessageQueue, QueueSpace
from gadgets.wire.messages import Close, Text
from recon_core.errors import ProtocolError
from tests.helpers.builders import readouts


def in_background(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)  # one that waits for ever must not hang us
    thread.start()
    return thread


def test_queue_keeps_order_and_counts_bytes():
    queue = MessageQueue(QueueSpace(10**6))
    items = [readouts(3, 2, 8), Text("a"), ProtocolError("b"), Close()]
    for item in items:
        queue.put(item)
    assert [queue.get() for _ in items] == items
    assert queue._space.used == 0


def test_queue_holds_up_beyond_its_limit(caplog):
    block = Text("a")
    queue = MessageQueue(QueueSpace(30_000))
    thread = in_background(lambda: [queue.put(block, 10_000) for _ in range(5)])
    thread.join(0.3)
    assert thread.is_alive()
    assert len(queue._items) == 2
    taken = []
    taker = in_background(lambda: taken.extend(queue.get() for _ in range(5)))
    taker.join(10)
    assert taken == [block] * 5  # each that is taken lets another in
    thread.join(10)
    assert not thread.is_alive()
    assert queue.held_up >= 0.25
    (said,) = [record.getMessage() for record in caplog.records]  # once, however often
    assert said.startswith("the sender is held up: ")


def test_a_message_wakes_the_one_that_waits_for_it():
    queue = MessageQueue(QueueSpace(1000))
    taken = []
    thread = in_background(lambda: taken.append(queue.get()))
    thread.join(0.2)
    assert thread.is_alive()
    queue.put(Close())
    thread.join(10)
    assert taken == [Close()]


def test_a_message_wakes_nobody_else(monkeypatch):
    """Each readout of a scan in real time would wake the threads of all others."""
    woken = []

    class Counting(threading.Condition):
        def wait(self, timeout=None):
            super().wait(timeout)
            woken.append(threading.current_thread())
            return True

    monkeypatch.setattr("gadgets.connection.queue.threading", SimpleNamespace(Lock=threading.Lock, Condition=Counting))
    space = QueueSpace(10**6)
    queue, other = MessageQueue(space), MessageQueue(space)
    idle, busy = in_background(other.get), in_background(lambda: [queue.get() for _ in range(3)])
    for thread in (idle, busy):
        thread.join(0.1)
    for _ in range(3):
        queue.put(Text("a"))
    busy.join(10)
    other.put(Text("b"))
    idle.join(10)
    assert woken.count(idle) == 1


def same(joined, parts):
    return all(
        np.array_equal(getattr(joined, name), np.concatenate([getattr(part, name) for part in parts]))
        for name in ("headers", "data")
    )


def test_small_runs_of_readouts_that_wait_are_taken_as_one():
    queue = MessageQueue(QueueSpace(10**6))
    parts = [readouts(count, 2, 8) for count in (1, 2, 1)]
    after = readouts(1, 2, 16)
    for item in (*parts, Text("a"), parts[0], after, Close()):
        queue.put(item, 100)
    assert same(queue.get(), parts)
    assert queue.get() == Text("a")
    assert queue.get() is parts[0]  # other samples follow
    assert queue.get() is after
    assert queue.get() == Close()
    assert queue._space.used == 0


@pytest.mark.parametrize(("count", "size"), [(9, 100), (1, 600_000)])
def test_runs_that_are_not_small_are_taken_one_by_one(count, size):
    """They would be copied for nothing; and a scan is asked after every one whether it goes first."""
    queue = MessageQueue(QueueSpace(10**7))
    parts = [readouts(count, 2, 8) for _ in range(2)]
    for part in parts:
        queue.put(part, size)
    assert [queue.get() is part for part in parts] == [True, True]


def test_queue_lets_one_oversized_item_in():
    """Without this rule a message larger than the limit would wait for ever."""
    queue = MessageQueue(QueueSpace(1))
    thread = in_background(queue.put, readouts(10, 4, 64), 10**6)
    thread.join(10)
    assert not thread.is_alive()
    thread = in_background(queue.put, Close())
    thread.join(0.2)
    assert thread.is_alive()
    queue.get()
    thread.join(10)
    assert not thread.is_alive()
    assert queue.get() == Close()


def test_abandoned_queue_holds_nothing_and_nobody_up():
    queue = MessageQueue(QueueSpace(1000))
    queue.put(Text("first"))
    thread = in_background(queue.put, Text("second"), 1000)
    queue.abandon()
    thread.join(10)
    assert not thread.is_alive()
    for _ in range(100):
        queue.put(readouts(10, 4, 64), 10**6)
    assert not queue._items
    assert queue._space.used == 0


def test_queues_share_their_space():
    """What all connections together may keep waiting is bounded, and each of them goes on all the same."""
    space = QueueSpace(5000)
    queues = [MessageQueue(space) for _ in range(3)]
    for queue in queues:
        queue.put(Text("a"), 1000)
    thread = in_background(queues[0].put, Text("b"), 1000)
    thread.join(0.2)
    assert thread.is_alive()
    queues[1].abandon()  # a scan that is over makes room for the others
    thread.join(10)
    assert not thread.is_alive()
    assert space.used == 3 * 1512
    for _ in range(2):
        queues[0].get()
    queues[2].get()
    assert space.used == 0


def test_an_interrupted_queue_ends_with_the_error():
    queue = MessageQueue(QueueSpace(1000))
    queue.put(Text("a"))
    error = ProtocolError("stopped")
    queue.interrupt(error)
    queue.put(Text("b"))
    assert queue.get() is error
    assert queue._space.used == 0


def test_it_knows_when_the_message_came_that_was_taken_last(monkeypatch):
    now = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr("gadgets.connection.queue.time.monotonic", lambda: next(now))
    queue = MessageQueue(QueueSpace(10**6))  # at 10
    queue.put(Text("first"))
    queue.put(Text("second"))
    for expected in (11, 12):
        queue.get()
        assert queue.arrived == expected
