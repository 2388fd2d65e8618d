"""The golden cases of every network: the authors' constructor arguments and inputs in, the case's outputs out."""

import importlib
import json
import zlib
from collections.abc import Callable

import numpy as np
import torch

from recon_core.networks.base import Network


def run_case(method: str, arrays: dict[str, np.ndarray], config: dict) -> dict[str, np.ndarray]:
    """Run one golden case of a network, or another of the same form.

    Parameters
    ----------
    method
        Name of the method.
    arrays
        The inputs of the case under its own names; outputs that lie among them are not looked at.
    config
        The authors' constructor arguments: the case's own ``config`` where it has one (crunet_mr, crnn_mri), else that
        of keys.json (cinenet, promptmr).

    Returns
    -------
    dict
        The outputs of the case under its own names. The weights are filled from the names of the authors' keys.
    """
    if isinstance(config, str | np.ndarray):
        config = json.loads(str(config))
    case = importlib.import_module(f"tests.parity_cases.{method}")
    with torch.inference_mode():
        return case.run(arrays, config)


def normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on the key alone."""
    return np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)


def fill_value(key: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """The rule of all goldens: fan-in scaled for kernels, 0.1 for biases."""
    scale = gain / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return normal(key, shape) * np.float32(scale)


def fill(network: Network, value: Callable[[str, tuple[int, ...]], np.ndarray] = fill_value) -> None:
    """Fill the parameters of a network; ``value(key, shape)`` gives each its numbers by the authors' key."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            numbers = value(network.authors_key(key), tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.asarray(numbers)))
