"""Memory of the machine that a server runs on, of its process, and of its GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from recon_core.budget import free_bytes

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")


class Memory(NamedTuple):
    """Bytes; None where the system does not say, or has no such thing."""

    process: int | None
    """What this process has in main memory."""
    host: int | None
    """Main memory of the machine."""
    host_free: int | None
    """What of it can be taken, within the limits of a container."""
    gpu: int | None
    """Memory of the GPU."""
    gpu_free: int | None
    gpu_process: int | None
    """What this process has taken of it."""


def memory() -> Memory:
    """Ask for it; a GPU is asked only once something runs on it."""
    return Memory(_kibibytes(_STATUS, "VmRSS"), _kibibytes(_MEMINFO, "MemTotal"), free_bytes(), *_gpu())


def _kibibytes(path: Path, name: str) -> int | None:
    """A line of a file of the kernel, in bytes."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _gpu() -> tuple[int | None, int | None, int | None]:
    torch = sys.modules.get("torch")  # not to be imported for this
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None, None, None
    free, total = torch.cuda.mem_get_info()
    return total, free, torch.cuda.memory_reserved()
