"""Scans as other writers leave them, by file and by socket: the images of the plain scan, and no damage."""

import functools
import re

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.files.raw import open_scan, write_scan
from gadgets.inspection.raw_file import inspect
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Close, ConfigFile, Header, Image, Readouts
from recon_core.errors import HeaderError
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
    for place, pixels in wanted.items():
        np.testing.assert_allclose(got[place], pixels, rtol=1e-4, atol=1e-4 * np.abs(pixels).max())


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
