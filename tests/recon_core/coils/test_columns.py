import pytest
import torch

from recon_core.coils.columns import combine_columnwise


@pytest.mark.parametrize("lost", [1e-4, 1e-2])
def test_fewer_combinations_hold_the_maps(smooth_maps, lost):
    maps = torch.tensor(smooth_maps(10, 24, 9))
    combinations, fewer = combine_columnwise(maps, lost)
    n_x, kept, n_coils = combinations.shape
    assert (n_x, n_coils, fewer.shape) == (9, 10, (kept, 24, 9))
    assert kept < 10
    torch.testing.assert_close(combinations @ combinations.mH, torch.eye(kept, dtype=maps.dtype).expand(9, -1, -1))
    back = torch.einsum("xkc,kyx->cyx", combinations.conj(), fewer)
    left_out = float((back - maps).norm() ** 2 / maps.norm() ** 2)
    assert 1e-9 < left_out <= lost


def test_maps_that_need_all_coils_keep_all():
    maps = torch.randn(3, 20, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert len(combine_columnwise(maps, 1e-4)[1]) == 3


def test_no_maps():
    combinations, fewer = combine_columnwise(torch.zeros(3, 4, 5, dtype=torch.complex64), 1e-4)
    assert combinations.shape[1] == fewer.shape[0] == 1
    assert fewer.count_nonzero() == 0
