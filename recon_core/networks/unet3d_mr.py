"""3D UNet-MR: CRUNet-MR with 3-D convolutions in the place of its recurrent units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from recon_core.errors import ModelError
from recon_core.networks.base import ImageNetwork
from recon_core.networks.blocks import around, portions, split_frames
from recon_core.networks.crunet_mr import Cascade, States, cascade_bytes
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from recon_core.physics.consistency import DataConsistency


@dataclass(frozen=True, kw_only=True)
class UNet3DMRConfig:
    """Settings of `UNet3DMR`."""

    cascades: int = 5
    """Number of cascades: a U-Net with its own weights improves the image, then measured samples are put back."""
    channels: int = 64
    """Feature maps at every level."""
    dilations: tuple[int, int, int] = (1, 2, 4)
    """Of the convolutions at full resolution, at half resolution, and at the bottom, in pixels."""
    bottleneck_kernel: int = 1
    """Side of the 3-D convolution at the bottom: 1 gives the published number of parameters, 3 is the paper's."""

    def __post_init__(self) -> None:
        """Refuse a kernel that does not keep the size.

        Raises
        ------
        ModelError
            If it is neither 1 nor 3.
        """
        if self.bottleneck_kernel not in (1, 3):
            raise ModelError(f"bottleneck_kernel must be 1 or 3, got {self.bottleneck_kernel}")


class PeriodicConvolution(nn.Module):
    """A 3-D convolution, periodic over the frames, and ReLU.

    Parameters
    ----------
    channels
        Of input and result.
    dilation
        In rows and columns.
    kernel
        1 or 3.

    Notes
    -----
    2-D convolutions of a frame give what it contributes to itself and to its neighbours. The 3-D convolution of torch
    is a little faster on a CPU where it takes oneDNN (measured: 13 %); where it does not, with small images, it takes
    27 times the memory of the features.
    """

    def __init__(self, channels: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self._dilation = dilation
        self.conv3d = nn.Conv3d(channels, channels, kernel)

    def forward(self, features: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        """Convolve ``(batch, frame, channel, row, column)``; there is no state."""
        n_batch, n_frames = features.shape[:2]
        taps = self.conv3d.weight.unbind(2)
        reach = len(taps) // 2
        result, done = torch.empty(0), 0
        for (images,) in portions(features):
            for shift, weight in zip(range(reach, -reach - 1, -1), taps, strict=True):
                padding = self._dilation * reach
                share = functional.conv2d(images, weight, padding=padding, dilation=self._dilation)
                if not result.numel():
                    bias = self.conv3d.bias[:, None, None].to(share.dtype)  # type: ignore[index]
                    shape = n_batch * n_frames, *share.shape[1:]
                    result = bias.expand(shape).contiguous(memory_format=torch.channels_last)
                for place, part in around((done + shift) * n_batch, len(images), len(result)):
                    result[place].add_(share[part])
            done += len(images) // n_batch
        return split_frames(result.relu_(), n_frames)


class UNet3DMR(ImageNetwork):
    """3D UNet-MR: the baseline to which the paper of CRUNet-MR compares it.

    Lyu et al., "Convolutional recurrent U-net for cardiac cine MRI reconstruction via effective spatio-temporal feature
    exploitation". The paper describes it in a sentence, and its code was not published: this is our interpretation, not
    a reproduction, and no published result is claimed for it. 4,002,250 parameters; 4,534,730 with a
    `bottleneck_kernel` of 3.

    Parameters
    ----------
    config
        Its settings; None takes those that meet the published number of parameters, 4.00 million.

    Notes
    -----
    Every recurrent unit of `recon_core.networks.crunet_mr.CRUNetMR` is a 3-D convolution with ReLU, and only the image
    is passed from cascade to cascade; everything else is kept. All operations over time are periodic, so that the
    choice of the first frame does not matter. 448,768 multiplications per pixel, frame and cascade, none of which has
    to wait for another frame.
    """

    Config = UNet3DMRConfig
    scale = "free"

    def __init__(self, config: UNet3DMRConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNet3DMRConfig()
        self.cascades = nn.ModuleList(self._cascade(config) for _ in range(config.cascades))

    @staticmethod
    def _cascade(config: UNet3DMRConfig) -> Cascade:
        full, half, bottom = config.dilations
        units = [PeriodicConvolution(config.channels, dilation) for dilation in (full, half, bottom, half, full)]
        units[2] = PeriodicConvolution(config.channels, bottom, config.bottleneck_kernel)
        return Cascade(config.channels, config.dilations, units)

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`."""
        for cascade in self.cascades:
            image = consistency.hard(cascade(image.mT, States())[0].mT)
        return image

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        device = next(self.parameters()).device
        return predicted_bytes("consistency", shape) + cascade_bytes(shape, self.config.channels, 4, device)
