"""Where files of the package and of a user are kept, and how a file is written so that nobody ever sees half of it."""

from __future__ import annotations

import io
import os
import re
import uuid
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recon_core.errors import ResourceError, SettingsError

#: End of the name of a file that is not whole.
PART = ".part"
_OF_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}" + re.escape(PART))

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable


def packaged_folder(name: str) -> Traversable:
    """Folder of files that come with cinestream, wherever it is installed, maybe in a zip.

    It is the neighbour of this package: importing it by its name would find a folder called so in the user's working
    directory first.

    Parameters
    ----------
    name
        ``weights`` or ``pipelines``.
    """
    package = cast("Path", resources.files("recon_core"))  # or a zipfile.Path, which has these names too
    return package.parent / name


def xdg_folder(variable: str, usual: str, remedy: str) -> Path:
    """Folder of cinestream's for this user, after the XDG base directory specification; it need not exist.

    Parameters
    ----------
    variable
        Environment variable that names the base folder.
    usual
        Base folder in the home where it does not.
    remedy
        What is to be kept, and what to do without a home.

    Raises
    ------
    ResourceError
        If this user has no home.
    """
    chosen = os.environ.get(variable, "")
    try:
        # As the specification asks, a relative path counts as none.
        base = Path(chosen) if Path(chosen).is_absolute() else Path.home() / usual
    except RuntimeError as error:
        raise ResourceError(f"there is no home folder to keep {remedy}") from error
    return base / "cinestream"


@contextmanager
def replacing(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Give a file to write next to `path` that replaces it at the end, so that no reader ever sees half of it.

    What was there stays until then, and for good if something fails; what is no file, as a pipe, is written to at once.

    Parameters
    ----------
    path
        The file.
    make_folder
        Make its folder if there is none.

    Raises
    ------
    ResourceError
        If the folder cannot be made or the file not be written.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve() if path.is_symlink() else path
    part = target.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(target)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder is gone or closed to us, as the error above says
            part.unlink(missing_ok=True)


def whole_of(part: Path) -> Path | None:
    """Say which file a part of `replacing` was to become; None of a file that is none."""
    found = _OF_PART.fullmatch(part.name)
    return part.with_name(found[1]) if found else None


def open_private(path: Path) -> io.FileIO:
    """Make a file that nobody else may read, without a buffer.

    Raises
    ------
    OSError
        If it cannot be made, or is there already.
    """
    return io.FileIO(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600))


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file, or none.

    Raises
    ------
    ResourceError
        If it cannot be written.
    """
    with replacing(path, make_folder=False) as part:
        part.write_bytes(content)


def refuse_same_file(source: Path, output: Path) -> None:
    """Refuse to write over the data that are read, whatever else may be replaced.

    Raises
    ------
    SettingsError
        If both are one file.
    """
    if source.exists() and output.exists() and output.samefile(source):
        raise SettingsError(f"{output} is the raw data itself; choose another output")


def refuse_missing_folder(path: Path) -> None:
    """Refuse a file to write where there is no folder for it, before a long computation rather than after.

    Raises
    ------
    ResourceError
        If there is none.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ResourceError(f"cannot write {path}: there is no folder {folder}")
