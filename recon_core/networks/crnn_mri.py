"""CRNN-MRI: convolutional recurrences over the frames of the cine and over the iterations of a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from recon_core.networks.base import ImageNetwork, zero_without_signal
from recon_core.networks.blocks import (
    ConvolutionalRecurrence,
    convolve,
    portions,
    split_frames,
    to_channels,
    to_complex,
)
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from recon_core.physics.consistency import DataConsistency


@dataclass(frozen=True, kw_only=True)
class CRNNMRIConfig:
    """Settings of `CRNNMRI`; the defaults are those of the published weights."""

    iterations: int = 5
    """Times that the image is improved and made consistent with the data."""
    channels: int = 64
    """Feature maps of every layer."""
    shared_weights: bool = True
    """The same weights in every iteration. False gives every iteration its own, as in the comparison of the CRUNet-MR
    paper (1,488,970 parameters)."""


class RecurrentDenoiser(nn.Module):
    """The layers of one iteration: a recurrence over the frames, three over the iterations, and a convolution.

    Parameters
    ----------
    channels
        Feature maps of every layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bcrnn = ConvolutionalRecurrence(2, channels)
        self.conv1_x, self.conv1_h = _convolution(channels, channels), _convolution(channels, channels)
        self.conv2_x, self.conv2_h = _convolution(channels, channels), _convolution(channels, channels)
        self.conv3_x, self.conv3_h = _convolution(channels, channels), _convolution(channels, channels)
        self.conv4_x = _convolution(channels, 2)

    def forward(self, image: torch.Tensor, states: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        """Improve an image.

        Parameters
        ----------
        image
            ``(frame, y, x)`` or ``(batch, frame, y, x)`` complex64.
        states
            Features of the iteration before, by layer and portion of the frames; empty before the first. They are
            replaced by those of this iteration one by one, so that never more than one set of them is in memory.

        Returns
        -------
        torch.Tensor
            Shape of `image`.
        """
        series = to_channels(image.reshape(-1, *image.shape[-3:]).contiguous())
        recurrent = self.bcrnn(series, states.get((0, 0)))
        states[0, 0] = recurrent
        layers = (self.conv1_x, self.conv1_h), (self.conv2_x, self.conv2_h), (self.conv3_x, self.conv3_h)
        changes = []
        # From here on frames do not depend on each other.
        for place, (features,) in enumerate(portions(recurrent)):
            for layer, convolutions in enumerate(layers, 1):
                features = _convolve_both(*convolutions, features, states.get((layer, place)))  # noqa: PLW2901
                states[layer, place] = features
            changes.append(self.conv4_x(features))
        change = to_complex(split_frames(torch.cat(changes), series.shape[1]))
        return image + change.reshape(image.shape)


class CRNNMRI(ImageNetwork):
    """CRNN-MRI: convolutional recurrent network for dynamic MRI.

    Qin et al., IEEE Trans Med Imaging 2019, doi:10.1109/TMI.2018.2863670; the published weights are those of
    github.com/js3611/Deep-MRI-Reconstruction. 297,794 parameters.

    Parameters
    ----------
    config
        Its settings; None takes the published ones.

    Notes
    -----
    Published for images of one coil. With several the data consistency is a gradient step in the image that they share,
    see `recon_core.physics.consistency.DataConsistency.hard`; with one coil it is the published replacement.

    The published weights need a sampling that changes from frame to frame, phase encoding along y, and an image with
    a peak of about one; with the same lines in every frame they do harm.

    A state of zeros is not convolved, and the layers after the recurrence over the frames go through the frames in
    portions that stay in the cache. Input and state are convolved separately: together they must first be copied to one
    place, which costs more than it saves. Biases would turn zeros into an image: a series without any signal is
    returned as zeros.
    """

    Config = CRNNMRIConfig
    scale = "peak"

    def __init__(self, config: CRNNMRIConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CRNNMRIConfig()
        n_denoisers = 1 if config.shared_weights else config.iterations
        self.denoisers = nn.ModuleList(RecurrentDenoiser(config.channels) for _ in range(n_denoisers))

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        if self.config.shared_weights:
            key = key.removeprefix("denoisers.0.")
        return recurrence_key(key)

    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image; see `ImageNetwork.forward`."""
        result = image
        states: dict[tuple[int, int], torch.Tensor] = {}
        for iteration in range(self.config.iterations):
            denoiser = self.denoisers[iteration % len(self.denoisers)]
            result = consistency.hard(denoiser(result, states))
        return zero_without_signal(result, image, consistency)

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        return predicted_bytes("consistency", shape) + recurrent_bytes(self.config.channels, shape)


def recurrence_key(key: str) -> str:
    """Name, in the authors' checkpoints, of a tensor of a `RecurrentDenoiser`."""
    return key.replace("bcrnn.", "bcrnn.CRNN_model.")


def recurrent_bytes(channels: int, shape: tuple[int, int, int, int]) -> int:
    """Predict the memory that the iterations of a `RecurrentDenoiser` take at their peak, in bytes."""
    n_frames, _, n_y, n_x = shape
    # Four states, the inputs of the recurrence, and the hidden states of both directions with their sum; a few frames'
    # worth of what is in work.
    return 8 * channels * (n_frames + 1) * n_y * n_x * 4


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _convolve_both(
    of_features: nn.Conv2d, of_state: nn.Conv2d, features: torch.Tensor, state: torch.Tensor | None
) -> torch.Tensor:
    """Convolve features and state; the convolution of no state is its bias."""
    bias: torch.Tensor = of_features.bias + of_state.bias  # type: ignore[operator]
    result = convolve(features, of_features.weight, bias, 1)
    if state is not None:
        result = result.add_(convolve(state, of_state.weight, None, 1))
    return result.relu_()
