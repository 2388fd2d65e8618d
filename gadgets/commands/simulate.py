"""``cinestream simulate``: make a raw file of a beating heart, with its truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from gadgets.commands.console import say
from recon_core.errors import SettingsError
from recon_core.options import options_of

NAME = "simulate"
HELP = "make a raw file of a beating heart, with its truth"
EXAMPLES = "cinestream simulate scan.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command: one for every field of the plan."""
    from gadgets.simulation import ScanPlan
    from gadgets.simulation.presets import PRESETS

    parser.add_argument("output", type=Path, help="raw file to write; the truth goes into the same folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    kinds_of_scan = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    text = f"begin with the options of a known kind of scan; further options win. {kinds_of_scan}"
    parser.add_argument("--like", default="", choices=tuple(PRESETS), metavar="KIND", help=text)
    for one in options_of(ScanPlan).values():
        kind, text = one.allowed.kind, f"{one.help} (default: {one.default})".replace("%", "%%")
        name = "--" + one.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                name,
                type=kind,
                default=argparse.SUPPRESS,
                choices=one.allowed.names or None,
                help=text,
                metavar={int: "N", float: "X"}.get(kind),
            )


def run(options: argparse.Namespace) -> int:
    """Write the scan, its noise where the plan has it in a file of its own, and the truth."""
    from gadgets.simulation import ScanPlan, noise_path, write_simulation
    from gadgets.simulation.presets import plan_like

    names = list(options_of(ScanPlan))
    plan = plan_like(options.like, {name: getattr(options, name) for name in names if hasattr(options, name)})
    if options.output.exists() and not options.overwrite:
        raise SettingsError(f"{options.output} exists; choose another file or allow replacing it with --overwrite")
    truth = write_simulation(plan, options.output)
    noise = f", its noise in {noise_path(options.output)}" if plan.has_noise_file else ""
    say(f"scan in {options.output}{noise}, truth in {truth}")
    return 0
