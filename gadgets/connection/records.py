"""What is known of a server and its scans: the one owner of these facts, which log, metrics and monitor page read.

Sessions report from threads of their own; whoever reads gets copies.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gadgets.chain import ScanSummary
from gadgets.problems import Problems
from recon_core.methods import is_asked_for
from recon_core.printable import label

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.chain import Watch
    from gadgets.connection.looks import Viewer
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import ScanHeader
    from recon_core.data import Reconstruction

#: Upper ends in s of the classes of a `Histogram`; the last class has none.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
_KEPT = 50  # scans that are over
_MOST_NOTES = 20  # different ones of a scan


class Load(NamedTuple):
    """How much a server has to do, and its limits."""

    connections: int
    """Connections that are served."""
    most_connections: int
    queue_bytes: int
    """What waits of all streams for the reconstruction."""
    queue_limit: int
    """From here on senders are held up."""
    memory_bytes: int
    """What scans have taken for what they gather and make."""
    memory_limit: int


@dataclass
class Histogram:
    """Times in s, counted by how long they are."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def update(self, other: Histogram) -> None:
        """Count the times of another one."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


@dataclass
class ScanRecord:
    """What is known of a scan, while it runs and after."""

    peer: str
    """Address and port."""
    scan: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """Id of the scan in all lines of the log."""
    door: str = ""
    """``client``, or ``gadgetron`` for its external node."""
    pipeline: str = ""
    """Name of the pipeline that was asked for; ``its own`` where the peer sent one whole, empty where none came."""
    protocol: str = ""
    """Name of the protocol in the header of the scan."""
    patient: str = ""
    """Name of the patient, where the operator wants to see it."""
    peer_gone: bool = False
    """The peer closed the connection before the end."""
    method: str = ""
    """The method that was asked for."""
    deadline: float = 0.0
    """The time in s that was asked for from the last readout to the last image; 0 is none."""
    promised: int = 0
    """How many slices the header promises; 0 where it is not known."""
    summary: ScanSummary = field(default_factory=ScanSummary)
    """Counts of the chain."""
    problems: Problems = field(default_factory=Problems)
    """What went wrong or was noticed."""
    methods: Counter[str] = field(default_factory=Counter)
    """How many slices each method made."""
    notes: Counter[str] = field(default_factory=Counter)
    """What differed from what was asked, and of how many slices."""
    times: dict[str, Histogram] = field(default_factory=dict)
    """Times of its slices by stage, and their latency."""
    latency: float = 0.0
    """Longest time in s from the arrival of the readouts that completed a slice to its images."""
    held_up: float = 0.0
    """How long in s the sender had to wait, as too much of all scans was not reconstructed yet."""
    ended: float | None = None
    """As `time.monotonic` has it; None while it runs."""
    began: float = field(default_factory=time.monotonic)
    """As `time.monotonic` has it."""
    began_at: float = field(default_factory=time.time)
    """The same as `time.time` has it."""

    @property
    def seconds(self) -> float:
        """How long it took, or has been running."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    @property
    def verdict(self) -> str:
        """``running``, ``done``, ``damaged`` where data or images were lost, or ``stopped`` where the peer left."""
        if self.ended is None:
            return "running"
        if self.peer_gone:
            return "stopped"
        return "damaged" if self.problems.damage else "done"

    @property
    def as_asked(self) -> bool:
        """Whether all slices so far are of the method that was asked for."""
        return all(is_asked_for(self.method, method) for method in list(self.methods))

    @property
    def is_late(self) -> bool:
        """Whether a slice took longer than the deadline allows, or the one that is being made already does."""
        summary = self.summary
        return 0 < self.deadline < max(self.latency, summary.seconds_running if summary.running else 0.0)

    def outcome(self) -> dict[str, Any]:
        """What the line of the log has of it."""
        summary = self.summary
        return {
            "peer": self.peer,
            "scan": self.scan,
            "door": self.door,
            "pipeline": self.pipeline,
            "protocol": self.protocol,
            "peer_gone": self.peer_gone,
            "method": self.method,
            "methods": dict(self.methods),
            "readouts": summary.readouts,
            "images": summary.images,
            "slices": summary.slices,
            "seconds": round(self.seconds, 3),
            "latency": round(self.latency, 3),
            "held_up": round(self.held_up, 3),
            "stages": {stage: round(seconds, 3) for stage, seconds in dict(summary.seconds).items()},
            "problems": [
                {"kind": name, "text": one.text, "count": one.count, "damage": one.damage}
                for name, one in list(self.problems.kinds.items())
            ],
        }

    def facts(self) -> dict[str, Any]:
        """All that is known of it, as JSON has it."""
        running = self.summary.running
        return {
            **self.outcome(),
            "patient": self.patient,
            "verdict": self.verdict,
            "as_asked": self.as_asked,
            "notes": dict(self.notes),
            "deadline": self.deadline,
            "late": self.is_late,
            "promised": self.promised,
            "began": self.began_at,
            "running": running,
            "seconds_running": round(self.summary.seconds_running, 3) if running else 0.0,
        }


class ServerRecord:
    """What is known of a server: the scans that run, the last ones that are over, and what there was in all.

    Parameters
    ----------
    names
        Keep the names of patients, to show them.

    Attributes
    ----------
    viewer : Viewer or None
        Looks at the slices of all scans that begin.
    fault : str
        What keeps all scans from being reconstructed; empty while nothing does.
    doubt : str
        What keeps some of the workers from reconstructing.
    """

    def __init__(self, *, names: bool = False) -> None:
        self.began_at = time.time()
        self.viewer: Viewer | None = None
        self.fault = self.doubt = ""
        self._names = names
        self._lock = threading.Lock()
        self._running: dict[str, ScanRecord] = {}
        self._elsewhere: dict[int, dict[str, ScanRecord]] = {}  # by number of the worker
        self._over: deque[ScanRecord] = deque(maxlen=_KEPT)
        self._scans: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._slices: Counter[str] = Counter()
        self._seconds: dict[str, Histogram] = {}

    def begin(self, record: ScanRecord) -> None:
        """Take up a scan, once its peer has asked for one."""
        with self._lock:
            self._running[record.scan] = record

    def run_elsewhere(self, worker: int, records: list[ScanRecord]) -> None:
        """Show the scans that a worker has now; they count once they are over, as they may be begun again."""
        with self._lock:
            self._elsewhere[worker] = {record.scan: record for record in records}
            if not records:
                del self._elsewhere[worker]

    def watch(self, record: ScanRecord, header: ScanHeader, settings: Settings, arrived: Callable[[], float]) -> Watch:
        """Note what a scan is to be, and give what its chain is to call with every slice.

        Parameters
        ----------
        record, header, settings
            Of the scan.
        arrived
            Tells when the readouts came that completed the slice, as `time.monotonic` does.
        """
        record.method, record.deadline = settings.method, settings.compute.deadline
        record.promised = sum(
            encoding.count("slice") * encoding.count("contrast") * encoding.count("set")
            for encoding in header.encodings
            if not encoding.refusal
        )
        record.patient = label(header.patient_name) if self._names else ""
        look = None if self.viewer is None else self.viewer.begin(record.scan, header)

        def take(complete: CompleteSlice, reconstruction: Reconstruction) -> None:
            self._add_slice(record, reconstruction, time.monotonic() - arrived())
            if look is not None:
                look(complete, reconstruction)

        return take

    def _add_slice(self, record: ScanRecord, reconstruction: Reconstruction, latency: float) -> None:
        with self._lock:
            record.methods[reconstruction.method] += 1
            record.latency = max(record.latency, latency)
            for note in (*reconstruction.doubts, *reconstruction.notes):
                if note in record.notes or len(record.notes) < _MOST_NOTES:
                    record.notes[note] += 1
            for stage, seconds in {**reconstruction.seconds, "latency": latency}.items():
                record.times.setdefault(stage, Histogram()).add(seconds)

    def end(self, record: ScanRecord) -> None:
        """Count a scan that is over, or was refused before it began."""
        record.ended = time.monotonic() if record.ended is None else record.ended
        with self._lock:
            for scans in (self._running, *self._elsewhere.values()):
                scans.pop(record.scan, None)
            self._over.appendleft(record)
            self._scans[record.verdict] += 1
            for problem in record.problems.damage:
                self._failures[problem.kind.value] += problem.count
            self._counts.update(_counts(record))
            _add_slices(record, self._slices, self._seconds)
            self._seconds.setdefault("scan", Histogram()).add(record.seconds)

    @property
    def running(self) -> list[ScanRecord]:
        """The scans that run, the latest first."""
        with self._lock:
            elsewhere = (record for scans in self._elsewhere.values() for record in scans.values())
            return sorted((*self._running.values(), *elsewhere), key=lambda record: record.began)[::-1]

    @property
    def over(self) -> list[ScanRecord]:
        """The last scans that are over, the latest first."""
        with self._lock:
            return list(self._over)

    def totals(self) -> Totals:
        """What there was since the server began."""
        with self._lock:
            counts = sum((_counts(record) for record in self._running.values()), self._counts)
            slices, times = self._slices.copy(), copy.deepcopy(self._seconds)
            for record in self._running.values():
                _add_slices(record, slices, times)
            return Totals(
                scans=dict(self._scans),
                failures=dict(self._failures),
                images=counts["images"],
                readouts=counts["readouts"],
                slices=dict(slices),
                seconds={stage: (tuple(one.counts), one.total) for stage, one in times.items()},
            )


@dataclass(frozen=True)
class Totals:
    """What there was since a server began."""

    scans: dict[str, int]
    """By `ScanRecord.verdict`."""
    failures: dict[str, int]
    """Cases that lost data or images, by `gadgets.problems.Kind`; of scans that are over."""
    images: int
    """`images`, `readouts`: Also of scans that run."""
    readouts: int
    slices: dict[str, int]
    """Slices, or windows of frames, by the method that made them."""
    seconds: dict[str, tuple[tuple[int, ...], float]]
    """Counts of a `Histogram` and their sum by stage; ``latency`` is that of slices, ``scan`` of whole scans."""


def _add_slices(record: ScanRecord, slices: Counter[str], times: dict[str, Histogram]) -> None:
    slices.update(record.methods)
    for stage, one in record.times.items():
        times.setdefault(stage, Histogram()).update(one)


def _counts(record: ScanRecord) -> Counter[str]:
    return Counter(images=record.summary.images, readouts=record.summary.readouts)
