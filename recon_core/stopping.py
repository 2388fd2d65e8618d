"""Stopping a reconstruction that nobody waits for any more.

Whoever runs a scan says with `stoppable` how to find out. Transforms, encoding operators, solvers and the layers of
networks `check` it, so that no method has to know of it.
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


def check() -> None:
    """Ask whether to go on; a step of whatever iterates does so, and nothing happens outside of `stoppable`.

    Raises
    ------
    ScanStoppedError
        If not.
    """
    stop = _current.get()
    if stop is not None:
        stop.check()


@contextmanager
def checked_networks() -> Iterator[None]:
    """Check before every layer of a network that runs within, where this thread can be stopped."""
    if _current.get() is None:
        yield
        return
    from torch.nn.modules.module import register_module_forward_pre_hook

    with register_module_forward_pre_hook(lambda *_: check()):  # of all threads, but each asks for itself
        yield
