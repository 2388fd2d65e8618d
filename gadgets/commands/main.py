"""The command line as a whole: the commands, their help, what they log and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Protocol

from gadgets import __version__
from gadgets.commands import (
    batch,
    convert,
    doctor,
    evaluate,
    export,
    import_weights,
    methods,
    openrecon_label,
    pipelines,
    replay,
    send,
    serve,
    simulate,
    train,
)
from gadgets.commands.console import say
from gadgets.commands.parser import Parser
from recon_core.errors import CinestreamError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("cinestream")


class Command(Protocol):
    """What the module of a command has."""

    NAME: str
    """What the user types."""
    HELP: str
    """What it does, in a line that begins in lower case and has no full stop."""
    EXAMPLES: str
    """Whole command lines, one a line, for the help."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the arguments; what else the help should say goes into ``parser.epilog``."""

    def run(self, options: argparse.Namespace, /) -> int:
        """Do it; gives the exit status, raises `CinestreamError` for what the user is to know."""


#: In the order of the help.
COMMANDS: tuple[Command, ...] = (
    replay,
    batch,
    serve,
    send,
    simulate,
    convert,
    export,
    evaluate,
    methods,
    pipelines,
    import_weights,
    train,
    doctor,
    openrecon_label,
)


#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 if all that was asked for was done, 1 if not, 2 for a wrong call, 130 after Ctrl-C.
    """
    options = make_parser().parse_args(arguments)
    level = logging.WARNING if not options.verbose else logging.DEBUG if options.verbose > 1 else logging.INFO
    logging.basicConfig(level=max(level, logging.INFO), format="%(levelname)s %(message)s", stream=sys.stderr)
    logger.setLevel(level)
    try:
        return int(options.run(options))
    except CinestreamError as error:
        say(f"cinestream: {error}", error=True)
        return 2 if isinstance(error, SettingsError) else 1
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from gadgets.inspection.installation import TORCH_REMEDY

        say(f"cinestream: torch is not installed: {TORCH_REMEDY}", error=True)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `head` does; the flush at exit must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("cinestream: stopped; nothing that was not whole is left", error=True)
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    examples = "\n".join(filter(None, (command.EXAMPLES for command in COMMANDS)))
    parser = Parser(
        prog="cinestream",
        description="Streaming reconstruction of cine cardiac MRI from ISMRMRD raw data.",
        epilog=_listed(examples) + "\n\ncinestream COMMAND --help has the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cinestream {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say what is done; twice for more")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        one = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.epilog = "\n\n".join(filter(None, (one.epilog, _listed(command.EXAMPLES))))
        one.set_defaults(run=command.run)
    return parser


def _listed(examples: str) -> str:
    return "examples:\n" + textwrap.indent(examples, "  ") if examples else ""
