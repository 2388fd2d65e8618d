"""Buffers of a Gadgetron's own gadgets give the very slices and images that readouts give."""

import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.preparation.gathered import readouts_of_bucket, readouts_of_buffers
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.containers import BufferedData, ReconData
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, ConfigText, Header, Image, Waveform
from gadgets.wire.reader import Reader
from recon_core.engine import Engine
from recon_core.errors import DataError
from tests.helpers.peers import StubEngine, one_by_one, serving, talk, wire
from tests.helpers.stock import Stock, as_messages, lines_of, recon_data_bytes

SMALL = {"matrix_x": 32, "matrix_y": 24, "frames": 4, "coils": 3, "acs_lines": 8, "acceleration": 2, "waveforms": False}
SCANS = {
    "one slice, all lines": {"sampling": "full"},
    "without noise": {"snr": 0.0},
    "three slices": {"slices": 3},
    "interleaved slices": {"slices": 2, "slice_order": "interleaved"},
    "partial Fourier": {"sampling": "full", "partial_fourier": 0.7},
    "every 2nd line with embedded reference": {},
    "shifting lines": {"sampling": "interleaved", "acs_lines": 0},
    "variable density": {"sampling": "variable_density", "acceleration": 3},
    "phase oversampling": {"phase_oversampling": 0.25},
    "interpolation": {"interpolation": 1.5},
    "averages": {"averages": 2, "sampling": "full"},
    "segments": {"segments": 4},
    "retrospective gating": {"gating": "retrospective", "segments": 4, "frames": 8, "sampling": "full"},
    "real time": {"time_axis": "repetition"},
    "odd sizes": {"matrix_x": 35, "matrix_y": 27},
    "Siemens": {"vendor": "SIEMENS", "partial_fourier": 0.75},
}
# trigger and sorting of AcquisitionAccumulateTrigger, N, S and splitting of BucketToBuffer
CHAINS = {
    "packaged": ({"trigger": "repetition", "sorting": "slice"}, {}),
    "stock real-time cine": ({"trigger": "slice"}, {}),
    "all slices in one": ({}, {"split_slices": False}),
    "other axes": ({}, {"n": "repetition", "s": "average"}),
    "nothing but lines": ({"sorting": "slice"}, {"n": "", "s": "", "ignore_segment": False}),
}


# A gate needs the order in time, which buffers by phase lose.
OUT_OF_ORDER = ("retrospective gating", "other axes")


@functools.cache
def scan(name):
    made = simulate(ScanPlan(**{**SMALL, **SCANS[name]}))
    return made.header, tuple(made.items())


def buffers(header, items, accumulation=None, axes=None):
    stock = Stock(header)
    return list(stock.to_buffers(stock.accumulate(stock.prepared(items), **(accumulation or {})), **(axes or {})))


class Slices:
    """Keeps the slices that reach the reconstruction, by key."""

    def __init__(self):
        self.found = {}

    def __call__(self, complete, _):
        assert complete.key not in self.found
        self.found[complete.key] = complete


def through(header, items, engine=None, **settings):
    """Slices, images and problems of a scan."""
    slices, engine, problems = Slices(), engine or StubEngine(), Problems()
    options = Settings.of(**{"method": "zero_filled", "device": "cpu", **settings})
    chain = Chain(parse_header(header), options, lambda: engine, problems, slices)
    images = [item for item in chain(iter(items)) if isinstance(item, Image)]
    return slices.found, images, problems


@functools.cache
def of_readouts(name):
    """Slices and images of a scan by its readouts."""
    slices, images, _ = through(*scan(name))
    return slices, images


def assert_same_slices(found, expected):
    assert list(map(tuple, sorted(found))) == list(map(tuple, sorted(expected)))
    for key, wanted in expected.items():
        got = found[key]
        np.testing.assert_array_equal(got.cine.mask, wanted.cine.mask)
        scale = np.abs(wanted.cine.kspace).max()
        assert np.abs(got.cine.kspace - wanted.cine.kspace).max() < 1e-5 * scale
        np.testing.assert_array_equal(got.frames, wanted.frames)
        assert got.notes == wanted.notes
        for name in ("scan_counter", "acquisition_time_stamp", "physiology_time_stamp", "position", "idx", "flags"):
            np.testing.assert_array_equal(got.headers[name], wanted.headers[name])
        assert (got.cine.calibration is None) == (wanted.cine.calibration is None)
        if wanted.cine.calibration is not None:
            assert np.abs(got.cine.calibration - wanted.cine.calibration).max() < 1e-5 * scale


def assert_same_images(found, expected, tolerance=1e-5):
    by_index = {int(image.header["image_index"]): image for image in expected}
    assert len(found) == len(by_index)
    brightest = max(image.data.max() for image in expected)
    for image in found:
        wanted = by_index[int(image.header["image_index"])]
        assert np.abs(image.data - wanted.data).max() < tolerance * brightest
        for name in image.header.dtype.names:
            if name != "attribute_string_len":
                np.testing.assert_array_equal(image.header[name], wanted.header[name], err_msg=name)


def cases():
    for name, chain in itertools.product(SCANS, CHAINS):
        slow = name == "retrospective gating" and chain != "packaged"  # hundreds of frames
        if (name, chain) != OUT_OF_ORDER:
            yield pytest.param(name, chain, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("name", "chain"), list(cases()))
def test_buffers_give_what_readouts_give(name, chain):
    header, items = scan(name)
    accumulation, axes = CHAINS[chain]
    made = buffers(header, items, accumulation, axes)
    if name == "averages" and axes.get("s") == "average" and made[0].bits[0][0].data.shape[5] != 2:
        pytest.fail("the averages should be an axis here")
    if name == "interleaved slices" and chain == "stock real-time cine":
        assert len(made) > 2 * 4, "every change of the slice makes a buffer"
    slices, images, problems = through(header, made)
    expected, wanted = of_readouts(name)
    assert not list(problems)
    assert_same_slices(slices, expected)
    assert_same_images(images, wanted)


def test_the_last_readout_of_the_measurement_may_lie_in_a_buffer_before_others():
    name, chain = OUT_OF_ORDER
    header, items = scan(name)
    accumulation, axes = CHAINS[chain]
    made = buffers(header, items, accumulation, axes)
    flags = [int(np.bitwise_or.reduce(one.bits[0][0].headers["flags"], axis=None)) for one in made]
    last = [bool(flag & int(AcquisitionFlag.LAST_IN_MEASUREMENT.bit)) for flag in flags]
    assert True in last[:-1]
    _, images, problems = through(header, made)
    assert len(images) == 8
    assert problems.damage == []


def test_an_asymmetric_echo_leaves_only_ripples_beyond_its_end():
    plan = ScanPlan(**SMALL, asymmetric_echo=0.25)
    made = simulate(plan)
    items = list(made.items())
    (got,) = through(made.header, buffers(made.header, items))[0].values()
    (wanted,) = through(made.header, items)[0].values()
    np.testing.assert_array_equal(got.cine.receiver.columns, wanted.cine.receiver.columns)
    measured = got.cine.receiver.columns
    assert 0.7 * len(measured) < measured.sum() < 0.8 * len(measured)
    assert not got.cine.kspace[..., ~measured].any(), "BucketToBuffer copies what was measured"
    difference = np.abs(got.cine.kspace - wanted.cine.kspace)[..., measured]
    assert difference.max() < 1e-5 * np.abs(wanted.cine.kspace).max()


def test_oversampling_that_is_left_in_is_removed_here():
    header, items = scan("without noise")
    stock = Stock(header)
    wide = list(stock.to_buffers(stock.accumulate(stock.asymmetric_echo(lines_of(items)))))
    assert wide[0].bits[0][0].data.shape[0] == 64
    assert_same_slices(through(header, wide)[0], through(header, items)[0])


def test_buckets_are_readouts():
    for name in ("every 2nd line with embedded reference", "three slices"):
        header, items = scan(name)
        stock = Stock(header)
        buckets = [bucket.message() for bucket in stock.accumulate(stock.prepared(items), "slice")]
        assert any(bucket.reference for bucket in buckets)
        slices, images, problems = through(header, buckets)
        assert not list(problems)
        expected, wanted, _ = through(header, items)
        assert_same_slices(slices, expected)
        assert_same_images(images, wanted)
        (runs,) = (list(readouts_of_bucket(bucket)) for bucket in buckets[:1])
        assert len(runs) == 1
        counters = runs[0].headers["scan_counter"]
        assert (np.diff(counters) > 0).all()


def test_waveforms_of_a_bucket_are_handed_through():
    made = simulate(ScanPlan(**{**SMALL, "waveforms": True}))
    items = list(made.items())
    stock = Stock(made.header)
    buckets = [bucket.message() for bucket in stock.accumulate(stock.prepared(items))]
    chain = Chain(parse_header(made.header), Settings.of(method="zero_filled"), StubEngine)
    came = [item for item in chain(iter(buckets)) if isinstance(item, Waveform)]
    assert [wire(item) for item in came] == [wire(item) for item in items if isinstance(item, Waveform)]


def test_separate_reference_lines_become_the_calibration():
    header, items = scan("every 2nd line with embedded reference")
    header = header.replace(">embedded<", ">separate<")
    made = buffers(header, items)
    assert made[0].bits[0][1].data.shape[1] == 8, "only the range that was measured"
    slices, images, _ = through(header, made)
    (one,) = slices.values()
    assert one.cine.calibration is not None
    expected, wanted, _ = through(header, items)
    assert_same_slices(slices, expected)
    assert_same_images(images, wanted)


# --- the images of the real engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu")


def test_images_of_cg_sense_without_noise_readouts(engine):
    header, items = scan("without noise")
    expected = through(header, items, engine, method="cg_sense")[1]
    assert_same_images(through(header, buffers(header, items), engine, method="cg_sense")[1], expected)


def test_images_of_cg_sense_whitened_in_front(engine):
    """Only the shading of the receive coils is lost: no one behind NoiseAdjust knows the noise any more."""
    header, items = scan("every 2nd line with embedded reference")
    noise_first = as_messages(Stock(header).noise_adjust(lines_of(items)))
    settings = {"method": "cg_sense", "whitened": True, "scale": 1.0}
    readouts = through(header, noise_first, engine, **settings)[1]
    slices, images, problems = through(header, buffers(header, items), engine, **settings)
    assert not list(problems)
    assert all(one.cine.receiver.whitened for one in slices.values())
    assert_same_images(images, readouts)
    shaded = through(header, items, engine, method="cg_sense", scale=1.0)[1]
    values, own = (np.stack([image.data[0, 0] for image in series]) for series in (images, shaded))
    bright = values.min(axis=0) > 0.1 * values.max()
    shading = own[:, bright] / values[:, bright]
    assert bright.sum() > 50
    assert shading.std(axis=0).max() < 1e-4 * shading.mean()
    assert 0.3 < shading.mean() < 3


def test_nothing_is_whitened_twice():
    header, items = scan("every 2nd line with embedded reference")
    (one,) = through(header, items, whitened=True)[0].values()
    (plain,) = through(header, items, whiten=False)[0].values()
    assert one.cine.receiver.colouring is None
    np.testing.assert_array_equal(one.cine.kspace, plain.cine.kspace)


def test_a_scan_that_was_not_whitened_after_all_is_noticed(engine):
    header, items = scan("every 2nd line with embedded reference")
    items = [item for item in items if not (item.headers["flags"] & AcquisitionFlag.NOISE.bit).any()]
    settings = {"method": "cg_sense", "whitened": True}
    weak = [dataclasses.replace(item, data=item.data * np.float32(1e-6)) for item in items]
    slices, images, problems = through(header, buffers(header, weak), engine, **settings)
    assert len(images) == 4
    assert not any(one.cine.receiver.whitened for one in slices.values())
    (problem,) = problems
    assert "should be whitened already" in problem.text
    assert not problem.damage
    unknown = through(header, buffers(header, weak), engine, method="cg_sense")[1]
    assert_same_images(images, unknown)


# --- what is wrong with buffers ---------------------------------------------------------------------------------------


def changed(buffered, **fields):
    return dataclasses.replace(buffered, **fields)


def damaged(name, change):
    """The buffers of a scan of three slices, the second one changed; its header too."""
    header, items = scan(name)
    made = buffers(header, items, {"sorting": "slice"})
    data, reference = made[1].bits[0]
    made[1] = ReconData((change(data, reference),))
    return header, made


def cut_headers(data, reference):
    return changed(data, headers=data.headers[:-1]), reference


def without_axes(data, reference):
    return changed(data, data=data.data[..., 0, 0, 0]), reference


def two_partitions(data, reference):
    double = [np.concatenate([array, array], axis=axis) for array, axis in ((data.data, 2), (data.headers, 1))]
    return changed(data, data=double[0], headers=double[1]), reference


def narrow(data, reference):
    return changed(data, data=data.data[3:]), reference


def other_coils(data, reference):
    return changed(data, data=data.data[:, :, :, :2]), None


def wide(data, reference):
    double = data.data[:1, :1]
    return changed(data, data=np.broadcast_to(double, (70000, *double.shape[1:])), headers=data.headers[:1]), reference


def all_invalid(data, _):
    return changed(data, data=data.data * np.nan), None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_headers, r"headers of \(23, 1, 4, 1, 1\), expected \(24, 1, 4, 1, 1\) \(E1, E2, N, S, LOC\)"),
        (without_axes, "has headers of .*expected"),
        (two_partitions, "2 partitions; only 2-D"),
        (narrow, "29 columns, expected 32 without readout oversampling or 64 with it.*AsymmetricEchoAdjustRO"),
        (other_coils, "has 2 coils, expected 3"),
        (wide, "larger than any readout"),
        (all_invalid, "values that are not finite"),
    ],
)
def test_a_buffer_that_cannot_be_used_costs_its_slice_only(change, message):
    header, made = damaged("three slices", change)
    made[1] = ReconData(((made[1].bits[0][0], None),))
    slices, images, problems = through(header, made)
    assert sorted(key.slice for key in slices) == [0, 2]
    assert len(images) == 2 * 4
    texts = [problem.text for problem in problems.damage]
    assert any(re.search(message, text) for text in texts), texts
    assert any("slices between others never came (slice 1 first)" in text for text in texts)


def with_line(items, change):
    """The scan with one readout changed, of a frame in the middle."""
    lines = list(lines_of(items))
    image = [line for line in lines if line.counter("phase") == 2 and line.counter("kspace_encode_step_1") == 6]
    (line,) = image
    change(line)
    line.header["active_channels"], line.header["number_of_samples"] = line.data.shape
    return list(as_messages(lines))


def of_two_coils(line):
    line.data = line.data[:2]


def of_fewer_samples(line):
    line.data = line.data[:, 4:-4]
    line.header["center_sample"] -= 4


@pytest.mark.parametrize(("change", "found"), [(of_two_coils, "2 coils, expected 3"), (of_fewer_samples, "samples")])
def test_a_readout_with_fewer_coils_or_samples_costs_itself_only(change, found):
    """BucketToBuffer fills a part of its line, and leaves the rest undefined."""
    header, items = scan("without noise")
    odd = with_line(items, change)
    slices, images, problems = through(header, buffers(header, odd))
    expected, wanted, _ = through(header, odd)
    ((kspace, mask),) = ((one.cine.kspace, one.cine.mask) for one in slices.values())
    ((plain, missing),) = ((one.cine.kspace, one.cine.mask) for one in expected.values())
    np.testing.assert_array_equal(mask, missing)
    assert (
        np.count_nonzero(~mask) == np.count_nonzero(~next(iter(of_readouts("without noise")[0].values())).cine.mask) + 1
    )
    assert np.abs(kspace - plain).max() < 1e-5 * np.abs(plain).max()
    assert_same_images(images, wanted)
    (problem,) = problems.damage
    assert re.search(f"readout .* has .*{found}.*left out", problem.text)
    assert problem.count == 1


def test_oversampling_that_the_sender_had_removed_gives_no_images_but_an_error():
    """RemoveROOversampling cuts half of the field of view away; the reference lines alone are no images either."""
    header, items = scan("every 2nd line with embedded reference")
    narrow = list(Stock(header).remove_oversampling(lines_of(items)))
    for line in narrow:  # flag 21 in addition, as of lines of a frame
        if line.has(AcquisitionFlag.PARALLEL_CALIBRATION):
            line.header["flags"] |= AcquisitionFlag.CALIBRATION_AND_IMAGING.bit
    problems = Problems()
    chain = Chain(parse_header(header), Settings.of(method="zero_filled"), StubEngine, problems)
    images = []
    with pytest.raises(DataError, match="no image readouts"):
        images.extend(chain(iter(buffers(header, list(as_messages(narrow))))))
    assert images == []
    (problem,) = problems.damage
    assert "16 columns, expected 32 without readout oversampling" in problem.text


def test_coils_that_a_gadget_in_front_compressed_are_no_damage():
    header, items = scan("without noise")
    made = buffers(header, items)
    fewer = [
        ReconData(tuple((changed(data, data=data.data[:, :, :, :2]), None) for data, _ in message.bits))
        for message in made
    ]
    _, images, problems = through(header, fewer)
    assert problems.damage == []
    assert len(images) == 4


def test_single_lines_with_values_that_are_not_finite_are_left_out():
    header, made = damaged("three slices", lambda data, reference: (data, reference))
    data = made[1].bits[0][0]
    where = np.argwhere(data.headers["number_of_samples"][:, 0, 2, 0, 0])[0, 0]
    data.data[5, where, 0, 1, 2, 0, 0] = np.inf
    slices, images, problems = through(header, made)
    assert len(images) == 3 * 4
    (problem,) = problems.damage
    assert f"readout {data.headers['scan_counter'][where, 0, 2, 0, 0]} holds values" in problem.text
    lines = {key.slice: one.lines for key, one in slices.items()}
    np.testing.assert_array_equal(lines[1], lines[0] - [0, 0, 1, 0])


def test_lines_that_were_never_measured_are_not_invented():
    header, made = damaged("three slices", lambda data, reference: (data, reference))
    data = made[1].bits[0][0]
    data.headers[2:12, 0, 1] = 0
    slices, images, problems = through(header, made)
    assert len(images) == 3 * 4
    masks = {key.slice: one.cine.mask for key, one in slices.items()}
    assert not masks[1][1, 2:8].any()
    assert masks[1][0, 2:8].any()
    texts = [problem.text for problem in problems]
    assert any("hold data but no header" in text for text in texts)
    assert any("slice 1 lacks lines in 1 of 4 frames; frame 1 has" in text for text in texts)


def test_empty_buffers_are_passed_over():
    header, items = scan("three slices")
    made = buffers(header, items)
    nothing = changed(made[0].bits[0][0], data=np.empty(0, np.complex64), headers=made[0].bits[0][0].headers[:0])
    unmeasured = changed(made[0].bits[0][0], headers=np.zeros_like(made[0].bits[0][0].headers), data=nothing.data)
    zero = changed(made[0].bits[0][0], headers=np.zeros_like(made[0].bits[0][0].headers))
    zero = changed(zero, data=np.zeros_like(zero.data))
    noted = [ReconData(()), *(ReconData(((one, None),)) for one in (nothing, unmeasured, zero)), *made]
    _, images, problems = through(header, noted)
    assert len(images) == 3 * 4
    assert not problems.damage
    assert [problem.count for problem in problems] == [3]  # two without data, one of zeros
    with pytest.raises(DataError, match="no image readouts in the scan"):
        through(header, noted[:4])


def test_a_reference_that_was_cut_is_not_used():
    def cut(data, reference):
        return data, changed(reference, data=reference.data[:, 3:9])

    header, made = damaged("three slices", cut)
    slices, images, problems = through(header, made)
    assert len(slices) * 4 == len(images) == 12
    (problem, *_) = problems
    assert "reference buffer is not used" in problem.text
    assert "GenericReconCartesianReferencePrep" in problem.text
    assert not problem.damage


def test_reversed_readouts_are_left_out():
    made = simulate(ScanPlan(**{**SMALL, "sampling": "full", "reversed_readouts": True}))
    items = list(made.items())
    with pytest.raises(ValueError, match="broadcast"):  # a Gadgetron ends with an error of its own
        buffers(made.header, items)
    for item in items:
        item.headers["center_sample"] = item.data.shape[2] // 2  # as many senders leave it
    slices, _, problems = through(made.header, buffers(made.header, items))
    (one,) = slices.values()
    np.testing.assert_array_equal(one.cine.mask.any(axis=0), np.arange(24) % 2 == 0)
    assert any("measured from its other end" in problem.text for problem in problems.damage)


def test_a_header_without_parallel_imaging_costs_lines_in_front_and_that_is_said():
    made = simulate(ScanPlan(**{**SMALL, "sampling": "full", "partial_fourier": 0.75}))
    begin, end = made.header.index("<parallelImaging>"), made.header.index("</parallelImaging>")
    header = made.header[:begin] + made.header[end + len("</parallelImaging>") :]
    slices, images, problems = through(header, buffers(header, list(made.items())))
    assert len(images) == 4
    (one,) = slices.values()
    assert one.lines.max() == 18 - 6
    text = " ".join(problem.text for problem in problems)
    assert "room for 18 of the 24 lines" in text
    assert "works from readouts" in text


def test_navigators_in_a_buffer_are_not_image_lines():
    header, made = damaged("three slices", lambda data, reference: (data, reference))
    flags = made[1].bits[0][0].headers["flags"]
    where = np.flatnonzero(made[1].bits[0][0].headers["number_of_samples"][:, 0, 0, 0, 0])[0]
    flags[where, 0, 0] |= AcquisitionFlag.NAVIGATION.bit
    slices, _, _ = through(header, made)
    assert not next(one for key, one in slices.items() if key.slice == 1).cine.mask[0, where]


def test_an_unknown_encoding_is_named():
    header, made = damaged("three slices", lambda data, reference: (data, None))
    made[1].bits[0][0].headers["encoding_space_ref"] = 3
    assert any("belongs to encoding 3" in one.text for one in through(header, made)[2].damage)


def test_axes_of_length_one_may_be_left_out_at_the_end():
    header, items = scan("one slice, all lines")
    (made,) = buffers(header, items)
    data = made.bits[0][0]
    short = BufferedData(data.data[..., 0, 0], data.headers[..., 0, 0], data.sampling)
    problems = Problems()
    (runs,) = readouts_of_buffers(ReconData(((short, None),)), parse_header(header), problems)
    assert len(runs) == 4 * 24
    assert not list(problems)


def test_the_wire_is_read_as_it_was_written():
    header, items = scan("every 2nd line with embedded reference")
    (made,) = buffers(header, items)
    stream = memoryview(recon_data_bytes(made))
    place = 0

    def receive(buffer):
        nonlocal place
        count = min(len(buffer), len(stream) - place)
        buffer[:count] = stream[place : place + count]
        place += count
        return count

    read = Reader(receive).read()
    for got, wanted in zip(read.bits[0], made.bits[0], strict=True):
        np.testing.assert_array_equal(got.data, wanted.data)
        assert got.headers.tobytes() == wanted.headers.tobytes()
        assert got.sampling.tobytes() == wanted.sampling.tobytes()
    assert recon_data_bytes(made) == wire(made)


def test_how_readouts_were_cut_into_messages_does_not_matter():
    header, items = scan("three slices")
    expected = through(header, items)[0]
    assert_same_slices(through(header, buffers(header, list(one_by_one(items))))[0], expected)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_broken_buffer_is_reported_to_a_gadgetron_that_gets_what_is_complete():
    header, made = damaged("three slices", cut_headers)
    made[1] = ReconData(((made[1].bits[0][0], None),))
    bare = ConfigText("<configuration><method>zero_filled</method></configuration>")
    with serving() as server:
        answer = talk(server, bare, Header(header), *made, Close())
        (error,) = answer.complaints("gadgetron")
        assert "expected (24, 1, 4, 1, 1) (E1, E2, N, S, LOC)" in error
        assert "slices between others never came (slice 1 first)" in error
        assert len(answer.images) == 2 * 4
        again = talk(server, bare, Header(header), *buffers(*scan("three slices")), Close())
        assert again.complaints("gadgetron") == []
        assert len(again.images) == 3 * 4


def test_a_client_that_wants_gadgets_learns_what_to_take():
    header, items = scan("three slices")
    with serving() as server:
        answer = talk(server, ConfigFile("cg_sense-stock-front"), Header(header), *items, Close())
    (text,) = answer.complaints("client")
    assert "NoiseAdjustGadget" in text
    assert "here take cg_sense, which does without them" in text
    assert answer.images == []
