"""Measure how true the uncertainty is: ``python -m tests.bench.uncertainty DATA [METHOD ...]``.

On one scan of each part of the suite, sampled in three ways, and on the semi-real ones: the share of the errors that
are within one standard deviation as ``extra_series=uncertainty`` gives it, and the error over it (root mean squares),
in the body and where it moves. METHODs are ``kt_sense`` and ``dstdm`` by default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gadgets.evaluation.suite import held_out_scans, scaled, semi_real_scans
from recon_core.engine import Engine
from recon_core.metrics.measures import dynamic_region
from recon_core.options import ReconOptions

CONDITIONS = ("uniform_8", "interleaved_8", "random_8")
BODY = 0.05  # of the brightest pixel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("methods", nargs="*", default=["kt_sense", "dstdm"])
    options = parser.parse_args()
    engine, rows = Engine(), {method: [] for method in options.methods}
    last = {scan.part: scan for scan in held_out_scans(options.data)}.values()
    scans = [(scan, condition) for scan in last for condition in CONDITIONS]
    scans += [(scan, scan.conditions[0]) for scan in semi_real_scans(options.data / "semi_real_cine")]
    for scan, condition in scans:
        loaded = scan.load()
        for method, found in rows.items():
            of_method = ReconOptions.of(method=method, outside_range="note", extra_series="uncertainty")
            made = [engine.reconstruct(one, of_method) for one in loaded.measured(condition)]
            images = scaled([np.abs(one.image) for one in made], loaded.truth)
            factor = np.linalg.norm(images[0]) / np.linalg.norm(made[0].image)
            truth = np.abs(loaded.truth)
            error = np.abs(np.stack(images) - truth)
            deviation = factor * np.stack([one.extra["uncertainty"] for one in made])
            body = np.broadcast_to(truth.mean(1, keepdims=True) > BODY * truth.max(), truth.shape)
            moving = np.stack([np.broadcast_to(dynamic_region(one), one.shape) for one in truth])
            figures = [(error < deviation)[region].mean() for region in (body, moving)]
            figures += [(np.square(error[r]).mean() / np.square(deviation[r]).mean()) ** 0.5 for r in (body, moving)]
            found.append(figures)
            print(f"{scan.name:28} {condition:14.14} {method:10} {told(figures)}", flush=True)
    for method, found in rows.items():
        for name, reduce in (("median", np.median), ("least", np.min), ("most", np.max)):
            print(f"{name:43} {method:10} {told(reduce(found, axis=0))}")


def told(figures: list[float]) -> str:
    """Four figures in words."""
    return "within: body {:.2f}, moving {:.2f}; error over it: {:.2f}, {:.2f}".format(*figures)


if __name__ == "__main__":
    main()
