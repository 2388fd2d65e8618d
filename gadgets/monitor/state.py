"""What the monitor page shows of a server, as JSON has it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gadgets import __version__
from gadgets.monitor.health import examine
from gadgets.monitor.machine import memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.connection.log_tail import LogTail
    from gadgets.connection.looks import Images
    from gadgets.connection.records import Load, ScanRecord, ServerRecord
    from gadgets.monitor.health import Health


@dataclass(frozen=True)
class Sources:
    """Where the facts of a server are."""

    record: ServerRecord
    """Its scans."""
    load: Callable[[], Load]
    """Tells how much it has to do."""
    images: Images
    """Images of its scans."""
    log: LogTail
    """What it logged last."""
    listens: str
    """Where it takes scans."""
    workers: int = 0
    """How many processes reconstruct, if this one does not."""

    def health(self) -> Health:
        """Say whether it is well."""
        return examine(self.record, self.load(), memory())

    def server(self) -> dict[str, Any]:
        """The server as a whole."""
        totals, load, ram = self.record.totals(), self.load(), memory()
        health = examine(self.record, load, ram)
        return {
            "version": __version__,
            "host": socket.gethostname(),
            "listens": self.listens,
            "workers": self.workers,
            "began": self.record.began_at,
            "now": time.time(),
            "health": health.word,
            "fault": health.fault,
            "doubts": health.doubts,
            "load": load._asdict(),
            "memory": ram._asdict(),
            "scans": totals.scans,
            "failures": totals.failures,
            "images": totals.images,
            "readouts": totals.readouts,
        }

    @property
    def version(self) -> tuple[object, ...]:
        """Changes whenever `over` does."""
        return (*(record.scan for record in self.record.over), self.images.changes)

    def running(self) -> list[dict[str, Any]]:
        """The scans that run, the latest first."""
        return [self._scan(record) for record in self.record.running]

    def over(self) -> list[dict[str, Any]]:
        """The last scans that are over, the latest first."""
        return [self._scan(record) for record in self.record.over]

    def _scan(self, record: ScanRecord) -> dict[str, Any]:
        return {**record.facts(), "loops": [], "snr": None, **self.images.facts(record.scan)}
