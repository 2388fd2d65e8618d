"""Pipelines written to where a Gadgetron looks for configurations, under names that no file of its own has."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from gadgets.settings.pipelines import PREFIX, Pipeline, list_pipelines
from recon_core.errors import ResourceError, SettingsError
from recon_core.storage import replacing

_INSIDE = Path("share", "gadgetron", "config")
_OURS = re.compile(r"\s*(<\?xml[^>]*\?>)?\s*<!--\s*cinestream:")
_WANTED = f"the home of a Gadgetron, which holds {_INSIDE}, or that folder itself"


def install_pipelines(home: str, host: str, port: int) -> list[Path]:
    """Write the packaged pipelines to where a Gadgetron looks for configurations.

    Each that stands alone is written twice: ``cinestream_NAME`` starts a process for every scan,
    ``cinestream_NAME-connect`` goes through a resident server. All is checked before the first file is written, and no
    file gets its name before all of them are written.

    Parameters
    ----------
    home
        A Gadgetron's home, or its folder of configurations.
    host, port
        Where the Gadgetron finds the resident server.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    SettingsError
        If that is no such folder, a file with one of the names is not one of ours, or there can be no such server.
    ResourceError
        If a file cannot be read or written.
    """
    pipelines = _installed(host, port)
    folder = _configurations(home)
    files = {folder / f"{PREFIX}{pipeline.name}.xml": pipeline.text for pipeline in pipelines}
    foreign = [str(path) for path in files if not _is_replaceable(path)]
    if foreign:
        text = f"{', '.join(foreign)} exists and is not a cinestream pipeline; nothing is written"
        raise SettingsError(f"{text}. Move it away first")
    with ExitStack() as parts:
        for path, text in files.items():
            parts.enter_context(replacing(path, make_folder=False)).write_text(text, encoding="utf-8")
    return list(files)


def _configurations(home: str) -> Path:
    if not home.strip():
        raise SettingsError(f"the folder to install into is an empty text, expected {_WANTED}; is GADGETRON_HOME set?")
    folder = Path(home)
    if (folder / _INSIDE).is_dir():
        return folder / _INSIDE
    if folder.is_dir() and folder.resolve().parts[-2:] == _INSIDE.parts[-2:]:
        return folder
    raise SettingsError(f"{home} is not the folder of a Gadgetron, expected {_WANTED}; nothing is written")


def _is_replaceable(path: Path) -> bool:
    try:
        return not path.exists() or bool(_OURS.match(path.read_text(encoding="utf-8", errors="replace")))
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}; nothing is written") from error


def _installed(host: str, port: int) -> list[Pipeline]:
    packaged = list(list_pipelines().values())
    twins = [pipeline.through_server(host, port) for pipeline in packaged if not pipeline.needs_gadgetron]
    return sorted((*packaged, *twins), key=lambda pipeline: pipeline.name)
