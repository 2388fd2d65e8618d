import threading

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
    block = readouts(10, 4, 64)
    queue = MessageQueue(QueueSpace(3 * block.data.nbytes))
    thread = in_background(lambda: [queue.put(block, block.data.nbytes) for _ in range(5)])
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
