import numpy as np
import pytest

from recon_core.errors import SettingsError
from recon_core.simulate.ecg import cardiac_position, ecg_signal, rr_intervals


def test_intervals_have_the_rate_and_the_variability():
    intervals = rr_intervals(4000, heart_rate=75.0, variability=0.04)
    assert intervals.mean() == pytest.approx(0.8, rel=0.01)
    assert intervals.std() / intervals.mean() == pytest.approx(0.04, rel=0.2)
    assert rr_intervals(5, heart_rate=75.0, variability=0.0) == pytest.approx([0.8] * 5)


def test_ectopic_beat_is_followed_by_a_pause():
    intervals = rr_intervals(6, heart_rate=60.0, variability=0.02, ectopic=2)
    assert intervals[2:4] == pytest.approx([0.6, 1.3])
    assert rr_intervals(3, ectopic=2, seed=1)[2] == pytest.approx(0.6)


def test_position_falls_at_each_r_wave():
    r_waves = np.array([-0.5, 0.5, 1.3, 2.3])
    since, fraction = cardiac_position([0.0, 0.5, 0.9, 1.3, 2.2], r_waves)
    np.testing.assert_allclose(since, [0.5, 0.0, 0.4, 0.0, 0.9], atol=1e-12)
    np.testing.assert_allclose(fraction, [0.5, 0.0, 0.5, 0.0, 0.9], atol=1e-12)


@pytest.mark.parametrize("moment", [-0.6, 2.3])
def test_position_needs_r_waves_around(moment):
    with pytest.raises(SettingsError, match="R waves"):
        cardiac_position([moment], np.array([-0.5, 0.5, 1.3, 2.3]))


def test_signal_peaks_at_the_r_waves():
    r_waves = np.array([0.4, 1.3, 2.1])
    times = np.arange(0.0, 2.6, 0.0025)
    signal = ecg_signal(times, r_waves)
    peaks = times[1:-1][(signal[1:-1] > signal[:-2]) & (signal[1:-1] >= signal[2:]) & (signal[1:-1] > 0.7)]
    np.testing.assert_allclose(peaks, r_waves, atol=0.0026)


@pytest.mark.parametrize("arguments", [{"heart_rate": 0.0}, {"variability": 0.5}, {"variability": -0.1}])
def test_refuses_impossible_hearts(arguments):
    with pytest.raises(SettingsError):
        rr_intervals(3, **arguments)
