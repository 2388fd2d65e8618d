import dataclasses
import itertools
import re
from functools import cache, lru_cache

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.gating.gate import Gate
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.simulation import scan as simulation
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image, Readouts, Waveform
from recon_core.data import Reconstruction
from recon_core.errors import DataError
from recon_core.metrics.measures import best_scale, nrmse
from tests.helpers.builders import header_xml, readouts

PLAN = {
    "matrix_x": 40,
    "matrix_y": 32,
    "frames": 16,
    "coils": 2,
    "sampling": "full",
    "gating": "retrospective",
    "segments": 4,
    "heart_rate": 70.0,
    "rr_variability": 0.1,  # at most +-20 %
    "waveforms": False,
    "noise_readouts": 0,
}
DAY = 34_560_000  # ticks


class PlainEngine:
    """Root of the sum of squares: shares nothing between frames and fills no lines."""

    def __init__(self):
        self.slices = []

    def __call__(self):
        return self

    def reconstruct(self, cine, settings):
        self.slices.append(cine)
        axes = (-2, -1)
        shifted = np.fft.ifftshift(cine.kspace, axes=axes)
        coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=axes)
        image = np.sqrt((np.abs(coils) ** 2).sum(1)).astype(np.complex64)
        return Reconstruction(image, np.ones(coils.shape[1:], np.complex64), settings.method, {})


def plan(**changes):
    return ScanPlan(**{**PLAN, **changes})


#: What a heart looks like at a moment does not depend on these.
RHYTHM = ("segments", "averages", "gating", "rr_variability", "ectopic_beat", "missed_trigger", "false_trigger")
RHYTHM += ("remeasure", "rr_stretch", "stamps", "waveforms", "sampling", "acceleration", "acs_lines", "vendor", "snr")
MOMENTS = 1024  # of a cycle that are drawn, each once for all scans of a heart


DRAWN = simulation._SliceSource


@lru_cache(4)
def moments_of(appearance, number):
    source = DRAWN(appearance, number)
    source.frame = cache(source.frame)
    return source


class Heart:
    """Stands where a slice is drawn anew for every readout or segment."""

    def __init__(self, plan, number):
        plain = {field.name: field.default for field in dataclasses.fields(ScanPlan) if field.name in RHYTHM}
        self._moments = moments_of(dataclasses.replace(plan, **plain), number)
        self.maps = self._moments.maps

    def frame(self, time, respiration, path=None):
        return self._moments.frame(round(time * MOMENTS) / MOMENTS, respiration, path)


@pytest.fixture(autouse=True, scope="module")
def _draw_a_moment_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "_SliceSource", Heart)
        yield


@lru_cache
def scan_of(**changes):
    """Header, image readouts as one block, and the true magnitudes ``(frame, y, x)`` of the first slice."""
    scan = simulate(plan(**changes))
    items = [item for item in scan.items() if isinstance(item, Readouts)]
    block = Readouts(*(np.concatenate([getattr(item, name) for item in items]) for name in ("headers", "data")))
    for values in (block.headers, block.data):
        values.flags.writeable = False
    return scan.header, block, np.abs(scan.truth.image[0])


def chain(header, items, engine=None, **settings):
    made = Chain(
        parse_header(header), Settings.of(method="zero_filled", device="cpu", **settings), engine or PlainEngine()
    )
    images = [image for image in made(items) if isinstance(image, Image)]
    return images, made.summary.problems


def stack(images):
    return np.stack([image.data[0, 0] for image in images])


def error(images, truth):
    shown = stack(images)
    assert shown.shape == truth.shape
    assert np.isfinite(shown).all()
    assert (shown.max(axis=(1, 2)) > 0).all()
    return nrmse(best_scale(shown, truth) * shown, truth)


def texts(problems):
    return " / ".join(problem.text for problem in problems)


def comment(image):
    return attribute(image, "ImageComments")


def beats(image):
    part = image.attributes.split("<name>cinestream_beats</name>")[1].split("</meta>")[0]
    return [value.split("</value>")[0] for value in part.split("<value>")[1:]]


def attribute(image, name):
    return image.attributes.split(f"<name>{name}</name><value>")[1].split("<")[0]


def source(image):
    return attribute(image, "cinestream_gating_source")


def without_announcement(header):
    begin, end = header.index("<userParameters>"), header.index("</userParameters>")
    return header[:begin] + header[end + len("</userParameters>") :]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perfect():
    """Error of a scan whose beats are all alike and seen, by the lines of a segment."""
    made = {}

    def of(segments):
        if segments not in made:
            header, block, truth = scan_of(segments=segments, rr_variability=0.0)
            images, problems = chain(header, [block])
            assert list(problems) == []
            made[segments] = error(images, truth)
        return made[segments]

    return of


RHYTHMS = {
    "jitter": {},
    "ectopic remeasured": {"ectopic_beat": True, "remeasure": True},
    "missed": {"missed_trigger": 2},
    "both": {"ectopic_beat": True, "missed_trigger": 5, "remeasure": True},
}


# 3, 4, 8 and 11 beats; every rhythm and every number of beats are among the quick tests, the other pairs are slow
QUICK = {("both", 11), ("both", 3), ("jitter", 4), ("ectopic remeasured", 8), ("missed", 3)}


@pytest.mark.parametrize(
    ("rhythm", "segments"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product(RHYTHMS, (11, 8, 4, 3))
    ],
)
def test_every_frame_is_as_good_as_with_perfect_triggers(segments, rhythm, perfect):
    header, block, truth = scan_of(segments=segments, **RHYTHMS[rhythm])
    images, problems = chain(header, [block])
    assert [int(image.header["phase"]) for image in images] == list(range(16))
    assert problems.damage == []
    assert error(images, truth) <= 1.15 * perfect(segments)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("segments", [11, 6, 3])
def test_other_hearts_are_as_good_as_with_perfect_triggers(segments, seed):
    header, block, truth = scan_of(segments=segments, rr_variability=0.0, seed=seed)
    perfect = error(chain(header, [block])[0], truth)
    header, block, truth = scan_of(segments=segments, seed=seed, **RHYTHMS["both"])
    assert error(chain(header, [block])[0], truth) <= 1.15 * perfect


@pytest.mark.parametrize("averages", [3, 8])
def test_free_running_scan(averages):
    options = {"segments": 0, "averages": averages, "sampling": "uniform", "acceleration": 2, "acs_lines": 0}
    errors = []
    for rhythm in ({"rr_variability": 0.0}, {"ectopic_beat": True, "missed_trigger": 6}):
        header, block, truth = scan_of(**options, **rhythm)
        images, problems = chain(header, [block])
        assert problems.damage == []
        errors.append(error(images, truth))
    assert errors[1] <= 1.15 * errors[0]


def test_ectopic_beat_is_rejected_and_said_so():
    header, block, _ = scan_of(ectopic_beat=True, remeasure=True, missed_trigger=6)
    images, problems = chain(header, [block])
    assert list(problems) == []
    verdicts = beats(images[0])
    assert "515 ms rejected, not used" in verdicts
    assert sum("repaired" in verdict for verdict in verdicts) == 2
    assert "rejected 515 ms" in comment(images[0])
    assert "<name>cinestream_gating</name><value>retrospective</value>" in images[0].attributes


def test_rejected_beat_serves_where_nothing_else_came(perfect):
    header, block, truth = scan_of(ectopic_beat=True)
    images, problems = chain(header, [block])
    assert error(images, truth) <= 1.2 * perfect(4)
    assert "there was a rejected beat only" in texts(problems)
    assert "there was a rejected beat only" in comment(images[0])
    assert any("rejected, used" in verdict for verdict in beats(images[0]))


def test_false_trigger_is_taken_out():
    header, block, truth = scan_of(false_trigger=2, segments=3, remeasure=True)
    images, _ = chain(header, [block])
    assert error(images, truth) < 0.1
    assert sum("repaired" in verdict for verdict in beats(images[0])) == 1


# --- where triggers come from -----------------------------------------------------------------------------------------


@lru_cache
def ecg_scan(**changes):
    """Header, messages with the ECG but no time since the trigger, and the truth."""
    scan = simulate(plan(waveforms=True, stamps="acquisition", **changes))
    items = tuple(scan.items())
    for item in items:
        item.data.flags.writeable = False
    return scan.header, items, np.abs(scan.truth.image[0])


@pytest.mark.parametrize("rhythm", ["jitter", "both"])
def test_ecg_is_as_good_as_the_stamps(rhythm, perfect):
    header, items, truth = ecg_scan(**RHYTHMS[rhythm])
    images, problems = chain(header, items)
    assert source(images[0]) == "ecg"
    assert "by the ECG" in comment(images[0])
    assert list(problems) == []
    assert error(images, truth) <= 1.15 * perfect(4)
    moments = [float(attribute(image, "cinestream_trigger_time_ms")) for image in images]
    rr = float(attribute(images[0], "cinestream_rr_ms"))
    assert np.allclose(moments, rr / len(images) * np.arange(len(images)), atol=2.5)  # a tick


@pytest.mark.parametrize(("segments", "averages", "stamps"), [(4, 1, "acquisition"), (0, 5, "none")])
def test_self_gating(segments, averages, stamps):
    shape = {"segments": segments, "averages": averages}
    header, block, truth = scan_of(**shape, rr_variability=0.0)
    regular = error(chain(header, [block])[0], truth)
    header, block, truth = scan_of(**shape, stamps=stamps)
    images, problems = chain(header, [block])
    assert source(images[0]) == "self"
    assert problems.damage == []
    assert "taken from the k-space centre" in texts(problems)
    assert error(images, truth) <= 1.25 * regular


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(11, 1), (6, 1), (3, 1), (0, 3), (0, 8)])
def test_other_hearts_without_stamps(shape, seed):
    shape = dict(zip(("segments", "averages"), shape, strict=True))
    rhythm = {**RHYTHMS["both"], "remeasure": bool(shape["segments"])}
    header, block, truth = scan_of(**shape, rr_variability=0.0, seed=seed)
    regular = error(chain(header, [block])[0], truth)
    ratios = {}
    for name, changes in (("ecg", {"stamps": "acquisition", "waveforms": True}), ("self", {"stamps": "none"})):
        scan = simulate(plan(**shape, **rhythm, **changes, seed=seed))
        images, _ = chain(scan.header, list(scan.items()))
        assert source(images[0]) == name
        ratios[name] = error(images, np.abs(scan.truth.image[0])) / regular
    assert ratios["ecg"] <= 1.2
    assert ratios["self"] <= 1.4


@pytest.mark.parametrize("segments", [pytest.param(11, marks=pytest.mark.slow), 4])
def test_self_gating_needs_signal(segments):
    header, block, truth = scan_of(segments=segments, snr=10.0)
    stamped = error(chain(header, [block])[0], truth)
    header, block, truth = scan_of(segments=segments, snr=10.0, stamps="none")
    assert error(chain(header, [block])[0], truth) < 1.02 * stamped
    header, block, _ = scan_of(segments=segments, snr=5.0, stamps="none")
    images, problems = chain(header, [block])
    assert "show noise and no heartbeat" in texts(problems)
    assert problems.damage
    assert all("gating_source" not in image.attributes for image in images)


def test_source_that_is_asked_for():
    header, items, _ = ecg_scan(segments=8)
    for wanted in ("ecg", "self"):
        assert source(chain(header, items, trigger_source=wanted)[0][0]) == wanted
    _, problems = chain(header, items, trigger_source="stamps")
    assert "no trigger" in texts(problems)
    header, block, _ = scan_of(segments=8)
    assert source(chain(header, [block])[0][0]) == "stamps"
    assert source(chain(header, [block], trigger_source="self")[0][0]) == "self"
    with pytest.raises(DataError, match="no ECG came"):
        chain(header, [block], trigger_source="ecg", gating="retrospective")


@pytest.fixture(scope="module")
def in_order():
    """Images of two slices whose ECG comes as it is measured."""
    header, items, _ = ecg_scan(segments=8, slices=2)
    return stack(chain(header, items)[0])


@pytest.mark.parametrize("place", ["first", "last", "after each slice"])
def test_ecg_may_come_at_any_time(place, in_order):
    header, items, _ = ecg_scan(segments=8, slices=2)
    waves = [item for item in items if isinstance(item, Waveform)]
    readouts = [item for item in items if isinstance(item, Readouts)]
    second = next(i for i, item in enumerate(readouts) if item.headers["idx"]["slice"][0] == 1)
    moved = {
        "first": [*waves, *readouts],
        "last": [*readouts, *waves],
        "after each slice": [*readouts[: second + 1], *waves[:5], *readouts[second + 1 :], *waves[5:]],
    }[place]
    images, problems = chain(header, moved)
    assert {source(image) for image in images} == {"ecg"}
    assert list(problems) == []
    np.testing.assert_array_equal(stack(images), in_order)
    if place == "last":  # nothing announces it, but it was asked for
        images, _ = chain(header.replace("waveformType>ecg", "waveformType>other"), moved, trigger_source="ecg")
        assert {source(image) for image in images} == {"ecg"}


def test_ecg_that_stops_leaves_the_rest_to_the_k_space_centre():
    header, items, _ = ecg_scan(slices=2)
    waves = [item for item in items if isinstance(item, Waveform)]
    images, problems = chain(header, [item for item in items if item not in waves[6:]])
    assert [source(image) for image in images[::16]] == ["ecg", "self"]
    assert "without an R wave" in texts(problems)
    assert len(images) == 32


def test_learning_phase_and_silent_ecg_give_no_triggers():
    header, items, _ = ecg_scan(segments=8)
    silent = []
    for item in items:
        if not isinstance(item, Waveform):
            silent.append(item)
            continue
        learned = Waveform(item.header.copy(), item.data)
        learned.header["waveform_id"] = 5
        silent += [learned, Waveform(item.header, np.where(np.arange(5)[:, None] == 4, 0, item.data).astype(np.uint32))]
    images, problems = chain(header, silent)
    assert source(images[0]) == "self"
    assert "is silent" in texts(problems)


def test_nothing_shows_a_heartbeat():
    header, block, _ = scan_of(stamps="none")
    still = Readouts(block.headers, np.broadcast_to(block.data[:1], block.data.shape))
    images, problems = chain(header, [still])
    assert "no motion shows" in texts(problems)
    assert problems.damage
    assert "cinestream_gating_source" not in images[0].attributes


def test_no_clock_and_no_spacing():
    header, block, _ = scan_of(segments=8, stamps="none")
    header = header.replace("echo_spacing", "flip").replace("<TR>22.4</TR>", "")
    with pytest.raises(DataError, match="neither echo_spacing nor TR"):
        chain(header, [block], gating="retrospective")


def test_philips_says_the_rr_interval():
    header, block, truth = scan_of(segments=3, rr_variability=0.1)
    headers = block.headers.copy()
    since = headers["physiology_time_stamp"][:, 0] * 2.5
    beat = np.cumsum(np.diff(since, prepend=0) < -80)
    time = headers["acquisition_time_stamp"] * 2.5
    waves = np.array([np.median((time - since)[beat == number]) for number in range(beat.max() + 1)])
    rr = np.floor(np.append(np.diff(waves), 900))
    headers["physiology_time_stamp"][:, 0] = since
    headers["physiology_time_stamp"][:, 1] = rr[beat]
    headers["acquisition_time_stamp"] = 0
    header = header.replace("cinestream simulation", "Philips")
    images, problems = chain(header, [Readouts(headers, block.data)], gating="retrospective")
    assert list(problems) == []
    assert [verdict.split(" ms")[0] for verdict in beats(images[0])] == [f"{length:.0f}" for length in rr]
    assert error(images, truth) < 0.05
    # implausible ones are passed over
    headers["physiology_time_stamp"][:, 1] = 7
    images, problems = chain(header, [Readouts(headers, block.data)], gating="retrospective")
    assert "from the last readout" in texts(problems)
    # its phases are sorted already
    assert "cinestream_gating" not in chain(without_announcement(header), [block])[0][0].attributes


# --- one beat at a time -----------------------------------------------------------------------------------------------


def test_every_beat_on_its_own():
    header, block, truth = scan_of(segments=0, averages=5, repetition_time=1.5)
    images, problems = chain(header, [block], gated_output="beats")
    assert list(problems) == []
    shown = sorted({int(image.header["repetition"]) for image in images})
    assert len(shown) >= 4
    assert len(images) == 16 * len(shown)
    assert len({int(image.header["image_index"]) for image in images}) == len(images)
    for number in shown:
        one = [image for image in images if image.header["repetition"] == number]
        assert [int(image.header["phase"]) for image in one] == list(range(16))
        assert f"of beat {number}," in comment(one[0])
        assert error(one, truth) < 0.12
    assert len({image.attributes.split("rr_ms</name><value>")[1].split("<")[0] for image in images}) > 1


def test_beats_are_of_one_slice():
    header, block, _ = scan_of(segments=0, averages=5, repetition_time=1.5)
    settings = Settings.of(method="zero_filled", device="cpu", gated_output="beats")
    made = Chain(parse_header(header), settings, PlainEngine())
    images = list(made([block]))
    assert (made.summary.images, made.summary.slices) == (len(images), 1)


def test_rejected_beats_are_not_shown():
    header, block, _ = scan_of(segments=0, averages=6, repetition_time=1.5, ectopic_beat=True)
    images, _ = chain(header, [block], gated_output="beats")
    assert 2 not in {int(image.header["repetition"]) for image in images}


def test_segmented_scan_has_the_mean_beat_only():
    header, block, _ = scan_of()
    expected, _ = chain(header, [block])
    images, problems = chain(header, [block], gated_output="beats")
    assert "no beat has all lines" in texts(problems)
    np.testing.assert_array_equal(stack(images), stack(expected))


# --- frames -----------------------------------------------------------------------------------------------------------


def test_times_of_the_frames():
    header, block, _ = scan_of(vendor="SIEMENS", rr_variability=0.0)
    images, _ = chain(header, [block])
    expected = np.arange(16) / 16 * 60 / 70 / 0.0025
    np.testing.assert_allclose([image.header["physiology_time_stamp"][0] for image in images], expected, atol=1)
    assert [int(image.header["image_index"]) for image in images] == list(range(1, 17))


def test_number_of_frames():
    header, block, _ = scan_of()
    assert len(chain(header, [block], gated_frames=9)[0]) == 9
    images, _ = chain(without_announcement(header), [block])
    assert len(images) == 16  # the limit of the phases


@pytest.mark.parametrize("limit", [20, None])
def test_slices_have_as_many_frames_as_the_header_promises_or_all_as_many_as_the_first(limit):
    """Without an announcement the limit of the phases counts; where it is none, a beat of the first slice."""
    header, block, _ = scan_of(slices=2, rr_variability=0.1)
    header = without_announcement(header)
    promised = "" if limit is None else rf"<phase><minimum>0</minimum><maximum>{limit - 1}</maximum></phase>"
    header, changed = re.subn(r"<phase>.*?</phase>", promised, header, flags=re.DOTALL)
    assert changed
    images, problems = chain(header, [block], gating="auto" if limit else "retrospective")
    counts = np.bincount([int(image.header["slice"]) for image in images])
    rr = float(images[0].attributes.split("<name>cinestream_rr_ms</name><value>")[1].split("<")[0])
    assert counts[0] == (limit or pytest.approx(rr / (4 * 2.8), abs=2))  # a segment of four lines
    assert counts[1] == counts[0]
    assert [problem for problem in problems if "damage" in problem] == []


def test_whole_cycle_may_stretch_instead():
    header, block, truth = scan_of(rr_stretch="cycle", snr=0.0, segments=3)
    right, wrong = (error(chain(header, [block], rr_stretch=how)[0], truth) for how in ("cycle", "diastole"))
    assert right < 0.8 * wrong


def test_uneven_counter_is_binned_unless_the_setting_forbids():
    header, block, truth = scan_of()
    header = without_announcement(header)
    images, problems = chain(header, [block], gated_frames=16)
    assert error(images, truth) < 0.1
    assert list(problems) == []
    images, _ = chain(header, [block], gating="counter")
    assert "cinestream_gating" not in images[0].attributes


@pytest.mark.parametrize("changes", [{"segments": 3}, {"segments": 0}, {"segments": 4, "averages": 2}])
@pytest.mark.parametrize("announced", [True, False])
def test_consistent_counter_stays(changes, announced):
    header, block, _ = scan_of(gating="prospective", frames=6, ectopic_beat=True, **changes)
    if announced:
        long = "<userParameterLong><name>RetroGatedImages</name><value>6</value></userParameterLong>"
        header = header.replace(
            "</sequenceParameters>", f"</sequenceParameters><userParameters>{long}</userParameters>"
        )
    by_counter, by_itself = (chain(header, [block], gating=gating)[0] for gating in ("counter", "auto"))
    np.testing.assert_array_equal(stack(by_itself), stack(by_counter))
    assert by_itself[0].attributes == by_counter[0].attributes


def test_prospective_scan_may_be_binned_too():
    header, block, truth = scan_of(gating="prospective", frames=6, rr_variability=0.0)
    images, _ = chain(header, [block], gating="retrospective", gated_frames=6, rr_stretch="cycle")
    assert error(images, truth) < 0.12


def test_images_do_not_depend_on_how_the_stream_was_cut():
    header, block, _ = scan_of(slices=3)
    whole, _ = chain(header, [block])
    cuts = [0, 1, 5, 700, 1000, 2000, len(block)]
    pieces, _ = chain(header, [block[a:b] for a, b in itertools.pairwise(cuts)])
    assert len(whole) == len(pieces) == 48
    np.testing.assert_array_equal(stack(whole), stack(pieces))


def test_slice_leaves_when_the_next_begins():
    header, block, _ = scan_of(slices=3)
    second = int(np.argmax(block.headers["idx"]["slice"] == 1))
    seen = []

    def items():
        yield block[:second]
        for i in range(second, second + 9):
            seen.append(len(engine.slices))
            yield block[i : i + 1]
        seen.append(len(engine.slices))
        yield block[second + 9 :]

    engine = PlainEngine()
    assert len(chain(header, items(), engine)[0]) == 48
    assert seen == [0] * 9 + [1]


def test_stray_slice_counter_ends_no_slice():
    header, block, _ = scan_of(slices=3)
    expected, _ = chain(header, [block])
    first = np.flatnonzero(block.headers["idx"]["slice"] == 0)
    headers = block.headers.copy()
    stray = first[-60:-50:5]  # of the last beat, when all lines have come
    headers["idx"]["slice"][stray] = [2, 1]
    images, problems = chain(header, [Readouts(headers, block.data)])
    assert list(problems) == []
    assert [int(image.header["slice"]) for image in images] == [0] * 16 + [1] * 16 + [2] * 16
    assert nrmse(stack(images)[:16], stack(expected)[:16]) < 0.02


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(block, **stamps):
    headers = block.headers.copy()
    for name, values in stamps.items():
        if name == "since":
            headers["physiology_time_stamp"][:, 0] = values
        else:
            headers["acquisition_time_stamp"] = values
    return Readouts(headers, block.data)


@pytest.mark.parametrize("midnight", [True, False])
def test_clock_that_wraps_around(midnight):
    header, block, _ = scan_of()
    expected, _ = chain(header, [block])
    time = block.headers["acquisition_time_stamp"].astype(np.int64)
    shifted = (time - time[len(time) // 2] + DAY) % DAY if midnight else time + 12345
    images, problems = chain(header, [changed(block, time=shifted)])
    assert list(problems) == []
    np.testing.assert_array_equal(stack(images), stack(expected))


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (lambda time: np.zeros_like(time), "stand still"),
        (lambda time: time.max() - time, "run backwards"),
        (lambda time: (time - time[0]) // 400, "not of the clock"),
    ],
)
def test_time_stamps_that_cannot_be_believed(time, words):
    header, block, truth = scan_of()
    wrong = time(block.headers["acquisition_time_stamp"].astype(np.int64))
    images, problems = chain(header, [changed(block, time=wrong)])
    assert words in texts(problems)
    assert error(images, truth) < 0.1
    assert "from the last readout of each beat" in comment(images[0])


@pytest.mark.parametrize(
    ("since", "words"),
    [
        (lambda since: np.zeros_like(since), "no trigger"),
        (lambda since: since.max() - since, "backwards"),
        (lambda since: 4304495 + np.arange(len(since)), "no gating was on"),
    ],
)
def test_no_trigger(since, words):
    """The frames of the counter that are whole are shown; when only gated ones will do, there are none."""
    header, block, _ = scan_of()
    wrong = changed(block, since=since(block.headers["physiology_time_stamp"][:, 0].astype(np.int64)))
    images, problems = chain(header, [wrong], trigger_source="stamps")
    assert words in texts(problems)
    assert "gating to counter" in texts(problems)
    lines = [
        len(set(block.headers["idx"]["kspace_encode_step_1"][block.headers["idx"]["phase"] == phase].tolist()))
        for phase in range(100)
    ]
    assert len(images) == np.count_nonzero(np.array(lines) == 32)
    assert problems.damage
    with pytest.raises(DataError, match=words):
        chain(header, [wrong], gating="retrospective", trigger_source="stamps")
    images, problems = chain(header, [wrong])
    assert source(images[0]) == "self"
    assert words in texts(problems)


def test_one_beat_only():
    header, block, _ = scan_of(segments=0, sampling="uniform", acceleration=4, acs_lines=0, averages=1)
    first = np.cumsum(np.diff(block.headers["physiology_time_stamp"][:, 0].astype(int), prepend=0) < 0) == 0
    images, problems = chain(header, [block[first]], gated_frames=8)
    assert len(images) == 8
    assert "only one beat" in texts(problems)
    assert np.isfinite(stack(images)).all()


def test_slice_that_never_completes():
    header, block, truth = scan_of(slices=3)
    number = block.headers["idx"]["slice"]
    beat = block.headers["idx"]["segment"]
    images, problems = chain(header, [block[(number != 1) | (beat < 4)]])
    assert sorted({int(image.header["slice"]) for image in images}) == [0, 1, 2]
    assert "slice 1 lacks lines in 16 of 16 frames" in texts(problems)
    first = [image for image in images if image.header["slice"] == 0]
    assert error(first, truth) < 0.1


def test_slice_without_triggers_among_others():
    header, block, _ = scan_of(slices=3)
    number = block.headers["idx"]["slice"]
    since = np.where(number == 1, 0, block.headers["physiology_time_stamp"][:, 0])
    images, problems = chain(header, [changed(block, since=since)], gating="retrospective", trigger_source="stamps")
    assert sorted({int(image.header["slice"]) for image in images}) == [0, 2]
    assert "slice 1 cannot be gated" in texts(problems)
    assert problems.damage


def test_wrong_tick_is_found():
    header, block, _ = scan_of()
    with pytest.raises(DataError, match="length of a tick"):
        chain(header, [block], gating="retrospective", stamp_tick=0.2)


def test_a_gap_in_every_beat_does_not_change_the_number_of_frames():
    """Two lines a beat in turn, 20 ms apart, and nothing for 200 ms in the middle."""
    visit = np.array([i for i in range(40) if not 10 <= i < 20])
    since = np.tile((20 * visit[:, None] + [0, 10]).ravel(), 4)
    beat, line = np.repeat(np.arange(4), 60), np.tile([0, 1], 120)
    stamps = np.rint((800 * beat + since) / 2.5).astype(np.int64)
    block = readouts(
        240,
        acquisition_time_stamp=17_000_000 + stamps,
        physiology_time_stamp=np.stack([stamps % 320, 0 * beat, 0 * beat], axis=1),
    )
    vendor = "<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor></acquisitionSystemInformation>"
    gate = Gate(parse_header(header_xml(before=vendor)), Settings.of(gating="retrospective"), Problems())
    (gated,) = gate("slice 0", block.headers, np.tile(np.repeat(visit, 2), 4), 2 * beat + line, block.data, range(0), 8)
    assert len(gated.kspace) == 40
    assert gated.gating.rr == pytest.approx(800)
    assert [str(one) for one in gated.gating.beats] == ["800 ms regular, used"] * 4
