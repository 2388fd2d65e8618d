"""Weights of a finished training, for the scans on which they are of use."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING

import torch

from recon_core.training.coverage import covered
from recon_core.training.survey import REFERENCE, summarise, weigh
from recon_core.weights.loading import write_weights
from recon_core.weights.manifest import WeightsFacts

if TYPE_CHECKING:
    from pathlib import Path

    from recon_core.training.survey import Finding
    from recon_core.training.trainer import Trainer
    from recon_core.weights.manifest import WeightsEntry

_PICTURES = " and series made of the Sunnybrook Cardiac Data (CC0)"
_RECIPE = ("seed", "loss", "rate", "schedule", "frames", "lines", "width", "points", "precision")


def export(trainer: Trainer, findings: list[Finding], folder: Path, *, source: str = "") -> WeightsEntry:
    """Put the averaged weights of a training where pipelines find them.

    Parameters
    ----------
    trainer
        The training.
    findings
        What `recon_core.training.survey.survey` found of these weights.
    folder
        Of weights and their manifest.
    source
        Where the weights come from, kept with them.

    Raises
    ------
    ModelError
        If there are no scans on which they are of use.
    SettingsError, ResourceError
        As of `recon_core.weights.loading.write_weights`.
    """
    plan, curve = trainer.plan, trainer.curve()
    found = weigh(findings)
    metrics: dict[str, float | dict[str, float]] = {"survey": summarise(found.judged)}
    if curve:
        metrics["validation"] = {kind: values[0] for kind, values in curve[-1].psnr.items()}
    facts = WeightsFacts(
        method=plan.method,
        input_peak=1.0,
        window=trainer.network.maximum_frames or plan.frames[1],
        start=plan.start,
        range=covered(plan, trainer.network.minimum_frames),
        reference=REFERENCE,
        weighing=found.weighing,
        weighed_on=("points",) if found.helps_on_points else (),
        source=source,
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
