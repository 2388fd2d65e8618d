"""The score network of dSTDM: a U-Net that sees one plane of time and space, and the level of the noise in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional

# Feature maps of full resolution that are alive at the peak, in units of the first width; measured, see `slice_bytes`.
_ALIVE = 14
# Feature maps that go through the network together: on the CPU few enough for its caches (measured: 1.3x faster than
# 64 MB), on a GPU enough to fill it.
_PORTION_BYTES = {"cpu": 16 << 20, "cuda": 4 << 30}
_GROUPS = 32
_LONGEST_PERIOD = 10000.0
# The label of the preconditioned network is the logarithm of the noise level times this: adjacent steps of the samplers
# then differ by about one radian of the fastest oscillation of the embedding.
_LABEL_SCALE = 10.0

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `ScoreNetwork`; the defaults are the published ones."""

    channels: int = 128
    """Feature maps at full resolution, a multiple of 32 (``nf``)."""
    channel_factors: tuple[int, ...] = (1, 2, 2)
    """Feature maps of every resolution, in multiples of `channels`; each resolution has half the rows and columns of
    the one before."""
    blocks: int = 2
    """Residual blocks per resolution on the way down; one more on the way up."""
    parametrisation: Literal["score", "edm"] = "score"
    """``score``: the output is the score, as published. ``edm``: input and output are scaled with the noise level, so
    that the network always sees and predicts numbers about one; what to train with (Karras et al., NeurIPS 2022,
    doi:10.48550/arXiv.2206.00364)."""
    data_deviation: float = 0.2
    """``edm``: standard deviation of real or imaginary part of the images, which have a peak of about one."""
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    """`sigma_min`, `sigma_max`: Noise levels that it was trained for, standard deviation of real or imaginary part."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation over one slice, in float32 whatever the precision of the features."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels, eps=1e-6)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise ``(slice, channel, row, column)``."""
        # not the module's own function, which refuses a slice that has come down to one pixel
        normal = torch.group_norm(features.float(), self.num_groups, self.weight, self.bias, self.eps)
        return normal.to(features.dtype)


class ChannelMix(nn.Module):
    """A linear map of the channels of every pixel.

    Its weight is ``(in, out)``, as in the authors' checkpoints.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_in, n_out), gain=0.1**0.5))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Mix ``(slice, channel, row, column)``."""
        return functional.conv2d(features, self.weight.mT[..., None, None], self.bias)


class ResidualBlock(nn.Module):
    """Two normalised convolutions, the noise level between them, and a shortcut around."""

    def __init__(self, n_in: int, n_out: int, n_level: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(n_in)
        self.conv1 = _convolution(n_in, n_out)
        self.level = _linear(n_level, n_out)
        self.norm2 = GroupNorm(n_out)
        self.conv2 = _convolution(n_out, n_out, gain=1e-5)
        self.shortcut = nn.Identity() if n_in == n_out else ChannelMix(n_in, n_out)

    def forward(self, features: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """From ``(slice, in, row, column)`` and level ``(slice or 1, n_level)`` to ``(slice, out, row, column)``."""
        branch = self.conv1(functional.silu(self.norm1(features), inplace=True)) + self.level(level)[..., None, None]
        branch = self.conv2(functional.silu(self.norm2(branch), inplace=True))
        result: torch.Tensor = self.shortcut(features) + branch
        return result


class Down(nn.Module):
    """Half the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _convolution(channels, channels, stride=2, padding=0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Halve ``(slice, channel, row, column)``; the zeros for the last row and column stand at the end only."""
        result: torch.Tensor = self.conv(functional.pad(features, (0, 1, 0, 1)))
        return result


class Up(nn.Module):
    """Twice the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _convolution(channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Double ``(slice, channel, row, column)``."""
        result: torch.Tensor = self.conv(functional.interpolate(features, scale_factor=2.0, mode="nearest"))
        return result


class ScoreNetwork(nn.Module):
    """Estimate the score: the direction in which noisy images become more likely, ``-noise / sigma^2`` on average.

    Parameters
    ----------
    config
        Its settings; None takes the published ones, 24,254,210 parameters (6,073,218 with 64 channels, 1,523,138 with
        32).

    Notes
    -----
    Wang et al., IEEE Trans Comput Imaging 2025, doi:10.1109/TCI.2025.3598421; a U-Net of residual blocks as in Song et
    al., ICLR 2021, doi:10.48550/arXiv.2011.13456, without attention. Slices are normalised one by one, so they may be
    computed in any portions.

    Published as it is: the input is doubled and one is subtracted at every noise level, from the imaginary part too,
    and the label of the level is sigma itself, which the embedding hardly distinguishes below 0.1. ``edm`` undoes both.
    """

    def __init__(self, config: ScoreConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ScoreConfig()
        widths = [config.channels * factor for factor in config.channel_factors]
        n_level = 4 * config.channels
        self.embedding = nn.ModuleList((_linear(config.channels, n_level), _linear(n_level, n_level)))
        self.first = _convolution(2, config.channels)
        skips = [config.channels]
        encoder: list[nn.Module] = []
        width = config.channels
        for i, n_out in enumerate(widths):
            if i:
                encoder.append(Down(width))
                skips.append(width)
            for _ in range(config.blocks):
                encoder.append(ResidualBlock(width, n_out, n_level))
                skips.append(n_out)
                width = n_out
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList(ResidualBlock(width, width, n_level) for _ in range(2))
        decoder: list[nn.Module] = []
        for i, n_out in enumerate(reversed(widths)):
            if i:
                decoder.append(Up(width))
            for _ in range(config.blocks + 1):
                decoder.append(ResidualBlock(width + skips.pop(), n_out, n_level))
                width = n_out
        self.decoder = nn.ModuleList(decoder)
        self.norm = GroupNorm(width)
        self.last = _convolution(width, 2, gain=1e-5)

    @property
    def multiple(self) -> int:
        """Rows and columns must be a multiple of this in `forward`."""
        return int(2 ** (len(self.config.channel_factors) - 1))

    def forward(self, slices: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Estimate the score.

        Parameters
        ----------
        slices
            ``(slice, 2, frame, position)`` float32, real and imaginary part; peak of the image about one. Frames and
            positions in multiples of `multiple`; see `evaluate`.
        sigma
            Standard deviation of the noise in each part, ``(slice,)`` or ``(1,)`` float32.

        Returns
        -------
        torch.Tensor
            Shape of `slices`, float32.
        """
        if self.config.parametrisation == "score":
            return self._features(slices, sigma).float()
        # With D the expected image, score = (D - x) / sigma^2, and D = x d^2 c^2 + F(c x) sigma d c.
        deviation = self.config.data_deviation
        level = sigma[:, None, None, None]
        scale = (level.square() + deviation**2).rsqrt()
        features = self._features((scale * slices + 1) / 2, _LABEL_SCALE * sigma.log())
        return deviation * scale / level * features.float() - scale.square() * slices

    def evaluate(self, slices: torch.Tensor, sigma: torch.Tensor, portion_bytes: int | None = None) -> torch.Tensor:
        """Estimate the score for any number of frames and positions, in portions that bound the memory.

        Parameters
        ----------
        slices
            ``(slice, 2, frame, position)`` float32. Frames are periodic; positions are mirrored at the far edge.
        sigma
            ``(1,)`` float32.
        portion_bytes
            Memory for features; None takes what is fast on the device. At least one slice is always taken.

        Returns
        -------
        torch.Tensor
            Shape of `slices`, float32.
        """
        n_frames, n_positions = slices.shape[-2:]
        frames = _padded(n_frames, self.multiple, slices.device, period=n_frames)
        positions = _padded(n_positions, self.multiple, slices.device, period=max(1, 2 * (n_positions - 1)))
        positions = torch.minimum(positions, 2 * (n_positions - 1) - positions).abs()
        if portion_bytes is None:
            portion_bytes = _PORTION_BYTES.get(slices.device.type, _PORTION_BYTES["cuda"])
        n_slices = max(1, portion_bytes // self.slice_bytes(n_frames, n_positions))
        scores = torch.empty_like(slices, memory_format=torch.contiguous_format)
        for first in range(0, len(slices), n_slices):
            part = slices[first : first + n_slices]
            if len(frames) > n_frames:
                part = part[:, :, frames]
            if len(positions) > n_positions:
                part = part[..., positions]
            scores[first : first + n_slices] = self(part, sigma)[..., :n_frames, :n_positions]
        return scores

    def slice_bytes(self, n_frames: int, n_positions: int) -> int:
        """Predict the memory that one slice takes at the peak of `evaluate`, in float32."""
        multiple = self.multiple
        pixels = math.ceil(n_frames / multiple) * math.ceil(n_positions / multiple) * multiple**2
        return _ALIVE * self.config.channels * 4 * pixels

    def peak_bytes(self, n_slices: int, n_frames: int, n_positions: int, device: str) -> int:
        """Predict the memory that `evaluate` takes for features at its peak."""
        each = self.slice_bytes(n_frames, n_positions)
        return min(n_slices * each, max(each, _PORTION_BYTES.get(device, _PORTION_BYTES["cuda"])))

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        part, _, rest = key.partition(".")
        index = 0
        if part in ("embedding", "encoder", "middle", "decoder"):
            place, _, rest = rest.partition(".")
            index = int(place)
        for other in ("embedding", "first", "encoder", "middle", "decoder", "norm", "last"):
            if other == part:
                break
            module = getattr(self, other)
            index += len(module) if isinstance(module, nn.ModuleList) else 1
        name, dot, leaf = rest.rpartition(".")
        if name == "shortcut":
            leaf = {"weight": "W", "bias": "b"}[leaf]
        return f"all_modules.{index}.{_AUTHORS_NAMES[name]}{dot}{leaf}"

    def _features(self, slices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The U-Net, from input and label to output."""
        first, second = self.embedding
        level = functional.silu(second(functional.silu(first(_oscillations(labels, self.config.channels)))))
        features = self.first(2 * slices - 1)
        skips = [features]
        for module in self.encoder:
            features = module(features, level) if isinstance(module, ResidualBlock) else module(features)
            skips.append(features)
        for module in self.middle:
            features = module(features, level)
        for module in self.decoder:
            if isinstance(module, ResidualBlock):
                features = torch.cat((features, skips.pop()), 1)  # by its own name, so that its parts are let go
                features = module(features, level)
            else:
                features = module(features)
        result: torch.Tensor = self.last(functional.silu(self.norm(features), inplace=True))
        return result


_AUTHORS_NAMES = {
    "": "",
    "conv": "Conv_0",
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "level": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "NIN_0",
}


def _oscillations(labels: torch.Tensor, channels: int) -> torch.Tensor:
    """Sines and cosines ``(slice, channels)`` of the labels, with periods from 2 pi upwards."""
    half = channels // 2
    places = torch.arange(half, dtype=torch.float32, device=labels.device)
    angles = labels[:, None] * torch.exp(places * (-math.log(_LONGEST_PERIOD) / (half - 1)))
    return torch.cat((angles.sin(), angles.cos()), 1)


def _padded(length: int, multiple: int, device: torch.device, period: int) -> torch.Tensor:
    """Places of a periodic axis that fill it up to a multiple."""
    return torch.arange(math.ceil(length / multiple) * multiple, device=device) % period


def _convolution(n_in: int, n_out: int, *, stride: int = 1, padding: int = 1, gain: float = 1.0) -> nn.Conv2d:
    return _drawn(nn.Conv2d(n_in, n_out, 3, stride=stride, padding=padding), gain)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    return _drawn(nn.Linear(n_in, n_out))


def _drawn(layer: Layer, gain: float = 1.0) -> Layer:
    """Draw the weights as published; a gain near zero lets a branch start as if it were not there."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
