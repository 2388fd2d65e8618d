"""``cinestream convert``: make a raw file of k-space in the layout of CMRxRecon or fastMRI, or of an array."""

from __future__ import annotations

import argparse
from pathlib import Path

from gadgets.commands.arguments import within
from gadgets.commands.console import say

NAME = "convert"
HELP = "make a raw file of k-space in the layout of CMRxRecon or fastMRI, or of an array"
EXAMPLES = "cinestream convert cine_sax.mat scan.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = (
        "CMRxRecon .mat, HDF5 as fastMRI or PromptMR have it, or an array ([slice,] frame, coil, ky, kx) as .npy, "
        ".npz, HDF5 or BART's .cfl; <stem>_info.csv in its folder is read too"
    )
    parser.add_argument("input", type=Path, help=text)
    parser.add_argument("output", type=Path, help="ISMRMRD HDF5 file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    text = "field of view of the image in mm along the readout and the phase encoding"
    parser.add_argument("--fov", type=_pair, metavar="X,Y", help=text)
    parser.add_argument("--slice-thickness", type=within(float, 0.1, 100), metavar="MM", help="slice thickness in mm")
    text = "samples of a readout over columns of its image (default: what is known, else 2 for CMRxRecon, 1 for arrays)"
    parser.add_argument("--oversampling", type=within(float, 1, 8), metavar="X", help=text)
    text = "length of the cardiac cycle that the frames show, which no such file holds (default: %(default)s ms)"
    parser.add_argument("--rr", type=within(float, 200, 4000), default=1000.0, metavar="MS", help=text)
    text = "file with the mask of an undersampled file (default: lines that hold anything but zeros)"
    parser.add_argument("--mask", type=Path, metavar="FILE", help=text)


def _pair(text: str) -> tuple[float, float]:
    length = within(float, 1, 2000)
    x, comma, y = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"expected two lengths in mm such as 340,255, got {text!r}")
    return length(x), length(y)


def run(options: argparse.Namespace) -> int:
    """Write the raw file."""
    from gadgets.files.convert import ConvertOptions, convert

    choices = ConvertOptions(
        field_of_view=options.fov,
        slice_thickness=options.slice_thickness,
        rr=options.rr,
        oversampling=options.oversampling,
        mask=options.mask,
    )
    result = convert(options.input, options.output, choices, overwrite=options.overwrite)
    for note in result.notes:
        say(note)
    say(f"{result.readouts} readouts in {options.output}")
    return 0
