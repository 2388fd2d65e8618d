"""Whose slice is worked on: one at a time, the urgent ones first, and scans share the time.

The order of those that wait: scans whose images are of no use later (`urgent`), slices with a deadline, all others.
Among urgent ones and among slices with a deadline the earliest deadline is next; then slices that have begun; then the
scan that has had the least time. At any step (`recon_core.stopping.check`) a slice gives way to one of a more urgent
kind, and goes on afterwards. Where urgent ones want all of the time, others get a quarter of it: the urgent ones are
last while they are ahead of their share.
"""

from __future__ import annotations

import itertools
import math
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Condition, Lock
from typing import TYPE_CHECKING

from recon_core.stopping import ask, can_stop, giving_way

if TYPE_CHECKING:
    from collections.abc import Iterator

_ASK_SECONDS = 0.5  # until who waits for its turn asks whether it still should
_URGENT_SHARE = 0.75  # of the time while others wait
_AHEAD_SECONDS = 1.0  # by which urgent ones may exceed it: after four seconds the others have their first quarter
_URGENT, _DUE, _ANY_TIME, _AHEAD = range(4)  # how soon a turn is to be had
_number = itertools.count()


@dataclass(eq=False)
class Share:
    """What a scan has of the time that all share."""

    urgent: bool = False
    """Its images are of no use later, as those of a scan in real time."""
    used: float = 0.0
    """Seconds that it has had, and before it came those of the scan that had least: it has no claim to the past."""


_share: ContextVar[Share | None] = ContextVar("share", default=None)
_turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Let the turns that are taken within be those of one scan."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def work_time() -> float:
    """Seconds on a clock that stands still while the slice that this thread works on gives way to another."""
    turn = _turn.get()
    return time.perf_counter() - (turn.paused if turn else 0.0)


class _Turn:
    """A slice that is worked on, waits for that, or has given way.

    Parameters
    ----------
    share
        What its scan has had.
    until
        When its images should be there, as `time.monotonic` has it; infinite if at no certain time.
    lock
        Of the `Turns`.
    """

    def __init__(self, share: Share, until: float, lock: Lock) -> None:
        self.share = share
        self.called = Condition(lock)  # of its own, so that only who is next wakes up
        self.urgency = _URGENT if share.urgent else _DUE if until < math.inf else _ANY_TIME
        self.paused = 0.0
        self.begun = False  # its memory is taken, so that it goes before those that have not begun
        self._until = until
        self._number = next(_number)

    def rank(self) -> tuple[float, bool, float, int]:
        """The lowest is next among those that are as urgent."""
        return self._until, not self.begun, self.share.used, self._number


class Turns:
    """Turns at a device, for the threads that share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[_Turn] = []
        self._held: _Turn | None = None
        self._had = [0.0] * 3  # by urgency: seconds that the scan which began its turn last had had until then
        self._ahead = 0.0  # seconds that urgent ones have had beyond their share while others waited
        self._reckoned = time.perf_counter()  # when that was

    @property
    def taken(self) -> bool:
        """Whether anyone has its turn."""
        return self._held is not None

    @contextmanager
    def turn(self, until: float = math.inf) -> Iterator[None]:
        """Wait for a turn, and have it.

        Parameters
        ----------
        until
            When what is done within should be there, as `time.monotonic` has it.

        Raises
        ------
        ScanStoppedError
            If there is no more use in waiting, see `recon_core.stopping`.
        """
        turn = _Turn(_share.get() or Share(), until, self._lock)
        with self._lock:
            # what a scan did not use before is not saved up
            turn.share.used = max(turn.share.used, self._had[turn.urgency])
            self._wait(turn)
        token = _turn.set(turn)
        began = work_time()
        try:
            with giving_way(lambda: self._give_way(turn)):
                yield
        finally:
            turn.share.used += work_time() - began
            _turn.reset(token)
            with self._lock:
                self._leave(turn)

    def _wait(self, turn: _Turn) -> None:
        """Wait with the lock held, which is given back meanwhile."""
        self._reckon()
        self._waiting.append(turn)
        self._call_next()
        try:
            while self._held is not turn:
                turn.called.wait(_ASK_SECONDS if can_stop() else None)
                ask()
        except BaseException:
            self._leave(turn)
            raise

    def _call_next(self) -> None:
        if self._held is not None or not self._waiting:
            return
        turn = self._held = self._first()
        self._waiting.remove(turn)
        self._had[turn.urgency] = turn.share.used
        turn.begun = True
        turn.called.notify()

    def _first(self) -> _Turn:
        """Of those that wait."""
        return min(self._waiting, key=lambda turn: (self._urgency(turn), turn.rank()))

    def _urgency(self, turn: _Turn) -> int:
        return _AHEAD if turn.urgency == _URGENT and self._ahead > _AHEAD_SECONDS else turn.urgency

    def _leave(self, turn: _Turn) -> None:
        """Neither have nor want a turn any more."""
        self._reckon()
        if self._held is turn:
            self._held = None
        elif turn in self._waiting:
            self._waiting.remove(turn)
        self._call_next()

    def _reckon(self) -> None:
        """Note who has had the time since this was done last; before anything changes."""
        now = time.perf_counter()
        passed, self._reckoned = now - self._reckoned, now
        if self._held is None:
            return
        if self._held.urgency != _URGENT:
            self._ahead = max(0.0, self._ahead - _URGENT_SHARE * passed)
        elif any(turn.urgency != _URGENT for turn in self._waiting):
            self._ahead += (1 - _URGENT_SHARE) * passed

    def _give_way(self, turn: _Turn) -> None:
        """Let those go before that are more urgent, if any wait."""
        if not any(other.urgency < turn.urgency for other in [*self._waiting]):
            return
        began = time.perf_counter()
        with self._lock:
            self._reckon()
            if not self._waiting or self._urgency(self._first()) >= turn.urgency:
                return  # urgent ones that are ahead of their share
            self._held = None
            self._wait(turn)
        turn.paused += time.perf_counter() - began
