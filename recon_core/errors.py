"""The errors of cinestream: one hierarchy, from the wire to the network.

A message says what was expected, what came (with slice or scan counter where that is known) and what the user can do.
The same text reaches the log, the shell and the client at the other end of a connection.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FEW = 12  # names that a message lists


def choose_from(name: object, known: Iterable[str], lists: str = "") -> str:
    """Say what a name may have been meant for, to follow a semicolon: similar names, or those that there are.

    Parameters
    ----------
    name
        What came; case and kind of dash do not count.
    known
        The names that there are.
    lists
        A command that lists them, where they are many.
    """
    names = list(known)
    near = similar(name, names)
    many = len(names) > _FEW
    rest = f"{lists} lists all {len(names)}" if lists and many else f"there are {', '.join(names) or 'none'}"
    if not near:
        return rest
    return f"did you mean {' or '.join(near)}?" + ("" if many and not lists else f" ({rest})")


def similar(name: object, known: Iterable[str]) -> list[str]:
    """Up to two of the names that are known which are like one that is not; case and kind of dash do not count."""
    plain = {one.lower().replace("-", "_"): one for one in known}
    return [plain[one] for one in difflib.get_close_matches(str(name).lower().replace("-", "_"), plain, 2)]


class CinestreamError(Exception):
    """Base of every error raised on purpose by cinestream."""


class ProtocolError(CinestreamError):
    """The peer broke the message protocol: unknown id, forged length, wrong order, early end of stream."""


class HeaderError(CinestreamError):
    """The scan header is missing, unreadable, or asks for something that is not supported."""


class DataError(CinestreamError):
    """Readouts do not fit the scan they belong to."""


class SettingsError(CinestreamError):
    """A pipeline, a setting or a command-line value is unknown or has the wrong type."""


class ModelError(CinestreamError):
    """A reconstruction method is unknown, lacks its weights, or failed."""


class ResourceError(CinestreamError):
    """The machine has not enough of something: disk, memory, ports."""


class ScanStoppedError(CinestreamError):
    """A scan was stopped before its end: its peer is gone, or the server ends."""


class ReconstructionWarning(UserWarning):
    """The images are not what was asked for: another method took over, or they are doubtful."""
