"""What the steps hand on: the slice with its options, and the images that methods made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recon_core.errors import ModelError
from recon_core.methods import find_method, why_not_off_grid, why_not_points
from recon_core.steps.pace import Job, Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from recon_core.data import CineSlice, HybridSlice
    from recon_core.inference.method import NetworkMethod
    from recon_core.options import ReconOptions

    Method = Callable[[HybridSlice], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """A slice that is being reconstructed."""

    cine: CineSlice
    """As it came."""
    data: HybridSlice
    """The same on the device, with coil maps."""
    options: ReconOptions
    """How it is reconstructed."""
    build: Callable[[str, ReconOptions], Method]
    """Gives the method of a name, built from options."""
    pace: Pace = field(default_factory=Pace)
    """How long methods take."""
    until: float = math.inf
    """When the images should be there, as `time.monotonic` tells the time; infinite where there is time enough."""

    def why_not(self, name: str) -> str:
        """Why a method cannot take such a slice, whatever is in it; empty if it can."""
        if self.cine.trajectory is not None:
            return why_not_off_grid(name)
        return "" if self.data.whole_lines else why_not_points(name)

    def why_not_first(self, network: NetworkMethod) -> str:
        """Why the weights that a network starts from cannot take such a slice; empty if they can, or there are none."""
        first = network.first_network
        why = self.why_not(first) if first else ""
        return why and f"it starts from the image of {first}, and {why}"

    def job(self, name: str) -> Job:
        """What it is for a method to make the images of this slice."""
        weights = self.options.network.weights if find_method(name).network else ""
        place = (self.data.hybrid.device.type, torch.get_num_threads())
        return Job(name, weights, place, (*self.data.hybrid.shape[:2], *self.data.maps.shape[-2:]))


class Outcome(NamedTuple):
    """The images that a method made of a slice."""

    method: str
    """Name of the method."""
    image: torch.Tensor
    """``(frame, y, x)`` complex64 on the device."""
    notes: list[str]
    """What the method had to do differently; later steps add to them."""
    extra: dict[str, torch.Tensor]
    """Other images of the method, by name."""
    doubts: tuple[str, ...] = ()
    """What speaks against the images."""


class Outcomes(NamedTuple):
    """The images to send, those of the fallback to send or to compare with, and the zero-filled ones if asked for."""

    main: Outcome
    beside: Outcome | None = None
    zero_filled: Outcome | None = None


def check_finite(method: str, image: torch.Tensor, cine: CineSlice) -> torch.Tensor:
    """Hand an image ``(frame, y, x)`` on.

    Raises
    ------
    ModelError
        If it has values that are not finite.
    """
    good = image.isfinite().all(-1).all(-1)
    if not bool(good.all()):
        frames = torch.nonzero(~good).flatten().tolist()
        why = finiteness(cine.kspace, cine.calibration)
        raise ModelError(f"{method} gave values that are not finite in frames {frames}; {why}")
    return image


def finiteness(kspace: NDArray[np.complex64] | None, calibration: NDArray[np.complex64] | None) -> str:
    """Say whether the input is the reason for what failed."""
    given = {"k-space": kspace, "calibration": calibration}
    for name, array in given.items():
        if array is not None and not np.isfinite(array).all():
            return f"the {name} is not finite itself"
    return f"the {next(name for name, array in given.items() if array is not None)} is finite"
