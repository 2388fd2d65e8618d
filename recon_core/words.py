"""Words that messages share: counts, lists, and what a mistyped name may have been meant for."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FEW = 12  # names that a message lists


def many(count: int, thing: str) -> str:
    """A count and what is counted."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def listed(things: Iterable[object], most: int = _FEW) -> str:
    """List things for a message; of many the first ones, and how many more there are."""
    words = [str(thing) for thing in things]
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


def meant(name: object, known: Iterable[str]) -> str:
    """Ask whether up to two similar names are meant; empty where none is similar.

    Parameters
    ----------
    name
        What came; case and kind of dash do not count.
    known
        The names that there are.
    """
    plain = {one.lower().replace("-", "_"): one for one in known}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), plain, 2)
    return f"did you mean {' or '.join(plain[one] for one in near)}?" if near else ""


def choose_from(name: object, known: Iterable[str], lists: str = "") -> str:
    """Say what a name may have been meant for, to follow a semicolon: similar names, or those that there are.

    Parameters
    ----------
    name, known
        As for `meant`.
    lists
        A command that lists them, where they are many.
    """
    names = list(known)
    many_names = len(names) > _FEW
    rest = f"{lists} lists all {len(names)}" if lists and many_names else f"there are {', '.join(names) or 'none'}"
    question = meant(name, names)
    if not question:
        return rest
    return question if many_names and not lists else f"{question} ({rest})"
