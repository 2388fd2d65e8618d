"""Dual U-Net with 3-D ResNet: a U-Net for the real parts of all frames, one for the imaginary parts, and fusion."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from recon_core.coils.calibration import calibration_lines
from recon_core.errors import DataError, ModelError
from recon_core.networks.base import ImageNetwork
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.physics.consistency import DataConsistency

_LEVELS = (1, 2, 3, 4)
_SMALLEST = 1 << len(_LEVELS)  # pixels along an axis
_SLOPE = 0.1
_DROPOUT_LEVELS = (1, 2, 4)
_REDUCTION = 4  # of the channels, in the attention
_PORTION = 256  # channels
_PHASE_SHARE = 4  # the phase that is taken out has this part of the resolution, or less


@dataclass(frozen=True, kw_only=True)
class DualUNetResNet3DConfig:
    """Settings of `DualUNetResNet3D`; the defaults are those of the best published variant.

    Raises
    ------
    ModelError
        If there are neither one nor two U-Nets, or the residual network is to fuse changes.
    """

    frames: int = 20
    """Frames of the series, which are channels of the network: it takes just as many."""
    features: int = 64
    """Feature maps of the U-Nets at full size."""
    fusion: Literal["none", "resnet"] = "none"
    """``resnet``: as the work describes it, a residual network makes the image from the magnitude of what the U-Nets
    give; ``none``: that magnitude is the image, which the authors measured to be 3.3 dB better (the run is listed
    under another name): the residual network works at half the resolution, and nothing passes by it."""
    unets: int = 2
    """2, or 1 for real and imaginary parts together: half the parameters, and the same quality."""
    planes: int = 32
    """Feature maps of the residual network."""
    residual: bool = False
    """The U-Nets give the changes of real and imaginary part, between -1 and 1, and the result is complex; without
    fusion only. Not published; the identity need not be learned, so a short training gets much further."""
    dropout: float = 0.3
    """Share of the features that are left out at random, in training only; with batches of one crop any dropout
    prevents learning."""

    def __post_init__(self) -> None:
        """Refuse a number of U-Nets that has no meaning."""
        if self.unets not in (1, 2):
            raise ModelError(f"there are one or two U-Nets, got unets={self.unets}")
        if self.residual and self.fusion != "none":
            raise ModelError("residual goes with fusion=none: the fusion has no input that a change could be added to")


# --- U-Net ------------------------------------------------------------------------------------------------------------


def normalised_convolution(
    features: torch.Tensor, weight: torch.Tensor, norm: nn.BatchNorm2d, stride: int = 1
) -> torch.Tensor:
    """Convolve ``(image, channel, row, column)`` without bias and normalise; half the kernel is padded with zeros.

    Outside training the normalisation is a factor and an offset of every channel. They go into the weights if these are
    fewer than the features; no state is kept of it, so that nothing can become outdated.
    """
    padding = weight.shape[-1] // 2
    if norm.training or weight[0].numel() > features[:, 0].numel():
        # On the CPU the library copies the weights into its own order for every use, and what is larger than
        # 32 MiB gets fresh memory from the system each time (measured: 1.5x faster in portions).
        portions = torch.chunk(weight, max(1, len(weight) // _PORTION)) if weight.is_cpu else (weight,)
        results = [functional.conv2d(features, portion, None, stride, padding) for portion in portions]
        result: torch.Tensor = norm(torch.cat(results, 1).float())
        return result
    factor = norm.weight * (norm.running_var + norm.eps) ** -0.5  # type: ignore[operator]
    offset = norm.bias - norm.running_mean * factor  # type: ignore[operator]
    return functional.conv2d(features, weight * factor[:, None, None, None], offset, stride, padding)


class ConvolutionBlock(nn.Module):
    """Twice: convolution 3 x 3, batch normalisation, leaky rectification.

    Parameters
    ----------
    in_channels, out_channels
        Channels of features and result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, row, column)`` to ``(batch, out_channels, row, column)``."""
        features = functional.leaky_relu_(normalised_convolution(features, self.conv1.weight, self.norm1), _SLOPE)
        return functional.leaky_relu_(normalised_convolution(features, self.conv2.weight, self.norm2), _SLOPE)


class Attention(nn.Module):
    """Weights for every channel, from its mean and maximum, and then for every pixel, from those over the channels.

    Woo et al., CBAM: convolutional block attention module, ECCV 2018, doi:10.1007/978-3-030-01234-2_1.

    Parameters
    ----------
    channels
        Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_shared_mlp = nn.Sequential(
            nn.Conv2d(channels, channels // _REDUCTION, 1, bias=False),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(channels // _REDUCTION, channels, 1, bias=False),
        )
        self.spatial_attention = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Weight ``(batch, channel, row, column)``."""
        pooled = (features.mean((-2, -1), keepdim=True), features.amax((-2, -1), keepdim=True))
        features = features * torch.sigmoid(sum(self.channel_shared_mlp(each) for each in pooled))
        pooled = (features.mean(1, keepdim=True), features.amax(1, keepdim=True))
        return features * torch.sigmoid(self.spatial_attention(torch.cat(pooled, 1)))


class UNet(nn.Module):
    """U-Net with four levels, attention at the bottom, and results between 0 and 1.

    Parameters
    ----------
    channels
        Channels of input and result.
    features
        Feature maps at full size; every level has twice as many as the one above.
    dropout
        Share of the features that are left out in training.
    """

    def __init__(self, channels: int, features: int, dropout: float) -> None:
        super().__init__()
        self._dropout = dropout
        widths = [features << level for level in range(len(_LEVELS) + 1)]
        for level, above, width in zip(_LEVELS, [channels, *widths], widths, strict=False):
            self.add_module(f"encoder{level}", ConvolutionBlock(above, width))
        self.bottleneck = ConvolutionBlock(widths[-2], widths[-1])
        self.attention = Attention(widths[-1])
        for level in reversed(_LEVELS):
            above, width = widths[level - 1 : level + 1]
            self.add_module(f"upconv{level}", nn.ConvTranspose2d(width, above, 2, 2))
            self.add_module(f"decoder{level}", ConvolutionBlock(width, above))
        self.pre_conv = nn.Conv2d(features, features, 3, padding=1)
        self.conv = nn.Conv2d(features, channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Like the features, so that no convolution has to reorder them first.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Improve a series.

        Parameters
        ----------
        frames
            ``(batch, channel, y, x)``. An axis of less than 16 pixels is completed with zeros for the time being; the
            published network has no answer there.

        Returns
        -------
        torch.Tensor
            Shape of `frames`, float32, between 0 and 1.
        """
        n_y, n_x = frames.shape[-2:]
        features = functional.pad(frames, (0, max(0, _SMALLEST - n_x), 0, max(0, _SMALLEST - n_y)))
        features = features.contiguous(memory_format=torch.channels_last)
        skips = []
        for level in _LEVELS:
            features = self.get_submodule(f"encoder{level}")(features)
            if level in _DROPOUT_LEVELS:
                features = functional.dropout(features, self._dropout, self.training)
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        features = self.attention(self.bottleneck(features))
        for level in reversed(_LEVELS):
            features = self.get_submodule(f"decoder{level}")(self._join(level, features, skips))
        features = functional.leaky_relu_(self.pre_conv(features), _SLOPE)
        return torch.sigmoid(self.conv(features).float())[..., :n_y, :n_x]

    def _join(self, level: int, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """Bring the features of the level below to the size of this level and join its own, taken from `skips`."""
        skip = skips.pop()
        features = self.get_submodule(f"upconv{level}")(features)
        if features.shape[-2:] != skip.shape[-2:]:
            features = functional.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=True)
        return torch.cat((features, skip), 1)


def unet_key(key: str) -> str:
    """Name, in the authors' checkpoints, of a tensor of a `UNet`."""
    key = re.sub(r"\b(enc|dec)(oder)(\d)\.(?=conv|norm)", r"\1\2\3.\1\3", key)
    return re.sub(r"\bbottleneck\.", "bottleneck.bottleneck", key)


def _larger(length: int) -> int:
    return max(length, _SMALLEST)


def unet_bytes(channels: int, features: int, n_y: int, n_x: int) -> int:
    """Predict the memory that a `UNet` takes at its peak for one series, its results included, in bytes."""
    n_pixels = _larger(n_y) * _larger(n_x)
    bottom = features << len(_LEVELS)
    # At full size, to be joined: the features of the skip and from below, and both together. At the bottom: all skips,
    # and the weights in the order of the library.
    joined, deepest = 4 * features * n_pixels, 2 * features * n_pixels + min(bottom, _PORTION) * bottom * 9
    return 4 * (2 * channels * n_pixels + max(joined, deepest))


# --- fusion -----------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two convolutions and the identity.

    Parameters
    ----------
    planes
        Channels.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, planes, row, column)`` to the same."""
        result = functional.relu(normalised_convolution(features, _plane(self.conv1), self.bn1))
        return functional.relu(normalised_convolution(result, _plane(self.conv2), self.bn2) + features)


class FusionResNet(nn.Module):
    """The "3-D ResNet": a residual network at half the resolution, results between 0 and 1.

    It was published with 3-D convolutions over an axis of length one (frames are channels); of their kernels only the
    central plane meets any data. The parameters keep the published shape; that plane is used in 2-D convolutions.

    Parameters
    ----------
    in_channels, planes, out_channels
        Channels of input, features and result.
    """

    def __init__(self, in_channels: int, planes: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, planes, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.layer1 = nn.Sequential(ResidualBlock(planes))
        self.conv2 = nn.Conv3d(planes, out_channels, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, y, x)`` to ``(batch, out_channels, y, x)``, float32."""
        n_y, n_x = frames.shape[-2:]
        features = frames.contiguous(memory_format=torch.channels_last)
        features = functional.relu(normalised_convolution(features, _plane(self.conv1), self.bn1, stride=2))
        features = self.layer1(functional.max_pool2d(features, 3, 1, 1))
        # The mix of channels and the enlargement, published in the other order, leave alone what the other changes.
        features = functional.conv2d(features, _plane(self.conv2), self.conv2.bias)
        features = functional.interpolate(features.float(), scale_factor=2, mode="bilinear", align_corners=True)
        return torch.sigmoid(features[..., :n_y, :n_x])  # of an odd size there would be one more


def _plane(layer: nn.Conv3d) -> torch.Tensor:
    """The part of a 3-D kernel that meets data where the first axis has length one."""
    return layer.weight[:, :, layer.weight.shape[2] // 2]


# --- networks ---------------------------------------------------------------------------------------------------------


class DephasedNetwork(ImageNetwork):
    """A network that was trained on images without phase and takes a fixed number of frames.

    `reconstruct` takes a smooth phase out of the images of measured data beforehand and puts it back in the end: the
    maps carry it, so that the data consistency knows of it. `forward` leaves phases alone, as published.
    """

    scale = "peak"

    def __init__(self, frames: int) -> None:
        super().__init__()
        self._frames = frames

    @property
    def minimum_frames(self) -> int:
        """The frames that it takes, no more and no less."""
        return self._frames

    @property
    def maximum_frames(self) -> int:
        """The frames that it takes, no more and no less."""
        return self._frames

    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:
        """Reconstruct one slice, from its first image without the smooth phase; see `Network.reconstruct`."""
        phase = smooth_phase(data)
        consistency = data.consistency(implementation, data.maps * phase)
        start = consistency.zero_filled if data.start is None else data.start * phase.conj()
        image: torch.Tensor = self(start, consistency)
        return image * phase

    def _series(self, image: torch.Tensor) -> torch.Tensor:
        """Give an image a batch axis, after checking its frames."""
        if image.shape[-3] != self._frames:
            raise DataError(f"the network takes {self._frames} frames, got {image.shape[-3]}")
        return image.reshape(-1, *image.shape[-3:])

    def _bytes_around(self, shape: tuple[int, int, int, int], layers: int) -> int:
        """Predict the memory that `reconstruct` takes, from that of the layers of the network, in bytes."""
        n_frames, n_coils, n_y, n_x = shape
        plane = 8 * n_y * n_x
        # The maps with the phase, those of the operator and their conjugate, the zero-filled image and the result.
        held = (2 * n_coils + 2 * n_frames + 1) * plane
        return n_coils * plane + max(predicted_bytes("consistency", shape), held + layers)


def smooth_phase(data: HybridSlice) -> torch.Tensor:
    """Find the smooth part of the phase that the frames of a slice have in common.

    Parameters
    ----------
    data
        The slice.

    Returns
    -------
    torch.Tensor
        ``(y, x)`` complex64 of magnitude one: the phase of the time-averaged image at a quarter of the resolution, or
        less along y if the measured centre of k-space is smaller.
    """
    n_y, n_x = data.maps.shape[-2:]
    kspace = fft(data.average_image(), (0, 1))
    lines = calibration_lines(data.average_lines)
    low_pass = _central_window(n_y, lines.stop - lines.start)[:, None] * _central_window(n_x, n_x)
    angle = ifft(kspace * low_pass.to(kspace.device), (0, 1)).angle()
    return torch.polar(torch.ones_like(angle), angle)


def _central_window(length: int, most: int) -> torch.Tensor:
    """Hann window around the centre of k-space, at least the centre itself and at most `most` samples wide."""
    width = max(1, min(most, length // _PHASE_SHARE))
    distance = (torch.arange(length) - length // 2) / (width + 1)
    return torch.where(distance.abs() < 0.5, torch.cos(torch.pi * distance).square(), 0)


class DualUNetResNet3D(DephasedNetwork):
    """Dual U-Net with 3-D ResNet: from the zero-filled image to the magnitude, without data consistency.

    github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction (2025), a course project without a paper or published
    weights. 63 370 180 parameters with ``fusion="resnet"``; without fusion 63 219 952, half of them in each U-Net.

    ``out = R(sqrt(U1(Re x)^2 + U2(Im x)^2))`` with the U-Nets U1 and U2, which have the frames as channels, and the
    residual network R. The results of U1 and U2 are not real and imaginary parts, but features without supervision.

    Parameters
    ----------
    config
        Its settings; None takes the defaults.

    Notes
    -----
    Made for, and so far trained only on, 20 frames of images that are real, not negative and at most one, with phase
    encoding along y. Measured data enter by the zero-filled image only. Results are magnitudes;
    `reconstruct` gives them the smooth phase of the data.

    The same numbers as published with less work: 2-D instead of 3-D convolutions in the fusion, the normalisation in
    the weights where that pays, channels contiguous in memory. Different, where the published network has no answer:
    images of less than 16 pixels along an axis, and of odd size, which came out of the fusion one pixel larger. Biases
    and sigmoids would turn zeros into an image: a series without any signal is returned as zeros.
    """

    Config = DualUNetResNet3DConfig

    def __init__(self, config: DualUNetResNet3DConfig | None = None) -> None:
        self.config = config = config or DualUNetResNet3DConfig()
        super().__init__(config.frames)
        unet = partial(UNet, features=config.features, dropout=config.dropout)
        if config.unets == 2:
            self.unet_real, self.unet_imag = unet(config.frames), unet(config.frames)
        else:
            self.unet = unet(2 * config.frames)
        if config.fusion == "resnet":
            self.resnet = FusionResNet(config.frames, config.planes, config.frames)

    def authors_key(self, key: str) -> str:
        """Name of a tensor in the authors' checkpoints, which are three: a prefix names the checkpoint."""
        return unet_key(key)

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:  # noqa: ARG002 - has no use
        """Improve an image; see `ImageNetwork.forward`.

        The measured data are not used; the result is real, unless the network gives changes (``residual``).
        """
        series = self._series(image)
        first, second = self._parts(series)
        if self.config.residual:
            result = series + torch.complex(2 * first - 1, 2 * second - 1)
        else:
            magnitude = torch.hypot(first, second)
            if self.config.fusion == "resnet":
                magnitude = self.resnet(magnitude)
            result = torch.complex(magnitude, torch.zeros_like(magnitude))
        return torch.where((series != 0).flatten(1).any(1)[:, None, None, None], result, 0).reshape(image.shape)

    def _parts(self, series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the U-Nets make of real and imaginary part of ``(batch, frame, y, x)``."""
        if self.config.unets == 2:
            return self.unet_real(series.real), self.unet_imag(series.imag)
        # All real parts go in before all imaginary parts; what comes out are pairs, frame by frame, as published.
        pairs: torch.Tensor = self.unet(torch.cat((series.real, series.imag), 1))
        return pairs[:, ::2], pairs[:, 1::2]

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        config = self.config
        channels = 2 * config.frames // config.unets
        return self._bytes_around(shape, unet_bytes(channels, config.features, *shape[2:]))
