"""The front of a server with several processes: it takes connections and passes their bytes on, without numerics.

One scan goes to one worker, since its windows, maps and noise belong together. What came of it is kept meanwhile: when
the worker dies, another one begins the scan again, and what was sent already is not sent twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import select
import socket
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from gadgets.connection.drain import Drain
from gadgets.connection.elsewhere import Elsewhere
from gadgets.connection.handshake import GOES_ON, Dialect, Handshake
from gadgets.connection.kept import Kept
from gadgets.connection.news import Room
from gadgets.connection.queue import QueueSpace
from gadgets.connection.records import ScanRecord, ServerRecord
from gadgets.connection.session import name_of, set_up
from gadgets.connection.worker import LocalWorker, look_at, session_for, stop_of
from gadgets.problems import Kind, Problem, Problems
from gadgets.wire.framing import Frames, MessageId
from gadgets.wire.messages import ConfigFile, ConfigText
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.children import environments_of, usable_cores, usable_gpus
from recon_core.errors import CinestreamError, ProtocolError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gadgets.connection.elsewhere import Look
    from gadgets.connection.records import Load
    from gadgets.connection.worker import Worker, WorkerOptions
    from gadgets.wire.framing import Frame

logger = logging.getLogger("cinestream")

#: How often a scan is begun of which the worker dies.
TRIES = 3

_PAUSE_SECONDS = 1.0  # from the death of a worker to the next, if no connection asks for it before; twice as long
_LONGEST_PAUSE_SECONDS = 60.0  # after each that ended before it told anything
_FALSE_STARTS = 2  # from so many on it is said that no worker can be had
_LOOK_SECONDS = 10.0  # that a worker may take for a part of a picture
_OPENING_SECONDS = 5.0  # that a peer has to say what it is, who is to be told in its way that there is no worker
_BLOCK_BYTES = 1 << 22  # of a picture at a time
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # of Linux


class _Place:
    """A worker, how many scans it has, and what it told last.

    Of the workers before it in its place, `false_starts` in a row ended before they told anything, the last of them as
    `why` says.
    """

    def __init__(self, worker: Worker, number: int, false_starts: int = 0, why: str = "") -> None:
        self.worker = worker
        self.number = number
        self.has_told = False
        self.false_starts = false_starts
        self.scans = 0
        self.room = Room()
        self.fault = f"workers end as they begin: {why}" if false_starts >= _FALSE_STARTS else ""
        self.misread = ""  # why what it tells could not be taken
        self.death_is_said = False

    def listen(self, record: ServerRecord, shown: Elsewhere, look: Look, changed: Callable[[], None]) -> None:
        """Note what it tells, until it is gone: the scans that it had are begun again elsewhere, or fail."""
        try:
            for news in self.worker.news():
                shown.note(self.number, news.images, look)
                shown.log.add(news.log)
                for one in news.ended:
                    record.end(one)
                record.run_elsewhere(self.number, news.running)
                self.room, self.fault = news.room, news.fault
                self.has_told, self.false_starts = True, 0
                changed()
        except Exception as error:  # a worker that cannot be understood is replaced as one that died
            logger.exception("unexpected error")
            self.misread = f"what it tells cannot be read: {error!r}"
            self.worker.end()
        record.run_elsewhere(self.number, [])
        shown.forget(self.number)
        self.room = Room()
        if self.has_told:
            self.fault = ""


class Front:
    """The workers of a server.

    Parameters
    ----------
    starts
        What starts each of them, and another one in its place when it has died.
    kept_bytes
        Memory for what is kept of the scans that run; a quarter of the free memory at most.
    idle_seconds
        How long a peer may take nothing of what is sent.
    scans
        Where the workers report; None keeps what they report for itself.

    Attributes
    ----------
    shown : Elsewhere
        Images and log of the workers.

    Raises
    ------
    ResourceError
        If a worker cannot be started.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[], Worker]],
        kept_bytes: int,
        idle_seconds: float,
        scans: ServerRecord | None = None,
    ) -> None:
        self.scans = scans or ServerRecord()
        self.shown = Elsewhere(len(starts))
        self.space = QueueSpace.of_memory(kept_bytes)
        self.idle_seconds = idle_seconds
        self._starts = starts
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._numbers = itertools.count(1)
        with self._lock:
            self._places = [self._start(start) for start in starts]

    def load(self, load: Load) -> Load:
        """Put what all workers have to do in place of that of the server, which has nothing."""
        rooms = [place.room for place in [*self._places]]  # without the lock: a cluster may take long to give a worker
        return load._replace(**{name: sum(getattr(room, name) for room in rooms) for name in Room._fields})

    def _start(self, start: Callable[[], Worker], false_starts: int = 0, why: str = "") -> _Place:
        place = _Place(start(), next(self._numbers), false_starts, why)
        threading.Thread(target=self._listen, args=(place,), name="cinestream-news", daemon=True).start()
        return place

    def _listen(self, place: _Place) -> None:
        """Note what a worker tells; when it is gone, another one follows a moment later."""
        place.listen(self.scans, self.shown, partial(self._look, place.worker), self._note_faults)
        self._note_faults()
        is_replaced = False
        pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** min(place.false_starts, 10))
        while not (is_replaced or self._closing.wait(pause)):
            with self._lock:
                self._replace_dead()
                is_replaced = place not in self._places
            self._note_faults()

    @staticmethod
    def _look(worker: Worker, name: str, scan: str, number: int) -> bytes:
        """Have a worker make a picture; nothing comes of one that is gone, or does not answer in time."""
        picture = bytearray()
        with contextlib.suppress(OSError, ResourceError), worker.connect(look_at(name, scan, number)) as connection:
            connection.settimeout(_LOOK_SECONDS)
            while block := connection.recv(_BLOCK_BYTES):
                picture += block
            return bytes(picture)
        return b""

    def _note_faults(self) -> None:
        """No scan can be reconstructed if no worker can; that only some can is to be looked at."""
        with self._lock:
            faults, places = [place.fault for place in self._places if place.fault], len(self._places)
        some, none = faults and len(faults) < places, len(faults) == places
        self.scans.fault = faults[0] if none else ""
        self.scans.doubt = f"{len(faults)} of {places} workers cannot reconstruct: {faults[0]}" if some else ""

    def passage(self, connection: socket.socket) -> Passage:
        """Make what serves a connection."""
        return Passage(connection, self)

    def take_place(self) -> _Place:
        """Give the worker with the fewest scans to one more; those that have died are replaced.

        Raises
        ------
        ResourceError
            If there is none, and none can be started.
        """
        with self._lock:
            self._replace_dead()
            alive = [place for place in self._places if not place.worker.has_ended]
            if not alive:
                raise ResourceError(self._places[0].fault or "the process that reconstructs died; send the scan again")
            place = min(alive, key=lambda one: (not one.worker.is_ready, one.scans))
            place.scans += 1
            return place

    def _replace_dead(self) -> None:
        """Start others for the workers that have died, as far as this is possible; with the lock held."""
        for at, place in enumerate(self._places):
            if not place.worker.has_ended or self._closing.is_set():
                continue
            why, is_new = place.worker.end(), not place.death_is_said
            why, place.death_is_said = place.misread or why, True
            if is_new:
                logger.error("worker %s died: %s", place.worker.name, why)
            false_starts = 0 if place.has_told else place.false_starts + 1
            try:
                self._places[at] = self._start(self._starts[at], false_starts, why)
            except ResourceError as error:
                place.fault = str(error)
                if is_new:
                    logger.error("no other one can be started, which is tried again: %s", error)

    def give_back(self, place: _Place) -> None:
        """A scan is over, or has left a worker that died."""
        with self._lock:
            place.scans -= 1

    def begin(self, place: _Place, peer: str) -> tuple[int, socket.socket]:
        """Let a worker serve a peer; gives the number of the session, and our end of its connection.

        Raises
        ------
        OSError
            If the worker is gone.
        ResourceError
            If it cannot be had.
        """
        number = next(self._numbers)
        return number, place.worker.connect(session_for(number, peer))

    def stop(self, place: _Place, number: int, why: str) -> None:
        """End a session, whose peer the worker tells why."""
        with contextlib.suppress(OSError):
            place.worker.tell(stop_of(number, why))

    def close(self) -> None:
        """End all workers at once."""
        self._closing.set()
        with self._lock:
            for place in self._places:
                place.worker.end()


def local_starts(count: int, options: WorkerOptions) -> list[Callable[[], Worker]]:
    """Give what starts so many workers on this machine, which share its cores and GPUs."""
    threads = os.environ.get("OMP_NUM_THREADS", "") or max(1, usable_cores() // count)
    environments = environments_of(count, threads, usable_gpus())
    return [partial(LocalWorker, options, environment) for environment in environments]


class Passage:
    """One connection of the front, as a `gadgets.connection.session.Session` is one of a server without workers.

    Parameters
    ----------
    connection
        The connected socket; closed by the owner.
    front
        Who has the workers.
    """

    def __init__(self, connection: socket.socket, front: Front) -> None:
        self.silent = True  # nothing has come from the peer
        self._connection = connection
        self._front = front
        self._peer = name_of(connection)
        self._kept = Kept(front.space)
        self._sent = _Sent()
        self._stopped = ""
        self._gone = False  # the peer
        self._current: tuple[_Place, int] | None = None

    def run(self) -> bool:
        """Serve the connection.

        Returns
        -------
        bool
            True if the worker sent everything and no error.
        """
        set_up(self._connection, self._front.idle_seconds)
        drain = Drain(
            self._connection,
            Frames,
            deliver=lambda *_: None,
            tee=self._take,
            ended=self._kept.end,
            is_busy=lambda: True,  # the worker knows who is to be waited for
        )
        try:
            drain.start()
            return self._serve()
        except RuntimeError as error:  # the machine has no more threads
            return self._fail(f"the connection cannot be served: {error}; try again later")
        except OSError as error:
            logger.warning("%s is gone (%s); nothing more can be sent to it", self._peer, error)
            return False
        finally:
            self._kept.abandon()
            drain.finish()

    def stop(self, why: str) -> None:
        """End the scan, and tell the peer why; from any thread."""
        self._stopped = why
        if self._current is not None:
            self._front.stop(*self._current, why)

    def _take(self, block: memoryview) -> None:
        self.silent &= not block
        self._kept.append(block)

    def _serve(self) -> bool:
        """Let workers do the scan until one has done it; raises OSError if the peer is gone."""
        why = ""
        for _ in range(TRIES):
            if self._stopped:
                return self._fail(self._stopped)
            try:
                place = self._front.take_place()
            except ResourceError as error:
                self._kept.wait_for_opening(lambda opening: _dialect_of(opening) is not None, _OPENING_SECONDS)
                return (self.silent and self._kept.ended) or self._fail(str(error))
            try:
                if self._through(place):
                    return self._sent.good
            except ResourceError as error:
                return self._fail(str(error))
            except _OtherImagesError as error:
                return self._fail(str(error), recorded=True)  # by the worker
            finally:
                self._current = None
                self._front.give_back(place)
            if self.silent and self._kept.ended:  # as health checks do
                return True
            if self._gone:
                logger.warning("%s is gone; nothing more can be sent to it", self._peer)
                return False
            why = f"the process that reconstructs the scan of {self._peer} died"
            if not self._kept.whole:
                return self._fail(f"{why}, and not all of the scan was kept (--keep-gib); send it again")
            logger.warning("%s; another one begins it again", why)
        return self._fail(f"{why} {TRIES} times; it may need more memory than there is: see the log of the server")

    def _through(self, place: _Place) -> bool:
        """Pass the scan to a worker and its answers to the peer; False if the worker dies."""
        try:
            number, connection = self._front.begin(place, self._peer)
        except OSError:
            return False
        over = threading.Event()
        feeder = threading.Thread(target=self._feed, args=(connection, over), name="cinestream-feed", daemon=True)
        with connection:
            self._current = place, number
            if self._stopped:
                self._front.stop(place, number, self._stopped)
            feeder.start()
            try:
                return self._answer(connection)
            finally:
                over.set()
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                self._kept.wake()
                feeder.join()

    def _feed(self, connection: socket.socket, over: threading.Event) -> None:
        """Send a worker what the peer sends, from the begin."""
        with contextlib.suppress(OSError):  # the answers show that the worker is gone
            for block in self._kept.blocks(lambda: not over.is_set()):
                connection.sendall(block)
            self._watch_peer(connection)

    def _watch_peer(self, connection: socket.socket) -> None:
        """Let a worker know when the peer closes its side, or is gone; until the worker's connection is closed."""
        poll = select.poll()
        poll.register(connection, 0)
        poll.register(self._connection, _HUNG_UP)
        while True:
            events = dict(poll.poll())
            if connection.fileno() in events:
                return
            if events[self._connection.fileno()] & ~_HUNG_UP:
                self._gone = True
                connection.shutdown(socket.SHUT_RDWR)
                return
            connection.shutdown(socket.SHUT_WR)
            poll.register(self._connection, 0)

    def _answer(self, connection: socket.socket) -> bool:
        """Pass the answers of a worker on, up to its CLOSE; False if it dies before."""
        frames = Frames(connection.recv_into, keep=True)
        self._sent.begin_again()
        while True:
            try:
                frame = frames.read()
            except (OSError, ProtocolError):
                return False
            if self._sent.is_new(frame):
                self._connection.sendall(frame.data)
                self._sent.add(frame)
            if frame.closes:
                return True

    def _fail(self, why: str, *, recorded: bool = False) -> bool:
        """Tell the peer that the scan cannot be done, in its way."""
        logger.error("%s", why)
        dialect, problem = (
            _dialect_of(self._kept.opening) or Handshake().dialect,
            Problem(Kind.FAILURE, why, damage=True),
        )
        problems = Problems(kinds={Kind.FAILURE.value: problem})
        if not (recorded or self.silent):
            self._front.scans.end(ScanRecord(self._peer, door=dialect.name.lower(), problems=problems))
        for message in (*dialect.report(problem), *dialect.conclude(problems)):
            Writer.of_socket(self._connection).send(message)
        return False


class _OtherImagesError(Exception):
    """A scan that was begun again gave something else than was sent before."""


class _Sent:
    """What a peer was sent, so that it is sent nothing twice."""

    def __init__(self) -> None:
        self.good = True  # no error was sent
        self._digests: list[bytes] = []  # of all but texts, in order
        self._texts: Counter[bytes] = Counter()
        self._again: Iterator[bytes] = iter(())
        self._texts_again: Counter[bytes] = Counter()

    def begin_again(self) -> None:
        """All messages will come once more."""
        self._again = iter([*self._digests])
        self._texts_again = self._texts.copy()

    def is_new(self, frame: Frame) -> bool:
        """Whether a message was not sent yet.

        Raises
        ------
        _OtherImagesError
            If another one was sent in its place.
        """
        if frame.number == MessageId.TEXT:
            known = self._texts_again[frame.data] > 0
            self._texts_again[frame.data] -= known
            return not known
        before = next(self._again, None)
        if before is not None and before != _digest(frame):
            raise _OtherImagesError(
                "the process that reconstructs died, and the scan gave other images when it was begun again; those "
                "that came do not belong together: send it again"
            )
        return before is None

    def add(self, frame: Frame) -> None:
        """Take note of what was sent."""
        if frame.number != MessageId.TEXT:
            self._digests.append(_digest(frame))
            self.good = self.good and frame.number != MessageId.ERROR
        elif not frame.text.startswith(GOES_ON):
            self._texts[frame.data] += 1
            self.good = self.good and not frame.text.startswith("ERROR")


def _digest(frame: Frame) -> bytes:
    return hashlib.blake2b(frame.data, digest_size=16).digest()


def _dialect_of(opening: bytes) -> Dialect | None:
    """What a peer understands, of the begin of what it sent; None before it has named a configuration."""
    handshake, left = Handshake(), memoryview(opening)

    def readinto(buffer: memoryview) -> int:
        nonlocal left
        count = min(len(buffer), len(left))
        buffer[:count], left = left[:count], left[count:]
        return count

    with contextlib.suppress(CinestreamError):
        for message in Reader(readinto):
            if isinstance(message, ConfigFile | ConfigText):
                handshake.receive(message)
                return handshake.dialect
    return None
