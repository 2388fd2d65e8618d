import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets.wire.header import Limit, Space, parse_header, without_version
from recon_core.errors import HeaderError
from tests.helpers.builders import NAMESPACE, encoding_xml, header_xml, space_xml
from tests.helpers.gadgetron_parent import reserialised
from tests.helpers.paths import SHARED, existing

SHARED_DATA = SHARED / "data"


def parallel(factor):
    """<parallelImaging> of an acceleration along ky."""
    step = f"<kspace_encoding_step_1>{factor}</kspace_encoding_step_1>"
    return f"<parallelImaging><accelerationFactor>{step}</accelerationFactor></parallelImaging>"


def test_full_header():
    header = parse_header(
        header_xml(
            encoding_xml(
                (256, 120, 1),
                (128, 110, 1),
                (600.0, 350.5, 8.0),
                (300.0, 320.25, 8.0),
                limits={"kspace_encoding_step_1": (2, 119, 61), "slice": (0, 8, 0), "phase": (0, 24, 0)},
                extra="<parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>"
                "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
                "<calibrationMode>embedded</calibrationMode></parallelImaging>",
            ),
            version=2,
            before="<measurementInformation><measurementID>a_b_c_7</measurementID><patientPosition>HFS</patientPosition>"
            "<protocolName>cine µ</protocolName></measurementInformation><acquisitionSystemInformation>"
            "<systemVendor>SIEMENS</systemVendor><relativeReceiverNoiseBandwidth>0.7</relativeReceiverNoiseBandwidth>"
            "</acquisitionSystemInformation>",
            after="<userParameters><userParameterLong><name>EmbeddedRefLinesE1</name><value>24</value></userParameterLong>"
            "<userParameterDouble><name>MaxwellCoefficient_0</name><value>0.5</value></userParameterDouble>"
            "<userParameterString><name>Who</name><value>me &amp; you</value></userParameterString></userParameters>",
        )
    )
    (encoding,) = header.encodings
    assert encoding.encoded == Space((256, 120, 1), (600.0, 350.5, 8.0))
    assert encoding.recon == Space((128, 110, 1), (300.0, 320.25, 8.0))
    assert encoding.limits["kspace_encoding_step_1"] == Limit(2, 119, 61)
    assert (encoding.count("slice"), encoding.count("phase"), encoding.count("repetition")) == (9, 25, 1)
    assert (encoding.acceleration, encoding.calibration_mode) == (3, "embedded")
    assert (header.patient_position, header.protocol_name, header.measurement_id) == ("HFS", "cine µ", "a_b_c_7")
    assert (header.vendor, header.noise_bandwidth) == ("SIEMENS", np.float32(0.7))
    assert header.user_parameters == {"EmbeddedRefLinesE1": "24", "MaxwellCoefficient_0": "0.5", "Who": "me & you"}


def test_numbers_that_a_gadgetron_prints_again_stay_the_same():
    """It keeps them in single precision, and prints 9 digits."""
    text = header_xml(
        encoding_xml((256, 120, 1), (128, 110, 1), (716.8, 353.33, 7.9), (358.4, 320.01, 7.9)),
        before="<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>0.793</relativeReceiverNoiseBandwidth>"
        "</acquisitionSystemInformation>",
        after="<sequenceParameters><TR>40.12</TR><echo_spacing>2.87</echo_spacing></sequenceParameters>",
    )
    again = reserialised(text)
    assert "0.792999983" in again
    mine, passed_on = parse_header(text), parse_header(again)
    assert mine.noise_bandwidth == passed_on.noise_bandwidth
    assert mine.readout_spacing == passed_on.readout_spacing
    for one, other in zip(mine.encodings, passed_on.encodings, strict=True):
        assert (one.encoded, one.recon) == (other.encoded, other.recon)


def test_smallest_header():
    encoded = space_xml("encodedSpace", (8, 4, 1), (100, 100, 8))
    text = f"<ismrmrdHeader><encoding>{encoded}<reconSpace/></encoding></ismrmrdHeader>"
    header = parse_header(text)
    (encoding,) = header.encodings
    assert encoding.recon == encoding.encoded == Space((8, 4, 1), (100.0, 100.0, 8.0))
    assert encoding.limits == {}
    assert encoding.count("phase") == encoding.acceleration == 1
    assert (header.vendor, header.noise_bandwidth, header.user_parameters) == ("", np.float32(0.793), {})
    assert header.text == text


def test_several_encodings_keep_their_order():
    header = parse_header(header_xml(encoding_xml((32, 16, 1)), encoding_xml((64, 48, 1)), encoding_xml((8, 8, 1))))
    assert [encoding.encoded.matrix[0] for encoding in header.encodings] == [32, 64, 8]


@pytest.mark.parametrize(
    ("matrix", "expected"), [((0, 0, 0), (32, 16, 1)), ((16, 0, 1), (16, 16, 1)), ((16, 12, 0), (16, 12, 1))]
)
def test_recon_matrix_of_zero_is_not_set(matrix, expected):
    assert parse_header(header_xml(recon=matrix)).encodings[0].recon.matrix == expected


def test_recon_field_of_view_of_zero_is_not_set():
    recon = parse_header(header_xml(recon_fov=(0.0, 150.0, 0.0))).encodings[0].recon
    assert recon.field_of_view == (400.0, 150.0, 8.0)


@pytest.mark.parametrize("version", [None, 1, 2, 8, 99, "nonsense"])
def test_any_version_is_read(version):
    assert parse_header(header_xml(version=version)).encodings[0].encoded.matrix == (32, 16, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: (
            text.replace(' xmlns="', ' xmlns:i="').replace("<", "<i:").replace("<i:/", "</i:").replace("<i:?", "<?")
        ),
        lambda text: text.replace(f' xmlns="{NAMESPACE}"', ""),
        lambda text: text.replace(NAMESPACE, "http://elsewhere"),
        lambda text: "\n \t" + text.replace("><", ">\n<!-- remark -->\n<"),
        lambda text: text.replace('"1.0"?>', '"1.0" encoding="UTF-16"?>'),
        lambda text: text.replace('"1.0"?>', '"1.0" encoding="ISO-8859-1" standalone="no"?>'),
        lambda text: "\ufeff" + text,
        lambda text: text.partition("\n")[2],
    ],
    ids=["plain", "prefix", "none", "foreign", "comments", "utf-16", "latin-1", "bom", "undeclared"],
)
def test_spellings(change):
    plain = header_xml(
        version=8,
        after="<userParameters><userParameterString><name>µ</name><value>ü</value></userParameterString></userParameters>",
    )
    text = change(plain)
    header = parse_header(text)
    assert header.encodings == parse_header(plain).encodings
    assert header.user_parameters == {"µ": "ü"}
    assert "version>" not in without_version(text)
    assert parse_header(without_version(text)).encodings == header.encodings


def test_without_version_touches_nothing_else():
    text = header_xml(version=8)
    assert without_version(text) == header_xml()
    assert without_version(header_xml()) == header_xml()
    for similar in ("systemVersion", "conversion"):
        kept = header_xml(before=f"<{similar}>1</{similar}>")
        assert without_version(kept) == kept


def test_what_the_schema_of_ismrmrd_writes():
    schema = ismrmrd.xsd.CreateFromDocument(header_xml(version=2))
    text = schema.toXML() if hasattr(schema, "toXML") else ismrmrd.xsd.ToXML(schema)
    assert parse_header(text).encodings == parse_header(header_xml()).encodings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not XML"),
        ("   \n", "not XML"),
        ('<?xml version="1.0"?>\n', "not XML"),
        ("hello world", "begins with 'hello world'"),
        ("<ismrmrdHeader>", "not XML"),
        ("\0\0\0", "not XML"),
        ("\ud800", "not XML"),
        ("<configuration/>", "got <configuration>"),
        ("<ismrmrdHeader/>", "no <encoding>"),
        ("<ismrmrdHeader><encoding/></ismrmrdHeader>", "no <encodedSpace>"),
        (
            f"<ismrmrdHeader><encoding>{space_xml('encodedSpace', (8, 8, 1), (1, 1, 1))}</encoding></ismrmrdHeader>",
            "no <reconSpace>",
        ),
        ("<a>" * 40_000 + "</a>" * 40_000, "expected an ISMRMRD header"),
        ("<a>" * 100_000 + "</a>" * 100_000, "200000 XML tags"),
    ],
)
def test_what_is_no_header(text, message):
    with pytest.raises(HeaderError, match=message):
        parse_header(text)


def test_an_epi_trajectory_is_refused():
    assert "encoding 0 has a epi trajectory" in parse_header(header_xml(trajectory="epi")).refusal


@pytest.mark.parametrize("trajectory", ["radial", "Spiral", "goldenangle", "other"])
def test_the_grid_of_other_trajectories_is_that_of_the_image(trajectory):
    text = header_xml(
        encoded=(64, 20, 1),
        recon=(48, 48, 1),
        encoded_fov=(400.0, 400.0, 8.0),
        recon_fov=(200.0, 150.0, 8.0),
        trajectory=trajectory,
    )
    (encoding,) = parse_header(text).encodings
    assert encoding.refusal == ""
    assert encoding.trajectory == trajectory.lower()
    assert encoding.encoded.matrix == (32, 24, 1)
    assert encoding.encoded.field_of_view == encoding.recon.field_of_view
    assert encoding.spoke == 64


def test_one_usable_encoding_is_enough():
    header = parse_header(header_xml(encoding_xml(trajectory="spiral"), encoding_xml()))
    assert header.refusal == ""
    assert ["spiral" in encoding.refusal for encoding in header.encodings] == [True, False]


@pytest.mark.parametrize("trajectory", ["cartesian", "Cartesian", " cartesian\n", "trajectoryType.CARTESIAN"])
def test_spellings_of_cartesian(trajectory):
    assert parse_header(header_xml(trajectory=trajectory)).encodings[0].trajectory == "cartesian"


@pytest.mark.parametrize(
    "mode", ["embedded", "Embedded", " EMBEDDED ", "calibrationModeType.EMBEDDED", "type.embedded"]
)
def test_spellings_of_the_calibration_mode(mode):
    extra = f"<parallelImaging><calibrationMode>{mode}</calibrationMode></parallelImaging>"
    header = parse_header(header_xml(extra=extra))
    assert header.encodings[0].calibration_mode == "embedded"
    assert header.doubts == ()


def test_a_calibration_mode_that_nobody_knows_is_said():
    header = parse_header(header_xml(extra="<parallelImaging><calibrationMode>1</calibrationMode></parallelImaging>"))
    (doubt,) = header.doubts
    assert "'1'" in doubt.text
    assert doubt.pixels


STEPS = {"kspace_encoding_step_1": (0, 15, 8)}


@pytest.mark.parametrize(
    ("recon", "limits", "refused"),
    [
        (12, STEPS, True),
        (12, {**STEPS, "kspace_encoding_step_2": (0, 0, 0)}, True),  # left at its default
        (1, {**STEPS, "kspace_encoding_step_2": (0, 11, 6)}, True),
        (1, {**STEPS, "kspace_encoding_step_2": (0, 0, 0)}, False),
        (1, STEPS, False),
    ],
)
def test_partitions_are_those_that_are_wanted_or_counted(recon, limits, refused):
    """Pulseq on Siemens scanners leaves an encoded matrix of two partitions for single slices."""
    header = parse_header(header_xml(encoded=(32, 16, 12), recon=(16, 16, recon), limits=limits))
    assert ("12 partitions" in header.refusal) is refused
    assert any("taken as 2-D" in doubt.text for doubt in header.doubts) is not refused


@pytest.mark.parametrize(
    "encoding",
    [
        {"encoded": ("NaN", 16, 1)},
        {"encoded": ("inf", 16, 1)},
        {"encoded": ("", 16, 1)},
        {"encoded": ("many", 16, 1)},
        {"encoded": (32, 0, 1)},
        {"encoded": (32, -16, 1)},
        {"encoded": (1e300, 16, 1)},
        {"encoded": (16385, 16, 1)},
        {"recon": (16385, 16, 1)},
    ],
    ids=str,
)
def test_numbers_without_which_there_is_no_image(encoding):
    with pytest.raises(HeaderError, match=r"matrix|must be a number"):
        parse_header(header_xml(**{"limits": {}, **encoding}))


ALL_LIMITS = {**STEPS, "phase": (0, 3, 0), "slice": (0, 2, 0)}


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ({"encoded": (32, 16, "x")}, False),
        ({"recon": (4294967295, 16, 1)}, True),
        ({"recon": (-1, 16, 1)}, True),
        ({"recon": ("nan", 16, 1)}, True),
        ({"recon": (16, 16, "one")}, False),
        ({"encoded_fov": ("nan", 200, 8)}, True),
        ({"encoded_fov": (-1, 200, 8)}, True),
        ({"recon_fov": (200, "-inf", 8)}, True),
        ({"limits": {**ALL_LIMITS, "phase": (0, "nan", 0)}}, False),
        ({"limits": {**ALL_LIMITS, "phase": (0, 1e30, 0)}}, False),
        ({"limits": {**ALL_LIMITS, "phase": (0, 65536, 0)}}, False),
        ({"limits": {**ALL_LIMITS, "phase": (5, 3, 0)}}, False),
        ({"limits": {**ALL_LIMITS, "slice": (0, -1, 0)}}, False),
        ({"limits": {**ALL_LIMITS, "kspace_encoding_step_1": (0, 15, "x")}}, True),
        ({"limits": ALL_LIMITS, "extra": parallel("fast")}, False),
        ({"limits": ALL_LIMITS, "extra": parallel(-2)}, False),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_said_and_the_default_taken(encoding, pixels):
    header = parse_header(header_xml(**{"limits": ALL_LIMITS, **encoding}))
    (doubt,) = header.doubts
    assert doubt.pixels is pixels
    (one,) = header.encodings
    assert one.encoded.matrix == (32, 16, 1)
    assert one.acceleration == 1
    broken = [name for name in ALL_LIMITS if name not in one.limits]
    assert broken == [name for name in ALL_LIMITS if encoding.get("limits", ALL_LIMITS)[name] != ALL_LIMITS[name]]


def test_numbers_of_the_scanner_that_are_none_are_said():
    system = (
        "<receiverChannels>all</receiverChannels><relativeReceiverNoiseBandwidth>NaN</relativeReceiverNoiseBandwidth>"
    )
    text = f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
    header = parse_header(header_xml(before=text))
    assert (header.receiver_channels, header.noise_bandwidth) == (0, np.float32(0.793))
    assert len(header.doubts) == 2


@pytest.mark.parametrize("value", [47.9996, 48.0004, "48.0", "4.8e1", 48])
def test_rounding_errors_of_sizes_and_limits(value):
    """Converters compute sizes, and leave what floating point leaves."""
    limits = {"kspace_encoding_step_1": (0, 46.9998, 23.9999), "phase": ("0.0", "3.0", 0)}
    header = parse_header(header_xml(encoded=(value, value, 1.0001), recon=(value, value, 0.9998), limits=limits))
    (one,) = header.encodings
    assert one.encoded.matrix == one.recon.matrix == (48, 48, 1)
    assert one.limits == {"kspace_encoding_step_1": Limit(0, 47, 24), "phase": Limit(0, 3, 0)}
    assert header.doubts == ()


def test_a_size_between_two_numbers_is_said():
    header = parse_header(header_xml(encoded=(32, 16, 1), recon=(16.4, 16, 1)))
    assert header.encodings[0].recon.matrix == (16, 16, 1)
    assert ["16.4" in doubt.text for doubt in header.doubts] == [True]


@pytest.mark.parametrize(("thickness", "expected"), [(0.008, 8.0), (8.0, 8.0)])
def test_fields_of_view_in_metres(thickness, expected):
    header = parse_header(header_xml(encoded_fov=(0.4, 0.2, thickness), recon_fov=(0.2, 0.2, thickness)))
    (one,) = header.encodings
    assert one.encoded.field_of_view == pytest.approx((400.0, 200.0, expected))
    assert one.recon.field_of_view == pytest.approx((200.0, 200.0, expected))
    assert [doubt.pixels for doubt in header.doubts] == [True, True]
    assert all("metres" in doubt.text for doubt in header.doubts)


def test_fields_of_view_that_nobody_knows():
    header = parse_header(header_xml(encoded_fov=("?", 0, 0), recon_fov=(0, "?", 8)))
    (one,) = header.encodings
    assert one.encoded.field_of_view == (32.0, 16.0, 8.0)
    assert one.recon.field_of_view == (16.0, 16.0, 8.0)
    assert any("1 mm" in doubt.text and doubt.pixels for doubt in header.doubts)


@pytest.mark.parametrize(("limit", "values"), [((1, 6, 0), range(1, 7)), ((3, 3, 3), range(3, 4)), (None, range(1))])
def test_limits_promise_what_lies_between_them(limit, values):
    limits = {**STEPS, **({"phase": limit} if limit else {})}
    (one,) = parse_header(header_xml(limits=limits)).encodings
    assert one.promised("phase") == values
    assert one.count("phase") == len(values)


BILLION_LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "start",
    [
        BILLION_LAUGHS + "]>",
        "<!DOCTYPE a [<!ENTITY secret SYSTEM 'file:///etc/passwd'>]>",
        "<!DOCTYPE ismrmrdHeader SYSTEM 'http://127.0.0.1:9/x.dtd'>",
        "<!DOCTYPE ismrmrdHeader>",
    ],
    ids=["laughs", "file", "external", "empty"],
)
def test_declared_types_and_entities_are_not_read(start):
    with pytest.raises(HeaderError, match="DTD or entities"):
        parse_header(start + header_xml().partition("\n")[2])


def test_undeclared_entity_is_no_xml():
    with pytest.raises(HeaderError, match="not XML"):
        parse_header(header_xml(before="&j;"))


def test_real_headers_agree_with_the_schema():
    existing(SHARED_DATA)
    files = sorted([*SHARED_DATA.glob("ismrmrd_real/*.h5"), *SHARED_DATA.glob("semi_real_cine/*.h5")])
    read = 0
    for path in files:
        with h5py.File(path, "r", locking=False) as file:
            text = file["dataset/xml"][0].decode()
        expected = ismrmrd.xsd.CreateFromDocument(text)
        space = expected.encoding[0].encodedSpace
        if space.matrixSize.z > 1 or expected.encoding[0].trajectory.value != "cartesian":
            with pytest.raises(HeaderError):
                parse_header(text)
            continue
        header = parse_header(text)
        assert len(header.encodings) == len(expected.encoding), path.name
        encoded = header.encodings[0].encoded
        assert encoded.matrix == (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z)
        limit = expected.encoding[0].encodingLimits.kspace_encoding_step_1
        assert header.encodings[0].limits["kspace_encoding_step_1"] == Limit(limit.minimum, limit.maximum, limit.center)
        read += 1
    assert read >= 3


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("<TR>42</TR><echo_spacing>2.8</echo_spacing>", 2.8),
        ("<TR>42</TR>", 2.8),
        ("<TR>broken</TR><echo_spacing>-1</echo_spacing>", 0.0),
        ("<TR>nan</TR>", 0.0),
        ("", 0.0),
    ],
)
def test_time_from_readout_to_readout(sequence, expected):
    lines = "<userParameterLong><name>RetroGatedSegmentSize</name><value>15</value></userParameterLong>"
    text = f"<sequenceParameters>{sequence}</sequenceParameters><userParameters>{lines}</userParameters>"
    assert parse_header(header_xml(encoding_xml(), after=text)).readout_spacing == pytest.approx(expected)


def test_waveforms_that_are_announced():
    ecg = "<waveformInformation><waveformName>x</waveformName><waveformType> ECG </waveformType></waveformInformation>"
    assert parse_header(header_xml(encoding_xml(), after=ecg)).waveform_types == {"ecg"}
    assert parse_header(header_xml(encoding_xml())).waveform_types == frozenset()
