import numpy as np
import pytest

from gadgets.problems import Kind, Problems
from gadgets.settings.settings import Settings
from gadgets.slices.buffers import slice_buffers
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Readouts
from recon_core.budget import Budget
from recon_core.errors import SettingsError
from tests.helpers.builders import header_xml, readouts

SAMPLES = 16


def header(**limits):
    limits = {"kspace_encoding_step_1": (0, 4, 0), "phase": (0, 2, 0), **limits}
    return parse_header(header_xml(encoded=(SAMPLES, 8, 1), recon=(8, 8, 1), trajectory="radial", limits=limits))


def spokes(count, *, dimensions=2, **counters):
    made = readouts(count, samples=SAMPLES, **counters)
    numbers = made.headers["scan_counter"].astype(np.float32)
    path = np.tile(numbers[:, None, None] / 1000, (1, SAMPLES, dimensions))
    return Readouts(made.headers, made.data, path)


def slices(parts, problems=None, scan=None, **settings):
    """The slices that leave with each part, and at last the rest."""
    buffers = slice_buffers(scan or header(), Settings.of(**settings), problems or Problems(), Budget())
    return [[*buffers.add(part)] for part in parts] + [[*buffers.flush()]]


def test_readouts_are_rows_of_their_frame_in_the_order_in_which_they_came():
    part = spokes(6, phase=[0, 1, 0, 2, 1, 0])
    _, (complete,) = slices([part])
    cine = complete.cine
    np.testing.assert_array_equal(complete.lines, [3, 2, 1])
    np.testing.assert_array_equal(cine.mask, [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    for frame, row, number in ((0, 0, 0), (0, 1, 2), (0, 2, 5), (1, 0, 1), (1, 1, 4), (2, 0, 3)):
        np.testing.assert_array_equal(cine.kspace[frame, :, row], part.data[number])
        np.testing.assert_array_equal(cine.trajectory.positions[frame, row], part.trajectory[number])
    assert not cine.kspace[2, :, 1:].any()
    assert cine.trajectory.matrix == (8, 8)
    assert cine.trajectory.density is None
    np.testing.assert_array_equal(complete.headers["scan_counter"], part.headers["scan_counter"][[0, 1, 3]])


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_the_cut_of_the_stream_makes_no_difference(cut):
    part = spokes(10, phase=np.repeat([0, 1], 5))
    (*_, (whole,)), (*_, (pieces,)) = slices([part]), slices([part[:cut], part[cut:]])
    np.testing.assert_array_equal(whole.cine.kspace, pieces.cine.kspace)
    np.testing.assert_array_equal(whole.cine.trajectory.positions, pieces.cine.trajectory.positions)


def test_a_third_column_becomes_the_density():
    part = spokes(3, dimensions=3)
    (*_, (complete,)) = slices([part])
    np.testing.assert_array_equal(complete.cine.trajectory.density[0], part.trajectory[..., 2])


def test_consecutive_readouts_make_frames_and_a_short_last_one_is_left_out():
    for count, frames in ((15, 3), (14, 3), (13, 2)):
        (*_, (complete,)) = slices([spokes(count)], lines_per_frame=5)
        assert complete.frames.tolist() == [*range(frames)]
        assert complete.headers["idx"]["phase"].tolist() == [*range(frames)]
        assert not complete.cine.periodic


def test_a_slice_with_all_promised_frames_leaves_when_the_next_one_begins():
    first, second = (spokes(6, phase=np.repeat([0, 1, 2], 2), slice=number) for number in (0, 1))
    one, other, rest = slices([first, second], scan=header(slice=(0, 1, 0)))
    assert (len(one), len(other), len(rest)) == (0, 1, 1)
    part = spokes(4, phase=np.repeat([0, 1], 2))
    waits = slices([part, second], scan=header(slice=(0, 1, 0)))
    assert [len(left) for left in waits] == [0, 0, 2]


def test_frames_with_few_spokes_are_noted():
    problems = Problems()
    (*_, (complete,)) = slices([spokes(11, phase=[*[0] * 5, 1, *[2] * 5])], problems)
    assert "frame 1 has 1, most have 5" in complete.notes[0]
    assert Kind.MISSING_LINES in problems.kinds


def test_late_readouts_are_reported():
    problems = Problems()
    first, second = (spokes(6, phase=np.repeat([0, 1, 2], 2), slice=number) for number in (0, 1))
    slices([first, second, first], problems, header(slice=(0, 1, 0)))
    assert Kind.LATE_READOUT in problems.kinds


@pytest.mark.parametrize("cut", [1, 4, 7, 40])
def test_windows_leave_with_the_last_readout_of_a_frame(cut):
    part = spokes(48)
    left = slices(
        [part[at : at + cut] for at in range(0, 48, cut)],
        lines_per_frame=4,
        realtime="sliding",
        realtime_window=3,
    )
    windows = [one for some in left for one in some]
    assert [one.frames.tolist() for one in windows] == [[*range(8)], [8], [9], [10], [11]]
    assert [one.cine.context for one in windows] == [0, 2, 2, 2, 2]
    assert [len(one.cine.mask) for one in windows] == [8, 3, 3, 3, 3]
    for number, one in enumerate(windows[1:], 8):
        np.testing.assert_array_equal(one.cine.kspace[-1].swapaxes(0, 1), part.data[4 * number : 4 * number + 4])
    if cut == 4:
        assert [len(some) for some in left] == [0] * 7 + [1, 1, 1, 1, 1, 0]


def test_fixed_windows_have_no_context():
    windows = [
        one for some in slices([spokes(28)], lines_per_frame=4, realtime="fixed", realtime_window=3) for one in some
    ]
    assert [one.frames.tolist() for one in windows] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [one.cine.context for one in windows] == [0, 0, 2]


@pytest.mark.parametrize("realtime", ["sliding", "fixed"])
def test_late_readouts_in_real_time_are_reported(realtime):
    """Phases that begin anew without another repetition: the windows with them have left."""
    problems = Problems()
    part = spokes(40, phase=np.repeat(np.tile(np.arange(10), 2), 2))
    left = slices([part[at : at + 2] for at in range(0, 40, 2)], problems, realtime=realtime, realtime_window=4)
    shown = sum(int(one.lines.sum()) for some in left for one in some)
    assert shown < 40
    assert shown + problems.kinds[Kind.LATE_READOUT.value].count == 40


def test_the_counter_of_a_long_scan_in_real_time_wraps_around():
    problems = Problems()
    counters = (np.arange(20) + 65526) % 65536
    part = spokes(40, repetition=np.repeat(counters, 2))
    scan = header(phase=(0, 0, 0), repetition=(0, 65535, 0))
    left = slices([part[at : at + 2] for at in range(0, 40, 2)], problems, scan, realtime="sliding", realtime_window=4)
    windows = [one for some in left for one in some]
    assert np.concatenate([one.frames for one in windows]).tolist() == counters.tolist()
    assert np.concatenate([one.lines for one in windows]).tolist() == [2] * 20
    assert not list(problems)


@pytest.mark.parametrize("realtime", ["off", "fixed"])
def test_no_counter_is_too_large_where_consecutive_spokes_make_the_frames(realtime):
    problems = Problems()
    part = spokes(8, repetition=np.arange(5000, 5008))
    scan = header(phase=(0, 0, 0), repetition=(0, 9999, 0))
    left = slices([part], problems, scan, lines_per_frame=2, realtime=realtime)
    assert sum(int(one.lines.sum()) for some in left for one in some) == 8
    assert not problems.damage


@pytest.mark.parametrize("vendor", ["SIEMENS", "pulseq"])
def test_a_centre_line_is_not_asked_for(vendor):
    """No spoke lies at the centre more than another; a guess would stand in the comment of every image."""
    problems = Problems()
    limits = {"kspace_encoding_step_1": (0, 12, 0), "phase": (0, 2, 0)}
    named = f"<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>"
    text = header_xml(encoded=(SAMPLES, 8, 1), recon=(8, 8, 1), trajectory="radial", limits=limits, before=named)
    part = spokes(6)
    part.headers["idx"]["user"][:, 5] = 6
    slices([part], problems, parse_header(text))
    assert problems.guesses == ()


def beating(beats, number=0):
    """Spokes of beats of 100 readouts in 1000 ms each."""
    part = spokes(100 * beats, slice=number)
    part.headers["acquisition_time_stamp"] = 1000 + 4 * np.arange(len(part)) + 10_000 * number
    part.headers["physiology_time_stamp"][:, 0] = 4 * (np.arange(len(part)) % 100)
    return part


def test_a_gated_slice_leaves_when_the_next_one_has_begun():
    parts = [beating(4), beating(4, 1)[:8], beating(4, 1)[8:]]
    one, stray, other, rest = slices(parts, gating="retrospective", gated_frames=5, stamp_tick=2.5)
    assert (len(one), len(stray), len(other), len(rest)) == (0, 0, 1, 1)
    complete = other[0]
    assert complete.gating.source == "stamps"
    assert complete.frames.tolist() == [0, 1, 2, 3, 4]
    assert np.abs(complete.lines - 80).max() <= 4  # a spoke half-way between two frames has one of them
    assert complete.cine.periodic
    assert complete.heartbeat.rr == pytest.approx(1000, abs=10)
    # the first frame has the spokes of every beat that are nearest to its R wave
    first = [row for row in range(400) if row % 100 < 10 or row % 100 > 90]
    kept = {complete.cine.kspace[0, 0, row, 0] for row in range(80)}
    assert {parts[0].data[row, 0, 0] for row in first} <= kept


def test_every_beat_is_a_series_of_its_own():
    settings = {"gating": "retrospective", "gated_frames": 5, "stamp_tick": 2.5, "gated_output": "beats"}
    part = beating(4)
    *_, beats = slices([part], **settings)
    assert [one.key.repetition for one in beats] == [0, 1, 2, 3]
    assert [one.gating.beat for one in beats] == [0, 1, 2, 3]
    for number, one in enumerate(beats):
        assert one.frames.tolist() == [0, 1, 2, 3, 4]
        kept = set(one.cine.kspace[:, 0, :, 0][one.cine.mask].tolist())
        assert set(part.data[100 * number : 100 * number + 89, 0, 0].tolist()) <= kept  # but those near the next R wave
        assert 89 <= len(kept) <= 101


def test_interleaved_gated_slices_wait_for_the_end():
    one, other = beating(4), beating(4, 1)
    turns = [part[at : at + 1] for at in range(400) for part in (one, other)]
    *early, rest = slices(turns, gating="retrospective", gated_frames=5, stamp_tick=2.5)
    assert not any(early)
    assert [complete.key.slice for complete in rest] == [0, 1]


def test_a_slice_that_cannot_be_gated_is_reported():
    problems = Problems()
    assert slices([spokes(20)], problems, gating="retrospective") == [[], []]
    assert Kind.GATED_SLICE in problems.kinds


def test_frames_of_consecutive_spokes_are_not_gated():
    with pytest.raises(SettingsError, match="lines_per_frame"):
        slice_buffers(header(), Settings.of(gating="retrospective", lines_per_frame=5), Problems(), Budget())
