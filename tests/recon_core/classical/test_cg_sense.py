import numpy as np
import pytest
import torch

from recon_core.classical import cg_sense
from recon_core.classical.cg_sense import CGSense
from recon_core.options import CGSenseOptions, ReconOptions
from recon_core.physics.fourier import ifft
from recon_core.physics.sense import SenseOperator
from recon_core.physics.solvers import conjugate_gradient
from tests.recon_core.support import run


def undersampled(maps, image, *, step, scale=1.0):
    """Hybrid data and mask of an interleaved pattern."""
    n_frames, n_y, _ = image.shape
    mask = torch.zeros(n_frames, n_y, dtype=torch.bool)
    for frame in range(n_frames):
        mask[frame, frame % step :: step] = True
    return scale * SenseOperator(maps, mask).forward(image), mask


@pytest.mark.parametrize("pattern", ["shift", "vd"])
@pytest.mark.parametrize(("weight", "iterations"), [(0.01, 30), (0.001, 10)])
def test_golden(golden, phantom_kspace, pattern, weight, iterations):
    """The same numbers as BART, converged or not."""
    case = golden("case_cgsense_bart")
    expected = case[f"pics_{pattern}_l{weight}_i{iterations}"]
    frames = case["frames"][: len(expected)]
    mask = golden("case_phantom")[f"mask_{pattern}"].astype(bool)[frames]
    maps = torch.tensor(golden("case_maps_bart")["ecalib_tavg"])
    data = ifft(torch.tensor(phantom_kspace[frames] * mask[:, None, :, None]), (-1,))
    options = ReconOptions.of(warm_start=False, regularization=weight, iterations=iterations, tolerance=0.0)
    image = run(CGSense(options.cg_sense), data, maps, torch.tensor(mask))
    assert np.linalg.norm(image.numpy() - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("n_coils", "n_y", "n_x"), [(1, 9, 6), (4, 16, 7), (30, 15, 8)])
def test_solves_the_system(smooth_maps, n_coils, n_y, n_x):
    maps = torch.tensor(smooth_maps(n_coils, n_y, n_x))
    image = torch.randn(3, n_y, n_x, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    data, mask = undersampled(maps, image, step=2)
    operator = SenseOperator(maps, mask)
    right_side = operator.adjoint(data)
    solution = conjugate_gradient(operator, right_side, iterations=60, regularization=0.05)
    residual = right_side - operator.normal(solution) - 0.05 * solution
    assert residual.norm() < 1e-4 * right_side.norm()


def test_recovers_the_image(smooth_maps, disc):
    maps = torch.tensor(smooth_maps(8, 32, 24))
    image = torch.tensor(disc(32, 24)).expand(4, -1, -1)
    data, mask = undersampled(maps, image, step=3)
    result = run(CGSense(CGSenseOptions(iterations=100, regularization=0.0, tolerance=1e-6)), data, maps, mask)
    assert (result - image).norm() < 1e-2 * image.norm()


def test_frames_do_not_see_each_other(smooth_maps, disc):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    image = torch.tensor(disc(16, 12)) * torch.tensor([1, 5, 0.1])[:, None, None]
    data, mask = undersampled(maps, image, step=3)
    method = CGSense(CGSenseOptions(warm_start=False, iterations=5))
    together = run(method, data, maps, mask)
    alone = torch.cat([run(method, data[i : i + 1], maps, mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("per_frame", [False, True])
def test_portions_of_frames_change_nothing(smooth_maps, disc, monkeypatch, per_frame):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    data, mask = undersampled(maps, torch.tensor(disc(16, 12)).expand(5, -1, -1), step=3)
    if per_frame:
        maps = maps * torch.arange(1, 6)[:, None, None, None] / 5
    method = CGSense(CGSenseOptions(warm_start=False, iterations=5, tolerance=0.0))
    together = run(method, data, maps, mask)
    monkeypatch.setitem(cg_sense.PORTION_BYTES, "cpu", 2 * 16 * 12 * 8)
    torch.testing.assert_close(run(method, data, maps, mask), together)


def test_a_frame_without_data_is_zero(smooth_maps, disc):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    data, mask = undersampled(maps, torch.tensor(disc(16, 12)).expand(3, -1, -1), step=2)
    mask[1] = False
    data[1] = 0
    result = run(CGSense(CGSenseOptions()), data, maps, mask)
    assert not result[1].any()
    assert result.isfinite().all()
    assert result[0].any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_unit_of_the_data(smooth_maps, disc, scale):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    image = torch.tensor(disc(16, 12)).expand(2, -1, -1)
    data, mask = undersampled(maps, image, step=2)
    method = CGSense(CGSenseOptions())
    torch.testing.assert_close(
        run(method, scale * data, maps, mask) / scale, run(method, data, maps, mask), rtol=1e-3, atol=1e-4
    )


def test_tolerance_stops_early(smooth_maps, disc, monkeypatch):
    maps = torch.tensor(smooth_maps(4, 16, 12))
    image = torch.tensor(disc(16, 12))[None]
    data, mask = undersampled(maps, image, step=1)
    operator = SenseOperator(maps, mask)
    calls = []
    normal = operator.normal
    monkeypatch.setattr(operator, "normal", lambda image: calls.append(1) or normal(image))
    result = conjugate_gradient(operator, operator.adjoint(data), iterations=50, regularization=0.0, tolerance=1e-4)
    assert len(calls) == 1  # complete data and unit-norm maps: A^H A is the identity
    torch.testing.assert_close(result, image, rtol=1e-4, atol=1e-5)
