"""What a peer sent, kept while its scan is reconstructed elsewhere, so that this can be begun again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gadgets.connection.queue import QueueSpace

_AHEAD_BYTES = 64 << 20  # that may wait to be passed on where not all is kept
_OPENING_BYTES = 1 << 20  # of the begin, which are kept in any case


class Kept:
    """Bytes between a thread that takes them from a peer and one that passes them on, maybe more than once.

    Where there is no space for all of them, what has been passed on is dropped, and the peer held up while much waits.

    Parameters
    ----------
    space
        Bytes that may be kept of all peers together.

    Attributes
    ----------
    whole : bool
        Everything is still here.
    opening : bytes
        The first bytes, whatever else is dropped.
    ended : bool
        No more will come.
    """

    def __init__(self, space: QueueSpace) -> None:
        self.whole = True
        self.opening = b""
        self._space = space
        self._changed = space.changed
        self._blocks: list[bytes | None] = []  # None: dropped
        self._passed = 0  # blocks that were passed on
        self._waiting = 0  # bytes that were not
        self.ended = self._abandoned = False

    def append(self, block: memoryview) -> None:
        """Take bytes; waits where not all is kept and much was not passed on yet."""
        with self._changed:
            if self.whole and self._space.used + len(block) > self._space.limit:
                self.whole = False
                self._drop(0)
            while not self.whole and self._waiting > _AHEAD_BYTES and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                return
            self._blocks.append(bytes(block))
            self._waiting += len(block)
            self._space.used += len(block)
            if len(self.opening) < _OPENING_BYTES:
                self.opening += block[: _OPENING_BYTES - len(self.opening)]
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no more will come."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait_for_opening(self, enough: Callable[[bytes], bool], seconds: float) -> None:
        """Wait until the first bytes are enough, or no more will come, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or enough(self.opening), seconds)

    def blocks(self, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """All bytes from the first one on, up to the end, or until they are not wanted; `wake` has that looked at.

        Once not all is `whole` any more, they cannot be had from the first one on again.
        """
        with self._changed:
            self._passed = 0
            self._waiting = sum(len(block or b"") for block in self._blocks)
        while True:
            with self._changed:
                while self._passed == len(self._blocks) and not self.ended and wanted():
                    self._changed.wait()
                block = self._blocks[self._passed] if self._passed < len(self._blocks) else None
                if block is None or not wanted():
                    return
            yield block
            with self._changed:
                self._passed += 1
                self._waiting -= len(block)
                if not self.whole:
                    self._drop(self._passed - 1)
                self._changed.notify_all()

    def wake(self) -> None:
        """Have who passes bytes on see whether they are wanted."""
        with self._changed:
            self._changed.notify_all()

    def abandon(self) -> None:
        """Drop everything, also what comes."""
        with self._changed:
            self._abandoned = self.ended = True
            self._space.used -= sum(len(block) for block in self._blocks if block is not None)
            self._blocks = [None] * len(self._blocks)
            self._changed.notify_all()

    def _drop(self, begin: int) -> None:
        """Drop what was passed on, from a block on."""
        for number in range(begin, self._passed):
            block, self._blocks[number] = self._blocks[number], None
            self._space.used -= len(block or b"")
