"""CRUNet-MR: an unrolled U-Net of convolutional recurrent units that passes its features from cascade to cascade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from recon_core.errors import ModelError
from recon_core.networks.base import ImageNetwork
from recon_core.networks.blocks import (
    PORTION_BYTES,
    ConvolutionalRecurrence,
    SpaceTimeConvolution,
    frame_by_frame,
    pad_to_multiple,
    portions,
    to_complex,
)
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from recon_core.physics.consistency import DataConsistency

# Our names of the parts of a cascade, and the authors'.
_AUTHORS_NAMES = {
    "first": "conv0",
    "last": "conv",
    "down": "d_conv",
    "up": "u_conv",
    "encode": "convs1",
    "deepen": "convs2",
    "decode": "conv1",
    "finish": "conv2",
    "stages.0.unit": "d_crnn1.CRNN_model",
    "stages.1.unit": "d_crnn2.CRNN_model",
    "stages.2.unit": "bcrnn.CRNN_model",
    "stages.3.unit": "u_crnn1.CRNN_model",
    "stages.4.unit": "u_crnn2.CRNN_model",
    "stages.0.side": "conv11",
    "stages.1.side": "conv21",
    "stages.2.side": "conv31",
    "stages.3.side": "conv41",
    "stages.4.side": "conv51",
}


@dataclass(frozen=True, kw_only=True)
class CRUNetMRConfig:
    """Settings of `CRUNetMR`; the defaults are the published ones."""

    cascades: int = 5
    """Number of cascades: a U-Net with its own weights improves the image, then measured samples are put back."""
    channels: int = 64
    """Feature maps at every level."""
    dilations: tuple[int, int, int] = (1, 2, 4)
    """Of the convolutions at full resolution, at half resolution, and at the bottom, in pixels. The paper finds (1, 2,
    4) best up to an acceleration of 10, and (1, 3, 5) at 24."""
    std_gate: bool = False
    """The variant of the first published checkpoints: a learned map, times the standard deviation over time, amplifies
    what moves, and images are padded no further than to even sizes."""


class States(NamedTuple):
    """Features that a cascade passes on, ``(batch, frame, channel, row, column)``; None before the first."""

    full: torch.Tensor | None = None
    half: torch.Tensor | None = None
    bottom: torch.Tensor | None = None


class Stage(nn.Module):
    """A unit in parallel with a 1 x 1 convolution.

    Parameters
    ----------
    unit
        Takes features and a state or None.
    channels
        Of features, state and result.
    """

    def __init__(self, unit: nn.Module, channels: int) -> None:
        super().__init__()
        self.unit = unit
        self.side = nn.Conv2d(channels, channels, 1)

    def forward(self, features: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Compute features of the same shape, ``(batch, frame, channel, row, column)``."""
        result: torch.Tensor = self.unit(features, state)
        if torch.is_grad_enabled():
            return result + self._beside(features)
        for images, total in portions(features, result):
            total.add_(self._beside(images))
        return result

    def _beside(self, features: torch.Tensor) -> torch.Tensor:
        """The 1 x 1 convolution, as the product of matrices that it is."""
        weight = self.side.weight.flatten(1)
        return functional.linear(features.movedim(-3, -1), weight, self.side.bias).movedim(-1, -3)


class Cascade(nn.Module):
    """Improve a series of images by a U-Net of two levels with the given units.

    Parameters
    ----------
    channels
        Feature maps at every level.
    dilations
        At full resolution, at half resolution, and at the bottom.
    units
        Five modules that take features and a state: full and half resolution on the way down, bottom, half and full
        resolution on the way up.
    multiple
        Images are padded with their mean to multiples of this.
    std_gate
        See `CRUNetMRConfig`.
    """

    pp: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        dilations: tuple[int, int, int],
        units: Iterable[nn.Module],
        *,
        multiple: int = 8,
        std_gate: bool = False,
    ) -> None:
        super().__init__()
        full, half, bottom = dilations

        def convolution(n_inputs: int, dilation: int) -> SpaceTimeConvolution:
            layer = nn.Conv2d(n_inputs * channels, channels, 3, padding=dilation, dilation=dilation)
            return SpaceTimeConvolution(layer, channels)

        self._multiple = multiple
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.stages = nn.ModuleList(Stage(unit, channels) for unit in units)
        self.down = SpaceTimeConvolution(nn.Conv2d(channels, channels, 2, stride=2), channels)
        self.encode = convolution(1, half)
        self.deepen = convolution(1, bottom)
        self.decode = convolution(2, half)
        self.up = SpaceTimeConvolution(nn.ConvTranspose2d(channels, channels, 2, stride=2), channels)
        self.finish = convolution(2, full)
        self.last = nn.Conv2d(channels, 2, 5, padding=2)
        self.register_parameter("pp", nn.Parameter(torch.zeros(1, 2, 224, 112)) if std_gate else None)

    def forward(self, image: torch.Tensor, states: States) -> tuple[torch.Tensor, States]:
        """Improve a series.

        Parameters
        ----------
        image
            ``(frame, row, column)`` or ``(batch, frame, row, column)`` complex64.
        states
            Of the cascade before.

        Returns
        -------
        torch.Tensor
            Shape of `image`.
        States
            For the next cascade.
        """
        series = torch.view_as_real(image.reshape(-1, *image.shape[-3:]).contiguous())
        # One mean and one deviation for real and imaginary part together, per entry of the batch.
        deviation, mean = torch.std_mean(series, (1, 2, 3, 4), keepdim=True)
        normalised = (series - mean) / torch.where(deviation > 0, deviation, 1)
        padded, (rows, columns) = pad_to_multiple(normalised, self._multiple)
        features, states = self._features(padded.movedim(-1, 2), states)
        change = frame_by_frame(self.last, features)[..., rows, columns].movedim(2, -1).float()
        if self.pp is not None:
            change = change * (1 + self._gate(normalised, self.pp))
        change = to_complex((deviation * change).movedim(-1, 2))
        return image + change.reshape(image.shape), states

    def _features(self, series: torch.Tensor, states: States) -> tuple[torch.Tensor, States]:
        """The U-Net between ``(batch, frame, 2, row, column)`` and the features of full resolution."""
        full = self._encode(series, states.full)
        half = self.encode(self.stages[1](self.down(full), states.half))
        bottom = self.deepen(self.stages[2](half, states.bottom))
        half = self.decode(half, self.stages[3](bottom, states.half))
        full = self.finish(full, self.stages[4](self.up(half), states.full))
        return full, States(full, half, bottom)

    def _encode(self, series: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Features of full resolution; a separate function, so that the first ones are freed."""
        features: torch.Tensor = self.stages[0](frame_by_frame(self.first, series), state)
        return features

    @staticmethod
    def _gate(normalised: torch.Tensor, amplification: torch.Tensor) -> torch.Tensor:
        """Relative gain ``(batch, 1, row, column, 2)`` of changes of images of two parts."""
        if normalised.shape[1] == 1:  # one frame has no deviation
            return normalised.new_zeros(())
        motion = torch.view_as_complex(normalised).abs().std(1, keepdim=True)
        motion = motion / (torch.linalg.vector_norm(motion, dim=(1, 2, 3), keepdim=True) + 1e-6)
        resized = functional.interpolate(amplification, motion.shape[-2:], mode="bilinear", align_corners=False)
        gate: torch.Tensor = motion[..., None] * resized.movedim(1, -1)
        return gate


class CRUNetMR(ImageNetwork):
    """CRUNet-MR: convolutional recurrent U-Net for cine MRI.

    Lyu et al., "Convolutional recurrent U-net for cardiac cine MRI reconstruction via effective spatio-temporal feature
    exploitation"; code and weights at github.com/dong845. 4,537,930 parameters, and with `std_gate` 50,176 more in
    every cascade, which the published checkpoints always hold.

    Parameters
    ----------
    config
        Its settings; None takes the published ones.

    Notes
    -----
    The published code transforms with or without centring, depending on its age, and its data are stored accordingly.
    Here the images are in natural position and the data consistency is given: both conventions are one linear map, and
    how they differ is a matter of bringing in the data.

    What differs from the published code: entries of a batch do not mix; an image of zeros stays zero; with `std_gate`
    a single frame has no gate instead of an image that is not a number, and odd sizes are padded to even ones.

    503,040 multiplications per pixel, frame and cascade; a fifth of them, the hidden paths, one frame after the other.
    A convolution takes input and state together, for many frames at once; states of zeros are not convolved; nothing
    is copied to convolve over time. Rows of the features are x and columns are y, as published.
    """

    Config = CRUNetMRConfig
    scale = "free"
    unused_keys = r"cascades\.\d+\.pp"

    def __init__(self, config: CRUNetMRConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CRUNetMRConfig()
        self.cascades = nn.ModuleList(self._cascade(config) for _ in range(config.cascades))

    @staticmethod
    def _cascade(config: CRUNetMRConfig) -> Cascade:
        full, half, bottom = config.dilations
        units = (
            ConvolutionalRecurrence(config.channels, config.channels, full, "forward"),
            ConvolutionalRecurrence(config.channels, config.channels, half, "forward"),
            ConvolutionalRecurrence(config.channels, config.channels, bottom, "both"),
            ConvolutionalRecurrence(config.channels, config.channels, half, "backward"),
            ConvolutionalRecurrence(config.channels, config.channels, full, "backward"),
        )
        multiple = 2 if config.std_gate else 8
        return Cascade(config.channels, config.dilations, units, multiple=multiple, std_gate=config.std_gate)

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        cascades, index, part = key.split(".", 2)
        for own, authors in _AUTHORS_NAMES.items():
            if part.startswith(f"{own}."):
                part = authors + part.removeprefix(own)
                break
        if part.startswith("u_conv."):
            part = part.replace(".conv2d.", ".convTranspose2d.").replace(".conv1d.", ".convTranspose1d.")
        return f"{cascades}.{index}.{part}"

    def check_checkpoint(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse a checkpoint that was trained with the gate, where there is none.

        Raises
        ------
        ModelError
            Saying how to import it.
        """
        if self.config.std_gate:
            return
        gated = [name for name, tensor in tensors.items() if name.endswith(".pp") and bool(tensor.any())]
        if gated:
            raise ModelError(
                f"{gated[0]} is not zero: the checkpoint was trained with the gate on the standard deviation over "
                "time; import it with std_gate=true"
            )

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`."""
        states = States()
        for cascade in self.cascades:
            improved, states = cascade(image.mT, states)
            image = consistency.hard(improved.mT)
        return image

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        device = next(self.parameters()).device
        return predicted_bytes("consistency", shape) + cascade_bytes(shape, self.config.channels, 6, device)


def cascade_bytes(shape: tuple[int, int, int, int], channels: int, n_maps: int, device: torch.device) -> int:
    """Predict the memory that `Cascade` after `Cascade` takes at its peak, states included.

    Parameters
    ----------
    shape
        (frame, coil, y, x).
    channels
        Feature maps at every level.
    n_maps
        How many times the feature maps of full resolution are held.
    device
        Where it runs.

    Returns
    -------
    int
        Bytes.
    """
    n_frames, _, n_y, n_x = shape
    frame_bytes = channels * (n_y + -n_y % 8) * (n_x + -n_x % 8) * 4
    portion = min(n_frames * frame_bytes, max(frame_bytes, PORTION_BYTES.get(device.type, 0)))
    # Beside the feature maps: joined inputs and result of one convolution, and its weights, joined and reordered.
    weights = 3 * 2 * channels**2 * 3**2 * 4
    return n_maps * n_frames * frame_bytes + 3 * portion + weights
