"""``cinestream import-weights``: bring trained weights of a network to where pipelines find them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_network, within
from gadgets.commands.console import say
from gadgets.settings.settings import parse_assignments

if TYPE_CHECKING:
    import argparse

NAME = "import-weights"
HELP = "bring trained weights of a network, such as its authors', to where pipelines find them"
EXAMPLES = "cinestream import-weights crnn_mri crnn_mri_d5_c5.pth"

_NOTES = """\
The names of the tensors in the file must be those that the network's authors use. Whatever does not fit (missing,
unexpected or of another shape) is listed and refuses the file. Checkpoints that are known bring what they were trained
for along; of others it can be given with --range, and a scan outside goes to the fallback."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_network(parser)
    text = "checkpoint: .safetensors, .pth, .pt or .ckpt; code inside is never run"
    parser.add_argument("file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--name", default="", help="name of the weights (default: the method's)")
    text = "folder to put them into (default: cinestream's own among your data)"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "field of the network's configuration that differs from the published one, such as channels=32; repeatable"
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "what they were trained for: acceleration=4:12, frames=12:30, patterns=random,interleaved; repeatable"
    parser.add_argument("--range", action="append", default=[], metavar="NAME=LEAST:MOST", help=text)
    text = "peak of the time-averaged image that the network saw in training, where that matters (default: 1)"
    parser.add_argument("--input-peak", type=within(float, 1e-30, 1e30), metavar="X", help=text)
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, kept with them")
    parser.add_argument("--source", default="", metavar="TEXT", help="where they come from, kept with them")
    parser.epilog = _NOTES


def run(options: argparse.Namespace) -> int:
    """Import the file, and say how its tensors fit."""
    from recon_core.trust.ranges import TrainingRange
    from recon_core.weights.loading import import_weights
    from recon_core.weights.manifest import weights_problems

    before = weights_problems()
    trained = None
    if options.range:
        values = parse_assignments(options.range)
        trained = TrainingRange.parse({name: _range_value(name, value) for name, value in values.items()})
    entry, report = import_weights(
        options.method,
        options.file,
        name=options.name,
        folder=options.folder,
        config=parse_assignments(options.config),
        range=trained,
        input_peak=options.input_peak,
        licence=options.licence,
        source=options.source,
    )
    say(report.text())
    for note in filter(None, (entry.notes, f"licence: {entry.licence}" if entry.licence else "")):
        say(note)
    if entry.range is None:
        say("what they were trained for is not recorded, so no scan is refused; --range says it")
    say(f"{entry.file} is used by method={entry.method}, weights={entry.name}")
    for problem in weights_problems():  # of what starts from weights that had this name
        if problem not in before:
            say(f"of no use from now on: {problem}")
    return 0


def _range_value(name: str, text: str) -> object:
    """Read ``4:12``, or for patterns ``random,interleaved``."""
    if name == "patterns":
        return text.split(",")
    try:
        bounds = [float(part) for part in text.split(":")]
    except ValueError:
        return text
    return bounds * 2 if len(bounds) == 1 else bounds
