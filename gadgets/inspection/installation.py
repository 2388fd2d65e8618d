"""Is everything in place on this machine? Each check says what was found and, if it is bad, what to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.connection.resident import DEFAULT_HOST, DEFAULT_PORT
from gadgets.settings.pipelines import list_pipelines
from gadgets.wire.messages import Close, Query, Response
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import ProtocolError
from recon_core.weights.manifest import list_weights, weights_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How to install torch where there is no GPU.
CPU_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
#: What to do without torch.
TORCH_REMEDY = f"pip install torch, of several GB with CUDA for a GPU; without one {CPU_BUILD}"
_ANSWER_SECONDS = 5.0
_PROBE = "import gadgetron, gadgets.external; print(gadgets.external.__file__)"


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    found: str
    remedy: str = ""  # empty when all is well

    def __str__(self) -> str:
        """The line that `cinestream doctor` prints."""
        return f"{'bad ' if self.remedy else 'ok  '} {self.name}: {self.found}" + (
            f"\n      {self.remedy}" if self.remedy else ""
        )


def examine() -> Iterator[Check]:
    """Look at Python, the packages, the GPU, the pipelines, the port, and the Python a Gadgetron would start."""
    yield Check("cinestream", f"{__version__}, Python {sys.version.split()[0]} ({sys.executable})")
    for name in ("gadgetron", "ismrmrd", "numpy", "h5py"):
        yield _package(name)
    yield from _torch()
    yield _pipelines()
    yield _weights()
    yield _port()
    yield _gadgetron_python()


def ask(address: tuple[str, int]) -> Check:
    """Ask a server who it is; one that listens but does not answer is as bad as none."""
    name = f"server {address[0]} port {address[1]}"
    remedy = "start one with: cinestream serve"
    try:
        with socket.create_connection(address, timeout=_ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            writer = Writer.of_socket(connection)
            writer.send(Query(1, "cinestream::version"))
            writer.send(Close())
            for message in Reader.of_socket(connection):
                if isinstance(message, Response):
                    return Check(name, f"cinestream {message.text}")
    except (OSError, UnicodeError, ProtocolError) as error:  # UnicodeError: a host that is no name
        return Check(name, f"no answer ({error})", remedy)
    return Check(name, "something answers, but it is no cinestream", remedy)


def _package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", f"pip install {name}")


def _torch() -> Iterator[Check]:
    """Which build of torch there is, and what it computes on."""
    installed = _package("torch")
    if installed.remedy:
        yield Check("torch", installed.found, TORCH_REMEDY)
        return
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else ""
    yield Check("torch", f"{installed.found}, {f'build for {build}' if build else 'CPU build'}")
    if torch.cuda.is_available():
        yield Check("GPU", torch.cuda.get_device_name())
        return
    hint = f"the CPU build of torch would do, and is gigabytes smaller: {CPU_BUILD}" if build else ""
    threads = f"none usable; reconstructing on {torch.get_num_threads()} CPU threads"
    yield Check("GPU", "; ".join(filter(None, (threads, hint))))


def _pipelines() -> Check:
    known = list_pipelines()
    for pipeline in known.values():
        pipeline.node_settings  # noqa: B018 - reading it checks it
    return Check("pipelines", ", ".join(known))


def _weights() -> Check:
    known, problems = list_weights(), weights_problems()
    found = ", ".join(known) or "none; networks leave their scans to the fallback (cinestream methods)"
    return Check("weights", found, "\n      ".join(problems))


def _port() -> Check:
    name = f"port {DEFAULT_PORT}"
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex((DEFAULT_HOST, DEFAULT_PORT)) == 0
    return Check(name, "a server listens (a resident cinestream, if you started one)" if taken else "free")


def _gadgetron_python() -> Check:
    """Gadgetron starts ``python``, else ``python3``, the first on its PATH, with its own PYTHONPATH."""
    name = "Python of a Gadgetron"
    python = shutil.which("python") or shutil.which("python3")
    if python is None:
        return _of_gadgetron(name, "no python on PATH", "put the folder of this environment's python first on PATH")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        outcome = subprocess.run(  # noqa: S603 - the interpreter that Gadgetron would start, with a fixed program
            [python, "-c", _PROBE], capture_output=True, text=True, env=environment, cwd="/", timeout=60, check=False
        )
        if outcome.returncode == 0:
            return Check(name, f"{python} finds {outcome.stdout.strip()}")
        reason = (outcome.stderr.strip().splitlines() or ["it failed"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    found = f"{python} does not find cinestream ({reason})"
    remedy = f"start the Gadgetron with this environment first on PATH: {os.path.dirname(sys.executable)}"  # noqa: PTH120
    return _of_gadgetron(name, found, remedy)


def _of_gadgetron(name: str, found: str, remedy: str) -> Check:
    """A finding that is bad only if there is a Gadgetron."""
    if shutil.which("gadgetron") or os.environ.get("GADGETRON_HOME"):
        return Check(name, found, remedy)
    return Check(name, f"there is no Gadgetron here. For one: {found}; {remedy}")
