"""A slice that is complete: its key, what belongs to it, and its name in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from gadgets.gating.gate import Gating
    from gadgets.gating.heartbeat import Heartbeat
    from recon_core.coils.running_maps import RunningMaps
    from recon_core.data import CineSlice


class SliceKey(NamedTuple):
    """What makes a series of frames of its own; `repetition` is 0 where repetitions are the frames."""

    encoding: int
    repetition: int
    set: int
    contrast: int
    slice: int


@dataclass(frozen=True)
class CompleteSlice:
    """A slice that is ready to be reconstructed."""

    key: SliceKey
    """Which one."""
    cine: CineSlice
    """Its k-space."""
    headers: NDArray[np.void]
    """``(frame,)`` of the acquisition header: for every frame that of the readout nearest to the k-space centre."""
    heartbeat: Heartbeat
    """When in the heartbeat the frames were measured."""
    frames: NDArray[np.intp]
    """``(frame,)`` the counter value of every frame."""
    lines: NDArray[np.intp]
    """``(frame,)`` how many lines each frame has."""
    notes: tuple[str, ...] = ()
    """What a reader of the images must know: frames and lines that are missing."""
    compression: NDArray[np.complex64] | None = None
    """``(virtual coil, coil)`` complex64 that made the coils of the k-space from those of the readouts, or None."""
    stamps: NDArray[np.uint32] | None = None
    """``(frame, stamp, 2)`` least and greatest time stamps of the readouts of every frame, in ticks: that of the
    acquisition, then three of the physiology. None where a frame is of readouts of many beats."""
    meta: Mapping[str, object] = field(default_factory=dict)
    """Further attributes of the images."""
    gating: Gating | None = None
    """How the frames were made from readouts of many beats; None where they are those of a counter."""
    running: RunningMaps | None = None
    """Coil maps of a series in windows of frames: `headers`, `frames` and `lines` are then of the frames after
    the context of the k-space. None for a whole slice, and off the grid, where `cine.series` has them."""

    @property
    def is_window(self) -> bool:
        """Whether it is a window of a series in real time, on the grid or off it."""
        return self.running is not None or self.cine.series is not None


def describe(key: SliceKey) -> str:
    """Name a slice in a sentence."""
    others = [f"{name} {getattr(key, name)}" for name in ("contrast", "set", "repetition") if getattr(key, name)]
    return ", ".join([f"slice {key.slice}", *others])
