import numpy as np
import pytest

from recon_core.errors import SettingsError
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.simulate.radial import delayed, measure, measure_off_resonance, simulate_radial, spoke_angles

pytest.importorskip("finufft", reason="no wheel of finufft for this platform")


def test_laws_of_the_angles():
    uniform = np.rad2deg(spoke_angles("uniform", 2, 10))
    np.testing.assert_allclose(uniform, np.tile(18 * np.arange(10), (2, 1)))
    np.testing.assert_allclose(np.rad2deg(spoke_angles("golden", 2, 3))[1], 111.246117975 * np.arange(3, 6))
    assert np.rad2deg(spoke_angles("tiny_golden", 1, 2))[0, 1] == pytest.approx(23.6281, abs=1e-4)
    assert np.rad2deg(spoke_angles("golden", 1, 2, increment=10.0))[0, 1] == pytest.approx(10)
    with pytest.raises(SettingsError, match="uniform, golden, tiny_golden"):
        spoke_angles("random", 1, 2)


def test_samples_are_the_sums_over_the_fine_pixels():
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((2, 16, 16)) + 1j * rng.standard_normal((2, 16, 16))
    positions = (rng.random((5, 2)) - 0.5).astype(np.float32)
    place = (np.arange(16) - 8) / 2  # in pixels of the image
    phase = positions[:, 0, None, None] * place + positions[:, 1, None, None] * place[:, None]
    expected = np.einsum("kyx,cyx->ck", np.exp(-2j * np.pi * phase), fine) / 8 / 4
    found = measure(fine.astype(np.complex64), positions)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("reach", [0.0, 80.0, 900.0])
def test_off_resonance_turns_every_pixel_by_its_frequency(reach):
    rng = np.random.default_rng(1)
    fine = (rng.standard_normal((2, 16, 16)) + 1j * rng.standard_normal((2, 16, 16))).astype(np.complex64)
    field = reach * rng.uniform(-1, 1, (16, 16))
    times = np.linspace(-6e-4, 6e-4, 9)
    positions = (rng.random((3, 9, 2)) - 0.5).astype(np.float32)
    found = measure_off_resonance(fine, positions, field, times)
    for number, time in enumerate(times):
        at_once = measure((fine * np.exp(2j * np.pi * field * time)).astype(np.complex64), positions[:, number])
        np.testing.assert_allclose(found[..., number], at_once, atol=1e-5 * np.abs(found).max())


def test_delays_shift_a_spoke_along_x_and_y():
    angles = np.array([0.0, np.pi / 2])
    planned = spoke_positions(angles, 8, 4, (4, 4))
    moved = (delayed(planned, angles, (0.5, -1.0, 0.25), 0.125) - planned) / 0.125
    np.testing.assert_allclose(moved[0], np.tile([0.5, 0.25], (8, 1)), atol=1e-6)
    np.testing.assert_allclose(moved[1], np.tile([0.25, -1.0], (8, 1)), atol=1e-6)


def test_the_same_seed_gives_the_same_scan():
    one, other = (simulate_radial(2, 24, 2, spokes=5, seed=seed) for seed in (1, 1))
    np.testing.assert_array_equal(one.kspace, other.kspace)
    quiet = simulate_radial(2, 24, 2, spokes=5, seed=1, snr=0)
    noise = one.kspace - quiet.kspace
    np.testing.assert_allclose(np.mean(np.abs(noise) ** 2), np.trace(one.noise_covariance).real / 2, rtol=0.15)
