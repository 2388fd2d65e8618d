"""Workers of a Ray cluster: actors that stay warm, one for each GPU or for some cores.

Only names of files and outcomes go through Ray, and slices that an idle worker helps with; workers read raw files and
write images themselves, in folders that all machines of the cluster share.
"""

from __future__ import annotations

import importlib
import pickle
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from gadgets.replay.job import JobRunner, versions
from gadgets.replay.workers import Event, event_of
from recon_core import cluster
from recon_core.api import shared_engine
from recon_core.cluster import Cluster, check_same, first_line
from recon_core.spread import PROTOCOL, HelperGoneError, result_of, tried

if TYPE_CHECKING:
    from gadgets.replay.job import Job
    from recon_core.data import CineSlice, Reconstruction
    from recon_core.options import ReconOptions
    from recon_core.spread import Helper

_MOST_FALSE_STARTS = 3


class RayRunner(JobRunner):
    """An actor: does jobs one after the other, and between them slices of the jobs of others."""

    def helper(self, which: Any) -> Helper:  # noqa: ANN401 - Ray has no types here
        """Give another actor, of its handle."""
        return _HelperActor(which)

    def reconstruct(self, packed: bytes) -> bytes:
        """Reconstruct a slice for another actor."""
        made = tried(shared_engine(), *pickle.loads(packed))  # noqa: S301 - of another actor of the batch
        self.take_lines()  # who is helped logs the same
        return pickle.dumps(made, PROTOCOL)


class _HelperActor:
    """An actor that has no job; `recon_core.spread.Helper`."""

    def __init__(self, actor: Any) -> None:  # noqa: ANN401
        self._actor = actor
        self._ray: Any = importlib.import_module("ray")

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions, /) -> Reconstruction:
        """Have a slice reconstructed."""
        packed = pickle.dumps((cine_slice, options), PROTOCOL)  # arrays that Ray packs can only be read
        try:
            made = self._ray.get(self._actor.reconstruct.remote(packed))
        except self._ray.exceptions.RayError as error:
            raise HelperGoneError(first_line(error)) from error
        return result_of(pickle.loads(made))  # noqa: S301 - of another actor of the batch

    def close(self) -> None:
        """Leave it to the batch, which waits until it has done the slice that it may be at."""


class _Running(NamedTuple):
    """A job that an actor is at, and actors that help."""

    job: Job
    actors: list[Any]


class RayWorkers:
    """Actors of a Ray cluster.

    Parameters
    ----------
    address, count, threads, gpu
        As `recon_core.cluster.Cluster` has them.
    level
        Of the lines of the log that are returned.

    Raises
    ------
    ResourceError
        If Ray is not installed, not reachable or of another version, or gives no worker.
    """

    def __init__(self, address: str, count: int, threads: int, level: int, *, gpu: bool = True) -> None:
        self._cluster = Cluster(address, count, threads, gpu=gpu)
        self._ray, self.description = self._cluster.ray, self._cluster.description
        self._starting: dict[Any, Any] = {}  # actors by the answer that shows that they are ready
        self._returning: dict[Any, Any] = {}  # the same of those that have helped
        self._running: dict[Any, _Running] = {}  # by the answer
        self._idle: list[Any] = []
        self._false_starts = 0
        self._level = level
        try:
            self._actors = self._cluster.actors(RayRunner)
            for _ in range(self._cluster.count):
                self._start()
            self._wait_until_started()
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        """How many jobs may run at a time, with their helpers: a cluster may give workers later, or take them away."""
        return len(self._idle) + sum(len(one.actors) for one in self._running.values())

    def submit(self, job: Job, helpers: int = 0) -> None:
        """Begin a job; the actors that are to help are taken from the idle ones now."""
        actor, *others = actors = [self._idle.pop() for _ in range(1 + helpers)]
        with self._cluster.calls():
            self._running[actor.run.remote(asdict(job), others)] = _Running(job, actors)

    def wait(self, seconds: float) -> list[Event]:
        """Wait for jobs to end, for so long at most."""
        answers = [*self._running, *self._starting, *self._returning]
        with self._cluster.calls():
            ready, _ = self._ray.wait(answers, num_returns=1, timeout=seconds)
            if ready:  # whatever else is
                ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        events = [self._take(answer) for answer in ready]
        return [event for event in events if event is not None]

    def close(self) -> None:
        """End all actors at once, and a Ray that was started for them."""
        at_work = [actor for one in self._running.values() for actor in one.actors]
        for actor in (*self._idle, *self._starting.values(), *self._returning.values(), *at_work):
            self._cluster.end(actor)
        self._idle, self._starting, self._returning, self._running = [], {}, {}, {}
        self._cluster.close()

    def _start(self) -> None:
        with self._cluster.calls():
            actor = self._actors.remote(self._level)
            self._starting[actor.versions.remote()] = actor

    def _wait_until_started(self) -> None:
        """Wait for one, and for the others that there is room for: a scan has its helpers from its begin."""
        begin = time.monotonic()
        while len(self._idle) < max(1, self._cluster.room):
            self.wait(0.5)
            waited = time.monotonic() - begin
            if waited > (cluster.ROOM_SECONDS if self._idle else self._cluster.patience):
                break
        if not self._idle:
            raise self._cluster.nothing_given()

    def _take(self, answer: Any) -> Event | None:  # noqa: ANN401
        """Take note of what an actor answered."""
        running, beginner = self._running.pop(answer, None), self._starting.pop(answer, None)
        helper = self._returning.pop(answer, None)
        for one in running.actors[1:] if running else ():  # it may be at a slice yet, or have died
            with self._cluster.calls():
                self._returning[one.versions.remote()] = one
        try:
            found = self._cluster.fetch(answer)
        except self._ray.exceptions.RayError as error:
            self._start()
            why = first_line(error)
            if running is not None:
                return Event(running.job, death=why)
            self._false_starts += beginner is not None
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise self._cluster.nothing_starts(error) from error
            return None
        if running is not None:
            self._idle.append(running.actors[0])
            return event_of(running.job, found)
        if beginner is not None:
            check_same(found, versions())
            self._false_starts = 0
        self._idle.append(beginner or helper)
        return None
