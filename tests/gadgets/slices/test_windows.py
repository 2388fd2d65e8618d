import itertools
import tracemalloc
import weakref
from collections import deque
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.chain import Chain
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.slices.buffers import SliceBuffers
from gadgets.wire.framing import EndOfStreamError
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Image, Readouts
from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import SettingsError
from tests.helpers.builders import encoding_xml, header_xml, readouts

LINES, COLUMNS, COILS, STEP = 8, 6, 2, 4
LAST, END = AcquisitionFlag.LAST_IN_SLICE.bit, AcquisitionFlag.LAST_IN_MEASUREMENT.bit


def header(acceleration=STEP, mode="interleaved", **counts):
    limits = {name: (0, count - 1, 0) for name, count in counts.items()}
    limits["kspace_encoding_step_1"] = (0, LINES - 1, LINES // 2)
    factor = f"<kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>"
    parallel = (
        f"<parallelImaging><accelerationFactor>{factor}<kspace_encoding_step_2>1</kspace_encoding_step_2>"
        f"</accelerationFactor><calibrationMode>{mode}</calibrationMode></parallelImaging>"
    )
    space = (COLUMNS, LINES, 1)
    return parse_header(header_xml(encoding_xml(encoded=space, recon=space, limits=limits, extra=parallel)))


def scan(frames, *, first=0, step=STEP, axis="repetition", seed=0, **fields):
    """Frame after frame, every `step`-th line, the lines shifting from frame to frame."""
    order = [(first + frame, line) for frame in range(frames) for line in range((first + frame) % step, LINES, step)]
    counter, line = np.array(order).T
    return readouts(
        len(order), COILS, COLUMNS, seed=seed, **{axis: counter % 65536}, kspace_encode_step_1=line, **fields
    )


def feed(block, head=None, cuts=None, **options):
    """Send a block, readout by readout or cut as asked; gives (readouts sent, window), problems."""
    problems = Problems()
    buffers = SliceBuffers(head or header(), problems, Settings.of(**{"time_axis": "repetition", **options}))
    edges = range(len(block) + 1) if cuts is None else [0, *sorted(cuts), len(block)]
    left = []
    for begin, end in itertools.pairwise(edges):
        left += [(end, window) for window in buffers.add(block[begin:end])] if end > begin else []
    return left + [(None, window) for window in buffers.flush()], problems


def frames_of(left):
    return [window.frames.tolist() for _, window in left]


def plain(block, frame, axis="repetition"):
    """K-space and mask of a frame by the definition."""
    which = block.headers["idx"][axis] == frame
    kspace, mask = np.zeros((COILS, LINES, COLUMNS), np.complex64), np.zeros(LINES, bool)
    for line, data in zip(block.headers["idx"]["kspace_encode_step_1"][which], block.data[which], strict=True):
        kspace[:, line], mask[line] = data, True
    return kspace, mask


def check(window, block, numbers):
    kspace, mask = (np.stack(part) for part in zip(*(plain(block, number) for number in numbers), strict=True))
    np.testing.assert_array_equal(window.cine.kspace, kspace)
    np.testing.assert_array_equal(window.cine.mask, mask)
    assert numbers[window.cine.context :] == window.frames.tolist()
    np.testing.assert_array_equal(window.headers["idx"]["repetition"], window.frames)
    np.testing.assert_array_equal(window.lines, mask.sum(1)[window.cine.context :])
    assert window.stamps.shape == (len(window.frames), 4, 2)
    assert not window.cine.periodic


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_sliding_window_leaves_with_every_frame():
    block = scan(12)
    left, problems = feed(block, realtime="sliding", realtime_window=5)
    assert list(problems) == []
    # the first four complete k-space; a frame is over with the first readout of the next
    assert frames_of(left) == [[0, 1, 2, 3], *([frame] for frame in range(4, 12))]
    assert [when for when, _ in left] == [*(2 * frame + 3 for frame in range(3, 11)), None]
    check(left[0][1], block, [0, 1, 2, 3])
    for frame, (_, window) in enumerate(left[1:], 4):
        check(window, block, list(range(frame - 4, frame + 1)))


def test_frames_wait_only_for_lines_that_are_new():
    assert frames_of(feed(scan(4, step=1), realtime="sliding")[0]) == [[0], [1], [2], [3]]
    assert frames_of(feed(scan(4, step=2), realtime="sliding")[0]) == [[0, 1], [2], [3]]
    # lines that are always the same never complete k-space
    same = scan(4, step=4)
    same.headers["idx"]["kspace_encode_step_1"] = np.tile([0, 4], 4)
    assert frames_of(feed(same, realtime="sliding")[0]) == [[0, 1], [2], [3]]
    # but not for more frames than a window has
    assert frames_of(feed(scan(4), realtime="sliding", realtime_window=2)[0]) == [[0, 1], [2], [3]]
    assert frames_of(feed(scan(4), realtime="sliding", realtime_window=1)[0]) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("acceleration", "frames"), [(2, 8), (12, 12)])
def test_a_window_has_as_many_frames_as_the_acceleration_and_eight_at_least(acceleration, frames):
    left, _ = feed(scan(30), header(acceleration=acceleration), realtime="fixed")
    assert len(left[0][1].frames) == frames


def test_fixed_windows_follow_each_other_and_the_rest_comes_at_the_end():
    block = scan(10)
    left, problems = feed(block, realtime="fixed", realtime_window=4)
    assert list(problems) == []
    assert frames_of(left) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [when for when, _ in left] == [9, 17, None]
    for (_, window), numbers in zip(left, ([0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]), strict=True):
        check(window, block, numbers)


@settings(max_examples=40)
@given(st.sets(st.integers(1, 23)), st.sampled_from(["sliding", "fixed"]), st.sampled_from([0, 3]), st.booleans())
def test_how_the_stream_is_cut_changes_nothing(cuts, mode, lines, flagged):
    block = scan(12)
    if flagged:
        block.headers["flags"][1::2] |= LAST
        block.headers["flags"][-1] |= END
    options = {"realtime": mode, "realtime_window": 5, "lines_per_frame": lines}
    one_by_one, whole = feed(block, **options)[0], feed(block, cuts=cuts, **options)[0]
    assert frames_of(one_by_one) == frames_of(whole)
    for (_, left), (_, right) in zip(one_by_one, whole, strict=True):
        np.testing.assert_array_equal(left.cine.kspace, right.cine.kspace)
        np.testing.assert_array_equal(left.headers, right.headers)


@pytest.mark.parametrize("mode", ["sliding", pytest.param("fixed", marks=pytest.mark.slow)])
def test_memory_is_that_of_a_window_and_a_frame(mode):
    problems = Problems()
    buffers = SliceBuffers(header(), problems, Settings.of(realtime=mode, realtime_window=4, time_axis="repetition"))
    frame_bytes = scan(1).data.nbytes + scan(1).headers.nbytes
    alive, sizes = deque(maxlen=20), np.zeros(600)
    tracemalloc.start()
    try:
        for frame in range(600):
            block = scan(1, first=frame)
            alive.append(weakref.ref(block.data))
            list(buffers.add(block))
            del block
            sizes[frame] = tracemalloc.get_traced_memory()[0]
            assert sum(one() is not None for one in alive) <= 1  # the frame that is being measured
    finally:
        tracemalloc.stop()
    assert sizes[550:].max() - sizes[300:350].max() < 10 * frame_bytes


# --- when a frame is complete -----------------------------------------------------------------------------------------


def test_a_frame_is_complete_with_all_its_lines():
    block = scan(3, step=1)
    left, _ = feed(block, header(acceleration=1), realtime="sliding")
    assert [when for when, _ in left] == [8, 16, 24]


def test_a_frame_is_complete_on_its_flag_if_it_has_enough_lines():
    block = scan(6)
    block.headers["flags"][[1, 3, 5, 7, 8, 11]] |= LAST  # 8: with one line of two
    left, problems = feed(block, realtime="sliding", realtime_window=2)
    assert frames_of(left) == [[0, 1], [2], [3], [4], [5]]
    assert [when for when, _ in left] == [4, 6, 8, 11, 12]
    assert list(problems) == []


def test_the_last_readout_of_the_measurement_sends_the_rest():
    block = scan(6)
    block.headers["flags"][-1] |= END
    left, _ = feed(block, realtime="fixed", realtime_window=4)
    assert [(when, window.frames.tolist()) for when, window in left] == [(9, [0, 1, 2, 3]), (12, [4, 5])]


def test_all_promised_frames_end_a_fixed_window():
    block = scan(6, step=1)
    left, problems = feed(block, header(acceleration=1, repetition=6), realtime="fixed", realtime_window=4)
    assert [when for when, _ in left] == [32, 48]
    assert list(problems) == []


def test_readouts_make_frames_where_nothing_counts_them():
    lines = np.arange(15) * 3 % LINES
    block = readouts(15, COILS, COLUMNS, kspace_encode_step_1=lines)
    left, problems = feed(block, realtime="fixed", realtime_window=3, lines_per_frame=4)
    assert frames_of(left) == [[0, 1, 2], [3]]
    assert [when for when, _ in left] == [12, None]
    first, last = left[0][1], left[1][1]
    for frame in range(3):
        np.testing.assert_array_equal(
            np.flatnonzero(first.cine.mask[frame]), np.unique(lines[4 * frame : 4 * frame + 4])
        )
    np.testing.assert_array_equal(np.flatnonzero(last.cine.mask[2]), np.unique(lines[12:]))
    assert first.headers["idx"]["repetition"].tolist() == [0, 1, 2]
    assert list(problems) == []


def test_a_line_that_comes_again_within_a_frame_replaces_the_first():
    block = readouts(4, COILS, COLUMNS, kspace_encode_step_1=[1, 5, 1, 5])
    ((_, window),) = feed(block, realtime="sliding", lines_per_frame=4)[0]
    np.testing.assert_array_equal(window.cine.kspace[0, :, [1, 5]], block.data[2:])


@pytest.mark.parametrize("by", ["readout", "frame"])
def test_every_slice_has_its_own_window(by):
    blocks = [scan(8, slice=number, seed=number) for number in range(2)]
    order = np.lexsort(
        (np.tile(np.arange(16), 2),)
        if by == "readout"
        else (np.repeat([0, 1], 16), np.concatenate([block.headers["idx"]["repetition"] for block in blocks]))
    )
    block = Readouts(*(np.concatenate([getattr(b, name) for b in blocks])[order] for name in ("headers", "data")))
    left, problems = feed(block, header(slice=2), realtime="sliding", realtime_window=4)
    assert list(problems) == []
    for number in range(2):
        own = [window for _, window in left if window.key.slice == number]
        assert [window.frames.tolist() for window in own] == [[0, 1, 2, 3], [4], [5], [6], [7]]
        check(own[-1], blocks[number], [4, 5, 6, 7])
    if by == "frame":  # the other slice tells that a frame is over
        assert [when for when, _ in left][:4] == [15, 17, 19, 21]


def test_slices_that_take_turns_line_by_line_do_not_end_frames():
    """Frames have more lines than the acceleration leaves, as with reference lines."""
    blocks = [scan(4, step=2, slice=number) for number in range(2)]
    order = np.argsort(np.tile(np.arange(16), 2), kind="stable")
    block = Readouts(*(np.concatenate([getattr(b, name) for b in blocks])[order] for name in ("headers", "data")))
    left, problems = feed(block, header(acceleration=4, slice=2), realtime="fixed", realtime_window=4)
    assert frames_of(left) == [[0, 1, 2, 3]] * 2
    assert [window.lines.tolist() for _, window in left] == [[4] * 4] * 2
    assert list(problems) == []


# --- what is not as it should be --------------------------------------------------------------------------------------


def test_late_readouts_are_noted():
    block = scan(6)
    block.headers["idx"]["repetition"][9] = 2
    left, problems = feed(block, realtime="fixed", realtime_window=3)
    assert frames_of(left) == [[0, 1, 2], [3, 4, 5]]
    (late,) = problems.damage
    assert "readout 9 belongs to frame 2 of slice 0, which was complete already" in str(late)
    np.testing.assert_array_equal(left[1][1].cine.mask[1], plain(block, 4)[1])


def test_a_stray_counter_is_left_out_and_a_series_that_runs_on_is_not():
    block = scan(7)
    block.headers["idx"]["repetition"][5] = 9000
    left, problems = feed(block, header(repetition=4), realtime="sliding", realtime_window=2)
    assert list(itertools.chain(*frames_of(left))) == list(range(7))
    (stray,) = problems.damage
    assert "readout 5 has frame 9000 of slice 0" in str(stray)


def test_a_counter_of_16_bits_wraps_around():
    left, problems = feed(scan(8, first=65532), realtime="sliding", realtime_window=4)
    assert frames_of(left) == [[65532, 65533, 65534, 65535], [0], [1], [2], [3]]
    assert list(problems) == []


def test_short_frames_come_all_the_same():
    block = scan(8)
    keep = np.ones(len(block), bool)
    keep[10] = False
    left, problems = feed(block[keep], realtime="sliding", realtime_window=4)
    assert frames_of(left)[-3:] == [[5], [6], [7]]
    assert left[-3][1].notes == ("frame 5 has 1 lines, expected at least 2",)
    assert [problem.damage for problem in problems] == [False]


def test_frames_that_never_came_are_noted():
    left, problems = feed(scan(5)[:-1], header(repetition=9), realtime="fixed", realtime_window=4)
    assert frames_of(left) == [[0, 1, 2, 3], [4]]
    (absent,) = problems.damage
    assert "slice 0 has 5 of the 9 frames" in str(absent)


def test_a_segmented_scan_is_doubted():
    _, problems = feed(scan(2), header(segment=5), realtime="sliding")
    assert "5 segments" in str(next(iter(problems)))


def test_phases_that_are_put_together_are_not_passed_over():
    """Limits that name repetitions and no phases, of a sender whose phases run all the same."""
    block = scan(6, axis="phase", repetition=3)
    left, problems = feed(block, header(repetition=5), time_axis="auto", realtime="sliding")
    assert frames_of(left) == [[3]]
    (found,) = [str(problem) for problem in problems.damage if "holds the phases" in str(problem)]
    assert "frame 3 of slice 0 holds the phases 0 to 3" in found
    assert "time_axis=phase" in found
    left, problems = feed(block, header(repetition=5), time_axis="phase", realtime="fixed", realtime_window=6)
    assert frames_of(left) == [list(range(6))]
    assert not list(problems.damage)


def test_a_new_repetition_ends_the_series_of_the_one_before():
    blocks = [scan(5, axis="phase", repetition=number, seed=number) for number in range(2)]
    block = Readouts(*(np.concatenate([getattr(b, name) for b in blocks]) for name in ("headers", "data")))
    head = header(phase=5, repetition=2)
    left, problems = feed(block, head, time_axis="phase", realtime="fixed", realtime_window=4)
    assert [(window.key.repetition, window.frames.tolist()) for _, window in left] == [
        (0, [0, 1, 2, 3]),
        (0, [4]),
        (1, [0, 1, 2, 3]),
        (1, [4]),
    ]
    assert left[1][0] == 11
    assert list(problems) == []


def test_the_coils_are_compressed_alike_in_all_windows():
    block = scan(10)
    left, _ = feed(block, realtime="sliding", realtime_window=3, virtual_coils=1)
    for _, window in left:
        assert window.cine.kspace.shape[1] == 1
        np.testing.assert_array_equal(window.compression, left[0][1].compression)
    expected = np.einsum("vc,cyx->vyx", left[0][1].compression, plain(block, 9)[0])
    np.testing.assert_allclose(left[-1][1].cine.kspace[-1], expected, atol=1e-5)


def test_reference_lines_are_used_and_bounded():
    reference = readouts(
        5 * LINES, COILS, COLUMNS, seed=9, kspace_encode_step_1=np.arange(5 * LINES) % LINES,
        flags=[AcquisitionFlag.PARALLEL_CALIBRATION],
    )  # fmt: skip
    block = scan(4, step=1)
    both = Readouts(*(np.concatenate([getattr(b, name) for b in (reference, block)]) for name in ("headers", "data")))
    left, _ = feed(both, realtime="sliding")
    kept = reference.data[LINES:].reshape(4, LINES, COILS, COLUMNS).mean(0).swapaxes(0, 1)
    np.testing.assert_allclose(left[0][1].cine.calibration, kept, atol=1e-6)


# --- the whole chain --------------------------------------------------------------------------------------------------

PLAN = {
    "matrix_x": 48, "matrix_y": 32, "frames": 14, "coils": 4, "time_axis": "repetition", "sampling": "interleaved",
    "acceleration": 4, "acs_lines": 0, "waveforms": False,
}  # fmt: skip


def images(items, head, watch=None, **options):
    chain = Chain(parse_header(head), Settings.of(**{"device": "cpu", "iterations": 5, **options}), ENGINE, watch=watch)
    return [item for item in chain(items) if isinstance(item, Image)], chain.summary


ENGINE = cache(lambda: Engine("cpu"))


@pytest.fixture(scope="module")
def simulated():
    scan = simulate(ScanPlan(**PLAN))
    return scan.header, list(scan.items())


def until(items, readouts_wanted):
    """The readouts of a scan up to a number, one by one, noise first."""
    count = 0
    for item in items:
        noise = (item.headers["flags"] & AcquisitionFlag.NOISE.bit).any()
        for i in range(len(item)):
            if not noise:
                if count == readouts_wanted:
                    return
                count += 1
            yield item[i : i + 1]


def test_the_first_fixed_window_is_what_a_scan_of_those_frames_gives(simulated):
    head, items = simulated
    # maps=auto of a whole scan are estimated again, without what moved
    windows, _ = images(items, head, realtime="fixed", realtime_window=6, maps="walsh")
    alone, _ = images(until(items, 6 * 8), head, maps="walsh")
    assert len(windows) == 14
    for window, image in zip(windows[:6], alone, strict=True):
        np.testing.assert_allclose(window.data, image.data, rtol=1e-4, atol=1e-2)
        for name in ("repetition", "image_index", "acquisition_time_stamp", "matrix_size", "position"):
            np.testing.assert_array_equal(window.header[name], image.header[name])


def test_later_windows_are_the_frames_alone_with_the_running_maps(simulated):
    head, items = simulated
    seen = []
    images(items, head, watch=lambda *both: seen.append(both), realtime="fixed", realtime_window=6)
    assert [len(result.image) for _, result in seen] == [6, 6, 2]
    complete, result = seen[1]
    cine = CineSlice(complete.cine.kspace, complete.cine.mask, receiver=complete.cine.receiver, maps=result.maps)
    alone = ENGINE().reconstruct(cine, Settings.of(iterations=5, device="cpu"))
    np.testing.assert_allclose(result.image, alone.image, rtol=1e-4, atol=1e-4 * np.abs(alone.image).max())


def test_every_frame_gives_one_image_in_order_while_the_scan_runs(simulated):
    head, items = simulated
    sent = 0

    def counted():
        nonlocal sent
        for item in until(items, 14 * 8):
            sent += not (item.headers["flags"] & AcquisitionFlag.NOISE.bit).any()
            yield item

    chain = Chain(parse_header(head), Settings.of(device="cpu", realtime="sliding", realtime_window=6), ENGINE)
    came = [(sent, image) for image in chain(counted())]
    # frames end on the flag that their last readout carries; the first wait until all lines were there
    assert [when for when, _ in came] == [*[4 * 8] * 4, *(8 * frame for frame in range(5, 15))]
    headers = [image.header for _, image in came]
    assert [int(header["repetition"]) for header in headers] == list(range(14))
    assert [int(header["image_index"]) for header in headers] == list(range(1, 15))
    assert (np.diff([int(header["acquisition_time_stamp"]) for header in headers]) > 0).all()
    assert len({image.attributes.split("ScaleRatio")[1][:40] for _, image in came}) == 1
    assert chain.summary.slices == 1
    assert chain.summary.problems.damage == []


@pytest.mark.parametrize("mode", ["sliding", "fixed"])
def test_nothing_is_lost_when_the_stream_breaks(simulated, mode):
    head, items = simulated

    def broken():
        yield from until(items, 9 * 8 + 3)
        raise EndOfStreamError("the stream ends within a message")

    made, summary = images(broken(), head, realtime=mode, realtime_window=6)
    assert [int(image.header["repetition"]) for image in made] == list(range(10))
    assert any("stream" in str(problem) for problem in summary.problems.damage)
    assert any("10 of the 14 frames" in str(problem) for problem in summary.problems.damage)


@pytest.mark.parametrize("method", ["zero_filled", "low_rank_sparse", "grappa"])
def test_any_method_runs_on_the_window(simulated, method):
    head, items = simulated
    made, summary = images(items, head, method=method, realtime="sliding", realtime_window=5)
    assert len(made) == 14
    assert summary.problems.damage == []


def test_gating_by_beats_and_real_time_exclude_each_other(simulated):
    with pytest.raises(SettingsError, match="set one of them"):
        images(simulated[1], simulated[0], realtime="sliding", gating="retrospective")
