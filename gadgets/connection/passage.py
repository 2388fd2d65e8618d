"""One connection of a front: what a peer sends goes to a worker, and what that answers to the peer.

What came of the scan is kept meanwhile: when the worker dies, another one begins the scan again, and what was sent
already is not sent twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import select
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

from gadgets.connection.drain import Drain
from gadgets.connection.handshake import GOES_ON, Dialect, Handshake
from gadgets.connection.kept import Kept
from gadgets.connection.records import ScanRecord
from gadgets.connection.session import name_of, set_up
from gadgets.problems import Kind, Problem, Problems
from gadgets.wire.framing import Frames, MessageId
from gadgets.wire.messages import ConfigFile, ConfigText
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, ProtocolError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gadgets.connection.front import Front
    from gadgets.connection.place import Place
    from gadgets.wire.framing import Frame

logger = logging.getLogger("cinestream")

#: How often a scan is begun of which the worker dies.
TRIES = 3

_OPENING_SECONDS = 5.0  # that a peer has to say what it is, who is to be told in its way that there is no worker
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # of Linux


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
        self._current: tuple[Place, int] | None = None

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

    def _through(self, place: Place) -> bool:
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
