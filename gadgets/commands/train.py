"""Command ``train``: data, a bar that moves, curves to look at, and weights that pipelines find."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from gadgets import __version__
from gadgets.reports.training import write_curves
from recon_core.training.coverage import covered
from recon_core.training.library import Library, read_library
from recon_core.training.survey import reliable, survey
from recon_core.training.trainer import Trainer
from recon_core.weights.loading import write_weights
from recon_core.weights.manifest import WeightsFacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recon_core.training.plan import TrainingPlan
    from recon_core.training.trainer import Point
    from recon_core.weights.manifest import WeightsEntry


def train(
    plan: TrainingPlan, folder: Path, data: Path | None, seconds: float, say: Callable[[str], None]
) -> Trainer | None:
    """Train until the plan is done or the time is over.

    Parameters
    ----------
    plan
        What to do.
    folder
        Where it is kept; a training that is there is continued.
    data
        Folder of images to learn from, or None.
    seconds
        Wall time for this time.
    say
        Takes lines for the user.

    Returns
    -------
    Trainer
        With the trained network, or None where there is more to do.
    """
    learned = read_library(data, "training") if data else Library()
    held_out = read_library(data, "held out") if data else Library()
    trainer = Trainer(plan, learned, held_out, folder)
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    say(f"{plan.name}: {parameters:,} parameters, step {trainer.step} of {plan.steps}; state in {folder}")
    with tqdm(total=plan.steps, initial=trainer.step, unit=" steps", desc=plan.name, disable=None) as bar:

        def tell(_: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        done = trainer.run(seconds, tell)
    for point in trainer.curve()[-1:]:
        say(_line(point))
    write_curves(folder / "curves.html", trainer)
    say(f"curves in {folder / 'curves.html'}")
    return trainer if done else None


def export(trainer: Trainer, folder: Path) -> WeightsEntry:
    """Put the averaged weights of a training where pipelines find them, for the scans on which they are of use.

    Parameters
    ----------
    trainer
        The training.
    folder
        Of weights and their manifest.

    Raises
    ------
    ModelError
        If there are no such scans.
    """
    plan, curve = trainer.plan, trainer.curve()
    with trainer.averaged() as network:
        seen = survey(network, plan, trainer.held_out)
        findings = list(tqdm(seen, total=plan.survey, unit=" scans", desc="comparing with cg_sense", disable=None))
    trained, limits, inside = reliable(covered(plan, trainer.network.minimum_frames), findings)
    gains = [finding.gain for finding in inside]
    gain = round(float(np.median(gains)), 2)
    metrics: dict[str, float | dict[str, float]] = {
        "survey": {"scans": len(gains), "of": len(findings), "median_gain": gain, "least_gain": min(gains)}
    }
    if curve and curve[-1].psnr:
        metrics["validation"] = {kind: values[0] for kind, values in curve[-1].psnr.items()}
    facts = WeightsFacts(
        method=plan.method,
        input_peak=1.0,
        window=trainer.network.maximum_frames or plan.frames[1],
        start=plan.start,
        range=trained,
        limits=limits,
        source=f"trained with cinestream {__version__}",
        licence="Apache-2.0",
        training={
            "steps": trainer.step,
            "minutes": round(trainer.seconds / 60),
            "hardware": f"{platform.machine()} CPU, threads: {torch.get_num_threads()}",
            "data": "simulated series" + (_PICTURES if trainer.library.cines or trainer.library.stills else ""),
            **{name: str(value) for name, value in dataclasses.asdict(plan).items() if name in _RECIPE},
        },
        metrics=metrics,
    )
    with trainer.averaged() as network:
        return write_weights(network, facts, plan.name, folder)


_PICTURES = " and series made of the Sunnybrook Cardiac Data (CC0)"
_RECIPE = ("seed", "loss", "rate", "schedule", "frames", "lines", "width", "precision")


def _line(point: Point) -> str:
    scores = ", ".join(f"{kind} {whole:.1f} (dynamic {moving:.1f})" for kind, (whole, moving) in point.psnr.items())
    return (
        f"step {point.step}, {point.seconds / 60:.0f} min: loss {point.loss:.3f}; PSNR in dB: {scores or 'not watched'}"
    )
