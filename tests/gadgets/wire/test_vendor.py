import functools

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.problems import Problems
from gadgets.settings.settings import Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image, Readouts
from gadgets.wire.vendor import center_line, find_vendor, tick_doubt, tick_length
from recon_core.engine import Engine
from recon_core.errors import DataError, SettingsError
from tests.helpers.builders import header_xml, readouts

SMALL = {"matrix_x": 48, "matrix_y": 36, "frames": 3, "coils": 3, "sampling": "full", "snr": 0.0, "waveforms": False}
RETRO = {**SMALL, "frames": 8, "gating": "retrospective", "segments": 6, "averages": 2}


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu")


def reconstruct(engine, scan, **settings):
    """Magnitudes ``(frame, y, x)`` and the problems by kind."""
    chain = Chain(
        parse_header(scan.header), Settings.of(method="zero_filled", device="cpu", **settings), lambda: engine
    )
    images = [item.data[0, 0] for item in chain(scan.items()) if isinstance(item, Image)]
    return np.stack(images), {kind: problem.text for kind, problem in chain.summary.problems.kinds.items()}


def assert_alike(images, expected):
    np.testing.assert_allclose(images, expected, atol=1e-4 * expected.max())


# --- ticks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "wanted", "expected"),
    [
        ("SIEMENS", 0.0, 2.5),
        ("Siemens Healthineers", 0.0, 2.5),
        ("Philips", 0.0, 1.0),
        ("", 0.0, 1.0),
        ("GE MEDICAL SYSTEMS", 0.0, 1.0),
        ("GE", 2.0, 2.0),
    ],
)
def test_ticks(vendor, wanted, expected):
    assert tick_length(vendor, wanted) == expected


@pytest.mark.parametrize(
    ("vendor", "wanted", "said"),
    [("SIEMENS", 0.0, ""), ("Philips", 0.0, ""), ("GE", 0.0, "'GE'"), ("", 0.0, "without a vendor"), ("GE", 2.0, "")],
)
def test_what_is_assumed_of_ticks_is_said(vendor, wanted, said):
    doubt = tick_doubt(vendor, wanted)
    assert said in doubt
    assert bool(doubt) == bool(said)
    assert not doubt or "stamp_tick" in doubt


@functools.cache
def in_plain_time(engine):
    return reconstruct(engine, simulate(ScanPlan(**RETRO)))[0]


@pytest.mark.parametrize("vendor", ["SIEMENS", "Philips", "Unheard Of"])
def test_scans_of_all_vendors_are_gated_alike(engine, vendor):
    expected = in_plain_time(engine)
    images, problems = reconstruct(engine, simulate(ScanPlan(**RETRO, vendor=vendor)))
    assert images.shape == expected.shape
    # ticks of another length round the times of the readouts in another way
    assert np.abs(images - expected).mean() < 0.02 * expected.mean()
    assert ("tick" in problems) == (vendor == "Unheard Of")
    assert set(problems) <= {"tick"}


def test_ticks_do_not_matter_where_nothing_is_gated(engine):
    _, problems = reconstruct(engine, simulate(ScanPlan(**SMALL, vendor="Unheard Of")))
    assert problems == {}


# --- centre -----------------------------------------------------------------------------------------------------------

PARTIAL = {**SMALL, "partial_fourier": 0.75}


def kspace_of(scan, choice="auto"):
    """``(frame, coil, ky, kx)`` of the slice, and the kinds of problems; a magnitude image would not show a shift."""
    seen = []

    class Engine:
        def reconstruct(self, cine, settings):
            seen.append(cine.kspace)
            raise DataError("enough is known")

    chain = Chain(parse_header(scan.header), Settings.of(method="zero_filled", center_line=choice), Engine)
    with pytest.raises(DataError, match="enough is known"):
        list(chain(scan.items()))
    return seen[0], set(chain.summary.problems.kinds) - {"reconstruction"}


@pytest.mark.parametrize(
    ("vendor", "header", "choice", "noticed"),
    [
        ("SIEMENS", "middle", "auto", True),
        ("SIEMENS", "true", "auto", False),
        ("Philips", "true", "auto", False),
        ("Philips", "middle", "9", False),
        ("SIEMENS", "middle", "9", False),
        ("SIEMENS", "true", "header", False),
        ("SIEMENS", "middle", "readouts", True),
    ],
)
def test_lines_lie_right_whoever_knows_the_centre(vendor, header, choice, noticed):
    expected, _ = kspace_of(simulate(ScanPlan(**PARTIAL)))
    found, problems = kspace_of(simulate(ScanPlan(**PARTIAL, vendor=vendor, header_center=header)), choice)
    np.testing.assert_array_equal(found, expected)
    assert problems == ({"centre"} if noticed else set())


@pytest.mark.parametrize(("vendor", "choice"), [("Philips", "auto"), ("SIEMENS", "header"), ("SIEMENS", "18")])
def test_a_centre_that_is_wrong_and_believed_shifts_the_lines(vendor, choice):
    expected, _ = kspace_of(simulate(ScanPlan(**PARTIAL)))
    found, _ = kspace_of(simulate(ScanPlan(**PARTIAL, vendor=vendor, header_center="middle")), choice)
    np.testing.assert_array_equal(found[:, :, :27], expected[:, :, 9:])


def test_readouts_that_do_not_say_it_are_not_believed():
    header, problems = parse_header(header_xml()), Problems()
    first = readouts(1).headers[0]
    assert center_line(header, header.encodings[0], first, problems, "readouts") == 8
    assert "idx.user[5] of the readouts is 0" in str(*problems)


def test_choices_that_are_none():
    with pytest.raises(SettingsError, match="auto, header, readouts or the number of a line; got 'middle'"):
        Settings.of(center_line="middle")
    with pytest.raises(SettingsError, match="center_line"):
        apply(Settings(), {"center_line": "-3"})
    assert apply(Settings(), {"center_line": 7}).readouts.center_line == "7"
    header = parse_header(header_xml())
    with pytest.raises(SettingsError, match="lines 0 to 15"):
        center_line(header, header.encodings[0], readouts(1).headers[0], Problems(), "16")


def test_vendors_are_known_by_how_their_names_begin():
    assert find_vendor("Siemens Healthineers").center_in_readouts
    assert not find_vendor("Philips Medical Systems").center_in_readouts
    assert find_vendor("").tick is None


# --- oversampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "removed"])
def test_oversampling_that_the_sender_removed_is_not_removed_again(engine, choice):
    expected, _ = reconstruct(engine, simulate(ScanPlan(**SMALL)))
    scan = simulate(ScanPlan(**SMALL, removes_oversampling=True))
    assert {item.data.shape[2] for item in scan.items() if isinstance(item, Readouts)} == {48}
    images, problems = reconstruct(engine, scan, oversampling=choice)
    assert_alike(images, expected)
    assert list(problems) == (["oversampling"] if choice == "auto" else [])


def test_oversampling_that_is_said_to_be_present_is_removed(engine):
    """From readouts cut short, which look like those of a sender that removed it."""
    expected, _ = reconstruct(engine, simulate(ScanPlan(**SMALL)), scale=1.0)
    scan = simulate(ScanPlan(**SMALL))
    items = [Readouts(item.headers.copy(), item.data[:, :, 24:72]) for item in scan.items()]
    for item in items:
        item.headers["number_of_samples"], item.headers["center_sample"] = 48, 24

    class Cut:
        header = scan.header

        def items(self):
            return iter(items)

    images, _ = reconstruct(engine, Cut(), oversampling="present", scale=1.0)
    wrong, _ = reconstruct(engine, Cut(), scale=1.0)
    assert np.abs(images - expected).mean() < 0.35 * expected.mean()  # half as sharp, in its place
    assert np.abs(wrong - expected).mean() > 0.5 * expected.mean()


def test_oversampling_that_is_there_though_said_to_be_removed_is_noticed(engine):
    scan = simulate(ScanPlan(**SMALL))
    expected, _ = reconstruct(engine, scan)
    images, problems = reconstruct(engine, scan, oversampling="removed")
    assert_alike(images, expected)
    assert "96 samples and the image 48 columns" in problems["oversampling"]


def test_a_plan_that_cannot_be():
    with pytest.raises(SettingsError, match="asymmetric_echo"):
        ScanPlan(removes_oversampling=True, asymmetric_echo=0.2)
