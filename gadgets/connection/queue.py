"""Messages that wait between the thread that drains a stream and the one that works."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadgets.wire.messages import Message
    from recon_core.errors import ProtocolError

_MESSAGE_OVERHEAD = 512  # what a message counts in the queue besides its bytes: a flood of small ones is bounded too


class MessageQueue:
    """Messages between the thread that drains a stream and the one that works, bounded in bytes.

    Parameters
    ----------
    limit
        Most bytes that wait; `put` blocks beyond. One message is always let in.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Message | ProtocolError, int]] = deque()
        self._bytes = 0
        self._abandoned = False
        self._changed = threading.Condition()

    def put(self, item: Message | ProtocolError, size: int = 0) -> None:
        """Add a message of so many bytes, or the error that ends the stream; does nothing once it is abandoned."""
        size += _MESSAGE_OVERHEAD
        with self._changed:
            while self._bytes + size > self._limit and self._items and not self._abandoned:
                self._changed.wait()
            if not self._abandoned:
                self._items.append((item, size))
                self._bytes += size
                self._changed.notify_all()

    def get(self) -> Message | ProtocolError:
        """Wait for the next message."""
        with self._changed:
            while not self._items:
                self._changed.wait()
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    def abandon(self) -> None:
        """Drop what waits and whatever comes; the drain goes on."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()
