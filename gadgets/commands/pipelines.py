"""``cinestream pipelines``: list pipelines and settings, or install them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_pipeline_folders, port, settings_help
from gadgets.commands.console import say
from gadgets.connection.resident import DEFAULT_HOST, DEFAULT_PORT
from gadgets.settings.installing import install_pipelines
from gadgets.settings.pipelines import PREFIX, find_pipeline, list_pipelines
from gadgets.settings.settings import changed_settings
from recon_core.errors import SettingsError

if TYPE_CHECKING:
    import argparse

    from gadgets.settings.pipelines import Pipeline

NAME = "pipelines"
HELP = "list pipelines and settings, or install them"
EXAMPLES = 'cinestream pipelines --install "$GADGETRON_HOME"'

_CONNECT = f"""\
{PREFIX}NAME, {PREFIX}NAME-connect
    the pipelines above under the names that --install gives them in a Gadgetron; -connect passes scans on to a resident
    server (cinestream serve), for every pipeline that stands alone"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "only these, with the settings that they change (default: all, and all settings)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=text)
    add_pipeline_folders(parser)
    text = (
        f"write them as {PREFIX}NAME.xml among the configurations of the Gadgetron with this home, each that stands "
        f"alone a second time as {PREFIX}NAME-connect.xml, which passes scans on to a resident server instead of "
        "starting a process for each"
    )
    parser.add_argument("--install", metavar="DIR", help=text)  # not a Path: an empty text would be a folder
    text = f"where NAME-connect finds the server (default: {DEFAULT_HOST})"
    parser.add_argument("--address", metavar="HOST", help=text)
    parser.add_argument("--port", type=port, help=f"its port (default: {DEFAULT_PORT})")


def run(options: argparse.Namespace) -> int:
    """List or install them."""
    if options.install is not None and options.names:
        raise SettingsError("--install writes all pipelines; it goes with no names of pipelines")
    if options.install is not None:
        number = DEFAULT_PORT if options.port is None else options.port
        for path in install_pipelines(options.install, options.address or DEFAULT_HOST, number):
            say(str(path))
        return 0
    if options.address is not None or options.port is not None:
        raise SettingsError("--address and --port say where NAME-connect finds the server; give --install DIR too")
    for found in [find_pipeline(name, options.pipelines) for name in options.names]:
        say(f"{found.name}\n    {_comment(found)}")
        for name, value in changed_settings(found.node_settings).items():
            say(f"    {name}={value}")
    if options.names:
        return 0
    for found in list_pipelines(options.pipelines).values():
        say(f"{found.name}\n    {_comment(found)}\n")
    say(f"{_CONNECT}\n")
    say(settings_help())
    return 0


def _comment(pipeline: Pipeline) -> str:
    return "\n    ".join(pipeline.comment.splitlines()[1:] or [pipeline.comment])
