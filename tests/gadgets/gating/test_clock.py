"""How far frames are apart."""

import numpy as np
import pytest

from gadgets.gating.clock import DAY, frame_time, typical_step

NONE = np.full(12, np.nan)


def test_a_gap_does_not_count_and_the_mean_is_finer_than_the_ticks():
    assert typical_step(np.array([40, 42.5, 40, 42.5, 300])) == pytest.approx(41.25)
    assert typical_step(np.array([40, -100, 40, np.nan])) == pytest.approx(40)


@pytest.mark.parametrize("steps", [[], [0, 0], [-5, -5], [5, -5], [np.nan]])
def test_what_does_not_mostly_rise_has_no_step(steps):
    assert typical_step(np.array(steps, np.float64)) == 0


def test_phases_that_were_measured_in_a_beat_each():
    """Also where the last of them run into the next beat."""
    since = 95 + np.mod(38.0 * np.arange(12), 400)
    clock = 900.0 * np.arange(12) + since
    assert frame_time(since, clock, real_time=False) == pytest.approx(38)


@pytest.mark.parametrize("since", [NONE, np.mod(300.0 * np.arange(12), 850)])
@pytest.mark.parametrize("start", [0, DAY - 1000])
def test_real_time_runs_on_through_the_beats_and_through_midnight(since, start):
    assert frame_time(since, np.mod(start + 300.0 * np.arange(12), DAY), real_time=True) == pytest.approx(300)


def test_without_a_clock_the_time_since_the_r_wave_shows_the_frames_of_real_time():
    since = np.mod(100.0 * np.arange(12), 850)
    for clock in (NONE, np.zeros(12)):
        assert frame_time(since, clock, real_time=True) == pytest.approx(100)


def test_a_single_frame_and_stamps_that_stand_still():
    assert frame_time(NONE[:1], np.zeros(1), real_time=False) == 0
    assert frame_time(np.zeros(5), np.zeros(5), real_time=True) == 0
