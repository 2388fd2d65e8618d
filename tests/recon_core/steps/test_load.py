import dataclasses

import numpy as np
import pytest
import torch

from recon_core.data import Receiver
from recon_core.options import ReconOptions
from recon_core.steps.load import load


@pytest.mark.parametrize(
    ("changes", "variance"),
    [
        ({}, 2.0),
        ({"noise_share": 0.25}, 0.5),  # four averages
        ({"noise_share": None}, 2.0),
        ({"receiver": Receiver(whitened=True, columns=np.arange(18) >= 9)}, 1.0),
        ({"receiver": Receiver()}, None),
    ],
)
def test_noise_is_that_of_what_was_measured(cine, changes, variance):
    scan = dataclasses.replace(cine, **changes)
    if scan.noise_share:
        scan = dataclasses.replace(scan, kspace=scan.noise_share**0.5 * cine.kspace)
    assert load(scan, ReconOptions(), torch.device("cpu")).noise_variance == variance
