"""CineNet: a denoiser of the dynamics in space-time planes, alternating with conjugate gradients."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import nn
from torch.nn import functional

from recon_core.errors import SettingsError
from recon_core.networks.base import ImageNetwork, zero_without_signal
from recon_core.networks.blocks import PORTION_BYTES, to_channels, to_complex
from recon_core.networks.crnn_mri import RecurrentDenoiser, recurrence_key, recurrent_bytes
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recon_core.physics.consistency import DataConsistency

DynamicType = Literal["XF", "XT", "2D", "3D", "CRNN"]


@dataclass(frozen=True, kw_only=True)
class CineNetConfig:
    """Settings of `CineNet`; the defaults are those of the published constructor."""

    cascades: int = 12
    """Times that the image is denoised and made consistent with the data."""
    cg_iterations: int = 4
    """Steps of conjugate gradients in every cascade."""
    channels: int = 18
    """Feature maps of the first level of the U-Nets, doubled from level to level; or of every layer of the recurrent
    denoiser."""
    pools: int = 4
    """Levels of the U-Nets."""
    dynamic_type: DynamicType = "XF"
    """The denoiser. ``XF``: 2-D U-Nets in the planes of x and of y with the temporal frequency, without the temporal
    mean; ``XT``: the same with time; ``2D``: a U-Net on every frame; ``3D``: a U-Net on the series; ``CRNN``: that
    of CRNN-MRI, with one lambda for all cascades."""
    weight_sharing: bool = False
    """One U-Net for the planes of x and those of y, of ``XF`` and ``XT``."""
    constant_steps: bool = True
    """Training takes the step sizes of the conjugate gradients for constants, as published. False differentiates
    them."""


class CineNet(ImageNetwork):
    """CineNet for Cartesian sampling and several coils.

    Kofler et al., Med Phys 2021, doi:10.1002/mp.14809, in the Cartesian form of
    github.com/f78bono/deep-cine-cardiac-mri. 4,908,688 parameters; 962,190 as trained there (10 cascades, 6 steps, 16
    channels, 3 levels).

    Parameters
    ----------
    config
        Its settings; None takes the published ones.

    Raises
    ------
    SettingsError
        If there is no such denoiser.

    Notes
    -----
    The denoiser has the same weights in all cascades and its result replaces the image; the data enter by
    ``min ||A x - y||^2 + lambda ||x - denoised||^2``, a few steps of conjugate gradients with step sizes for all frames
    together. The authors' checkpoints list the denoiser once more under every cascade, and so does this network.

    Differs from the published code in its cost, and in separate step sizes for the entries of a batch. The
    published code fails where the last level of a U-Net has one pixel, because the instance normalisation needs two;
    here the planes are then padded with zeros to two pixels along every axis of that level. Planes of two or three
    pixels there (fewer than 32 frames and 64 pixels with four levels) are as published: taken, but instance
    normalisation of so few makes the result erratic. A series without any signal is returned as zeros.
    """

    Config = CineNetConfig
    scale = "peak"

    def __init__(self, config: CineNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CineNetConfig()
        self.model = _denoiser(config)
        if config.dynamic_type == "CRNN":
            self.cascades = nn.ModuleList([_Cascade(self.model)] * config.cascades)
        else:
            self.cascades = nn.ModuleList(_Cascade(self.model) for _ in range(config.cascades))

    @property
    def minimum_frames(self) -> int:
        """Frames that it needs at least; the cycle of a shorter series is repeated."""
        return 2**self.config.pools if self.config.dynamic_type in ("XF", "XT", "3D") else 1

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        if self.config.dynamic_type == "CRNN":
            return recurrence_key(re.sub(r"^(cascades\.\d+\.)?(model\.)?", "", key))
        if isinstance(self.model, _PlaneDenoiser) and len(self.model.unets) == 2:
            key = key.replace("model.unets.", "model.")
        else:
            key = key.replace("model.unets.0.", "model.")
        key = re.sub(r"(up_transpose_conv\.\d+)", r"\1.layers.0", key)
        return key.replace(".first.", ".layers.0.").replace(".second.", ".layers.4.")

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`."""
        result = image
        states: dict[tuple[int, int], torch.Tensor] = {}
        for cascade in self.cascades:
            denoised = self.model(result, states)
            result = consistency.solve(
                denoised,
                functional.softplus(cast("_Cascade", cascade).lambda_reg),
                self.config.cg_iterations,
                joint=True,
                constant_steps=self.config.constant_steps,
            )
        return zero_without_signal(result, image, consistency)

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        n_frames, _, n_y, n_x = shape
        config, image_bytes = self.config, 8 * n_frames * n_y * n_x
        if config.dynamic_type == "CRNN":
            denoising = recurrent_bytes(config.channels, shape)
        else:
            inputs: list[tuple[int, tuple[int, ...]]] = [(n_y, (n_x, n_frames)), (n_x, (n_y, n_frames))]
            if config.dynamic_type == "2D":
                inputs = [(n_frames, (n_y, n_x))]
            elif config.dynamic_type == "3D":
                inputs = [(1, (n_frames, n_y, n_x))]
            denoising = 6 * image_bytes + max(_unet_bytes(config, count, size) for count, size in inputs)
        solving = predicted_bytes("consistency_solve", shape) + 2 * image_bytes
        return max(solving, predicted_bytes("consistency", shape) + denoising)


class _Cascade(nn.Module):
    """The denoiser that all cascades share, and the weight of its result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.lambda_reg = nn.Parameter(torch.full((1,), math.log(math.e - 1)))


class _PlaneDenoiser(nn.Module):
    """U-Nets in the planes of x and y with time, or with its frequency, on what changes over time."""

    def __init__(self, channels: int, pools: int, *, frequency: bool, weight_sharing: bool) -> None:
        super().__init__()
        self._frequency = frequency
        self.unets = nn.ModuleList(_UNet(channels, pools, 2) for _ in range(1 if weight_sharing else 2))

    def forward(self, image: torch.Tensor, _: object) -> torch.Tensor:
        series = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 2, 1).contiguous()  # (batch, x, y, frame)
        mean = series.mean(-1, keepdim=True)
        dynamics = series - mean
        if self._frequency:
            dynamics = fft(dynamics, (-1,))
        of_x = self._in_planes(self.unets[0], dynamics.transpose(1, 2)).transpose(1, 2)
        of_y = self._in_planes(self.unets[-1], dynamics)
        dynamics = 0.5 * (of_x + of_y)
        if self._frequency:
            dynamics = ifft(dynamics, (-1,))
        return (dynamics + mean).permute(0, 3, 2, 1).reshape(image.shape)

    @staticmethod
    def _in_planes(unet: nn.Module, dynamics: torch.Tensor) -> torch.Tensor:
        """Apply a U-Net to the last two axes of four."""
        return to_complex(unet(to_channels(dynamics).flatten(0, 1))).reshape(dynamics.shape)


class _FrameDenoiser(nn.Module):
    """A U-Net on every frame."""

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.unets = nn.ModuleList([_UNet(channels, pools, 2)])

    def forward(self, image: torch.Tensor, _: object) -> torch.Tensor:
        frames = image.reshape(-1, *image.shape[-2:])
        return to_complex(self.unets[0](to_channels(frames))).reshape(image.shape)


class _SeriesDenoiser(nn.Module):
    """A U-Net on frames and image axes at once."""

    def __init__(self, channels: int, pools: int) -> None:
        super().__init__()
        self.unets = nn.ModuleList([_UNet(channels, pools, 3)])

    def forward(self, image: torch.Tensor, _: object) -> torch.Tensor:
        series = to_channels(image.reshape(-1, *image.shape[-3:])).transpose(1, 2)
        return to_complex(self.unets[0](series).transpose(1, 2)).reshape(image.shape)


class _UNet(nn.Module):
    """U-Net of two or three dimensions with instance normalisation, from two channels to two."""

    def __init__(self, channels: int, pools: int, n_axes: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[n_axes - 2]
        up_convolution = (nn.ConvTranspose2d, nn.ConvTranspose3d)[n_axes - 2]
        self._pool = (functional.avg_pool2d, functional.avg_pool3d)[n_axes - 2]
        self._channels, self._pools = channels, pools
        widths = [channels << level for level in range(pools + 1)]
        self.down_sample_layers = nn.ModuleList(
            _Block(convolution, before, after) for before, after in zip([2, *widths], widths[:-1], strict=False)
        )
        self.conv = _Block(convolution, widths[-2], widths[-1])
        self.up_transpose_conv = nn.ModuleList(
            up_convolution(2 * width, width, 2, stride=2, bias=False) for width in widths[-2::-1]
        )
        self.up_conv = nn.ModuleList(_Block(convolution, 2 * width, width) for width in widths[-2::-1])
        self.up_conv[-1] = nn.Sequential(self.up_conv[-1], convolution(channels, 2, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Transform ``(image, 2, ...)``, of any size; every image separately."""
        size = images.shape[2:]
        images = images.contiguous()  # channels first, as the normalisation needs them
        padded = _large_enough(size, self._pools)
        images = _lengthen(images, [wanted - length for wanted, length in zip(padded, size, strict=True)])
        portion = _portion(self._channels, padded, images.device.type)
        results = torch.cat([self._transform(part) for part in images.split(portion)])  # type: ignore[no-untyped-call]
        for axis, length in enumerate(size, 2):
            results = results.narrow(axis, 0, length)
        return results

    def _transform(self, features: torch.Tensor) -> torch.Tensor:
        skipped = []
        for down in self.down_sample_layers:
            features = down(features)
            skipped.append(features)
            features = self._pool(features, 2)
        features = self.conv(features)
        for up, block in zip(self.up_transpose_conv, self.up_conv, strict=True):
            features, skip = _normalise(up(features)), skipped.pop()
            lacking = [wanted - length for wanted, length in zip(skip.shape[2:], features.shape[2:], strict=True)]
            features = torch.cat((_lengthen(features, lacking), skip), 1)
            del skip  # it is as large as any
            features = block(features)
        return features


class _Block(nn.Module):
    """Two convolutions, each with normalisation and activation."""

    def __init__(self, convolution: type[nn.Conv2d | nn.Conv3d], before: int, after: int) -> None:
        super().__init__()
        self.first = convolution(before, after, 3, padding=1, bias=False)
        self.second = convolution(after, after, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return _normalise(self.second(_normalise(self.first(features))))


def _normalise(features: torch.Tensor) -> torch.Tensor:
    """Instance normalisation and activation."""
    return functional.leaky_relu_(functional.instance_norm(features.float()), 0.2)


def _large_enough(size: Sequence[int], pools: int) -> Sequence[int]:
    """Size with two pixels or more along every axis of the last level; the same where that has two in all."""
    if math.prod(length >> pools for length in size) >= 2:
        return size
    return [max(length, 2 << pools) for length in size]


def _portion(channels: int, size: Sequence[int], device: str) -> int:
    """Number of images that go through a U-Net together; on a CPU twice as fast as all at once."""
    budget = PORTION_BYTES.get(device, PORTION_BYTES["cuda"])
    return max(1, budget // max(1, 4 * channels * math.prod(size)))


def _unet_bytes(config: CineNetConfig, count: int, size: Sequence[int]) -> int:
    """Predict what a U-Net takes at its peak for that many images, in bytes."""
    size = _large_enough(size, config.pools)
    pixels = math.prod(size) * min(count, _portion(config.channels, size, "cpu"))
    level, kernels = 4 * config.channels * pixels, 4 * 9 * (config.channels << config.pools) ** 2
    if len(size) == 2:
        # The first level: features of both sides and two results. Torch keeps a copy of the kernels in another order.
        return 5 * level + 2 * kernels
    # In small volumes torch unfolds the 27 neighbours of every pixel (seen up to 1.2 million numbers).
    unfolded = 4 * 27 * min(2 * config.channels * pixels, 1_250_000)
    return max(9 * level, 4 * level + unfolded) + 3 * 2 * kernels


def _lengthen(features: torch.Tensor, lacking: list[int]) -> torch.Tensor:
    """Append zeros to the axes behind the first two."""
    if not any(lacking):
        return features
    return functional.pad(features, [number for length in reversed(lacking) for number in (0, length)])


def _denoiser(config: CineNetConfig) -> nn.Module:
    """Make the denoiser of that name."""
    channels, pools = config.channels, config.pools
    if config.dynamic_type in ("XF", "XT"):
        frequency = config.dynamic_type == "XF"
        return _PlaneDenoiser(channels, pools, frequency=frequency, weight_sharing=config.weight_sharing)
    makers: dict[str, Callable[[], nn.Module]] = {
        "2D": lambda: _FrameDenoiser(channels, pools),
        "3D": lambda: _SeriesDenoiser(channels, pools),
        "CRNN": lambda: RecurrentDenoiser(channels),
    }
    if config.dynamic_type not in makers:
        raise SettingsError(
            f"dynamic_type must be one of {', '.join(get_args(DynamicType))}; got {config.dynamic_type}"
        )
    return makers[config.dynamic_type]()
