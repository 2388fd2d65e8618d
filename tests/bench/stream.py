"""Measure the stream side against its alternatives, both sides of every ratio in one run: ``make bench``.

Prints the first table of docs/speed.md. Not a test: a loaded machine would fail it without a fault of the code.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
from gadgetron.external.connection import Connection

from gadgets.chain import Chain
from gadgets.connection.server import Server
from gadgets.files.raw import open_scan, write_scan
from gadgets.images.maker import ImageMaker
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import ACQUISITION_HEADER, Close, ConfigFile, ConfigText, Header, Image, Readouts
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer, encode
from recon_core.data import Reconstruction

COILS, SAMPLES, READOUTS, REPEATS = 10, 256, 20_000, 5


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for measure in (ingest, file_reading, image_emission, import_time, never_stall, first_slice_early, second_scan):
            rows += measure(Path(folder))
            print(f"| {rows[-1][0]} | {rows[-1][1]} |", file=sys.stderr)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in rows))


# --- ingest -----------------------------------------------------------------------------------------------------------


def ingest(folder: Path) -> list[tuple[str, str]]:
    """CPU time of the receiving thread per readout, the sender in a process of its own."""
    times = {name: [] for name in RECEIVERS}
    for _round in range(REPEATS):  # in turns, so that a change of the machine's mood meets all alike
        for name, receive in RECEIVERS.items():
            times[name].append(1e6 * _received(receive) / READOUTS)
    best = {name: min(values) for name, values in times.items()}
    ours, bare, package = best["ours"], best["bare"], best["package"]
    what = f"ingest, CPU per readout of {COILS} coils x {SAMPLES} samples"
    return [
        (what, f"{ours:.1f} us; bare recv_into loop {bare:.1f} us, PyPI gadgetron {package:.1f} us"),
        ("ingest, ratio to the bare loop / to the PyPI package", f"{ours / bare:.2f}x / {package / ours:.1f}x less"),
    ]


def _received(receive) -> float:
    listener = socket.create_server(("127.0.0.1", 0))
    sender = get_context("spawn").Process(target=_flood, args=(listener.getsockname()[1],), daemon=True)
    sender.start()
    connection, _ = listener.accept()
    with listener, connection:
        spent = receive(connection)
    sender.join()
    return spent


def _flood(port: int) -> None:
    """Send a whole session with readouts that are ready in memory."""
    header = simulate(ScanPlan(matrix_x=64, matrix_y=64, frames=1)).header
    block = encode(_readouts(200))[0]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        writer = Writer.of_socket(connection)
        writer.send(ConfigText("<configuration/>"))
        writer.send(Header(header))
        for _ in range(READOUTS // 200):
            writer.send_buffers([block])
        writer.send(Close())
        connection.recv(1)


def _readouts(count: int) -> Readouts:
    headers = np.zeros(count, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["active_channels"] = SAMPLES, COILS
    headers["available_channels"] = COILS
    headers["idx"]["kspace_encode_step_1"] = np.arange(count) % 128
    generator = np.random.default_rng(0)
    data = generator.standard_normal((count, COILS, SAMPLES, 2), np.float32).view(np.complex64)[..., 0]
    return Readouts(headers, data)


def _skip_opening(connection: socket.socket) -> None:
    for _ in range(2):
        head = connection.recv(6, socket.MSG_WAITALL)
        connection.recv(int.from_bytes(head[2:], "little"), socket.MSG_WAITALL)


def _bare(connection: socket.socket) -> float:
    """The least that any receiver must do: an id, a header, the data, each straight into one reused buffer."""
    _skip_opening(connection)
    begin = time.thread_time()
    head, data = bytearray(342), memoryview(bytearray(8 * COILS * SAMPLES))
    count = 0
    while True:
        connection.recv_into(head, 2, socket.MSG_WAITALL)
        if head[0] == 4:
            break
        connection.recv_into(memoryview(head)[2:], 340, socket.MSG_WAITALL)
        samples, coils = int.from_bytes(head[36:38], "little"), int.from_bytes(head[40:42], "little")
        connection.recv_into(data, 8 * samples * coils, socket.MSG_WAITALL)
        count += 1
    return time.thread_time() - begin


def _ours(connection: socket.socket) -> float:
    reader = Reader.of_socket(connection)
    reader.read(), reader.read()
    begin = time.thread_time()
    assert sum(len(message) for message in reader) == READOUTS
    return time.thread_time() - begin


def _package(connection: socket.socket) -> float:
    reader = Connection(connection)
    begin = time.thread_time()
    assert sum(1 for _ in reader) == READOUTS
    return time.thread_time() - begin


RECEIVERS = {"bare": _bare, "ours": _ours, "package": _package}


# --- files and images -------------------------------------------------------------------------------------------------


def file_reading(folder: Path) -> list[tuple[str, str]]:
    path = folder / "raw.h5"
    header = simulate(ScanPlan(matrix_x=64, matrix_y=64, frames=1)).header
    write_scan(path, header, (_readouts(200) for _ in range(15)))

    def blocks() -> None:
        with h5py.File(path) as file:
            data = file["dataset/data"]
            for begin in range(0, len(data), 200):
                data[begin : begin + 200]

    def ours() -> None:
        with open_scan(path) as scan:
            for _ in scan.items:
                pass

    def one_by_one() -> None:
        with ismrmrd.Dataset(path, "dataset", mode="r") as data:
            for number in range(300):
                data.read_acquisition(number)

    per_readout = {
        run: min(_cpu(run) for _ in range(3)) / count
        for run, count in ((blocks, 3000), (ours, 3000), (one_by_one, 300))
    }
    us = 1e6 * per_readout[ours]
    ratios = per_readout[ours] / per_readout[blocks], per_readout[one_by_one] / per_readout[ours]
    text = f"{us:.1f} us; {ratios[0]:.2f}x of a block-wise h5py read, {ratios[1]:.0f}x less than one by one"
    return [("reading a file, CPU per readout", text)]


def _cpu(run) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def image_emission(folder: Path) -> list[tuple[str, str]]:
    scan = simulate(ScanPlan(frames=30, coils=1, snr=0))
    header, completes = parse_header(scan.header), []

    class Blank:
        def reconstruct(self, cine, options):
            frames, _, ny, nx = cine.kspace.shape
            return Reconstruction(np.ones((frames, ny, nx), np.complex64), cine.kspace[0], "cg_sense")

    watch = lambda complete, reconstruction: completes.append((complete, reconstruction))  # noqa: E731
    list(Chain(header, Settings.of(scale=1.0), Blank, watch=watch)(scan.items()))
    left, right = socket.socketpair()
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: right.recv(1 << 20), b"")])
    drain.start()
    times = []
    with right:
        with left:
            writer = Writer.of_socket(left)
            for _round in range(10):
                maker = ImageMaker(header, Settings.of(scale=1.0))
                begin = time.thread_time()
                for image in maker.make(*completes[0]):
                    writer.send(image)
                times.append((time.thread_time() - begin) / 30)
        drain.join()
    return [("making and sending an image of 192 x 156, CPU", f"{1e3 * min(times):.2f} ms")]


def import_time(folder: Path) -> list[tuple[str, str]]:
    def seconds(code: str) -> float:
        return min(_wall([sys.executable, "-c", code]) for _ in range(5))

    bare = seconds("pass")
    ours, package, torch = (
        seconds(f"import {name}") - bare for name in ("gadgets.external", "gadgetron.external", "torch")
    )
    text = f"{ours:.2f} s without torch; gadgetron.external itself {package:.2f} s, torch {torch:.2f} s"
    return [("import gadgets.external", text)]


def _wall(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin


# --- sessions ---------------------------------------------------------------------------------------------------------


class Slow:
    """An engine that takes five seconds for a slice."""

    def reconstruct(self, cine, options):
        time.sleep(5)
        frames, coils, ny, nx = cine.kspace.shape
        return Reconstruction(np.ones((frames, ny, nx), np.complex64), np.ones((coils, ny, nx), np.complex64), "slow")


class RunningServer:
    def __init__(self, engine=None) -> None:
        self.server = Server(port=0)
        if engine is not None:
            self.server._engine = lambda: engine
        self.thread = threading.Thread(target=self.server.serve)

    def __enter__(self):
        self.thread.start()
        return self.server.address

    def __exit__(self, *_):
        self.server.stop()
        self.thread.join()


def _scan(address, scan, pipeline: str = "cg_sense", hold_last_until: int = 0):
    """Be a scanner: when each readout was sent and how long that took, when each image came."""
    sent, arrived = [], []
    came = threading.Event()
    readouts = sum(len(item) for item in scan.items() if isinstance(item, Readouts))
    with socket.create_connection(address) as connection:
        writer = Writer.of_socket(connection)
        writer.send(ConfigFile(pipeline))
        writer.send(Header(scan.header))

        def receive():
            for message in Reader.of_socket(connection):
                if isinstance(message, Image):
                    arrived.append(time.perf_counter())
                    if len(arrived) == hold_last_until:
                        came.set()

        receiver = threading.Thread(target=receive)
        receiver.start()
        for item in scan.items():
            for i in range(len(item) if isinstance(item, Readouts) else 0):
                if hold_last_until and len(sent) == readouts - 1:
                    came.wait(60)
                begin = time.perf_counter()
                writer.send(item[i : i + 1])
                sent.append((time.perf_counter() - begin, time.perf_counter()))
        writer.send(Close())
        receiver.join()
    return sent, arrived


def never_stall(folder: Path) -> list[tuple[str, str]]:
    scan = simulate(ScanPlan(slices=2, coils=16, frames=20, sampling="full", snr=0))
    with RunningServer(Slow()) as address:
        sent, _ = _scan(address, scan)
    megabytes = sum(item.data.nbytes for item in scan.items() if isinstance(item, Readouts)) / 1e6
    text = f"{1e3 * max(delay for delay, _ in sent):.0f} ms ({len(sent)} readouts, {megabytes:.0f} MB)"
    return [("longest hold-up of the sender while slices take 5 s each", text)]


def first_slice_early(folder: Path) -> list[tuple[str, str]]:
    plan = ScanPlan(slices=2, slice_order="interleaved", matrix_x=128, matrix_y=128, frames=12, coils=6)
    with RunningServer() as address:
        _scan(address, simulate(plan))  # warm
        sent, arrived = _scan(address, simulate(plan), hold_last_until=plan.frames)
    early = sum(when < sent[-1][1] for when in arrived)
    text = f"{early} images out, the first {1e3 * (arrived[0] - sent[-2][1]):.0f} ms after their own last readout"
    return [("two interleaved slices of 12 frames, the scan's last readout held back", text)]


def second_scan(folder: Path) -> list[tuple[str, str]]:
    scan = simulate(ScanPlan(matrix_x=128, matrix_y=128, frames=12, coils=6))
    with RunningServer() as address:
        times, modules = [], []
        for _ in range(7):
            begin = time.perf_counter()
            _scan(address, scan)
            times.append(time.perf_counter() - begin)
            modules.append(len(sys.modules))
    hot = statistics.median(times[2:])
    text = f"{times[0]:.2f} s first, {times[1]:.2f} s second, {hot:.2f} s hot: {times[1] / hot:.2f}x"
    return [("scans through the resident server", f"{text}; modules imported by the second: {modules[1] - modules[0]}")]


if __name__ == "__main__":
    main()
