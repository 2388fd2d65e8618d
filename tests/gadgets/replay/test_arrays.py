"""The Python interface for scans: the images of a replay as arrays, from files and from streams as they come."""

import socket
import subprocess
import sys
import threading
import warnings

import ismrmrd
import numpy as np
import pytest

import gadgets
from gadgets import reconstruct_file, reconstruct_stream
from gadgets.connection.server import SharedEngine
from gadgets.files.images import read_images
from gadgets.files.raw import write_scan
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, Header, Image, Readouts, Text, Waveform
from gadgets.wire.writer import Writer, encode
from recon_core.errors import DataError, HeaderError, ReconstructionWarning, ResourceError, SettingsError

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=3, slices=2, coils=3, acceleration=2, acs_lines=10, seed=3)


@pytest.fixture(scope="module")
def simulated():
    scan = simulate(PLAN)
    return scan.header, list(scan.items())


@pytest.fixture(scope="module")
def raw(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_scan(path, *simulated)
    return path


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
    """``(slice, frame, y, x)`` as replay writes it."""
    path = tmp_path_factory.mktemp("images") / "images.h5"
    replay(raw, path, Settings.of(method="zero_filled"), SharedEngine())
    found = {(int(i.header["slice"]), int(i.header["phase"])): i.data[0, 0] for i in read_images(path)[1]}
    return np.stack([[found[place, frame] for frame in range(3)] for place in range(2)])


def without(items, *, place):
    """The readouts without those of a slice."""
    return [item[item.headers["idx"]["slice"] != place] if isinstance(item, Readouts) else item for item in items]


# --- files ------------------------------------------------------------------------------------------------------------


def test_file(raw, simulated, expected):
    scan = reconstruct_file(raw, "zero_filled")
    assert len(scan) == 2
    np.testing.assert_array_equal([cine.image for cine in scan], expected)
    assert [(cine.slice, cine.method, cine.units, cine.kind) for cine in scan] == [
        (place, "zero_filled", "relative", "") for place in range(2)
    ]
    assert scan.problems == ()
    assert set(scan.seconds) == {"maps", "reconstruct", "slice"}
    assert scan.header == simulated[0]
    assert scan[1].frame_time == pytest.approx(scan[1].rr / 3, rel=0.2)
    assert str(scan[1]) == "slice 1, zero_filled: 3 frames of 40 x 48 pixels; cinestream zero_filled"


def test_the_path_may_be_a_text_and_the_pipeline_a_file(raw, expected, tmp_path):
    pipeline = tmp_path / "mine.xml"
    pipeline.write_text("<configuration><method>zero_filled</method></configuration>", encoding="utf-8")
    for name in (str(pipeline), pipeline):
        np.testing.assert_array_equal([cine.image for cine in reconstruct_file(str(raw), name)], expected)


def test_complex_images(raw, expected):
    images = [cine.image for cine in reconstruct_file(raw, "zero_filled", output="complex")]
    assert images[0].dtype == np.complex64
    np.testing.assert_allclose(np.abs(images), expected, rtol=1e-5)


def test_further_series_come_behind(raw):
    scan = reconstruct_file(raw, "cg_sense", g_factor=True)
    assert [(cine.kind, cine.slice, len(cine.image)) for cine in scan] == [
        *(("", place, 3) for place in range(2)),
        *(("g-factor", place, 1) for place in range(2)),
    ]


def test_noise_of_another_file(raw, simulated, tmp_path):
    header, items = simulated
    noise = AcquisitionFlag.NOISE.bit
    bare = [item for item in items if not isinstance(item, Readouts) or not (item.headers["flags"] & noise).any()]
    write_scan(tmp_path / "bare.h5", header, bare)
    scans = [
        reconstruct_file(raw, "zero_filled"),
        reconstruct_file(tmp_path / "bare.h5", "zero_filled", noise=raw),
        reconstruct_file(tmp_path / "bare.h5", "zero_filled"),
    ]
    np.testing.assert_array_equal(scans[0][0].image, scans[1][0].image)
    assert not np.array_equal(scans[0][0].image, scans[2][0].image)


def test_frames_in_real_time_are_one_array(tmp_path):
    plan = ScanPlan(matrix_x=48, matrix_y=40, frames=6, coils=3, acceleration=2, time_axis="repetition")
    made = simulate(plan)
    write_scan(tmp_path / "scan.h5", made.header, made.items())
    (cine,) = reconstruct_file(tmp_path / "scan.h5", "realtime_cg_sense")
    assert cine.image.shape == (6, 40, 48)
    windows = [*reconstruct_stream(made.items(), "realtime_cg_sense", header=made.header)]
    assert len(windows) > 1
    np.testing.assert_array_equal(np.concatenate([window.image for window in windows]), cine.image)
    assert [frame for window in windows for frame in range(len(window.image))].count(0) == len(windows)


def test_lost_slices_are_warned_of(tmp_path):
    plan = ScanPlan(matrix_x=48, matrix_y=40, frames=3, slices=3, coils=3, acceleration=2, acs_lines=10)
    made = simulate(plan)
    left = [item for item in without(made.items(), place=1) if not isinstance(item, Readouts) or len(item.data)]
    write_scan(tmp_path / "scan.h5", made.header, left)
    with pytest.warns(ReconstructionWarning, match="never came") as caught:
        scan = reconstruct_file(tmp_path / "scan.h5", "zero_filled")
    assert caught[0].filename == __file__
    assert len(scan) == 2
    assert any("never came" in problem for problem in scan.problems)


@pytest.mark.parametrize("from_stream", [False, True])
def test_the_fallback_is_warned_of_once(raw, simulated, from_stream):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if from_stream:
            scan = [*reconstruct_stream(simulated[1], "crunet_mr", header=simulated[0])]
        else:
            scan = [*reconstruct_file(raw, "crunet_mr")]
    assert [cine.method for cine in scan] == ["kt_sense", "kt_sense"]
    assert [warning.category for warning in caught] == [ReconstructionWarning]
    assert "images are not of crunet_mr: cinestream kt_sense; " in str(caught[0].message)
    assert caught[0].filename == __file__


def test_wrong_calls(raw, tmp_path):
    with pytest.raises(SettingsError, match="unknown setting 'iteration'"):
        reconstruct_file(raw, iteration=3)
    with pytest.raises(SettingsError, match="no pipeline 'magic'"):
        reconstruct_file(raw, "magic")
    with pytest.raises(ResourceError, match=r"absent\.h5"):
        reconstruct_file(tmp_path / "absent.h5")
    with pytest.raises(DataError, match="no raw data in group 'other'"):
        reconstruct_file(raw, group="other")


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_slice_comes_when_it_is_complete(simulated, expected):
    header, items = simulated
    taken = []

    def source():
        for item in items:
            taken.append(item)
            yield item

    cines = reconstruct_stream(source(), "zero_filled", header=header)
    first = next(cines)
    assert len(taken) < len(items)
    second = next(cines)
    np.testing.assert_array_equal([first.image, second.image], expected)
    assert (first.slice, second.slice) == (0, 1)
    assert next(cines, None) is None


def test_the_header_of_the_stream(simulated, expected):
    header, items = simulated
    opening = [ConfigFile("other"), Text("a text"), Header(header)]
    cines = [*reconstruct_stream([*opening, *items, Close(), "not read"], "zero_filled")]
    np.testing.assert_array_equal([cine.image for cine in cines], expected)


def test_socket(simulated, expected):
    header, items = simulated
    ours, theirs = socket.socketpair()

    def send():
        writer = Writer.of_socket(theirs)
        for message in (ConfigFile("zero_filled"), Header(header), *items, Close()):
            writer.send(message)

    sender = threading.Thread(target=send)
    with ours, theirs:
        sender.start()
        cines = [*reconstruct_stream(ours, "zero_filled")]
        sender.join(60)
    np.testing.assert_array_equal([cine.image for cine in cines], expected)


def test_binary_file(simulated, expected, tmp_path):
    header, items = simulated
    path = tmp_path / "stream"
    path.write_bytes(b"".join(bytes(part) for m in (Header(header), *items, Close()) for part in encode(m)))
    with path.open("rb") as file:
        cines = [*reconstruct_stream(file, "zero_filled")]
    np.testing.assert_array_equal([cine.image for cine in cines], expected)


def test_acquisitions_of_the_ismrmrd_package(raw, simulated, expected):
    with ismrmrd.Dataset(str(raw), create_if_needed=False) as dataset:
        header = dataset.read_xml_header().decode()
        items = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
        items.insert(1, dataset.read_waveform(0))
    cines = [*reconstruct_stream(items, "zero_filled", header=header)]
    np.testing.assert_array_equal([cine.image for cine in cines], expected)


def test_waveforms_of_the_ismrmrd_package(raw, simulated):
    from gadgets.replay.sources import _from_ismrmrd

    with ismrmrd.Dataset(str(raw), create_if_needed=False) as dataset:
        found = _from_ismrmrd(dataset.read_waveform(0))
    known = next(item for item in simulated[1] if isinstance(item, Waveform))
    assert found.header == known.header
    np.testing.assert_array_equal(found.data, known.data)


def test_wrong_streams(simulated):
    header, items = simulated
    with pytest.raises(SettingsError, match="unknown setting"):
        reconstruct_stream([], header=header, magic=1)  # before anything is read
    with pytest.raises(HeaderError, match="ended before the scan header"):
        next(reconstruct_stream([]))
    with pytest.raises(HeaderError, match="expected the scan header first, got Readouts; give it as header"):
        next(reconstruct_stream([item for item in items if isinstance(item, Readouts)]))
    with pytest.raises(HeaderError, match="XML"):
        next(reconstruct_stream(items, header="<no"))
    with pytest.raises(DataError, match="got ndarray"):
        next(reconstruct_stream([np.zeros(3)], header=header))
    with pytest.raises(DataError, match="no image readouts"):
        next(reconstruct_stream([], header=header))


def test_images_of_a_stream_are_no_readouts(simulated):
    header, items = simulated
    image = Image(np.zeros((), [("image_series_index", "<u2")]), np.zeros((1, 1, 2, 2), np.float32))
    assert len([*reconstruct_stream([image, *items], "zero_filled", header=header)]) == 2


# --- import -----------------------------------------------------------------------------------------------------------


def test_importing_is_light():
    code = "import sys, gadgets; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = gadgets.magic
    assert all(getattr(gadgets, name) for name in gadgets.__all__)
