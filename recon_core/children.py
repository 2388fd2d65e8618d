"""Processes of our own code that work for this one, each at the other end of a socket, and end with it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BEGIN = "import sys; sys.path[:] = {path!r}; from recon_core.children import _begin; _begin({target!r}, {number})"
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container
_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each
_GONE_SECONDS = 0.5
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # of Linux


class Child:
    """A process that runs a function of our own.

    It ends when the other end of its socket is closed, even in the middle of its work: so no child outlives its parent,
    however that ends. A Ctrl-C in the terminal reaches the parent alone.

    Parameters
    ----------
    target
        ``module:function``; called with the connected socket and with `arguments`.
    arguments
        Of the function, as JSON has them.
    environment
        Variables that differ from those of this process.

    Attributes
    ----------
    socket : socket.socket
        Our end.

    Raises
    ------
    ResourceError
        If no process can be started.
    """

    def __init__(self, target: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        # -m would look for our packages in the working directory first, where others of these names may be
        code = _BEGIN.format(path=sys.path, target=target, number=theirs.fileno())
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - of this very Python
                    [sys.executable, "-c", code, json.dumps(dict(arguments))],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
            except OSError as error:
                self.socket.close()
                raise ResourceError(f"no further process can be started: {error.strerror}; use fewer") from error

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, or about to be: its sockets are closed before it can be waited for."""
        return self._process.poll() is not None or is_closed(self.socket)

    def end(self) -> int | None:
        """End it at once, whatever it does; gives the status it had ended with by itself, or None."""
        status = self._process.returncode
        with contextlib.suppress(subprocess.TimeoutExpired):
            # one that has just broken its connection needs a moment to be gone
            status = self._process.wait(_GONE_SECONDS if is_closed(self.socket) else 0)
        self._process.kill()
        self._process.wait()
        self.socket.close()
        return status


def _begin(target: str, number: int) -> None:
    """Run the function of a child; called in it."""
    connection = socket.socket(fileno=number)
    threading.Thread(target=end_with, args=(connection,), name="cinestream-parent", daemon=True).start()
    module, _, name = target.partition(":")
    getattr(importlib.import_module(module), name)(connection, **json.loads(sys.argv[1]))


def end_with(connection: socket.socket) -> None:
    """End this process when the other end of a connection is closed, whatever it does; in a thread of its own."""
    poll = select.poll()
    poll.register(connection, _HUNG_UP)  # and POLLHUP, which needs no asking
    poll.poll()
    os._exit(0)


def is_closed(connection: socket.socket) -> bool:
    """Whether a connection is closed, at the other end or here."""
    number = connection.fileno()
    if number < 0:
        return True
    poll = select.poll()
    poll.register(number, _HUNG_UP)  # one that another thread closes just now counts as closed, too
    return bool(poll.poll(0))


def death_in_words(status: int | None) -> str:
    """How a process ended, of the status that `Child.end` gives."""
    if status is None:
        return "it closed its connection"
    if status == -signal.SIGKILL:
        return "it was killed (SIGKILL), as the system does when memory runs out"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def usable_cores() -> int:
    """How many cores this process may use, a container's limit included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        cores = min(cores, int(most) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(1, cores)


def threads_wanted() -> int:
    """How many threads a process is to have: ``OMP_NUM_THREADS``, or one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


def usable_gpus() -> list[str]:
    """GPUs that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it; torch is asked where there are any."""
    if not _GPUS.is_dir():
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if len(named) >= count and named[0] else [str(number) for number in range(count)]


def environments_of(count: int, threads: int | str, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environments of so many processes with so many threads each, which take turns at the GPUs, if there are any."""
    threaded = {"OMP_NUM_THREADS": str(threads)}
    if not gpus:
        return [dict(threaded) for _ in range(count)]
    return [{**threaded, "CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]
