import numpy as np
import pytest
import torch

from recon_core.classical.low_rank_sparse import LowRankSparse, low_rank_sparse
from recon_core.coils.calibration import time_average
from recon_core.coils.walsh import walsh_maps
from recon_core.metrics.measures import best_scale, nrmse
from recon_core.options import LowRankSparseOptions
from recon_core.physics.fourier import ifft
from recon_core.physics.sense import SenseOperator
from recon_core.simulate.sampling import interleaved_mask
from tests.recon_core.support import run


@pytest.fixture
def scan(smooth_maps, disc):
    """A function that measures a disc whose brightness beats; gives image, hybrid data, maps and mask."""

    def make(n_frames=8, n_coils=6, n_y=32, n_x=24, step=2):
        maps = torch.tensor(smooth_maps(n_coils, n_y, n_x))
        beat = 1 + 0.3 * torch.sin(2 * torch.pi * torch.arange(n_frames) / n_frames)
        image = beat[:, None, None] * torch.tensor(disc(n_y, n_x))
        mask = torch.tensor(interleaved_mask(n_frames, n_y, step))
        return image, SenseOperator(maps, mask).forward(image), maps, mask

    return make


@pytest.mark.parametrize(("name", "weight"), [("vd", 0.01), ("vd", 0.0025), ("shift", 0.01)])
def test_golden(golden, phantom_kspace, name, weight):
    case = golden("case_ls")
    mask = torch.tensor(golden("case_phantom")[f"mask_{name}"].astype(bool))
    operator = SenseOperator(torch.tensor(golden("case_maps_bart")["ecalib_tavg"]), mask)
    right_side = operator.adjoint(ifft(torch.tensor(phantom_kspace), (-1,)))
    low_rank, sparse, passes = low_rank_sparse(operator, right_side, sparse_weight=weight)
    assert abs(passes - len(case[f"{name}_info_{weight}"])) <= 1
    expected = case[f"{name}_L_{weight}"], case[f"{name}_S_{weight}"]
    frames = case["frames"][: len(expected[0])]
    for ours, theirs in ((low_rank, expected[0]), (sparse, expected[1]), (low_rank + sparse, sum(expected))):
        assert np.linalg.norm(ours[frames].numpy() - theirs) < 1e-4 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("mini", 0.05),
        pytest.param("scd201", 0.09, marks=pytest.mark.slow),
        pytest.param("scd301", 0.075, marks=pytest.mark.slow),
    ],
)
def test_accuracy_with_estimated_maps(semi_real, case, limit):
    for data in semi_real(case)[:1]:
        mask = torch.tensor(data.mask)
        hybrid = ifft(torch.tensor(data.kspace), (-1,))
        maps, _ = walsh_maps(*time_average(hybrid, mask))
        image = run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask)
        shading = torch.linalg.vector_norm(torch.einsum("rc,cyx->ryx", torch.tensor(data.colouring), maps), dim=0)
        image = (image * shading).numpy()
        assert nrmse(image * best_scale(image, data.reference), data.reference) < limit


def test_momentum_has_the_same_solution(scan):
    _, hybrid, maps, mask = scan(step=3)
    operator = SenseOperator(maps, mask)
    right_side = operator.adjoint(hybrid)
    plain = low_rank_sparse(operator, right_side, iterations=600, tolerance=1e-6)
    fast = low_rank_sparse(operator, right_side, iterations=600, tolerance=1e-6, momentum=True)
    assert fast[2] < plain[2] / 2
    difference = plain[0] + plain[1] - fast[0] - fast[1]
    assert difference.norm() < 0.01 * (plain[0] + plain[1]).norm()


@pytest.mark.parametrize("momentum", [False, True])
def test_without_weights_the_data_are_met(scan, momentum):
    _, hybrid, maps, mask = scan()
    operator = SenseOperator(maps, mask)
    low_rank, sparse, _ = low_rank_sparse(
        operator,
        operator.adjoint(hybrid),
        low_rank_weight=0.0,
        sparse_weight=0.0,
        iterations=200,
        tolerance=1e-5,
        momentum=momentum,
    )
    assert (operator.forward(low_rank + sparse) - hybrid).norm() < 1e-2 * hybrid.norm()


def test_low_rank_is_low_rank_and_sparse_is_sparse(scan):
    _, hybrid, maps, mask = scan()
    operator = SenseOperator(maps, mask)
    low_rank, sparse, _ = low_rank_sparse(operator, operator.adjoint(hybrid), low_rank_weight=0.2, iterations=200)
    singular = torch.linalg.svdvals(low_rank.flatten(1))
    assert (singular > 1e-4 * singular[0]).sum() == 1
    spectrum = torch.fft.fft(sparse, dim=0).abs()
    assert (spectrum < 1e-4 * spectrum.max()).float().mean() > 0.5


@pytest.mark.parametrize(
    ("n_frames", "n_coils", "n_y", "n_x"), [(1, 1, 9, 6), (2, 4, 16, 7), (3, 1, 15, 8), (40, 3, 5, 5)]
)
def test_any_size(scan, n_frames, n_coils, n_y, n_x):
    image, hybrid, maps, mask = scan(n_frames, n_coils, n_y, n_x, step=1)
    result = run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask)
    assert result.shape == image.shape
    assert (result - image).norm() < 0.05 * image.norm()


def test_undersampled(scan):
    image, hybrid, maps, mask = scan()
    result = run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask)
    assert (result - image).norm() < 0.05 * image.norm()


def test_an_empty_frame_is_zero_and_leaves_the_others_alone(scan):
    image, hybrid, maps, mask = scan(n_frames=9)
    mask[4] = False
    result = run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask)
    assert not result[4].any()
    others = [frame for frame in range(9) if frame != 4]
    assert (result - image)[others].norm() < 0.05 * image.norm()


def test_an_empty_slice_is_zero(scan):
    _, hybrid, maps, mask = scan()
    assert not run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, torch.zeros_like(mask)).any()
    assert not run(LowRankSparse(LowRankSparseOptions()), torch.zeros_like(hybrid), maps, mask).any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_unit_of_the_data(scan, scale):
    _, hybrid, maps, mask = scan()
    method = LowRankSparse(LowRankSparseOptions())
    result = run(method, scale * hybrid, maps, mask) / scale
    torch.testing.assert_close(result, run(method, hybrid, maps, mask), rtol=1e-3, atol=1e-4)


def test_values_that_are_not_finite_are_not_hidden(scan):
    _, hybrid, maps, mask = scan()
    hybrid[0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError):
        run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask)


def test_without_momentum_it_is_the_published_iteration(scan):
    _, hybrid, maps, mask = scan()
    operator = SenseOperator(maps, mask)
    low_rank, sparse, passes = low_rank_sparse(operator, operator.adjoint(hybrid))
    image = run(LowRankSparse(LowRankSparseOptions(momentum=False)), hybrid, maps, mask)
    assert 1 < passes <= 51
    torch.testing.assert_close(image, low_rank + sparse)
    assert not torch.allclose(run(LowRankSparse(LowRankSparseOptions()), hybrid, maps, mask), image, rtol=1e-4)
