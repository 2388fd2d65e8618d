import ctypes
import dataclasses
import io
import itertools
import math
import socket
import struct
import tracemalloc

import gadgetron.types.acquisition_bucket
import gadgetron.types.image_array
import gadgetron.types.recon_data
import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.wire.containers import Bucket, BufferedData, ImageArray, ReconData
from gadgets.wire.framing import EndOfStreamError, MessageId
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    SAMPLING_DESCRIPTION,
    WAVEFORM_HEADER,
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Query,
    Readouts,
    Response,
    Text,
    Waveform,
    flag_mask,
    join_headers,
)
from gadgets.wire.reader import Reader
from gadgets.wire.source import Limits
from gadgets.wire.writer import Writer, encode
from recon_core.errors import ProtocolError
from tests.helpers.builders import header_xml, readouts, waveform

GENERATOR = np.random.default_rng(5)


def wire(*messages):
    """The bytes of messages one after another."""
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


def reader_of(stream, **arguments):
    return Reader(io.BytesIO(stream).readinto, **arguments)


def read_one(stream):
    """The only message of a stream; nothing may be left."""
    reader = reader_of(stream)
    message = reader.read()
    with pytest.raises(EndOfStreamError, match="between two messages"):
        reader.read()
    return message


def filled(dtype, shape=()):
    """Records of random bytes, finite in every float field, zero in the padding."""
    records = np.zeros(shape, dtype)
    for name in dtype.names:
        field = dtype[name]
        if field.names:
            records[name] = filled(field, shape)
        elif field.base.names:
            records[name] = filled(field.base, (*shape, *field.shape))
        elif field.base.kind == "f":
            records[name] = GENERATOR.standard_normal((*shape, *field.shape))
        else:
            records[name] = GENERATOR.integers(0, 200, (*shape, *field.shape))
    return records


def numbers(*shape):
    return (GENERATOR.standard_normal(shape) + 1j * GENERATOR.standard_normal(shape)).astype(np.complex64)


def image(dtype="<f4", shape=(1, 1, 3, 4), attributes="<ismrmrdMeta/>"):
    header = filled(IMAGE_HEADER)
    header["data_type"] = next(number for number, known in IMAGE_DTYPES.items() if known == np.dtype(dtype))
    header["channels"], header["matrix_size"] = shape[0], shape[:0:-1]
    header["attribute_string_len"] = len(attributes.encode())
    data = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    return Image(header[()], data, attributes)


def buffered(*, trajectory=True, density=True):
    e0, e1, e2, coils, n, s, slices = 4, 3, 1, 2, 2, 1, 2
    return BufferedData(
        np.asfortranarray(numbers(e0, e1, e2, coils, n, s, slices)),
        filled(ACQUISITION_HEADER, (e1, e2, n, s, slices)),
        filled(SAMPLING_DESCRIPTION)[()],
        numbers(2, e0, e1, e2, n, s, slices).real.copy() if trajectory else None,
        numbers(e0, e1, e2, n, s, slices).real.copy() if density else None,
    )


def image_array(**changes):
    return ImageArray(
        **{
            "data": numbers(4, 3, 1, 1, 2, 1, 2),
            "headers": filled(IMAGE_HEADER, (2, 1, 2)),
            "attributes": ("<a/>", "<b/>", "", "<d/>"),
            "waveforms": (waveform(2, 3), waveform(1, 5, seed=1)),
            "acquisitions": filled(ACQUISITION_HEADER, (3, 1, 2, 1, 2)),
            **changes,
        }
    )


def stats(*lists):
    return tuple(lists) + ((),) * (9 - len(lists))


def bucket(**changes):
    return Bucket(
        **{
            "data": (readouts(2, 2, 4, seed=1), readouts(1, 3, 5, dimensions=2, seed=2)),
            "reference": (readouts(1, 1, 6, seed=3),),
            "data_stats": (stats((0, 1, 2), (0,)), stats((7,))),
            "reference_stats": (stats((5, 65535)),),
            "waveforms": (waveform(2, 3), waveform(1, 1, seed=4)),
            **changes,
        }
    )


ONE_OF_EACH = [
    ConfigFile("cg_sense.xml"),
    ConfigText("<configuration/>"),
    Header("<ismrmrdHeader>µ</ismrmrdHeader>"),
    Close(),
    Text("a line"),
    Query(77, "gadgetron::version"),
    Response(77, "4.7.2"),
    Error("coil 3 burnt"),
    readouts(3, 2, 5),
    readouts(2, 2, 5, dimensions=3),
    waveform(3, 7),
    image(),
    image("<c8", (2, 3, 4, 5)),
    ReconData(((buffered(), buffered(trajectory=False, density=False)), (buffered(density=False), None))),
    image_array(),
    image_array(attributes=(), waveforms=None, acquisitions=None),
    bucket(),
]
IDS = [f"{i}-{type(message).__name__}" for i, message in enumerate(ONE_OF_EACH)]


# --- layouts ----------------------------------------------------------------------------------------------------------

ACQUISITION_OFFSETS = {
    "version": 0,
    "flags": 2,
    "measurement_uid": 10,
    "scan_counter": 14,
    "acquisition_time_stamp": 18,
    "physiology_time_stamp": 22,
    "number_of_samples": 34,
    "available_channels": 36,
    "active_channels": 38,
    "channel_mask": 40,
    "discard_pre": 168,
    "discard_post": 170,
    "center_sample": 172,
    "encoding_space_ref": 174,
    "trajectory_dimensions": 176,
    "sample_time_us": 178,
    "position": 182,
    "read_dir": 194,
    "phase_dir": 206,
    "slice_dir": 218,
    "patient_table_position": 230,
    "idx": 242,
    "user_int": 276,
    "user_float": 308,
}
IMAGE_OFFSETS = {
    "version": 0,
    "data_type": 2,
    "flags": 4,
    "measurement_uid": 12,
    "matrix_size": 16,
    "field_of_view": 22,
    "channels": 34,
    "position": 36,
    "read_dir": 48,
    "phase_dir": 60,
    "slice_dir": 72,
    "patient_table_position": 84,
    "average": 96,
    "slice": 98,
    "contrast": 100,
    "phase": 102,
    "repetition": 104,
    "set": 106,
    "acquisition_time_stamp": 108,
    "physiology_time_stamp": 112,
    "image_type": 124,
    "image_index": 126,
    "image_series_index": 128,
    "user_int": 130,
    "user_float": 162,
    "attribute_string_len": 194,
}
WAVEFORM_OFFSETS = {
    "version": 0,
    "flags": 8,
    "measurement_uid": 16,
    "scan_counter": 20,
    "time_stamp": 24,
    "number_of_samples": 28,
    "channels": 30,
    "sample_time_us": 32,
    "waveform_id": 36,
}


@pytest.mark.parametrize(
    ("dtype", "offsets", "size", "structure"),
    [
        (ACQUISITION_HEADER, ACQUISITION_OFFSETS, 340, ismrmrd.AcquisitionHeader),
        (IMAGE_HEADER, IMAGE_OFFSETS, 198, ismrmrd.ImageHeader),
        (WAVEFORM_HEADER, WAVEFORM_OFFSETS, 40, ismrmrd.WaveformHeader),
        (ACQUISITION_HEADER["idx"], None, 34, ismrmrd.EncodingCounters),
        (
            SAMPLING_DESCRIPTION,
            {"encoded_fov": 0, "recon_fov": 12, "encoded_matrix": 24, "recon_matrix": 30, "limits": 36},
            56,
            None,
        ),
    ],
)
def test_header_layout(dtype, offsets, size, structure):
    found = {name: dtype.fields[name][1] for name in dtype.names}
    assert dtype.itemsize == size
    if offsets is not None:
        assert found == offsets
    if structure is not None:
        assert ctypes.sizeof(structure) == size
        assert found == {name: getattr(structure, name).offset for name, *_ in structure._fields_}


def test_flags_are_those_of_ismrmrd():
    for ours, theirs in {
        "NOISE": "IS_NOISE_MEASUREMENT",
        "PARALLEL_CALIBRATION": "IS_PARALLEL_CALIBRATION",
        "CALIBRATION_AND_IMAGING": "IS_PARALLEL_CALIBRATION_AND_IMAGING",
        "REVERSE": "IS_REVERSE",
        "NAVIGATION": "IS_NAVIGATION_DATA",
        "PHASE_CORRECTION": "IS_PHASECORR_DATA",
        "LAST_IN_MEASUREMENT": "LAST_IN_MEASUREMENT",
        "HP_FEEDBACK": "IS_HPFEEDBACK_DATA",
        "DUMMY": "IS_DUMMYSCAN_DATA",
        "RT_FEEDBACK": "IS_RTFEEDBACK_DATA",
        "SURFACE_COIL_CORRECTION": "IS_SURFACECOILCORRECTIONSCAN_DATA",
        "FIRST_IN_SLICE": "FIRST_IN_SLICE",
        "LAST_IN_SLICE": "LAST_IN_SLICE",
        "LAST_IN_REPETITION": "LAST_IN_REPETITION",
    }.items():
        assert AcquisitionFlag[ours] == getattr(ismrmrd, f"ACQ_{theirs}"), ours
    assert AcquisitionFlag.NOISE.bit == 1 << 18
    assert flag_mask(AcquisitionFlag.FIRST_IN_ENCODE_STEP1, AcquisitionFlag.COMPRESSION_NHLBI) == (1 << 53) + 1
    assert flag_mask() == 0


def test_ids_are_those_of_the_gadgetron_package():
    from gadgetron.external import constants

    for name, number in MessageId.__members__.items():
        theirs = {
            "CONFIG_FILE": "FILENAME",
            "CONFIG_TEXT": "CONFIG",
            "ACQUISITION": "ISMRMRD_ACQUISITION",
            "IMAGE": "ISMRMRD_IMAGE",
            "WAVEFORM": "ISMRMRD_WAVEFORM",
        }.get(name, name)
        known = getattr(constants, f"GADGET_MESSAGE_{theirs}", None)
        assert known is None or known == number, name


CONTROL = [
    (ConfigFile("cg.xml"), struct.pack("<H1024s", 1, b"cg.xml")),
    (ConfigText("<a>µ</a>"), struct.pack("<HI", 2, 9) + "<a>µ</a>".encode()),
    (Header("<h/>"), struct.pack("<HI", 3, 4) + b"<h/>"),
    (Close(), b"\x04\x00"),
    (Text(""), struct.pack("<HI", 5, 0)),
    (Query(2**63, "q"), struct.pack("<HQQQ", 6, 0, 2**63, 1) + b"q"),
    (Response(7, "answer"), struct.pack("<HQQ", 7, 7, 6) + b"answer"),
    (Error("bad"), struct.pack("<HQ", 8, 3) + b"bad"),
]


@pytest.mark.parametrize(("message", "expected"), CONTROL, ids=lambda value: type(value).__name__)
def test_control_messages_are_byte_exact(message, expected):
    assert wire(message) == expected
    assert read_one(expected) == message


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (struct.pack("<HI", 2, 6) + b"<a/>\0\0", ConfigText("<a/>")),
        (struct.pack("<HI", 3, 5) + b"<h/>\0", Header("<h/>")),
        (struct.pack("<HI", 5, 1) + b"\0", Text("")),
        (struct.pack("<H", 1) + b"name\0rubbish".ljust(1024, b"\xff"), ConfigFile("name")),
        (struct.pack("<H", 1) + b"n" * 1024, ConfigFile("n" * 1024)),
        (struct.pack("<HI", 5, 3) + b"\xffok", Text("\ufffdok")),
    ],
)
def test_text_is_read_with_and_without_nul(stream, expected):
    assert read_one(stream) == expected


def test_config_name_must_fit():
    assert read_one(wire(ConfigFile("x" * 1023))).name == "x" * 1023
    with pytest.raises(ProtocolError, match="1024"):
        encode(ConfigFile("µ" * 512))


@pytest.mark.parametrize(("coils", "samples", "dimensions"), [(1, 1, 0), (4, 7, 0), (3, 5, 2), (2, 6, 3)])
def test_readout_is_what_ismrmrd_python_writes(coils, samples, dimensions):
    block = readouts(
        1, coils, samples, dimensions=dimensions, phase=3, user=np.arange(8), flags=(AcquisitionFlag.NOISE,)
    )
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(block.headers.tobytes())
    assert (head.idx.phase, head.idx.user[7], head.number_of_samples) == (3, 7, samples)
    acquisition = ismrmrd.Acquisition(head, block.data[0], None if dimensions == 0 else block.trajectory[0])
    out = io.BytesIO(struct.pack("<H", 1008))
    out.seek(2)
    acquisition.serialize_into(out.write)
    assert wire(block) == out.getvalue()
    again = read_one(out.getvalue())
    assert again.headers.tobytes() == block.headers.tobytes()
    assert np.array_equal(again.data, block.data)
    assert (again.trajectory is None) == (dimensions == 0)
    if dimensions:
        assert np.array_equal(again.trajectory, block.trajectory)


def test_readout_header_follows_the_data():
    block = readouts(2, 3, 8)
    for name in ("number_of_samples", "active_channels", "trajectory_dimensions"):
        block.headers[name] = 99
    again = read_one(wire(block))
    assert again.data.shape == (2, 3, 8)
    assert np.array_equal(again.headers["number_of_samples"], [8, 8])


def test_waveform_is_what_ismrmrd_python_writes():
    ours = waveform(3, 5, time_stamp=12345)
    theirs = ismrmrd.Waveform(ismrmrd.WaveformHeader.from_buffer_copy(ours.header.tobytes()), ours.data)
    out = io.BytesIO()
    theirs.serialize_into(out.write)
    assert wire(ours) == struct.pack("<H", 1026) + out.getvalue()
    again = read_one(wire(ours))
    assert again.header.tobytes() == ours.header.tobytes()
    assert np.array_equal(again.data, ours.data)


def test_waveform_padding_does_not_leak():
    ours = waveform(1, 1)
    dirty = np.frombuffer(b"\xff" * 40, WAVEFORM_HEADER).copy()[0]
    for name in WAVEFORM_HEADER.names:
        dirty[name] = ours.header[name]
    assert wire(Waveform(dirty, ours.data)) == wire(ours)


def test_sampling_padding_does_not_leak():
    dirty = np.frombuffer(b"\x07" * 56, SAMPLING_DESCRIPTION)[0]
    stream = wire(ReconData(((dataclasses.replace(buffered(), sampling=dirty), None),)))
    assert stream[-57:] == b"\x07" * 54 + bytes(3)


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<f4", "<f8", "<c8", "<c16"])  # ismrmrd takes int32 for 64 bit
@pytest.mark.parametrize("attributes", ["", ismrmrd.Meta({"name": "µ", "list": ["1", "2"]}).serialize()])
def test_image_is_what_ismrmrd_python_writes(dtype, attributes):
    ours = image(dtype, (2, 3, 4, 5), attributes)
    theirs = ismrmrd.Image(ismrmrd.ImageHeader.from_buffer_copy(ours.header.tobytes()))
    theirs.data[:] = ours.data
    theirs.meta = ismrmrd.Meta.deserialize(attributes) if attributes else ismrmrd.Meta()
    out = io.BytesIO()
    theirs.serialize_into(out.write)
    parsed = ismrmrd.Image.deserialize_from(io.BytesIO(wire(ours)[2:]).read)
    assert dict(parsed.meta) == dict(theirs.meta)
    assert np.array_equal(parsed.data, ours.data)
    assert parsed.data.dtype == ours.data.dtype
    for stream in (wire(ours), struct.pack("<H", 1022) + out.getvalue()):
        again = read_one(stream)
        assert np.array_equal(again.data, ours.data)
        assert again.data.dtype == ours.data.dtype
        assert dict(ismrmrd.Meta.deserialize(again.attributes or "<ismrmrdMeta/>")) == dict(theirs.meta)
        assert again.header["image_index"] == ours.header["image_index"]
    same = dataclasses.replace(ours, attributes=theirs.attribute_string)
    assert wire(same) == struct.pack("<H", 1022) + out.getvalue()


def test_image_attributes_may_count_a_nul():
    ours = image(attributes="")
    stream = struct.pack("<H", 1022) + ours.header.tobytes() + struct.pack("<Q", 5) + b"<a/>\0" + ours.data.tobytes()
    again = read_one(stream)
    assert again.attributes == "<a/>"
    assert np.array_equal(again.data, ours.data)


def test_image_header_follows_the_data():
    ours = image("<f4", (1, 2, 3, 4), "<a>µ</a>")
    for name in ("data_type", "channels", "matrix_size", "attribute_string_len"):
        ours.header[name] = 7
    sent = ours.header.copy()
    again = read_one(wire(ours))
    assert again.header["data_type"] == 5
    assert again.header["matrix_size"].tolist() == [4, 3, 2]
    assert again.header["attribute_string_len"] == 9
    assert ours.header == sent, "the caller's header was changed"


def test_images_of_any_memory_order_are_written_alike():
    ours = image("<c8", (2, 1, 4, 6))
    for data in (np.asfortranarray(ours.data), np.repeat(ours.data, 2, axis=3)[..., ::2]):
        assert wire(dataclasses.replace(ours, data=data)) == wire(ours)


@pytest.mark.parametrize("data", [np.zeros((1, 1, 2, 2), "?"), np.zeros((2, 2), "<f4"), np.zeros((1, 1, 2, 2), ">f4")])
def test_image_that_ismrmrd_does_not_know_is_refused(data):
    with pytest.raises(ProtocolError, match="image must be"):
        encode(Image(image().header, data))


def test_image_of_unknown_type_is_refused_on_reading():
    ours = bytearray(wire(image()))
    ours[4:6] = struct.pack("<H", 9)
    with pytest.raises(ProtocolError, match="data type 9"):
        reader_of(bytes(ours)).read()


# --- containers against the gadgetron package -------------------------------------------------------------------------

packed_structures_of_ctypes = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


def as_written_by_gadgetron(write, thing):
    out = io.BytesIO()
    write(out, thing)
    return out.getvalue()


def structures(records, structure):
    """An object array of ctypes structures, as the gadgetron package holds headers."""
    out = np.empty(records.shape, object)
    for index in np.ndindex(records.shape):
        out[index] = structure.from_buffer_copy(records[index].tobytes())
    return out


def same_structures(found, records):
    assert found.shape == records.shape
    for index in np.ndindex(records.shape):
        assert bytes(found[index]) == records[index].tobytes()


@packed_structures_of_ctypes
def test_recon_data_is_what_the_gadgetron_package_reads_and_writes():
    package = gadgetron.types.recon_data
    ours = ReconData(((buffered(), buffered(trajectory=False, density=False)), (buffered(trajectory=False), None)))
    stream = wire(ours)
    theirs = package.read_recon_data(io.BytesIO(stream[2:]))
    assert len(theirs.bits) == 2
    for bit, (data, reference) in zip(theirs.bits, ours.bits, strict=True):
        for mine, other in ((data, bit.data), (reference, bit.ref)):
            if mine is None:
                assert other is None
                continue
            assert np.array_equal(other.data, mine.data)
            same_structures(other.headers, mine.headers)
            assert bytes(other.sampling) == mine.sampling.tobytes()
            for name in ("trajectory", "density"):
                assert (getattr(other, name) is None) == (getattr(mine, name) is None)
                assert getattr(mine, name) is None or np.array_equal(getattr(other, name), getattr(mine, name))
    assert as_written_by_gadgetron(package.write_recon_data, theirs) == stream
    assert wire(read_one(stream)) == stream
    again = read_one(stream).bits[0][0]
    assert np.array_equal(again.data, ours.bits[0][0].data)
    assert np.array_equal(again.trajectory, ours.bits[0][0].trajectory)
    limits = theirs.bits[0].data.sampling.sampling_limits[1]
    assert again.sampling["limits"][1].tolist() == (limits.min, limits.center, limits.max)


@packed_structures_of_ctypes
def test_image_array_is_what_the_gadgetron_package_reads_and_writes():
    package = gadgetron.types.image_array
    ours = image_array()
    stream = wire(ours)
    theirs = package.read_image_array(io.BytesIO(stream[2:]))
    assert np.array_equal(theirs.data, ours.data)
    same_structures(theirs.headers, ours.headers)
    assert theirs.meta == list(ours.attributes)
    assert [wave.data.tolist() for wave in theirs.waveform] == [wave.data.tolist() for wave in ours.waveforms]
    same_structures(theirs.acq_headers, ours.acquisitions)
    theirs.waveform = None  # the package writes an id before every waveform, which it does not read itself
    assert as_written_by_gadgetron(package.write_image_array, theirs) == wire(image_array_like(ours, waveforms=None))
    assert wire(read_one(stream)) == stream


def image_array_like(images, **changes):
    return dataclasses.replace(images, **changes)


def test_bucket_is_what_the_gadgetron_package_reads():
    ours = bucket(waveforms=())  # the package fails on waveforms
    stream = wire(ours)
    source = io.BytesIO(stream[2:])
    theirs = gadgetron.types.acquisition_bucket.read_acquisition_bucket(source)
    assert source.read() == b""
    split = [part[i : i + 1] for part in ours.data for i in range(len(part))]
    for other, mine in zip(theirs.data, split, strict=True):
        assert np.array_equal(other.data, mine.data[0])
        assert other.scan_counter == mine.headers["scan_counter"][0]
    assert np.array_equal(theirs.data[2].traj, ours.data[1].trajectory[0])
    assert np.array_equal(theirs.ref[0].data, ours.reference[0].data[0])
    assert [space.kspace_encode_step_1 for space in theirs.datastats] == [{0, 1, 2}, {7}]
    assert theirs.refstats[0].kspace_encode_step_1 == {5, 65535}


def test_bucket_sizes():
    ours = bucket()
    stream = wire(ours)
    sizes = struct.unpack_from("<13Q", stream, 2)
    data = 8 * (2 * 2 * 4 + 3 * 5)
    assert sizes[:4] == (3, 3 * 340, data, 4 * 5 * 2)
    assert sizes[4:8] == (1, 340, 8 * 6, 0)
    assert sizes[8:10] == (8 + 2 * 9 * 8 + 2 * 5, 8 + 9 * 8 + 2 * 2)
    assert sizes[10:] == (2, 80, 4 * 7)
    assert len(stream) == 2 + 13 * 8 + sum(sizes) - 3 - 1 - 2
    again = read_one(stream)
    assert [len(part) for part in again.data] == [1, 1, 1]
    assert np.array_equal(again.data[2].trajectory, ours.data[1].trajectory)
    assert (again.data_stats, again.reference_stats) == (ours.data_stats, ours.reference_stats)
    assert wire(again) == stream


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 7, 10, 11, 12], ids=lambda position: f"size{position}")
def test_bucket_that_contradicts_itself_is_refused(position):
    """Each claim one too low: the pieces no longer fit, or the stream ends early; never anything else."""
    stream = bytearray(wire(bucket()))
    claimed = struct.unpack_from("<Q", stream, 2 + 8 * position)[0]
    struct.pack_into("<Q", stream, 2 + 8 * position, max(0, claimed - 1))
    reader = reader_of(bytes(stream))
    if claimed == 0:
        reader.read()
        return
    with pytest.raises(ProtocolError):
        list(reader)


def test_empty_arrays():
    ours = ReconData(
        (
            (
                BufferedData(
                    np.empty((4, 0, 1, 2, 1, 1, 1), np.complex64),
                    np.empty((0, 1, 1, 1, 1), ACQUISITION_HEADER),
                    filled(SAMPLING_DESCRIPTION)[()],
                ),
                BufferedData(
                    np.empty(0, np.complex64), np.empty(0, ACQUISITION_HEADER), filled(SAMPLING_DESCRIPTION)[()]
                ),
            ),
        )
    )
    data, reference = read_one(wire(ours)).bits[0]
    assert data.data.shape == (4, 0, 1, 2, 1, 1, 1)
    assert data.headers.shape == (0, 1, 1, 1, 1)
    assert reference.data.size == reference.headers.size == 0
    assert wire(read_one(wire(ours))) == wire(ours)


@pytest.mark.parametrize("shape", [(1, 0, 8), (3, 0, 0), (2, 4, 0), (0, 4, 8)])
def test_readouts_without_samples_or_coils(shape):
    block = Readouts(np.zeros(shape[0], ACQUISITION_HEADER), np.zeros(shape, np.complex64))
    stream = wire(block) + wire(Close())
    assert len(stream) == shape[0] * 342 + 2
    messages = list(reader_of(stream))
    assert [message.data.shape for message in messages] == ([shape] if shape[0] else [])


def test_empty_image_bucket_and_waveform():
    empty = Bucket((), (), (), (), ())
    assert read_one(wire(empty)) == empty
    assert read_one(wire(waveform(0, 0))).data.shape == (0, 0)
    assert read_one(wire(image("<f4", (0, 1, 3, 4)))).data.shape == (0, 1, 3, 4)


def test_containers_hold_the_right_types():
    with pytest.raises(ProtocolError, match="complex64"):
        encode(image_array(data=np.zeros((1,) * 7, np.complex128)))
    with pytest.raises(ProtocolError, match="expected an array of header records, got float32"):
        encode(image_array(headers=np.zeros((1, 1, 1), np.float32)))
    with pytest.raises(ProtocolError, match="header records"):
        encode(image_array(headers=np.zeros((1, 1, 1), ACQUISITION_HEADER)))


# --- round trips and chunks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=IDS)
def test_round_trip(message):
    stream = wire(message)
    again = read_one(stream)
    assert type(again) is type(message)
    assert wire(again) == stream


@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_any_text_survives(text, number):
    kept = text.rstrip("\0")
    for message, expected in (
        (ConfigText(text), ConfigText(kept)),
        (Header(text), Header(kept)),
        (Text(text), Text(kept)),
        (Error(text), Error(kept)),
        (Query(number, text), Query(number, kept)),
        (Response(number, text), Response(number, kept)),
    ):
        assert read_one(wire(message)) == expected
    assert read_one(wire(image(attributes=text))).attributes == kept


SHAPES = st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 9), st.integers(0, 2))


def dribble(stream, sizes):
    """A readinto that gives as many bytes at a time as `sizes` says, round and round."""
    source, sizes = io.BytesIO(stream), itertools.cycle(sizes)

    def readinto(view):
        return source.readinto(view[: next(sizes)])

    return readinto


@given(
    runs=st.lists(SHAPES, min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    chunk=st.sampled_from([64, 400, 1000, 5000, 1 << 20]),
)
@settings(max_examples=150)
def test_readouts_of_varied_shapes_in_random_pieces(runs, sizes, chunk):
    sent = [
        readouts(count, coils, samples, dimensions=dimensions, seed=i, first=100 * i)
        for i, (count, coils, samples, dimensions) in enumerate(runs)
    ]
    stream = wire(*sent, Close())
    reader = Reader(dribble(stream, sizes), chunk_bytes=chunk)
    blocks = list(reader)  # all are held to the end: earlier views must outlive later reads
    assert reader.bytes_read == len(stream)
    assert wire(*blocks, Close()) == stream
    counters = [counter for block in blocks for counter in block.headers["scan_counter"]]
    assert counters == [counter for block in sent for counter in block.headers["scan_counter"]]
    for block in blocks:
        count, coils, samples = block.data.shape
        assert count == len(block) > 0
        assert set(block.headers["active_channels"]) == {coils}
        assert set(block.headers["number_of_samples"]) == {samples}
        assert set(block.headers["trajectory_dimensions"]) == {
            0 if block.trajectory is None else block.trajectory.shape[2]
        }


def test_run_of_equal_readouts_is_one_block():
    stream = wire(
        readouts(50, 2, 16), readouts(20, 3, 16, first=50), waveform(), readouts(30, 3, 16, first=70), Close()
    )
    blocks = list(reader_of(stream))
    assert [len(block) for block in blocks if isinstance(block, Readouts)] == [50, 20, 30]
    assert isinstance(blocks[2], Waveform)


def test_run_is_split_where_only_one_count_differs():
    """Equal sizes are not equal shapes: 2 coils of 6 samples need as many bytes as 6 coils of 2."""
    stream = wire(
        readouts(2, 2, 6),
        readouts(2, 6, 2),
        readouts(2, 3, 4),
        readouts(1, 1, 4, dimensions=2),
        readouts(1, 2, 4),
        Close(),
    )
    assert [block.data.shape for block in reader_of(stream)] == [(2, 2, 6), (2, 6, 2), (2, 3, 4), (1, 1, 4), (1, 2, 4)]


def test_control_message_that_looks_like_a_readout_does_not_join_the_run():
    """All but id and length of a TEXT may be the bytes of a readout."""
    readout = wire(readouts(1, 1, 4))
    text = struct.pack("<HI", 5, len(readout) - 6) + readout[6:]
    kinds = [type(message) for message in reader_of(readout + text + readout + wire(Close()))]
    assert kinds == [Readouts, Text, Readouts]


@pytest.mark.parametrize("sizes", [[1], [2, 3, 5, 7], [340, 1]])
@pytest.mark.parametrize("chunk", [16, 4096])
def test_session_in_small_pieces(sizes, chunk):
    messages = [message for message in ONE_OF_EACH if not isinstance(message, Close)]
    stream = wire(*messages, Close())
    again = list(Reader(dribble(stream, sizes), chunk_bytes=chunk))
    assert wire(*again, Close()) == stream


def test_blocks_pick_readouts():
    block = readouts(6, 2, 8, dimensions=2)
    some = block[block.headers["scan_counter"] % 2 == 1]
    assert some.headers["scan_counter"].tolist() == [1, 3, 5]
    assert np.array_equal(some.data, block.data[1::2])
    assert np.array_equal(some.trajectory, block.trajectory[1::2])
    assert readouts(4)[1:3].trajectory is None


# --- streams that end or lie ------------------------------------------------------------------------------------------

SHORT_SESSION = [
    ConfigText("<configuration/>"),
    Header("<ismrmrdHeader/>"),
    Text("go"),
    Query(1, "q"),
    readouts(2, 2, 3),
    waveform(1, 2),
    readouts(1, 1, 2, dimensions=1),
    image(shape=(1, 1, 2, 2)),
    Response(1, "r"),
    Error("e"),
]
CONTAINERS = [
    ReconData(((buffered(), None),)),
    image_array(),
    bucket(),
]


def assert_ends_early(stream, reader):
    with pytest.raises(EndOfStreamError) as caught:
        list(reader)
    assert f"after {len(stream)} bytes" in str(caught.value)
    assert "CLOSE" in str(caught.value)


@pytest.mark.parametrize("chunk", [64, 1 << 16])
def test_stream_cut_anywhere(chunk):
    stream = wire(*SHORT_SESSION, Close())
    for length in range(len(stream)):
        assert_ends_early(stream[:length], reader_of(stream[:length], chunk_bytes=chunk))


def test_config_name_cut_anywhere():
    stream = wire(ConfigFile("name"), Close())
    for length in range(len(stream)):
        assert_ends_early(stream[:length], reader_of(stream[:length], chunk_bytes=2048))


@pytest.mark.parametrize("message", CONTAINERS, ids=lambda message: type(message).__name__)
def test_container_cut_anywhere(message):
    stream = wire(message, Close())
    for length in [*range(700), *range(700, len(stream), 7), len(stream) - 1]:
        assert_ends_early(stream[:length], reader_of(stream[:length], chunk_bytes=1 << 14))


def test_end_of_stream_says_where():
    with pytest.raises(EndOfStreamError, match="within a readout after 100 bytes"):
        reader_of(wire(readouts())[:100]).read()
    with pytest.raises(EndOfStreamError, match=r"id 3 \(HEADER\)"):
        reader_of(wire(Header("<h/>"))[:7]).read()


@pytest.mark.parametrize("number", [0, 9, 1012, 1018, 1051, 65535])
def test_unknown_id(number):
    reader = reader_of(wire(Text("hello")) + struct.pack("<H", number) + bytes(100))
    assert reader.read() == Text("hello")
    with pytest.raises(ProtocolError, match=f"unknown message id {number} after 11 bytes") as caught:
        reader.read()
    assert not isinstance(caught.value, EndOfStreamError)


def old_image(number, pixel, attributes=None):
    header = np.zeros((), IMAGE_HEADER)
    header["matrix_size"], header["channels"] = (5, 4, 1), 2
    text = b"" if attributes is None else struct.pack("<Q", len(attributes)) + attributes
    return struct.pack("<H", number) + header.tobytes() + text + bytes(40 * pixel)


UNUSED = {
    "array": struct.pack("<4H2Q", 1030, 7, 0, 2, 3, 5) + bytes(3 * 5 * 8),
    "empty array": struct.pack("<4HQ", 1030, 1, 0, 1, 0),
    "array without axes": struct.pack("<4H", 1030, 2, 0, 0) + bytes(2),
    "large array": struct.pack("<4H3Q", 1030, 6, 0, 3, 64, 64, 16) + bytes(8 << 16),
    "dependency": struct.pack("<HQ", 1019, 4) + b"<a/>",
    **{f"image {number}": old_image(number, pixel) for number, pixel in ((1009, 8), (1010, 4), (1011, 2), (1020, 2))},
    **{
        f"image {number} with attributes": old_image(number, pixel, b"<ismrmrdMeta/>")
        for number, pixel in ((1015, 8), (1016, 4), (1017, 2), (1021, 2))
    },
}


@pytest.mark.parametrize("unused", UNUSED.values(), ids=UNUSED)
def test_messages_that_are_not_used_are_passed_over(unused):
    stream = unused + wire(Text("a")) + unused + unused + wire(readouts(2), Text("b")) + unused + wire(Close())
    reader = reader_of(stream, chunk_bytes=1 << 14)
    assert [type(message).__name__ for message in reader] == ["Text", "Readouts", "Text"]
    assert_ends_early(unused[:-1], reader_of(unused[:-1], chunk_bytes=1 << 14))


def test_what_is_passed_over_takes_no_memory():
    grown = []
    stream = UNUSED["large array"] + wire(Text("a"))
    source = io.BytesIO(stream)
    assert Reader(source.readinto, chunk_bytes=1 << 12, grows=grown.append).read() == Text("a")
    assert grown == []


def test_array_of_unknown_type():
    with pytest.raises(ProtocolError, match="data type 9, expected 1 to 8"):
        reader_of(struct.pack("<4HQ", 1030, 9, 0, 1, 1) + bytes(8)).read()


def u8(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def with_header(dtype, **fields):
    header = np.zeros((), dtype)
    for name, value in fields.items():
        header[name] = value
    return header.tobytes()


def forged():
    """Messages that claim far more than a scan can hold."""
    huge8 = (2**64 - 1, 2**63, 32 << 30, 2**62)
    for number in (2, 3, 5):
        for length in (0xFFFFFFFF, 0x80000000, 1 << 30):
            yield f"text{number}-{length:x}", struct.pack("<HI", number, length)
    for length in huge8:
        yield f"query-{length:x}", struct.pack("<H", 6) + u8(0, 1, length)
        yield f"response-{length:x}", struct.pack("<H", 7) + u8(1, length)
        yield f"error-{length:x}", struct.pack("<H", 8) + u8(length)
        yield (
            f"attributes-{length:x}",
            struct.pack("<H", 1022) + with_header(IMAGE_HEADER, data_type=5, channels=1, matrix_size=1) + u8(length),
        )
        yield f"recon-data-{length:x}", struct.pack("<H", 1023) + u8(length)
        yield f"dimensions-{length:x}", struct.pack("<H", 1023) + u8(1, length)
        yield f"extent-{length:x}", struct.pack("<H", 1023) + u8(1, 1, length)
        yield f"zero-extent-{length:x}", struct.pack("<H", 1023) + u8(1, 2, 0, length)
        yield f"extents-{length:x}", struct.pack("<H", 1023) + u8(1, 3, 2, length, length)
        yield f"image-array-{length:x}", struct.pack("<H", 1024) + u8(1, length)
        yield f"metas-{length:x}", struct.pack("<H", 1024) + u8(0, 0, length)
        yield f"meta-{length:x}", struct.pack("<H", 1024) + u8(0, 0, 1, length)
        yield f"waveforms-{length:x}", struct.pack("<H", 1024) + u8(0, 0, 0) + b"\1" + u8(length)
        for position in (*range(8), 10, 11, 12):
            sizes = [0] * 13
            sizes[position] = length
            yield f"bucket{position}-{length:x}", struct.pack("<H", 1050) + u8(*sizes)
        yield f"bucket-stats-{length:x}", struct.pack("<H", 1050) + bytes(13 * 8) + u8(length)
        yield f"bucket-stat-{length:x}", struct.pack("<H", 1050) + bytes(13 * 8) + u8(1, length)
    yield (
        "image",
        struct.pack("<H", 1022) + with_header(IMAGE_HEADER, data_type=8, channels=65535, matrix_size=65535) + u8(0),
    )
    yield "waveform", struct.pack("<H", 1026) + with_header(WAVEFORM_HEADER, channels=65535, number_of_samples=65535)
    shape = {"number_of_samples": 65535, "active_channels": 65535}
    yield "readout", struct.pack("<H", 1008) + with_header(ACQUISITION_HEADER, **shape)
    shape = {"number_of_samples": 65535, "trajectory_dimensions": 65535}
    yield "trajectory", struct.pack("<H", 1008) + with_header(ACQUISITION_HEADER, **shape)


FORGED = dict(forged())


@pytest.mark.parametrize("name", FORGED)
def test_forged_length_is_refused_before_memory_is_taken(name):
    """The sender is still there and silent: whoever believes the claim would wait for ever, here it fails."""
    source = io.BytesIO(FORGED[name])

    def readinto(view):
        count = source.readinto(view)
        assert count, "the reader waits for what was only claimed"
        return count

    reader = Reader(readinto, chunk_bytes=4096)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            reader.read()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, EndOfStreamError)
    assert taken < 1 << 20


def test_limits_are_inclusive_and_adjustable():
    limits = Limits(text_bytes=4)
    assert reader_of(wire(Text("1234")), limits=limits).read() == Text("1234")
    with pytest.raises(ProtocolError, match="at most 4 are believed"):
        reader_of(wire(Text("12345")), limits=limits).read()


@pytest.mark.parametrize("flag", [AcquisitionFlag.COMPRESSION_ZFP, AcquisitionFlag.COMPRESSION_NHLBI])
def test_compressed_readout_is_refused(flag):
    plain = readouts(2, 1, 8)
    with pytest.raises(ProtocolError, match="compressed"):
        list(reader_of(wire(plain, readouts(1, 1, 8, flags=(flag,)), Close())))


@given(garbage=st.binary(max_size=2000), number=st.sampled_from([int(number) for number in MessageId]))
@settings(max_examples=300)
def test_garbage_never_ends_in_another_error(garbage, number):
    limits = Limits(1 << 16, 1 << 20, 1 << 20, 1 << 10)
    reader = reader_of(struct.pack("<H", number) + garbage, chunk_bytes=4096, limits=limits)
    try:
        for message in reader:
            wire(message)
    except ProtocolError as error:
        assert len(str(error)) > 20  # noqa: PT017 - many a byte may be changed without harm


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), which=st.integers(0, len(ONE_OF_EACH) - 1))
@settings(max_examples=300)
def test_one_wrong_byte_never_ends_in_another_error(position, value, which):
    stream = bytearray(wire(ONE_OF_EACH[which], Close()))
    stream[position % len(stream)] = value
    limits = Limits(1 << 16, 1 << 20, 1 << 20, 1 << 10)
    try:
        for message in reader_of(bytes(stream), chunk_bytes=4096, limits=limits):
            wire(message)
    except ProtocolError as error:
        assert len(str(error)) > 20  # noqa: PT017 - many a byte may be changed without harm


# --- writing ----------------------------------------------------------------------------------------------------------


class Wire:
    """Stands for a socket's sendmsg: takes at most so many bytes a call."""

    def __init__(self, most=None):
        self.most = most
        self.calls = []
        self.received = bytearray()

    def sendmsg(self, buffers):
        assert len(buffers) <= 1024, "beyond IOV_MAX the call fails"
        assert all(len(buffer) for buffer in buffers)
        data = b"".join(bytes(buffer) for buffer in buffers)[: self.most]
        self.calls.append(len(data))
        self.received += data
        return len(data)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=IDS)
def test_one_call_per_message(message):
    line = Wire()
    writer = Writer(line.sendmsg)
    writer.send(message)
    assert line.received == wire(message)
    assert line.calls == [len(wire(message))] == [writer.bytes_written]


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=IDS)
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_partial_sends(message, most):
    line = Wire(most)
    writer = Writer(line.sendmsg)
    writer.send(message)
    assert line.received == wire(message)
    assert len(line.calls) == math.ceil(writer.bytes_written / most)


@pytest.mark.parametrize("most", [None, 1234])
def test_more_buffers_than_one_call_takes(most):
    message = image_array(attributes=tuple(f"<a n='{i}'/>" for i in range(900)))
    assert len(encode(message)) > 1500
    line = Wire(most)
    Writer(line.sendmsg).send(message)
    assert line.received == wire(message)


def test_writing_views_of_a_received_block():
    stream = wire(readouts(9, 2, 7, dimensions=2), Close())
    block = reader_of(stream).read()
    line = Wire()
    writer = Writer(line.sendmsg)
    writer.send(block[::2])
    writer.send(block[1::2])
    sent = list(reader_of(bytes(line.received) + wire(Close())))
    assert np.array_equal(
        np.concatenate([part.data for part in sent]), np.concatenate([block.data[::2], block.data[1::2]])
    )


def test_over_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer, reader = Writer.of_socket(ours), Reader.of_socket(theirs)
        for message in SHORT_SESSION:
            writer.send(message)
            again = reader.read()
            assert wire(again) == wire(message)
        writer.send(Header(header_xml()))
        writer.send(Close())
        assert list(reader) == [Header(header_xml())]
        assert reader.bytes_read == writer.bytes_written
        ours.close()
        with pytest.raises(EndOfStreamError):
            reader.read()


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (1, 4, 0, 2)])
def test_joined_headers_are_those_of_the_parts_and_may_be_written(sizes):
    parts = [readouts(size, first=10 * size).headers for size in sizes]
    joined = join_headers(parts)
    expected = np.concatenate([np.empty(0, ACQUISITION_HEADER), *parts])
    assert joined.dtype == expected.dtype
    np.testing.assert_array_equal(joined, expected)
    joined["version"] = 7
    assert all((part["version"] == 1).all() for part in parts)
