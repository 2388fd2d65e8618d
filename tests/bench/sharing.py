"""Measure what other scans cost a scan in real time on the same server: ``python -m tests.bench.sharing [SCANS]``.

A server takes one small scan in real time at the pace of a scanner, in turns alone and while others (7 by default) send
whole slices as fast as they are taken. The latency is that from the last readout of a frame to its image, at the
client.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np

from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import Close, ConfigFile, Header, Image, Readouts
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from tests.bench.realtime import ACCELERATION, FRAME, plan_of

FRAMES, ROUNDS = 100, 2
LONG = ScanPlan(matrix_x=156, matrix_y=192, coils=10, frames=24, slices=2, acceleration=6)
PIPELINES = ("cg_sense", "kt_sense", "crunet_mr")  # of the other scans, in turns


def main() -> None:
    others = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    small, long = simulate(plan_of(FRAMES)), simulate(LONG)
    print(f"{FRAMES} frames of {1000 * FRAME:g} ms in real time; {others} other scans: {', '.join(PIPELINES)}")
    print("| other scans | median | 95 % | longest |")
    print("|---|---|---|---|")
    found: dict[int, list[float]] = {0: [], others: []}
    with server() as address:
        latencies(address, simulate(replace(plan_of(FRAMES), frames=20)))  # what is made once is there then
        for _ in range(ROUNDS):
            for count, times in found.items():
                with load(address, long, count):
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


@contextlib.contextmanager
def load(address, scan, count: int):
    """Others that send one scan after the other."""
    over = threading.Event()

    def send(pipeline: str) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(address) as connection:
                writer = Writer.of_socket(connection)
                for message in (ConfigFile(pipeline), Header(scan.header), *scan.items(), Close()):
                    writer.send(message)
                for _ in Reader.of_socket(connection):
                    if over.is_set():
                        break

    threads = [threading.Thread(target=send, args=(PIPELINES[i % len(PIPELINES)],)) for i in range(count)]
    for thread in threads:
        thread.start()
    if count:
        time.sleep(5)  # all of them are at it
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def latencies(address, scan) -> np.ndarray:
    """Be a scanner in real time: seconds from the last readout of every frame to its image."""
    sent, came = {}, {}
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer = Writer.of_socket(connection)
        writer.send(ConfigFile("realtime_cg_sense"))
        writer.send(Header(scan.header))

        def receive():
            for message in Reader.of_socket(connection):
                if isinstance(message, Image):
                    came[int(message.header["repetition"])] = time.perf_counter()

        receiver = threading.Thread(target=receive)
        receiver.start()
        due = time.perf_counter()
        for item in scan.items():
            for one in (item[i : i + 1] for i in range(len(item))) if isinstance(item, Readouts) else ():
                due += FRAME / (plan_of(1).matrix_y // ACCELERATION)
                time.sleep(max(0.0, due - time.perf_counter()))
                writer.send(one)
                sent[int(one.headers["idx"]["repetition"][0])] = time.perf_counter()
        writer.send(Close())
        receiver.join()
    return np.array([came[frame] - sent[frame] for frame in sorted(came)])


if __name__ == "__main__":
    main()
