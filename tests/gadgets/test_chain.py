import dataclasses
import itertools
import logging
import re

import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.files.raw import open_scan
from gadgets.images.maker import SECOND_SERIES
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.framing import EndOfStreamError
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Image, Text, Waveform
from recon_core.ct.placement import PlacedCt
from recon_core.data import Reconstruction
from recon_core.engine import Engine, create_method
from recon_core.errors import DataError, ModelError
from recon_core.metrics.measures import best_scale, nrmse
from recon_core.networks.crunet_mr import CRUNetMR
from recon_core.options import ReconOptions
from recon_core.steps import units
from tests.helpers.builders import encoding_xml, header_xml, readouts, waveform
from tests.helpers.networks import write_tiny_weights
from tests.helpers.paths import SHARED, existing

DATA = SHARED / "data"
REAL = (
    "ismrmrd_real/brain_gre128_16ch_cimax3T.h5",
    "ismrmrd_real/knee_tse_1ch_ros2_larsonlab.h5",
    "ismrmrd_real/phantom_gre160_2ch_ros2_skyra3T.h5",
    "ismrmrd_real/phantom_gre256_1ch_3contrast_prisma3T.h5",
    "ismrmrd_real/phantom_gre64_32ch_6rep_skyra3T.h5",
    "ismrmrd_real/phantom_gre96_16ch_noisescan_cloudmr.h5",
    "semi_real_cine/cine_mini_scd101_4ch_10f_R2.h5",
)
COLUMNS, LINES, FRAMES, SLICES, COILS = 24, 10, 3, 4, 3


class PlainEngine:
    """Root of the sum of squares; fails on the slices of the given numbers, counted as they come."""

    def __init__(self, fails=(), error=ModelError):
        self.fails, self.error, self.asked, self.slices = fails, error, 0, []

    def __call__(self):
        self.asked += 1
        return self

    def reconstruct(self, cine, settings):
        self.slices.append(cine)
        if len(self.slices) - 1 in self.fails:
            raise self.error("the network ran out of ideas")
        images = centred_ifft2(cine.kspace)
        image = np.sqrt((np.abs(images) ** 2).sum(1)).astype(np.complex64)
        return Reconstruction(image, np.ones(images.shape[1:], np.complex64), settings.method, {"reconstruct": 0.25})


def centred_ifft2(kspace):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def header(**counts):
    sizes = {"average": 1, "slice": SLICES, "phase": FRAMES, **counts}
    limits = {name: (0, size - 1, 0) for name, size in sizes.items()}
    limits["kspace_encoding_step_1"] = (0, LINES - 1, LINES // 2)
    encoding = encoding_xml(
        encoded=(COLUMNS, LINES, 1),
        recon=(COLUMNS // 2, LINES, 1),
        encoded_fov=(240, 100, 8),
        recon_fov=(120, 100, 8),
        limits=limits,
    )
    return parse_header(header_xml(encoding))


def scan(slices=SLICES, seed=0):
    """Readouts slice by slice, frame by frame."""
    order = np.array(list(itertools.product(range(slices), range(FRAMES), range(LINES))))
    names = ("slice", "phase", "kspace_encode_step_1")
    return readouts(len(order), COILS, COLUMNS, seed=seed, **dict(zip(names, order.T, strict=True)))


def noise():
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(COILS, COILS)) + 1j * rng.normal(size=(COILS, COILS)) + 2 * np.eye(COILS)
    block = readouts(50, COILS, 32, seed=4, flags=[AcquisitionFlag.NOISE])
    block.data[:] = np.einsum("pc,rcs->rps", mixing, block.data)
    return block


def chain(engine=None, *, head=None, watch=None, **settings):
    options = Settings.of(**{"method": "zero_filled", "device": "cpu", **settings})
    return Chain(head or header(), options, engine or PlainEngine(), watch=watch)


def whitening(block, dwell, bandwidth):
    values = block.transpose(1, 0, 2).reshape(block.shape[1], -1).astype(complex)
    covariance = values @ values.conj().T / (values.shape[1] - 1)
    return np.linalg.inv(np.linalg.cholesky(covariance)) * np.sqrt(2 * dwell * bandwidth)


def combined(kspace, kept, maps, matrix=None):
    """Zero-filled image of centred k-space (coil, ky, kx), oversampling cut, combined with the maps, coloured."""
    images = centred_ifft2(kspace)
    first = images.shape[2] // 2 - kept // 2
    images = images[:, :, first : first + kept]
    image = (maps.conj() * images).sum(0)
    if matrix is None:
        return image
    colouring = np.linalg.inv(matrix)
    colouring /= np.linalg.norm(colouring) / np.sqrt(len(maps))
    return image * np.linalg.norm(np.einsum("rc,cyx->ryx", colouring, maps), axis=0)


def relative_error(values, reference):
    """After the one factor that fits the whole series best."""
    factor = (values * reference).sum() / (reference**2).sum()
    return np.linalg.norm(values - factor * reference) / np.linalg.norm(factor * reference)


# --- a scan as it should be -------------------------------------------------------------------------------------------


def test_a_scan_becomes_images():
    run = chain(engine := PlainEngine())
    images = list(run([scan()]))
    assert all(isinstance(image, Image) for image in images)
    counters = [(int(image.header["slice"]), int(image.header["phase"])) for image in images]
    assert counters == list(itertools.product(range(SLICES), range(FRAMES)))
    assert (run.summary.readouts, run.summary.slices, run.summary.images) == (120, 4, 12)
    assert run.summary.seconds["reconstruct"] == pytest.approx(1.0)
    assert run.summary.seconds["slice"] > 0
    assert list(run.summary.problems) == []
    assert len(engine.slices) == 4


@pytest.mark.parametrize("with_noise", [True, False])
def test_zero_filled_images_are_those_of_plain_numpy(with_noise):
    maps = {}

    def watch(complete, reconstruction):
        maps[complete.key.slice] = reconstruction.maps

    engine, block = Engine("cpu"), scan()
    run = chain(lambda: engine, watch=watch)
    images = list(run([noise(), block] if with_noise else [block]))
    matrix = whitening(noise().data, 1.0, 0.793) if with_noise else None
    reference = []
    for number, frame in itertools.product(range(SLICES), range(FRAMES)):
        begin = (number * FRAMES + frame) * LINES
        kspace = block.data[begin : begin + LINES].transpose(1, 0, 2)
        if matrix is not None:
            kspace = np.einsum("pc,cyx->pyx", matrix, kspace)
        reference.append(combined(kspace, COLUMNS // 2, maps[number], matrix))
    values = np.stack([image.data[0, 0] for image in images])
    assert relative_error(values, np.abs(reference)) < 1e-4
    assert list(run.summary.problems) == []


def test_a_single_coil_gives_the_magnitude_of_the_inverse_transform():
    order = list(itertools.product(range(FRAMES), range(LINES)))
    frames, lines = np.array(order).T
    block = readouts(len(order), 1, COLUMNS // 2, phase=frames, kspace_encode_step_1=lines)
    engine = Engine("cpu")
    images = list(chain(lambda: engine, head=header(slice=1), scale=3.0)([block]))
    kspace = block.data.reshape(FRAMES, LINES, COLUMNS // 2)
    values = np.stack([image.data[0, 0] for image in images])
    np.testing.assert_allclose(values, 3 * np.abs(centred_ifft2(kspace)), rtol=1e-4, atol=1e-4)


def test_the_cut_of_the_stream_changes_nothing():
    block = scan()
    expected = list(chain()([block]))
    for size in (1, 7, 30, 31):
        blocks = [block[begin : begin + size] for begin in range(0, len(block), size)]
        images = list(chain()(blocks))
        assert len(images) == len(expected)
        for image, other in zip(images, expected, strict=True):
            np.testing.assert_array_equal(image.data, other.data)
            assert image.header == other.header
            assert image.attributes == other.attributes


def test_images_come_while_the_scan_goes_on():
    block, taken = scan(), []

    def items():
        for i in range(len(block)):
            taken.append(i)
            yield block[i : i + 1]

    run = chain()(items())
    assert next(run).header["slice"] == 0
    assert len(taken) == FRAMES * LINES + 1


def test_the_engine_is_asked_for_when_the_first_slice_is_complete():
    engine, block = PlainEngine(), scan()
    run = chain(engine)(block[i : i + 1] for i in range(len(block)))
    assert engine.asked == 0
    next(run)
    assert engine.asked == 1


def test_the_slice_carries_the_colouring_of_the_noise():
    engine = PlainEngine()
    list(chain(engine)([noise(), scan()]))
    matrix = whitening(noise().data, 1.0, 0.793)
    for cine in engine.slices:
        np.testing.assert_allclose(cine.receiver.colouring @ matrix, np.eye(COILS), atol=1e-4)
    engine = PlainEngine()
    list(chain(engine)([scan()]))
    assert [cine.receiver.colouring for cine in engine.slices] == [None] * SLICES


def test_waveforms_are_handed_through_in_their_place():
    block = scan(slices=2)
    waves = [waveform(seed=number, time_stamp=number) for number in range(4)]
    items = [waves[0], block[:30], waves[1], block[30:50], waves[2], block[50:], waves[3]]
    out = list(chain(head=header(slice=2))(items))
    places = [i for i, item in enumerate(out) if isinstance(item, Waveform)]
    assert [out[i] for i in places] == waves
    assert places == [0, 1, 5, 6]


def test_texts_go_to_the_log_and_other_messages_are_named(caplog):
    image = next(iter(chain()([scan()])))
    run = chain()
    with caplog.at_level(logging.INFO, "cinestream"):
        images = list(run([Text("table moved"), image, scan(), image]))
    assert "table moved" in caplog.text
    assert len(images) == 12
    (problem,) = run.summary.problems
    assert (problem.damage, problem.count) == (False, 2)
    assert "Image" in problem.text


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelError, RuntimeError])
def test_a_slice_that_fails_is_noted_and_the_others_go_on(error):
    told = []
    run = chain(PlainEngine([1], error), watch=lambda complete, _: told.append(complete.key.slice))
    images = list(run([scan()]))
    assert [int(image.header["slice"]) for image in images[::FRAMES]] == [0, 2, 3]
    (problem,) = run.summary.problems
    assert problem.damage
    assert "slice 1" in problem.text
    assert "ran out of ideas" in problem.text
    assert ("RuntimeError" in problem.text) == ("unexpected" in problem.text) == (error is RuntimeError)
    assert (run.summary.slices, run.summary.images) == (3, 9)
    assert told == [0, 2, 3]


def test_a_scan_of_which_every_slice_fails_is_an_error():
    run = chain(PlainEngine(fails=range(SLICES)))
    with pytest.raises(DataError, match="ran out of ideas") as caught:
        list(run([scan()]))
    assert "no image readouts" not in str(caught.value)
    assert run.summary.problems.kinds["reconstruction"].count == SLICES


def test_a_stream_that_breaks_leaves_what_came():
    block = scan()

    def items():
        yield block[:45]
        raise EndOfStreamError("the sender is gone within a message")

    run = chain()
    images = list(run(items()))
    assert [int(image.header["slice"]) for image in images] == [0, 0, 0, 1, 1]
    texts = [problem.text for problem in run.summary.problems.damage]
    assert "the sender is gone within a message" in texts[0]
    assert any("2 of the slices" in text and "ended early" in text for text in texts)
    whole = list(chain()([block]))
    for image, other in zip(images[:4], whole[:4], strict=True):
        np.testing.assert_array_equal(image.data, other.data)


def test_a_stream_that_breaks_at_once_is_an_error_that_says_so():
    def items():
        yield from ()
        raise EndOfStreamError("the sender is gone")

    with pytest.raises(DataError, match="the sender is gone"):
        list(chain()(items()))


def test_a_scan_without_image_readouts_counts_what_came():
    navigators = readouts(7, COILS, COLUMNS, flags=[AcquisitionFlag.NAVIGATION])
    broken = scan()[:3]
    broken.data[:] = np.nan
    run = chain()
    with pytest.raises(DataError) as caught:
        list(run([noise(), navigators, broken]))
    text = str(caught.value)
    assert all(words in text for words in ("60 readouts", "50 of noise", "10 left out", "not finite"))


def test_a_scan_that_ends_early_is_not_complete():
    run = chain()
    images = list(run([scan()[: 2 * FRAMES * LINES - 4]]))
    assert len(images) == 2 * FRAMES
    texts = [problem.text for problem in run.summary.problems.damage]
    assert any("2 of the slices" in text and "ended early" in text for text in texts)


def test_limits_that_are_larger_than_the_scan_are_no_damage():
    run = chain()
    assert len(list(run([scan()[: 2 * FRAMES * LINES]]))) == 2 * FRAMES
    (problem,) = run.summary.problems
    assert not problem.damage
    assert "2 of the slices" in problem.text


def test_a_tenth_of_broken_readouts_costs_no_image():
    block, rng = scan(), np.random.default_rng(1)
    bad = np.sort(rng.permutation(len(block))[: len(block) // 10])
    bad[0] = 3
    for i, kind in zip(bad, itertools.cycle(("nan", "line", "encoding")), strict=False):
        if kind == "nan":
            block.data[i, 0, 5] = np.nan
        elif kind == "line":
            block.headers["idx"]["kspace_encode_step_1"][i] = 999
        else:
            block.headers["encoding_space_ref"][i] = 7
    items = [block[:40], readouts(2, COILS + 1, COLUMNS), readouts(1, COILS, 9), block[40:], readouts(1, COILS, 0)]
    run = chain(engine := PlainEngine())
    images = list(run(items))
    assert len(images) == SLICES * FRAMES
    problems = run.summary.problems
    damage = {kind: problem.count for kind, problem in problems.kinds.items() if problem.damage}
    assert damage == {"values": 4, "encoding": 4, "stray line": 4, "coils": 2, "samples": 1, "empty": 1}
    assert "readout 3 " in str(problems.kinds["values"])
    missing = np.zeros((SLICES, FRAMES, LINES), bool)
    missing.reshape(-1)[bad] = True
    np.testing.assert_array_equal([cine.mask for cine in engine.slices], ~missing)


def test_every_broken_readout_is_counted_where_people_look(caplog):
    """Three in each frame but the first, which come in many messages: in the log and in the comments."""
    block = scan()
    counters = block.headers["idx"]
    first = (counters["slice"] == 0) & (counters["phase"] == 0)
    broken = np.isin(counters["kspace_encode_step_1"], [1, 6, 8]) & ~first
    block.data[broken] = np.nan
    counters["kspace_encode_step_1"][(counters["kspace_encode_step_1"] == 4) & ~first] = 999
    run = chain()
    with caplog.at_level(logging.WARNING, "cinestream"):
        images = list(run(block[begin : begin + 7] for begin in range(0, len(block), 7)))
    problems = run.summary.problems.damage
    assert [problem.count for problem in problems] == [33, 11]
    logged = [record.getMessage() for record in caplog.records]
    assert all(f"{problem.text} (the first of {problem.count} such cases)" in logged for problem in problems)
    assert len(images) == SLICES * FRAMES
    for image in images:
        lost = "8 broken readouts left out, of 2" if image.header["slice"] == 0 else "12 broken readouts left out, of 3"
        assert f"{lost} of {FRAMES} frames" in image.attributes


def test_a_listener_is_called_while_the_problem_happens():
    heard, block = [], scan()
    block.data[0] = np.nan
    run = Chain(header(), Settings.of(method="zero_filled"), PlainEngine(), Problems(heard.append))(
        block[i : i + 1] for i in range(len(block))
    )
    next(run)
    assert "not finite" in heard[0].text


# --- real data --------------------------------------------------------------------------------------------------------


def read_plainly(path):
    """Readouts and sizes of a file, by h5py and the XML classes of ismrmrd."""
    with h5py.File(path) as file:
        rows, xml = file["dataset/data"][:], file["dataset/xml"][0]
    heads = rows["head"]
    data = [
        values.view(np.complex64).reshape(head["active_channels"], head["number_of_samples"])
        for values, head in zip(rows["data"], heads, strict=True)
    ]
    return heads, data, ismrmrd.xsd.CreateFromDocument(xml)


@pytest.mark.parametrize("name", REAL)
def test_real_scans_agree_with_plain_numpy(name):
    path = existing(DATA / name)
    maps = {}
    engine = Engine("cpu")
    with open_scan(path) as opened:
        run = Chain(
            parse_header(opened.header),
            Settings.of(method="zero_filled", device="cpu"),
            lambda: engine,
            watch=lambda complete, result: maps.update({(complete.key.slice, complete.key.contrast): result.maps}),
        )
        images = [item for item in run(opened.items) if isinstance(item, Image)]
    assert list(run.summary.problems) == []

    heads, data, xml = read_plainly(path)
    encoding = xml.encoding[0]
    columns, lines = encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y
    kept, center = encoding.reconSpace.matrixSize.x, encoding.encodingLimits.kspace_encoding_step_1.center
    is_noise = (heads["flags"] & (1 << 18)) != 0
    matrix = None
    if is_noise.any():
        block = np.stack([data[i] for i in np.flatnonzero(is_noise)])
        dwell = heads["sample_time_us"][~is_noise][0] / heads["sample_time_us"][is_noise][0]
        bandwidth = xml.acquisitionSystemInformation.relativeReceiverNoiseBandwidth
        matrix = whitening(block, dwell, 0.793 if bandwidth is None else bandwidth)
    kspaces = {}
    for i in np.flatnonzero(~is_noise):
        counters, head = heads["idx"][i], heads[i]
        key = tuple(int(counters[axis]) for axis in ("slice", "contrast", "phase", "repetition"))
        kspace = kspaces.setdefault(key, np.zeros((len(data[i]), lines, columns), complex))
        first = columns // 2 - int(head["center_sample"])
        row = lines // 2 - center + int(counters["kspace_encode_step_1"])
        line = data[i] if matrix is None else matrix @ data[i]
        kspace[:, row, first : first + line.shape[1]] = line
    values, reference = [], []
    for image in images:
        key = tuple(int(image.header[axis]) for axis in ("slice", "contrast", "phase", "repetition"))
        values.append(image.data[0, 0])
        kspace = kspaces.pop(key)
        # one coil needs no map: its magnitude is that of the inverse transform
        own = maps[key[:2]] if len(kspace) > 1 else np.ones((1, lines, kept))
        reference.append(np.abs(combined(kspace, kept, own, matrix)))
    assert kspaces == {}
    assert values[0].max() > 0
    assert relative_error(np.stack(values), np.stack(reference)) < 1e-3


# --- virtual coils ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_coils():
    """A scan with coils of unequal, correlated noise, and an engine."""
    plan = ScanPlan(matrix_x=48, matrix_y=48, frames=4, coils=24, acceleration=2, acs_lines=16, snr=100.0)
    simulation = simulate(plan)
    return parse_header(simulation.header), list(simulation.items()), Engine("cpu")


def reconstructed(scanned, **settings):
    """The slice that went into the engine, and the series of images."""
    head, items, engine = scanned
    seen = []
    run = Chain(head, Settings.of(device="cpu", **settings), lambda: engine, watch=lambda *both: seen.append(both))
    images = [item for item in run(items) if isinstance(item, Image)]
    assert run.summary.problems.damage == []
    ((complete, _),) = seen
    return complete, np.stack([image.data[0, 0] for image in images])


@pytest.mark.parametrize(
    ("settings", "limit"), [({"coil_energy": 0.999}, 0.003), ({"virtual_coils": 12}, 0.01)], ids=["energy", "number"]
)
@pytest.mark.parametrize("method", [pytest.param("zero_filled", marks=pytest.mark.slow), "cg_sense"])
def test_virtual_coils_change_the_image_little(many_coils, method, settings, limit):
    whole, expected = reconstructed(many_coils, method=method, maps="walsh")
    few, images = reconstructed(many_coils, method=method, maps="walsh", **settings)
    assert few.cine.kspace.shape[1] < whole.cine.kspace.shape[1] == 24
    assert relative_error(images, expected) < limit


def test_the_colouring_goes_with_the_virtual_coils(many_coils):
    """Back at the receiver the virtual coils give what its coils gave, and the shading of the image is the same."""
    whole, expected = reconstructed(many_coils, method="zero_filled", maps="walsh")
    few, images = reconstructed(many_coils, method="zero_filled", maps="walsh", virtual_coils=12)
    assert few.cine.receiver.colouring.shape == (24, 12)
    received, back = (np.tensordot(s.cine.receiver.colouring, s.cine.kspace, (1, 1)) for s in (whole, few))
    assert np.linalg.norm(back - received) < 0.06 * np.linalg.norm(received)
    bright = expected.mean(0) > 0.2 * expected.max()
    weighting = images.mean(0)[bright] / expected.mean(0)[bright]
    assert np.abs(weighting / np.median(weighting) - 1).max() < 0.02


def test_the_g_factor_comes_as_one_more_image(many_coils):
    head, items, engine = many_coils
    run = Chain(head, Settings.of(device="cpu", g_factor=True, virtual_coils=6), lambda: engine)
    images = [item for item in run(items) if isinstance(item, Image)]
    assert [int(image.header["image_series_index"]) for image in images] == [1, 1, 1, 1, 20]
    assert [int(image.header["image_index"]) for image in images] == [1, 2, 3, 4, 1]
    assert 20 < np.median(images[-1].data) < 300
    assert run.summary.images == 5


# --- weights ----------------------------------------------------------------------------------------------------------


def test_without_weights_the_fallback_makes_the_images_and_they_say_so():
    made = simulate(ScanPlan(matrix_x=32, matrix_y=24, frames=2, coils=3, acs_lines=8))
    chain = Chain(parse_header(made.header), Settings.of(method="crunet_mr"), lambda: Engine("cpu"))
    images = [item for item in chain(made.items()) if isinstance(item, Image)]
    assert len(images) == 2
    (problem,) = chain.summary.problems
    assert not problem.damage
    for text in (str(problem), *(image.attributes for image in images)):
        assert "instead of crunet_mr" in text
        assert "cinestream import-weights crunet_mr" in text


def test_without_weights_and_fallback_there_is_no_chain():
    made = simulate(ScanPlan(matrix_x=32, matrix_y=24, frames=2, coils=3, acs_lines=8))
    with pytest.raises(ModelError, match="cinestream import-weights promptmr"):
        Chain(parse_header(made.header), Settings.of(method="promptmr", fallback="none"), lambda: Engine("cpu"))


# --- doubtful images --------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A scan, and a function that reconstructs it with a network whose image is the given part of a good one."""
    write_tiny_weights(tmp_path, "crunet_mr")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    made = simulate(ScanPlan(matrix_x=48, matrix_y=40, frames=4, coils=4, acceleration=2, acs_lines=10))

    def run(part, **settings):
        monkeypatch.setattr(
            CRUNetMR, "reconstruct", lambda self, data, **_: part * create_method("cg_sense", ReconOptions())(data)
        )
        chain = Chain(parse_header(made.header), Settings.of(device="cpu", **settings), lambda: Engine("cpu"))
        images = [item for item in chain(made.items()) if isinstance(item, Image)]
        assert chain.summary.problems.damage == []
        return [[each for each in images if each.header["image_series_index"] == series] for series in (1, 25)]

    return run


def comment(image):
    return ismrmrd.Meta.deserialize(image.attributes)["ImageComments"]


def test_a_good_image_of_a_network_is_sent_as_it_is(trained, caplog):
    for policy in ("fallback", "beside", "note"):
        images, beside = trained(1.05, method="crunet_mr", outside_range=policy)
        assert len(images) == 4
        assert beside == []
        assert all("cinestream crunet_mr; " in comment(image) and "cg_sense" not in comment(image) for image in images)
    assert "cg_sense" not in caplog.text


def test_instead_of_a_bad_image_that_of_the_fallback_is_sent_and_says_why(trained, caplog):
    expected, _ = trained(1.0, method="kt_sense")
    images, beside = trained(-1.0, method="crunet_mr")
    assert beside == []
    for image, wanted in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image.data, wanted.data)
        assert "cinestream kt_sense; kt_sense instead of crunet_mr: the image of crunet_mr leaves 2" in comment(image)
        assert re.search(r"differs by 2\d\d % from that of cg_sense, at most 80 % by default", comment(image))
    assert "kt_sense instead of crunet_mr" in caplog.text


def test_both_images_are_sent_where_that_is_asked_for(trained, caplog):
    expected, _ = trained(1.0, method="cg_sense")
    images, beside = trained(0.1, method="crunet_mr", outside_range="beside", fallback="cg_sense")
    assert len(images) == len(beside) == len(expected) == 4
    for image, other, wanted in zip(images, beside, expected, strict=True):
        np.testing.assert_array_equal(other.data, wanted.data)  # in the brightness that it has on its own
        np.testing.assert_allclose(image.data, 0.1 * wanted.data, rtol=1e-4)
        assert "cg_sense in addition to crunet_mr: the image of crunet_mr leaves" in comment(other)
        assert re.search(
            "crunet_mr; .*the image of crunet_mr leaves .*; the image of cg_sense is in a series of its own",
            comment(image),
        )
    assert "the image of cg_sense is in a series of its own" in caplog.text


def test_a_bad_image_is_only_marked_where_that_is_asked_for(trained):
    images, beside = trained(0.1, method="crunet_mr", outside_range="note")
    assert len(images) == 4
    assert beside == []
    assert all("cinestream crunet_mr; " in comment(image) and "leaves" in comment(image) for image in images)


def test_additional_images_of_the_fallback_do_not_claim_a_ct():
    class Both(PlainEngine):
        def reconstruct(self, cine, settings):
            made = super().reconstruct(cine, settings)
            return dataclasses.replace(made, method="atlf_net", beside=made, doubts=("unlike",))

    class Ct:
        def place(self, complete):
            return PlacedCt("ok", np.zeros(complete.cine.kspace.shape[2:], np.float32))

        def label(self, complete, placed):
            return dataclasses.replace(complete, meta={"ct_status": "ok"})

    run = Chain(header(), Settings.of(fallback="none", outside_range="beside"), Both())
    run._ct, run._settings = Ct(), dataclasses.replace(run._settings, method="atlf_net")
    images = list(run([scan(slices=1)]))
    claims = {int(image.header["image_series_index"]): "ct_status" in image.attributes for image in images}
    assert claims == {1: True, 25: False}


# --- a method that chooses --------------------------------------------------------------------------------------------


class TimedEngine(PlainEngine):
    """Takes all the time that it is given for a slice, by a clock of its own."""

    def __init__(self):
        super().__init__()
        self.now, self.given = 100.0, []

    def reconstruct(self, cine, settings):
        self.given.append(settings.compute.deadline)
        self.now += settings.compute.deadline
        return super().reconstruct(cine, settings)


@pytest.fixture
def timed(monkeypatch):
    """A function that reconstructs a scan; gives the seconds that each slice was given, and when the images were there.

    The scan takes `seconds` to come, in equal parts, and is read when the engine is ready for it.
    """

    def run(parts, seconds=0.0, **settings):
        engine = TimedEngine()
        arrivals = iter(np.linspace(100.0, 100.0 + seconds, len(parts)).tolist())
        latest = [0.0]

        def arrived():
            return latest[0]

        def items():
            for part in parts:
                latest[0] = next(arrivals)
                engine.now = max(engine.now, latest[0])
                yield part

        monkeypatch.setattr("gadgets.slices.countdown.time.monotonic", lambda: engine.now)
        list(Chain(header(), Settings.of(**settings), engine, arrived=arrived)(items()))
        return engine.given, engine.now - 100

    return run


def test_slices_that_are_complete_at_once_share_the_time_until_the_deadline(timed):
    given, end = timed([scan()], method="auto", deadline=8)
    assert given == pytest.approx([2, 2, 2, 2])
    assert end == pytest.approx(8)


def test_slices_that_wait_for_the_one_before_have_waited_since_they_came(timed):
    """Half a second of measuring a slice; the last images are there two seconds after the last readout."""
    whole, size = scan(), FRAMES * LINES
    edges = [0, *range(size + 1, len(whole), size), len(whole)]  # a slice leaves when the next one begins
    parts = [whole[begin:end] for begin, end in itertools.pairwise(edges)]
    given, end = timed([whole[:0], *parts], seconds=2.0, method="auto", deadline=2)
    assert given == pytest.approx([0.875] * 4, abs=0.02)
    assert end == pytest.approx(4, abs=0.02)


def test_without_a_deadline_there_is_no_limit_and_other_methods_have_none(timed):
    assert timed([scan()], method="auto")[0] == [0, 0, 0, 0]
    assert timed([scan()], method="grappa", deadline=8)[0] == [8, 8, 8, 8]  # which nothing takes account of


@pytest.mark.parametrize(("method", "unmet"), [("auto", []), ("grappa", ["uncertainty (known for"])])
def test_a_method_that_chooses_may_have_what_those_have_that_it_chooses(method, unmet):
    problems = Problems()
    Chain(header(), Settings.of(method=method, extra_series="uncertainty"), PlainEngine(), problems)
    assert [text in str(one) for text, one in zip(unmet, problems, strict=True)] == [True] * len(unmet)


def test_what_was_chosen_is_as_asked_for(monkeypatch, caplog):
    made = simulate(ScanPlan(matrix_x=48, matrix_y=40, frames=4, coils=4, acceleration=2, acs_lines=10))
    settings = Settings.of(device="cpu", method="auto", weights="dstdm-small")
    with caplog.at_level(logging.INFO, "cinestream"):
        run = Chain(parse_header(made.header), settings, lambda: Engine("cpu"))
        images = [item for item in run(made.items()) if isinstance(item, Image)]
    why = "auto: kt_sense (there are no weights 'dstdm-small'; there are none)"
    for image in images:
        assert comment(image).startswith(f"cinestream kt_sense; {why}")
        assert ismrmrd.Meta.deserialize(image.attributes)["cinestream_method"] == "kt_sense"
    assert [record.levelname for record in caplog.records if why in record.message] == ["INFO"]
    assert list(run.summary.problems) == []


# --- further series ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["scan", "slice"])
def test_further_series_come_in_addition_to_the_images(by):
    made = simulate(ScanPlan(matrix_x=48, matrix_y=40, frames=3, coils=3, slices=2, acs_lines=10))
    wanted = {"method": "low_rank_sparse", "low_rank_sparse_iterations": 3, "series_by": by}

    def series(**settings):
        chain = Chain(parse_header(made.header), Settings.of(device="cpu", **wanted, **settings), lambda: Engine("cpu"))
        found = {}
        for image in chain(made.items()):
            if isinstance(image, Image):
                found.setdefault(int(image.header["image_series_index"]), []).append(image)
        assert list(chain.summary.problems) == []
        return found

    found, plain = series(extra_series="zero_filled,fallback,difference"), series()
    firsts = [1] if by == "scan" else [1, 101]
    assert sorted(found) == sorted(first + kind for first in firsts for kind in (0, 24, 25, 26))
    assert sorted(plain) == firsts
    for first in firsts:
        for image, of in zip(found[first], plain[first], strict=True):
            np.testing.assert_array_equal(image.data, of.data)
            assert image.header.tobytes() == of.header.tobytes()
        names = [ismrmrd.Meta.deserialize(found[first + kind][0].attributes)["cinestream_method"] for kind in (24, 26)]
        assert names == ["kt_sense", "zero_filled"]
        for kind in (24, 25, 26):
            indices = [int(image.header["image_index"]) for image in found[first + kind]]
            assert indices == [int(image.header["image_index"]) for image in plain[first]]
            assert sorted(indices) == list(range(1, 1 + len(indices)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "kt_sense", "extra_series": "difference"}, "difference (the fallback is kt_sense itself)"),
        ({"extra_series": "uncertainty"}, "uncertainty (known for kt_sense and networks, not for zero_filled)"),
        ({"fallback": "none", "extra_series": "difference,fallback"}, "difference and fallback (there is no fallback)"),
        (
            {"method": "zero_filled", "extra_series": "zero_filled"},
            "zero_filled (the images are zero-filled themselves)",
        ),
    ],
)
def test_further_series_that_cannot_be_are_named(settings, words):
    run = chain(**settings)
    assert list(run([scan()]))
    (problem,) = run.summary.problems
    assert words in str(problem)
    assert not problem.damage


# --- preview ----------------------------------------------------------------------------------------------------------


def test_a_preview_is_out_before_the_method_begins():
    engine = PlainEngine()
    chain = Chain(header(), Settings.of(method="low_rank_sparse", preview="zero_filled", series=4), engine)
    images = chain([scan(slices=1)])
    ahead = list(itertools.islice(images, FRAMES))
    assert len(engine.slices) == 1
    assert {image.header["image_series_index"].item() for image in ahead} == {4 + SECOND_SERIES["preview"]}
    assert all("<value>_zero_filled_preview</value>" in image.attributes for image in ahead)
    rest = list(images)
    assert len(engine.slices) == 2
    assert {image.header["image_series_index"].item() for image in rest} == {4}
    assert all("<value>_low_rank_sparse</value>" in image.attributes for image in rest)
    assert (chain.summary.slices, chain.summary.images) == (1, 2 * FRAMES)


def test_a_preview_measures_no_noise(monkeypatch):
    measured = []
    original = units.replica_g_factor
    monkeypatch.setattr(
        units, "replica_g_factor", lambda *args, **more: (measured.append(0), original(*args, **more))[1]
    )
    run = chain(lambda: Engine("cpu"), method="grappa", preview="cg_sense", g_factor=True)
    images = list(run([scan(slices=1)]))
    assert len(images) == 2 * FRAMES + 1
    assert len(measured) == 1


def test_the_preview_stays_when_the_method_fails():
    chain = Chain(header(), Settings.of(method="low_rank_sparse", preview="cg_sense"), PlainEngine(fails=[1]))
    images = list(chain([scan(slices=1)]))
    assert len(images) == FRAMES
    assert any("ran out of ideas" in str(problem) for problem in chain.summary.problems.damage)


def test_a_method_is_no_preview_of_itself():
    engine = PlainEngine()
    images = list(Chain(header(), Settings.of(method="cg_sense", preview="cg_sense"), engine)([scan(slices=1)]))
    assert len(engine.slices) == 1
    assert len(images) == FRAMES


# --- slices at a time -------------------------------------------------------------------------------------------------


class Together:
    """Has several slices under way at a time, as a `recon_core.spread.Spread` has."""

    count = 2

    def __init__(self, engine):
        self.engine, self.under_way, self.most = engine, 0, 0

    def begin(self, cine, options):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return lambda: self._end(cine, options)

    def _end(self, cine, options):
        self.under_way -= 1
        return self.engine.reconstruct(cine, options)


def spread_and_plain(items, fails=(), **chosen):
    """Images and problems with several slices at a time, and with one; and how many there were at most."""
    found = []
    for wanted in (True, False):
        engine = PlainEngine(fails)
        together = Together(engine)
        settings = Settings.of(**{"method": "zero_filled", "device": "cpu", **chosen})
        run = Chain(header(), settings, engine, spread=together if wanted else None)
        images = [(image.header.tobytes(), image.data.tobytes(), image.attributes) for image in run(items)]
        problems = [str(problem) for problem in run.summary.problems]
        found += [(images, problems, run.summary.reconstructed, run.summary.slices), together.most]
    return found[0], found[2], found[1]


@pytest.mark.parametrize("chosen", [{}, {"preview": "cg_sense", "method": "kt_sense"}, {"series_by": "slice"}])
@pytest.mark.parametrize("fails", [(), (1,), (0, 3)])
def test_slices_at_a_time_give_the_same_in_the_same_order(chosen, fails):
    at_once, alone, most = spread_and_plain([noise(), *(scan()[i : i + 7] for i in range(0, 120, 7))], fails, **chosen)
    assert at_once == alone
    assert len(alone[0]) >= 2 * FRAMES
    assert most == Together.count + 1, "one waits, so that nobody has nothing to do"


def test_a_slice_that_cannot_be_begun_is_noted_in_its_turn():
    items = [scan()[:3], scan()[30:]]  # too few lines of the first slice
    items[0].headers["idx"]["kspace_encode_step_1"][:] = 0
    at_once, alone, _ = spread_and_plain(items)
    assert at_once == alone


@pytest.mark.parametrize("chosen", [{"realtime": "sliding"}, {"method": "auto", "deadline": 5}])
def test_slices_that_depend_on_others_or_on_the_time_are_made_one_after_the_other(chosen):
    together = Together(Engine("cpu"))
    run = Chain(header(), Settings.of(device="cpu", **chosen), lambda: together.engine, spread=together)
    assert list(run([scan()]))
    assert together.most == 0


# --- partial Fourier --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu")


CUT_SHORT = {
    "5/8": ("zero_filled", {"partial_fourier": 0.625}),
    "6/8": ("low_rank_sparse", {"partial_fourier": 0.75}),
    "7/8": ("cg_sense", {"partial_fourier": 0.875}),
    "echo, read from both ends": ("zero_filled", {"asymmetric_echo": 0.25, "reversed_readouts": True}),
    "both, interpolated": ("cg_sense", {"partial_fourier": 0.625, "asymmetric_echo": 0.2, "interpolation": 1.5}),
    "5/8, every 2nd line": ("grappa", {"partial_fourier": 0.625, "sampling": "uniform", "acceleration": 2}),
}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_pocs_takes_a_quarter_of_the_error_of_what_was_cut_short(engine, name):
    method, changes = CUT_SHORT[name]
    plan = {"matrix_x": 80, "matrix_y": 72, "frames": 2, "coils": 5, "sampling": "full", "acs_lines": 12, "seed": 1}
    source = simulate(ScanPlan(**{**plan, **changes}))
    items, truth, errors = list(source.items()), np.abs(source.truth.image[0]), []
    for how in ("off", "pocs"):
        run = Chain(parse_header(source.header), Settings.of(method=method, partial_fourier=how), lambda: engine)
        images = np.stack([image.data[0, 0] for image in run(items) if isinstance(image, Image)])
        assert run.summary.problems.damage == []
        errors.append(nrmse(best_scale(images, truth) * images, truth))
    assert errors[1] < 0.75 * errors[0]
