import pytest
import torch

from recon_core.coils.columns import combine_columnwise


@pytest.mark.parametrize("lost", [1e-4, 1e-2])
def test_fewer_combinations_hold_the_maps(smooth_maps, lost):
    maps = torch.tensor(smooth_maps(10, 24, 9))
    fewer = combine_columnwise(maps, lost)
    assert len(fewer) < 10
    assert fewer.shape[1:] == (24, 9)
    left_out = 1 - float(fewer.norm() ** 2 / maps.norm() ** 2)
    assert 0 < left_out <= lost
    products, theirs = (torch.einsum("cyx,czx->xyz", some.conj(), some) for some in (maps, fewer))
    assert float((products - theirs).norm() / products.norm()) <= 3 * lost


def test_maps_that_need_all_coils_keep_all():
    maps = torch.randn(3, 20, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert len(combine_columnwise(maps, 1e-4)) == 3


def test_no_maps():
    fewer = combine_columnwise(torch.zeros(3, 4, 5, dtype=torch.complex64), 1e-4)
    assert fewer.shape == (1, 4, 5)
    assert fewer.count_nonzero() == 0
