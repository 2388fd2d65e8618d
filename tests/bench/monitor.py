"""Measure what the monitor page costs a server: CPU time, and how much later images come.

Sides take turns with the same scan: a server without the page, another one, which shows how far two of a kind are
apart, one with the page that nobody looks at, and the same with an open page, which is played by a process that takes
all news and fetches every loop as the page does.

    python -m tests.bench.monitor [rounds] [method]

A second table is of a scan in real time at its pace, whose loop goes on and on. Before them come the parts that an open
page costs, each for itself: where a machine has other work these say more.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gadgets.connection.log_tail import LogTail
from gadgets.connection.records import Load, ScanRecord, ServerRecord
from gadgets.gating.heartbeat import Heartbeat
from gadgets.monitor.state import Sources
from gadgets.reports.gallery import Gallery
from gadgets.simulation import ScanPlan, simulate
from gadgets.slices.complete import CompleteSlice, SliceKey
from gadgets.wire.header import parse_header
from gadgets.wire.messages import ACQUISITION_HEADER, Close, ConfigFile, Header, Image
from gadgets.wire.reader import Reader
from recon_core.data import CineSlice, Reconstruction
from tests.bench.realtime import ACCELERATION, plan_of
from tests.bench.sharing import Paced, encoded, latencies

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = ("without the page", "another one without", "nobody looks", "page open")
SETTLE = 0.5  # s, until the page has seen the end of the scan
FRAMES = 125  # in real time


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    method = sys.argv[2] if len(sys.argv) > 2 else "cg_sense"
    made = simulate(ScanPlan(slices=2, matrix_x=160, matrix_y=160, coils=10))
    cine = encoded(ConfigFile(method), Header(made.header), *made.items(), Close())
    paced = Paced(plan_of(FRAMES))
    print(f"load average {os.getloadavg()[0]:.1f}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, {rounds} rounds")
    parts()
    print(f"\n2 slices of 24 frames, 160 x 160, 10 coils, {method}; images: time of the last after the last readout")
    show(measure(partial(send, stream=cine), rounds))
    print(f"\n{FRAMES} frames in real time, 96 x 96, 8 coils; images: median time after the last readout of a frame")
    show(measure(partial(play, scan=paced), rounds))


def parts() -> None:
    """CPU time of what a server does for the page."""
    gallery, record = Gallery(), ServerRecord()
    sources = Sources(record, lambda: Load(1, 32, 0, 1, 0, 1), gallery, LogTail(), "nowhere")
    header = parse_header(simulate(ScanPlan(matrix_x=160, matrix_y=160)).header)
    frames = np.random.default_rng(0).standard_normal((24, 160, 160, 2), np.float32).view(np.complex64)[..., 0]
    maps = np.ones((10, 160, 160), np.complex64)
    cine = CineSlice(np.zeros((24, 10, 160, 160), np.complex64), np.ones((24, 160), bool))
    beat = Heartbeat(np.arange(24.0), np.zeros(24))
    for _ in range(50):
        scan = ScanRecord("a peer", method="cg_sense")
        record.end(scan)
        for number in range(3):
            key = SliceKey(0, 0, 0, 0, number)
            headers, counts = np.zeros(24, ACQUISITION_HEADER), np.arange(24)
            complete = CompleteSlice(key, cine, headers, beat, counts, counts)
            keep = partial(gallery.begin(scan.scan, header), complete, Reconstruction(frames, maps, "cg_sense"))
            kept = timed(keep)
    made = timed(gallery.loops(scan.scan)[0].picture)
    sources.over()
    for text, seconds in (
        ("keep the images of a slice of 24 frames, 160 x 160", kept),
        ("make its loop, once and only for who looks", made),
        ("news of the server, every second for each page", timed(sources.server)),
        ("the list of 50 scans, for each page and slice", timed(lambda: json.dumps(sources.over()))),
    ):
        print(f"{text}: {1000 * seconds:.1f} ms")


def timed(work: Callable[[], object]) -> float:
    """CPU time of this thread in s."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    """Medians, and of the ratios of each round to the side without the page median, least and largest."""
    print("| side | CPU | ratio | images | ratio |")
    print("|---|---|---|---|---|")
    base = found[SIDES[0]]
    for side in SIDES:
        columns = []
        for which in (0, 1):
            values = [one[which] for one in found[side]]
            ratios = [value / one[which] for value, one in zip(values, base, strict=True)]
            spread = "" if side == SIDES[0] else f" ({min(ratios):.2f} to {max(ratios):.2f})"
            columns += [f"{statistics.median(values):.3f} s", f"{statistics.median(ratios):.3f}{spread}"]
        print(f"| {side} | {' | '.join(columns)} |", flush=True)


def measure(scan: Callable[[int], float], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU time of the server in s, and what a scan that is sent to a port gives, of every side and round."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with served() as plain, served() as other, served("--web", "0") as shown:
        servers = dict(zip(SIDES, (plain, other, shown, shown), strict=True))
        for one in (plain, other, shown):
            scan(one.port)
        for number in range(rounds):
            first = number % len(SIDES)
            for side in (*SIDES[first:], *SIDES[:first]):
                server = servers[side]
                with looking(server.page) if side == SIDES[-1] else contextlib.nullcontext():
                    before = server.cpu()
                    delay = scan(server.port)
                    time.sleep(SETTLE)
                    found[side].append((server.cpu() - before, delay))
    return found


class Served:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._stat = Path(f"/proc/{process.pid}/stat")
        self.port = int(re.search(r"port (\d+)", process.stdout.readline())[1])
        self.page = ""

    def cpu(self) -> float:
        """CPU time of all its threads in s."""
        fields = self._stat.read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(*options: str):
    command = [sys.executable, "-m", "gadgets", "serve", "--port", "0", "--noise-store", "off", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            server = Served(process)
            if options:
                server.page = process.stdout.readline().split()[-1]
            yield server
        finally:
            process.terminate()


def send(port: int, stream: bytes) -> float:
    """Send a scan; gives how long after the last readout its last image came."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sent = []
        sender = threading.Thread(target=lambda: (connection.sendall(stream), sent.append(time.perf_counter())))
        sender.start()
        last = 0.0
        for message in Reader.of_socket(connection):
            if isinstance(message, Image):
                last = time.perf_counter()
        sender.join()
    return last - sent[0]


def play(port: int, scan: Paced) -> float:
    """Send a scan in real time; gives the median of the times from the last readout of a frame to its image."""
    return statistics.median(latencies(("127.0.0.1", port), scan)[ACCELERATION:])


@contextlib.contextmanager
def looking(page: str):
    """An open page, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=look, args=(page, ready), daemon=True)
    process.start()
    ready.wait()  # its start takes a core that the server would miss
    time.sleep(SETTLE)
    try:
        yield
    finally:
        process.terminate()
        process.join()


def look(page: str, ready) -> None:
    """Take all news, and fetch loops when they are new."""
    known: dict[tuple[str, int], int] = {}
    with urllib.request.urlopen(f"{page}events") as news:
        ready.set()
        for kind, data in pairwise(news):
            if kind.strip() != b"event: state":
                continue
            for scan in json.loads(data.removeprefix(b"data: "))["running"]:
                for number, loop in enumerate(scan["loops"]):
                    if known.get((scan["scan"], number)) != loop["version"]:
                        known[scan["scan"], number] = loop["version"]
                        with urllib.request.urlopen(f"{page}loops/{scan['scan']}/{number}") as answer:
                            answer.read()


if __name__ == "__main__":
    main()
