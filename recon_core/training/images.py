"""Images that a network makes of measured series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.inference.fusion import settled
from recon_core.inference.windows import over_windows

if TYPE_CHECKING:
    import torch

    from recon_core.networks.base import Network
    from recon_core.training.measurements import Measurement


def reconstruct_series(network: Network, scan: Measurement) -> torch.Tensor:
    """Reconstruct a whole scan from its start, in windows where the network takes a fixed number of frames."""
    data, n_frames = scan.slice(), len(scan.mask)
    window = min(max(n_frames, network.minimum_frames), network.maximum_frames or n_frames)

    def reconstruct(frames: torch.Tensor) -> torch.Tensor:
        return network.reconstruct(data.select_started(frames))

    return over_windows(reconstruct, n_frames, window, scan.hybrid.device)


def settle_series(scan: Measurement, image: torch.Tensor) -> torch.Tensor:
    """Settle what a network made of a scan, as what is sent; without a start of known error it stays as it is."""
    return image if scan.start_deviation is None else settled(scan.slice(), image)
