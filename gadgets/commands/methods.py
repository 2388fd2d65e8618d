"""``cinestream methods``: list the reconstruction methods, and the weights of the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gadgets.commands.console import say
from recon_core.errors import ModelError, SettingsError
from recon_core.methods import find_method, method_names
from recon_core.options import ReconOptions, options_of, own_options
from recon_core.own_methods import allow_methods
from recon_core.words import choose_from

if TYPE_CHECKING:
    import argparse

NAME = "methods"
HELP = "list the reconstruction methods, and the weights of the networks"
EXAMPLES = "cinestream methods kt_sense"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the names of methods."""
    text = "only these, with their settings (default: all)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=text)


def run(options: argparse.Namespace) -> int:
    """List them."""
    allow_methods()
    for name in options.names:
        if name not in method_names():
            raise SettingsError(f"there is no method {name!r}; {choose_from(name, method_names())}")
    for name in options.names or method_names():
        try:
            info = find_method(name)
        except ModelError as error:  # one of the user's own
            say(f"{name}\n    cannot be used: {error}")
            continue
        say("\n    ".join(filter(None, (name, info.summary, info.reference))))
        for one in own_options(info.options, name) if info.options else ():
            say(f"    {one.path} ({one.kind}, default {one.default_text}): {one.help}")
        if options.names:
            for one in options_of(ReconOptions).values():
                if one.path.startswith(f"{name}."):
                    say(f"    {one.path} ({one.kind}, default {one.default_text or 'empty'}): {one.help}")
        if info.network:
            for line in _weights_of(name):
                say(f"    {line}")
    return 0


def _weights_of(method: str) -> list[str]:
    """Say which weights there are for a network, or why there are none."""
    from recon_core.weights.manifest import find_weights, weights_of

    entries = weights_of(method)
    if not entries:
        try:
            find_weights(method)
        except ModelError as error:
            return [f"scans go to the fallback: {error}"]
    return [
        f"weights {entry.name}: {entry.describe()}" + (f" ({entry.licence})" if entry.licence else "")
        for entry in entries
    ]
