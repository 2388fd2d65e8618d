import gc
import itertools
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.gating.gate import Gate
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.slices.buffers import Absent, SliceBuffers
from gadgets.slices.complete import SliceKey, describe
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Readouts
from tests.helpers.builders import encoding_xml, header_xml, readouts

LINES, COLUMNS, COILS = 8, 6, 2
LAST = AcquisitionFlag.LAST_IN_SLICE.bit
END = AcquisitionFlag.LAST_IN_MEASUREMENT.bit
SIEMENS = "<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor></acquisitionSystemInformation>"


def parallel(factor, mode="embedded"):
    steps = (
        f"<kspace_encoding_step_1>{factor}</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2>"
    )
    return (
        f"<parallelImaging><accelerationFactor>{steps}</accelerationFactor>"
        f"<calibrationMode>{mode}</calibrationMode></parallelImaging>"
    )


def header(*, matrix=LINES, lines=None, before="", extra="", **counts):
    """Header of `matrix` lines; `lines` is (minimum, maximum, center), the others say how many values a counter has."""
    limits = {name: (0, count - 1, 0) for name, count in {"average": 1, **counts}.items()}
    if lines != "missing":
        limits["kspace_encoding_step_1"] = lines or (0, matrix - 1, matrix // 2)
    space = (COLUMNS, matrix, 1)
    return parse_header(header_xml(encoding_xml(encoded=space, recon=space, limits=limits, extra=extra), before=before))


def scan(order, *names, flags=(), seed=0, **fields):
    """Readouts in the given order; every element of `order` holds the values of the counters `names`."""
    order = list(order)
    values = np.array(order).reshape(len(order), len(names))
    block = readouts(len(order), COILS, COLUMNS, seed=seed, **dict(zip(names, values.T, strict=True)), **fields)
    for position, flag in flags:
        block.headers["flags"][position] |= flag
    return block


def line_by_line(*ranges):
    return list(itertools.product(*(range(r) if isinstance(r, int) else r for r in ranges)))


def feed(block, head, *, cuts=None, time_axis="auto"):
    """Send a block, whole runs or (default) readout by readout.

    Gives the slices with the number of readouts that had been sent when each left (None: at the end), the problems, and
    the buffers.
    """
    problems = Problems()
    buffers = SliceBuffers(head, problems, Settings.of(time_axis=time_axis))
    edges = range(len(block) + 1) if cuts is None else [0, *sorted(cuts), len(block)]
    left = []
    for begin, end in itertools.pairwise(edges):
        left += [(int(end), complete) for complete in buffers.add(block[begin:end])]
    left += [(None, complete) for complete in buffers.flush()]
    return left, problems, buffers


def sent(block, head, **arguments):
    left, problems, _ = feed(block, head, **arguments)
    return {complete.key: complete for _, complete in left}, problems


def plain(block, which, frames, rows, center, axis="phase"):
    """Lines of the readouts `which` by the definition: latest of equal average, mean over the averages."""
    latest = {}
    for i in which:
        counters = block.headers["idx"][i]
        row = rows // 2 - center + int(counters["kspace_encode_step_1"])
        if 0 <= row < rows and int(counters[axis]) in frames:
            latest[frames.index(int(counters[axis])), row, int(counters["average"])] = block.data[i]
    kspace = np.zeros((len(frames), COILS, rows, block.data.shape[2]), complex)
    count = np.zeros((len(frames), rows), int)
    for (frame, row, _), data in latest.items():
        kspace[frame, :, row] += data
        count[frame, row] += 1
    return kspace / np.maximum(count, 1)[:, None, :, None], count > 0


def check(complete, block, which, rows=LINES, center=LINES // 2, axis="phase"):
    kspace, mask = plain(block, which, complete.frames.tolist(), rows, center, axis)
    np.testing.assert_allclose(complete.cine.kspace, kspace, atol=1e-6)
    np.testing.assert_array_equal(complete.cine.mask, mask)
    np.testing.assert_array_equal(complete.lines, mask.sum(axis=1))
    assert complete.cine.kspace.dtype == np.complex64


def indices(block, **counters):
    chosen = np.ones(len(block), bool)
    for name, value in counters.items():
        chosen &= block.headers["idx"][name] == value
    return np.flatnonzero(chosen)


PHASE_LINE = ("phase", "kspace_encode_step_1")
NOTHING = Absent([], 0, cut_short=False)
SLICE_PHASE_LINE = ("slice", *PHASE_LINE)


# --- where lines go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "limits", "center"),
    [
        (8, (0, 7, 4), 4),
        (7, (0, 6, 3), 3),
        (8, (0, 5, 2), 2),  # partial Fourier, begin missing
        (8, (0, 5, 4), 4),  # partial Fourier, end missing
        (12, (0, 7, 4), 4),  # phase resolution below 100 %
        (8, (2, 7, 4), 4),
        (8, "missing", 4),
    ],
)
def test_lines_lie_at_their_distance_from_the_centre(matrix, limits, center):
    first, last = (0, 7) if limits == "missing" else limits[:2]
    block = scan(line_by_line(3, range(first, last + 1)), *PHASE_LINE)
    left, problems, _ = feed(block, header(matrix=matrix, lines=limits, phase=3))
    ((when, complete),) = left
    check(complete, block, range(len(block)), matrix, center)
    assert when is None
    assert list(problems) == []


def test_lines_beyond_the_matrix_are_left_out_with_one_notice():
    block = scan(line_by_line(2, 12), *PHASE_LINE)
    left, problems, _ = feed(block, header(matrix=8, lines=(0, 11, 6), phase=2))
    ((when, complete),) = left
    check(complete, block, range(len(block)), 8, 6)
    assert complete.cine.mask.all()
    assert when is None
    (problem,) = problems
    assert (problem.damage, problem.count) == (False, 8)


def test_lines_that_the_header_does_not_know_are_damage():
    order = [*line_by_line(1, 8), (0, 9), (0, 65535)]
    order.insert(3, (0, 300))
    block = scan(order, *PHASE_LINE)
    slices, problems = sent(block, header(phase=1))
    (complete,) = slices.values()
    check(complete, block, range(len(block)))
    (problem,) = problems
    assert (problem.damage, problem.count) == (True, 3)
    assert "readout 3 has line 300" in problem.text


@pytest.mark.parametrize(("own", "center"), [(3, 3), (0, 4), (6, 4), (5, 5), (60000, 4)])
def test_siemens_readouts_know_their_centre_better_than_the_header(own, center):
    """0 means not set; what lies beyond the limits is no line."""
    block = scan(line_by_line(2, 6), *PHASE_LINE)
    block.headers["idx"]["user"][:, 5] = own
    slices, problems = sent(block, header(lines=(0, 5, 4), phase=2, before=SIEMENS))
    (complete,) = slices.values()
    check(complete, block, range(len(block)), center=center)
    assert ("centre" in problems.kinds) == (center != 4)
    assert problems.damage == []


def test_other_vendors_may_use_that_counter_for_anything():
    block = scan(line_by_line(2, 6), *PHASE_LINE)
    block.headers["idx"]["user"][:, 5] = 3
    slices, problems = sent(block, header(lines=(0, 5, 4), phase=2))
    (complete,) = slices.values()
    check(complete, block, range(len(block)))
    assert list(problems) == []


@pytest.mark.parametrize("lines", [(0, 7, 4), (0, 5, 2)])
def test_header_of_a_frame_is_that_of_its_line_nearest_to_the_centre(lines):
    order = line_by_line(3, range(lines[0], lines[1] + 1))
    order.remove((1, lines[2]))
    order.remove((1, lines[2] - 1))
    rng = np.random.default_rng(0)
    block = scan([order[i] for i in rng.permutation(len(order))], *PHASE_LINE)
    slices, _ = sent(block, header(lines=lines, phase=3))
    (complete,) = slices.values()
    counters = complete.headers["idx"]
    np.testing.assert_array_equal(counters["phase"], [0, 1, 2])
    np.testing.assert_array_equal(counters["kspace_encode_step_1"], [lines[2], lines[2] + 1, lines[2]])
    for head in complete.headers:
        assert head == block.headers[head["scan_counter"]]


def test_time_stamps_of_a_frame_are_the_first_and_last_of_its_readouts():
    order = line_by_line(3, 8)
    rng = np.random.default_rng(0)
    block = scan([order[i] for i in rng.permutation(len(order))], *PHASE_LINE)
    block.headers["acquisition_time_stamp"] = rng.integers(1, 1 << 32, len(block))
    block.headers["physiology_time_stamp"] = rng.integers(0, 900, (len(block), 3))
    slices, _ = sent(block, header(phase=3))
    (complete,) = slices.values()
    for frame, found in enumerate(complete.stamps):
        own = block.headers[block.headers["idx"]["phase"] == frame]
        stamps = np.column_stack([own["acquisition_time_stamp"], own["physiology_time_stamp"]])
        np.testing.assert_array_equal(found, [[min(column), max(column)] for column in stamps.T])


# --- counters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averages", [2, 3])
def test_averages_are_averaged_over_those_that_came(averages):
    order = line_by_line(averages, 2, 8)
    order.remove((1, 1, 5))
    block = scan(order, "average", *PHASE_LINE)
    slices, _ = sent(block, header(phase=2, average=averages))
    (complete,) = slices.values()
    check(complete, block, range(len(block)))


@pytest.mark.parametrize(
    "order", [("average", "phase", "line"), ("phase", "line", "average"), ("line", "average", "phase")]
)
def test_averages_may_come_in_any_order_and_the_slice_waits_for_all(order):
    sizes = {"average": 2, "phase": 3, "line": 8}
    names = ["kspace_encode_step_1" if name == "line" else name for name in order]
    block = scan(line_by_line(*(sizes[name] for name in order)), *names)
    left, problems, _ = feed(block, header(phase=3, average=2))
    ((when, complete),) = left
    assert when is None
    check(complete, block, range(len(block)))
    assert list(problems) == []


def test_of_readouts_with_equal_counters_the_last_wins():
    """A rejected beat is acquired again with the same counters."""
    order = [(0, 0), (0, 1), (0, 2), *line_by_line(2, 8)]
    block = scan(order, *PHASE_LINE)
    left, _, _ = feed(block, header(phase=2))
    ((when, complete),) = left
    assert when is None
    check(complete, block, range(len(block)))
    np.testing.assert_array_equal(complete.cine.kspace[0, :, 1], block.data[4])


def test_a_repeated_readout_does_not_stand_for_the_missing_average():
    first, second = [(0, 0, line) for line in range(8)], [(1, 0, line) for line in range(8)]
    block = scan([*first, *first[4:], *second], "average", *PHASE_LINE)
    left, problems, _ = feed(block, header(phase=1, average=2))
    ((when, complete),) = left
    assert when is None
    check(complete, block, range(len(block)))
    assert list(problems) == []


def test_segments_are_merged():
    order = [(segment, phase, 2 * segment + i) for segment in range(4) for phase in range(3) for i in range(2)]
    block = scan(order, "segment", *PHASE_LINE)
    left, problems, _ = feed(block, header(phase=3, segment=4))
    ((when, complete),) = left
    assert when is None
    check(complete, block, range(len(block)))
    assert list(problems) == []


@pytest.mark.parametrize("name", ["contrast", "set", "repetition"])
def test_contrasts_sets_and_repetitions_are_slices_of_their_own(name):
    block = scan(line_by_line(2, 3, 8), name, *PHASE_LINE)
    slices, problems = sent(block, header(phase=3, **{name: 2}))
    assert list(slices) == [SliceKey(0, 0, 0, 0, 0)._replace(**{name: value}) for value in range(2)]
    for key, complete in slices.items():
        check(complete, block, indices(block, **{name: getattr(key, name)}))
    assert list(problems) == []


def test_echoes_of_one_excitation_come_in_turn():
    block = scan(line_by_line(3, 8, 2), *PHASE_LINE, "contrast")
    left, _, _ = feed(block, header(phase=3, contrast=2))
    assert [(when, complete.key.contrast) for when, complete in left] == [(48, 0), (None, 1)]
    for _, complete in left:
        check(complete, block, indices(block, contrast=complete.key.contrast))


@pytest.mark.parametrize("time_axis", ["auto", "repetition"])
def test_repetitions_are_the_frames_when_nothing_else_counts(time_axis):
    block = scan(line_by_line(5, 8), "repetition", "kspace_encode_step_1")
    left, problems, _ = feed(block, header(phase=1, repetition=5), time_axis=time_axis)
    ((when, complete),) = left
    assert (when, complete.key) == (None, SliceKey(0, 0, 0, 0, 0))
    np.testing.assert_array_equal(complete.frames, range(5))
    check(complete, block, range(40), axis="repetition")
    assert list(problems) == []


def test_the_time_axis_can_be_forced():
    block = scan(line_by_line(2, 3, 8), "repetition", *PHASE_LINE)
    slices, _ = sent(block, header(phase=3, repetition=2), time_axis="repetition")
    (complete,) = slices.values()
    assert complete.cine.kspace.shape == (2, COILS, 8, COLUMNS)
    slices, _ = sent(block, header(phase=1, repetition=2), time_axis="phase")
    assert [key.repetition for key in slices] == [0, 1]


def test_slices_are_described():
    assert describe(SliceKey(0, 0, 0, 0, 3)) == "slice 3"
    text = describe(SliceKey(0, 1, 2, 4, 3))
    assert all(word in text for word in ("slice 3", "repetition 1", "set 2", "contrast 4"))


# --- completion -------------------------------------------------------------------------------------------------------

INTERLEAVED = {
    "sequential": [(s, f, line) for s in range(3) for f in range(4) for line in range(8)],
    "by readout": [(s, f, line) for f in range(4) for line in range(8) for s in range(3)],
    "by frame": [(s, f, line) for f in range(4) for s in range(3) for line in range(8)],
    "by segment": [(s, f, g * 2 + i) for g in range(4) for s in range(3) for f in range(4) for i in range(2)],
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sequential", [33, 65, None]),
        ("by readout", [95, 96, None]),
        ("by frame", [81, 89, None]),
        ("by segment", [81, 89, None]),
    ],
)
def test_a_fully_sampled_slice_leaves_when_the_stream_goes_on_without_it(name, expected):
    block = scan(INTERLEAVED[name], *SLICE_PHASE_LINE)
    left, problems, buffers = feed(block, header(slice=3, phase=4))
    assert [(when, complete.key.slice) for when, complete in left] == list(zip(expected, range(3), strict=True))
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice))
    assert list(problems) == []
    assert buffers.sent == 3
    assert buffers.absent() == NOTHING


@pytest.mark.parametrize("turns", [(1, 2, 0), (1, 0, 2)], ids=["by readout", "by frame"])
def test_slices_that_took_turns_leave_when_their_turn_is_over(turns):
    """Two groups of slices, those of a group taking turns, without flags and with part of the lines."""
    first = sorted(accelerated(slices=3), key=lambda item: tuple(item[i] for i in turns))
    order = [*first, *((s + 3, f, line) for s, f, line in first)]
    block = scan(order, *SLICE_PHASE_LINE)
    left, problems, _ = feed(block, header(matrix=16, slice=6, phase=4, extra=parallel(2)))
    assert sorted(complete.key.slice for when, complete in left if when is not None) == [0, 1, 2]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert list(problems) == []


@pytest.mark.parametrize("flagged", [True, False])
def test_frames_beyond_the_plan_of_slices_that_take_turns_come_out_by_themselves(flagged):
    order = [(s, f, line) for f in range(6) for line in range(8) for s in range(3)]
    flags = [(i, LAST) for i in ends(order, (0, 1))] if flagged else ()
    block = scan(order, *SLICE_PHASE_LINE, flags=flags)
    left, problems, _ = feed(block, header(slice=3, phase=4))
    for number in range(3):
        own = [complete for _, complete in left if complete.key.slice == number]
        assert np.concatenate([complete.frames for complete in own]).tolist() == list(range(6))
        for complete in own:
            check(complete, block, indices(block, slice=number))
    assert problems.damage == []


def accelerated(slices=2, frames=4, lines=16, factor=2, acs=6):
    """Lines of an undersampled scan with embedded reference lines, frame by frame, slice by slice."""
    middle = range(lines // 2 - acs // 2, lines // 2 + acs // 2)
    return [
        (s, f, line)
        for s in range(slices)
        for f in range(frames)
        for line in range(lines)
        if line % factor == f % factor or line in middle
    ]


ACCELERATED = {"matrix": 16, "slice": 2, "phase": 4, "extra": parallel(2)}


def ends(order, columns):
    """Position of the last readout of every combination of the given columns."""
    return sorted({tuple(item[c] for c in columns): i for i, item in enumerate(order)}.values())


@pytest.mark.parametrize(("per", "acceleration_known"), [("frame", True), ("frame", False), ("slice", True)])
def test_an_undersampled_slice_leaves_on_a_flag_of_slices_or_when_the_next_begins(per, acceleration_known):
    order = accelerated()
    flags = [(i, LAST) for i in ends(order, (0, 1) if per == "frame" else (0,))]
    block = scan(order, *SLICE_PHASE_LINE, flags=flags)
    extra = parallel(2) if acceleration_known else ""
    left, problems, _ = feed(block, header(**{**ACCELERATED, "extra": extra}))
    half, whole = len(order) // 2, len(order)
    expected = [half + 1, None] if per == "frame" else [half, whole]
    expected = expected if acceleration_known else [None, None]
    assert [(when, complete.key.slice) for when, complete in left] == list(zip(expected, range(2), strict=True))
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert problems.damage == []


def test_slices_interleaved_by_frame_leave_on_their_own_flags():
    order = sorted(accelerated(), key=lambda item: (item[1], item[0], item[2]))
    block = scan(order, *SLICE_PHASE_LINE, flags=[(i, LAST) for i in ends(order, (0, 1))])
    left, problems, _ = feed(block, header(**ACCELERATED))
    last = ends(order, (0,))
    assert [(when, complete.key.slice) for when, complete in left] == [(last[0] + 1, 0), (last[1] + 1, 1)]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert list(problems) == []


def in_segments(order, per_segment=3):
    """Regroup frame-wise lines: some lines of every frame, then the next lines of every frame."""
    place, rank = {}, {}
    for s, f, line in order:
        rank[s, f, line] = place.setdefault((s, f), 0)
        place[s, f] += 1
    return sorted(
        ((rank[item] // per_segment, *item) for item in order), key=lambda item: (item[1], item[0], item[2], item[3])
    )


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("slices_in_turn", [True, False])
def test_flags_of_every_segment_do_not_cut_a_slice_short(factor, slices_in_turn):
    order = in_segments(accelerated(factor=factor))
    if not slices_in_turn:
        order.sort(key=lambda item: (item[0], item[1]))
    flags = [(i, LAST) for i in ends(order, (0, 1, 2))]
    block = scan(order, "segment", *SLICE_PHASE_LINE, flags=flags)
    segments = max(item[0] for item in order) + 1
    left, problems, _ = feed(block, header(**{**ACCELERATED, "extra": parallel(factor)}, segment=segments))
    assert sorted(complete.key.slice for _, complete in left) == [0, 1]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert problems.damage == []


def test_without_flags_a_slice_leaves_when_the_next_begins():
    order = accelerated(slices=3)
    block = scan(order, *SLICE_PHASE_LINE)
    left, problems, _ = feed(block, header(**{**ACCELERATED, "slice": 3}))
    third = len(order) // 3
    assert [(when, complete.key.slice) for when, complete in left] == [(third + 1, 0), (2 * third + 1, 1), (None, 2)]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert list(problems) == []


@pytest.mark.parametrize("key", [(1, 0, 2), (1, 2, 0)], ids=["by frame", "by readout"])
def test_interleaved_slices_without_flags_leave_at_the_end(key):
    order = sorted(accelerated(), key=lambda item: tuple(item[i] for i in key))
    block = scan(order, *SLICE_PHASE_LINE)
    left, problems, _ = feed(block, header(**ACCELERATED))
    assert [(when, complete.key.slice) for when, complete in left] == [(None, 0), (None, 1)]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice), 16, 8)
    assert list(problems) == []


def test_the_end_of_the_measurement_sends_the_slice_that_is_complete():
    order = accelerated()
    block = scan(order, *SLICE_PHASE_LINE, flags=[(len(order) - 1, END)])
    left, _, _ = feed(block, header(**ACCELERATED))
    assert [(when, complete.key.slice) for when, complete in left] == [(len(order) // 2 + 1, 0), (len(order), 1)]


def test_a_wrong_end_of_the_measurement_loses_nothing():
    """Some senders flag the end of every repetition, or of a measurement that goes on."""
    order = INTERLEAVED["sequential"]
    block = scan(order, *SLICE_PHASE_LINE, flags=[(i, END) for i in (5, 40, 95)])
    left, problems, _ = feed(block, header(slice=3, phase=4))
    assert [when for when, _ in left] == [33, 65, None]
    assert list(problems) == []


def test_shuffled_flags_are_not_believed():
    """In a shuffled stream the readout that is flagged as the last comes early."""
    order = accelerated(slices=1)
    flagged = ends(order, (1,))
    shuffled = np.random.default_rng(3).permutation(len(order))
    block = scan(order, *SLICE_PHASE_LINE, flags=[(i, LAST) for i in flagged])[shuffled]
    for extra in (parallel(2), ""):
        left, problems, _ = feed(block, header(**{**ACCELERATED, "slice": 1, "extra": extra}))
        ((_, complete),) = left
        check(complete, block, range(len(block)), 16, 8)
        assert problems.damage == []


# --- plans that are not kept ------------------------------------------------------------------------------------------


def test_uneven_beats_give_frames_with_missing_lines_and_missing_frames():
    """The header promises 6 frames; segments of 2 lines have 5, 4, 5 and 3."""
    order = [(f, 2 * g + i) for g, frames in enumerate((5, 4, 5, 3)) for f in range(frames) for i in range(2)]
    block = scan(order, *PHASE_LINE)
    left, problems, _ = feed(block, header(phase=6))
    ((when, complete),) = left
    assert when is None
    check(complete, block, range(len(block)))
    np.testing.assert_array_equal(complete.frames, range(5))
    np.testing.assert_array_equal(complete.lines, [8, 8, 8, 6, 4])
    assert len(complete.notes) == 2
    assert "frames" in complete.notes[0]
    assert "lines" in complete.notes[1]
    assert sorted(problem.damage for problem in problems) == [False, True]


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("cut", [0, 5])
def test_fewer_frames_than_promised_are_a_loss_if_the_last_was_cut_short(flagged, cut):
    order = accelerated(slices=1, frames=4)
    flags = [(i, LAST) for i in ends(order, (0, 1))] if flagged else ()
    block = scan(order, *SLICE_PHASE_LINE, flags=flags)[: len(order) - cut]
    slices, problems = sent(block, header(matrix=16, slice=1, phase=6, extra=parallel(2)))
    (complete,) = slices.values()
    check(complete, block, range(len(block)), 16, 8)
    assert bool(problems.damage) is bool(cut)
    assert bool(complete.notes) is bool(cut)


def test_more_frames_than_promised_are_kept():
    order = accelerated(slices=1, frames=7)
    block = scan(order, *SLICE_PHASE_LINE)
    slices, problems = sent(block, header(matrix=16, slice=1, phase=4, extra=parallel(2)))
    (complete,) = slices.values()
    np.testing.assert_array_equal(complete.frames, range(7))
    check(complete, block, range(len(block)), 16, 8)
    assert list(problems) == []


def test_frames_may_begin_above_zero_and_have_gaps():
    order = [(f, line) for f in (2, 3, 6) for line in range(8)]
    block = scan(order, *PHASE_LINE)
    slices, problems = sent(block, header(phase=7))
    (complete,) = slices.values()
    np.testing.assert_array_equal(complete.frames, [2, 3, 6])
    np.testing.assert_array_equal(complete.headers["idx"]["phase"], [2, 3, 6])
    check(complete, block, range(len(block)))
    assert "4 of 7 frames" in problems.damage[0].text


def with_stray(order, at, **counters):
    """Readouts of an order with one more, its counters far beyond the header's limits, at position `at`."""
    block = scan(order, *SLICE_PHASE_LINE)
    stray = scan([order[at]], *SLICE_PHASE_LINE, first=9999, seed=9)
    for name, value in counters.items():
        stray.headers["idx"][name] = value
    headers = np.concatenate([block.headers[:at], stray.headers, block.headers[at:]])
    return block, Readouts(headers, np.concatenate([block.data[:at], stray.data, block.data[at:]]))


STRAYS = [{"phase": 3000}, {"slice": 40}, {"slice": 65535}, {"contrast": 9}, {"set": 700}, {"repetition": 3}]


@pytest.mark.parametrize("counters", STRAYS, ids=str)
@pytest.mark.parametrize("at", [0, 7, 33, 40, 60])
@pytest.mark.parametrize("kind", ["sequential", "undersampled", "interleaved"])
def test_one_stray_readout_changes_nothing_but_the_list_of_problems(kind, at, counters):
    limits = dict.fromkeys(("contrast", "set", "repetition"), 1)
    if kind == "undersampled":
        order, head = accelerated(), header(**ACCELERATED, **limits)
    else:
        order = INTERLEAVED["sequential" if kind == "sequential" else "by readout"]
        head = header(slice=3, phase=4, **limits)
    clean, block = with_stray(order, at, **counters)
    expected, _, _ = feed(clean, head)
    left, problems, buffers = feed(block, head)
    shifted = [None if when is None else when + (when > at) for when, _ in expected]
    assert [when for when, _ in left] == shifted
    for (_, complete), (_, other) in zip(left, expected, strict=True):
        same_slice(complete, other)
        assert complete.notes == other.notes
    (problem,) = problems
    assert (problem.damage, problem.count) == (True, 1)
    assert "readout 9999" in problem.text
    assert buffers.absent() == NOTHING


def test_more_slices_than_promised_are_kept():
    block = scan(INTERLEAVED["by readout"], *SLICE_PHASE_LINE)
    slices, problems = sent(block, header(slice=1, phase=4))
    assert [key.slice for key in slices] == [0, 1, 2]
    for key, complete in slices.items():
        check(complete, block, indices(block, slice=key.slice))
    assert problems.damage == []


def test_an_unbelievable_frame_takes_no_memory():
    _, block = with_stray(INTERLEAVED["sequential"], 5, phase=65535)
    slices, problems = sent(block, header(slice=3, phase=4))
    assert all(complete.cine.kspace.shape[0] == 4 for complete in slices.values())
    (problem,) = problems
    assert problem.damage
    assert "65535" in problem.text


def test_missing_lines_are_noted_with_slice_and_frame():
    order = [item for item in INTERLEAVED["sequential"] if item not in {(1, 2, 3), (1, 2, 4)}]
    block = scan(order, *SLICE_PHASE_LINE)
    slices, problems = sent(block, header(slice=3, phase=4))
    assert sorted(key.slice for key in slices) == [0, 1, 2]
    (problem,) = problems
    assert problem.text == slices[SliceKey(0, 0, 0, 0, 1)].notes[0]
    assert all(word in problem.text for word in ("slice 1", "frame 2", "6", "8"))
    assert slices[SliceKey(0, 0, 0, 0, 0)].notes == ()


def test_readouts_of_frames_that_have_left_are_named():
    order = [*line_by_line(2, 2, 8), (0, 1, 3), (0, 0, 2)]
    block = scan(order, *SLICE_PHASE_LINE)
    left, problems, _ = feed(block, header(slice=2, phase=2))
    assert [(when, complete.key.slice) for when, complete in left] == [(17, 0), (33, 1)]
    check(left[0][1], block, range(16))
    (problem,) = problems
    assert (problem.damage, problem.count) == (True, 2)
    assert "readout 32" in problem.text
    assert "slice 0" in problem.text


def test_frames_after_all_that_are_promised_come_out_by_themselves():
    """The header promises as many as came before the stream went on with another slice."""
    order = [*line_by_line(2, 2, 8), *line_by_line(2, (2, 3, 4), 8)]
    block = scan(order, *SLICE_PHASE_LINE)
    left, problems, _ = feed(block, header(slice=2, phase=2))
    assert [(complete.key.slice, complete.frames.tolist()) for _, complete in left] == [
        (0, [0, 1]),
        (1, [0, 1]),
        (0, [2, 3, 4]),
        (1, [2, 3, 4]),
    ]
    for _, complete in left:
        check(complete, block, indices(block, slice=complete.key.slice))
    assert problems.damage == []
    assert "went on with 3 frames" in left[2][1].notes[0]


def test_a_scan_that_ends_early_lacks_slices():
    block = scan(INTERLEAVED["sequential"][:50], *SLICE_PHASE_LINE)
    left, problems, buffers = feed(block, header(slice=3, phase=4))
    assert [(when, complete.key.slice) for when, complete in left] == [(33, 0), (None, 1)]
    assert buffers.absent() == Absent([], 1, cut_short=True)
    check(left[1][1], block, range(32, 50))
    assert len(problems.damage) == 1


def test_absent_slices_are_counted_without_being_listed_all():
    block = scan(line_by_line(1, 8), *PHASE_LINE)
    _, _, buffers = feed(block, header(phase=1, slice=65536, contrast=60000))
    assert buffers.absent() == Absent([], 65536 * 60000 - 1, cut_short=False)


def test_slices_between_others_are_lost():
    order = [item for item in line_by_line(5, 2, 8) if item[0] not in {1, 3}]
    _, _, buffers = feed(scan(order, *SLICE_PHASE_LINE), header(slice=5, phase=2))
    assert [key.slice for key in buffers.absent().gaps] == [1, 3]


# --- reference lines --------------------------------------------------------------------------------------------------


def test_embedded_reference_lines_are_lines_of_their_frame():
    order = accelerated(slices=1)
    block = scan(order, *SLICE_PHASE_LINE)
    for i, (_, f, line) in enumerate(order):
        if 5 <= line < 11:
            on_grid = line % 2 == f % 2
            flag = AcquisitionFlag.CALIBRATION_AND_IMAGING if on_grid else AcquisitionFlag.PARALLEL_CALIBRATION
            block.headers["flags"][i] |= flag.bit
    slices, _ = sent(block, header(matrix=16, slice=1, phase=4, extra=parallel(2, "embedded")))
    (complete,) = slices.values()
    check(complete, block, range(len(block)), 16, 8)
    assert complete.cine.calibration is None


@pytest.mark.parametrize("mode", ["separate", "external", "other", "interleaved"])
def test_separate_reference_lines_are_kept_apart(mode):
    reference = scan([(s, 0, line) for s in (0, 1) for line in (3, 4, 5, 4)], *SLICE_PHASE_LINE, seed=7)
    reference.headers["flags"] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
    image = scan([(s, f, line) for s in (0, 1) for f in range(2) for line in range(f, 8, 2)], *SLICE_PHASE_LINE)
    image.headers["flags"][3] |= AcquisitionFlag.CALIBRATION_AND_IMAGING.bit
    block = Readouts(np.concatenate([reference.headers, image.headers]), np.concatenate([reference.data, image.data]))
    slices, problems = sent(block, header(slice=2, phase=2, extra=parallel(2, mode)))
    assert sorted(key.slice for key in slices) == [0, 1]
    for key, complete in slices.items():
        check(complete, image, indices(image, slice=key.slice))
        expected = np.zeros((COILS, 8, COLUMNS), complex)
        own = reference.data[4 * key.slice : 4 * key.slice + 4]
        expected[:, 3], expected[:, 4], expected[:, 5] = own[0], (own[1] + own[3]) / 2, own[2]
        np.testing.assert_allclose(complete.cine.calibration, expected, atol=1e-6)
    assert list(problems) == []


def test_a_slice_without_reference_lines_of_its_own_calibrates_itself():
    reference = scan([(0, 0, 4)], *SLICE_PHASE_LINE, flags=[(0, AcquisitionFlag.PARALLEL_CALIBRATION.bit)])
    image = scan(line_by_line(2, 1, 8), *SLICE_PHASE_LINE)
    block = Readouts(np.concatenate([reference.headers, image.headers]), np.concatenate([reference.data, image.data]))
    slices, _ = sent(block, header(slice=2, phase=1))
    assert [complete.cine.calibration is None for complete in slices.values()] == [False, True]


def test_reference_lines_alone_are_no_slice():
    block = scan(line_by_line(1, 8), *PHASE_LINE)
    block.headers["flags"] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
    left, _, buffers = feed(block, header(phase=1, extra=parallel(2, "separate")))
    assert left == []
    assert buffers.sent == 0


# --- invariance -------------------------------------------------------------------------------------------------------


def same_slice(ours, other, *, exact=True):
    assert ours.key == other.key
    compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
    compare(ours.cine.kspace, other.cine.kspace, **({} if exact else {"atol": 1e-6}))
    np.testing.assert_array_equal(ours.cine.mask, other.cine.mask)
    np.testing.assert_array_equal(ours.frames, other.frames)
    np.testing.assert_array_equal(ours.lines, other.lines)
    np.testing.assert_array_equal(ours.headers, other.headers)
    if ours.cine.calibration is not None or other.cine.calibration is not None:
        np.testing.assert_array_equal(ours.cine.calibration, other.cine.calibration)


FULL = [(a, s, f, line) for s in range(2) for f in range(3) for line in range(8) for a in range(2)]
PARTS = [(0, *item) for item in accelerated(slices=2, frames=3, lines=8, acs=2)]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_the_order_of_the_readouts_does_not_change_the_slices(seed, full, flagged):
    """Flags stand where a sender puts them: on what it sends last of a frame."""
    order = FULL if full else PARTS
    shuffled = [order[i] for i in np.random.default_rng(seed).permutation(len(order))]
    flags = [(i, LAST) for i in ends(shuffled, (1, 2))] if flagged else []
    block = scan(shuffled, "average", *SLICE_PHASE_LINE, flags=flags)
    head = header(slice=2, phase=3, average=2 if full else 1, extra="" if full else parallel(2))
    back = np.array([shuffled.index(item) for item in order])
    expected = block[back]
    expected.headers["flags"] = 0
    ordered, _ = sent(expected, head)
    slices, problems = sent(block, head, cuts=())
    assert slices.keys() == ordered.keys()
    for key, complete in slices.items():
        np.testing.assert_array_equal(complete.cine.kspace, ordered[key].cine.kspace)
        np.testing.assert_array_equal(complete.cine.mask, ordered[key].cine.mask)
        np.testing.assert_array_equal(complete.frames, ordered[key].frames)
    assert problems.damage == []


def troubled_stream():
    """Flags, repeats, strays, reference lines, late readouts and several contrasts in one run."""
    order = sorted(accelerated(slices=2, frames=3, lines=8, acs=2), key=lambda item: (item[1] // 2, item[0]))
    order = [(c, *item) for item in order for c in range(2)]
    block = scan(order, "contrast", *SLICE_PHASE_LINE, flags=[(i, LAST) for i in ends(order, (0, 1, 2))])
    flags, counters = block.headers["flags"], block.headers["idx"]
    flags[[2, 30]] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
    flags[40] |= END
    counters["phase"][7] = 90
    counters["slice"][[12, 13]] = 9
    flags[[12, 13]] |= LAST
    counters["kspace_encode_step_1"][20] = 44
    extra = block[np.array([0, 1, 5, 6])]
    return Readouts(np.concatenate([block.headers, extra.headers]), np.concatenate([block.data, extra.data]))


@settings(max_examples=80)
@given(st.data())
def test_cutting_the_stream_into_blocks_changes_nothing(data):
    kind = data.draw(st.sampled_from(["troubled", "single frame", "full", "accelerated"]))
    if kind == "troubled":
        block = troubled_stream()
        head = header(slice=2, phase=3, contrast=2, extra=parallel(2, "separate"))
    elif kind == "single frame":
        order = [(s, 0, line) for s in (0, 7, 0, 1) for line in range(0, 8, 1 + s)]
        block = scan(order, *SLICE_PHASE_LINE, flags=[(i, LAST) for i in (7, 8, 9, 14)])
        head = header(slice=2, phase=1)
    elif kind == "full":
        block = scan(FULL, "average", *SLICE_PHASE_LINE)
        head = header(slice=2, phase=3, average=2)
    else:
        order = accelerated(slices=3)
        block = scan(order, *SLICE_PHASE_LINE, flags=[(i, LAST) for i in ends(order, (0,))])
        head = header(**{**ACCELERATED, "slice": 3})
    cuts = data.draw(st.sets(st.integers(1, len(block) - 1), max_size=30))
    expected, problems, _ = feed(block, head)
    left, others, _ = feed(block, head, cuts=cuts)
    assert len(left) == len(expected)
    for (_, complete), (_, other) in zip(left, expected, strict=True):
        same_slice(complete, other)
        assert complete.notes == other.notes
    counts = {kind: problem.count for kind, problem in problems.kinds.items()}
    assert {kind: problem.count for kind, problem in others.kinds.items()} == counts


def test_encodings_are_buffered_apart():
    space = {"encoded": (COLUMNS, 8, 1), "recon": (COLUMNS, 8, 1)}
    small = {"encoded": (COLUMNS, 4, 1), "recon": (COLUMNS, 4, 1)}
    head = parse_header(header_xml(encoding_xml(**space), encoding_xml(**small)))
    first = scan(line_by_line(4, 8), *PHASE_LINE)
    second = scan(line_by_line(4, 4), *PHASE_LINE, encoding_space_ref=1, seed=3)
    problems = Problems()
    buffers = SliceBuffers(head, problems, Settings())
    left = [*buffers.add(first[:20]), *buffers.add(second), *buffers.add(first[20:]), *buffers.flush()]
    assert [(complete.key.encoding, complete.cine.kspace.shape[2]) for complete in left] == [(0, 8), (1, 4)]
    check(left[0], first, range(32))
    check(left[1], second, range(16), 4, 2)
    assert list(problems) == []


def test_what_has_left_takes_no_more_memory():
    problems = Problems()
    buffers = SliceBuffers(header(slice=3, phase=4), problems, Settings())
    order, alive = INTERLEAVED["sequential"], []
    for number in range(3):
        block = scan(order[32 * number : 32 * (number + 1)], *SLICE_PHASE_LINE)
        alive.append(weakref.ref(block.data))
        left = list(buffers.add(block))
        assert len(left) == (number > 0)
        del block, left
    gc.collect()
    assert [reference() is None for reference in alive] == [True, True, False]


def test_slices_own_their_memory():
    block = scan(line_by_line(2, 8), *PHASE_LINE)
    slices, _ = sent(block, header(phase=2))
    (complete,) = slices.values()
    assert not np.shares_memory(complete.cine.kspace, block.data)
    assert not np.shares_memory(complete.headers, block.headers)


# --- coil compression -------------------------------------------------------------------------------------------------


def low_rank(block, rank=1, seed=3):
    """The block with data of `rank` independent coils only, and the combinations that made them."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((COILS, rank)) + 1j * generator.standard_normal((COILS, rank))
    return Readouts(block.headers, np.einsum("cr,nrs->ncs", mix, block.data[:, :rank]).astype(np.complex64))


def compressed(block, head, cuts=None, **virtual):
    buffers = SliceBuffers(head, Problems(), Settings.of(**virtual))
    edges = range(len(block) + 1) if cuts is None else [0, *sorted(cuts), len(block)]
    left = [done for begin, end in itertools.pairwise(edges) for done in buffers.add(block[begin:end])]
    return [*left, *buffers.flush()]


def test_virtual_coils_hold_all_of_a_signal_of_low_rank():
    block = low_rank(scan(line_by_line(3, LINES), "phase", "kspace_encode_step_1"))
    head = header(phase=3)
    whole, few = (compressed(block, head, **virtual)[0] for virtual in ({}, {"coil_energy": 0.999}))
    assert whole.compression is None
    assert few.cine.kspace.shape == (3, 1, LINES, COLUMNS)
    back = np.einsum("vc,fvyx->fcyx", few.compression.conj(), few.cine.kspace)
    np.testing.assert_allclose(back, whole.cine.kspace, atol=1e-5)


def test_a_fixed_number_of_virtual_coils():
    block = scan(line_by_line(3, LINES), "phase", "kspace_encode_step_1")
    [done] = compressed(block, header(phase=3), virtual_coils=1)
    assert done.cine.kspace.shape[1] == 1
    np.testing.assert_allclose(np.linalg.norm(done.compression), 1, rtol=1e-6)


@pytest.mark.parametrize("wanted", [COILS, COILS + 7])
def test_coils_that_are_not_too_many_stay_as_they_are(wanted):
    block = scan(line_by_line(3, LINES), "phase", "kspace_encode_step_1")
    plain, [done] = (compressed(block, header(phase=3), **virtual)[:1] for virtual in ({}, {"virtual_coils": wanted}))
    assert done.compression is None
    np.testing.assert_array_equal(done.cine.kspace, plain[0].cine.kspace)


@given(st.sets(st.integers(1, 3 * LINES * 2 - 1), max_size=8), st.booleans())
@settings(max_examples=30)
def test_virtual_coils_do_not_depend_on_cuts(cuts, frame_first):
    order = line_by_line(2, 3, LINES)
    if not frame_first:  # line by line, all frames of a line together, as a segmented scan does
        order = [(s, f, line) for s in range(2) for line in range(LINES) for f in range(3)]
    block = scan(order, "slice", "phase", "kspace_encode_step_1")
    head = header(slice=2, phase=3)
    expected = compressed(block, head, virtual_coils=1)
    for got, want in zip(compressed(block, head, cuts, virtual_coils=1), expected, strict=True):
        assert np.array_equal(got.cine.kspace, want.cine.kspace)
        assert np.array_equal(got.compression, want.compression)


def test_virtual_coils_without_the_centre_are_learned_from_all_that_came():
    block = low_rank(scan(line_by_line(2, 3), "phase", "kspace_encode_step_1"))
    [done] = compressed(block, header(phase=2), coil_energy=0.999)
    assert done.compression.shape == (1, COILS)


def test_coils_of_zeros_are_kept_as_they_are():
    block = scan(line_by_line(2, LINES), "phase", "kspace_encode_step_1")
    block = Readouts(block.headers, np.zeros_like(block.data))
    [done] = compressed(block, header(phase=2), coil_energy=0.9)
    assert np.array_equal(done.compression, np.eye(COILS))


def test_a_separate_reference_is_brought_to_the_virtual_coils():
    reference = scan(line_by_line(LINES), "kspace_encode_step_1")
    reference.headers["flags"] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
    images = low_rank(scan(line_by_line(2, LINES), "phase", "kspace_encode_step_1"))
    block = Readouts(np.concatenate([reference.headers, images.headers]), np.concatenate([reference.data, images.data]))
    [done] = compressed(block, header(phase=2, extra=parallel(2, "separate")), coil_energy=0.999)
    expected = np.einsum("vc,ycx->vyx", done.compression, reference.data)
    np.testing.assert_allclose(done.cine.calibration, expected, atol=1e-5)


# --- gating -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "gated"), [("auto", False), ("retrospective", True)])
def test_repetitions_that_are_the_frames_are_gated_only_where_that_is_asked_for(mode, gated):
    """The protocol of a scan in real time may still announce the frames of retrospective gating."""
    long = "<userParameterLong><name>RetroGatedImages</name><value>6</value></userParameterLong>"
    limits = {"repetition": (0, 3, 0), "kspace_encoding_step_1": (0, LINES - 1, LINES // 2)}
    space = (COLUMNS, LINES, 1)
    encoding = encoding_xml(encoded=space, recon=space, limits=limits)
    head = parse_header(header_xml(encoding, before=SIEMENS, after=f"<userParameters>{long}</userParameters>"))
    time = 40 * np.arange(4 * LINES)  # ticks; eight readouts in a beat of 800 ms
    block = scan(
        line_by_line(4, LINES),
        "repetition",
        "kspace_encode_step_1",
        acquisition_time_stamp=17_000_000 + time,
        physiology_time_stamp=np.stack([time % 320, 0 * time, 0 * time], axis=1),
    )
    problems, settings = Problems(), Settings.of(gating=mode)
    buffers = SliceBuffers(head, problems, settings, Gate(head, settings, problems))
    (complete,) = [*buffers.add(block), *buffers.flush()]
    assert (complete.gating is not None) is gated
    assert len(complete.frames) == (6 if gated else 4)
    assert complete.heartbeat.real_time is not gated
    assert not problems.damage


# --- what is to come --------------------------------------------------------------------------------------------------


def to_come(block, head):
    """What is to come after each slice, by the slices in the order in which they leave."""
    buffers, found = SliceBuffers(head, Problems(), Settings()), []
    for i in range(len(block)):
        found += [(complete.key.slice, buffers.to_come()) for complete in buffers.add(block[i : i + 1])]
    return found + [(complete.key.slice, buffers.to_come()) for complete in buffers.flush()]


@pytest.mark.parametrize("given", [3, 2])
def test_slices_one_after_another_are_still_to_be_measured(given):
    """As the header promises, until the scan is over."""
    names = ("slice", "phase", "kspace_encode_step_1")
    found = to_come(scan(line_by_line(given, 2, LINES), *names), header(slice=3, phase=2))
    size = 2 * LINES
    assert found == [*[(0, (2, 2 * size)), (1, (1, size))][: given - 1], (given - 1, (0, 0))]


def test_interleaved_slices_are_there_already():
    block = scan(line_by_line(2, LINES, 3), "phase", "kspace_encode_step_1", "slice")
    assert to_come(block, header(slice=3, phase=2)) == [(0, (2, 2)), (1, (1, 1)), (2, (0, 0))]


def test_at_the_end_of_the_scan_only_what_has_come_is_to_come():
    """Three of the five slices that were promised, each with a line less."""
    block = scan(line_by_line(3, 2, LINES - 1), "slice", "phase", "kspace_encode_step_1")
    head = header(slice=5, phase=2, extra=parallel(1))
    assert [(number, rest) for number, (rest, _) in to_come(block, head)] == [(0, 2), (1, 1), (2, 0)]


def test_in_real_time_every_window_has_time_for_itself():
    block = scan(line_by_line(2, 2, LINES), "repetition", "slice", "kspace_encode_step_1")
    buffers = SliceBuffers(header(slice=2, repetition=2), Problems(), Settings.of(realtime="sliding"))
    for _ in itertools.chain(buffers.add(block), buffers.flush()):
        assert buffers.to_come() == (0, 0)
    assert buffers.sent == 2
