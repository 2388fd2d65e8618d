import numpy as np
import pytest

from recon_core.errors import DataError
from recon_core.gating.beats import (
    BRIDGED,
    REGULAR,
    REJECTED,
    REPAIRED,
    SYSTOLE,
    Rhythm,
    bin_lines,
    cycle_position,
    find_rhythm,
    time_since,
    trigger_interval,
)

STEP = 10.0  # ms from readout to readout


def stamps(rr, *, triggers=None, until=None):
    """Time and time since the last trigger of a run through beats of `rr` ms; `triggers` are those that were seen."""
    seen = np.concatenate([[0.0], np.cumsum(rr)]) if triggers is None else np.asarray(triggers, float)
    time = np.arange(0.0, np.sum(rr) if until is None else until, STEP)
    return time - seen[np.searchsorted(seen, time, side="right") - 1], time


def one_beat(count=1, grade=REGULAR, rr=1000.0):
    return Rhythm(np.zeros(count, np.intp), np.zeros(count), np.array([rr]), np.array([grade]), rr)


def test_regular_beats():
    rr = [900.0, 1000.0, 1100.0, 950.0]
    rhythm = find_rhythm(*stamps(rr))
    np.testing.assert_allclose(rhythm.rr, rr, atol=1.01 * STEP)  # nothing tells how long the last one was but its end
    assert rhythm.rr[:3].tolist() == rr[:3]
    assert set(rhythm.grade) == {REGULAR}
    assert rhythm.typical == pytest.approx(975.0, abs=STEP)
    assert np.bincount(rhythm.beat).tolist() == [90, 100, 110, 95]


def test_ectopic_beat_and_its_pause_are_rejected():
    rhythm = find_rhythm(*stamps([1000, 1000, 600, 1300, 1000, 1000]))
    assert rhythm.grade.tolist() == [REGULAR, REGULAR, REJECTED, REJECTED, REGULAR, REGULAR]
    assert rhythm.typical == 1000.0
    assert find_rhythm(*stamps([1000, 1000, 600, 1300, 1000, 1000]), tolerance=0.5).grade.tolist() == [REGULAR] * 6


def test_missed_trigger_makes_two_beats():
    since, time = stamps([1000, 2100, 1000, 1000])
    rhythm = find_rhythm(since, time)
    assert rhythm.rr[:4].tolist() == [1000, 1050, 1050, 1000]
    assert rhythm.grade.tolist() == [REGULAR, REPAIRED, REPAIRED, REGULAR, REGULAR]
    second = rhythm.beat == 2
    np.testing.assert_allclose(rhythm.since[second], time[second] - 2050)
    assert time[second].min() == 2050


@pytest.mark.parametrize("false", [1200, 1300, 1500, 1700])
def test_false_trigger_is_taken_out(false):
    since, time = stamps([1000, 1000, 1000, 1000], triggers=[0, 1000, false, 2000, 3000, 4000])
    rhythm = find_rhythm(since, time)
    assert rhythm.rr[:3].tolist() == [1000, 1000, 1000]
    assert rhythm.grade.tolist() == [REGULAR, REPAIRED, REGULAR, REGULAR]
    np.testing.assert_allclose(rhythm.since, time % 1000)


def test_beats_without_readouts_are_not_one_long_beat():
    since, time = stamps([1000] * 6)
    here = (time < 1000) | ((time >= 2000) & (time < 3000)) | (time >= 4000)
    rhythm = find_rhythm(since[here], time[here])
    assert set(rhythm.grade) == {REGULAR}
    np.testing.assert_allclose(rhythm.rr, 1000, atol=1.01 * STEP)


def test_beat_that_was_left_early_counts_as_typical():
    rhythm = find_rhythm(*stamps([1000, 1000, 1000], until=2400))
    assert rhythm.rr.tolist() == [1000, 1000, 1000]
    assert set(rhythm.grade) == {REGULAR}


def test_without_times_the_last_readout_ends_the_beat():
    since, _ = stamps([1000, 1100, 600, 950])
    rhythm = find_rhythm(since, None)
    assert rhythm.rr.tolist() == [1000, 1100, 600, 950]
    assert rhythm.grade.tolist() == [REGULAR, REGULAR, REJECTED, REGULAR]
    assert not rhythm.by_time


def test_rr_intervals_of_the_scanner():
    rr = np.array([1000.0, 1100.0, 600.0, 950.0])
    since, time = stamps(rr)
    told = np.repeat(rr, np.bincount(np.searchsorted(np.cumsum(rr), time, side="right")))
    half = since < 450  # the beats were left early, so that their last readouts tell nothing
    rhythm = find_rhythm(since[half], None, stated=told[half])
    assert rhythm.rr.tolist() == rr.tolist()
    assert rhythm.grade.tolist() == [REGULAR, REGULAR, REJECTED, REGULAR]
    assert rhythm.by_time
    for wrong in (np.full_like(told, 3.0), np.full_like(told, 9000.0), 0.5 * told):
        by_itself = find_rhythm(since, None, stated=wrong)
        assert by_itself.rr.tolist() == rr.tolist()
        assert not by_itself.by_time


def test_time_since_triggers():
    triggers = np.array([1000.0, 1900.0, 2900.0])
    time = np.array([120.0, 1000.0, 1899.0, 1900.0, 4000.0])
    assert time_since(triggers, time).tolist() == [70.0, 0.0, 899.0, 0.0, 1100.0]  # as if one had been at 50
    for wrong in (triggers[:1], triggers[:0], triggers + 1e5, triggers - 1e5):
        with pytest.raises(DataError, match="R wave"):
            time_since(wrong, time)


def test_one_beat_is_the_whole_cycle():
    rhythm = find_rhythm(*stamps([900]))
    assert rhythm.rr.tolist() == [900]
    assert rhythm.grade.tolist() == [REGULAR]


@pytest.mark.parametrize(
    ("since", "words"),
    [
        (np.zeros(50), "stands still at 0"),
        (np.zeros(1), "stands still"),
        (np.full(50, 700.0), "stands still at 700"),
        (np.arange(500, 0, -10.0), "runs backwards"),
        (np.arange(50) * 10.0 + 10_761_000, "never falls"),
        (np.tile(np.arange(10) * 10.0, 8), "length of a tick"),
    ],
)
def test_what_is_no_heart_is_refused(since, words):
    with pytest.raises(DataError, match=words):
        find_rhythm(since, None)


def triggered(rr, last):
    """Time since the trigger and time of readouts every 10 ms, which end well before the next trigger."""
    since = np.arange(0.0, last, 10)
    starts = np.cumsum([0, *rr[:-1]])
    return np.tile(since, len(rr)), (starts[:, None] + since).ravel()


def test_the_interval_of_a_triggered_scan_is_that_of_its_triggers():
    assert trigger_interval(*triggered([900, 800, 810, 790, 820], 400)) == pytest.approx(805)
    assert trigger_interval(*triggered([800], 400)) == 0
    assert trigger_interval(triggered([800, 800], 400)[0], None) == 0
    assert trigger_interval(*triggered([4800] * 4, 400)) == 0  # beats were left out


def test_the_interval_of_triggers_that_are_none_is_refused():
    with pytest.raises(DataError, match="typical RR interval is 150 ms"):
        trigger_interval(*triggered([150] * 6, 120))
    with pytest.raises(DataError, match="never falls"):
        trigger_interval(np.arange(0.0, 9000, 10), np.arange(0.0, 9000, 10))


def test_systole_keeps_its_length():
    since = np.arange(0, 400, 10.0)
    short, long = (cycle_position(since, rr, 1000.0) for rr in (700.0, 1400.0))
    np.testing.assert_allclose(short, since / 1000)
    np.testing.assert_allclose(long, since / 1000)
    assert cycle_position(700.0 * 0.999, 700.0, 1000.0) == pytest.approx(1.0, abs=0.01)
    assert cycle_position(900.0, 1400.0, 1000.0) == pytest.approx(SYSTOLE + 0.6 * 500 / 1000)
    np.testing.assert_allclose(cycle_position(since, 1000.0, 1000.0), since / 1000)
    np.testing.assert_allclose(cycle_position(since, 800.0, 1000.0, stretch="cycle"), since / 800)


def test_positions_stay_within_the_cycle_and_rise():
    for rr in (250.0, 400.0, 440.0, 450.0, 1000.0, 2500.0):
        position = cycle_position(np.linspace(0, 1.2 * rr, 200), rr, 1000.0)
        assert position.min() >= 0
        assert position.max() < 1
        assert (np.diff(position) >= 0).all()


def test_lines_are_interpolated_linearly_around_the_cycle():
    position = np.array([0.05, 0.25, 0.45, 0.65, 0.85])
    data = np.arange(5.0).astype(np.complex64).reshape(5, 1, 1)
    binned = bin_lines(data, np.full(5, 2), position, one_beat(5), 10, 4)
    expected = [0.25 * 4 + 0.75 * 0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 0.75 * 4]
    np.testing.assert_allclose(binned.kspace[:, 0, 2, 0], expected, atol=1e-6)
    assert (binned.grade[:, 2] == REGULAR).all()
    assert (binned.grade[:, [0, 1, 3]] == -1).all()
    assert not binned.kspace[:, :, [0, 1, 3]].any()


def test_many_readouts_are_averaged():
    rng = np.random.default_rng(0)
    position = np.arange(400) / 400
    data = rng.standard_normal((400, 1, 1)).astype(np.complex64)
    binned = bin_lines(data, np.zeros(400, np.intp), position, one_beat(400), 20, 1)
    assert np.std(binned.kspace) == pytest.approx(np.sqrt(2 / 3 / 20), rel=0.4)  # of a triangle of 20 readouts


def test_rejected_beats_serve_where_there_is_no_other():
    rhythm = Rhythm(np.repeat([0, 1], 20), np.zeros(40), np.array([1000.0, 600.0]), np.array([REGULAR, REJECTED]), 1e3)
    position = np.tile(np.arange(20) / 20, 2)
    row = np.concatenate([np.zeros(20), np.zeros(10), np.ones(10)]).astype(np.intp)
    data = np.repeat([1.0, 2.0], 20).astype(np.complex64).reshape(40, 1, 1)
    binned = bin_lines(data, row, position, rhythm, 10, 2)
    assert (binned.kspace[:, 0, 0, 0] == 1).all()
    assert (binned.grade[:, 0] == REGULAR).all()
    np.testing.assert_allclose(binned.kspace[:, 0, 1, 0], 2)
    assert set(binned.grade[:, 1]) == {REJECTED, BRIDGED}
    assert binned.used.all()


def test_wide_gaps_are_bridged_and_named():
    position = np.arange(20) / 40  # half of the cycle only
    data = np.ones((20, 2, 3), np.complex64)
    binned = bin_lines(data, np.zeros(20, np.intp), position, one_beat(20), 20, 1)
    np.testing.assert_allclose(binned.kspace, 1, atol=1e-6)
    assert (binned.grade[:10, 0] == REGULAR).all()
    assert (binned.grade[12:19, 0] == BRIDGED).all()


def test_clocks_that_contradict_each_other_are_refused():
    """Found by damaged stamps: the second beat would have begun before the first."""
    since = np.array([0.0, 0.0, 10.0, 4.2e9])
    time = np.array([1000.0, 1048.0, 1096.0, 7.3e8])
    with pytest.raises(DataError, match="contradict each other"):
        find_rhythm(since, time, 0.25)
