"""Golden tests of networks: weights that follow from their names, so that two implementations can be compared.

Fill both networks by the same rule, run them on the same arrays, and keep inputs and outputs of the one that is known
to be right. All networks of cinestream are tested so against the code of their authors.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.physics.consistency import DataConsistency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from recon_core.networks.base import ImageNetwork, Network


def normal(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers that depend on the key alone."""
    return np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)


def fill_value(key: str, shape: tuple[int, ...], gain: float = 1.0) -> NDArray[np.float32]:
    """Values of a parameter by its name: scaled by the fan-in for kernels, by 0.1 for biases."""
    scale = gain / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return normal(key, shape) * np.float32(scale)


def fill(network: Network, value: Callable[[str, tuple[int, ...]], NDArray[np.float32]] = fill_value) -> None:
    """Fill the parameters of a network by the names that its authors give them.

    Parameters
    ----------
    network
        The network; changed in place.
    value
        Called with the authors' name of a parameter and its shape.
    """
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            numbers = value(network.authors_key(key), tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.asarray(numbers)))


def golden_output(network: ImageNetwork, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.complex64]:
    """Run a network on the arrays of a golden case.

    Parameters
    ----------
    network
        With its weights.
    arrays
        ``maps`` ``(coil, y, x)`` and ``measured`` ``(frame, coil, ky, x)`` complex64, ``mask`` ``(frame, ky)`` bool;
        ``image`` ``(frame, y, x)`` complex64 to start from, or without it the zero-filled one.

    Returns
    -------
    ndarray
        ``(frame, y, x)`` complex64.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items() if name in _INPUTS}
    with torch.inference_mode():
        consistency = DataConsistency(tensors["maps"], tensors["mask"], tensors["measured"])
        start = tensors.get("image", consistency.zero_filled)
        image: NDArray[np.complex64] = network.eval()(start, consistency).numpy()
    return image


_INPUTS = ("maps", "mask", "measured", "image")
