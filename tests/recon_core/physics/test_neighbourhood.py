import numpy as np
import pytest
import torch

from recon_core.physics.neighbourhood import box_average, box_mean


@pytest.mark.parametrize("side", [1, 3, 4, 7])
@pytest.mark.parametrize("size", [(9, 12), (2, 5), (1, 1)])
def test_mean_of_the_neighbours_mirrored_at_the_border(size, side):
    field = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    before, after = side // 2, side - side // 2 - 1
    padded = np.pad(field.numpy(), [(0, 0), (before, after), (before, after)], mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    np.testing.assert_allclose(box_mean(field, side).numpy(), windows.mean((-2, -1)), rtol=1e-5)


def test_what_is_the_same_everywhere_stays():
    torch.testing.assert_close(box_average(7, 5).sum(1), torch.ones(7))
