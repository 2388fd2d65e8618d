import contextlib
import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gadgets.connection.spool
from gadgets.connection.spool import Spool, make_folder
from gadgets.files.raw import open_scan
from gadgets.wire.framing import EndOfStreamError
from gadgets.wire.messages import Close, ConfigText, Header
from gadgets.wire.writer import encode
from recon_core.errors import ResourceError
from tests.helpers.builders import header_xml, readouts, waveform
from tests.helpers.paths import REPOSITORY


def wire(*messages):
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_no_folder_no_spool():
    with Spool.into(None) as spool:
        assert spool is None


@pytest.mark.parametrize("size", [1, 7, 4096, 10**9])
def test_bytes_are_those_of_the_stream(size, tmp_path):
    stream = wire(Header(header_xml()), readouts(20, 2, 8), waveform(), Close())
    with Spool.into(tmp_path / "raw" / "scans") as spool:
        for begin in range(0, len(stream), size):
            spool.write(memoryview(stream)[begin : begin + size])
    path = only_file(tmp_path / "raw" / "scans")
    assert path == spool.path
    assert path.suffix == ".mrd"
    assert path.read_bytes() == stream
    assert spool.problem == ""


def test_blocks_are_copied(tmp_path):
    buffer = bytearray(b"first")
    with Spool.into(tmp_path) as spool:
        spool.write(memoryview(buffer))
        buffer[:] = b"later"
        spool.write(memoryview(buffer)[:0])
        spool.write(memoryview(buffer))
    assert only_file(tmp_path).read_bytes() == b"firstlater"


def test_messages_that_came_before(tmp_path):
    """A Gadgetron's launcher has read configuration and header before the spool is made."""
    block = readouts(4, 2, 8, dimensions=2)
    with Spool.into(tmp_path) as spool:
        for message in (ConfigText("<configuration/>"), Header(header_xml())):
            spool.write_message(message)
        spool.write_message(block)
        spool.write(memoryview(wire(Close())))
    with open_scan(only_file(tmp_path)) as scan:
        assert scan.header == header_xml()
        assert wire(*scan.items) == wire(block)


def test_every_scan_has_a_file_of_its_own(tmp_path):
    with Spool.into(tmp_path) as first, Spool.into(tmp_path) as second:
        first.write(memoryview(b"1"))
        second.write(memoryview(b"2"))
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"1", b"2"]


def test_what_waits_is_written_when_the_scan_fails(tmp_path):
    def fail():
        with Spool.into(tmp_path) as spool:
            for _ in range(100):
                spool.write(memoryview(bytes(1000)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert only_file(tmp_path).stat().st_size == 100_000


def test_folder_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with caplog.at_level(logging.ERROR, "cinestream"), Spool.into(tmp_path / "file" / "raw") as spool:
        assert spool is None
    assert "cannot save the raw stream" in caplog.text
    assert "the scan goes on" in caplog.text


class FullDisk:
    """A file on a disk that fills up."""

    def __init__(self, capacity, most=10**9):
        self.capacity = capacity
        self.most = most
        self.written = bytearray()

    def write(self, view):
        room = self.capacity - len(self.written)
        if room <= 0:
            raise OSError(28, "No space left on device")
        part = bytes(view[: min(room, self.most)])
        self.written += part
        return len(part)


@pytest.mark.parametrize("capacity", [0, 5, 1000])
def test_full_disk_is_noted_once_and_the_scan_goes_on(capacity, caplog):
    disk = FullDisk(capacity)
    stream = bytes(range(256)) * 8
    with caplog.at_level(logging.ERROR, "cinestream"):
        spool = Spool(disk, Path("scan.mrd"))
        for begin in range(0, len(stream), 100):
            spool.write(memoryview(stream)[begin : begin + 100])
        spool.close()
    assert disk.written == stream[:capacity]
    assert "scan.mrd is incomplete: No space left on device" in spool.problem
    assert [record.message for record in caplog.records] == [spool.problem]


def test_partial_writes_are_continued():
    disk = FullDisk(10**9, most=3)
    spool = Spool(disk, Path("scan.mrd"))
    spool.write(memoryview(b"0123456789"))
    spool.write(memoryview(b"abc"))
    spool.close()
    assert disk.written == b"0123456789abc"
    assert spool.problem == ""


def test_slow_disk_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(gadgets.connection.spool, "_QUEUE_BYTES", 1000)

    class Stuck(FullDisk):
        def write(self, view):
            release.acquire()
            release.release()
            return super().write(view)

    release = gadgets.connection.spool.threading.Lock()
    with release:
        disk = Stuck(10**9)
        spool = Spool(disk, Path("scan.mrd"))
        for _ in range(20):
            spool.write(memoryview(bytes(100)))
        assert "slower than the scan: 1100 bytes wait" in spool.problem
    spool.close()
    assert len(disk.written) <= 1000


KILLED = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from gadgets.wire.messages import Header
    from gadgets.wire.writer import encode
    from gadgets.connection.spool import Spool
    from tests.helpers.builders import header_xml, readouts

    with Spool.into(Path(sys.argv[1])) as spool:
        spool.write_message(Header(header_xml()))
        for i in range(200):
            spool.write(memoryview(encode(readouts(1, 2, 32, seed=i, first=i))[0]))
        spool.write(memoryview(encode(readouts(1, 2, 32, first=200))[0][:500]))
        while spool._waiting:
            time.sleep(0.001)
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_killed_process_leaves_a_file_that_can_be_replayed(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    blocks = []
    with open_scan(only_file(tmp_path)) as scan:
        assert scan.header == header_xml()
        with pytest.raises(EndOfStreamError, match="within a readout"):
            blocks.extend(scan.items)
    data = np.concatenate([block.data for block in blocks])
    assert len(data) == 200
    assert np.array_equal(data[7], readouts(1, 2, 32, seed=7).data[0])


def test_what_is_discarded_leaves_no_file(tmp_path):
    with Spool.into(tmp_path) as spool:
        spool.write(memoryview(b"a question"))
        spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_raw_data_are_for_the_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        with Spool.into(tmp_path / "new" / "raw") as spool:
            spool.write(memoryview(b"patient"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "raw").stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("number", "is_refused"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EROFS, True)])
def test_a_disk_that_is_full_now_keeps_no_server_from_beginning(number, is_refused, tmp_path, monkeypatch):
    def fail(**_):
        raise OSError(number, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(ResourceError) if is_refused else contextlib.nullcontext():
        make_folder(tmp_path / "raw")
