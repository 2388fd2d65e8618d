"""Memory for what a sender claims: asked for before it is allocated, and refused with words where there is not enough.

A header or a readout of a few bytes may claim gigabytes. Whoever is about to allocate by such a claim asks a `Budget`
first. A server has one budget, and every scan one below it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_Some = TypeVar("_Some", bound=np.generic)

_GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_M_ARENA_MAX = -8  # of malloc.h
_WHERE_UNKNOWN = 8 * _GIB  # taken as free where the system does not say


class Budget:
    """Bytes that may be in use at a time; safe to share between threads.

    Parameters
    ----------
    limit
        Bytes in all; None takes half of what is free.
    parent
        Budget that this one is a part of: what is taken here is taken there too.
    """

    def __init__(self, limit: int | None = None, parent: Budget | None = None) -> None:
        if limit is None:
            free = free_bytes()
            limit = (_WHERE_UNKNOWN if free is None else free) // 2
        self.limit = limit
        self.used = 0
        self._parent = parent
        self._closed = False
        self._lock = threading.RLock()  # the garbage collector may give back in the middle of anything

    def take(self, count: int, what: str) -> None:
        """Take so many bytes.

        Parameters
        ----------
        count
            Bytes.
        what
            What needs them, in the plural, for the message.

        Raises
        ------
        ResourceError
            If so many are not left.
        """
        with self._lock:
            left = self.limit - self.used
            if count > left:
                raise ResourceError(
                    f"{what} need {_in_words(count)}, and {_in_words(left)} of {_in_words(self.limit)} are left; the "
                    "header or the readouts claim more than was measured, or the memory is too small for the scan: "
                    "compress the coils (virtual_coils), or allow more (serve --memory-gib)"
                )
            if self._closed:  # nobody would give it back
                return
            if self._parent is not None:
                self._parent.take(count, what)
            self.used += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        with self._lock:
            if self._closed:
                return
            self.used -= count
            if self._parent is not None:
                self._parent.give(count)

    @contextmanager
    def lent(self, count: int, what: str) -> Iterator[None]:
        """Take bytes for as long as the context lasts.

        Raises
        ------
        ResourceError
            As `take`.
        """
        self.take(count, what)
        try:
            yield
        finally:
            self.give(count)

    def keep(self, array: NDArray[_Some], what: str) -> NDArray[_Some]:
        """Take the bytes of an array for as long as its memory is in use, and hand it on.

        Raises
        ------
        ResourceError
            As `take`.
        """
        self.take(array.nbytes, what)
        owner = array if array.base is None else array.base  # a view of it may be all that is left
        weakref.finalize(owner, self.give, array.nbytes).atexit = False
        return array

    def close(self) -> None:
        """Give everything back, whatever still exists; what is taken later does not count."""
        with self._lock:
            self.give(self.used)
            self._closed = True


def free_bytes() -> int | None:
    """Say how much main memory can be taken; None where the system does not say.

    What the machine has free, or a container's limit leaves of it.
    """
    free = [found for found in (_machine(), _container()) if found is not None]
    return min(free, default=None)


def share_freed() -> None:
    """Let the threads of this process share the memory that they free, where its allocator is that of glibc.

    It keeps such memory apart, in up to eight arenas for every core: a server with a thread for every connection grew
    by 80 MiB over 10 000 sessions, although no more was in use.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def return_freed() -> None:
    """Give memory that was freed back to the system, where the allocator is that of glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


def _container() -> int | None:
    """What the limit of the control group leaves, version 2 or 1; files that it caches can be taken too."""
    for limit, used, statistics, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, now, lines = (
                (_CGROUP / name).read_text(encoding="ascii").strip() for name in (limit, used, statistics)
            )
        except OSError:
            continue
        if most.isdecimal() and now.isdecimal():  # "max" where there is no limit
            files = [int(line.split()[1]) for line in lines.splitlines() if line.split()[0] == cached]
            return max(0, int(most) - int(now) + sum(files))
    return None


def _in_words(count: int) -> str:
    return f"{count / _GIB:.3g} GiB" if count >= _GIB / 10 else f"{count / (1 << 20):.3g} MiB"
