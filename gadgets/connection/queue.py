"""Messages that wait between the thread that drains a stream and the one that works."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from recon_core.budget import free_bytes

if TYPE_CHECKING:
    from gadgets.wire.messages import Message
    from recon_core.errors import CinestreamError

logger = logging.getLogger("cinestream")

_MESSAGE_OVERHEAD = 512  # what a message counts in the queue besides its bytes: a flood of small ones is bounded too


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
        self.changed = threading.Condition()


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
        self._changed = space.changed
        self.awaited = False  # who works waits for a message
        self.arrived = time.monotonic()  # when the message came that was taken last
        self.held_up = 0.0  # seconds that `put` has waited for space

    def put(self, item: Message | CinestreamError, size: int = 0) -> None:
        """Add a message of so many bytes, or the error that ends the stream; does nothing once it is abandoned."""
        size += _MESSAGE_OVERHEAD
        with self._changed:
            if self._is_full(size):
                self._wait_for_space(size)
            if not self._abandoned:
                self._items.append((item, size, time.monotonic()))
                self._space.used += size
                self._changed.notify_all()

    def _is_full(self, size: int) -> bool:
        return self._space.used + size > self._space.limit and bool(self._items) and not self._abandoned

    def _wait_for_space(self, size: int) -> None:
        if not self.held_up:
            text = "the sender is held up: %.3g MiB of all scans wait to be reconstructed, as much as may (--queue-gib)"
            logger.warning(text, self._space.used / (1 << 20))
        began = time.monotonic()
        while self._is_full(size):
            self._changed.wait()
        self.held_up += time.monotonic() - began

    def get(self) -> Message | CinestreamError:
        """Wait for the next message."""
        with self._changed:
            self.awaited = not self._items
            while not self._items:
                self._changed.wait()
            self.awaited = False
            item, size, self.arrived = self._items.popleft()
            self._space.used -= size
            self._changed.notify_all()
            return item

    def interrupt(self, error: CinestreamError) -> None:
        """Drop what waits, and end the stream with an error."""
        self.abandon()
        with self._changed:
            self._items.append((error, 0, time.monotonic()))
            self._changed.notify_all()

    def abandon(self) -> None:
        """Drop what waits and whatever comes; the drain goes on."""
        with self._changed:
            self._abandoned = True
            self._space.used -= sum(size for _, size, _ in self._items)
            self._items.clear()
            self._changed.notify_all()
