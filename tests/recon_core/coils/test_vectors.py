import pytest
import torch

from recon_core.coils.vectors import align_phase, normalise, virtual_body_coil, virtual_coils


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_norm_over_the_coils_is_one_and_zero_stays():
    vectors = noise(3, 4, 5)
    vectors[:, 1, 2] = 0
    scaled, norm = normalise(vectors)
    torch.testing.assert_close(scaled * norm, vectors)
    expected = torch.ones(4, 5)
    expected[1, 2] = 0
    torch.testing.assert_close(torch.linalg.vector_norm(scaled, dim=0), expected)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_virtual_coils_receive_most(scale):
    """Two independent sources in four coils are all that two virtual coils need; in any unit."""
    lines = torch.einsum("cs,syx->cyx", noise(4, 2, seed=1), noise(2, 6, 5, seed=2)) * scale
    found = virtual_coils(lines, 2)
    torch.testing.assert_close(found.mH @ found, torch.eye(2, dtype=torch.complex64), atol=1e-5, rtol=0)
    seen = torch.einsum("cv,cyx->vyx", found.conj(), lines) / scale
    torch.testing.assert_close(seen.norm(), (lines / scale).norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(virtual_body_coil(lines), found[:, 1])


def test_the_virtual_body_coil_has_no_phase():
    maps, lines = noise(3, 6, 5, seed=3), noise(3, 4, 5, seed=4)
    aligned = align_phase(maps, lines)
    torch.testing.assert_close(aligned.abs(), maps.abs())
    seen = torch.einsum("c,cyx->yx", virtual_body_coil(lines).conj(), aligned)
    torch.testing.assert_close(seen, seen.abs().to(seen.dtype), rtol=1e-4, atol=1e-4)
