"""The golden cases of every network: the authors' constructor arguments and inputs in, the case's outputs out."""

import importlib
import json

import numpy as np
import torch


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
