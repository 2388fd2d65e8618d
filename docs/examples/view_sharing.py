"""View sharing: a line that a frame lacks is taken from the frame nearest in time that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recon_core.options import Options, option
from recon_core.physics.fourier import ifft

if TYPE_CHECKING:
    from recon_core.data import HybridSlice


@dataclass(frozen=True, kw_only=True)
class ViewSharingOptions(Options):
    """Options of view sharing."""

    reach: int = option(0, "how many frames away a line may be taken from; 0 takes the nearest, however far", minimum=0)


class ViewSharing:
    """A sliding window over the frames, as wide as each line needs it; lines that no frame has stay empty.

    Parameters
    ----------
    options
        Its options.
    """

    Options = ViewSharingOptions

    def __init__(self, options: ViewSharingOptions) -> None:
        self._reach = options.reach

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice: ``(frame, y, x)`` complex64 in the units of the data."""
        frames = torch.arange(len(data.mask), device=data.mask.device)
        distance = (frames[:, None] - frames).abs()
        if data.periodic:  # the first frame follows on the last
            distance = torch.minimum(distance, len(frames) - distance)
        # (frame, other frame, ky): how far away a line is, and infinitely far where it was not measured
        far = distance[:, :, None].where(data.mask[None], len(frames) + 1)
        away, nearest = far.min(1)  # (frame, ky)
        lines = torch.arange(data.mask.shape[1], device=data.mask.device)
        shared = data.hybrid[nearest, :, lines].movedim(1, 2)  # (frame, coil, ky, x)
        empty = away > (self._reach or len(frames))
        shared = shared.where(~empty[:, None, :, None], 0)
        if bool(empty.any()):
            data.notes.append(f"{int(empty.sum())} lines are in no frame near enough")
        return (data.maps.conj() * ifft(shared, (-2,))).sum(1)


METHOD = ViewSharing
