"""A Ray cluster: how it is reached, its actors, and what must be the same on all of its machines.

Ray is imported when a cluster is asked for. What of it is used has no types here: mypy would read all of Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import socket
from typing import TYPE_CHECKING, Any

from recon_core.children import usable_cores
from recon_core.errors import ResourceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Starts a Ray on this machine that ends with this process.
LOCAL = "local"
#: The cluster that this machine is a part of.
AUTO = "auto"
#: Until an actor must be there that a cluster has room for; a busy machine takes long to import all.
START_SECONDS = 600.0
#: The same where there was no room when it was asked for.
ROOM_SECONDS = 60.0

_REACH_SECONDS = 5.0
_GUESSES = "Some common causes include:"  # with what follows 500 characters, of any process that died
_STORE_BYTES = 512 << 20  # for objects of a Ray of our own: slices that others help with


class Cluster:
    """A Ray cluster that this process is connected to.

    Parameters
    ----------
    address
        `LOCAL`, `AUTO`, or ``HOST:PORT`` of the head.
    count
        How many actors; 0 takes one for each GPU of the cluster, or else as many as its cores suffice for.
    threads
        Of each, and cores that are asked for it.
    gpu
        Actors may have GPUs.

    Attributes
    ----------
    ray : module
        Ray itself.
    count : int
        How many actors there are to be.
    room : int
        How many of them there was room for; a cluster may grow, and others may go.
    most_on_one : int
        How many of them one machine may have, as far as the machines are known.

    Raises
    ------
    SettingsError
        If the address is none.
    ResourceError
        If Ray is not installed, not reachable or of another version.
    """

    def __init__(self, address: str, count: int, threads: int, *, gpu: bool = True) -> None:
        self.ray: Any = _connect(address)
        self._address = address
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if gpu else 0
        self.count = count or gpus or max(1, int(resources.get("CPU", 1)) // threads)
        self.description = f"{self.count} Ray workers of {threads} thread{'' if threads == 1 else 's'} at {address}"
        free = self.ray.available_resources()
        self.room = min(self.count, int(free.get("CPU", 0)) // threads)
        if gpus:
            self.room = min(self.room, int(free.get("GPU", 0)))
        machines = [one["Resources"] for one in self.ray.nodes() if one["Alive"]]
        each = [int(one.get("GPU", 0)) if gpus else int(one.get("CPU", 0)) // threads for one in machines]
        self.most_on_one = max(1, min(self.count, max(each, default=1)))
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self._share: dict[str, Any] = {
            "num_cpus": threads,
            "num_gpus": 1 if gpus else 0,
            "runtime_env": {"env_vars": environment},
        }

    def connect_again(self) -> None:
        """Connect once more where the connection broke, as that to a port for Ray's clients may; its actors are gone.

        Raises
        ------
        ResourceError
            If the cluster is not reachable.
        """
        if not self.ray.is_initialized():
            self.ray.shutdown()
            _connect(self._address)

    def actors(self, kind: type) -> Any:  # noqa: ANN401
        """Make actors of a class, by calls of ``remote``; each has its share of cores and GPUs."""
        return self.ray.remote(kind).options(**self._share)

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """Say in a line if Ray itself fails, and not what it runs: the errors of a connection that broke are many.

        Raises
        ------
        ResourceError
            For all others.
        """
        try:
            yield
        except ResourceError:
            raise
        except Exception as error:
            text = f"the connection to the Ray cluster at {self._address} broke: {first_line(error)}"
            raise ResourceError(text) from error

    def fetch(self, answer: Any) -> Any:  # noqa: ANN401
        """Give what an actor answers; what it raises, or its death, is raised as Ray has it."""
        with self.calls():
            try:
                return self.ray.get(answer)
            except self.ray.exceptions.RayError as error:
                raised = error
        raise raised

    def end(self, actor: Any) -> None:  # noqa: ANN401
        """End an actor at once, whatever it does."""
        with contextlib.suppress(Exception):  # it has ended, or Ray has
            self.ray.kill(actor)

    @property
    def patience(self) -> float:
        """How long in s to wait for the first actor, before `nothing_given` says that there is none."""
        return START_SECONDS if self.room else ROOM_SECONDS

    def nothing_given(self) -> ResourceError:
        """Say that there is no actor."""
        free = self.ray.available_resources()
        return ResourceError(
            f"the Ray cluster at {self._address} gives no worker within {self.patience:g} s: {free.get('CPU', 0):g} "
            f"CPUs and {free.get('GPU', 0):g} GPUs are free; wait for others, or use fewer threads"
        )

    @staticmethod
    def nothing_starts(error: BaseException) -> ResourceError:
        """Say that actors die as they start."""
        why = f"no Ray worker can be started: {first_line(error)}"
        return ResourceError(f"{why}; cinestream must be installed on all machines of the cluster")

    def close(self) -> None:
        """Leave it; a `LOCAL` one ends."""
        self.ray.shutdown()


def _connect(address: str) -> Any:  # noqa: ANN401
    """Import Ray and connect it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a late call would start a Ray that nobody wants
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without GPU keep what they see
    where = os.environ.get("RAY_ADDRESS") or AUTO if address == AUTO else address
    if where not in (AUTO, LOCAL):
        _reach(where)
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ResourceError(f'Ray cannot be imported ({error}); pip install "cinestream[cluster]"') from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        own = {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        ray.init(address="local", _node_ip_address="127.0.0.1", **own, **quiet)
        return ray
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = (
            "ray start --head starts one, and local as address one for this process alone; where it wants a token, set "
            "RAY_AUTH_MODE=token"
        )
        if "ray[client]" in str(error):
            raise ResourceError(f'no Ray cluster at {address}: its client needs pip install "ray[client]"') from error
        if "ersion" in str(error):
            remedy = "install the same versions of Ray and Python on all machines of the cluster"
        raise ResourceError(f"no Ray cluster at {address}: {first_line(error)}; {remedy}") from error
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


def versions(cinestream: str) -> dict[str, str]:
    """What must be the same in all processes, or their images and messages might differ."""
    return {"cinestream": cinestream, "Python": ".".join(platform.python_version_tuple()[:2])}


def check_same(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Compare `versions`.

    Raises
    ------
    ResourceError
        If they differ.
    """
    for name, version in ours.items():
        if theirs.get(name) != version:
            text = f"a Ray worker has {name} {theirs.get(name)}, and here it is {version}"
            raise ResourceError(f"{text}; install the same on all machines of the cluster")


def first_line(error: BaseException) -> str:
    """Say in a line why Ray failed, without the causes that it thinks of."""
    details = getattr(error, "details", None)  # of gRPC's, which have it in no line of their own
    text = str(details() if callable(details) else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if type(error).__name__ == "ActorDiedError" and lines else (lines or [type(error).__name__])[0]
    return line.partition(_GUESSES)[0].strip()
