import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from recon_core.physics.noise_level import is_unit_noise, noise_deviation
from tests.helpers.peers import StubEngine


def noise(shape=(3, 4, 32, 32), deviation=1.0, seed=0):
    values = np.random.default_rng(seed).normal(0, deviation, (*shape, 2)).astype(np.float32)
    return values.view(np.complex64)[..., 0], np.ones((shape[0], shape[2]), np.bool_)


@pytest.mark.parametrize("deviation", [1e-6, 1.0, 300.0])
def test_pure_noise_is_measured(deviation):
    assert noise_deviation(*noise(deviation=deviation)) == pytest.approx(deviation, rel=0.05)


def test_what_was_not_measured_does_not_count():
    kspace, mask = noise()
    mask[:, ::2] = False
    kspace *= mask[:, None, :, None]
    kspace[..., :14] = 0  # an asymmetric echo
    assert noise_deviation(kspace, mask) == pytest.approx(1.0, rel=0.1)


def test_nothing_measured_is_no_noise():
    kspace, mask = noise()
    assert np.isnan(noise_deviation(kspace, np.zeros_like(mask)))
    assert not is_unit_noise(kspace, np.zeros_like(mask))
    assert not is_unit_noise(np.zeros_like(kspace), mask)


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"snr": 10.0},
        {"snr": 150.0},
        {"averages": 4, "sampling": "full"},
        {"matrix_x": 96, "matrix_y": 80, "partial_fourier": 0.7, "asymmetric_echo": 0.2, "sampling": "full"},
        {"sampling": "variable_density", "acceleration": 6, "acs_lines": 8},
    ],
)
def test_whitened_scans_are_recognised_and_others_are_not(plan):
    made = simulate(ScanPlan(**{"matrix_x": 64, "matrix_y": 48, "frames": 3, "coils": 4, "acs_lines": 8, **plan}))
    found = []
    for whiten in (True, False):
        settings = Settings.of(method="zero_filled", whiten=whiten)
        chain = Chain(parse_header(made.header), settings, StubEngine, watch=lambda one, _: found.append(one.cine))
        list(chain(made.items()))
    whitened, raw = found
    assert is_unit_noise(whitened.kspace, whitened.mask), noise_deviation(whitened.kspace, whitened.mask)
    for unit in (1e-6, 1e6):
        assert not is_unit_noise(raw.kspace / np.abs(raw.kspace).max() * np.float32(unit), raw.mask)
