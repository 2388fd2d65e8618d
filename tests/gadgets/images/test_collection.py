"""Images sorted into series, slices and frames, and what their time stamps tell."""

import numpy as np
import pytest

from gadgets.images.collection import sort_images, tick_of_images
from recon_core.errors import DataError
from tests.gadgets.export.support import NAMESPACE, cine, image


def only(images, tick=2.5):
    (series,) = sort_images({1: images}, tick)
    return series


def test_frames_are_in_order_whatever_the_order_of_the_images():
    images = cine(slices=2, frames=4)
    series = only([images[i] for i in np.random.default_rng(0).permutation(8)])
    assert [loop.key.slice for loop in series.loops] == [0, 1]
    assert series.loops[1].values[:, 0, 0].tolist() == [110, 111, 112, 113]
    assert series.loops[0].since_trigger == pytest.approx([112.5, 337.5, 562.5, 787.5], abs=1.3)
    assert series.loops[1].clock[0] == pytest.approx(43_200_000 + 900 + 112.5, abs=2.5)


def test_times_of_a_gated_scan():
    series = only(cine(slices=1, frames=20, rr=800))
    assert series.frame_time == pytest.approx(40)
    assert series.rr == pytest.approx(800)
    assert not series.real_time
    assert series.slice_spacing is None


def test_the_time_since_the_r_wave_of_the_image_comes_first():
    """The scan may have had a tick of its own."""
    images = [
        image(phase=i, physiology_time_stamp=(16 * i, 0, 0), meta={"cinestream_trigger_time_ms": 50.0 * i})
        for i in range(4)
    ]
    assert only(images).loops[0].since_trigger.tolist() == [0, 50, 100, 150]


def test_the_rr_interval_that_the_gating_found_comes_first():
    images = [image(phase=i, meta={"cinestream_rr_ms": 1000.0}) for i in range(10)]
    series = only(images)
    assert series.rr == 1000
    assert series.frame_time == 100
    assert series.loops[0].clock is None
    assert series.loops[0].since_trigger is None


def test_rr_from_the_r_waves_of_a_real_time_scan():
    moments = np.arange(60) * 50.0
    images = [
        image(
            repetition=i,
            acquisition_time_stamp=round((1e6 + time) / 2.5),
            physiology_time_stamp=(round((time % 850) / 2.5), 0, 0),
        )
        for i, time in enumerate(moments)
    ]
    series = only(images)
    assert series.real_time
    assert len(series.loops) == 1
    assert series.frame_time == pytest.approx(50)
    assert series.rr == pytest.approx(850, abs=5)


def test_nothing_is_made_up_without_time_stamps():
    series = only([image(phase=i) for i in range(5)])
    assert series.frame_time is None
    assert series.rr is None


def test_contrasts_sets_and_repetitions_of_phases_are_loops_of_their_own():
    images = [
        image(slice=place, phase=phase, set=set_, repetition=repetition, position=(0, 0, 10 * place))
        for place in range(2)
        for phase in range(3)
        for set_ in range(2)
        for repetition in range(2)
    ]
    series = only(images)
    assert [len(stack) for stack in series.stacks] == [2, 2, 2, 2]
    assert all(len(loop.values) == 3 for loop in series.loops)
    assert series.slice_spacing == 10


def test_a_tick_is_as_long_as_the_vendor_has_it():
    assert only(cine(slices=1, frames=4, rr=1000, tick=1.0), tick=1.0).rr == pytest.approx(1000)


def test_complex_images_become_magnitudes_and_real_ones_keep_their_sign():
    complex_one = image(np.full((6, 8), 3 - 4j, np.complex64), image_type=5)
    assert only([complex_one]).loops[0].values.tolist() == np.full((1, 6, 8), 5).tolist()
    assert only([complex_one]).image_type == 1
    assert only([image(np.full((6, 8), -2, np.int16), image_type=2)]).loops[0].values.min() == -2


def test_the_matrix_is_that_of_the_pixels():
    (plane,) = only([image(matrix_size=(6, 8, 1))]).loops[0].planes
    assert plane.matrix == (8, 6)
    assert plane.pixel == (10, 15)


def test_images_that_make_no_loop_are_refused():
    with pytest.raises(DataError, match=r"two-dimensional images of one channel, got \(2, 1, 6, 8\)"):
        sort_images({1: [image(), image(np.ones((2, 1, 6, 8), np.float32))]}, 2.5)
    with pytest.raises(DataError, match="slice 0 differ in size"):
        sort_images({1: [image(), image(np.ones((4, 8), np.float32), phase=1)]}, 2.5)


def test_the_frame_time_that_the_images_state_comes_first():
    """The scan may have had a tick of its own, and its time stamps are those of another."""
    images = [
        image(repetition=i, acquisition_time_stamp=100 + 10 * i, meta={"cinestream_frame_time_ms": 41.25})
        for i in range(4)
    ]
    assert only(images).frame_time == 41.25
    assert only([image(repetition=i, acquisition_time_stamp=100 + 10 * i) for i in range(4)]).frame_time == 25


@pytest.mark.parametrize(("header", "tick"), [("", 2.5), ("<not xml", 2.5), ("SIEMENS", 2.5), ("PHILIPS", 1.0)])
def test_the_tick_is_that_of_the_vendor_in_the_header(header, tick):
    if header.isalpha():
        vendor = f"<systemVendor>{header}</systemVendor>"
        space = f"<acquisitionSystemInformation>{vendor}</acquisitionSystemInformation>"
        header = f'<ismrmrdHeader xmlns="{NAMESPACE}">{space}</ismrmrdHeader>'
    assert tick_of_images(header) == tick
