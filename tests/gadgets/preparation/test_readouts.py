import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.preparation.noise import ScanNoise
from gadgets.preparation.readouts import Preparation
from gadgets.problems import Problems
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Readouts
from tests.helpers.builders import encoding_xml, header_xml, readouts

PLAIN = {"encoded": (16, 8, 1), "recon": (16, 8, 1), "encoded_fov": (160.0, 80.0, 8.0), "recon_fov": (160.0, 80.0, 8.0)}
NO_IMAGE = [
    AcquisitionFlag.NAVIGATION,
    AcquisitionFlag.PHASE_CORRECTION,
    AcquisitionFlag.HP_FEEDBACK,
    AcquisitionFlag.DUMMY,
    AcquisitionFlag.RT_FEEDBACK,
    AcquisitionFlag.SURFACE_COIL_CORRECTION,
    AcquisitionFlag.PHASE_STABILIZATION_REFERENCE,
    AcquisitionFlag.PHASE_STABILIZATION,
]


def bandwidth_xml(value):
    element = f"<relativeReceiverNoiseBandwidth>{value}</relativeReceiverNoiseBandwidth>"
    return f"<acquisitionSystemInformation>{element}</acquisitionSystemInformation>"


def preparation(*, whiten=True, xml=None, **encoding):
    problems = Problems()
    header = parse_header(xml or header_xml(**{**PLAIN, **encoding}))
    return Preparation(header, problems, ScanNoise(header, problems, whiten=whiten)), problems


def prepare(*blocks, **arguments):
    stage, problems = preparation(**arguments)
    return [part for block in blocks for part in stage(block)], problems, stage


def joined(parts):
    """Headers and data of a list of Readouts as one."""
    return np.concatenate([part.headers for part in parts]), np.concatenate([part.data for part in parts])


def noise(count=40, coils=3, samples=64, *, dwell=5.0, mixing=None, seed=1):
    """Noise readouts of unit standard deviation in real and imaginary part, mixed between the coils."""
    block = readouts(count, coils, samples, seed=seed, flags=[AcquisitionFlag.NOISE], sample_time_us=dwell)
    if mixing is not None:
        block.data[:] = np.einsum("pc,rcs->rps", mixing, block.data)
    return block


MIXING = np.array([[2.0, 0, 0], [0.7j, 0.3, 0], [0.2, -0.4 + 0.1j, 5.0]])


def covariance(data):
    values = data.transpose(1, 0, 2).reshape(data.shape[1], -1).astype(complex)
    return values @ values.conj().T / values.shape[1]


def by_definition(samples, center, columns, kept=None):
    """One readout placed by its formula, and its oversampling cut from the centred image; complex128."""
    row = np.zeros((samples.shape[0], columns), complex)
    for i in range(samples.shape[1]):
        column = columns // 2 - center + i
        if 0 <= column < columns:
            row[:, column] = samples[:, i]
    if kept is None or kept == columns:
        return row
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(row, axes=1), axis=1, norm="ortho"), axes=1)
    first = columns // 2 - kept // 2
    image = image[:, first : first + kept]
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1, norm="ortho"), axes=1)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_whitened_noise_is_independent_and_of_unit_deviation_in_real_and_imaginary_part():
    image = noise(400, 3, 16, mixing=MIXING, seed=2)
    image.headers["flags"] = 0
    parts, problems, _ = prepare(noise(400, mixing=MIXING), image, xml=header_xml(before=bandwidth_xml(1), **PLAIN))
    _, data = joined(parts)
    assert np.abs(covariance(data) - 2 * np.eye(3)).max() < 0.12
    for coil in range(3):
        assert data[:, coil].real.std() == pytest.approx(1, rel=0.03)
        assert data[:, coil].imag.std() == pytest.approx(1, rel=0.03)
    assert list(problems) == []


def test_whitening_of_the_noise_itself_is_exact():
    block = noise(mixing=MIXING, samples=16)
    image = Readouts(block.headers.copy(), block.data)
    image.headers["flags"] = 0
    parts, _, _ = prepare(block, image, xml=header_xml(before=bandwidth_xml(1), **PLAIN))
    expected = 2 * np.eye(3) * (40 * 16 - 1) / (40 * 16)
    np.testing.assert_allclose(covariance(joined(parts)[1]), expected, atol=1e-5)


@pytest.mark.parametrize(("bandwidth", "noise_dwell", "dwell"), [(1.0, 5.0, 20.0), (0.5, 8.0, 2.0), (None, 5.0, 5.0)])
def test_whitening_scales_with_bandwidth_and_dwell_time(bandwidth, noise_dwell, dwell):
    before = "" if bandwidth is None else bandwidth_xml(bandwidth)
    block, image = noise(mixing=MIXING, dwell=noise_dwell), readouts(2, 3, 16, sample_time_us=dwell)
    parts, _, stage = prepare(block, image, xml=header_xml(before=before, **PLAIN))
    values = block.data.transpose(1, 0, 2).reshape(3, -1).astype(complex)
    measured = values @ values.conj().T / (values.shape[1] - 1)
    scale = np.sqrt(2 * dwell / noise_dwell * (bandwidth or 0.793))
    whitening = np.linalg.inv(np.linalg.cholesky(measured)) * scale
    np.testing.assert_allclose(joined(parts)[1], np.einsum("pc,rcs->rps", whitening, image.data), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stage.colouring @ whitening, np.eye(3), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [*((field, value) for field in ("noise", "image") for value in (0.0, np.nan, np.inf, -1.0)), ("bandwidth", 0.0)],
)
def test_senseless_dwell_times_and_bandwidths_leave_the_scale_alone(field, value):
    block, image = noise(mixing=MIXING), readouts(2, 3, 16)
    before = bandwidth_xml(1)
    if field == "bandwidth":
        before = bandwidth_xml(value)
    else:
        {"noise": block, "image": image}[field].headers["sample_time_us"] = value
    parts, _, stage = prepare(block, image, xml=header_xml(before=before, **PLAIN))
    expected, _, _ = prepare(noise(mixing=MIXING), readouts(2, 3, 16), xml=header_xml(before=bandwidth_xml(1), **PLAIN))
    np.testing.assert_array_equal(joined(parts)[1], joined(expected)[1])
    assert np.isfinite(stage.colouring).all()


def test_gadgetron_multiplies_from_the_right_with_the_same_result():
    block, image = noise(mixing=MIXING), readouts(1, 3, 16)
    parts, _, _ = prepare(block, image)
    x = block.data.transpose(0, 2, 1).reshape(-1, 3).astype(complex)  # (sample, channel)
    upper = np.linalg.cholesky(x.conj().T @ x / (len(x) - 1)).conj().T
    expected = image.data[0].T @ (np.linalg.inv(upper) * np.sqrt(2 * 0.793))
    np.testing.assert_allclose(parts[0].data[0].T, expected, rtol=1e-4, atol=1e-5)


def twin_coils():
    block = noise(mixing=MIXING)
    block.data[:, 1] = block.data[:, 0]
    return block


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (noise(coils=4), "4 coils"),
        (noise(1, samples=6), "6 noise samples"),
        (twin_coils(), "singular"),
    ],
    ids=["other coil count", "too few", "twin coils"],
)
def test_noise_that_gives_no_matrix_is_noticed_and_the_data_stay_as_they_are(block, words):
    image = readouts(2, 3, 16)
    parts, problems, stage = prepare(block, image)
    np.testing.assert_array_equal(joined(parts)[1], image.data)
    assert stage.colouring is None
    (problem,) = problems
    assert words in problem.text
    assert not problem.damage


def test_noise_of_a_second_coil_count_is_ignored():
    image = readouts(2, 3, 16)
    once, _, _ = prepare(noise(mixing=MIXING), image)
    twice, _, stage = prepare(noise(mixing=MIXING), noise(coils=5), image)
    np.testing.assert_array_equal(joined(once)[1], joined(twice)[1])
    assert stage.noise_readouts == 80


def test_broken_and_empty_noise_readouts_are_not_used():
    image, block = readouts(2, 3, 16), noise(mixing=MIXING)
    broken = Readouts(block.headers.copy(), block.data.copy())
    broken.data[3, 1, 5] = np.nan
    broken.data[7, 0, 0] = np.inf
    rest = np.delete(np.arange(40), [3, 7])
    expected, _, _ = prepare(block[rest], image)
    empty = readouts(2, 3, 0, flags=[AcquisitionFlag.NOISE])
    parts, problems, _ = prepare(empty, broken, image)
    np.testing.assert_allclose(joined(parts)[1], joined(expected)[1], rtol=1e-6)
    assert problems.damage == []


def test_noise_after_the_first_image_readout_changes_nothing():
    first, second = readouts(2, 3, 16, seed=4), readouts(2, 3, 16, seed=5)
    expected, _, _ = prepare(noise(mixing=MIXING), first, second)
    parts, _, stage = prepare(noise(mixing=MIXING), first, noise(seed=8), second)
    np.testing.assert_array_equal(joined(parts)[1], joined(expected)[1])
    assert stage.noise_readouts == 80
    alone, _, stage = prepare(first, noise(), second)
    np.testing.assert_array_equal(joined(alone)[1], np.concatenate([first.data, second.data]))
    assert stage.colouring is None


def test_navigators_do_not_end_the_collection_of_noise():
    image = readouts(2, 3, 16)
    expected, _, _ = prepare(noise(mixing=MIXING), image)
    block, navigator = noise(mixing=MIXING), readouts(3, 3, 16, flags=[AcquisitionFlag.NAVIGATION])
    parts, _, _ = prepare(block[:20], navigator, block[20:], image)
    np.testing.assert_allclose(joined(parts)[1], joined(expected)[1], rtol=1e-5, atol=1e-6)


def test_whitening_can_be_switched_off():
    image = readouts(2, 3, 16)
    parts, problems, stage = prepare(noise(mixing=MIXING), image, whiten=False)
    np.testing.assert_array_equal(joined(parts)[1], image.data)
    assert stage.colouring is None
    assert stage.noise_readouts == 40
    assert list(problems) == []


# --- places of the samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [16, 15])
@pytest.mark.parametrize(
    ("samples", "center"), [(12, 4), (12, 8), (10, 8), (11, 3), (16, 8), (15, 7), (20, 10), (9, 8), (3, 1), (24, 20)]
)
def test_every_sample_lies_at_its_distance_from_the_centre(columns, samples, center):
    block = readouts(3, 2, samples, center_sample=center)
    sizes = {"encoded": (columns, 8, 1), "recon": (columns, 8, 1)}
    (part,), problems, _ = prepare(block, **sizes)
    for i in range(3):
        np.testing.assert_array_equal(part.data[i], by_definition(block.data[i], center, columns))
    assert ["outermost samples" in str(problem) for problem in problems] == [True] * (samples > columns)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("pre", "post"), [(0, 0), (2, 0), (0, 3), (4, 1)])
@pytest.mark.parametrize("center", [4, 8])
def test_discarded_samples_are_cut_in_the_order_of_acquisition(reverse, pre, post, center):
    flags = [AcquisitionFlag.REVERSE] if reverse else []
    block = readouts(2, 2, 12, center_sample=center, discard_pre=pre, discard_post=post, flags=flags)
    (part,), _, _ = prepare(block)
    for i in range(2):
        samples = block.data[i].copy()
        samples[:, :pre] = 0
        samples[:, 12 - post :] = 0
        # sample i of a reversed readout lies as far to the left of the centre as it would lie to the right
        expected = by_definition(samples[:, ::-1], 11 - center, 16) if reverse else by_definition(samples, center, 16)
        np.testing.assert_array_equal(part.data[i], expected)


@pytest.mark.parametrize("kept", [32, 16])
def test_columns_say_which_samples_there_are(kept):
    sizes = {"encoded": (32, 8, 1), "recon": (kept, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    sizes["recon_fov"] = (10.0 * kept, 80.0, 8.0)
    block = readouts(4, 2, 24, center_sample=[8, 15, 8, 15])
    block.headers["flags"][1::2] |= AcquisitionFlag.REVERSE.bit
    _, _, stage = prepare(block, **sizes)
    assert stage.columns(0).tolist() == [False] * (kept // 4) + [True] * (kept - kept // 4)
    assert stage.columns(1) is None
    # cut at the other end too
    _, _, stage = prepare(readouts(4, 2, 24, center_sample=8, discard_post=4), **sizes)
    assert stage.columns(0).tolist() == [False] * (kept // 4) + [True] * (5 * kept // 8) + [False] * (kept // 8)


def test_columns_are_those_that_most_readouts_have():
    block = readouts(5, 2, 12, center_sample=[4, 4, 4, 4, 8])
    reference = readouts(9, 2, 12, center_sample=8, flags=[AcquisitionFlag.PARALLEL_CALIBRATION])
    _, _, stage = prepare(reference, block)
    assert stage.columns(0).tolist() == [False] * 4 + [True] * 12
    # two halves that share the middle only
    _, _, stage = prepare(readouts(4, 2, 12, center_sample=[4, 8, 4, 8]))
    assert np.flatnonzero(stage.columns(0)).tolist() == list(range(4, 12))
    # nothing missing, nothing in common, nothing there
    assert prepare(readouts(4, 2, 16, center_sample=8))[2].columns(0) is None
    apart = readouts(4, 2, 16, center_sample=8, discard_pre=[0, 8, 0, 8], discard_post=[8, 0, 8, 0])
    assert prepare(apart)[2].columns(0) is None
    assert preparation()[0].columns(0) is None


def test_reversed_and_forward_readouts_may_alternate():
    block = readouts(4, 2, 16, center_sample=[8, 7, 8, 7])
    block.headers["flags"][1::2] |= AcquisitionFlag.REVERSE.bit
    (part,), _, _ = prepare(block)
    for i in range(4):
        np.testing.assert_array_equal(part.data[i], block.data[i][:, ::-1] if i % 2 else block.data[i])


def test_reversed_readouts_are_whitened_as_the_others():
    mixing = np.linalg.cholesky(MIXING @ MIXING.conj().T)
    forward = readouts(2, 3, 16)
    backward = Readouts(forward.headers.copy(), forward.data[:, :, ::-1].copy())
    backward.headers["flags"] |= AcquisitionFlag.REVERSE.bit
    backward.headers["center_sample"] = 7
    expected, _, _ = prepare(noise(mixing=mixing), forward)
    parts, _, _ = prepare(noise(mixing=mixing), backward)
    np.testing.assert_array_equal(joined(parts)[1], joined(expected)[1])


@pytest.mark.parametrize("center", [0, 16, 17, 500, 65535])
def test_a_centre_out_of_step_means_the_middle(center):
    block = readouts(2, 2, 16, center_sample=center)
    (part,), problems, _ = prepare(block)
    np.testing.assert_array_equal(part.data, block.data)
    assert list(problems) == []


@pytest.mark.parametrize(("pre", "post"), [(16, 0), (0, 16), (9, 9), (65535, 0), (0, 65535), (65535, 65535)])
def test_a_readout_that_is_discarded_as_a_whole_is_empty(pre, post):
    block = readouts(3, 2, 16)
    block.headers["discard_pre"][1], block.headers["discard_post"][1] = pre, post
    parts, problems, stage = prepare(block)
    headers, data = joined(parts)
    np.testing.assert_array_equal(headers["scan_counter"], [0, 2])
    np.testing.assert_array_equal(data, block.data[[0, 2]])
    assert [problem.count for problem in problems.damage] == [1]
    assert stage.dropped == 1


# --- oversampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "wide", "narrow", "kept"),
    [
        (32, 400.0, 200.0, 16),
        (30, 400.0, 200.0, 15),
        (33, 300.0, 100.0, 11),
        (31, 310.0, 200.0, 20),
        (32, 370.0, 300.0, 26),
    ],
)
@pytest.mark.parametrize("center", [None, 9])
def test_oversampling_is_cut_from_the_image(encoded, wide, narrow, kept, center):
    fields = {
        "encoded": (encoded, 8, 1),
        "recon": (kept, 8, 1),
        "encoded_fov": (wide, 80.0, 8.0),
        "recon_fov": (narrow, 80.0, 8.0),
    }
    samples = encoded if center is None else encoded - encoded // 2 + 9
    center = encoded // 2 if center is None else center
    block = readouts(3, 2, samples, center_sample=center)
    (part,), problems, _ = prepare(block, **fields)
    assert part.data.shape == (3, 2, kept)
    assert part.data.dtype == np.complex64
    for i in range(3):
        expected = by_definition(block.data[i], center, encoded, kept)
        np.testing.assert_allclose(part.data[i], expected, atol=2e-6)
    assert list(problems) == []


def test_the_matrix_shows_the_oversampling_where_the_field_of_view_is_missing():
    block = readouts(2, 2, 32)
    fields = {"encoded": (32, 8, 1), "recon": (16, 8, 1), "encoded_fov": (0, 0, 0), "recon_fov": (0, 0, 0)}
    (part,), _, _ = prepare(block, **fields)
    np.testing.assert_allclose(part.data[1], by_definition(block.data[1], 16, 32, 16), atol=2e-6)


def test_interpolation_by_the_scanner_is_no_oversampling():
    """The recon matrix may be the larger one; only the field of view says what to cut."""
    block = readouts(2, 2, 16)
    (part,), _, _ = prepare(block, recon=(64, 32, 1))
    np.testing.assert_array_equal(part.data, block.data)


@pytest.mark.parametrize("center", [8, 0, 16, 100])
def test_oversampling_that_the_sender_removed_is_not_removed_again(center):
    block = readouts(2, 2, 16, center_sample=center)
    fields = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    (part,), _, _ = prepare(block, **fields)
    np.testing.assert_array_equal(part.data, block.data)


def test_half_an_echo_is_not_taken_for_removed_oversampling():
    block = readouts(2, 2, 16, center_sample=2)
    fields = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    (part,), _, _ = prepare(block, **fields)
    np.testing.assert_allclose(part.data[0], by_definition(block.data[0], 2, 32, 16), atol=2e-6)


def test_oversampling_removal_keeps_a_point_where_it_is_and_as_bright_as_it_is():
    """A point in the middle half of the field of view, measured at the exact sampling positions."""
    pixel = -3  # from the centre, in pixels of the field of view
    k = np.arange(32) - 16
    signal = np.exp(-2j * np.pi * k * pixel / 32).astype(np.complex64)
    block = readouts(data=np.broadcast_to(signal, (1, 2, 32)).copy())
    fields = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    (part,), _, _ = prepare(block, **fields)
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(part.data[0, 0]), norm="ortho"))
    expected = np.zeros(16)
    expected[8 + pixel] = np.sqrt(32)
    np.testing.assert_allclose(image, expected, atol=1e-5)


# --- what is no image data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", NO_IMAGE, ids=lambda flag: flag.name)
def test_flagged_readouts_are_never_image_data(flag):
    block = readouts(4, 2, 16)
    block.headers["flags"][[1, 2]] |= flag.bit
    parts, problems, stage = prepare(block)
    np.testing.assert_array_equal(joined(parts)[0]["scan_counter"], [0, 3])
    assert stage.dropped == 2
    assert list(problems) == []


@pytest.mark.parametrize("number", [*range(1, 19), 20, 21, 25, *range(57, 65)])
def test_other_flags_leave_a_readout_in(number):
    block = readouts(1, 2, 16)
    block.headers["flags"] = np.uint64(1 << (number - 1))
    (part,), problems, _ = prepare(block)
    np.testing.assert_array_equal(part.data, block.data)
    assert list(problems) == []


def test_noise_is_never_image_data_whatever_else_it_carries():
    block = readouts(2, 2, 16, flags=[AcquisitionFlag.NOISE, AcquisitionFlag.LAST_IN_SLICE])
    parts, _, stage = prepare(block)
    assert parts == []
    assert (stage.noise_readouts, stage.dropped) == (2, 0)


def test_navigators_of_another_shape_do_not_fix_the_shape():
    navigator = readouts(1, 5, 40, flags=[AcquisitionFlag.NAVIGATION])
    block = readouts(2, 2, 16)
    parts, problems, _ = prepare(navigator, block)
    np.testing.assert_array_equal(joined(parts)[1], block.data)
    assert list(problems) == []


# --- damage -----------------------------------------------------------------------------------------------------------


def broken_value(value):
    block = readouts(1, 2, 16, first=77)
    block.data[0, 1, 3] = value
    return block


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (broken_value(np.nan), "finite"),
        (broken_value(complex(0, np.inf)), "finite"),
        (readouts(1, 3, 16, first=77), "3 coils"),
        (readouts(1, 2, 15, first=77), "15 samples"),
        (readouts(1, 2, 32, first=77), "32 samples"),
        (readouts(1, 2, 0, first=77), "no samples"),
        (readouts(1, 0, 16, first=77), "no samples"),
        (readouts(1, 2, 16, first=77, encoding_space_ref=1), "encoding 1"),
        (readouts(1, 2, 16, first=77, encoding_space_ref=65535), "encoding 65535"),
    ],
)
def test_a_broken_readout_is_named_and_left_out_and_harms_no_other(block, words):
    before, after = readouts(2, 2, 16, seed=1), readouts(2, 2, 16, seed=2, first=80)
    parts, problems, stage = prepare(before, block, after)
    headers, data = joined(parts)
    np.testing.assert_array_equal(data, np.concatenate([before.data, after.data]))
    np.testing.assert_array_equal(headers["scan_counter"], [0, 1, 80, 81])
    (problem,) = problems
    assert problem.damage
    assert "readout 77" in problem.text
    assert words in problem.text
    assert stage.dropped == 1


@pytest.mark.parametrize("block", [broken_value(np.nan), readouts(1, 2, 0), readouts(1, 2, 16, encoding_space_ref=3)])
def test_a_broken_first_readout_does_not_fix_the_shape(block):
    good = readouts(2, 2, 16)
    parts, problems, _ = prepare(block, good)
    np.testing.assert_array_equal(joined(parts)[1], good.data)
    assert len(problems.damage) == 1


def test_a_readout_of_no_coils_does_not_fix_the_shape():
    good = readouts(2, 2, 16)
    parts, _, _ = prepare(readouts(1, 0, 16), good)
    np.testing.assert_array_equal(joined(parts)[1], good.data)


def test_broken_readouts_within_a_block_are_picked_out():
    block = readouts(100, 2, 16)
    bad = np.arange(5, 100, 10)
    block.data[bad, 0, 2] = np.nan
    parts, problems, stage = prepare(block)
    keep = np.setdiff1d(np.arange(100), bad)
    headers, data = joined(parts)
    np.testing.assert_array_equal(headers["scan_counter"], keep)
    np.testing.assert_array_equal(data, block.data[keep])
    (problem,) = problems
    assert (problem.count, stage.dropped) == (10, 10)
    assert "readout 5 " in problem.text


# --- reference scans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [8, 12, 16, 24, 32])
def test_a_reference_scan_in_front_does_not_fix_the_length(samples):
    """Separate reference lines come first and may have their own length."""
    reference = readouts(3, 2, samples, flags=[AcquisitionFlag.PARALLEL_CALIBRATION])
    image = readouts(2, 2, 32, seed=3)
    fields = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    parts, problems, _ = prepare(reference, image, **fields)
    assert problems.damage == []
    assert [len(part) for part in parts] == [3, 2]
    np.testing.assert_allclose(parts[1].data[0], by_definition(image.data[0], 16, 32, 16), atol=2e-6)


@pytest.mark.parametrize("samples", [8, 12, 24])
def test_reference_lines_of_their_own_length_are_placed_by_their_own_centre(samples):
    image = readouts(2, 2, 32, seed=3)
    reference = readouts(3, 2, samples, flags=[AcquisitionFlag.PARALLEL_CALIBRATION], center_sample=samples // 2 - 1)
    fields = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}
    for blocks in ([image, reference], [reference, image]):
        parts, _, _ = prepare(*blocks, **fields)
        part = next(part for part in parts if len(part) == 3)
        expected = by_definition(reference.data[1], samples // 2 - 1, 32, 16)
        np.testing.assert_allclose(part.data[1], expected, atol=2e-6)


def test_reference_lines_longer_than_the_grid_are_damage():
    image = readouts(2, 2, 16)
    reference = readouts(3, 2, 17, flags=[AcquisitionFlag.PARALLEL_CALIBRATION])
    parts, problems, _ = prepare(image, reference)
    assert [len(part) for part in parts] == [2]
    assert [problem.count for problem in problems.damage] == [3]


def test_a_run_may_mix_reference_lines_with_readouts_of_a_wrong_length():
    image = readouts(2, 2, 16)
    mixed = readouts(4, 2, 12, first=10)
    mixed.headers["flags"][[0, 2]] |= AcquisitionFlag.PARALLEL_CALIBRATION.bit
    whole, problems, _ = prepare(image, mixed)
    single, _, _ = prepare(image, *(mixed[i : i + 1] for i in range(4)))
    np.testing.assert_array_equal(joined(whole)[0]["scan_counter"], [0, 1, 10, 12])
    np.testing.assert_array_equal(joined(single)[1], joined(whole)[1])
    assert [problem.count for problem in problems.damage] == [2]


# --- encodings --------------------------------------------------------------------------------------------------------


def test_encodings_are_kept_apart_and_in_order():
    other = encoding_xml(**{**PLAIN, "encoded": (24, 8, 1), "recon": (12, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)})
    xml = header_xml(encoding_xml(**PLAIN), other)
    block = readouts(6, 2, 16, encoding_space_ref=[0, 1, 1, 0, 1, 0])
    parts, problems, _ = prepare(block, xml=xml)
    assert list(problems) == []
    order = [int(counter) for part in parts for counter in part.headers["scan_counter"]]
    assert order == list(range(6))
    for part in parts:
        space = int(part.headers["encoding_space_ref"][0])
        assert (part.headers["encoding_space_ref"] == space).all()
        for header, data in zip(part.headers, part.data, strict=True):
            source = block.data[header["scan_counter"]]
            expected = by_definition(source, 8, 24, 12) if space else source
            np.testing.assert_allclose(data, expected, atol=2e-6)


# --- blocks -----------------------------------------------------------------------------------------------------------


def mixed_stream():
    """Everything at once: noise, navigators, broken, reversed, asymmetric and late noise readouts; runs by shape."""
    rng = np.random.default_rng(0)
    image = readouts(30, 3, 32, seed=5, first=20)
    image.headers["center_sample"][:10] = 14
    image.headers["flags"][::3] |= AcquisitionFlag.REVERSE.bit
    image.headers["flags"][[4, 11]] |= AcquisitionFlag.NAVIGATION.bit
    image.headers["flags"][[6, 12]] |= AcquisitionFlag.NOISE.bit
    image.headers["discard_pre"][20:25] = 3
    image.headers["encoding_space_ref"][26] = 4
    image.headers["sample_time_us"] = rng.uniform(1, 5, 30)
    image.data[[8, 17], 0, 0] = np.nan
    start = noise(20, samples=32, mixing=MIXING)
    start.headers["flags"][3] = AcquisitionFlag.NAVIGATION.bit
    start.data[9, 0, 0] = np.inf
    headers = np.concatenate([start.headers, image.headers])
    return Readouts(headers, np.concatenate([start.data, image.data]))


MIXED = {"encoded": (32, 8, 1), "encoded_fov": (320.0, 80.0, 8.0)}


@settings(max_examples=60)
@given(st.sets(st.integers(1, 49)))
def test_the_result_does_not_depend_on_how_the_stream_is_cut(cuts):
    stream = mixed_stream()
    edges = [0, *sorted(cuts), 50]
    blocks = [stream[begin:end] for begin, end in itertools.pairwise(edges)]
    whole, problems, one = prepare(stream, **MIXED)
    parts, others, stage = prepare(*blocks, **MIXED)
    (headers, data), (expected_headers, expected_data) = joined(parts), joined(whole)
    np.testing.assert_array_equal(headers, expected_headers)
    np.testing.assert_array_equal(data, expected_data)
    # which kind comes first does depend on it
    told, told_others = (
        {(kind, one.count, one.text) for kind, one in some.kinds.items()} for some in (problems, others)
    )
    assert told_others == told
    assert (stage.noise_readouts, stage.dropped) == (one.noise_readouts, one.dropped)


def test_what_comes_in_is_never_changed_and_may_be_an_unaligned_read_only_view():
    stream = mixed_stream()
    record = np.dtype([("id", "<u2"), ("head", stream.headers.dtype), ("data", "<c8", (3, 32))])
    packed = np.empty(50, record)
    packed["head"], packed["data"] = stream.headers, stream.data
    raw = packed.tobytes()
    views = np.frombuffer(raw, record)
    assert not views["data"].flags.aligned
    assert not views["data"].flags.writeable
    expected, _, _ = prepare(stream, **MIXED)
    parts, _, _ = prepare(Readouts(views["head"], views["data"]), **MIXED)
    for ours, other in zip(joined(parts), joined(expected), strict=True):
        np.testing.assert_array_equal(ours, other)
    assert packed.tobytes() == raw
    again = mixed_stream()
    np.testing.assert_array_equal(stream.data, again.data)
    np.testing.assert_array_equal(stream.headers, again.headers)


def test_prepared_readouts_share_no_memory_with_the_stream():
    """The receive buffer behind a block is used again."""
    block = readouts(3, 2, 16)
    (part,), _, _ = prepare(block)
    assert not np.shares_memory(part.data, block.data)
    assert not np.shares_memory(part.headers, block.headers)
