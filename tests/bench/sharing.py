"""Measure what other scans cost a scan in real time on the same server: ``python -m tests.bench.sharing [SCANS]``.

A server takes one small scan in real time at the pace of a scanner, in turns alone and while others (7 by default) send
whole slices as fast as they are taken. The latency is that from the last readout of a frame to its image, at the
client. The senders stand for other computers: they send what was encoded before, and the others have a process of their
own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np

from gadgets.simulation import Scan, ScanPlan, simulate
from gadgets.wire.messages import Close, ConfigFile, Header, Image, Readouts
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer, encode
from tests.bench.realtime import ACCELERATION, FRAME, plan_of

FRAMES, ROUNDS = 150, 2
READOUT = FRAME / (plan_of(1).matrix_y // ACCELERATION)  # s from one to the next
LONG = ScanPlan(matrix_x=156, matrix_y=192, coils=10, frames=24, slices=2, acceleration=6)
PIPELINES = ("cg_sense", "kt_sense", "crunet_mr")  # of the other scans, in turns


def main() -> None:
    others = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    streams = streams_of(simulate(LONG))
    warm, small = (Paced(replace(plan_of(FRAMES), frames=frames)) for frames in (20, FRAMES))
    print(f"{FRAMES} frames of {1000 * FRAME:g} ms in real time; {others} other scans: {', '.join(PIPELINES)}")
    print("| other scans | median | 95 % | longest |")
    print("|---|---|---|---|")
    found: dict[int, list[float]] = {0: [], others: []}
    with server() as address:
        latencies(address, warm)  # what is made once is there then
        for _ in range(ROUNDS):
            for count, times in found.items():
                with load(address, streams, count):
                    times.extend(latencies(address, small)[ACCELERATION:])
    for count, times in found.items():
        median, most, longest = 1000 * np.quantile(times, [0.5, 0.95, 1.0])
        print(f"| {count} | {median:.0f} ms | {most:.0f} ms | {longest:.0f} ms |")
    alone, busy = (np.quantile(times, 0.95) for times in found.values())
    print(f"\n95 % of the latency with others over that alone: {busy / alone:.2f}")


@contextlib.contextmanager
def server():
    """A server in a process of its own; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "gadgets", "serve", "--port", str(port), "--noise-store", "off"]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.1)
            yield "127.0.0.1", port
        finally:
            process.terminate()


class Paced:
    """A scan in real time, encoded."""

    def __init__(self, plan: ScanPlan) -> None:
        scan = simulate(plan)
        self.begin = encoded(ConfigFile("realtime_cg_sense"), Header(scan.header))
        runs = [item for item in scan.items() if isinstance(item, Readouts)]
        readouts = [run[i : i + 1] for run in runs for i in range(len(run))]
        self.readouts = [(int(one.headers["idx"]["repetition"][0]), encoded(one)) for one in readouts]


def encoded(*messages) -> bytes:
    return b"".join(bytes(part) for message in messages for part in encode(message))


def streams_of(scan: Scan) -> list[bytes]:
    """What the other scans send, encoded."""
    items = encoded(Header(scan.header), *scan.items(), Close())
    return [encoded(ConfigFile(pipeline)) + items for pipeline in PIPELINES]


@contextlib.contextmanager
def load(address, streams: list[bytes], count: int):
    """Others that send one scan after the other."""
    if not count:
        yield
        return
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=send_scans, args=(address, streams, count, ready), daemon=True)
    process.start()
    ready.wait()  # its start takes a core that the server would miss
    time.sleep(4)  # all of them are at it
    try:
        yield
    finally:
        process.kill()
        process.join()
        time.sleep(3)  # the server has noticed


def send_scans(address, streams: list[bytes], count: int, ready) -> None:
    """Send scans, until the process is ended."""

    def send(stream: bytes) -> None:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(address) as connection:
                sender = threading.Thread(target=connection.sendall, args=(stream,), daemon=True)
                sender.start()
                while connection.recv(1 << 20):
                    pass
                sender.join()

    threads = [threading.Thread(target=send, args=(streams[i % len(streams)],)) for i in range(count)]
    ready.set()
    for thread in threads:
        thread.start()


def latencies(address, scan: Paced) -> np.ndarray:
    """Be a scanner in real time: seconds from the last readout of every frame to its image."""
    sent, came = {}, {}
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(scan.begin)

        def receive():
            for message in Reader.of_socket(connection):
                if isinstance(message, Image):
                    came[int(message.header["repetition"])] = time.perf_counter()

        receiver = threading.Thread(target=receive)
        receiver.start()
        due = time.perf_counter()
        for frame, readout in scan.readouts:
            due += READOUT
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.sendall(readout)
            sent[frame] = time.perf_counter()
        Writer.of_socket(connection).send(Close())
        receiver.join()
    return np.array([came[frame] - sent[frame] for frame in sorted(came)])


if __name__ == "__main__":
    main()
