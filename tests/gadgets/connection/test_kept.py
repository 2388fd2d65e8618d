"""What a peer sent comes out whole, as often as it is wanted; beyond the space it is dropped once it is passed on."""

import threading

import pytest

from gadgets.connection import kept as module
from gadgets.connection.kept import Kept
from gadgets.connection.queue import QueueSpace
from tests.helpers.peers import PATIENCE, wait_until


def append(kept, *blocks):
    for block in blocks:
        kept.append(memoryview(block))


def all_of(kept):
    return [*kept.blocks(lambda: True)]


def test_all_can_be_had_again_and_space_is_given_back():
    space = QueueSpace(100)
    kept = Kept(space)
    append(kept, b"abc", b"de", b"f")
    kept.end()
    assert all_of(kept) == all_of(kept) == [b"abc", b"de", b"f"]
    assert kept.whole
    assert space.used == 6
    kept.abandon()
    assert space.used == 0
    append(kept, b"later")
    assert space.used == 0
    assert all_of(kept) == []


def test_who_passes_on_waits_for_what_comes_and_can_be_stopped():
    kept, got, wanted = Kept(QueueSpace(100)), [], [True]
    thread = threading.Thread(target=lambda: got.extend(kept.blocks(lambda: wanted[0])))
    thread.start()
    append(kept, b"abc")
    kept.wake()
    assert thread.is_alive()
    wanted[0] = False
    kept.wake()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert got in ([b"abc"], [])


def test_beyond_the_space_what_was_passed_on_is_dropped_and_the_peer_waits(monkeypatch):
    monkeypatch.setattr(module, "_AHEAD_BYTES", 4)
    space = QueueSpace(10)
    kept = Kept(space)
    append(kept, b"12345678")
    passing = kept.blocks(lambda: True)
    assert next(passing) == b"12345678"
    sender = threading.Thread(target=append, args=(kept, b"abcd", b"efgh", b"ijkl", b"mnop"))
    sender.start()
    wait_until(lambda: not kept.whole)
    got = [next(passing)]
    wait_until(lambda: kept._waiting > 4)
    sender.join(0.1)
    assert sender.is_alive(), "held up"
    assert space.used <= 16
    threading.Thread(target=lambda: (sender.join(), kept.end())).start()
    got += passing
    assert b"".join(got) == b"abcdefghijklmnop"
    assert space.used == 0
    assert all_of(kept) == []
    assert kept.opening == b"12345678abcdefghijklmnop"


def test_a_peer_that_waits_is_let_go_when_all_is_over(monkeypatch):
    monkeypatch.setattr(module, "_AHEAD_BYTES", 4)
    kept = Kept(QueueSpace(0))
    sender = threading.Thread(target=append, args=(kept, b"abcde", b"fghij"))
    sender.start()
    sender.join(0.1)
    assert sender.is_alive()
    kept.abandon()
    sender.join(PATIENCE)
    assert not sender.is_alive()


@pytest.mark.parametrize("begun", [0, 1, 3])
def test_space_that_runs_out_in_a_second_pass_loses_nothing_of_it(begun):
    kept = Kept(QueueSpace(8))
    append(kept, b"ab", b"cd", b"ef")
    passing = kept.blocks(lambda: True)
    assert [next(passing) for _ in range(3)] == [b"ab", b"cd", b"ef"]
    again = kept.blocks(lambda: True)
    got = [next(again) for _ in range(begun)]
    append(kept, b"ghi")
    assert not kept.whole
    kept.end()
    if begun:  # it had begun while all was there
        assert b"".join([*got, *again]) == b"abcdefghi"
