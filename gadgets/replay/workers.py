"""Who does the jobs of a batch: the interface, and processes of this machine; `ray_workers` has those of a cluster."""

from __future__ import annotations

import contextlib
import json
import select
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from gadgets.replay.job import Outcome
from recon_core.children import Child, death_in_words, environments_of, usable_cores, usable_gpus
from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from gadgets.replay.job import Job

_TARGET = "gadgets.replay.job:work"
_MOST_FALSE_STARTS = 3  # workers in a row that end by themselves before they are ready


@dataclass(frozen=True)
class Event:
    """A job came to an end."""

    job: Job
    """Which."""
    outcome: Outcome | None = None
    """How; None if its worker died."""
    death: str = ""
    """How the worker died."""
    log: list[tuple[int, str]] = field(default_factory=list)
    """Levels and lines that the worker logged."""


class Workers(Protocol):
    """Processes that each do one job at a time, and are replaced when they die."""

    @property
    def count(self) -> int:
        """How many jobs may run at a time just now, with their helpers."""

    def submit(self, job: Job, helpers: int = 0) -> None:
        """Begin a job; further workers that are idle may help with its slices."""

    def wait(self, seconds: float) -> list[Event]:
        """Wait for jobs to end, for so long at most.

        Raises
        ------
        ResourceError
            If no worker can be started any more.
        """

    def close(self) -> None:
        """End all workers at once, whatever they do."""


class ProcessWorkers:
    """Processes of this machine.

    Parameters
    ----------
    count
        How many; 0 takes one for each GPU, or else as many as the cores suffice for.
    threads
        Of each. One slice uses two threads little better than one, and the images of another number of threads differ
        in their last bits.
    level
        Of the lines of the log that are returned.
    gpu
        The settings allow a GPU.

    Raises
    ------
    ResourceError
        If no process can be started.
    """

    def __init__(self, count: int, threads: int, level: int, *, gpu: bool = True) -> None:
        gpus = usable_gpus() if gpu else []
        self.count = count or len(gpus) or max(1, usable_cores() // threads)
        self.description = f"{self.count} processes of {threads} thread{'' if threads == 1 else 's'}"
        if gpus:
            self.description += f" on {len(gpus)} GPUs"
        self._level = level
        self._environments = environments_of(self.count, threads, gpus)
        self._workers: list[_Worker | None] = [None] * self.count
        self._false_starts = 0

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that are at work."""
        return [one.child.pid for one in self._workers if one is not None and one.job is not None]

    def submit(self, job: Job, helpers: int = 0) -> None:
        """Begin a job; a process is started where there is none, and with the job those that help with it."""
        for number, one in enumerate(self._workers):
            if one is not None and one.job is None and one.child.has_ended:
                self._drop(number)
        lent = {number for one in self._workers if one is not None for number in one.lent}
        idle = [number for number, one in enumerate(self._workers) if number not in lent and not (one and one.job)]
        idle.sort(key=lambda number: self._workers[number] is None)
        number, *others = idle[: 1 + helpers]
        worker = self._workers[number]
        if worker is None:
            worker = self._workers[number] = _Worker(self._level, self._environments[number])
        worker.begin(job, {one: self._environments[one] for one in others})

    def wait(self, seconds: float) -> list[Event]:
        """Wait for jobs to end, for so long at most."""
        poll, by_number = select.poll(), {}
        for number, worker in enumerate(self._workers):
            if worker is not None and worker.job is not None:
                poll.register(worker.child.socket, select.POLLIN)
                by_number[worker.child.socket.fileno()] = number
        events = []
        for found, _ in poll.poll(1000 * seconds):
            event = self._take(by_number[found])
            if event is not None:
                events.append(event)
        return events

    def close(self) -> None:
        """End all processes at once."""
        for number in range(self.count):
            self._drop(number)

    def _take(self, number: int) -> Event | None:
        """Read what a worker sent; None where its job goes on."""
        worker = self._workers[number]
        assert worker is not None  # noqa: S101 - it was asked whether it sent anything
        line, job = worker.read(), worker.job
        assert job is not None  # noqa: S101 - nothing is read from others
        if not line:
            status = self._drop(number)
            if status is not None and status > 0 and not worker.is_ready:
                self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                why = f"no worker can be started: {death_in_words(status)}, see above"
                raise ResourceError(f"{why}; cinestream doctor checks the installation")
            return Event(job, death=death_in_words(status))
        if not worker.is_ready:
            worker.is_ready, self._false_starts = True, 0
            return None
        worker.job, worker.lent = None, []
        return event_of(job, json.loads(line))

    def _drop(self, number: int) -> int | None:
        worker, self._workers[number] = self._workers[number], None
        return worker.end() if worker is not None else None


class _Worker:
    """One process and the job that it does."""

    def __init__(self, level: int, environment: dict[str, str]) -> None:
        self.child = Child(_TARGET, {"level": level}, environment)
        self.job: Job | None = None
        self.lent: list[int] = []  # numbers of the workers in the place of which processes help with the job
        self.is_ready = False
        self._lines: BinaryIO = self.child.socket.makefile("rb")

    def begin(self, job: Job, helpers: dict[int, dict[str, str]]) -> None:
        """Give it a job, with the environments of processes that help; that it is dead shows when it is read from."""
        self.job, self.lent = job, [*helpers]
        with contextlib.suppress(OSError):
            self.child.socket.sendall(json.dumps([asdict(job), [*helpers.values()]]).encode() + b"\n")

    def read(self) -> bytes:
        """Read a whole line; empty if the process has ended."""
        try:
            line = self._lines.readline()
        except OSError:  # reset, as by a process that died with something unread
            return b""
        return line if line.endswith(b"\n") else b""

    def end(self) -> int | None:
        """End it, as `Child.end` does."""
        self._lines.close()
        return self.child.end()


def event_of(job: Job, found: dict[str, Any]) -> Event:
    """Read what `gadgets.replay.job.JobRunner.run` gave."""
    log = [(int(level), str(text)) for level, text in found.pop("log")]
    return Event(job, Outcome(**found), log=log)
