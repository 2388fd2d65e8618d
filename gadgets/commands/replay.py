"""``cinestream replay``: reconstruct a raw file, no server needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import (
    add_export_targets,
    add_noise_store,
    add_pipeline,
    add_raw_and_images,
    chosen_settings,
    export_targets,
    export_to,
    noise_store,
    settings_help,
)
from gadgets.commands.console import say
from gadgets.connection.server import SharedEngine
from recon_core.words import many

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from gadgets.preparation.noise_statistics import KnownNoise
    from gadgets.reports.record import ReportCollector

NAME = "replay"
HELP = "reconstruct a raw file, no server needed"
EXAMPLES = "cinestream replay scan.h5 -p cg_sense -o images.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_raw_and_images(parser)
    add_pipeline(parser)
    parser.add_argument(
        "--gif", type=Path, metavar="FILE", help="write the cine loops, cropped to what moves, as an animated GIF"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report")
    text = "truth of the scan, to measure the error: .npz with 'image' or 'reference' (slice, frame, y, x)"
    parser.add_argument("--truth", type=Path, metavar="FILE", help=text)
    text = "raw file with noise readouts to whiten the coils, instead of those of the scan"
    parser.add_argument("--noise", metavar="FILE[:GROUP]", help=text)
    add_noise_store(parser, "none is used without")
    add_export_targets(parser)
    parser.epilog = settings_help()


def run(options: argparse.Namespace) -> int:
    """Reconstruct the file, then write what else was asked for."""
    from gadgets.replay import replay
    from recon_core.storage import refuse_missing_folder, refuse_same_file

    settings = chosen_settings(options)
    targets = export_targets(options, options.input)
    for path in filter(None, (options.gif, options.report)):
        refuse_same_file(options.input, path)
        refuse_missing_folder(path)
    collector, truth = _collector_and_truth(options)
    header, summary = replay(
        options.input,
        options.output,
        settings,
        SharedEngine(),
        group=options.group,
        overwrite=options.overwrite,
        collector=collector,
        noise=_noise(options.noise) if options.noise else None,
        noise_store=noise_store(options) if options.noise_store else None,
    )
    say(f"{many(summary.images, 'image')} of {many(summary.slices, 'slice')} in {options.output}")
    if collector is not None:
        if truth is not None:
            _say_scores(collector, truth)
        if options.gif:
            from gadgets.reports.scan import write_gif

            write_gif(options.gif, collector, truth)
            say(f"loop in {options.gif}")
        if options.report:
            from gadgets.reports.scan import write_report

            write_report(options.report, collector, header, settings, summary, truth, options.input.name)
            say(f"report in {options.report}")
    if targets and summary.images:
        export_to(targets, options.output, options.group, summary.problems)
    return 1 if summary.problems.damage else 0


def _collector_and_truth(options: argparse.Namespace) -> tuple[ReportCollector | None, np.ndarray | None]:
    """What a GIF, a report or a measurement needs, or None."""
    if not (options.gif or options.report or options.truth):
        return None, None
    from gadgets.reports.record import ReportCollector
    from recon_core.metrics.scores import read_truth

    return ReportCollector(), read_truth(options.truth) if options.truth else None


def _say_scores(collector: ReportCollector, truth: np.ndarray) -> None:
    from recon_core.metrics.scores import score

    found = score(collector.series(), truth)
    say("against the truth: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))


def _noise(text: str) -> KnownNoise:
    """Read the noise of FILE or FILE:GROUP."""
    from gadgets.files.noise import read_noise

    path, colon, group = text.rpartition(":")
    if not colon or Path(text).exists():
        path, group = text, "dataset"
    return read_noise(Path(path), group)
