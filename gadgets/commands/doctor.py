"""``cinestream doctor``: check this machine, look through a raw file, or ask whether a server is there."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_pipeline, address, chosen_settings
from gadgets.commands.console import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from gadgets.inspection.installation import Check

NAME = "doctor"
HELP = "check this machine, look through a raw file before it is reconstructed, or ask whether a server is there"
EXAMPLES = """\
cinestream doctor
cinestream doctor scan.h5
cinestream doctor --server http://127.0.0.1:8080"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    other = parser.add_mutually_exclusive_group()
    text = "raw file to look through: what it holds, what a pipeline would do with it, what looks wrong"
    other.add_argument("input", type=Path, nargs="?", metavar="FILE", help=text)
    text = (
        "only ask whether a cinestream answers there, for the health check of a container; with the address of its "
        "monitor page (http://HOST:PORT) whether it is well"
    )
    other.add_argument("--server", type=_server, metavar="HOST:PORT|URL", help=text)
    text = "of the monitor page, where it asks for one; better given as CINESTREAM_WEB_TOKEN"
    parser.add_argument("--token", default=os.environ.get("CINESTREAM_WEB_TOKEN", ""), metavar="TOKEN", help=text)
    parser.add_argument("--group", default="dataset", help="HDF5 group of the raw data (default: %(default)s)")
    add_pipeline(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report on the raw file for machines too")


def _server(text: str) -> tuple[str, int] | str:
    """Read ``HOST:PORT``; an address of a page stays as it is."""
    return text if "://" in text else address(text)


def _checks(options: argparse.Namespace) -> Iterable[Check]:
    """What is found on this machine, or on a server."""
    from gadgets.inspection.installation import ask, examine

    if options.server is None:
        return examine()
    if isinstance(options.server, str):
        from gadgets.inspection.running_server import ask_monitor

        return ask_monitor(options.server, options.token)
    return [ask(options.server)]


def run(options: argparse.Namespace) -> int:
    """Examine what was asked for; 1 if something is wrong."""
    if options.input is not None:
        return _look_through(options)
    good = True
    for check in _checks(options):
        say(str(check))
        good = good and not check.remedy
    return 0 if good else 1


def _look_through(options: argparse.Namespace) -> int:
    """Report on a raw file."""
    from gadgets.inspection.raw_file import inspect
    from recon_core.storage import refuse_same_file

    if options.json:
        refuse_same_file(options.input, options.json)
    settings = chosen_settings(options)
    if not options.verbose:  # what the chain notes is in the report
        logging.getLogger("cinestream").setLevel(logging.CRITICAL)
    report = inspect(options.input, settings, options.group)
    say(report.text())
    if options.json:
        report.write_json(options.json)
    return 0 if report.good else 1
