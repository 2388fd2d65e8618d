"""A worker of a front, and what is known of it and of those that were in its place before."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gadgets.connection.news import Room

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.connection.elsewhere import Elsewhere, Look
    from gadgets.connection.records import ServerRecord
    from gadgets.connection.worker import Worker

logger = logging.getLogger("cinestream")

_FALSE_STARTS = 2  # from so many on it is said that no worker can be had


class Place:
    """A worker, how many scans it has, and what it told last.

    Of the workers before it in its place, `false_starts` in a row ended before they told anything, the last of them as
    `why` says.
    """

    def __init__(self, worker: Worker, number: int, false_starts: int = 0, why: str = "") -> None:
        self.worker = worker
        self.number = number
        self.has_told = False
        self.false_starts = false_starts
        self.scans = 0
        self.room = Room()
        self.fault = f"workers end as they begin: {why}" if false_starts >= _FALSE_STARTS else ""
        self.misread = ""  # why what it tells could not be taken
        self.death_is_said = False

    def listen(self, record: ServerRecord, shown: Elsewhere, look: Look, changed: Callable[[], None]) -> None:
        """Note what it tells, until it is gone: the scans that it had are begun again elsewhere, or fail."""
        try:
            for news in self.worker.news():
                shown.note(self.number, news.images, look)
                shown.log.add(news.log)
                for one in news.ended:
                    record.end(one)
                record.run_elsewhere(self.number, news.running)
                self.room, self.fault = news.room, news.fault
                self.has_told, self.false_starts = True, 0
                changed()
        except Exception as error:  # a worker that cannot be understood is replaced as one that died
            logger.exception("unexpected error")
            self.misread = f"what it tells cannot be read: {error!r}"
            self.worker.end()
        record.run_elsewhere(self.number, [])
        shown.forget(self.number)
        self.room = Room()
        if self.has_told:
            self.fault = ""
