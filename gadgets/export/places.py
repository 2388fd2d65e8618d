"""Folders that exported files go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.errors import ResourceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


def make_folder(folder: Path, is_stale: Callable[[Path], bool]) -> None:
    """Make a folder, and remove files of an earlier export from it; other files stay.

    Parameters
    ----------
    folder
        Which.
    is_stale
        Whether a file in it comes from an earlier export.

    Raises
    ------
    ResourceError
        If that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_file() and is_stale(path):
                path.unlink()
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
