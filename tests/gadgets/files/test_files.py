import dataclasses
import errno
import itertools
import re
import shutil
import struct
import subprocess
import sys
import textwrap

import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets.files.hdf5 import damage_of
from gadgets.files.images import ImageFile, read_header, read_images, read_incomplete
from gadgets.files.raw import open_scan, write_scan
from gadgets.wire.framing import EndOfStreamError
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Query,
    Readouts,
    Text,
    Waveform,
)
from gadgets.wire.writer import encode
from recon_core.errors import CinestreamError, DataError, HeaderError, ResourceError, SettingsError
from tests.helpers.builders import header_xml, readouts, waveform
from tests.helpers.paths import REPOSITORY, SHARED, existing

SHARED_DATA = SHARED / "data"
HEADER = header_xml(version=2)


def wire(*messages):
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


def read_all(path, group="dataset"):
    with open_scan(path, group) as scan:
        return scan.header, list(scan.items)


def scan_items():
    """Readouts of four shapes with waveforms of two kinds between them, in order of time."""
    return [
        readouts(3, 2, 12, flags=(AcquisitionFlag.NOISE,), first=0),
        waveform(2, 5, time_stamp=1009, seed=1),
        readouts(5, 2, 8, first=3, kspace_encode_step_1=range(5), phase=1),
        readouts(2, 3, 8, first=8, user=np.arange(8)),
        waveform(1, 9, time_stamp=1038, waveform_id=2, seed=2),
        waveform(2, 5, time_stamp=1039, seed=3),
        readouts(4, 1, 8, dimensions=2, first=10),
    ]


def write_with_ismrmrd(path, header, items, group="dataset"):
    """Write as ismrmrd-python does, one readout at a time."""
    with ismrmrd.Dataset(str(path), group) as dataset:
        dataset.write_xml_header(header.encode())
        for item in items:
            if isinstance(item, Waveform):
                head = ismrmrd.WaveformHeader.from_buffer_copy(item.header.tobytes())
                dataset.append_waveform(ismrmrd.Waveform(head, item.data))
                continue
            for i in range(len(item)):
                head = ismrmrd.AcquisitionHeader.from_buffer_copy(item.headers[i].tobytes())
                trajectory = None if item.trajectory is None else item.trajectory[i]
                dataset.append_acquisition(ismrmrd.Acquisition(head, item.data[i], trajectory))


def image(dtype="<f4", shape=(1, 1, 6, 8), series=1, index=1, attributes="<ismrmrdMeta/>"):
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["image_series_index"], header["image_index"] = 1, series, index
    header["data_type"] = next(number for number, known in IMAGE_DTYPES.items() if known == np.dtype(dtype))
    header["channels"], header["matrix_size"], header["field_of_view"] = shape[0], shape[:0:-1], (300, 200, 8)
    header["attribute_string_len"] = len(attributes)
    generator = np.random.default_rng(index)
    data = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    return Image(header[()], (data if np.dtype(dtype).kind == "c" else 100 * np.abs(data)).astype(dtype), attributes)


# --- raw scans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_scan, write_with_ismrmrd], ids=["ours", "ismrmrd"])
def test_scan_is_read_as_it_was_written(write, tmp_path):
    path = tmp_path / "scan.h5"
    write(path, HEADER, scan_items())
    with open_scan(path) as scan:
        assert (scan.header, scan.readouts) == (HEADER, 14)
        assert wire(*scan.items) == wire(*scan_items())


def test_ours_is_read_by_ismrmrd(tmp_path):
    path = tmp_path / "scan.h5"
    assert write_scan(path, HEADER, scan_items(), group="measurement") == 14
    with ismrmrd.Dataset(str(path), "measurement", mode="r") as dataset:
        assert dataset.read_xml_header().decode() == HEADER
        assert dataset.number_of_acquisitions() == 14
        assert dataset.number_of_waveforms() == 3
        blocks = [item for item in scan_items() if isinstance(item, Readouts)]
        singles = [block[i : i + 1] for block in blocks for i in range(len(block))]
        for i, single in enumerate(singles):
            found = dataset.read_acquisition(i)
            assert bytes(found.getHead()) == single.headers.tobytes()
            assert np.array_equal(found.data, single.data[0])
            if single.trajectory is not None:
                assert np.array_equal(found.traj, single.trajectory[0])
        for i, wave in enumerate(item for item in scan_items() if isinstance(item, Waveform)):
            found = dataset.read_waveform(i)
            assert np.array_equal(found.data, wave.data)
            assert (found.waveform_id, found.time_stamp) == (wave.header["waveform_id"], wave.header["time_stamp"])


def test_both_files_hold_the_same_types(tmp_path):
    write_scan(tmp_path / "ours.h5", HEADER, scan_items())
    write_with_ismrmrd(tmp_path / "theirs.h5", HEADER, scan_items())
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        assert set(ours["dataset"]) == set(theirs["dataset"]) == {"xml", "data", "waveforms"}
        for name in ("data", "waveforms"):
            mine, other = ours["dataset"][name].dtype, theirs["dataset"][name].dtype
            assert mine["head"] == other["head"]
            assert mine.names == other.names
            assert len(ours["dataset"][name]) == len(theirs["dataset"][name])


def test_readouts_without_data_are_written_too(tmp_path):
    path = tmp_path / "scan.h5"
    sent = [readouts(2, 2, 0), readouts(0, 2, 8), readouts(3, 0, 8, first=2), readouts(1, 2, 8, first=5)]
    assert write_scan(path, HEADER, sent) == 6
    assert wire(*read_all(path)[1]) == wire(*sent)


def test_long_scan_comes_in_few_blocks(tmp_path):
    path = tmp_path / "scan.h5"
    sent = readouts(3000, 2, 16)
    write_scan(path, HEADER, [sent[:1000], sent[1000:]])
    _, blocks = read_all(path)
    assert len(blocks) <= 3
    assert wire(*blocks) == wire(sent)


def test_scan_without_readouts(tmp_path):
    path = tmp_path / "scan.h5"
    assert write_scan(path, HEADER, [Text("nothing came")]) == 0
    with open_scan(path) as scan:
        assert scan.readouts == 0
        assert list(scan.items) == []


def test_scan_of_waveforms_only(tmp_path):
    write_scan(tmp_path / "scan.h5", HEADER, [waveform(time_stamp=3), waveform(time_stamp=2)])
    _, items = read_all(tmp_path / "scan.h5")
    assert [item.header["time_stamp"] for item in items] == [3, 2]


def test_many_waveforms(tmp_path):
    sent = [waveform(1, 2, time_stamp=1000 + i, seed=i) for i in range(600)]
    write_scan(tmp_path / "scan.h5", HEADER, [*sent, readouts(200)])
    _, items = read_all(tmp_path / "scan.h5")
    assert wire(*(item for item in items if isinstance(item, Waveform))) == wire(*sent)


@pytest.mark.parametrize(
    ("stamps", "waves", "expected"),
    [
        ([10, 20, 30], [], "rrr"),
        ([10, 20, 30], [5], "wrrr"),
        ([10, 20, 30], [20], "rrwr"),
        ([10, 20, 30], [19], "rwrr"),
        ([10, 20, 30], [30, 31], "rrrww"),
        ([10, 20, 30], [9, 9, 15, 25, 40], "wwrwrwrw"),
        ([10, 30, 20, 40], [25], "rwrrr"),
        ([30, 10], [20], "wrr"),
        ([], [3, 4], "ww"),
    ],
)
def test_waveforms_come_before_the_first_later_readout(stamps, waves, expected, tmp_path):
    block = readouts(len(stamps), 1, 4, acquisition_time_stamp=stamps)
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [block, *(waveform(1, 1, time_stamp=stamp) for stamp in waves)])
    _, items = read_all(path)
    assert "".join("w" if isinstance(item, Waveform) else "r" * len(item) for item in items) == expected
    assert all(len(item) for item in items if isinstance(item, Readouts))
    found = [stamp for item in items if isinstance(item, Readouts) for stamp in item.headers["acquisition_time_stamp"]]
    assert found == stamps


def test_groups(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(1)], group="first")
    write_with_ismrmrd(path, HEADER, [readouts(2)], group="second")
    with h5py.File(path, "a") as file:
        file["images/data"] = np.zeros(3)
        file["loose"] = np.zeros(3)
        file.create_group("empty")
    assert len(read_all(path, "first")[1][0]) == 1
    assert sum(map(len, read_all(path, "second")[1])) == 2
    for missing in ("dataset", "images", "loose", "empty", "first/data"):
        with pytest.raises(DataError, match=f"no raw data in group '{missing}'; groups with raw data: first, second"):
            read_all(path, missing)


@pytest.mark.parametrize("group", ["2026-11-28 10:00:00", "exams/one", "/"])
def test_only_group_needs_no_name(group, tmp_path):
    path, images = tmp_path / "scan.h5", tmp_path / "images.h5"
    write_scan(path, HEADER, [readouts(2)], group=group)
    assert wire(*read_all(path)[1]) == wire(*read_all(path, group)[1]) == wire(readouts(2))
    with ImageFile(images, group, header=HEADER) as file:
        file.append(image())
    for given in ((), (group,)):
        assert wire(*read_images(images, *given)[1]) == wire(image())
        assert read_header(images, *given) == HEADER
    with pytest.raises(DataError, match=f"in group 'mine'.*choose it with --group {re.escape(group)}"):
        read_images(images, "mine")


def test_groups_of_images_are_named(tmp_path):
    path = tmp_path / "images.h5"
    for group in ("first", "second"):  # as the stock client adds its runs to a file
        with ismrmrd.Dataset(str(path), group) as dataset:
            dataset.append_image("image_0", ismrmrd.Image.from_array(np.ones((4, 4), np.float32)))
    for read in (read_images, read_header):
        with pytest.raises(DataError, match="groups with images: first, second; choose one with --group"):
            read(path)
    assert list(read_images(path, "second")) == [0]


def as_stored(kind, values):
    """Complex64 values as another writer stores them, ``(row,)`` of arrays, and the type for the data set."""
    if kind == "complex":
        rows, base = [row.astype(np.complex128) for row in values], np.dtype(np.complex128)
    elif isinstance(kind, list):
        base = np.dtype(kind)
        rows = [np.empty(len(row), base) for row in values]
        for row, value in zip(rows, values, strict=True):
            row[base.names[0]], row[base.names[1]] = value.real, value.imag
    else:
        base = np.dtype(kind)
        rows = [row.view(np.float32).astype(base) for row in values]
    return rows, h5py.vlen_dtype(base)


KINDS = [
    "<f8",
    ">f4",
    ">f8",
    "<i2",
    ">i4",
    "<f2",
    "complex",
    [("real", "<f8"), ("imag", "<f8")],
    [("r", ">f4"), ("i", ">f4")],
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_data_of_any_number_type_and_byte_order(kind, tmp_path):
    whole = np.random.default_rng(0).integers(-99, 99, (3, 2, 8, 2)).astype(np.float32).view(np.complex64)[..., 0]
    block = readouts(data=whole, dimensions=2)
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [block])
    rows, base = as_stored(kind, whole.reshape(3, -1))
    with h5py.File(path, "a") as file:
        old = file["dataset/data"][()]
        del file["dataset/data"]
        swapped = ACQUISITION_HEADER.newbyteorder(">")
        kinds = [("head", swapped), ("traj", h5py.vlen_dtype(np.dtype(">f8"))), ("data", base)]
        new = np.empty(3, kinds)
        new["head"] = old["head"].astype(swapped)
        for i in range(3):
            new["traj"][i], new["data"][i] = old["traj"][i].astype(">f8"), rows[i]
        file["dataset"].create_dataset("data", data=new, dtype=np.dtype(kinds))
    assert wire(*read_all(path)[1]) == wire(block)


def test_data_without_a_trajectory_field_and_of_fixed_length(tmp_path):
    block = readouts(3, 2, 8)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        rows = np.zeros(3, [("head", ACQUISITION_HEADER), ("data", "<f4", (32,))])
        rows["head"], rows["data"] = block.headers, block.data.reshape(3, -1).view(np.float32)
        file["dataset/data"] = rows
        file["dataset/xml"] = HEADER
    assert wire(*read_all(path)[1]) == wire(block)


def test_damaged_waveforms_lose_no_readout(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(3)])
    with h5py.File(path, "a") as file:
        file["dataset/waveforms"] = np.zeros(3)
    found = []
    with pytest.raises(DataError, match="damaged"), open_scan(path) as scan:  # noqa: PT012
        for item in scan.items:
            found.append(item)  # noqa: PERF402
    assert wire(*found) == wire(readouts(3))


def test_a_row_that_claims_gigabytes_is_damage(tmp_path):
    """HDF5 would allocate them; the rows before are read."""
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(100, 2, 8), waveform()])
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        data = file["dataset/data"]
        place = data.id.get_chunk_info(1).byte_offset + 3 * 372 + data.id.get_type().get_member_offset(2)
    assert content[place : place + 4] == struct.pack("<I", 32)
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(content)
    found = []
    with pytest.raises(DataError, match="row 67 of /dataset/data"), open_scan(path) as scan:  # noqa: PT012
        for item in scan.items:
            found.append(item)  # noqa: PERF402
    assert sum(len(item) for item in found if isinstance(item, Readouts)) == 67


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("number", "size"), [(0, 0), (7, 2**64 - 16), (7, 2**63)])
def test_a_heap_that_goes_round_in_circles_is_damage(number, size, tmp_path):
    """HDF5 would look for its end for ever."""
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(100, 2, 8)])
    content = bytearray(path.read_bytes())
    heap = content.rindex(b"GCOL")
    content[heap + 16 : heap + 32] = struct.pack("<H6xQ", number, size)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"row \d+ of /dataset/data claims more than the file has"):
        read_all(path)


def test_rows_that_were_never_written_are_damage(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(3)])
    with h5py.File(path, "a") as file:
        file["dataset/data"].resize((1 << 40,))
    with pytest.raises(DataError, match="announces 1099511627776 readouts and holds 64"):
        read_all(path)


@pytest.mark.parametrize("texts", [None, [], HEADER.encode(), [HEADER.encode()], np.bytes_(HEADER.encode())])
def test_header_of_any_storage(tmp_path, texts):
    path = tmp_path / "scan.h5"
    write_scan(path, "", [readouts(1)])
    with h5py.File(path, "a") as file:
        del file["dataset/xml"]
        if texts is not None:
            kind = None if isinstance(texts, np.bytes_) else h5py.string_dtype()
            file.create_dataset("dataset/xml", data=texts, dtype=kind)
    if texts is None or len(texts) == 0:
        with pytest.raises(HeaderError, match="no ISMRMRD header"):
            read_all(path)
    else:
        assert read_all(path)[0] == HEADER


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_a_header_of_single_bytes(kind, tmp_path):
    write_scan(tmp_path / "scan.h5", HEADER, scan_items())
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        del file["dataset/xml"]
        file["dataset/xml"] = np.frombuffer(HEADER.replace("?>", "?><!-- µ -->").encode() + b"\0", np.uint8).view(kind)
    header, _ = read_all(tmp_path / "scan.h5")
    assert header == HEADER.replace("?>", "?><!-- µ -->")


@pytest.mark.parametrize(
    ("unset", "available", "said"),
    [
        (("number_of_samples",), 0, 0),
        (("active_channels",), 0, 0),
        (("active_channels", "number_of_samples"), 3, 0),
        (("active_channels", "number_of_samples"), 0, 3),
    ],
)
def test_counts_that_were_left_at_0_follow_from_the_length(unset, available, said, tmp_path):
    system = f"<acquisitionSystemInformation><receiverChannels>{said}</receiverChannels></acquisitionSystemInformation>"
    header = header_xml(before=system if said else "")
    written = readouts(5, 3, 8)
    write_scan(tmp_path / "scan.h5", header, [written])
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        rows = file["dataset/data"][()]
        rows["head"]["available_channels"] = available
        for name in unset:
            rows["head"][name] = 0
        file["dataset/data"][...] = rows
    _, blocks = read_all(tmp_path / "scan.h5")
    np.testing.assert_array_equal(np.concatenate([block.data for block in blocks]), written.data)
    for block in blocks:
        assert set(block.headers["active_channels"]) == {3}
        assert set(block.headers["number_of_samples"]) == {8}


@pytest.mark.parametrize(("samples", "available"), [(0, 0), (0, 5), (7, 0)])
def test_counts_that_follow_from_nothing_leave_an_empty_readout(samples, available, tmp_path):
    write_scan(tmp_path / "scan.h5", HEADER, [readouts(2, 3, 8)])
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        rows = file["dataset/data"][()]
        rows["head"]["available_channels"], rows["head"]["active_channels"] = available, 0
        rows["head"]["number_of_samples"] = samples
        file["dataset/data"][...] = rows
    _, blocks = read_all(tmp_path / "scan.h5")
    assert sum(len(block) for block in blocks) == 2
    assert all(block.data.size == 0 for block in blocks)


def test_headers_of_another_layout_are_matched_by_name(tmp_path):
    path = tmp_path / "scan.h5"
    sent = readouts(4, 2, 8, phase=range(4), position=(1, 2, 3))
    shuffled = [name for name in reversed(ACQUISITION_HEADER.names) if name != "user_float"]
    layout = np.dtype([(name, ACQUISITION_HEADER[name]) for name in shuffled], align=True)
    values = h5py.vlen_dtype(np.float32)
    rows = np.empty(4, [("head", layout), ("traj", values), ("data", values)])
    for name in shuffled:
        rows["head"][name] = sent.headers[name]
    for i in range(4):
        rows["data"][i] = sent.data[i].view(np.float32).reshape(-1)
        rows["traj"][i] = np.empty(0, np.float32)
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = [HEADER]
        file["dataset/data"] = rows
    header, blocks = read_all(path)
    assert header == HEADER
    assert wire(*blocks) == wire(sent)


# --- damaged files ----------------------------------------------------------------------------------------------------


def change_row(path, dataset, row, **fields):
    with h5py.File(path, "a") as file:
        rows = file["dataset"][dataset][row : row + 1]
        for name, value in fields.items():
            rows[name][0] = value
        file["dataset"][dataset][row : row + 1] = rows


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_readout_of_wrong_length_becomes_an_empty_one(length, tmp_path):
    path = tmp_path / "scan.h5"
    sent = readouts(5, 2, 8)
    write_scan(path, HEADER, [sent])
    change_row(path, "data", 2, data=np.ones(length, np.float32))
    _, blocks = read_all(path)
    headers = np.concatenate([block.headers for block in blocks])
    assert headers["scan_counter"].tolist() == [0, 1, 2, 3, 4]
    by_counter = {block.headers["scan_counter"][i]: block.data[i] for block in blocks for i in range(len(block))}
    assert by_counter.pop(2).shape == (2, 0)
    assert all(np.array_equal(data, sent.data[counter]) for counter, data in by_counter.items())


@pytest.mark.parametrize("length", [0, 15, 17])
@pytest.mark.parametrize("row", [0, 2])
def test_trajectory_of_wrong_length_is_left_out(length, row, tmp_path):
    path = tmp_path / "scan.h5"
    sent = readouts(5, 2, 8, dimensions=2)
    write_scan(path, HEADER, [sent])
    change_row(path, "data", row, traj=np.ones(length, np.float32))
    _, blocks = read_all(path)
    assert np.array_equal(np.concatenate([block.data for block in blocks]), sent.data)
    assert [block.headers["scan_counter"].tolist() for block in blocks if block.trajectory is None] == [[row]]


@pytest.mark.parametrize("length", [0, 9, 11])
def test_waveform_of_wrong_length_becomes_an_empty_one(length, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [waveform(2, 5), waveform(2, 5, seed=1)])
    change_row(path, "waveforms", 0, data=np.ones(length, np.uint32))
    _, waves = read_all(path)
    assert waves[0].data.shape == (2, 0)
    assert np.array_equal(waves[1].data, waveform(2, 5, seed=1).data)


@pytest.mark.parametrize("content", [b"", b"h", b"hello world, this is text", b"\x89HDF\r\n\x1a\n", b"\0" * 5000])
def test_what_is_no_scan(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises((HeaderError, ResourceError), match=r"notes\.txt"):
        read_all(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ResourceError, match="No such file"):
        read_all(tmp_path / "missing.h5")
    with pytest.raises(ResourceError, match="cannot read"):
        read_all(tmp_path)


def test_truncated_hdf5(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, scan_items())
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(CinestreamError, match=r"scan\.h5"):
            read_all(path)


def test_damaged_hdf5_says_so(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [*(readouts(40, 2, 64, first=40 * i) for i in range(9)), waveform()])
    whole = path.read_bytes()
    heaps = [found.start() for found in re.finditer(b"GCOL", whole)]  # where HDF5 keeps rows of any length
    assert len(heaps) > 3
    for begin in heaps:
        path.write_bytes(whole[:begin] + b"JUNK" + whole[begin + 4 :])
        with pytest.raises(DataError, match=r"scan\.h5 is damaged or laid out otherwise: /dataset/"):
            read_all(path)


# --- streams of messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "front",
    [
        (),
        (ConfigFile("cg_sense"),),
        (ConfigText("<configuration/>"),),
        (Query(1, "cinestream::version"), ConfigFile("cg_sense"), Text("hello"), Query(2, "x")),
    ],
    ids=["bare", "name", "text", "talk"],
)
def test_stream_file(front, tmp_path):
    path = tmp_path / "scan.mrd"
    path.write_bytes(wire(*front, Header(HEADER), *scan_items(), Close()) + b"rubbish behind CLOSE")
    with open_scan(path, "group is of no matter") as scan:
        assert (scan.header, scan.readouts) == (HEADER, None)
        assert wire(*scan.items) == wire(*scan_items())


@pytest.mark.parametrize("more", [wire(Header(HEADER)), wire(Close(), readouts(1)), wire(ConfigFile("cg_sense"))])
def test_a_stream_file_that_goes_on_behind_its_scan_says_so(more, tmp_path):
    path = tmp_path / "scan.mrd"
    path.write_bytes(wire(Header(HEADER), *scan_items(), Close()) + more)
    with open_scan(path) as scan:
        for item in scan_items():
            assert type(next(scan.items)) is type(item)
        with pytest.raises(DataError, match="only the first scan is read"):
            next(scan.items)
    path.write_bytes(wire(Header(HEADER), *scan_items(), Close(), Close()))
    assert len(read_all(path)[1]) == len(scan_items())


def test_truncated_stream_gives_what_it_holds(tmp_path):
    path = tmp_path / "scan.mrd"
    path.write_bytes(wire(Header(HEADER), readouts(5, 2, 8))[:-1])
    with open_scan(path) as scan:
        assert len(next(scan.items)) == 4
        with pytest.raises(EndOfStreamError):
            next(scan.items)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wire(ConfigFile("a")), "the stream ended"),
        (wire(ConfigFile("a"), Close()), "got Close first"),
        (wire(readouts()), "got Readouts first"),
        (wire(Header(HEADER))[:100], "the stream ended within"),
        (struct.pack("<HI", 3, 0xFFFFFFFF), "4294967295 bytes of text"),
    ],
)
def test_stream_without_header(content, message, tmp_path):
    path = tmp_path / "scan.mrd"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=rf"scan.mrd is neither.*{message}"):
        read_all(path)


def test_file_to_file(tmp_path):
    """HDF5 to a stream and back loses nothing."""
    write_scan(tmp_path / "a.h5", HEADER, scan_items())
    header, items = read_all(tmp_path / "a.h5")
    (tmp_path / "b.mrd").write_bytes(wire(Header(header), *items, Close()))
    with open_scan(tmp_path / "b.mrd") as scan:
        write_scan(tmp_path / "c.h5", scan.header, scan.items)
    assert wire(*read_all(tmp_path / "c.h5")[1]) == wire(*scan_items())


# --- foreign files ----------------------------------------------------------------------------------------------------


def test_shepp_logan_of_the_ismrmrd_tools(tmp_path):
    tool = shutil.which("ismrmrd_generate_cartesian_shepp_logan")
    if tool is None:
        pytest.skip("the ISMRMRD tools are not installed")
    path = tmp_path / "shepp.h5"
    command = [tool, "-m", "32", "-c", "3", "-r", "2", "-C", "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    header, blocks = read_all(path)
    assert "ismrmrdHeader" in header
    with ismrmrd.Dataset(str(path), mode="r") as dataset:
        singles = [block[i : i + 1] for block in blocks for i in range(len(block))]
        assert len(singles) == dataset.number_of_acquisitions() > 64
        for i in range(0, len(singles), 9):
            found = dataset.read_acquisition(i)
            assert bytes(found.getHead()) == singles[i].headers.tobytes()
            assert np.array_equal(found.data, singles[i].data[0])


def test_real_files(tmp_path):
    existing(SHARED_DATA)
    files = sorted(SHARED_DATA.glob("ismrmrd_real/*.h5"), key=lambda path: path.stat().st_size)[:3]
    files += [path for path in [SHARED_DATA / "semi_real_cine" / "cine_mini_scd101_4ch_10f_R2.h5"] if path.exists()]
    for path in files:
        with open_scan(path) as scan, h5py.File(path, locking=False) as file:
            first = list(itertools.islice((item for item in scan.items if isinstance(item, Readouts)), 3))
            begin = 0
            for block in first:
                rows = file["dataset/data"][begin : begin + len(block)]
                begin += len(block)
                assert np.array_equal(rows["head"]["scan_counter"], block.headers["scan_counter"])
                assert np.array_equal(np.concatenate(rows["data"]), block.data.view(np.float32).reshape(-1)), path.name
            assert scan.readouts == len(file["dataset/data"])


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"])
def test_images_are_read_by_ismrmrd_and_by_us(dtype, tmp_path):
    path = tmp_path / "images.h5"
    sent = [
        image(dtype, (2, 1, 4, 6), index=i, attributes=f"<ismrmrdMeta><!--{i}--></ismrmrdMeta>") for i in range(1, 4)
    ]
    with ImageFile(path, "recon") as images:
        for one in sent:
            images.append(one)
    (found,) = read_images(path, "recon").values()
    assert wire(*found) == wire(*sent)
    if dtype == "<i4":
        return  # ismrmrd-python takes int32 for 64 bit
    with ismrmrd.Dataset(str(path), "recon", mode="r") as dataset:
        assert dataset.number_of_images("image_1") == 3
        for i, one in enumerate(sent):
            theirs = dataset.read_image("image_1", i)
            assert np.array_equal(theirs.data, one.data)
            assert theirs.data.dtype == one.data.dtype
            assert theirs.image_index == i + 1
            assert theirs.meta is not None


@pytest.mark.parametrize("dtype", ["<f4", "<c8", "<u2"])
def test_image_file_is_laid_out_like_that_of_ismrmrd(dtype, tmp_path):
    sent = [image(dtype, (1, 1, 4, 6), index=i) for i in (1, 2)]
    with ImageFile(tmp_path / "ours.h5") as images, ismrmrd.Dataset(str(tmp_path / "theirs.h5")) as dataset:
        for one in sent:
            images.append(one)
            theirs = ismrmrd.Image(ismrmrd.ImageHeader.from_buffer_copy(one.header.tobytes()))
            theirs.data[:] = one.data
            dataset.append_image("image_1", theirs)
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        mine, other = ours["dataset/image_1"], theirs["dataset/image_1"]
        assert set(mine) == set(other) == {"header", "data", "attributes"}
        assert mine["header"].dtype == other["header"].dtype
        assert mine["data"].dtype == other["data"].dtype
        assert mine["data"].shape == other["data"].shape == (2, 1, 1, 4, 6)
        assert np.array_equal(mine["data"][:], other["data"][:])
        assert h5py.check_string_dtype(mine["attributes"].dtype).length is None
        assert mine["attributes"].shape[0] == other["attributes"].shape[0]
    (theirs_read,) = read_images(tmp_path / "theirs.h5").values()
    assert np.array_equal(np.stack([one.data for one in theirs_read]), np.stack([one.data for one in sent]))


def test_series_of_different_kinds(tmp_path):
    path = tmp_path / "images.h5"
    sent = [
        image(series=1),
        image("<c8", (1, 1, 3, 5), series=20),
        image(series=1, index=2),
        image("<u2", series=65535),
    ]
    with ImageFile(path) as images:
        for one in sent:
            images.append(one)
    found = read_images(path)
    assert sorted(found) == [1, 20, 65535]
    assert wire(*found[1]) == wire(sent[0], sent[2])
    assert wire(*found[20]) == wire(sent[1])


@pytest.mark.parametrize("other", [{"shape": (1, 1, 6, 9)}, {"shape": (2, 1, 6, 8)}, {"dtype": "<c8"}], ids=str)
@pytest.mark.parametrize("flushed", [True, False])
def test_series_has_one_size_and_type(other, flushed, tmp_path):
    path = tmp_path / "images.h5"
    with ImageFile(path) as images:
        images.append(image())
        if flushed:
            images.flush()
        with pytest.raises(DataError, match=r"series 1 holds float32 images of .*one size and type"):
            images.append(image(**other))
        images.append(image(index=2))
    assert [one.header["image_index"] for one in read_images(path)[1]] == [1, 2], "the good ones are lost"


def test_blocks_of_images_are_written_on_the_way(tmp_path):
    path = tmp_path / "images.h5"
    sent = [image("<c8", (1, 1, 512, 512), index=i) for i in range(1, 10)]
    with ImageFile(path) as images:
        for one in sent:
            images.append(one)
        (part,) = tmp_path.iterdir()
        assert part.stat().st_size > 8 << 20
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]
    assert wire(*read_images(path)[1]) == wire(*sent)


@pytest.mark.parametrize("before", [b"", b"precious"])
def test_an_error_leaves_no_part_and_what_was_there(before, tmp_path):
    path = tmp_path / "images.h5"
    if before:
        path.write_bytes(before)

    def fail():
        with ImageFile(path, overwrite=True) as images:
            images.append(image())
            images.flush()
            assert not before or path.read_bytes() == before
            raise KeyError

    def fail_in_a_scan():
        yield readouts(2)
        raise KeyError

    for write in (fail, lambda: write_scan(path, HEADER, fail_in_a_scan())):
        with pytest.raises(KeyError):
            write()
        assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == ({path.name: before} if before else {})


def test_a_file_may_say_that_it_is_incomplete(tmp_path):
    for why in ("", "the server is gone"):
        path = tmp_path / "images.h5"
        with ImageFile(path, overwrite=True) as images:
            images.append(image())
            if why:
                images.mark_incomplete(why)
        assert read_incomplete(path) == why
        assert len(read_images(path)[1]) == 1
    with pytest.raises(ResourceError, match="cannot read"):
        read_incomplete(tmp_path / "none.h5")


def test_file_without_images(tmp_path):
    with ImageFile(tmp_path / "images.h5"):
        pass
    assert read_images(tmp_path / "images.h5") == {}


def test_existing_file_is_kept_unless_overwritten(tmp_path):
    path = tmp_path / "images.h5"
    path.write_bytes(b"precious")
    with pytest.raises(SettingsError, match="--overwrite"):
        ImageFile(path)
    assert path.read_bytes() == b"precious"
    with ImageFile(path, overwrite=True) as images:
        images.append(image())
    assert len(read_images(path)[1]) == 1


def stored(path, data, **others):
    with h5py.File(path, "w") as file:
        file["dataset/image_4/data"] = data
        for name, value in others.items():
            file[f"dataset/image_4/{name}"] = value


PLANES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "data",
    [
        PLANES,
        PLANES[:, None],
        PLANES[:, None, None].astype(">f8"),
        PLANES[:, None, None].astype(">c16"),
        PLANES[:, None, None].astype(np.uint8),
        PLANES[:, None, None].astype("<f4").repeat(2, -1).view([("real", "<f4"), ("imag", "<f4")]),
    ],
    ids=lambda data: f"{data.ndim} {data.dtype}",
)
def test_images_without_headers_are_frames_in_order(data, tmp_path, caplog):
    path = tmp_path / "images.h5"
    stored(path, data)
    found = read_images(path)[4]
    assert [int(one.header["phase"]) for one in found] == [0, 1]
    assert [one.data.shape for one in found] == [(1, 1, 3, 4)] * 2
    for one, plane in zip(found, PLANES, strict=True):
        np.testing.assert_array_equal(one.data[0, 0].real, plane)
        assert one.data.dtype.isnative
    assert "no headers" in caplog.text


def test_images_with_headers_without_attributes(tmp_path):
    path = tmp_path / "images.h5"
    stored(path, image().data[None], header=np.array([image().header]))
    assert wire(*read_images(path)[4]) == wire(dataclasses.replace(image(), attributes=""))
    stored(path, image().data[None], header=np.array([image().header]), attributes=np.array([b"<ismrmrdMeta/>"]))
    assert wire(*read_images(path)[4]) == wire(image())


@pytest.mark.parametrize(
    ("data", "others", "message"),
    [
        (np.zeros((2, 3, 4)), {"header": np.zeros(3, IMAGE_HEADER)}, "2 images and 3 headers"),
        (np.full((2, 3), b"text"), {}, "numbers"),
        (np.zeros((1, 1, 1, 1, 3, 4)), {}, "6 axes"),
        (np.zeros((2, 3), [("x", "f4"), ("y", "f4")]), {}, "real and imag"),
    ],
)
def test_what_is_no_image(data, others, message, tmp_path):
    stored(tmp_path / "images.h5", data, **others)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "images.h5")


def test_images_beyond_the_memory_are_refused(tmp_path):
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/image_1/data", (1 << 30, 1, 1, 512, 512), "<f4", chunks=(1, 1, 1, 512, 512))
    with pytest.raises(ResourceError, match="GiB are free"):
        read_images(path)


def test_unreadable_images(tmp_path):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    for name in ("notes.txt", "missing.h5"):
        with pytest.raises(ResourceError, match=name):
            read_images(tmp_path / name)


# --- full disks -------------------------------------------------------------------------------------------------------


def test_where_nothing_can_be_written(tmp_path):
    for write in (lambda path: write_scan(path, HEADER, []), ImageFile):
        with pytest.raises(ResourceError, match=r"cannot write .*No such file or directory"):
            write(tmp_path / "missing" / "out.h5")


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from gadgets.files.images import ImageFile
    from gadgets.files.raw import write_scan
    from gadgets.wire.messages import IMAGE_HEADER, Image
    from recon_core.errors import ResourceError
    from tests.helpers.builders import readouts, waveform

    def scan(path):
        write_scan(path, "<ismrmrdHeader/>", (part for i in range(9) for part in (readouts(500, 2, 64), waveform())))

    def images(path):
        header = np.zeros((), IMAGE_HEADER)
        with ImageFile(path) as file:
            for i in range(300):
                file.append(Image(header[()], np.ones((1, 1, 128, 128), "<f4"), "<ismrmrdMeta/>"))

    def empty_scan(path):
        write_scan(path, "<ismrmrdHeader/>", [])

    def small_images(path):
        with ImageFile(path) as file:
            file.append(Image(np.zeros((), IMAGE_HEADER)[()], np.ones((1, 1, 8, 8), "<f4")))

    for number, limit in enumerate(map(int, sys.argv[2:])):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            globals()[sys.argv[1]](Path(f"{sys.argv[1]}{number}.h5"))
        except ResourceError as error:
            print(error)
"""


@pytest.mark.parametrize("what", ["scan", "images", "empty_scan", "small_images"])
def test_full_disk_is_an_error_and_no_crash(what, tmp_path):
    """HDF5 is known to crash the process, at the latest when it ends, after a write that failed."""
    pytest.importorskip("resource")
    limits = ["0", "100", "500"] + ["9000", "70000", "600001", "3000000"] * (what in ("scan", "images"))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(FULL_DISK), what, *limits],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert len(lines) == len(limits)
    for number, line in enumerate(lines):
        assert line.startswith(f"cannot write {what}{number}.h5: File too large; free space")


def test_waveform_dtype_is_that_of_the_library(tmp_path):
    write_scan(tmp_path / "scan.h5", HEADER, [waveform()])
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file["dataset/waveforms"].dtype["head"] == ismrmrd.hdf5.waveform_header_dtype == WAVEFORM_HEADER


def test_messages_that_are_no_data_are_left_out(tmp_path):
    path = tmp_path / "scan.h5"
    items = [Text("a"), readouts(2), image(), dataclasses.replace(readouts(1), headers=readouts(1, first=9).headers)]
    assert write_scan(path, HEADER, items) == 3
    assert sum(map(len, read_all(path)[1])) == 3


def test_file_is_shared_with_other_readers(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, HEADER, [readouts(2)])
    with h5py.File(path, "r", locking=False), open_scan(path) as first, open_scan(path) as second:
        assert wire(*first.items) == wire(*second.items)


@pytest.mark.parametrize("error", [MemoryError("of 3 GB"), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_file_is_not_called_damaged_for_want_of_memory(error):
    with pytest.raises(ResourceError, match="memory"), damage_of("scan.h5"):
        raise error
