"""Is a server well? The one place that says so, for ``/healthz``, the page and ``cinestream doctor --server``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recon_core.words import many

if TYPE_CHECKING:
    from gadgets.connection.records import Load, ServerRecord
    from gadgets.monitor.machine import Memory

_FULL = 0.9  # of a limit
_LAST = 5  # scans that are looked at
_LITTLE = 0.05  # of the main memory


@dataclass(frozen=True)
class Health:
    """Of a server."""

    fault: str
    """Why no scan can be reconstructed; empty if they can."""
    doubts: tuple[str, ...]
    """What an operator should look at."""

    @property
    def word(self) -> str:
        """``well``, ``doubtful`` or ``ill``."""
        return "ill" if self.fault else "doubtful" if self.doubts else "well"


def examine(record: ServerRecord, load: Load, memory: Memory) -> Health:
    """Look at the facts of a server."""
    doubts = [record.doubt] if record.doubt else []
    if load.queue_bytes > _FULL * load.queue_limit:
        doubts.append("the queue is nearly full: senders are held up until slices are reconstructed")
    if load.memory_bytes > _FULL * load.memory_limit:
        doubts.append("the memory for scans is nearly used up: the next scan may be refused (--memory-gib)")
    if memory.host and memory.host_free is not None and memory.host_free < _LITTLE * memory.host:
        doubts.append("the machine has hardly any memory left")
    if load.connections >= load.most_connections:
        doubts.append(f"{many(load.connections, 'connection')} are served, no more are taken (--connections)")
    bad = [scan for scan in record.over[:_LAST] if scan.verdict != "done"]
    if len(bad) == _LAST:
        doubts.append(f"the last {_LAST} scans all lost data or images, or their peer left")
    late = [scan for scan in record.running if scan.is_late]
    if late:
        doubts.append(f"{many(len(late), 'running scan')} took or takes longer for a slice than the deadline allows")
    return Health(record.fault, tuple(doubts))
