"""What commands print, and the small text files that they read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from recon_core.errors import ResourceError
from recon_core.printable import printable

if TYPE_CHECKING:
    from pathlib import Path


def say(text: str, *, error: bool = False) -> None:
    """Print a line for the user, on standard output or as an error."""
    stream = sys.stderr if error else sys.stdout
    stream.write(printable(text, lines=True) + "\n")
    stream.flush()


def read_text(path: Path) -> str:
    """Read a text file.

    Raises
    ------
    ResourceError
        If it cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"cannot read {path}: {error}") from error
