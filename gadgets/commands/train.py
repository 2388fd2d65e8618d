"""``cinestream train``: train a network on series drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.commands.arguments import add_network, within
from gadgets.commands.console import say
from recon_core.errors import SettingsError

if TYPE_CHECKING:
    import argparse

    from recon_core.training.plan import TrainingPlan
    from recon_core.training.trainer import Point, Trainer
    from recon_core.weights.manifest import WeightsEntry

NAME = "train"
HELP = "train a network on series drawn at random, from scratch or from where it was left"
EXAMPLES = """\
cinestream train crunet_mr --samples samples.png
cinestream train crunet_mr --folder training/crunet_mr --minutes 9"""

_NOTES = """\
Series of known truth are drawn without end: beating hearts of the simulator, the images of --data, other shapes, in
motion of many kinds; coils, lines and noise are drawn for each. The preset "short" trains a narrow network in one to
three hours of a CPU core; "published" has the loss, optimiser and schedule of the paper, for a GPU. The weights are
exported as METHOD-small or METHOD when the plan is done. On scans that they have not seen they are compared with
kt_sense, the best method without weights, to know how far their images are to be believed beside its own; that takes
some minutes more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_network(parser)
    text = "folder of the training: checkpoint and curves; one that is there is continued"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "YAML with preset (short or published) and what differs from it, such as steps, rate or network"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    text = "images to learn from, besides the drawn ones: scd_cine/*.npz and scd_ed_es/*.npz"
    parser.add_argument("--data", type=Path, metavar="DIR", help=text)
    text = "stop after so long, to be continued by the same command (default: when the plan is done)"
    parser.add_argument("--minutes", type=within(float, 0.0, 1e6), metavar="X", help=text)
    text = "folder to put the weights into (default: cinestream's own among your data)"
    parser.add_argument("--weights-folder", type=Path, metavar="DIR", help=text)
    text = "draw a sheet of what is learned from into this PNG, and train only if --folder is given too"
    parser.add_argument("--samples", type=Path, metavar="FILE", help=text)
    parser.epilog = _NOTES


def run(options: argparse.Namespace) -> int:
    """Draw the samples, train, and export the weights when the plan is done."""
    from gadgets.reports.training import write_samples
    from recon_core.training.plan import preset_plan, read_plan
    from recon_core.weights.manifest import user_folder

    if options.samples:
        write_samples(options.samples, options.data)
        say(f"samples in {options.samples}")
    if not options.folder:
        if options.samples:
            return 0
        raise SettingsError("expected --folder DIR to keep the training in, or --samples FILE to look at the data")
    plan = read_plan(options.config, options.method) if options.config else preset_plan(options.method)
    seconds = float("inf") if options.minutes is None else 60 * options.minutes
    trainer = train(plan, options.folder, options.data, seconds)
    if trainer is None:
        say("to be continued by the same command")
        return 0
    entry = survey_and_export(trainer, options.weights_folder or user_folder())
    say(f"{entry.file} is used by method={entry.method}, weights={entry.name}")
    return 0


def train(plan: TrainingPlan, folder: Path, data: Path | None, seconds: float) -> Trainer | None:
    """Train until the plan is done or the time is over, with a progress bar, and draw the curves.

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

    Returns
    -------
    Trainer
        With the trained network, or None where there is more to do.
    """
    from tqdm import tqdm

    from gadgets.reports.training import write_curves
    from recon_core.training.library import Library, read_library
    from recon_core.training.trainer import Trainer

    learned = read_library(data, "training") if data else Library()
    held_out = read_library(data, "held out") if data else Library()
    trainer = Trainer(plan, learned, held_out, folder)
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    say(f"{plan.name}: {parameters:,} parameters, step {trainer.step} of {plan.steps}; state in {folder}")
    with tqdm(total=plan.steps, initial=trainer.step, unit=" steps", desc=plan.name, disable=None) as bar:

        def show(_: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        done = trainer.run(seconds, show)
    for point in trainer.curve()[-1:]:
        say(_line(point))
    write_curves(folder / "curves.html", trainer)
    say(f"curves in {folder / 'curves.html'}")
    return trainer if done else None


def survey_and_export(trainer: Trainer, folder: Path) -> WeightsEntry:
    """Compare the trained network with the best method without weights, and export its weights with what was found.

    Parameters
    ----------
    trainer
        The training.
    folder
        Of weights and their manifest.

    Raises
    ------
    ModelError
        If it is of use on no scan.
    """
    from tqdm import tqdm

    from recon_core.training.export import export
    from recon_core.training.survey import REFERENCE, survey

    with trainer.averaged() as network:
        seen = survey(network, trainer.plan, trainer.held_out)
        total = trainer.plan.survey
        findings = list(tqdm(seen, total=total, unit=" scans", desc=f"comparing with {REFERENCE}", disable=None))
    return export(trainer, findings, folder, source=f"trained with cinestream {__version__}")


def _line(point: Point) -> str:
    scores = ", ".join(
        f"{kind} {moving:.1f} where it moves ({whole:.1f} whole)" for kind, (whole, moving) in point.psnr.items()
    )
    return (
        f"step {point.step}, {point.seconds / 60:.0f} min: loss {point.loss:.3f}; PSNR in dB: {scores or 'not watched'}"
    )
