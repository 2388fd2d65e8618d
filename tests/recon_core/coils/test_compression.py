import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.coils.compression import CoilCompression, compression_matrix
from recon_core.errors import DataError


def random(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def uneven(n_coils, n_samples, seed=0):
    """Coils that see much of the same, each combination weaker than the one before."""
    mixing = np.linalg.qr(random(n_coils, n_coils, seed=seed + 1))[0]
    return mixing @ (2.0 ** -np.arange(n_coils)[:, None] * random(n_coils, n_samples, seed=seed)).astype(np.complex64)


def compress(lines, **settings):
    compression = CoilCompression(lines.shape[-2])
    compression.add(lines)
    return compression.matrix(**settings)


@given(st.integers(1, 12), st.integers(0, 100), st.floats(0.01, 1))
def test_keeps_the_energy_with_as_few_coils_as_possible(n_coils, seed, energy):
    lines = uneven(n_coils, 200, seed)
    matrix = compress(lines, energy=energy)
    total = np.linalg.norm(lines) ** 2
    assert np.linalg.norm(matrix @ lines) ** 2 >= (energy - 1e-5) * total
    assert np.linalg.norm(matrix[:-1] @ lines) ** 2 < (energy + 1e-5) * total
    # No other combinations hold more: the singular values say how much there is.
    best = (np.linalg.svd(lines, compute_uv=False)[: len(matrix)] ** 2).sum()
    assert np.linalg.norm(matrix @ lines) ** 2 == pytest.approx(best, rel=1e-4)


@given(st.integers(1, 12), st.integers(1, 20))
def test_rows_are_orthonormal(n_coils, asked):
    matrix = compress(uneven(n_coils, 100), coils=asked)
    assert matrix.shape == (min(asked, n_coils), n_coils)
    assert matrix.dtype == np.complex64
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(len(matrix)), atol=1e-6)


def test_white_noise_stays_white():
    matrix = compress(uneven(8, 100), coils=5)
    noise = matrix @ random(8, 200_000, seed=5) / np.sqrt(2)
    np.testing.assert_allclose(noise @ noise.conj().T / noise.shape[1], np.eye(5), atol=0.02)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("settings", [{}, {"energy": 1.0}, {"energy": 0.9999999}])
def test_a_signal_of_low_rank_is_reproduced(rank, settings):
    lines = random(6, rank) @ random(rank, 300, seed=1)
    matrix = compress(lines, **(settings or {"coils": rank}))
    assert len(matrix) == rank
    np.testing.assert_allclose(matrix.conj().T @ (matrix @ lines), lines, atol=1e-4)


def test_strongest_first():
    lines = uneven(6, 300)
    strengths = np.linalg.norm(compress(lines, coils=6) @ lines, axis=1)
    assert (np.diff(strengths) < 0).all()


def test_readouts_one_by_one_or_all_at_once():
    readouts = np.stack([uneven(5, 40, seed) for seed in range(6)])  # (readout, coil, sample)
    compression = CoilCompression(5)
    for readout in readouts:
        compression.add(readout)
    one_by_one, at_once = compression.matrix(coils=2), compress(readouts, coils=2)
    np.testing.assert_allclose(one_by_one.conj().T @ one_by_one, at_once.conj().T @ at_once, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_any_unit(scale):
    lines = uneven(5, 100)
    np.testing.assert_allclose(
        np.abs(compress(lines * np.float32(scale), energy=0.9)), np.abs(compress(lines, energy=0.9)), atol=1e-4
    )


def test_one_coil():
    np.testing.assert_allclose(np.abs(compress(random(1, 10))), [[1]], atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"coils": 0}, {"coils": -1}, {"energy": 0.0}, {"energy": 1.1}, {"energy": np.nan}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(DataError, match="compression"):
        compress(random(3, 10), **settings)


@pytest.mark.parametrize(("value", "what"), [(0, "only zeros"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_no_signal(value, what):
    covariance = np.full((3, 3), value, np.complex128)
    with pytest.raises(DataError, match=what):
        compression_matrix(covariance)


def test_other_number_of_coils():
    with pytest.raises(DataError, match="4 coils"):
        CoilCompression(4).add(random(3, 10))
