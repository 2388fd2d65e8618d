"""Errors of every method on scans with known truth: ``python -m tests.bench.quality [FOLDER]``.

Simulated scans by default; with a folder, the raw files in it that have a ``<name>_ref.npz`` with ``reference``.
Scored on magnitudes of the whole series after one factor, as
`recon_core.metrics.scores.score` says. Prints a Markdown table.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from gadgets.chain import Chain
from gadgets.connection.server import SharedEngine
from gadgets.files.raw import open_scan
from gadgets.images.maker import CineImage
from gadgets.reports.record import ReportCollector
from gadgets.settings.pipelines import list_pipelines
from gadgets.simulation import ScanPlan, write_simulation
from gadgets.wire.header import parse_header
from recon_core.metrics.scores import score

SCANS = {
    "every 3rd line + 24 ACS (the demo)": ScanPlan(),
    "every 4th line, shifting, no ACS": ScanPlan(sampling="interleaved", acceleration=4, acs_lines=0),
    "variable density, 1 of 6": ScanPlan(sampling="variable_density", acceleration=6, acs_lines=8),
}


def main() -> None:
    print(
        "| scan | method | dynamic PSNR / dB | PSNR / dB | SSIM | NRMSE | s per slice |\n|---|---|---|---|---|---|---|"
    )
    engine = SharedEngine()
    with tempfile.TemporaryDirectory() as folder:
        for name, path, truth in _stored(Path(sys.argv[1])) if len(sys.argv) > 1 else _simulated(Path(folder)):
            for pipeline in list_pipelines().values():
                if not pipeline.needs_gadgetron:
                    _score(name, path, truth, pipeline, engine)


def _simulated(folder: Path):
    for name, plan in SCANS.items():
        path = folder / "scan.h5"
        with np.load(write_simulation(plan, path)) as arrays:
            yield name, path, arrays["image"]


def _stored(folder: Path):
    for path in sorted(folder.glob("*.h5")):
        with np.load(path.with_name(f"{path.stem}_ref.npz")) as arrays:
            yield path.stem, path, arrays["reference"]


def _score(name: str, path: Path, truth: np.ndarray, pipeline, engine) -> None:
    for _round in range(2):  # the second is hot
        collector = ReportCollector()
        with open_scan(path) as scan:
            chain = Chain(parse_header(scan.header), pipeline.settings, engine, watch=collector.watch)
            for item in chain(scan.items):
                if isinstance(item, CineImage):
                    collector.add_image(item)
                    did = re.search("<name>cinestream_method</name><value>([^<]*)", item.attributes).group(1)
    got, seconds = score(collector.series(), truth), chain.summary.seconds["slice"] / chain.summary.slices
    numbers = f"{got['dynamic_psnr']:.1f} | {got['psnr']:.1f} | {got['ssim']:.3f} | {got['nrmse']:.3f} | {seconds:.2f}"
    method = pipeline.name if did == pipeline.name else f"{pipeline.name}, fell back to {did}"
    print(f"| {name} | {method} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
