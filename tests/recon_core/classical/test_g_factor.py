import pytest
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.g_factor import _relative, replica_g_factor
from recon_core.classical.grappa import LineGrid, fill_gaps, grappa_weights, hybrid_weights
from recon_core.options import CGSenseOptions
from recon_core.physics.fourier import fft
from recon_core.physics.sense import SenseOperator
from tests.recon_core.support import run

METHOD = CGSense(CGSenseOptions(iterations=60, regularization=0.0, tolerance=1e-5))


def converged(hybrid, maps, mask):
    return run(METHOD, hybrid, maps, mask)


def grappa_g_factor(weights, maps):
    """Breuer et al., doi:10.1002/mrm.22066: the convolution with the weights is a product in image space, so that the
    image is a weighted sum of the aliased coil images, with weights n(y, x), and its noise the norm of n."""
    _, n_y, n_x = maps.shape
    n_sources, step = weights.shape[1], weights.shape[3] + 1
    factors = hybrid_weights(weights, n_x)
    position = torch.arange(n_y, dtype=torch.float64) - n_y // 2
    unmixing = maps.conj().resolve_conj()  # a measured line stands for itself
    for source in range(n_sources):
        for missing in range(step - 1):
            offset = (source - n_sources // 2 + 1) * step - (missing + 1)
            turns = -offset * position / n_y
            phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(maps.device, maps.dtype)
            mixed = torch.einsum("xqp,pyx->qyx", factors[:, source, :, missing], maps.conj())
            unmixing = unmixing + phase[:, None] * mixed
    # A zero-filled image has 1 / R of the noise power of a complete one.
    deviation = torch.linalg.vector_norm(unmixing, dim=0) / step**0.5
    return _relative(deviation, maps, 1 / step)


def every(n_lines, step):
    measured = torch.zeros(n_lines, dtype=torch.bool)
    measured[::step] = True
    return measured


def sense_g_factor(maps, step):
    """The formula of SENSE, sqrt((S^H S)^-1 (S^H S)), for the pixels that fall on one another."""
    n_coils, n_y, n_x = maps.shape
    folded = maps.to(torch.complex128).reshape(n_coils, step, n_y // step, n_x).permute(2, 3, 0, 1)
    gram = folded.mH @ folded
    product = torch.linalg.inv(gram).diagonal(dim1=-2, dim2=-1).real * gram.diagonal(dim1=-2, dim2=-1).real
    return product.sqrt().permute(2, 0, 1).reshape(n_y, n_x).to(torch.float32)


@pytest.fixture
def maps(smooth_maps):
    return torch.tensor(smooth_maps(6, 24, 10))


def test_complete_measurement(maps):
    g_factor = replica_g_factor(converged, maps, every(24, 1), replicas=400)
    assert g_factor.shape == (24, 10)
    torch.testing.assert_close(g_factor, torch.ones_like(g_factor), rtol=0, atol=0.15)
    assert g_factor.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("step", [2, 3])
def test_formula_of_sense(maps, step):
    expected = sense_g_factor(maps, step)
    g_factor = replica_g_factor(converged, maps, every(24, step), replicas=400)
    assert expected.max() > 1.1
    assert (g_factor / expected - 1).abs().max() < 0.15
    assert (g_factor / expected).mean() == pytest.approx(1, abs=0.02)


def test_same_seed_same_result(maps):
    first, again, other = (replica_g_factor(converged, maps, every(24, 2), replicas=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_zero_where_there_is_nothing(maps):
    maps[:, 3, 4] = 0
    assert replica_g_factor(converged, maps, every(24, 2), replicas=4)[3, 4] == 0
    assert not replica_g_factor(converged, maps, torch.zeros(24, dtype=torch.bool), replicas=4).any()
    weights = torch.zeros(5, 2, 6, 1, 6, dtype=torch.complex64)
    g_factor = grappa_g_factor(weights, maps)
    assert g_factor[3, 4] == 0
    # Nothing is filled in: the image has 1 / R of the intensity and of the noise power.
    assert g_factor[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("step", [2, 3])
def test_weights_against_replicas(smooth_maps, step):
    """The image-space weights amplify noise as the filled lines do, but for what the border of k-space changes."""
    maps = torch.tensor(smooth_maps(6, 48, 20))
    texture = torch.randn(48, 20, generator=torch.Generator().manual_seed(0)).to(torch.complex64)
    weights = grappa_weights(fft(maps * texture, (-2, -1)), step)

    def reconstruct(hybrid, maps, mask):
        completed = fill_gaps(hybrid, mask, [LineGrid(step, 0, 48 - step)] * len(mask), weights)
        return SenseOperator(maps, torch.ones_like(mask)).adjoint(completed)

    expected = grappa_g_factor(weights, maps)
    replicas = replica_g_factor(reconstruct, maps, every(48, step), replicas=400)
    assert (replicas / expected).mean() == pytest.approx(1, abs=0.04)
    assert (replicas / expected - 1).abs().max() < 0.2
