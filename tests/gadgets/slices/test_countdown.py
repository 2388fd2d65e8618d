"""How a slice gets its share of the time until the deadline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.slices.countdown import Countdown


@pytest.fixture
def clock(monkeypatch):
    """A function that sets the time."""
    now = [0.0]
    monkeypatch.setattr("gadgets.slices.countdown.time.monotonic", lambda: now[0])
    return lambda time: now.__setitem__(0, time)


def test_the_last_slice_has_what_is_left(clock):
    countdown = Countdown(10.0)
    countdown.came(100, at=0.0)
    countdown.came(100, at=5.0)
    clock(7.0)
    assert countdown.share(slices=0, readouts=0) == pytest.approx(8)


def test_slices_that_are_complete_at_once_share_the_time(clock):
    countdown, now = Countdown(12.0), 20.0
    countdown.came(300, at=0.0)
    countdown.came(1, at=20.0)
    shares = []
    for others in (3, 2, 1, 0):
        clock(now)
        shares.append(countdown.share(others, readouts=0))
        now += shares[-1]
    assert shares == pytest.approx([3, 3, 3, 3])
    assert now == pytest.approx(32)  # the deadline


@pytest.mark.parametrize(("seconds", "deadline", "expected"), [(5, 20, 6.5), (10, 5, 5), (0, 10, 1)])
def test_slices_one_after_another_share_the_time_of_the_scan_too(clock, seconds, deadline, expected):
    """Ten slices that take so long to measure, the first of which is there; the last readout may be any."""
    countdown = Countdown(deadline)
    countdown.came(0, at=0.0)
    countdown.came(100, at=seconds)
    clock(seconds)
    assert countdown.share(slices=9, readouts=900) == pytest.approx(expected)


def test_a_method_that_keeps_to_its_share_keeps_the_deadline_of_the_scan(clock):
    """Ten slices, one every five seconds; the images of the last one are there 20 s after its last readout."""
    countdown, now, shares = Countdown(20.0), 0.0, []
    countdown.came(0, at=0.0)
    for number in range(10):
        countdown.came(100, at=5.0 * (number + 1))
        now = max(now, 5.0 * (number + 1))
        clock(now)
        shares.append(countdown.share(9 - number, 100 * (9 - number)))
        now += shares[-1]
    assert now == pytest.approx(70)
    assert shares == pytest.approx([6.5] * 10)


@given(st.floats(0.1, 100), st.integers(0, 1000), st.integers(0, 10**6), st.floats(0, 1000))
def test_a_share_is_never_nothing_and_never_more_than_the_deadline(deadline, slices, readouts, at):
    countdown = Countdown(deadline)
    countdown.came(10, at=-at)
    assert 0 < countdown.share(slices, readouts) <= max(deadline, 1e-3)


def test_before_the_first_readout_all_the_time_is_left():
    assert Countdown(10.0).share(0, 0) == 10
