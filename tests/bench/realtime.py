"""Measure how long after its last readout the image of a frame is there, in real time: ``make bench``.

The scan is replayed against a simulated clock: readouts arrive one by one at the pace of the scanner, the time of every
step of the chain is measured, and an image is there when all work that came before it is done. So the queue that forms
when a frame takes longer than the next one needs to arrive is counted, and no time is spent waiting for the scanner.

    python -m tests.bench.realtime [threads] [wall | cpu] [method] [lines | spokes]
    python -m tests.bench.realtime served [threads] [method ...]

With ``spokes`` the scan has 13 spokes at tiny golden angles a frame of 36 ms instead of lines. With ``served`` these
spokes go to a server in a process of its own, through its socket and at the pace of the scanner, and the time is that
from the last spoke of a frame to its image, both on the clock of this machine.

A GPU is used where there is one. On a machine with other work, the CPU time of one thread (``1 cpu``) says more than
the wall time.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gadgets.chain import Chain
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, Header, Image, Text
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.engine import Engine

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
FRAME, ACCELERATION, MATRIX, COILS, FRAMES, WARM = 0.04, 8, 96, 8, 500, 40
SPOKE_FRAME, SPOKES, SPOKE_FRAMES, FIRST = 0.036, 13, 300, 8  # the first frames wait for each other
#: Methods through the server, with what else they are set to.
SERVED = {"zero_filled": {}, "cg_sense": {}, "kt_sense": {"realtime": "fixed", "realtime_window": 24}}


def main() -> None:
    if sys.argv[1:2] == ["served"]:
        served(int(sys.argv[2]) if len(sys.argv) > 2 else 2, sys.argv[3:] or list(SERVED))
        return
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    clock = CLOCKS[sys.argv[2] if len(sys.argv) > 2 else "wall"]
    method = sys.argv[3] if len(sys.argv) > 3 else "cg_sense"
    torch.set_num_threads(threads)
    if "spokes" in sys.argv:
        spokes(threads, clock, method)
        return
    plan = plan_of(FRAMES, respiration=5.0)
    scan, warm = simulate(plan), simulate(replace(plan, frames=WARM))
    items = list(scan.items())
    engine = Engine()
    load = os.getloadavg()[0]
    print(f"R = {ACCELERATION}, {MATRIX} x {MATRIX} x {COILS} coils, {FRAMES} frames of {1000 * FRAME:g} ms, {method}")
    print(f"{engine.device}, {threads} of {os.cpu_count()} CPU threads, {clock.__name__}; load average {load:.1f}")
    print(f"latency from the last readout of a frame to its image; the first {ACCELERATION} frames wait for each other")
    print("| mode | window | first frame | then median | 99 % | longest | work per frame | keeps up |")
    print("|---|---|---|---|---|---|---|---|")
    for mode, window in (("sliding", 8), ("sliding", 16), ("fixed", 8), ("fixed", 16)):
        settings = {"method": method, "realtime": mode, "realtime_window": window, "outside_range": "note"}
        measure(warm.header, warm.items(), engine, settings, clock)
        latency, work = measure(scan.header, items, engine, settings, clock)
        median, most, longest = 1000 * np.quantile(latency[ACCELERATION:], [0.5, 0.99, 1.0])
        print(
            f"| {mode} | {window} | {1000 * latency[0]:.0f} ms | {median:.0f} ms | {most:.0f} ms | {longest:.0f} ms "
            f"| {1000 * work / FRAMES:.1f} ms | {'yes' if work < FRAMES * FRAME else 'no'} |"
        )


def spokes(threads: int, clock, method: str) -> None:
    """Latency of frames of spokes in sliding windows."""
    scan, warm = simulate(plan_of_spokes(SPOKE_FRAMES)), simulate(plan_of_spokes(WARM))
    items, warming = list(scan.items()), list(warm.items())
    engine = Engine()
    load = os.getloadavg()[0]
    print(f"{SPOKES} spokes, {MATRIX} x {MATRIX} x {COILS} coils, {SPOKE_FRAMES} frames of {1000 * SPOKE_FRAME:g} ms")
    print(f"{engine.device}, {threads} of {os.cpu_count()} CPU threads, {clock.__name__}; load average {load:.1f}")
    for window in (8, 4):
        settings = {"method": method, "realtime": "sliding", "realtime_window": window, "lines_per_frame": SPOKES}
        measure(warm.header, warming, engine, settings, clock, SPOKE_FRAME / SPOKES)
        latency, work = measure(scan.header, items, engine, settings, clock, SPOKE_FRAME / SPOKES)
        median, most, longest = 1000 * np.quantile(latency[window:], [0.5, 0.99, 1.0])
        print(
            f"window {window}: first {1000 * latency[0]:.0f} ms, then median {median:.0f} ms, 99 % {most:.0f}, longest "
            f"{longest:.0f} ms, work per frame {1000 * work / SPOKE_FRAMES:.1f} ms",
            flush=True,
        )


def served(threads: int, methods: list[str]) -> None:
    """Latency of frames of spokes through the socket of a server."""
    scan, warm = simulate(plan_of_spokes(SPOKE_FRAMES)), simulate(plan_of_spokes(WARM))
    load = os.getloadavg()[0]
    print(f"{SPOKES} spokes, {MATRIX} x {MATRIX} x {COILS} coils, {SPOKE_FRAMES} frames of {1000 * SPOKE_FRAME:g} ms")
    print(f"server with {threads} of {os.cpu_count()} CPU threads; load average {load:.1f}")
    for method in methods:
        with running_server(threads) as (address, used):
            play(address, warm, method)
            before = used()
            latency = 1000 * play(address, scan, method)
            work = 1000 * (used() - before) / SPOKE_FRAMES
        median, most, longest = np.quantile(latency[FIRST:], [0.5, 0.95, 1.0])
        print(
            f"{method} {SERVED.get(method, {})}: {len(latency)} images, first {latency[0]:.0f} ms, then median "
            f"{median:.0f} ms, 95 % {most:.0f}, longest {longest:.0f} ms; CPU time of the server {work:.1f} ms a frame",
            flush=True,
        )


@contextlib.contextmanager
def running_server(threads: int):
    """A server of its own process: its address, and what gives its CPU time in s."""
    command = [sys.executable, "-m", "gadgets", "serve", "--port", "0", "--noise-store", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as one:
        try:
            port = int(one.stdout.readline().split()[-1])
            yield ("127.0.0.1", port), lambda: cpu_seconds(one.pid)
        finally:
            one.terminate()


def cpu_seconds(process: int) -> float:
    """CPU time of a process, as Linux counts it."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def play(address: tuple[str, int], scan, method: str) -> np.ndarray:
    """Be a scanner in real time; gives the latency of every frame in s, in the order of the images."""
    items = [item[i : i + 1] for item in scan.items() for i in range(len(item))]
    sent: dict[int, float] = {}
    latency: list[float] = []
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer = Writer.of_socket(connection)

        def receive() -> None:
            images = (item for item in Reader.of_socket(connection) if isinstance(item, Image))
            latency.extend(time.perf_counter() - sent[int(image.header["repetition"])] for image in images)

        receiver = threading.Thread(target=receive)
        receiver.start()
        writer.send(ConfigFile("realtime_cg_sense"))
        writer.send(Header(scan.header))
        settings = {"method": method, "lines_per_frame": SPOKES, **SERVED.get(method, {})}
        writer.send(Text(json.dumps({"parameters": settings})))
        begin = time.perf_counter()
        number = 0
        for item in items:
            if not item.headers["flags"][0] & AcquisitionFlag.NOISE.bit:
                number += 1
                time.sleep(max(0.0, begin + number * SPOKE_FRAME / SPOKES - time.perf_counter()))
            sent[int(item.headers["idx"]["repetition"][0])] = time.perf_counter()
            writer.send(item)
        writer.send(Close())
        receiver.join()
    return np.array(latency)


def plan_of_spokes(frames: int) -> ScanPlan:
    """A scan of spokes at tiny golden angles."""
    return ScanPlan(
        trajectory="tiny_golden",
        spokes=SPOKES,
        repetition_time=1000 * SPOKE_FRAME / SPOKES,
        matrix_x=MATRIX,
        matrix_y=MATRIX,
        field_of_view_x=360.0,
        field_of_view_y=360.0,
        coils=COILS,
        frames=frames,
        time_axis="repetition",
        waveforms=False,
    )


def plan_of(frames: int, matrix: int = MATRIX, coils: int = COILS, **more) -> ScanPlan:
    """A scan without a period, its lines shifting from frame to frame."""
    return ScanPlan(
        matrix_x=matrix,
        matrix_y=matrix,
        coils=coils,
        frames=frames,
        time_axis="repetition",
        sampling="interleaved",
        acceleration=ACCELERATION,
        acs_lines=0,
        repetition_time=1000 * FRAME / (matrix // ACCELERATION),
        waveforms=False,
        **more,
    )


def measure(
    header: str, items, engine: Engine, settings, clock, spacing: float = FRAME / (MATRIX // ACCELERATION)
) -> tuple[np.ndarray, float]:
    """Latency of every frame in s, on the clock of a scanner that never waits; and all work in s."""
    arrival = 0.0
    now = 0.0  # when the chain is ready for more
    began = 0.0  # when it was handed the readout that it works on, by the clock of the machine
    last = {}  # arrival of the last readout of a frame
    work = 0.0

    def readouts():
        nonlocal arrival, now, began, work
        for item in items:
            for i in range(len(item)):
                one = item[i : i + 1]
                if not one.headers["flags"][0] & AcquisitionFlag.NOISE.bit:
                    arrival += spacing
                    last[int(one.headers["idx"]["repetition"][0])] = arrival
                if began:  # what was done since the last readout was handed over
                    work += clock() - began
                    now += clock() - began
                now = max(now, arrival)
                began = clock()
                yield one

    pipeline = apply(find_pipeline("realtime_cg_sense").settings, settings)
    chain = Chain(parse_header(header), pipeline, lambda: engine)
    images = (item for item in chain(readouts()) if isinstance(item, Image))
    latency = [now + clock() - began - last[int(image.header["repetition"])] for image in images]
    return np.array(latency), work + clock() - began


if __name__ == "__main__":
    main()
