"""Workers of a Ray cluster: actors that stay warm, one for each GPU or for some cores.

Only names of files and outcomes go through Ray; workers read raw files and write images themselves, in folders that all
machines of the cluster share.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gadgets.replay.job import JobRunner, versions
from gadgets.replay.workers import Event, event_of
from recon_core.children import usable_cores
from recon_core.errors import ResourceError, SettingsError

if TYPE_CHECKING:
    from gadgets.replay.job import Job

logger = logging.getLogger("cinestream")

#: Starts a Ray on this machine for one batch.
LOCAL = "local"
#: The cluster that this machine is a part of.
AUTO = "auto"

_REACH_SECONDS = 5.0
_START_SECONDS = 60.0  # until the first worker must be there
_MOST_FALSE_STARTS = 3
_STORE_BYTES = 100 << 20  # for objects of a Ray of our own; ours are small


class RayWorkers:
    """Actors of a Ray cluster.

    Parameters
    ----------
    address
        `LOCAL`, `AUTO`, or ``HOST:PORT`` of the head.
    count
        How many; 0 takes one for each GPU of the cluster, or else as many as its cores suffice for.
    threads
        Of each, and cores that are asked for it.
    level
        Of the lines of the log that are returned.
    gpu
        The settings allow a GPU.

    Raises
    ------
    ResourceError
        If Ray is not installed, not reachable or of another version, or gives no worker.
    """

    def __init__(self, address: str, count: int, threads: int, level: int, *, gpu: bool = True) -> None:
        self._ray = _connect(address)
        self._pending: dict[Any, Any] = {}  # actors by the answer that shows that they are ready
        self._running: dict[Any, tuple[Any, Job]] = {}  # actors and jobs by the answer
        self._idle: list[Any] = []
        self._false_starts = 0
        try:
            resources = self._ray.cluster_resources()
            gpus = int(resources.get("GPU", 0)) if gpu else 0
            wanted = count or gpus or max(1, int(resources.get("CPU", 1)) // threads)
            self.description = f"{wanted} Ray workers of {threads} thread{'' if threads == 1 else 's'} at {address}"
            environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
            self._actor = self._ray.remote(JobRunner).options(
                num_cpus=threads, num_gpus=1 if gpus else 0, runtime_env={"env_vars": environment}
            )
            self._level = level
            for _ in range(wanted):
                self._start()
            self._wait_for_first(address)
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        """How many jobs run at a time: a cluster may give workers later, or take them away."""
        return len(self._idle) + len(self._running)

    def submit(self, job: Job, helpers: int = 0) -> None:  # noqa: ARG002 - a cluster has none
        """Begin a job."""
        actor = self._idle.pop()
        self._running[actor.run.remote(asdict(job))] = actor, job

    def wait(self, seconds: float) -> list[Event]:
        """Wait for jobs to end, for so long at most."""
        answers = [*self._running, *self._pending]
        ready, _ = self._ray.wait(answers, num_returns=1, timeout=seconds)
        if ready:  # whatever else is
            ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        events = [self._take(answer) for answer in ready]
        return [event for event in events if event is not None]

    def close(self) -> None:
        """End all actors at once, and a Ray that was started for them."""
        actors = [*self._idle, *self._pending.values(), *(actor for actor, _ in self._running.values())]
        for actor in actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._idle, self._pending, self._running = [], {}, {}
        self._ray.shutdown()

    def _start(self) -> None:
        actor = self._actor.remote(self._level)
        self._pending[actor.versions.remote()] = actor

    def _wait_for_first(self, address: str) -> None:
        until = time.monotonic() + _START_SECONDS
        while not self._idle:
            self.wait(0.5)
            if time.monotonic() > until:
                free = self._ray.available_resources()
                raise ResourceError(
                    f"the Ray cluster at {address} gives no worker within {_START_SECONDS:g} s: {free.get('CPU', 0):g} "
                    f"CPUs and {free.get('GPU', 0):g} GPUs are free; wait for others, or use fewer threads"
                )

    def _take(self, answer: Any) -> Event | None:  # noqa: ANN401 - Ray has no types here
        actor, job = self._running.pop(answer, (None, None))
        beginner = self._pending.pop(answer, None)
        try:
            found = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._start()
            why = _first_line(error)
            if job is not None:
                return Event(job, death=why)
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                text = (
                    f"no Ray worker can be started: {why}; cinestream must be installed on all machines of the cluster"
                )
                raise ResourceError(text) from error
            return None
        if job is None:
            _check_same(found)
            self._false_starts = 0
            self._idle.append(beginner)
            return None
        self._idle.append(actor)
        return event_of(job, found)


def _connect(address: str) -> Any:  # noqa: ANN401 - mypy would read all of Ray
    """Import Ray and connect it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without GPU keep what they see
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ResourceError(f'Ray cannot be imported ({error}); pip install "cinestream[cluster]"') from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        own = {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        ray.init(address="local", _node_ip_address="127.0.0.1", **own, **quiet)
        return ray
    if address != AUTO:
        _reach(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = (
            "ray start --head starts one, --ray local one for this batch alone; where it wants a token, set "
            "RAY_AUTH_MODE=token"
        )
        if "ersion" in str(error):
            remedy = "install the same versions of Ray and Python on all machines of the cluster"
        raise ResourceError(f"no Ray cluster at {address}: {_first_line(error)}; {remedy}") from error
    return ray


def _reach(address: str) -> None:
    """Refuse an address that is none, or where nobody answers; Ray would wait for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"expected {LOCAL}, {AUTO} or HOST:PORT of a Ray cluster, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        text = f"no Ray cluster answers at {address} ({error}); ray start --head starts one"
        raise ResourceError(text) from error


def _check_same(theirs: dict[str, str]) -> None:
    for name, version in versions().items():
        if theirs.get(name) != version:
            text = f"a Ray worker has {name} {theirs.get(name)}, and here it is {version}"
            raise ResourceError(f"{text}; install the same on all machines of the cluster")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if type(error).__name__ == "ActorDiedError" and lines else (lines or [type(error).__name__])[0]
