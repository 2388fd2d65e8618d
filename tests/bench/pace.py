"""Measure how long every method takes for one slice: the numbers that `recon_core.methods.MethodInfo.seconds` holds.

``python -m tests.bench.pace [NAME ...]`` prints the seconds of one core for a slice of the reference shape, taken from
one of a quarter of the pixels: the better of two runs, in time of the processor, so that other work on the machine
counts little. Networks have their packaged weights.
"""

from __future__ import annotations

import sys
import time
from unittest.mock import patch

import numpy as np
import torch

from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.methods import method_names
from recon_core.options import ReconOptions
from recon_core.simulate.kspace import simulate_cine
from recon_core.steps.pace import REFERENCE_SHAPE, Job, Pace, relative_size

_RUNS = 2


def main() -> None:
    torch.set_num_threads(1)
    frames, coils, lines, samples = REFERENCE_SHAPE
    matrix = (lines // 2, samples // 2)
    scan = simulate_cine(frames=frames, matrix=matrix, coils=coils, sampling="uniform", acceleration=4, acs_lines=16)
    cine, engine = CineSlice(scan.kspace, np.asarray(scan.mask)), Engine("cpu")
    for name in sys.argv[1:] or method_names(lambda info: not info.chooses):
        print(f"{name} {seconds(engine, cine, name):.2g}", flush=True)


def seconds(engine: Engine, cine: CineSlice, name: str) -> float:
    """Time of one core for a slice of the reference shape."""
    found = []

    def learn(_: Pace, job: Job, taken: float) -> None:
        if job.method == name:
            found.append(taken / relative_size(job))

    options = ReconOptions.of(method=name, outside_range="note", fallback="none")
    with patch.object(Pace, "learn", learn), patch("recon_core.steps.pace.work_time", time.process_time):
        for _ in range(_RUNS):
            engine.reconstruct(cine, options)
    return min(found)


if __name__ == "__main__":
    main()
