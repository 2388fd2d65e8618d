"""What a worker tells the front of a server about its scans, images and log: lines of JSON on their socket."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from gadgets.chain import ScanSummary
from gadgets.connection.log_tail import LogTail
from gadgets.connection.records import Histogram, ScanRecord, ServerRecord
from gadgets.problems import Kind, Problem, Problems

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

_SECONDS = 0.5  # from one line about the running scans to the next
_COUNTERS = ("methods", "notes")
_SUMMARY = ("readouts", "images", "slices", "seconds", "reconstructed", "running", "_began")
_PROBLEM = ("text", "damage", "count", "pixels", "first")
_OTHER = (*_COUNTERS, "summary", "problems", "times")
_PLAIN = tuple(one.name for one in fields(ScanRecord) if one.name not in _OTHER)


class Room(NamedTuple):
    """What the scans of a worker take, and may."""

    queue_bytes: int = 0
    queue_limit: int = 0
    memory_bytes: int = 0
    memory_limit: int = 0


class News(NamedTuple):
    """One line."""

    running: list[ScanRecord]
    """The scans that run."""
    ended: list[ScanRecord]
    """Scans that are over; each comes once."""
    room: Room
    """What they take."""
    fault: str
    """What keeps all scans from being reconstructed."""
    images: dict[str, Any]
    """What there is to see of each scan that has images, as `gadgets.connection.looks.Images.facts` has it."""
    log: list[tuple[str, str]]
    """Level and text of lines that were logged since the line before."""


class ToldRecord(ServerRecord):
    """The records of a worker, told to the front.

    Parameters
    ----------
    control
        The socket to the front.
    room
        Tells what the scans take.
    names
        Keep the names of patients, to show them.

    Attributes
    ----------
    log : LogTail
        Has the lines that are to be told too.
    """

    def __init__(self, control: socket.socket, room: Callable[[], Room], *, names: bool) -> None:
        super().__init__(names=names)
        self._control = control
        self._room = room
        self._telling = threading.Lock()
        self._told = b""
        self.log = LogTail()
        self._logged = 0  # number of the last line that was told

    def end(self, record: ScanRecord) -> None:
        """Count a scan that is over, and tell it at once."""
        super().end(record)
        self._tell([record])

    def keep_telling(self) -> None:
        """Tell what changes of the running scans, for ever; in a thread of its own."""
        pause = threading.Event()
        while not pause.wait(_SECONDS):
            self._tell([])

    def _tell(self, ended: list[ScanRecord]) -> None:
        with self._telling:
            viewer, lines = self.viewer, self.log.lines(self._logged)
            images = {} if viewer is None else {scan: viewer.facts(scan) for scan in viewer.scans()}
            log = [(level, text) for _, level, text in lines]
            line = _line(News(self.running[::-1], ended, self._room(), self.fault, images, log))
            if line != self._told or log:
                self._told = line
                self._logged = lines[-1][0] if lines else self._logged
                with contextlib.suppress(OSError):  # the front is gone, and this process ends with it
                    self._control.sendall(line)


def news_of(control: socket.socket, late: float = 0.0) -> Iterator[News]:
    """Give what a worker tells, until it is gone.

    Parameters
    ----------
    control
        The socket to it.
    late
        By how many s its `time.monotonic` is behind that of this machine.
    """
    with contextlib.suppress(OSError), control.makefile("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):  # else it died in the middle of it
                view = json.loads(line)
                running, ended = ([_unpack(one, late) for one in view[name]] for name in ("running", "ended"))
                yield News(running, ended, Room(*view["room"]), view["fault"], view["images"], view["log"])


def _line(news: News) -> bytes:
    scans = {name: [_pack(one) for one in getattr(news, name)] for name in ("running", "ended")}
    return json.dumps({**news._asdict(), **scans}).encode() + b"\n"


def _pack(record: ScanRecord) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        **{name: dict(getattr(record, name)) for name in _COUNTERS},
        "summary": {name: getattr(record.summary, name) for name in _SUMMARY if name != "seconds"}
        | {"seconds": dict(record.summary.seconds)},
        "problems": {
            name: {"kind": one.kind.value, **{key: getattr(one, key) for key in _PROBLEM}}
            for name, one in list(record.problems.kinds.items())
        },
        "times": {stage: [list(one.counts), one.total] for stage, one in list(record.times.items())},
    }


def _unpack(view: dict[str, Any], late: float) -> ScanRecord:
    kinds = {name: Problem(**{**one, "kind": Kind(one["kind"])}) for name, one in view["problems"].items()}
    for holder, name in ((view, "began"), (view, "ended"), (view["summary"], "_began")):
        holder[name] = None if holder[name] is None else holder[name] + late
    return ScanRecord(
        **{name: view[name] for name in _PLAIN},
        methods=Counter(view["methods"]),
        notes=Counter(view["notes"]),
        summary=ScanSummary(**view["summary"]),
        problems=Problems(kinds=kinds),
        times={stage: Histogram(counts, total) for stage, (counts, total) in view["times"].items()},
    )
