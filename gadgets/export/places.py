"""Folders that exported files go to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from recon_core.errors import ResourceError, SettingsError
from recon_core.storage import PART, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless its files may be replaced.

    Raises
    ------
    SettingsError
        If the path is a file, or a folder with something in it.
    ResourceError
        If it cannot be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"{folder} is a file; expected a folder, which is made if there is none")
        if not overwrite and folder.is_dir() and any(folder.iterdir()):
            raise SettingsError(f"{folder} is not empty; choose another folder or allow replacing with --overwrite")
    except OSError as error:
        raise ResourceError(f"cannot read {folder}: {error.strerror}") from error


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that exists, unless it may be replaced.

    Raises
    ------
    SettingsError
        If it exists, or is a folder.
    """
    if path.is_dir():
        raise SettingsError(f"{path} is a folder; expected the name of a file")
    if path.exists() and not overwrite:
        raise SettingsError(f"{path} exists; choose another file or allow replacing it with --overwrite")


def replace_files(folder: Path, files: Iterable[tuple[str, bytes]], is_stale: Callable[[Path], bool]) -> list[Path]:
    """Write files into a folder instead of those of an earlier export; other files stay.

    The earlier ones are there until all new ones are written, under other names.

    Parameters
    ----------
    folder
        Which; it is made if there is none.
    files
        Names and contents.
    is_stale
        Whether a file in it comes from an earlier export.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ResourceError
        If that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=PART, dir=folder) as fresh:
            names = []
            for name, content in files:
                write_file(Path(fresh) / name, content)
                names.append(name)
            for path in folder.iterdir():
                if path.is_file() and is_stale(path):
                    path.unlink()
            return [(Path(fresh) / name).replace(folder / name) for name in names]
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
