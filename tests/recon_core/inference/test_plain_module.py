import torch

from recon_core.data import HybridSlice
from recon_core.inference.plain_module import run_plain_module


def test_no_signal_stays_zero_and_the_module_is_evaluated():
    module = torch.nn.Dropout(0.5)
    maps = torch.full((3, 12, 10), 3**-0.5, dtype=torch.complex64)
    mask = torch.ones(4, 12, dtype=torch.bool)
    empty = HybridSlice(torch.zeros(4, 3, 12, 10, dtype=torch.complex64), mask, maps, torch.zeros_like(maps), mask[0])
    image = run_plain_module(module, empty)
    assert (image.shape, image.dtype) == ((4, 12, 10), torch.complex64)
    assert not image.any()
    assert not module.training
