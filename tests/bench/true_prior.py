"""Measure what ``kt_sense`` would gain if it knew its prior: ``python -m tests.bench.true_prior DATA [METHOD ...]``.

DATA is the folder with ``semi_real_cine``. Power and principal components are read off the truth of each slice instead
of an estimate, and the image is solved for from zero until it no longer changes. The figures are PSNR in dB, where it
moves / whole, with what is gained over ``kt_sense``; METHODs, by default ``dstdm``, are reconstructed beside it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gadgets.evaluation.suite import measure, scaled, semi_real_scans
from recon_core.classical import kt_sense
from recon_core.classical.kt_prior import next_prior, settled_prior
from recon_core.engine import Engine
from recon_core.metrics.measures import best_scale
from recon_core.options import ReconOptions
from recon_core.own_methods import register_method
from recon_core.steps.units import _receive_intensity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.data import CineSlice, HybridSlice, Reconstruction

ITERATIONS = 100
KNOWING = "kt_sense_knowing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("methods", nargs="*", default=["dstdm"])
    options = parser.parse_args()
    engine = Engine()
    for scan in semi_real_scans(options.data / "semi_real_cine"):
        loaded = scan.load()
        slices = loaded.measured(scan.conditions[0])

        def run(method: str, slices: list[CineSlice] = slices) -> list[Reconstruction]:
            return [engine.reconstruct(one, ReconOptions.of(method=method, outside_range="note")) for one in slices]

        made = {"kt_sense": run("kt_sense"), KNOWING: []}
        for one, truth, first in zip(slices, loaded.truth, made["kt_sense"], strict=True):
            register_method(KNOWING, partial(knowing, truth=unshaded(first, np.abs(truth), one)))
            made[KNOWING] += run(KNOWING, [one])
        made |= {method: run(method) for method in options.methods}
        scores = {}
        for method, each in made.items():
            frames = scaled([np.abs(one.image) for one in each], loaded.truth)
            scores[method] = np.array([measure(frames, list(loaded.truth))[k] for k in ("dynamic_psnr", "psnr")])
            moving, whole = scores[method]
            gained = " / ".join(f"{gain:+.2f}" for gain in scores[method] - scores["kt_sense"])
            print(f"{scan.name:28} {method:18} {moving:.2f} / {whole:.2f}   {gained}", flush=True)


def unshaded(made: Reconstruction, truth: NDArray[np.float32], one: CineSlice) -> torch.Tensor:
    """The truth ``(frame, y, x)`` complex64 as methods see it: without the shading of the coils, in units of data."""
    shading = _receive_intensity(torch.from_numpy(made.maps), one.receiver.colouring).numpy()
    magnitude = truth / best_scale(made.image, truth) / shading
    return torch.from_numpy((magnitude * np.exp(1j * np.angle(made.image))).astype(np.complex64))


def knowing(data: HybridSlice, truth: torch.Tensor) -> torch.Tensor:
    """Estimate a series with the prior of the truth."""
    data, deviation, _ = kt_sense._with_noise(data)
    problem = kt_sense._Problem.of(data, "auto")
    series = problem.flat(truth / deviation)
    before = settled_prior(len(series), series.shape[-1], series.device)
    prior = next_prior(before, series, problem.plane, problem.sampled)
    components, _ = problem.improve(prior, None, problem.adjoint(data, deviation), ITERATIONS)
    return deviation * problem.image(prior.synthesise(components))


if __name__ == "__main__":
    main()
