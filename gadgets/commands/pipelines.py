"""``cinestream pipelines``: list pipelines and settings, or install them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_pipeline_folders, settings_help
from gadgets.commands.console import say
from gadgets.settings.pipelines import install_pipelines, list_pipelines

if TYPE_CHECKING:
    import argparse

NAME = "pipelines"
HELP = "list pipelines and settings, or install them"
EXAMPLES = "cinestream pipelines --install DIR"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_pipeline_folders(parser)
    parser.add_argument("--install", type=Path, metavar="DIR", help="copy them into a Gadgetron's home or folder")


def run(options: argparse.Namespace) -> int:
    """List or install them."""
    if options.install:
        for path in install_pipelines(options.install):
            say(str(path))
        return 0
    for found in list_pipelines(options.pipelines).values():
        comment = "\n    ".join(found.comment.splitlines()[1:] or [found.comment])
        say(f"{found.name}\n    {comment}\n")
    say(settings_help())
    return 0
