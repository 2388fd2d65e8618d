"""The device that computes, and arrays on it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.errors import ModelError
from recon_core.turns import work_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def resolve_device(name: str) -> torch.device:
    """Turn the name of a device into the device.

    Parameters
    ----------
    name
        ``auto`` (the GPU when there is one), ``cpu`` or ``cuda``.

    Raises
    ------
    ModelError
        If a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("a GPU was asked for and none is usable here; set device to auto or cpu")
    return torch.device(name)


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Bring an array to the device; torch refuses to share memory that must not be written."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Note the time of a stage, to the end of its work on a GPU, without what it gave way to."""
    started = work_time()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = work_time() - started
