"""A connection of a front: the peer gets all images once, whoever of the workers dies, or is told why not."""

import logging
import re
import time

import pytest

from gadgets.connection.passage import TRIES
from gadgets.wire.messages import Close, ConfigFile, Header, Query
from recon_core.errors import ResourceError
from tests.gadgets.connection.test_server import OPENING, LongEngine
from tests.helpers.builders import readouts
from tests.helpers.fronts import deadly, fronted
from tests.helpers.peers import (
    CONFIGURATIONS,
    DOORS,
    FRAMES,
    PATIENCE,
    SLICES,
    Peer,
    assert_whole_scan,
    expected_images,
    one_by_one,
    scan,
    talk,
    talk_scan,
    wait_until,
    wire,
)

HEADER, ITEMS = scan()


@pytest.mark.parametrize("door", DOORS)
def test_a_scan_through_the_front_is_that_of_a_server(door):
    with fronted() as server:
        assert_whole_scan(server, door)
        assert_whole_scan(server, door)
        assert sum(worker.engine.slices for worker in server.workers) == 2 * SLICES


def test_questions_and_health_checks_pass(caplog):
    with fronted() as server:
        answer = talk(server, Query(7, "cinestream::version"), Close())
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", answer.answers[7])
        with caplog.at_level(logging.WARNING):
            with Peer(server.address):
                pass
            with Peer(server.address) as peer:
                peer.reset()
            wait_until(lambda: not server._sessions)
        assert not caplog.records
        bad = talk(server, ConfigFile("magic"), Header(HEADER), Close())
        assert any("magic" in text for text in bad.complaints("client"))
        assert bad.closed


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("door", DOORS)
def test_a_worker_that_dies_is_replaced_and_nothing_is_sent_twice(door, at, count, caplog):
    with fronted(deadly(at, [1]), count) as server:
        answer = talk_scan(server, door)
        assert answer.complaints(door) == []
        assert answer.closed
        assert [wire(image) for image in answer.images] == expected_images()
        assert [type(message).__name__ for message in answer.messages].count("Waveform") == sum(
            type(item).__name__ == "Waveform" for item in ITEMS
        ) * (door == "gadgetron")
        assert "another one begins it again" in caplog.text
        assert_whole_scan(server, door)
        assert len(server.workers) == count + 1
        assert "died: it was killed" in caplog.text


def test_a_worker_may_die_while_the_peer_still_sends():
    with fronted(deadly(1, [1])) as server, Peer(server.address) as peer:
        items = [*one_by_one(ITEMS)]
        peer.send(*OPENING, *items[:-1])
        wait_until(lambda: len([one for one in server.workers if one.has_ended]) == 1)
        peer.send(*items[-1:], Close())
        assert [wire(image) for image in peer.collect().images] == expected_images()


def test_a_worker_may_die_before_the_peer_says_anything():
    with fronted(count=1) as server, Peer(server.address) as peer:
        wait_until(lambda: server.workers[0]._sessions)
        server.workers[0].die()
        wait_until(lambda: len(server.workers) == 2)
        peer.send(*OPENING, *ITEMS, Close())
        assert [wire(image) for image in peer.collect().images] == expected_images()


def test_texts_are_not_sent_twice():
    """Readouts of other coils give one before the first image."""
    items = [*ITEMS[:-1], readouts(2, coils=7, samples=128), ITEMS[-1]]
    with fronted() as server:
        usual = talk(server, *OPENING, *items, Close())
    assert usual.texts
    with fronted(deadly(2, [1])) as server:
        again = talk(server, *OPENING, *items, Close())
    assert again.texts == usual.texts
    assert [wire(image) for image in again.images] == [wire(image) for image in usual.images]


@pytest.mark.parametrize("door", DOORS)
def test_a_scan_that_kills_every_worker_ends_in_an_error(door):
    with fronted(deadly(1, deaths := [TRIES])) as server:
        answer = talk_scan(server, door)
        assert deaths == [0]
        (complaint,) = answer.complaints(door)
        assert f"died {TRIES} times" in complaint
        assert answer.closed
        assert answer.images == []
        assert_whole_scan(server, door)


@pytest.mark.parametrize("door", DOORS)
def test_without_the_memory_to_keep_a_scan_its_loss_is_said(door):
    with fronted(deadly(2, [1]), kept=1000) as server:
        answer = talk_scan(server, door)
        (complaint,) = answer.complaints(door)
        assert "not all of the scan was kept (--keep-gib); send it again" in complaint
        assert len(answer.images) == FRAMES
        assert_whole_scan(server, door)


def test_other_images_are_not_mixed_with_those_that_were_sent():
    """As of a method that depends on the time it has."""
    deaths = [1]

    def make(worker):
        engine = deadly(2, deaths)(worker)
        if deaths[0] == 0:
            reconstruct = engine.reconstruct

            def other(cine, options):
                made = reconstruct(cine, options)
                made.image[...] *= 2
                return made

            engine.reconstruct = other
        return engine

    with fronted(make, count=1) as server:
        answer = talk_scan(server)
    (complaint,) = answer.complaints("client")
    assert "gave other images" in complaint
    assert len(answer.images) == FRAMES
    assert answer.closed


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_scan_of_a_peer_that_is_gone_is_stopped(how):
    engine = LongEngine()
    with fronted(lambda _: engine) as server:
        peer = Peer(server.address)
        peer.send(*OPENING, *ITEMS, Close())
        assert engine.began.wait(PATIENCE)
        peer.reset() if how == "reset" else peer.socket.close()
        assert engine.stopped.wait(PATIENCE)
        wait_until(lambda: not server._sessions)
        assert engine.slices == 1


@pytest.mark.parametrize("door", DOORS)
def test_a_server_that_is_stopped_says_so(door):
    engine = LongEngine()
    with fronted(lambda _: engine) as server, Peer(server.address) as peer:
        peer.send(CONFIGURATIONS[door], Header(HEADER), *ITEMS, Close())
        assert engine.began.wait(PATIENCE)
        server.stop(0.0)
        answer = peer.collect()
        assert any("is being stopped before the scan was done" in text for text in answer.complaints(door))
        assert answer.closed


@pytest.mark.parametrize("door", DOORS)
def test_that_no_worker_can_be_started_is_said(door, monkeypatch, caplog):
    with fronted(count=1) as server:
        assert_whole_scan(server)
        server.workers[0].die()

        def fail():
            raise ResourceError("no further process can be started")

        monkeypatch.setattr(server.front, "_starts", [fail])
        with Peer(server.address):  # as health checks do
            pass
        wait_until(lambda: "no further process can be started" in caplog.text)
        wait_until(lambda: not server._sessions)
        assert caplog.text.count("no further process can be started") == 1, "of the worker, not of each check"
        with Peer(server.address) as peer:
            wait_until(lambda: server._sessions)
            time.sleep(0.1)  # it is known that there is no worker before it is known who asks
            peer.send(CONFIGURATIONS[door], Header(HEADER), *ITEMS, Close())
            answer = peer.collect()
        assert answer.complaints(door) == ["no further process can be started"]
        assert answer.closed
        monkeypatch.undo()
        assert_whole_scan(server)


def test_silent_connections_give_way():
    with fronted(connections=1) as server, Peer(server.address) as silent:
        wait_until(lambda: server._sessions)
        assert_whole_scan(server)
        assert any("need the place" in text for text in silent.collect().texts)


def test_the_log_names_the_peer(caplog):
    with caplog.at_level(logging.INFO), fronted() as server:
        assert_whole_scan(server)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "cinestream.scans"]
    assert line.startswith("client 127.0.0.1 port ")
