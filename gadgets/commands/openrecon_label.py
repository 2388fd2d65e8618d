"""``cinestream openrecon-label``: write what an OpenRecon image must carry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.console import read_text, say
from recon_core.storage import write_file

if TYPE_CHECKING:
    import argparse

NAME = "openrecon-label"
HELP = "write what an OpenRecon image must carry: name, needs and the parameters at the scanner"
EXAMPLES = "cinestream openrecon-label --base64 --gpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it to this file")
    parser.add_argument("--base64", action="store_true", help="as the image carries it, in base64, instead of JSON")
    parser.add_argument("--gpu", action="store_true", help="for an image that can use a GPU")
    text = "look instead for what makes a scanner reject the label in this file (JSON or base64)"
    parser.add_argument("--check", type=Path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> int:
    """Write or check a label."""
    from gadgets.settings import openrecon

    if options.check:
        found = openrecon.check_label(openrecon.read_label(read_text(options.check)))
        say("\n".join(found) or f"{options.check}: nothing that a scanner is known to reject", error=bool(found))
        return 1 if found else 0
    label = openrecon.make_label(gpu=options.gpu)
    text = openrecon.encode_label(label) + "\n" if options.base64 else openrecon.label_text(label)
    if options.output:
        write_file(options.output, text.encode())
        say(f"label of {openrecon.package_name(label)} in {options.output}")
    else:
        sys.stdout.write(text)
    return 0
