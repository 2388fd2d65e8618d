"""Measure how long after its last readout the image of a frame is there, in real time: ``make bench``.

The scan is replayed against a simulated clock: readouts arrive one by one at the pace of the scanner, the time of every
step of the chain is measured, and an image is there when all work that came before it is done. So the queue that forms
when a frame takes longer than the next one needs to arrive is counted, and no time is spent waiting for the scanner.

    python -m tests.bench.realtime [threads] [wall | cpu] [method] [lines | spokes]

With ``spokes`` the scan has 13 spokes at tiny golden angles a frame of 36 ms instead of lines.

A GPU is used where there is one. On a machine with other work, the CPU time of one thread (``1 cpu``) says more than
the wall time.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from gadgets.chain import Chain
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Image
from recon_core.engine import Engine

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
FRAME, ACCELERATION, MATRIX, COILS, FRAMES, WARM = 0.04, 8, 96, 8, 500, 40
SPOKE_FRAME, SPOKES, SPOKE_FRAMES = 0.036, 13, 300


def main() -> None:
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
    plan = ScanPlan(
        trajectory="tiny_golden",
        spokes=SPOKES,
        repetition_time=1000 * SPOKE_FRAME / SPOKES,
        matrix_x=MATRIX,
        matrix_y=MATRIX,
        field_of_view_x=360.0,
        field_of_view_y=360.0,
        coils=COILS,
        frames=SPOKE_FRAMES,
        time_axis="repetition",
        waveforms=False,
    )
    scan, warm = simulate(plan), simulate(replace(plan, frames=WARM))
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
