import numpy as np
import pytest
import torch

from recon_core.errors import DataError
from recon_core.off_grid.nufft import NufftSenseOperator
from recon_core.off_grid.trajectory import GOLDEN_ANGLE, spoke_positions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.sense import PlaneSenseOperator

pytest.importorskip("finufft", reason="no wheel of finufft for this platform")


def build(frames=2, coils=3, matrix=(24, 20), spokes=5, samples=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(coils, *matrix, dtype=torch.complex64, generator=generator)
    angles = np.deg2rad(GOLDEN_ANGLE) * np.arange(frames * spokes).reshape(frames, spokes)
    positions = torch.from_numpy(spoke_positions(angles, samples, samples // 2, matrix))
    weights = torch.rand(frames, spokes, samples, generator=generator) * (torch.arange(spokes)[:, None] > 0)
    image = torch.randn(frames, *matrix, dtype=torch.complex64, generator=generator)
    data = torch.randn(frames, coils, spokes, samples, dtype=torch.complex64, generator=generator)
    return maps, positions, weights, image, data


def sums(images, positions):
    """The definition, sample by sample."""
    n_y, n_x = images.shape[-2:]
    y, x = np.arange(n_y) - n_y // 2, np.arange(n_x) - n_x // 2
    phase = positions[..., 0, None, None] * x + positions[..., 1, None, None] * y[:, None]
    waves = np.exp(-2j * np.pi * phase.astype(np.float64))
    return np.einsum("...yx,cyx->c...", waves, images.astype(np.complex128)) / np.sqrt(n_y * n_x)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("matrix", [(24, 20), (21, 32), (16, 16)])
def test_forward_is_the_sum_over_the_pixels(matrix):
    maps, positions, weights, image, _ = build(matrix=matrix)
    found = NufftSenseOperator(maps, positions, weights).forward(image).numpy()
    for frame in range(2):
        coils = (maps * image[frame]).numpy()
        expected = sums(coils, positions[frame].numpy()) * weights[frame].numpy()
        assert relative(found[frame], expected) < 5e-4


@pytest.mark.parametrize("matrix", [(24, 20), (21, 32)])
def test_adjoint_and_normal(matrix):
    maps, positions, weights, image, data = build(matrix=matrix)
    operator = NufftSenseOperator(maps, positions, weights)
    forward, back = operator.forward(image), operator.adjoint(data)
    left, right = torch.vdot(data.flatten(), forward.flatten()), torch.vdot(back.flatten(), image.flatten())
    assert abs(left - right) < 1e-3 * float(data.norm() * forward.norm())
    exact = NufftSenseOperator(maps, positions, weights, tolerance=1e-6)
    assert relative(operator.normal(image).numpy(), exact.adjoint(exact.forward(image)).numpy()) < 5e-5


def test_samples_on_the_grid_give_the_cartesian_operator():
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 12, 10, dtype=torch.complex64, generator=generator)
    image = torch.randn(1, 12, 10, dtype=torch.complex64, generator=generator)
    y, x = np.meshgrid((np.arange(12) - 6) / 12, (np.arange(10) - 5) / 10, indexing="ij")
    positions = torch.from_numpy(np.stack([x, y], -1).astype(np.float32))[None]
    mask = torch.rand(1, 12, 10, generator=generator) < 0.4
    operator = NufftSenseOperator(maps, positions, mask.float(), tolerance=1e-6)
    plain = PlaneSenseOperator(maps, mask)
    assert relative(operator.forward(image).numpy(), plain.forward(image).numpy()) < 1e-5
    assert relative(operator.normal(image).numpy(), plain.normal(image).numpy()) < 1e-5
    assert operator.share == pytest.approx(float(mask.float().mean()))
    measured = plain.forward(image)
    ours, theirs = DataConsistency.through(operator, maps, measured), DataConsistency(maps, mask, measured)
    other = torch.randn(1, 12, 10, dtype=torch.complex64, generator=generator)
    assert relative(ours.hard(other).numpy(), theirs.hard(other).numpy()) < 1e-5
    assert relative(ours.weighted(other, 0.7).numpy(), theirs.weighted(other, 0.7).numpy()) < 1e-5
    assert relative(ours.gradient(other, 0.3).numpy(), theirs.gradient(other, 0.3).numpy()) < 1e-5
    assert relative(ours.solve(other, 0.2, 3).numpy(), theirs.solve(other, 0.2, 3).numpy()) < 1e-4


def test_transforms_of_two_axes_have_one_thread(monkeypatch):
    """Those of MKL spin while they wait for each other."""
    before, seen, transform = torch.get_num_threads(), [], torch.fft.fft2
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.fft, "fft2", lambda *a: (seen.append(torch.get_num_threads()), transform(*a))[1])
    try:
        maps, positions, weights, image, _ = build()
        NufftSenseOperator(maps, positions, weights).normal(image)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_select_takes_frames():
    maps, positions, weights, image, data = build(frames=4)
    operator = NufftSenseOperator(maps, positions, weights)
    part = operator.select(slice(1, 3))
    torch.testing.assert_close(part.adjoint(data[1:3]), operator.adjoint(data)[1:3])
    torch.testing.assert_close(part.normal(image[1:3]), operator.normal(image)[1:3])
    torch.testing.assert_close(
        part.select(slice(1, None)).with_maps(maps[:1]).normal(image[2:3]),
        NufftSenseOperator(maps[:1], positions[2:3], weights[2:3]).normal(image[2:3]),
    )


def test_what_was_not_measured_may_be_no_number():
    maps, positions, weights, _, data = build()
    spoilt = data.clone()
    spoilt[:, :, 0] = torch.nan
    operator = NufftSenseOperator(maps, positions, weights)
    torch.testing.assert_close(operator.adjoint(spoilt), operator.adjoint(data))


def test_gradient_is_the_adjoint():
    maps, positions, weights, image, data = build()
    operator = NufftSenseOperator(maps, positions, weights)
    image.requires_grad_(True)
    (operator.forward(image) - data).abs().square().sum().backward()
    expected = 2 * operator.adjoint(operator.forward(image.detach()) - data)
    torch.testing.assert_close(image.grad, expected, rtol=1e-4, atol=1e-3)


def test_refusals():
    maps, positions, weights, image, data = build()
    with pytest.raises(DataError, match=r"positions must be \(frame, readout, sample, 2\)"):
        NufftSenseOperator(maps, positions[0], weights)
    with pytest.raises(DataError, match="complex64"):
        NufftSenseOperator(maps.real, positions, weights)
    operator = NufftSenseOperator(maps, positions, weights)
    with pytest.raises(DataError, match=r"image must be"):
        operator.normal(image[:1])
    with pytest.raises(DataError, match=r"samples must be"):
        operator.adjoint(data[:1])
