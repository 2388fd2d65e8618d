"""``cinestream send``: send a raw file to a server and keep the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_raw_and_images, port
from gadgets.commands.console import read_text, say
from gadgets.connection.resident import DEFAULT_HOST, DEFAULT_PORT
from recon_core.errors import SettingsError
from recon_core.words import many

if TYPE_CHECKING:
    import argparse

NAME = "send"
HELP = "be the scanner: send a raw file to a server and keep the images"
EXAMPLES = "cinestream send scan.h5 -c cg_sense -o images.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_raw_and_images(parser)
    parser.add_argument("--host", default=DEFAULT_HOST, help="default: %(default)s")
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="default: %(default)s; a Gadgetron has 9002")
    parser.add_argument("-c", "--config", default="cg_sense", help="pipeline the server knows (default: %(default)s)")
    parser.add_argument("-C", "--config-file", type=Path, metavar="XML", help="send this pipeline whole instead")
    parser.add_argument("--parameters", default="", metavar="JSON", help='FIRE parameters: {"parameters": {...}}')


def run(options: argparse.Namespace) -> int:
    """Send the file and keep what comes back."""
    from gadgets.connection.client import send
    from gadgets.settings.fire import json_fault
    from gadgets.wire.messages import ConfigFile, ConfigText

    if options.parameters and (fault := json_fault(options.parameters)):
        raise SettingsError(f"--parameters: {fault}")
    config = ConfigText(read_text(options.config_file)) if options.config_file else ConfigFile(options.config)
    result = send(
        options.input,
        options.output,
        config,
        (options.host, options.port),
        group=options.group,
        overwrite=options.overwrite,
        parameters=options.parameters,
    )
    say(
        f"{many(result.images, 'image')} in {options.output}"
        if result.kept
        else "no images came, and no file was written"
    )
    if not result.good:
        say("cinestream: the scan did not end well; see the lines above", error=True)
    return 0 if result.good else 1
