import numpy as np
import pytest

from gadgets.gating.heartbeat import find_heartbeat
from gadgets.wire.messages import ACQUISITION_HEADER

TICK = 2.5  # ms
RR = 800.0


def stamped(times, since, tick=TICK):
    """Acquisition headers of readouts at these times and times since the R wave, in ms."""
    headers = np.zeros(len(times), ACQUISITION_HEADER)
    headers["acquisition_time_stamp"] = np.rint((40_000_000 + np.asarray(times)) / tick)
    headers["physiology_time_stamp"][:, 0] = np.rint(np.asarray(since) / tick)
    return headers


def triggered(beats=6, frames=5, lines=4, delay=20.0, step=90.0, rr=RR):
    """Readouts of a segmented scan, which ends before the next R wave, and the headers of its frames."""
    within = (delay + step * np.arange(frames)[:, None] + 5 * np.arange(lines)).ravel()
    times = (rr * np.arange(beats)[:, None] + within).ravel()
    readouts = stamped(times, np.tile(within, beats))
    return readouts[1 : frames * lines : lines], readouts


def test_a_triggered_scan_has_the_times_of_its_frames():
    frames, readouts = triggered()
    found = find_heartbeat(frames, readouts, TICK)
    np.testing.assert_allclose(found.since, 25 + 90 * np.arange(5))
    assert found.rr == pytest.approx(RR)
    assert found.frame_time == pytest.approx(90)
    assert (found.doubt, found.stamped) == ("", True)


def test_the_tick_is_that_of_the_vendor():
    frames, readouts = triggered()
    found = find_heartbeat(frames, readouts, 1.0)
    np.testing.assert_allclose(found.since, (25 + 90 * np.arange(5)) / TICK, atol=0.5)


def test_frames_that_were_measured_in_one_beat_each():
    """The time since the R wave never falls, but the scanner pauses until the next trigger."""
    times = RR * np.arange(6)[:, None] + 100 * np.arange(6)[:, None] + 5 * np.arange(4)
    readouts = stamped(times.ravel(), (100 * np.arange(6)[:, None] + 5 * np.arange(4)).ravel())
    found = find_heartbeat(readouts[::4], readouts, TICK)
    assert found.rr == pytest.approx(RR)
    assert found.frame_time == pytest.approx(100)


def test_one_beat_alone_does_not_tell_the_interval():
    frames, readouts = triggered(beats=1)
    found = find_heartbeat(frames, readouts, TICK)
    assert found.rr == 0
    assert not np.isnan(found.since).any()


def test_triggers_with_beats_left_out_do_not_tell_the_interval():
    found = find_heartbeat(*triggered(rr=5 * RR + 100), TICK)
    assert found.rr == 0
    np.testing.assert_allclose(found.since, 25 + 90 * np.arange(5))


@pytest.mark.parametrize("wrong", [0, 7])
def test_without_the_clock_of_the_scanner_there_are_times_but_no_interval(wrong):
    frames, readouts = triggered()
    readouts["acquisition_time_stamp"] = wrong
    found = find_heartbeat(frames, readouts, TICK)
    assert found.rr == 0
    np.testing.assert_allclose(found.since, 25 + 90 * np.arange(5))


ABSURD = {
    "a clock instead": (lambda n: 4304495 + 2 * np.arange(n), "no gating was on"),
    "the largest number": (lambda n: np.full(n, 2**32 - 1), "no gating was on"),
    "rising from zero": (lambda n: 30 * np.arange(n), "never falls and reaches"),
    "standing still": (lambda n: np.full(n, 123), "stands still at 307.5 ms"),
    "backwards": (lambda n: 600 - 2 * np.arange(n), "runs backwards"),
}


@pytest.mark.parametrize(("stamps", "why"), ABSURD.values(), ids=ABSURD)
def test_stamps_that_are_no_time_since_an_r_wave_are_left_out(stamps, why):
    _, readouts = triggered(beats=2, frames=20, lines=2, step=35)
    readouts["physiology_time_stamp"][:, 0] = stamps(len(readouts))
    found = find_heartbeat(readouts[::4], readouts, TICK)
    assert np.isnan(found.since).all()
    assert why in found.doubt
    assert found.stamped
    assert found.rr == 0


def test_a_scan_without_stamps_is_nothing_unusual_and_still_has_a_frame_time():
    _, readouts = triggered(beats=1, frames=20, step=35)
    readouts["physiology_time_stamp"] = 0
    found = find_heartbeat(readouts[::4], readouts, TICK)
    assert np.isnan(found.since).all()
    assert not found.stamped
    assert "no time since an R wave" in found.doubt
    assert found.frame_time == pytest.approx(35)


def test_one_absurd_stamp_costs_one_frame():
    frames, readouts = triggered()
    frames, readouts = frames.copy(), readouts.copy()
    frames["physiology_time_stamp"][2, 0] = readouts["physiology_time_stamp"][9, 0] = 4304495
    found = find_heartbeat(frames, readouts, TICK)
    assert np.flatnonzero(np.isnan(found.since)).tolist() == [2]
    assert found.rr == pytest.approx(RR)
    assert found.doubt == ""


def test_only_the_stamps_of_the_frames():
    frames, readouts = triggered()
    found = find_heartbeat(frames, readouts[:0], TICK)
    np.testing.assert_allclose(found.since, 25 + 90 * np.arange(5))
    assert found.rr == 0


def test_a_single_readout():
    frames, readouts = triggered(beats=1, frames=1, lines=2)
    found = find_heartbeat(frames, readouts[:1], TICK)
    assert np.isnan(found.since).all()
    assert found.doubt
    assert found.frame_time == 0


def test_the_most_stamps_must_be_believable():
    """A few believable ones among others, as damage has them, are no gating."""
    frames, readouts = triggered()
    frames, readouts = frames.copy(), readouts.copy()
    absurd = np.arange(len(readouts)) % 5 < 3
    readouts["physiology_time_stamp"][absurd, 0] = 4304495
    found = find_heartbeat(frames, readouts, TICK)
    assert "no gating was on" in found.doubt
    assert np.isnan(found.since).all()
    assert found.rr == 0


def test_windows_of_a_slice_are_joined():
    frames, readouts = triggered()
    whole = find_heartbeat(frames, readouts, TICK)
    parts = [find_heartbeat(frames[part], frames[:0], TICK) for part in (slice(0, 1), slice(1, 2), slice(2, None))]
    assert parts[0].frame_time == 0
    joined = parts[0].joined(parts[1]).joined(parts[2])
    np.testing.assert_array_equal(joined.since, whole.since)
    assert joined.frame_time == whole.frame_time
