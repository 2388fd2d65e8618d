"""The Dual U-Net with 3-D ResNet, unrolled: several of them, each followed by data consistency."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from recon_core.networks.base import zero_without_signal
from recon_core.networks.dual_unet_resnet3d import DephasedNetwork, FusionResNet, UNet, unet_bytes, unet_key

if TYPE_CHECKING:
    from recon_core.physics.consistency import DataConsistency

_AUTHORS_NAMES = {
    "unet_real.": "unet1_blocks.{}.",
    "unet_imag.": "unet2_blocks.{}.",
    "resnet.": "resnet_blocks.{}.",
    "lam": "dc_layers.{}.lam",
}


@dataclass(frozen=True, kw_only=True)
class UnrolledResNet3DConfig:
    """Settings of `UnrolledResNet3D`; the defaults are those of the published work."""

    cascades: int = 3
    """Passes of networks and data consistency, each with its own weights; 3 or 2 in the paper."""
    frames: int = 20
    """Frames of the series, which are channels of the network: it takes just as many."""
    features: int = 64
    """Feature maps of the U-Nets at full size."""
    planes: int = 32
    """Feature maps of the residual network."""
    signed_outputs: bool = False
    """Real and imaginary parts of a cascade lie between -1 and 1, ``2 sigmoid - 1``; set it to train on images with
    phase. As published they lie between 0 and 1, which leaves phases of 0 to 90 degrees only: enough for the
    real images of that work, and wrong for measured ones."""
    fusion: Literal["none", "resnet"] = "resnet"
    """``resnet``: as published, a residual network at half the resolution makes the two parts out of the magnitude of
    what the U-Nets give; ``none``: the U-Nets give the parts, as in the best variant of the Dual U-Net."""
    residual: bool = False
    """The networks give the change of the image, between -1 and 1. Not published; the identity need not be learned, so
    a short training gets much further."""
    dropout: float = 0.3
    """Share of the features that are left out at random, in training only."""


class Cascade(nn.Module):
    """Two U-Nets, fusion, and the weight of the data consistency that follows.

    Parameters
    ----------
    config
        Settings of the network.
    """

    def __init__(self, config: UnrolledResNet3DConfig) -> None:
        super().__init__()
        self._signed = config.signed_outputs or config.residual
        self._residual = config.residual
        self._fuses = config.fusion == "resnet"
        self.unet_real, self.unet_imag = (UNet(config.frames, config.features, config.dropout) for _ in range(2))
        if self._fuses:
            self.resnet = FusionResNet(config.frames, config.planes, 2 * config.frames)
        self.lam = nn.Parameter(torch.ones(()))

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Improve ``(batch, frame, y, x)`` complex64."""
        real, imaginary = self.unet_real(series.real), self.unet_imag(series.imag)
        if self._fuses:
            parts = self.resnet(torch.hypot(real, imaginary))
            real, imaginary = parts[:, ::2], parts[:, 1::2]
        if self._signed:
            real, imaginary = 2 * real - 1, 2 * imaginary - 1
        result = torch.complex(real, imaginary)
        return series + result if self._residual else result


class UnrolledResNet3D(DephasedNetwork):
    """Unrolled Dual U-Net with 3-D ResNet and data consistency.

    github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction (2025), a course project without a paper or published
    weights. 190 112 523 parameters. Data consistency is soft, ``(k + lambda y) / (1 + lambda)`` at the measured
    samples, with a trained lambda in every cascade.

    Parameters
    ----------
    config
        Its settings; None takes those of the work.

    Notes
    -----
    Frames, sizes, scale and speed are as in `recon_core.networks.dual_unet_resnet3d.DualUNetResNet3D`. The result is
    the complex image after the last data consistency; the published one, and its loss, is the magnitude of it. A
    cascade has no connection around the fusion, which works at half the resolution; only the measured samples restore
    the rest. With several coils the data consistency is a gradient step in the image that they share, see
    `recon_core.physics.consistency.DataConsistency.weighted`. A series without any signal is returned as zeros.
    """

    Config = UnrolledResNet3DConfig

    def __init__(self, config: UnrolledResNet3DConfig | None = None) -> None:
        self.config = config = config or UnrolledResNet3DConfig()
        super().__init__(config.frames)
        self.cascades = nn.ModuleList(Cascade(config) for _ in range(config.cascades))

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        return unet_key(
            re.sub(
                r"^cascades\.(\d+)\.(unet_real\.|unet_imag\.|resnet\.|lam$)",
                lambda found: _AUTHORS_NAMES[found[2]].format(found[1]),
                key,
            )
        )

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`."""
        result = image
        for cascade in self.cascades:
            result = cascade(self._series(result)).reshape(image.shape)
            result = consistency.weighted(result, cascade.lam)  # type: ignore[arg-type]
        return zero_without_signal(result, image, consistency)

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        n_frames, _, n_y, n_x = shape
        # In the data consistency: what comes out of the cascade, and the same with y contiguous.
        images = 2 * 8 * n_frames * n_y * n_x
        return images + self._bytes_around(shape, unet_bytes(self.config.frames, self.config.features, n_y, n_x))
