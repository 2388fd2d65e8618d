"""Replay as a function: what it gives back, and that images are on disk as soon as they are made."""

import errno
import io
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from gadgets.connection.server import SharedEngine
from gadgets.files.images import read_images, read_incomplete
from gadgets.files.progress import with_progress
from gadgets.files.raw import open_scan, write_scan
from gadgets.replay import replay
from gadgets.reports.record import ReportCollector
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import Close, ConfigText, Header, Readouts
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, DataError, HeaderError, ResourceError, SettingsError
from recon_core.stopping import check
from tests.helpers.paths import REPOSITORY

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=3, slices=2, coils=3, acceleration=2, acs_lines=10, seed=3)
FAST = Settings.of(method="zero_filled")


@pytest.fixture(scope="module")
def simulated():
    scan = simulate(PLAN)
    return scan.header, list(scan.items())


@pytest.fixture
def raw(simulated, tmp_path):
    write_scan(tmp_path / "scan.h5", *simulated)
    return tmp_path / "scan.h5"


def stream_file(path, *messages):
    with path.open("wb", buffering=0) as file:
        writer = Writer(lambda buffers: sum(file.write(buffer) for buffer in buffers))
        for message in messages:
            writer.send(message)
    return path


def pixels(path):
    return [image.data.tobytes() for image in read_images(path)[1]]


def test_header_and_summary(raw, tmp_path):
    collector = ReportCollector()
    header, summary = replay(raw, tmp_path / "images.h5", FAST, SharedEngine(), collector=collector)
    assert header.encodings[0].recon.matrix == (48, 40, 1)
    assert (summary.images, summary.slices) == (6, 2)
    with open_scan(raw) as scan:
        assert summary.readouts == scan.readouts
    assert list(summary.problems) == []
    assert set(summary.seconds) == {"maps", "reconstruct", "slice"}
    assert [len(frames) for _, frames in collector.series()] == [3, 3]
    images = read_images(tmp_path / "images.h5")[1]
    assert [image.header["image_index"] for image in images] == [1, 3, 5, 2, 4, 6]


def damaged_heap(raw):
    """The last rows claim more than the file has."""
    content = bytearray(raw.read_bytes())
    place = content.rindex(b"GCOL") + 24  # the size of its first object
    content[place : place + 8] = struct.pack("<Q", 1 << 40)
    raw.write_bytes(content)


def never_finished(raw):
    with h5py.File(raw, "a") as file:
        file["dataset/data"].resize(len(file["dataset/data"]) + 640, axis=0)


def damaged_waveforms(raw):
    with h5py.File(raw, "a") as file:
        del file["dataset/waveforms"]
        file["dataset/waveforms"] = np.zeros(3)


def a_second_scan(raw):
    with open_scan(raw) as scan:
        messages = [Header(scan.header), *scan.items, Close()]
    stream_file(raw, *messages, *messages)


@pytest.mark.parametrize("change", [damaged_heap, never_finished, damaged_waveforms, a_second_scan])
def test_a_damaged_file_gives_what_lies_before_the_damage(change, raw, tmp_path):
    replay(raw, tmp_path / "whole.h5", FAST, SharedEngine())
    change(raw)
    _, summary = replay(raw, tmp_path / "images.h5", FAST, SharedEngine())
    assert any("What came before is reconstructed" in str(problem) for problem in summary.problems.damage)
    assert "What came before is reconstructed" in read_incomplete(tmp_path / "images.h5"), "for who exports it later"
    assert not read_incomplete(tmp_path / "whole.h5")
    whole, found = pixels(tmp_path / "whole.h5"), pixels(tmp_path / "images.h5")
    known = 3 if change is damaged_heap else 6  # a slice has three, and the damage lies in the second one
    assert found[:known] == whole[:known]


def test_a_disk_that_fails_in_a_stream_is_damage(raw, tmp_path, monkeypatch):
    with open_scan(raw) as scan:
        stream_file(raw, Header(scan.header), *scan.items)
    read, left = io.FileIO.readinto, [16]

    class Failing(io.FileIO):
        def readinto(self, buffer):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, "Input/output error")
            return read(self, memoryview(buffer)[:30_000])

    def opened(path, mode="r", *given, **more):
        return Failing(path) if more.get("buffering") == 0 else real(path, mode, *given, **more)

    real = Path.open
    monkeypatch.setattr(Path, "open", opened)
    _, summary = replay(raw, tmp_path / "images.h5", FAST, SharedEngine())
    assert "Input/output error" in str(summary.problems.damage[0])
    assert pixels(tmp_path / "images.h5")


@pytest.mark.parametrize("by", ["scan", "slice"])
def test_a_report_takes_the_images_of_a_slice_for_what_they_are(raw, tmp_path, by):
    collector = ReportCollector()
    fast = Settings.of(method="cg_sense", iterations=1, preview="zero_filled", extra_series="zero_filled", series_by=by)
    _, summary = replay(raw, tmp_path / "images.h5", fast, SharedEngine(), collector=collector)
    assert summary.images == 18
    assert [len(frames) for _, frames in collector.series()] == [3, 3]
    for record in collector.slices:
        assert {kind: count for kind, (_, count, _) in record.others.items()} == {"zero-filled": 3}
        assert len(record.triggers) == 3


def test_a_stream_file_gives_what_the_hdf5_file_gives(raw, simulated, tmp_path):
    header, items = simulated
    stream = stream_file(tmp_path / "scan.mrd", ConfigText("<configuration/>"), Header(header), *items, Close())
    replay(raw, tmp_path / "a.h5", FAST, SharedEngine())
    _, summary = replay(stream, tmp_path / "b.h5", FAST, SharedEngine())
    assert list(summary.problems) == []
    assert pixels(tmp_path / "a.h5") == pixels(tmp_path / "b.h5")


def test_what_a_crash_leaves_is_replayed_as_far_as_it_goes(simulated, tmp_path):
    header, items = simulated
    stream = stream_file(tmp_path / "scan.mrd", Header(header), *items)
    stream.write_bytes(stream.read_bytes()[:-100])
    _, summary = replay(stream, tmp_path / "images.h5", FAST, SharedEngine())
    assert summary.images == 6
    assert "stream" in summary.problems.kinds
    assert summary.problems.damage


def test_another_group(simulated, tmp_path):
    write_scan(tmp_path / "scan.h5", *simulated, group="second")
    replay(tmp_path / "scan.h5", tmp_path / "images.h5", FAST, SharedEngine(), group="second")
    assert len(read_images(tmp_path / "images.h5", "second")[1]) == 6
    with pytest.raises(DataError, match="second"):
        replay(tmp_path / "scan.h5", tmp_path / "more.h5", FAST, SharedEngine(), group="third")
    replay(tmp_path / "scan.h5", tmp_path / "more.h5", FAST, SharedEngine())
    assert len(read_images(tmp_path / "more.h5")[1]) == 6


def test_the_first_slice_is_kept_when_the_second_cannot_be_made(raw, tmp_path):
    """And the engine's own troubles do not end the scan."""
    engine, asked = SharedEngine(), []

    class Failing:
        def reconstruct(self, *arguments):
            asked.append(1)
            if len(asked) == 2:
                raise ResourceError("no memory left")
            return engine().reconstruct(*arguments)

    _, summary = replay(raw, tmp_path / "images.h5", FAST, Failing)
    assert summary.images == 3
    assert [str(problem) for problem in summary.problems.damage] == [
        "slice 1 could not be reconstructed: no memory left"
    ]
    assert [image.header["slice"] for image in read_images(tmp_path / "images.h5")[1]] == [0, 0, 0]


def test_images_that_were_made_survive_an_unforeseen_end(raw, tmp_path):
    engine, asked = SharedEngine(), []

    class Interrupted:
        def reconstruct(self, *arguments):
            asked.append(1)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return engine().reconstruct(*arguments)

    with pytest.raises(KeyboardInterrupt):
        replay(raw, tmp_path / "images.h5", FAST, Interrupted)
    assert list(tmp_path.iterdir()) == [raw]  # so that the same command can be given again
    (tmp_path / "images.h5").write_bytes(b"precious")
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        replay(raw, tmp_path / "images.h5", FAST, Interrupted, overwrite=True)
    assert (tmp_path / "images.h5").read_bytes() == b"precious"


KILLED = """
    import os, sys
    from pathlib import Path
    from gadgets.connection.server import SharedEngine
    from gadgets.replay import replay
    from gadgets.settings.settings import Settings

    engine, asked = SharedEngine(), []

    class Killed:
        def reconstruct(self, *arguments):
            asked.append(1)
            if len(asked) == 2:
                os.kill(os.getpid(), 9)
            return engine().reconstruct(*arguments)

    replay(Path(sys.argv[1]), Path(sys.argv[2]), Settings.of(method="zero_filled"), Killed, overwrite=True)
"""


def test_a_kill_leaves_no_file_that_looks_whole(raw, tmp_path):
    """What was made is in a file that says by its name that it is a part."""
    output = tmp_path / "images.h5"
    output.write_bytes(b"precious")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(raw), str(output)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=120, check=False)
    assert ran.returncode == -signal.SIGKILL
    assert output.read_bytes() == b"precious"
    (part,) = tmp_path.glob(".images.h5.*.part")
    assert len(read_images(part)[1]) == 3


def test_refusals(raw, tmp_path):
    (tmp_path / "images.h5").write_bytes(b"precious")
    with pytest.raises(SettingsError, match="--overwrite"):
        replay(raw, tmp_path / "images.h5", FAST, SharedEngine())
    assert (tmp_path / "images.h5").read_bytes() == b"precious"
    before = raw.read_bytes()
    with pytest.raises(SettingsError, match="raw data"):
        replay(raw, raw, FAST, SharedEngine(), overwrite=True)
    assert raw.read_bytes() == before
    with pytest.raises(ResourceError, match=r"none\.h5"):
        replay(tmp_path / "none.h5", tmp_path / "out.h5", FAST, SharedEngine())
    (tmp_path / "text.mrd").write_text("dear diary", encoding="utf-8")
    with pytest.raises(HeaderError, match=r"text\.mrd"):
        replay(tmp_path / "text.mrd", tmp_path / "out.h5", FAST, SharedEngine())
    assert issubclass(HeaderError, CinestreamError)


def test_a_header_that_says_nothing_leaves_no_output(simulated, tmp_path):
    write_scan(tmp_path / "scan.h5", "<ismrmrdHeader/>", simulated[1])
    with pytest.raises(HeaderError):
        replay(tmp_path / "scan.h5", tmp_path / "out.h5", FAST, SharedEngine())
    assert not (tmp_path / "out.h5").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_the_progress_bar_is_for_people(stream, shown, simulated, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    items = list(with_progress(iter(simulated[1]), 100, "reconstructing"))
    assert [id(item) for item in items] == [id(item) for item in simulated[1]]
    assert any(isinstance(item, Readouts) for item in items)
    assert ("reconstructing" in sys.stderr.getvalue()) is shown


class Slow:
    """An engine that takes a while, in steps."""

    def __call__(self):
        return self

    def reconstruct(self, cine, settings):
        for _ in range(4):
            time.sleep(0.11)
            check()
        return SharedEngine()().reconstruct(cine, settings)


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_moves_while_a_slice_is_reconstructed(stream, shown, raw, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr("gadgets.chain.LONG_SECONDS", 0.2)
    with caplog.at_level(logging.INFO, "cinestream"):
        replay(raw, tmp_path / "images.h5", FAST, Slow())
    text = sys.stderr.getvalue()
    for number in range(PLAN.slices):
        assert (text.count(f"slice {number} with zero_filled, ") >= 3) is shown
        name = f"slice {number} with zero_filled is still being reconstructed"
        assert sum(name in record.getMessage() for record in caplog.records) >= 1
    shares = [int(share) for share in re.findall(r"(\d+)%", text)]
    assert shares == sorted(shares)
    assert shown is any(25 <= share <= 60 for share in shares)  # one of two slices is done, however much is read
