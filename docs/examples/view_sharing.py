"""View sharing: a line that a frame lacks is taken from the frame nearest in time that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.physics.fourier import ifft

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import ReconOptions


class ViewSharing:
    """A sliding window over the frames, as wide as each line needs it; lines that no frame has stay empty.

    Parameters
    ----------
    options
        All options of the scan; none is used here.
    """

    def __init__(self, options: ReconOptions) -> None:
        del options

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice: ``(frame, y, x)`` complex64 in the units of the data."""
        frames = torch.arange(len(data.mask), device=data.mask.device)
        distance = (frames[:, None] - frames).abs()
        if data.periodic:  # the first frame follows on the last
            distance = torch.minimum(distance, len(frames) - distance)
        # (frame, other frame, ky): how far away a line is, and infinitely far where it was not measured
        far = distance[:, :, None].where(data.mask[None], len(frames) + 1)
        nearest = far.argmin(1)  # (frame, ky)
        lines = torch.arange(data.mask.shape[1], device=data.mask.device)
        shared = data.hybrid[nearest, :, lines].movedim(1, 2)  # (frame, coil, ky, x)
        missing = int((~data.mask.any(0)).sum())
        if missing:
            data.notes.append(f"{missing} lines were measured in no frame")
        return (data.maps.conj() * ifft(shared, (-2,))).sum(1)


METHOD = ViewSharing
