"""A small unrolled network: 3-D convolutions over frames and space, and data consistency after each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from recon_core.networks.base import ImageNetwork
from recon_core.networks.blocks import to_channels, to_complex
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from recon_core.physics.consistency import DataConsistency


@dataclass(frozen=True, kw_only=True)
class SmallUnrolledConfig:
    """Settings of `SmallUnrolled`, for ``--config`` of import-weights and ``network`` of a training plan.

    Parameters
    ----------
    cascades
        Times that the image is improved and made consistent with the data.
    channels
        Feature maps of every layer.
    """

    cascades: int = 4
    channels: int = 16


class SmallUnrolled(ImageNetwork):
    """Cascades of a residual 3-D convolutional denoiser and of data consistency.

    Parameters
    ----------
    config
        Its settings; None takes the defaults.
    """

    Config = SmallUnrolledConfig
    scale = "peak"  # its biases want images with a peak of about one

    def __init__(self, config: SmallUnrolledConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SmallUnrolledConfig()
        self.denoisers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(2, config.channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv3d(config.channels, 2, 3, padding=1),
            )
            for _ in range(config.cascades)
        )

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image ``(frame, y, x)`` or ``(batch, frame, y, x)`` complex64."""
        for denoiser in self.denoisers:
            series = to_channels(image.reshape(-1, *image.shape[-3:]))  # (batch, frame, 2, y, x)
            change = denoiser(series.transpose(1, 2)).transpose(1, 2)
            image = consistency.hard(image + to_complex(change).reshape(image.shape))
        return image

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that it takes: the feature maps of a layer and what they are made from."""
        frames, _, rows, columns = shape
        return predicted_bytes("consistency", shape) + 3 * 4 * self.config.channels * frames * rows * columns


METHOD = SmallUnrolled
