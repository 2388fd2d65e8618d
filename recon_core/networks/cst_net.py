"""CST-Net: transformers over image plane and frames, refined by convolutional recurrences over the frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from recon_core.errors import DataError, SettingsError
from recon_core.networks.base import ImageNetwork, zero_without_signal
from recon_core.networks.blocks import convolve, to_channels, to_complex
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from recon_core.data import HybridSlice
    from recon_core.physics.consistency import DataConsistency

Layout = Literal["official", "planar"]

_N_FRAMES = 16
_PACKED_CHANNELS = 2 * _N_FRAMES
_RECURRENCES = (3, 3, 2)  # of the three stages
_DILATIONS = (1, 3, 3, 3)  # of the layers of a recurrence
_NEGATIVE_SLOPE = 0.01
# Below this share of its maximum the intensity of the coil maps counts as zero, and so does the image.
_LEAST_INTENSITY = 1e-6
# Ours and theirs, within a transformer.
_AUTHORS_NAMES = (
    (r"space\.(\d)", r"spaceattn.stages.\1.blocks.0"),
    (r"blocks\.0\.(dwconv_)", r"blocks.0.token_mixer.\1"),
    (r"blocks\.0\.(fc)", r"blocks.0.mlp.\1"),
    (r"time\.(\d)\.attention", r"timeattn.stages.\1.spectral_branch"),
    (r"time\.(\d)\.feed_forward", r"timeattn.stages.\1.ffn.module"),
    (r"(spectral_branch|module)\.norm", r"\1.norm.body"),
    (r"fusion", r"end"),
)


@dataclass(frozen=True, kw_only=True)
class CSTNetConfig:
    """Settings of `CSTNet`; the defaults are those of the published code."""

    layout: Layout = "official"
    """How the transformers see the 16 complex frames as 32 channels. ``planar``: real and imaginary part of every
    frame; the one to train with. ``official``: the memory of the frames, with real and imaginary part side by side,
    read as if it were 32 planes. Channels are then the upper and lower halves of frames, their lines folded in two,
    real and imaginary part in turn. The published code does that, and its weights need it, best at the matrix size
    of their training. Both have the same tensors, and weights of one are of no use in the other."""
    channels: int = 64
    """Feature maps of the recurrences."""


class SpaceBlock(nn.Module):
    """Depthwise convolutions of some of the channels, and a perceptron at every pixel.

    An InceptionNeXt block: Yu et al., CVPR 2024, doi:10.1109/CVPR52733.2024.00542.

    Parameters
    ----------
    channels
        Of input and result; an eighth of them goes through each of the three convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 8
        self._parts = [channels - 3 * part, part, part, part]
        self.dwconv_hw = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.dwconv_w = nn.Conv2d(part, part, (1, 11), padding=(0, 5), groups=part)
        self.dwconv_h = nn.Conv2d(part, part, (11, 1), padding=(5, 0), groups=part)
        self.norm = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        same, square, wide, high = torch.split(features, self._parts, 1)
        mixed = torch.cat((same, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)), 1)
        change: torch.Tensor = self.fc2(functional.gelu(self.fc1(self.norm(mixed))))
        return features + self.gamma[:, None, None] * change


class ScaleNorm(nn.Module):
    """Division by the standard deviation over the channels; the mean stays.

    Parameters
    ----------
    channels
        Of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        variance = features.var(1, correction=0, keepdim=True)
        return features / torch.sqrt(variance + 1e-5) * self.weight[:, None, None]


class ChannelAttention(nn.Module):
    """Attention of the channels to each other, by the correlation of their images.

    Zamir et al. (Restormer), CVPR 2022, doi:10.1109/CVPR52688.2022.00564; one head.

    Parameters
    ----------
    channels
        Of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.norm = ScaleNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        query, key, value = self.qkv_dwconv(self.qkv(self.norm(features))).flatten(2).chunk(3, 1)
        query, key = functional.normalize(query.float(), dim=-1), functional.normalize(key.float(), dim=-1)
        attention = (query @ key.mT * self.temperature).softmax(-1)
        attended = attention.to(value.dtype) @ value
        change: torch.Tensor = self.project_out(attended.reshape(features.shape))
        return features + change


class FeedForward(nn.Module):
    """Two convolved projections, one of them the gate of the other.

    Of Restormer, as `ChannelAttention`.

    Parameters
    ----------
    channels
        Of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(2.66 * channels)
        self.norm = ScaleNorm(channels)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        gate, value = self.dwconv(self.project_in(self.norm(features))).chunk(2, 1)
        change: torch.Tensor = self.project_out(functional.gelu(gate) * value)
        return features + change


class TimeBlock(nn.Module):
    """Attention between the channels, which hold the frames, and a feed-forward network.

    Parameters
    ----------
    channels
        Of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = ChannelAttention(channels)
        self.feed_forward = FeedForward(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        result: torch.Tensor = self.feed_forward(self.attention(features))
        return result


class Transformer(nn.Module):
    """A branch over the plane and one over the frames, side by side.

    Parameters
    ----------
    channels
        Of input and result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Sequential(SpaceBlock(channels), SpaceBlock(channels))
        # The published code gives both blocks the same input and takes the result of the last: the first has no part in
        # anything, and is here because it is in the checkpoints.
        self.time = nn.ModuleList((TimeBlock(channels), TimeBlock(channels)))
        self.fusion = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, row, column)`` to the same shape."""
        result: torch.Tensor = self.fusion(torch.cat((self.space(features), self.time[-1](features)), 1))
        return result


class RecurrentLayer(nn.Module):
    """Convolutional recurrence over the frames, in both directions with the same weights; the two results are summed.

    ``h_t = LeakyReLU(i2h(input_t) + h2h(h_neighbour))``, where the neighbour of the first frame visited is zero.

    Parameters
    ----------
    in_channels
        Channels of the input.
    channels
        Channels of the result.
    dilation
        Of both convolutions.

    Notes
    -----
    The input is convolved once for both directions. These run as a batch of two, and a convolution of zeros is its
    bias.
    """

    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.i2h = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
        self.h2h = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, frames: list[torch.Tensor]) -> list[torch.Tensor]:
        """Frames ``(batch, in_channels, row, column)``, which are used up, to ``(batch, channels, row, column)``."""
        dilation = int(self.h2h.dilation[0])
        bias = self.i2h.bias + self.h2h.bias  # type: ignore[operator]
        inputs = _frame_by_frame(lambda frame: convolve(frame, self.i2h.weight, bias, dilation), frames)
        n_batch = len(inputs[0])
        hidden = functional.leaky_relu_(torch.cat((inputs[0], inputs[-1])), _NEGATIVE_SLOPE)
        sums: dict[int, torch.Tensor] = {}
        for place in range(len(inputs)):
            if place:
                hidden = convolve(hidden, self.h2h.weight, None, dilation)
                hidden[:n_batch] += inputs[place]
                hidden[n_batch:] += inputs[-1 - place]
                hidden = functional.leaky_relu_(hidden, _NEGATIVE_SLOPE)
            for frame, state in ((place, hidden[:n_batch]), (len(inputs) - 1 - place, hidden[n_batch:])):
                sums[frame] = sums[frame] + state if frame in sums else state
        return [sums[frame] for frame in range(len(inputs))]


class Recurrence(nn.Module):
    """Recurrent layers over the frames and a convolution: the change of an image.

    Parameters
    ----------
    channels
        Feature maps of every layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(RecurrentLayer(channels if i else 2, channels, dilation) for i, dilation in enumerate(_DILATIONS))
        )
        self.conv4_x = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(batch, frame, 2, row, column)``, any number of frames, to the same shape."""
        # channels_last: 1.1x faster on the CPU
        frames = [frame.contiguous(memory_format=torch.channels_last) for frame in image.unbind(1)]
        return torch.stack(_frame_by_frame(self.conv4_x, self.layers(frames)), 1)


class Stage(nn.Module):
    """Two transformers and some recurrences, each followed by data consistency.

    Parameters
    ----------
    recurrences
        How many.
    channels
        Feature maps of the recurrences.
    layout
        How the transformers see the frames.
    """

    def __init__(self, recurrences: int, channels: int, layout: Layout) -> None:
        super().__init__()
        self._layout: Layout = layout
        self.transformers = nn.ModuleList(Transformer(_PACKED_CHANNELS) for _ in range(2))
        self.recurrences = nn.ModuleList(Recurrence(channels) for _ in range(recurrences))

    def forward(self, image: torch.Tensor, replace: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``(batch, frame, row, column)`` complex to the same shape; `replace` is the data consistency."""
        for transformer in self.transformers:
            packed = pack(image, self._layout)
            image = replace(unpack(transformer(packed) + packed, self._layout))
        for recurrence in self.recurrences:
            image = replace(image + to_complex(recurrence(to_channels(image))))
        return image


class CSTNet(ImageNetwork):
    """CST-Net: spatiotemporal transformers refined by convolutional recurrences, for 16 frames.

    Wang et al., Comput Biol Med 2024, doi:10.1016/j.compbiomed.2024.109133; published code:
    github.com/XWangBin/CST-Net. 2,388,344 parameters, 88,290 of them in unused blocks.

    Parameters
    ----------
    config
        Its settings; None takes those of the published code.

    Raises
    ------
    SettingsError
        If there is no such layout.

    Notes
    -----
    Published for one coil, where data consistency replaces the measured samples, in points or lines of k-space. With
    several coils the result of the replacement is combined with the maps and divided by ``sum_c |S_c|^2``, and zero
    where there is none. Frames without any sample are left to the network.

    The images of all three stages are merged by one convolution over plane and frames, and made consistent a last time.

    The recurrences are 99 % of the work: 0.82e12 multiplications and additions for 16 frames of 128 x 128. Here the
    input of a recurrence is convolved once for both its directions and the unused block is not run, a quarter less than
    published. Biases would turn zeros into an image: a series without any signal is returned as zeros.
    """

    Config = CSTNetConfig
    config: CSTNetConfig
    scale = "peak"

    def __init__(self, config: CSTNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CSTNetConfig()
        if config.layout not in get_args(Layout):
            raise SettingsError(f"layout must be {' or '.join(get_args(Layout))}, got {config.layout}")
        self.embedding = nn.Conv2d(_PACKED_CHANNELS, _PACKED_CHANNELS, 3, padding=1, bias=False)
        self.stages = nn.ModuleList(Stage(count, config.channels, config.layout) for count in _RECURRENCES)
        self.end = nn.Conv3d(2 * len(_RECURRENCES), 2, 3, padding=1, bias=False)

    @property
    def minimum_frames(self) -> int:
        """16, by its architecture."""
        return _N_FRAMES

    @property
    def maximum_frames(self) -> int:
        """16, by its architecture."""
        return _N_FRAMES

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        top, _, rest = key.partition(".")
        if top != "stages":
            return key.replace("embedding", "embeding")  # sic
        place, part, rest = rest.split(".", 2)
        number = int(place) + 1
        if part == "recurrences":
            rest = re.sub(r"layers\.(\d)", lambda layer: f"bcrnn_{int(layer[1]) + 1}.CRNN_model", rest)
            return f"xt_conv_blocks{number}.{rest}"
        for ours, theirs in _AUTHORS_NAMES:
            rest = re.sub(ours, theirs, rest)
        return f"stages{number}.{rest}"

    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:
        """Reconstruct one slice of 16 frames; see `Network.reconstruct`."""
        consistency = data.consistency(implementation)
        start = normalise(consistency.zero_filled, consistency) if data.start is None else data.start
        image: torch.Tensor = self(start, consistency)
        return image

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`.

        Parameters
        ----------
        image
            ``(frame, y, x)`` or ``(batch, frame, y, x)`` complex64 with 16 frames; usually the zero-filled image,
            divided by the intensity of the maps (`normalise`).
        consistency
            The measured data, with the same batch axis.

        Raises
        ------
        DataError
            If there are not 16 frames.
        """
        if image.shape[-3] != _N_FRAMES:
            raise DataError(f"CST-Net takes {_N_FRAMES} frames, got {image.shape[-3]}")

        def replace(result: torch.Tensor) -> torch.Tensor:
            return normalise(consistency.hard(result.reshape(image.shape)), consistency).reshape(result.shape)

        result = image.reshape(-1, *image.shape[-3:])
        result = unpack(self.embedding(pack(result, self.config.layout)), self.config.layout)
        results = []
        for stage in self.stages:
            result = stage(result, replace)
            results.append(to_channels(result))
        merged = self.end(torch.cat(results, 2).permute(0, 2, 3, 4, 1))
        result = replace(to_complex(merged.permute(0, 4, 1, 2, 3)))
        return zero_without_signal(result.reshape(image.shape), image, consistency)

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        n_frames, _, n_y, n_x = shape
        channels = self.config.channels
        # A layer of a recurrence holds the convolved inputs and the results of all frames, and a few frames of both
        # directions in work. The last convolution unfolds its input, which is more where the recurrences are narrow.
        recurrence = (2 * n_frames + 6) * channels
        merging = (27 + 3) * 2 * len(_RECURRENCES) * n_frames
        weights = 2 * 9 * channels**2  # in the form of the convolution
        return predicted_bytes("consistency", shape) + 4 * (max(recurrence, merging) * n_y * n_x + weights)


def pack(image: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Complex ``(batch, frame, row, column)`` to what the transformers see, ``(batch, 2 * frame, row, column)``."""
    if layout == "planar":
        return to_channels(image).flatten(1, 2)
    pairs = torch.view_as_real(image.resolve_conj().contiguous())
    return pairs.reshape(len(image), -1, *image.shape[-2:])


def unpack(features: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The inverse of `pack`."""
    n_batch, _, n_rows, n_columns = features.shape
    if layout == "planar":
        return to_complex(features.reshape(n_batch, -1, 2, n_rows, n_columns))
    return torch.view_as_complex(features.float().contiguous().view(n_batch, -1, n_rows, n_columns, 2))


def normalise(combined: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
    """Divide a combination of coils by ``sum_c |S_c|^2``; zero where that is negligible."""
    intensity = consistency.intensity
    present = intensity > _LEAST_INTENSITY * intensity.amax((-2, -1), keepdim=True)
    return combined * torch.where(present, intensity.reciprocal(), 0)


def _frame_by_frame(layer: Callable[[torch.Tensor], torch.Tensor], frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """Apply a layer to frames ``(batch, channel, row, column)``, which are taken from the list on the way."""
    n_batch = len(frames[0])
    # On the CPU one at a time, so that memory is reused rather than fetched again (measured: 1.1x faster than all at
    # once); a GPU is to be filled.
    together = 1 if frames[0].device.type == "cpu" else len(frames)
    results: list[torch.Tensor] = []
    while frames:
        group = frames[0] if together == 1 else torch.cat(frames)
        del frames[:together]
        results.extend(layer(group).chunk(len(group) // n_batch))
    return results
