"""``cinestream export``: write images of an image file as DICOM, NIfTI or MP4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_export_targets, export_targets, export_to
from recon_core.errors import SettingsError

if TYPE_CHECKING:
    import argparse

NAME = "export"
HELP = "write images of an image file as DICOM, NIfTI or MP4"
EXAMPLES = "cinestream export images.h5 --dicom DIR --mp4 loop.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("images", type=Path, help="image file that replay, send or the stock client wrote")
    parser.add_argument("--group", default="dataset", help="HDF5 group of the images (default: %(default)s)")
    text = "raw file of the scan, for exam and patient, where the image file does not keep its header"
    parser.add_argument("--scan", type=Path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export left")
    add_export_targets(parser)


def run(options: argparse.Namespace) -> int:
    """Export to every format that was asked for."""
    from gadgets.files.raw import open_scan
    from gadgets.problems import Problems

    targets = export_targets(options, options.images)
    if not targets:
        raise SettingsError("expected at least one of --dicom DIR, --nifti FILE or DIR, --mp4 FILE")
    header = ""
    if options.scan:
        with open_scan(options.scan, options.group) as scan:
            header = scan.header
    problems = Problems()
    export_to(targets, options.images, options.group, problems, header)
    return 1 if problems.damage else 0
