"""Scans as other writers leave them, by file and by socket: the images of the plain scan, and no damage."""

import functools
import re

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.files.images import read_images, read_incomplete
from gadgets.files.raw import open_scan, write_scan
from gadgets.inspection.raw_file import inspect
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Close, ConfigFile, Header, Image, Readouts
from recon_core.errors import HeaderError, SettingsError
from tests.helpers.pages import PAGES
from tests.helpers.peers import StubEngine, images_of, serving, talk

PLAN = {"matrix_x": 32, "matrix_y": 24, "frames": 4, "slices": 2, "coils": 3, "sampling": "full", "snr": 0.0}
EMBEDDED = {**PLAN, "sampling": "uniform", "acceleration": 2, "acs_lines": 8}


@functools.cache
def plain(**plan):
    """Header and readouts of a scan, one by one and without any flag."""
    made = simulate(ScanPlan(**{**PLAN, **plan, "waveforms": False}))
    single = [item[i : i + 1] for item in made.items() for i in range(len(item))]
    return made.header, tuple(with_flags(one) for one in single)


def with_flags(readout, *numbers, data=None, **counters):
    """A copy of a readout with these flags alone."""
    headers = readout.headers.copy()
    headers["flags"] = sum(1 << (number - 1) for number in numbers)
    for name, value in counters.items():
        (headers["idx"] if name in headers["idx"].dtype.names else headers)[name] = value
    data = readout.data.copy() if data is None else data
    headers["active_channels"], headers["number_of_samples"] = data.shape[1:]
    return Readouts(headers, data)


def counter(readout, name):
    return int(readout.headers["idx"][name][0])


def joined(readouts):
    """Runs of equal shape, as files and sockets give them."""
    runs = []
    for one in readouts:
        if runs and runs[-1][0].data.shape == one.data.shape:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [
        Readouts(*(np.concatenate([getattr(r, name) for r in run]) for name in ("headers", "data"))) for run in runs
    ]


def places(images):
    """Pixels by slice, repetition and frame."""
    names = ("slice", "repetition", "set", "contrast", "phase")
    return {tuple(int(image.header[name]) for name in names): image.data for image in images}


def through_file(header, items, folder, **settings):
    """The images, and what was lost or noticed."""
    write_scan(folder / "scan.h5", header, items)
    with open_scan(folder / "scan.h5") as scan:
        chain = Chain(parse_header(scan.header), Settings.of(method="zero_filled", **settings), StubEngine)
        images = [item for item in chain(scan.items) if isinstance(item, Image)]
    return images, chain.summary.problems


def through_socket(header, items):
    with serving() as server:
        return talk(server, ConfigFile("zero_filled"), Header(header), *items, Close())


def assert_same(images, expected):
    got, wanted = places(images), places(expected)
    assert got.keys() == wanted.keys()
    ours, theirs = (np.stack([made[place] for place in sorted(wanted)]) for made in (got, wanted))
    factor = np.vdot(ours, theirs) / np.vdot(ours, ours)  # the scale of intensity is that of the first slice
    assert abs(factor - 1) < 0.01
    np.testing.assert_allclose(factor * ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def assert_images_of(expected, header, items, folder):
    """Both doors give these images, and lose nothing."""
    items = joined(items)
    images, problems = through_file(header, items, folder)
    assert problems.damage == []
    assert_same(images, expected)
    answer = through_socket(header, items)
    assert answer.complaints("client") == []
    assert_same(answer.images, expected)
    return problems


# --- flags ------------------------------------------------------------------------------------------------------------


def junk(readout, *numbers, coils=3, **counters):
    """A readout of large numbers that is no image data."""
    rng = np.random.default_rng(5)
    shape = (1, coils, readout.data.shape[2])
    data = 100 * np.abs(readout.data).max() * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return with_flags(readout, *numbers, data=data.astype(np.complex64), **counters)


def ends(readouts, *names):
    """Positions of the last readout of every combination of counters."""
    return set({tuple(counter(one, name) for name in names): i for i, one in enumerate(readouts)}.values())


def flagged_at(readouts, *numbers, at):
    return [with_flags(one, *(numbers if i in at else ())) for i, one in enumerate(readouts)]


def all_flagged(*numbers):
    return lambda readouts: [with_flags(one, *numbers) for one in readouts]


def with_junk(*numbers, every=5, **options):
    """Junk with these flags in front, in between and at the end."""

    def change(readouts):
        mixed = [junk(readouts[0], *numbers, **options)]
        for i, one in enumerate(readouts):
            mixed += [one, *([junk(one, *numbers, **options)] if i % every == 0 else [])]
        return mixed

    return change


def reversed_odd_lines(readouts):
    return [
        with_flags(one, 22, data=one.data[:, :, ::-1], center_sample=one.data.shape[2] - 1 - one.data.shape[2] // 2)
        if counter(one, "kspace_encode_step_1") % 2
        else one
        for one in readouts
    ]


def empty_end(readouts):
    return [*readouts, with_flags(readouts[-1], 25, data=np.zeros((1, 0, 0), np.complex64), center_sample=0)]


def encoding_steps(readouts):
    """First and last of encoding steps, averages, slices, ...: flags that nobody needs."""
    return [with_flags(one, *range(1, 19)) for one in readouts]


FLAG_ROWS = {
    "none (pulseq, OpenRecon, MRIReco)": lambda readouts: readouts,
    "8 with the last line of a frame": lambda r: flagged_at(r, 8, at=ends(r, "slice", "phase")),
    "8 with the last line of a slice": lambda r: flagged_at(r, 8, at=ends(r, "slice")),
    "8 with the last line number, whenever that is measured (ge_to_ismrmrd)": lambda r: [
        with_flags(one, *([7] if counter(one, "kspace_encode_step_1") == 0 else [8] * (i % 24 == 23)))
        for i, one in enumerate(r)
    ],
    "8 with every line": all_flagged(8),
    "14 and 25 with the last line (siemens_to_ismrmrd)": lambda r: flagged_at(r, 14, 25, at={len(r) - 1}),
    "25 with the last line of every slice": lambda r: flagged_at(r, 25, at=ends(r, "slice")),
    "25 with the last line of every frame": lambda r: flagged_at(r, 25, at=ends(r, "slice", "phase")),
    "25 with a readout without samples, as end mark": empty_end,
    "1 to 18 with every line": encoding_steps,
    "21 with every line": all_flagged(21),
    "20 and 21 with every line (siemens_to_ismrmrd)": all_flagged(20, 21),
    "22 with every second line, measured from the other end": reversed_odd_lines,
    "26 with every line": all_flagged(26),
    "28 with every line": all_flagged(28),
    "29 with every line (siemens_to_ismrmrd: raw data correction)": all_flagged(29),
    "21 and 29 with every line": all_flagged(21, 29),
    "26, 28 and 29 with every line": all_flagged(26, 28, 29),
    "29 with every line, among them a prescan with the body coil": lambda r: with_junk(29, coils=2)(all_flagged(29)(r)),
    "57 to 64 with every line": all_flagged(*range(57, 65)),
    "23 and 28, a navigator (siemens_to_ismrmrd)": with_junk(23, 28),
    "24, phase correction": with_junk(24),
    "22 and 24, phase correction from the other end": with_junk(22, 24),
    "21 and 24, phase correction of reference lines": with_junk(20, 21, 24),
    "26, feedback": with_junk(26),
    "27, dummies and synchronisation (siemens_to_ismrmrd)": with_junk(27),
    "28, feedback": with_junk(28),
    "29, a prescan": with_junk(29),
    "29, a prescan with the body coil": with_junk(29, coils=2),
    "30 and 31, phase stabilisation": lambda r: with_junk(30)(with_junk(31)(r)),
}


@pytest.mark.parametrize("row", FLAG_ROWS)
def test_flags_of_writers(row, tmp_path):
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    assert len(expected) == 8
    assert_images_of(expected, header, FLAG_ROWS[row](list(readouts)), tmp_path)


def rows_of(heading):
    """First cells of the table below a heading of the page on senders."""
    part = PAGES["docs/senders.md"].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (.+?) \|", part, re.MULTILINE)[1:]


def test_the_table_of_flags_has_these_rows():
    assert rows_of("Flags") == list(FLAG_ROWS)


def test_marks_on_reference_lines_decide_nothing(tmp_path):
    """A reference scan without a mark does not make a prescan of image lines that have one."""
    header, readouts = plain(**{**EMBEDDED, "acs_lines": 0})
    reference = [with_flags(one, 20) for one in plain()[1][8:16]]
    expected = images_of(header, joined([*reference, *readouts]))
    assert_images_of(expected, header, [*reference, *(with_flags(one, 29) for one in readouts)], tmp_path)


@pytest.mark.parametrize("mode", ["embedded", "other", "interleaved", "separate", ""])
def test_a_line_with_both_flags_of_calibration_is_an_image_line(mode, tmp_path):
    """siemens_to_ismrmrd sets 20 and 21 on the lines that serve for both."""
    header, readouts = plain(**EMBEDDED)
    header = re.sub(r"<calibrationMode>\w+<", f"<calibrationMode>{mode}<", header)
    central = [abs(counter(one, "kspace_encode_step_1") - 12) < 4 for one in readouts]
    both = [with_flags(one, *((20, 21) if inner else ())) for one, inner in zip(readouts, central, strict=True)]
    assert_images_of(images_of(header, joined(readouts)), header, both, tmp_path)


# --- numbers ----------------------------------------------------------------------------------------------------------


def replaced(header, *changes):
    for old, new in changes:
        header, count = re.subn(old, new, header, flags=re.DOTALL)
        assert count, old
    return header


NUMBERS = {
    "rounding errors": [(r"<y>24</y>", "<y>23.9996</y>"), (r"<x>64</x>", "<x>64.0003</x>")],
    "numbers as text": [(r"<y>24</y>", "<y> 24.0 </y>"), (r"<maximum>3</maximum>", "<maximum>3.0</maximum>")],
    "two partitions in the matrix of a slice": [(r"(<encodedSpace>.*?)<z>1</z>", r"\1<z>2</z>")],
    "text for the bandwidth": [(r"<relativeReceiverNoiseBandwidth>[^<]*", "<relativeReceiverNoiseBandwidth>none")],
    "text for the coils": [(r"<receiverChannels>[^<]*", "<receiverChannels>all")],
    "NaN for the time of a repetition": [(r"<TR>[^<]*", "<TR>NaN")],
    "NaN for the frequency": [(r"<H1resonanceFrequency_Hz>[^<]*", "<H1resonanceFrequency_Hz>NaN")],
    "text for the acceleration": [(r"(<accelerationFactor>\s*<kspace_encoding_step_1>)[^<]*", r"\1full")],
    "text for a limit": [(r"(<set><minimum>)0", r"\1first")],
    "NaN for the limit of the slices": [(r"(<slice><minimum>0</minimum><maximum>)1", r"\1NaN")],
    "a limit below 0": [(r"(<segment><minimum>)0", r"\1-1")],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_writers(name, tmp_path):
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    assert_images_of(expected, replaced(header, *NUMBERS[name]), readouts, tmp_path)


def comments(images):
    return {image.attributes.split("GADGETRON_ImageComment")[1].split("</meta>")[0] for image in images}


def test_a_field_of_view_in_metres_is_one_in_millimetres_and_the_comment_says_so(tmp_path):
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    metres = re.sub(
        r"(<fieldOfView_mm>)(.*?)(</fieldOfView_mm>)",
        lambda found: "".join(
            [found[1], re.sub(r">([\d.]+)<", lambda value: f">{float(value[1]) / 1000:.9g}<", found[2]), found[3]]
        ),
        header,
        flags=re.DOTALL,
    )
    assert_images_of(expected, metres, readouts, tmp_path)
    images, problems = through_file(metres, joined(readouts), tmp_path / "..")
    for image, other in zip(images, expected, strict=True):
        np.testing.assert_allclose(image.header["field_of_view"], other.header["field_of_view"], rtol=1e-6)
    assert any("metres" in str(problem) for problem in problems)
    assert all("metres" in comment for comment in comments(images))


def test_interpolation_of_philips_is_not_taken_for_removed_oversampling(tmp_path):
    """Its converter gives the encoded matrix of the interpolated image, and never removes the oversampling."""
    header, readouts = plain(interpolation=2.0)
    wide = replaced(
        header,
        (r"(<encodedSpace>\s*<matrixSize><x>)64(</x><y>)24", r"\g<1>128\g<2>48"),
        (r"(<kspace_encoding_step_1><minimum>0</minimum><maximum>23</maximum><center>)\d+", r"\g<1>12"),
    )
    padded = [with_flags(one, data=np.pad(one.data, [(0, 0), (0, 0), (32, 32)]), center_sample=64) for one in readouts]
    expected = images_of(wide, joined(padded))
    philips = wide.replace("cinestream simulation", "Philips")
    assert_images_of(expected, philips, readouts, tmp_path)
    images, _ = through_file(philips, joined(readouts), tmp_path / "..")
    assert all("removes none" in comment for comment in comments(images))


def test_a_guess_about_the_oversampling_is_in_log_and_comment(tmp_path):
    header, readouts = plain(removes_oversampling=True)
    images, problems = through_file(header, joined(readouts), tmp_path)
    assert [problem.pixels for problem in problems] == [True]
    assert all("removed by the sender" in comment for comment in comments(images))


def test_a_guess_about_the_centre_is_in_the_comment(tmp_path):
    header, readouts = plain(partial_fourier=0.75, vendor="SIEMENS", header_center="middle")
    images, _ = through_file(header, joined(readouts), tmp_path)
    assert all("the readouts are believed" in comment for comment in comments(images))


# --- counters ---------------------------------------------------------------------------------------------------------


def limits_changed(header, **changes):
    """The header with the limits of counters as given: (minimum, maximum, centre), or None for none at all."""
    for name, limit in changes.items():
        inner = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(("minimum", "maximum", "center"), limit or (), strict=False)
        )
        header = replaced(header, (rf"<{name}><minimum>.*?</{name}>", f"<{name}>{inner}</{name}>" if limit else ""))
    return header


def without_limits(header):
    return replaced(header, (r"<encodingLimits>.*?</encodingLimits>", ""))


LINES = "kspace_encoding_step_1"
LIMIT_ROWS = {
    "none at all (OpenRecon, pulseq, MRIReco)": without_limits,
    "an empty list": lambda header: replaced(header, (r"<encodingLimits>.*?</encodingLimits>", "<encodingLimits/>")),
    "none of the frames": lambda header: limits_changed(header, phase=None),
    "none of the lines": lambda header: limits_changed(header, **{LINES: None}),
    "0 to 0 for everything": lambda header: replaced(header, (r"<maximum>\d+</maximum>", "<maximum>0</maximum>")),
    "one frame too few": lambda header: limits_changed(header, phase=(0, 2, 0)),
    "one line too few": lambda header: limits_changed(header, **{LINES: (0, 22, 12)}),
    "one slice too few": lambda header: limits_changed(header, slice=(0, 0, 0)),
    "frames, slices, sets, contrasts, averages and repetitions too many": lambda header: limits_changed(
        header, phase=(0, 39, 0), slice=(0, 9, 0), set=(0, 3, 0), contrast=(0, 1, 0), average=(0, 2, 0)
    ),
    "twice as many lines as the matrix has": lambda header: limits_changed(header, **{LINES: (0, 47, 24)}),
    "lines counted from another one": lambda header: limits_changed(header, **{LINES: (4, 27, 16)}),
    "frames counted from another one": lambda header: limits_changed(header, phase=(2, 5, 2), slice=(1, 2, 1)),
    "a minimum above the maximum": lambda header: limits_changed(header, phase=(3, 0, 0)),
}


def test_the_table_of_limits_has_these_rows():
    assert rows_of("Limits of the counters") == list(LIMIT_ROWS)


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
@pytest.mark.parametrize("row", LIMIT_ROWS)
def test_limits_of_writers(row, order, tmp_path):
    header, readouts = plain(slice_order=order)
    expected = images_of(header, joined(readouts))
    assert len(expected) == 8
    assert_images_of(expected, LIMIT_ROWS[row](header), readouts, tmp_path)


def counted(readouts, **first):
    """The readouts with counters that begin elsewhere."""
    return [with_flags(one, **{name: counter(one, name) + value for name, value in first.items()}) for one in readouts]


@pytest.mark.parametrize("name", ["phase", "slice", "repetition", "set", "contrast", "average"])
@pytest.mark.parametrize("said", [True, False])
def test_counters_that_begin_above_0(name, said, tmp_path):
    header, readouts = plain()
    values = {"phase": 4, "slice": 2}.get(name, 1)
    expected = [image.data for image in images_of(header, joined(readouts))]
    header = limits_changed(header, **{name: (3, 2 + values, 3) if said else None})
    items = joined(counted(readouts, **{name: 3}))
    images, problems = through_file(header, items, tmp_path)
    assert problems.damage == []
    answer = through_socket(header, items)
    assert answer.complaints("client") == []
    for made in (images, answer.images):
        np.testing.assert_allclose([image.data for image in made], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("header_of", [without_limits, lambda h: limits_changed(h, phase=None, repetition=None), str])
def test_frames_that_are_counted_by_the_repetitions(header_of, tmp_path):
    """The header may even promise phases."""
    header, readouts = plain(slices=1, frames=6)
    expected = images_of(header, joined(readouts))
    items = [with_flags(one, phase=0, repetition=counter(one, "phase")) for one in readouts]
    images, problems = through_file(header_of(header), joined(items), tmp_path)
    assert problems.damage == []
    assert [int(image.header["repetition"]) for image in images] == list(range(6))
    assert len({image.header["image_series_index"] for image in images}) == 1
    for image, other in zip(images, expected, strict=True):
        np.testing.assert_allclose(image.data, other.data, rtol=1e-4)


@pytest.mark.parametrize("inner", [True, False])
def test_more_averages_than_the_header_says(inner, tmp_path):
    header, readouts = plain(slices=1)
    rng = np.random.default_rng(0)
    noisy = [one.data * (1 + rng.standard_normal()) for one in readouts]
    first = [with_flags(one, data=data.astype(np.complex64)) for one, data in zip(readouts, noisy, strict=True)]
    second = [
        with_flags(one, data=(2 * one.data - data).astype(np.complex64), average=1)
        for one, data in zip(readouts, noisy, strict=True)
    ]
    items = [one for both in zip(first, second, strict=True) for one in both] if inner else [*first, *second]
    assert_images_of(images_of(header, joined(readouts)), header, items, tmp_path)


def test_lines_that_are_counted_from_below_0(tmp_path):
    """philips_to_ismrmrd leaves the numbers of the profiles, which wrap around in 16 bits."""
    header, readouts = plain()
    items = [
        with_flags(one, kspace_encode_step_1=(counter(one, "kspace_encode_step_1") - 12) % 65536) for one in readouts
    ]
    assert_images_of(images_of(header, joined(readouts)), header, items, tmp_path)


# --- encodings --------------------------------------------------------------------------------------------------------


def with_encoding(header, place, **changes):
    """The header with a second encoding, a copy with changes, in front or behind."""
    (encoding,) = re.findall(r"<encoding>.*</encoding>", header, re.DOTALL)
    other = encoding
    for old, new in changes.values():
        other = other.replace(old, new)
    return header.replace(encoding, other + encoding if place == "front" else encoding + other)


OTHER_ENCODINGS = {
    "the same": {},
    "spiral": {"trajectory": ("cartesian", "spiral")},
    "radial": {"trajectory": ("cartesian", "radial")},
    "3-D": {"z": ("<z>1</z>", "<z>16</z>")},
}


@pytest.mark.parametrize("kind", OTHER_ENCODINGS)
@pytest.mark.parametrize("place", ["front", "behind"])
@pytest.mark.parametrize("reference", [False, True])
def test_an_encoding_without_image_lines(kind, place, reference, tmp_path):
    """Of reference scans, or of nothing at all."""
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    own, other = (1, 0) if place == "front" else (0, 1)
    items = [with_flags(one, encoding_space_ref=own) for one in readouts]
    if reference and kind != "the same":
        items = [junk(one, 20, encoding_space_ref=other) for one in readouts[:8]] + items
    assert_images_of(expected, with_encoding(header, place, **OTHER_ENCODINGS[kind]), items, tmp_path)


def test_image_lines_of_an_encoding_that_cannot_be_used_are_damage_and_the_others_images(tmp_path):
    header, readouts = plain()
    both = with_encoding(header, "behind", **OTHER_ENCODINGS["radial"])
    items = [*readouts, *(with_flags(one, encoding_space_ref=1) for one in readouts[:5])]
    images, problems = through_file(both, joined(items), tmp_path)
    assert_same(images, images_of(header, joined(readouts)))
    (lost,) = problems.damage
    assert lost.count == 5
    assert "radial" in lost.text


@pytest.mark.parametrize("rows", [24, 20])
def test_images_of_two_encodings_are_series_of_their_own(rows, tmp_path):
    """Of one size they would be taken for one loop, of two no file could hold them."""
    header, readouts = plain()
    both = with_encoding(header, "behind", y=("<y>24</y>", f"<y>{rows}</y>"))
    others = [one for one in readouts if abs(counter(one, "kspace_encode_step_1") - 11.5) < rows / 2]
    items = [*readouts, *(with_flags(one, encoding_space_ref=1) for one in others)]
    write_scan(tmp_path / "scan.h5", both, joined(items))
    _, summary = replay(tmp_path / "scan.h5", tmp_path / "images.h5", Settings.of(method="zero_filled"), StubEngine)
    assert not summary.problems.damage
    found = read_images(tmp_path / "images.h5")
    assert {number: {image.data.shape[2] for image in images} for number, images in found.items()} == {
        1: {24},
        31: {rows},
    }
    assert_same(found[1], images_of(header, joined(readouts)))


def test_an_encoding_that_the_settings_do_not_fit_costs_none_of_the_others(tmp_path):
    header, readouts = plain()
    both = with_encoding(header, "behind", y=("<y>24</y>", "<y>8</y>"))
    others = [with_flags(one, encoding_space_ref=1) for one in readouts if counter(one, "kspace_encode_step_1") < 8]
    settings = Settings.of(method="zero_filled", center_line=12)
    for name, items in (("both", [*readouts, *others]), ("second", others)):
        write_scan(tmp_path / f"{name}.h5", both, joined(items))
    _, summary = replay(tmp_path / "both.h5", tmp_path / "images.h5", settings, StubEngine)
    (lost,) = summary.problems.damage
    assert "center_line" in lost.text
    assert lost.count == len(others)
    assert_same(read_images(tmp_path / "images.h5")[1], images_of(header, joined(readouts)))
    assert "center_line" in read_incomplete(tmp_path / "images.h5")
    with pytest.raises(SettingsError, match="center_line"):  # as nothing else is there
        replay(tmp_path / "second.h5", tmp_path / "none.h5", settings, StubEngine)


@pytest.mark.parametrize("partitions", [1, 2])
def test_partitions_that_the_readouts_count(partitions, tmp_path):
    header, readouts = plain()
    header = replaced(header, (r"(<encodedSpace>.*?)<z>1</z>", rf"\1<z>{partitions}</z>"))
    items = joined([*readouts, with_flags(readouts[5], kspace_encode_step_2=1)])
    if partitions > 1:
        with pytest.raises(HeaderError, match="2 partitions, and the readouts count them"):
            through_file(header, items, tmp_path)
        return
    images, problems = through_file(header, items, tmp_path)
    assert_same(images, images_of(header, joined(readouts)))
    assert "of partition 1" in problems.damage[0].text


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), (29,)])
def test_doctor_sees_the_same_image_lines(flags, tmp_path):
    header, readouts = plain()
    write_scan(tmp_path / "scan.h5", header, joined([with_flags(one, *flags) for one in readouts]))
    report = inspect(tmp_path / "scan.h5", Settings.of(method="zero_filled"))
    assert report.good
    facts = {fact.name: fact for section in report.sections.values() for fact in section}
    assert facts["count"].value == {"image": len(readouts)}
    assert facts["images"].value == {"images": 8, "slices": 2}


def test_doctor_says_what_is_guessed(tmp_path):
    header, readouts = plain(removes_oversampling=True)
    write_scan(tmp_path / "scan.h5", header.replace("<maximum>1<", "<maximum>one<"), joined(readouts))
    report = inspect(tmp_path / "scan.h5", Settings.of(method="zero_filled"))
    found = " ".join(finding.text for finding in report.findings)
    assert "removed by the sender" in found
    assert "limits of <slice>" in found


# --- further reports of the trackers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [(), (29,)])
def test_noise_that_carries_the_mark_of_the_images(mark, tmp_path):
    """siemens_to_ismrmrd marks the noise too where raw data are to be corrected."""
    header, readouts = plain(snr=30.0)
    noise, lines = readouts[:32], readouts[32:]
    expected = images_of(header, joined([*(with_flags(one, 19) for one in noise), *lines]))
    marked = [*(with_flags(one, 19, 29) for one in noise), *(with_flags(one, *mark) for one in lines)]
    assert_images_of(expected, header, marked, tmp_path)


def test_a_shot_more_than_the_matrix_has_lines(tmp_path):
    """A matrix that is no multiple of the lines of a shot: the last shot goes beyond it, and the limits say so."""
    header, readouts = plain()
    more = []
    for one in readouts:
        more.append(one)
        if counter(one, LINES.replace("encoding", "encode")) == 23:
            more.append(with_flags(one, kspace_encode_step_1=24))
    wide = limits_changed(header, **{LINES: (0, 24, 12)})
    assert_images_of(images_of(header, joined(readouts)), wide, more, tmp_path)


def test_echoes_of_each_excitation_one_after_the_other(tmp_path):
    """Contrasts that take turns line by line, with limits that know of one only."""
    header, readouts = plain(slices=1)
    single = [image.data for image in images_of(header, joined(readouts), scale=1.0)]
    echoes = [with_flags(one, contrast=echo, data=one.data / (1 + echo)) for one in readouts for echo in range(2)]
    images, problems = through_file(header, joined(echoes), tmp_path, scale=1.0)
    assert problems.damage == []
    got = places(images)
    assert len(got) == 8
    for (_, _, _, contrast, phase), pixels in got.items():
        np.testing.assert_allclose(pixels, single[phase] / (1 + contrast), rtol=1e-4)


def test_the_last_scan_of_the_measurement_in_the_middle_of_it(tmp_path):
    header, readouts = plain()
    for at in (5, 23, 47, 96):
        flagged = flagged_at(readouts, 14, 25, at={at, len(readouts) - 1})
        assert_images_of(images_of(header, joined(readouts)), header, flagged, tmp_path)
        (tmp_path / "scan.h5").unlink()


def test_a_small_animal_in_metres():
    header, _ = plain()
    small = re.sub(
        r"(<fieldOfView_mm><x>)[\d.]+(</x><y>)[\d.]+(</y><z>)[\d.]+", r"\g<1>0.027\g<2>0.027\g<3>0.0005", header
    )
    (encoding,) = parse_header(small).encodings
    assert encoding.encoded.field_of_view == pytest.approx((27.0, 27.0, 0.5))


def test_an_encoded_matrix_of_the_interpolated_image_with_a_rounded_slice(tmp_path):
    """philips_to_ismrmrd gives sizes far above those of the readouts, and a slice of 0.9996 partitions."""
    header, readouts = plain()
    wide = replaced(header, (r"(<encodedSpace>\s*<matrixSize>.*?<z>)1", r"\g<1>0.9996"))
    assert_images_of(images_of(header, joined(readouts)), wide, readouts, tmp_path)


def assert_said(header, readouts, words, folder):
    """Log and comment of every image say it, and nothing is damage."""
    images, problems = through_file(header, joined(readouts), folder)
    assert problems.damage == []
    assert sum(words in str(problem) for problem in problems) == 1
    assert all(words in comment for comment in comments(images))
    return images


@pytest.mark.parametrize("last", [23, 11])
def test_lines_that_are_counted_one_after_the_other(last, tmp_path):
    header, readouts = plain(slices=1)
    halved = [
        with_flags(one, kspace_encode_step_1=counter(one, "kspace_encode_step_1") // 2)
        for one in readouts
        if counter(one, "kspace_encode_step_1") % 2 == 0
    ]
    factor = r"(<accelerationFactor>\s*<kspace_encoding_step_1>)1"
    halved_header = limits_changed(replaced(header, (factor, r"\g<1>2")), **{LINES: (0, last, 12)})
    assert_said(halved_header, halved, "counts measured lines", tmp_path)


def test_an_accelerated_scan_is_not_said_to_count_its_lines(tmp_path):
    dense = {"sampling": "variable_density", "acceleration": 3, "acs_lines": 8}
    for plan in ({"sampling": "uniform", "acceleration": 2}, {"partial_fourier": 0.6}, dense):
        made = simulate(ScanPlan(**{**PLAN, "slices": 1, **plan}))
        _, problems = through_file(made.header, made.items(), tmp_path)
        assert not any("counts measured lines" in str(problem) for problem in problems)


def test_more_samples_than_columns_are_said(tmp_path):
    header, readouts = plain()
    fewer = replaced(header, (r"(<encodedSpace>\s*<matrixSize><x>)64", r"\g<1>60"))
    assert_said(fewer, readouts, "60 columns", tmp_path)


def test_a_central_sample_that_is_none_is_said(tmp_path):
    header, readouts = plain()
    last = [with_flags(one, center_sample=63) for one in readouts]
    assert_said(header, last, "columns before the k-space centre that center_sample says", tmp_path)


def test_a_central_sample_that_is_not_turned_round_with_the_readout_is_said(tmp_path):
    """A converter turns asymmetric echoes round and leaves the number of their central sample as it was."""
    made = simulate(ScanPlan(**{**PLAN, "slices": 1, "asymmetric_echo": 0.3, "reversed_readouts": True}))
    _, problems = through_file(made.header, made.items(), tmp_path)
    assert not any("echoes" in str(problem) for problem in problems)
    forward = ScanPlan(**{**PLAN, "asymmetric_echo": 0.3}).center_sample
    kept = list(made.items())
    for one in kept:
        if isinstance(one, Readouts):
            one.headers["center_sample"] = forward
    _, problems = through_file(made.header, kept, tmp_path / "..")
    assert sum("the echoes of reversed readouts lie" in str(problem) for problem in problems) == 1


def test_echoes_that_lie_a_little_off_and_noise_are_not_said(tmp_path):
    header, readouts = plain()
    near = [with_flags(one, center_sample=34) for one in readouts]
    rng = np.random.default_rng(1)
    noise = [
        with_flags(one, data=rng.standard_normal((*one.data.shape, 2)).astype(np.float32).view(np.complex64)[..., 0])
        for one in readouts
    ]
    for scan in (near, noise):
        _, problems = through_file(header, joined(scan), tmp_path)
        assert not any("echoes" in str(problem) for problem in problems)


def test_oversampling_along_y_that_the_header_lacks_is_said(tmp_path):
    header, readouts = plain()
    fewer = replaced(header, (r"(<reconSpace>\s*<matrixSize><x>32</x><y>)24", r"\g<1>20"))
    images = assert_said(fewer, readouts, "squeezed", tmp_path)
    assert {image.data.shape[2] for image in images} == {20}


@pytest.mark.parametrize("shape", [(3, 16), (3, 128), (2, 64)])
@pytest.mark.parametrize("count", [1, 8])
def test_strays_without_a_mark_in_front_are_left_out_and_lose_no_image(shape, count, tmp_path):
    """Converters keep the first 25 marks at times, or none; 8 readouts of a prescan then look like image lines."""
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    stray = with_flags(readouts[0], data=1e3 * np.ones((1, *shape), np.complex64), center_sample=0)
    mixed = [*count * [stray], *readouts[:40], stray, *readouts[40:]]
    images, problems = through_file(header, joined(mixed), tmp_path)
    assert sum(problem.count for problem in problems.damage) == count + 1
    assert_same(images, expected)


def test_readouts_that_the_header_does_not_know_are_images_where_there_are_no_others(tmp_path):
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    wrong = replaced(header, (r"(<receiverChannels>)3", r"\g<1>32"))
    assert_images_of(expected, wrong, readouts, tmp_path)
    few = [one for one in readouts if counter(one, "slice") == 0 and counter(one, "phase") == 0]
    assert_images_of(images_of(header, joined(few)), wrong, few, tmp_path)


@pytest.mark.parametrize("number", [1, 3])
def test_encodings_that_are_not_counted_from_0_are_the_only_one(number, tmp_path):
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    counted = [with_flags(one, encoding_space_ref=number) for one in readouts]
    problems = assert_images_of(expected, header, counted, tmp_path)
    assert f"the readouts are of encoding {number}, and the header has one" in str(next(iter(problems)))


@pytest.mark.parametrize("begin", [0, 7])
def test_readouts_of_an_encoding_that_the_header_lacks_are_left_out_where_there_are_others(begin, tmp_path):
    """A converter that keeps the lines of a prescan and forgets its encoding."""
    header, readouts = plain()
    expected = images_of(header, joined(readouts))
    mixed = [*readouts[:begin], *(junk(readouts[0], encoding_space_ref=1) for _ in range(5)), *readouts[begin:]]
    images, problems = through_file(header, joined(mixed), tmp_path)
    assert sum(problem.count for problem in problems.damage) == 5
    assert_same(images, expected)


@pytest.mark.parametrize("begin", [0, 5])
def test_reference_lines_of_other_coils_lose_no_image(begin, tmp_path):
    """Of the body coil, in front: they fix the coils of no image line."""
    header, readouts = plain()
    body = [junk(one, 20, coils=2) for one in readouts[:40]]
    images, problems = through_file(header, joined([*readouts[:begin], *body, *readouts[begin:]]), tmp_path)
    (lost,) = problems.damage
    assert lost.count == 40
    assert_same(images, images_of(header, joined(readouts)))


def test_reference_lines_count_though_the_header_says_other_coils():
    header, readouts = plain()
    reference = [with_flags(one, 20, data=2 * one.data) for one in readouts if counter(one, "phase") == 0]
    wrong = replaced(header, (r"(<receiverChannels>)3", r"\g<1>32"))
    made = {}
    for name, text in (("right", header), ("wrong", wrong)):
        seen = made[name] = []

        class Watching(StubEngine):
            def reconstruct(self, cine, options, seen=seen):
                seen.append(cine.calibration)
                return super().reconstruct(cine, options)

        images_of(text, joined([*reference, *readouts]), Watching())
    assert len(made["right"]) == 2
    np.testing.assert_array_equal(made["wrong"], made["right"])
