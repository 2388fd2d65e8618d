import numpy as np
import pytest

from recon_core.off_grid.delays import Delays, correct_positions, find_delays
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.simulate.radial import delayed, simulate_radial, spoke_angles

SIZE = 64


def spokes(law, delays, **more):
    scan = simulate_radial(6, SIZE, 4, spokes=20, law=law, delays=delays, **more)
    return scan.kspace.swapaxes(1, 2).reshape(-1, 4, 2 * SIZE), scan.trajectory.reshape(-1, 2 * SIZE, 2)


@pytest.mark.parametrize("law", ["uniform", "golden", "tiny_golden"])
@pytest.mark.parametrize("delays", [(0.0, 0.0, 0.0), (0.6, -0.4, 0.1), (1.5, -1.0, 0.2)])
def test_delays_are_found(law, delays):
    pytest.importorskip("finufft", reason="no wheel of finufft for this platform")
    found = find_delays(*spokes(law, delays))
    np.testing.assert_allclose(found[:3], delays, atol=0.05)
    assert found.matter == any(delays)


def test_noise_alone_has_no_delays():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((80, 4, 2 * SIZE, 2)).astype(np.float32).view(np.complex64)[..., 0]
    positions = spoke_positions(spoke_angles("golden", 1, 80)[0], 2 * SIZE, SIZE, (SIZE, SIZE))
    assert not find_delays(noise, positions).matter


def test_correction_is_what_the_simulation_does():
    angles = spoke_angles("golden", 2, 5)
    planned = spoke_positions(angles, 2 * SIZE, SIZE, (SIZE, SIZE))
    expected = delayed(planned, angles, (0.5, -0.3, 0.2), 1 / (2 * SIZE))
    np.testing.assert_allclose(correct_positions(planned, Delays(0.5, -0.3, 0.2, 0.0)), expected, atol=1e-6)


def test_half_spokes_and_few_spokes_tell_nothing():
    half = spoke_positions(spoke_angles("golden", 1, 40)[0], SIZE, 0, (SIZE, SIZE))
    assert find_delays(np.ones((40, 2, SIZE), np.complex64), half) is None
    one = spoke_positions(np.zeros(1), 2 * SIZE, SIZE, (SIZE, SIZE))
    assert find_delays(np.ones((1, 2, 2 * SIZE), np.complex64), one) is None
    parallel = spoke_positions(np.zeros(30), 2 * SIZE, SIZE, (SIZE, SIZE))
    assert find_delays(np.ones((30, 2, 2 * SIZE), np.complex64), parallel) is None
