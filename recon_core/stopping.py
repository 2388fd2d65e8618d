"""Stopping a reconstruction that nobody waits for any more, or holding it while a more urgent one is made.

Whoever runs a scan says with `stoppable` how to find out. Transforms, encoding operators, solvers and the layers of
networks `check` it, so that no method has to know of it. For holding see `recon_core.turns`.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from recon_core.errors import ScanStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ASK_SECONDS = 0.1


class _Stop:
    """Asks now and then whether to go on.

    Parameters
    ----------
    why
        Says why to stop, or nothing.
    """

    def __init__(self, why: Callable[[], str]) -> None:
        self._why = why
        self._reason = ""
        self._next = 0.0

    def check(self) -> None:
        """Ask, unless that was just done.

        Raises
        ------
        ScanStoppedError
            From the first reason on, whatever takes over for what was stopped.
        """
        now = time.monotonic()
        if not self._reason and now >= self._next:
            self._next = now + _ASK_SECONDS
            self._reason = self._why()
        if self._reason:
            raise ScanStoppedError(self._reason)


_current: ContextVar[_Stop | None] = ContextVar("stop", default=None)
_way: ContextVar[Callable[[], None] | None] = ContextVar("way", default=None)


@contextmanager
def stoppable(why: Callable[[], str]) -> Iterator[None]:
    """Let what runs within be stopped.

    Parameters
    ----------
    why
        Called some times a second by the thread that works; says why to stop, or nothing.
    """
    token = _current.set(_Stop(why))
    try:
        yield
    finally:
        _current.reset(token)


def can_stop() -> bool:
    """Whether anything can stop this thread."""
    return _current.get() is not None


@contextmanager
def giving_way(give_way: Callable[[], None]) -> Iterator[None]:
    """Let what runs within give way to others: `give_way` is called at every step, and returns when to go on."""
    token = _way.set(give_way)
    try:
        yield
    finally:
        _way.reset(token)


def ask() -> None:
    """Ask whether to go on; nothing happens outside of `stoppable`.

    Raises
    ------
    ScanStoppedError
        If not.
    """
    stop = _current.get()
    if stop is not None:
        stop.check()


def check() -> None:
    """Ask whether to go on, and give way to others; a step of whatever iterates does so.

    Raises
    ------
    ScanStoppedError
        If not.
    """
    ask()
    give_way = _way.get()
    if give_way is not None:
        give_way()


@contextmanager
def checked_networks() -> Iterator[None]:
    """Check before every layer of a network that runs within, where this thread can be stopped."""
    if _current.get() is None:
        yield
        return
    from torch.nn.modules.module import register_module_forward_pre_hook

    with register_module_forward_pre_hook(lambda *_: check()):  # of all threads, but each asks for itself
        yield
