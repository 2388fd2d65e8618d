"""Messages that wait between the thread that drains a stream and the one that works."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from gadgets.wire.messages import Readouts, join_readouts
from recon_core.budget import free_bytes

if TYPE_CHECKING:
    from gadgets.wire.messages import Message
    from recon_core.errors import CinestreamError

logger = logging.getLogger("cinestream")

_MESSAGE_OVERHEAD = 512  # what a message counts in the queue besides its bytes: a flood of small ones is bounded too
# Most readouts that are taken as one: about a frame in real time, and no more than is copied in no time.
_TOGETHER, _TOGETHER_BYTES = 16, 1 << 20


class QueueSpace:
    """Bytes that may wait in all queues of a process together.

    Parameters
    ----------
    limit
        Most bytes.
    """

    @classmethod
    def of_memory(cls, limit: int) -> QueueSpace:
        """Space of so many bytes, a quarter of the free memory at most."""
        free = free_bytes()
        return cls(limit if free is None else min(limit, free // 4))

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # there may be more space


class MessageQueue:
    """Messages between the thread that drains a stream and the one that works, bounded in bytes.

    Parameters
    ----------
    space
        Bytes that wait, of this queue and others; `put` blocks while there is no space. One message is always let in.
    """

    def __init__(self, space: QueueSpace) -> None:
        self._space = space
        self._items: deque[tuple[Message | CinestreamError, int, float]] = deque()
        self._abandoned = False
        self._came = threading.Condition(space.lock)  # of its own, so that a message wakes only who waits for it
        self.awaited = False  # who works waits for a message
        self.arrived = time.monotonic()  # when the message came that was taken last, or the first of those taken as one
        self.held_up = 0.0  # seconds that `put` has waited for space

    def put(self, item: Message | CinestreamError, size: int = 0) -> None:
        """Add a message of so many bytes, or the error that ends the stream; does nothing once it is abandoned."""
        size += _MESSAGE_OVERHEAD
        with self._space.lock:
            if self._is_full(size):
                self._wait_for_space(size)
            if not self._abandoned:
                self._items.append((item, size, time.monotonic()))
                self._space.used += size
                self._came.notify()

    def _is_full(self, size: int) -> bool:
        return self._space.used + size > self._space.limit and bool(self._items) and not self._abandoned

    def _wait_for_space(self, size: int) -> None:
        if not self.held_up:
            text = "the sender is held up: %.3g MiB of all scans wait to be reconstructed, as much as may (--queue-gib)"
            logger.warning(text, self._space.used / (1 << 20))
        began = time.monotonic()
        while self._is_full(size):
            self._space.changed.wait()
        self.held_up += time.monotonic() - began

    def get(self) -> Message | CinestreamError:
        """Wait for the next message; small runs of readouts that wait are taken as one, which takes less time."""
        with self._space.lock:
            self.awaited = not self._items
            while not self._items:
                self._came.wait()
            self.awaited = False
            item, size, self.arrived = self._items.popleft()
            run = [item] if isinstance(item, Readouts) else []
            while run and self._items and _fits(run, size, self._items[0]):
                more, more_bytes, _ = self._items.popleft()
                run.append(cast("Readouts", more))
                size += more_bytes
            self._space.used -= size
            self._space.changed.notify_all()
        return join_readouts(run) if run else item

    def interrupt(self, error: CinestreamError) -> None:
        """Drop what waits, and end the stream with an error."""
        self.abandon()
        with self._space.lock:
            self._items.append((error, 0, time.monotonic()))
            self._came.notify()

    def abandon(self) -> None:
        """Drop what waits and whatever comes; the drain goes on."""
        with self._space.lock:
            self._abandoned = True
            self._space.used -= sum(size for _, size, _ in self._items)
            self._items.clear()
            self._space.changed.notify_all()


def _fits(run: list[Readouts], size: int, entry: tuple[Message | CinestreamError, int, float]) -> bool:
    """Whether what waits next is taken as one with readouts of so many bytes."""
    item, more, _ = entry
    if not isinstance(item, Readouts) or item.form != run[0].form:
        return False
    return size + more <= _TOGETHER_BYTES and sum(map(len, run)) + len(item) <= _TOGETHER
