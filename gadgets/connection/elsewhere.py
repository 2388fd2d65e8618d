"""What workers have to show: their log, and their images, which are asked for when somebody looks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gadgets.connection.log_tail import LogTail

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Gives a picture of `gadgets.connection.looks.Images` by the name of the method, scan and number.
    Look = Callable[[str, str, int], bytes]


class Elsewhere:
    """Log and images of workers; `gadgets.connection.looks.Images`.

    Parameters
    ----------
    workers
        How many there are.

    Attributes
    ----------
    log : LogTail
        Has the lines of all.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.changes = 0
        self.log = LogTail()
        self._lock = threading.Lock()
        self._known: dict[int, tuple[dict[str, Any], Look]] = {}  # by number of the worker

    def note(self, worker: int, images: dict[str, Any], look: Look) -> None:
        """Keep what a worker has to show now: the facts of each scan, and who gives the pictures."""
        with self._lock:
            before, _ = self._known.get(worker, ({}, None))
            self.changes += images != before
            self._known[worker] = images, look

    def forget(self, worker: int) -> None:
        """Note that a worker is gone."""
        with self._lock:
            self._known.pop(worker, None)
            self.changes += 1

    def facts(self, scan: str) -> dict[str, Any]:
        """What there is to see of a scan."""
        with self._lock:
            return next((images[scan] for images, _ in self._known.values() if scan in images), {})

    def loop(self, scan: str, number: int) -> bytes:
        """Have a worker make a loop."""
        return self._look("loop", scan, number)

    def maps(self, scan: str, number: int) -> bytes:
        """Have a worker make a picture of coil maps."""
        return self._look("maps", scan, number)

    def _look(self, name: str, scan: str, number: int) -> bytes:
        with self._lock:
            look = next((look for images, look in self._known.values() if scan in images), None)
        return b"" if look is None else look(name, scan, number)
