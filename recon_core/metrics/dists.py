"""DISTS, a distance of structure and texture in VGG features; its weights are not part of the project.

Ding et al., IEEE Trans Pattern Anal Mach Intell 2020, doi:10.1109/TPAMI.2020.3045810.

The weights file is a safetensors file with the convolutions of VGG-16 trained on ImageNet, named as torchvision names
them (``features.0.weight`` to ``features.28.bias``), and the authors' ``alpha`` and ``beta``, 1475 values each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

from recon_core.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# The convolutions of VGG-16 by their number in torchvision's ``features``, stage by stage: (inputs, outputs).
_STAGES: tuple[dict[int, tuple[int, int]], ...] = (
    {0: (3, 64), 2: (64, 64)},
    {5: (64, 128), 7: (128, 128)},
    {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    {24: (512, 512), 26: (512, 512), 28: (512, 512)},
)
_CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image itself and of the last layer of every stage
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, red, green and blue
_DEVIATION = (0.229, 0.224, 0.225)
_SMALL = 1e-6  # the constants of both similarities
_FEWEST_PIXELS = 16  # the last stage sees a sixteenth of the image


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a weights file must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in _STAGES:
        for number, (inputs, outputs) in stage.items():
            shapes[f"features.{number}.weight"] = (outputs, inputs, 3, 3)
            shapes[f"features.{number}.bias"] = (outputs,)
    return {**shapes, "alpha": (sum(_CHANNELS),), "beta": (sum(_CHANNELS),)}


def load_dists(path: Path) -> Dists:
    """Load the network from a weights file.

    Parameters
    ----------
    path
        The safetensors file; dimensions of length one in ``alpha`` and ``beta`` do not matter.

    Raises
    ------
    ModelError
        If the file is not there, is no safetensors file, or lacks a tensor.
    """
    if not path.is_file():
        raise ModelError(
            f"there are no DISTS weights at {path}; cinestream ships none: give a safetensors file with the VGG-16 "
            "convolutions (features.*) and the authors' alpha and beta"
        )
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the DISTS weights {path} as safetensors: {error}") from error
    try:
        return Dists(weights)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


class Dists:
    """DISTS with given weights; call it with an image and its reference.

    Every stage of VGG-16 (ReLU convolutions, the pooling replaced by the root of Hann-weighted mean squares) and the
    image itself give feature maps. Their means over the frame are compared as textures and their covariances as
    structures, like the two terms of SSIM; 1 less the sum over all channels, weighted with alpha and beta, is DISTS.
    Frames are neither cropped nor resized.

    Parameters
    ----------
    weights
        Tensors as `weight_shapes` lists them.

    Raises
    ------
    ModelError
        If one is missing or has another shape.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights: dict[str, torch.Tensor] = {}
        for name, shape in weight_shapes().items():
            if name not in weights:
                raise ModelError(f"the DISTS weights lack {name!r}")
            found = weights[name].float()
            self._weights[name] = found.squeeze() if name in ("alpha", "beta") else found
            if tuple(self._weights[name].shape) != shape:
                raise ModelError(f"DISTS weight {name!r} must have the shape {shape}, got {tuple(found.shape)}")
        total = self._weights["alpha"].sum() + self._weights["beta"].sum()
        if not total > 0:
            raise ModelError("the DISTS weights alpha and beta must have a positive sum")
        self._alpha, self._beta = (self._weights[name] / total for name in ("alpha", "beta"))
        window = torch.tensor([0.25, 0.5, 0.25])
        self._window = torch.outer(window, window)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.number[Any]], reference: NDArray[np.number[Any]]) -> float:
        """Compare two series; the maximum of the whole reference series is white.

        Parameters
        ----------
        image, reference
            ``(frame, y, x)``, real or complex, at least 16 x 16 pixels; magnitudes are compared.

        Returns
        -------
        float
            Mean over the frames: 0 for a perfect image, at most 1 where no weight is negative. CRUNet-MR states 1 less
            this value.

        Raises
        ------
        DataError
            If the shapes differ, the frames are too small, or the reference is zero everywhere.
        """
        if image.shape != reference.shape or image.ndim != 3:
            raise DataError(f"image and reference must both be (frame, y, x), got {image.shape} and {reference.shape}")
        if min(image.shape[1:]) < _FEWEST_PIXELS:
            raise DataError(
                f"DISTS needs frames of at least {_FEWEST_PIXELS} x {_FEWEST_PIXELS} pixels, got {image.shape[1:]}"
            )
        peak = float(np.abs(reference).max())
        if not peak > 0:
            raise DataError("the reference is zero everywhere; no relative error exists")
        distances = []
        for ours, theirs in zip(image, reference, strict=True):
            pair = np.stack([np.abs(ours), np.abs(theirs)]).astype(np.float32) / np.float32(peak)
            distances.append(self._distance(torch.from_numpy(pair)))
        return float(np.mean(distances))

    def _distance(self, pair: torch.Tensor) -> float:
        """DISTS between the two images of ``(2, y, x)`` float32."""
        texture, structure = [], []
        for features in self._features(pair[:, None].expand(-1, 3, -1, -1)):
            mean = features.mean(dim=(2, 3))
            centred = features - mean[:, :, None, None]
            variance = centred.square().mean(dim=(2, 3))
            covariance = (centred[0] * centred[1]).mean(dim=(1, 2))
            texture.append((2 * mean[0] * mean[1] + _SMALL) / (mean[0] ** 2 + mean[1] ** 2 + _SMALL))
            structure.append((2 * covariance + _SMALL) / (variance[0] + variance[1] + _SMALL))
        return 1 - float(self._alpha @ torch.cat(texture) + self._beta @ torch.cat(structure))

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The images ``(image, 3, y, x)`` themselves and the feature maps after every stage."""
        shape = (1, 3, 1, 1)
        layer = (images - torch.tensor(_MEAN).reshape(shape)) / torch.tensor(_DEVIATION).reshape(shape)
        found = [images]
        for i, stage in enumerate(_STAGES):
            if i:
                layer = self._pooled(layer)
            for number in stage:
                weight, bias = (self._weights[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
                layer = functional.relu(functional.conv2d(layer, weight, bias, padding=1))
            found.append(layer)
        return found

    def _pooled(self, layer: torch.Tensor) -> torch.Tensor:
        channels = layer.shape[1]
        kernel = self._window.expand(channels, 1, 3, 3)
        mean_square = functional.conv2d(layer.square(), kernel, stride=2, padding=1, groups=channels)
        return (mean_square + 1e-12).sqrt()
