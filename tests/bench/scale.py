"""Measure many scans and connections: ``python -m tests.bench.scale [batch] [slices] [kills] [ray_kills] [front] ...``.

Prints the figures of docs/scale.md. Ratios are of one run; not a test: a loaded machine would fail it without a fault
of the code.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gadgets.connection.front import Front, local_starts
from gadgets.connection.passage import Passage
from gadgets.connection.server import Server
from gadgets.connection.session import SessionOptions
from gadgets.connection.worker import WorkerOptions, _messages
from gadgets.replay import replay
from gadgets.replay.batch import Batch, BatchProgress
from gadgets.replay.plan import make_plan
from gadgets.replay.ray_workers import RayWorkers
from gadgets.replay.table import TABLE, Table
from gadgets.replay.workers import ProcessWorkers
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate, write_simulation
from gadgets.wire.messages import ACQUISITION_HEADER, Close, ConfigText, Header, Readouts
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer, encode
from recon_core.api import shared_engine
from recon_core.children import Child
from recon_core.cluster import LOCAL
from tests.helpers.image_files import contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.replay.workers import Workers

SCANS, KILLS, LARGE = 40, 20, 10
PLAN = {"matrix_x": 128, "matrix_y": 112, "frames": 16, "coils": 8, "slices": 3}
METHOD = "cg_sense"
COILS, SAMPLES, READOUTS, REPETITION_MS = 32, 512, 6000, 2.5


def main() -> None:
    wanted = sys.argv[1:] or ["batch", "slices", "kills", "ray_kills", "front", "plan"]
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"batch", "kills", "ray_kills"} & {*wanted}:
            (folder / "raw").mkdir()
            for number in range(SCANS):
                write_simulation(ScanPlan(**PLAN, seed=number), folder / "raw" / f"{number:02d}.h5")
            for truth in (folder / "raw").glob("*.npz"):
                truth.unlink()
        if "batch" in wanted:
            batch(folder)
        if "slices" in wanted:
            slices(folder)
        if "kills" in wanted:
            workers = ProcessWorkers(2, 1, 50)
            kills(folder, workers, lambda: workers.pids, "workers")
        if "ray_kills" in wanted:
            kills(folder, RayWorkers(LOCAL, 2, 1, 50), actors_at_work, "Ray workers")
        if "front" in wanted:
            front()
        if "plan" in wanted:
            plan(folder)


def row(what: str, found: str) -> None:
    print(f"| {what} | {found} |", flush=True)


# --- batch ------------------------------------------------------------------------------------------------------------

WAYS = {
    "1 process": ["--processes", "1"],
    "2 processes": ["--processes", "2"],
    "a local Ray, 2 workers": ["--processes", "2", "--ray", "local"],
}


def batch(folder: Path) -> None:
    raw = folder / "raw"
    size = sum(path.stat().st_size for path in raw.iterdir()) / SCANS / 1e6
    _compare(folder, raw, f"{SCANS} scans of {size:.1f} MB with {METHOD}", WAYS)
    line = [sys.executable, "-m", "gadgets", "batch", str(raw), "-p", METHOD, "-o", str(folder / "2_processes")]
    begin = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    row("the same again, nothing left to do", f"{time.perf_counter() - begin:.1f} s")


def slices(folder: Path) -> None:
    """One scan of many slices, which several processes share."""
    raw = folder / "large"
    raw.mkdir()
    write_simulation(ScanPlan(slices=LARGE), raw / "large.h5")
    size = (raw / "large.h5").stat().st_size / 1e6
    for method in ("cg_sense", "kt_sense"):
        ways = {f"{count} process{'es' * (count > 1)}": ["--processes", str(count)] for count in (1, 2)}
        outputs = _compare(
            folder / method, raw, f"1 scan of {LARGE} slices, {size:.0f} MB, with {method}", ways, method
        )
        assert contents(outputs[0] / "large.h5") == contents(outputs[1] / "large.h5")


def _compare(folder: Path, raw: Path, what: str, ways: dict[str, list[str]], method: str = METHOD) -> list[Path]:
    """Reconstruct the files of a folder in several ways, with time and CPU of each; gives the folders of images."""
    seconds, outputs = [], []
    for name, options in ways.items():
        print(f"load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
        output = folder / name.replace(" ", "_")
        line = [sys.executable, "-m", "gadgets", "batch", str(raw), "-p", method, "-o", str(output), *options]
        begin, cpu = time.perf_counter(), _cpu_of_children()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seconds.append(time.perf_counter() - begin)
        outputs.append(output)
        cpu = _cpu_of_children() - cpu
        assert len(list(output.glob("*.h5"))) == len(list(raw.glob("*.h5")))
        row(f"{what}, {name}", f"{seconds[-1]:.1f} s, {cpu:.0f} s of CPU; {seconds[0] / seconds[-1]:.2f}x")
    return outputs


def _cpu_of_children() -> float:
    """Seconds of all processes that have ended and were waited for; those of a Ray are not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kills(folder: Path, workers: Workers, at_work: Callable[[], list[int]], what: str) -> None:
    """Kill a random one of the workers that are at work now and then, and compare with replay."""
    settings = Settings.of(method=METHOD)
    output = folder / f"killed_{what.replace(' ', '_')}"
    output.mkdir()
    entries = make_plan(
        [(path, output / path.name) for path in sorted((folder / "raw").iterdir())], settings, "dataset"
    )
    chance, killed = random.Random(0), []
    wait, due = workers.wait, [time.monotonic() + 2]

    def killing(seconds):
        if len(killed) < KILLS and time.monotonic() > due[0] and (numbers := at_work()):
            killed.append(chance.choice(numbers))
            os.kill(killed[-1], signal.SIGKILL)
            due[0] = time.monotonic() + chance.uniform(0.2, 3)
        return wait(0.05)

    workers.wait = killing
    run = Batch(entries, Table(output / TABLE), workers)
    with BatchProgress(entries, lambda _: None) as progress:
        run.run(progress)
    equal = 0
    for entry in entries:
        one = folder / "one.h5"
        replay(entry.source, one, settings, shared_engine, overwrite=True, progress=False)
        equal += contents(one) == contents(entry.output)
    tries = sum(row.tries for row in run.rows)
    parts = [path.name for path in output.iterdir() if path.suffix == ".part"]
    row(
        f"{len(killed)} random kills of 2 {what}",
        f"{equal} of {SCANS} equal to replay, {tries} tries, parts left: {len(parts)}",
    )


def actors_at_work() -> list[int]:
    """Processes of the Ray of this process that do a job: Ray names them, and they are children of its daemon."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::RayRunner.run") and _parent(
                _parent(int(folder.name))
            ) == os.getpid():
                found.append(int(folder.name))
    return found


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])


# --- the front --------------------------------------------------------------------------------------------------------


def sink(connection: socket.socket) -> None:
    """A worker that takes what comes and answers nothing."""
    for _, session in _messages(connection):
        if session is not None:
            for _message in Reader.of_socket(session):
                pass
            Writer.of_socket(session).send(Close())
            session.close()


class Sinks(WorkerOptions):
    def start(self, environment):
        return Child("tests.bench.scale:sink", {}, environment)


def front() -> None:
    workers = Front(local_starts(1, Sinks(SessionOptions())), 4 << 30, 600.0)
    server = Server("127.0.0.1", 0, sessions=partial(Passage, front=workers))
    thread = threading.Thread(target=server.serve)
    thread.start()
    found = []
    for _ in range(3):
        sender = get_context("spawn").Process(target=_flood, args=(server.address[1],))
        sender.start()
        while not server._running():
            time.sleep(0.01)
        cpu, wall = time.process_time(), time.perf_counter()
        while server._running():
            time.sleep(0.01)
        found.append((READOUTS / (time.process_time() - cpu), READOUTS / (time.perf_counter() - wall)))
        sender.join()
    server.stop()
    thread.join()
    workers.close()
    per_core, per_second = (max(one[i] for one in found) for i in range(2))
    scanner = 1000 / REPETITION_MS
    megabytes = (8 * COILS * SAMPLES + 342) / 1e6
    what = f"readouts of {COILS} coils x {SAMPLES} samples ({1000 * megabytes:.0f} kB) through the front"
    row(f"{what}, for each core that it uses", f"{per_core:.0f} /s ({per_core * megabytes:.0f} MB/s)")
    row(f"the same, over those of a scanner at TR {REPETITION_MS} ms", f"{per_core / scanner:.1f}x")
    row("the same, wall, one connection, sender and worker on the same cores", f"{per_second:.0f} /s")


def _flood(port: int) -> None:
    header = simulate(ScanPlan(matrix_x=64, matrix_y=64, frames=1)).header
    headers = np.zeros(50, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["active_channels"] = SAMPLES, COILS
    block = encode(Readouts(headers, np.zeros((50, COILS, SAMPLES), np.complex64)))[0]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        writer = Writer.of_socket(connection)
        writer.send(ConfigText("<configuration/>"))
        writer.send(Header(header))
        for _ in range(READOUTS // 50):
            writer.send_buffers([block])
        writer.send(Close())
        connection.recv(2)


# --- a plan -----------------------------------------------------------------------------------------------------------

METHODS = ("zero_filled", "cg_sense", "low_rank_sparse", "kt_sense", "crunet_mr")
# Assumed: a breath hold gives a slice every so often, a scan has so many, and a scanner scans so much of its time.
SLICE_SECONDS, SLICES, SHARE = 12.0, 12, 0.25


def plan(folder: Path) -> None:
    """CPU seconds of a slice by method, and cores that keep up with scanners by a simulation of their queue."""
    torch.set_num_threads(1)
    raw = folder / "slice.h5"
    scan = ScanPlan(slices=1, coils=10)
    write_simulation(scan, raw)
    row("raw data and images of a slice", f"{raw.stat().st_size / 1e6:.0f} MB and {_image_megabytes(scan):.1f} MB")
    for method in METHODS:
        settings = Settings.of(method=method, outside_range="note")
        spent = []
        for _ in range(2):  # the first loads and learns
            begin = time.process_time()
            replay(raw, folder / "slice_images.h5", settings, shared_engine, overwrite=True, progress=False)
            spent.append(time.process_time() - begin)
        cores = ", ".join(f"{_cores(count, spent[-1])} for {count}" for count in (1, 10, 100))
        row(f"a slice with {method}", f"{spent[-1]:.1f} s of CPU; cores that keep up with scanners: {cores}")


def _image_megabytes(scan: ScanPlan) -> float:
    return 4 * scan.frames * scan.matrix_x * scan.matrix_y / 1e6


def _cores(scanners: int, seconds: float) -> int:
    """The fewest cores with which 99 % of the slices are done before the next one of their scanner is measured."""
    fewest = max(1, math.ceil(scanners * SHARE * seconds / SLICE_SECONDS))
    return next(
        cores for cores in itertools.count(fewest) if _latency(scanners, cores, seconds) <= seconds + SLICE_SECONDS
    )


def _latency(scanners: int, cores: int, seconds: float, hours: float = 8.0) -> float:
    """99th percentile of the seconds from the last readout of a slice to its images, first come, first served."""
    chance, arrivals = random.Random(0), []
    pause = SLICES * SLICE_SECONDS * (1 / SHARE - 1)
    for _ in range(scanners):
        now = chance.uniform(0, pause)
        while now < 3600 * hours:
            arrivals += [now + SLICE_SECONDS * (number + 1) for number in range(SLICES)]
            now += SLICES * SLICE_SECONDS + chance.uniform(0, 2 * pause)
    free, latencies = [0.0] * cores, []
    for arrival in sorted(arrivals):
        begin = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begin + seconds)
        latencies.append(begin + seconds - arrival)
    return sorted(latencies)[int(0.99 * len(latencies))]


if __name__ == "__main__":
    main()
