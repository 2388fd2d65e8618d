"""What a batch has to do: raw files, their images, and which of these are there already."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets import __version__
from gadgets.files.images import read_record
from gadgets.replay.job import Job, Outcome, read_outcome
from gadgets.settings.settings import changed_settings
from recon_core.errors import CinestreamError, ModelError, ResourceError, SettingsError
from recon_core.methods import find_method
from recon_core.weights.manifest import find_weights, list_weights, weights_of_start
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gadgets.settings.settings import Settings

#: Ends of the names of raw files that are looked for in a folder.
SUFFIXES = (".h5", ".hdf5", ".mrd", ".ismrmrd")

_ENDS = 1 << 16  # bytes of both ends of a raw file that are looked at
_LONGEST_LIST = 64 << 20  # bytes


@dataclass(frozen=True)
class Entry:
    """A raw file of a batch: what is to be done with it, or why nothing is."""

    source: Path
    """The raw file."""
    output: Path
    """Its images."""
    size: int = 0
    """Bytes of the raw file."""
    job: Job | None = None
    """What is to be done; None if nothing is."""
    why: str = ""
    """Why it is to be done, or why nothing can be."""
    before: Outcome | None = None
    """Of an earlier run that left images which are still right, or of one that cannot begin."""


def find_sources(inputs: Path, output: Path) -> tuple[list[tuple[Path, Path]], int]:
    """Find the raw files of a batch, and name their images.

    Images have the path of the raw file below the folder, or below that of the list; the whole path for those outside
    of it. So they keep their names when other files are added, and two of one name in different folders differ.

    Parameters
    ----------
    inputs
        A folder, searched through for `SUFFIXES`, or a text file with a raw file a line; ``#`` begins a comment.
    output
        Folder for the images; nothing below it is taken for raw data.

    Returns
    -------
    list, int
        Raw files and images in order, each file once; how many were named again.

    Raises
    ------
    SettingsError
        If nothing is named, or the images would be written among the raw files.
    ResourceError
        If the list cannot be read.
    """
    if inputs.is_dir():
        if output.resolve() == inputs.resolve():
            raise SettingsError(f"{output} holds the raw data; choose another folder for the images")
        base, named = inputs, list(_found_below(inputs, output.resolve()))
        nothing = f"there is no file in {inputs} with a name that ends in {', '.join(SUFFIXES)}"
    else:
        base, named = inputs.parent, _listed(inputs)
        nothing = f"{inputs} names no file; it must have the path of a raw file in each line"
    if not named:
        raise SettingsError(nothing)
    root = Path(os.path.abspath(base))  # noqa: PTH100 - as it is named, whatever it is a link to
    once = {path.resolve(): path for path in reversed(named)}
    sources = [path for path in dict.fromkeys(named) if once[path.resolve()] is path]
    return [(path, output / _image_name(path, root)) for path in sources], len(named) - len(sources)


def _found_below(folder: Path, output: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(one for one in folders if one[0] != "." and (here / one).resolve() != output)
        yield from (here / one for one in sorted(files) if one[0] != "." and Path(one).suffix.lower() in SUFFIXES)


def _listed(path: Path) -> list[Path]:
    """Files that a list names, relative to it."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_LIST)
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}; give a folder, or a list of raw files") from error
    if b"\0" in content:
        raise SettingsError(f"{path} is no list of files; one raw file is reconstructed by cinestream replay")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ResourceError(f"cannot read {path}: it is not in UTF-8 ({error.reason})") from error
    names = (line.strip() for line in lines)
    return [path.parent / name for name in names if name and name[0] != "#"]


def _image_name(source: Path, root: Path) -> Path:
    whole = Path(os.path.abspath(source))  # noqa: PTH100 - see above
    name = whole.relative_to(root) if whole.is_relative_to(root) else whole.relative_to(whole.anchor)
    return name if name.suffix == ".h5" else name.with_name(f"{name.name}.h5")


def make_plan(
    sources: Iterable[tuple[Path, Path]], settings: Settings, group: str, *, overwrite: bool = False
) -> list[Entry]:
    """Say what is to be done with each raw file.

    Parameters
    ----------
    sources
        Raw files and their images, as `find_sources` gives them.
    settings
        Settings of all.
    group
        HDF5 group of the raw data and of the images.
    overwrite
        Make all images anew, and replace files that no batch has made.
    """
    made_with = {"version": __version__, "group": group, "settings": changed_settings(settings)}
    made_with["weights"] = _weights(settings)
    entries: list[Entry] = []
    taken: dict[Path, Path] = {}
    for source, output in sources:
        other = taken.setdefault(output, source)
        if other is source:
            entries.append(_entry(source, output, made_with, overwrite=overwrite))
        else:
            text = f"its images would have the name of those of {other}, {output}; rename one, or make two batches"
            entries.append(Entry(source, output, why=text, before=Outcome.failure(text)))
    return entries


def _entry(source: Path, output: Path, made_with: dict[str, Any], *, overwrite: bool) -> Entry:
    try:
        origin = {**made_with, "file": _identity(source)}
        why, before = _state(output, origin)
    except CinestreamError as error:
        return Entry(source, output, why=str(error), before=Outcome.failure(str(error)))
    size = origin["file"]["size"]
    job = Job(str(source.absolute()), str(output.absolute()), made_with["group"], made_with["settings"], origin)
    if overwrite:
        return Entry(source, output, size, job, why or "all are made anew")
    if before is not None and before.failed:
        return Entry(source, output, size, None, why, before)
    return Entry(source, output, size, job if why else None, why, None if why else before)


def _identity(source: Path) -> dict[str, Any]:
    """What shows that a raw file is still the same, without reading all of it."""
    try:
        with source.open("rb") as file:
            facts = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(_ENDS))
            file.seek(max(0, facts.st_size - _ENDS))
            ends.update(file.read(_ENDS))
    except OSError as error:
        raise ResourceError(f"cannot read {source}: {error.strerror}") from error
    return {"size": facts.st_size, "changed": facts.st_mtime_ns, "ends": ends.hexdigest()}


def _weights(settings: Settings) -> dict[str, str]:
    """Digests of the weights that the method may use, and of those that they start from, by their names."""
    info = find_method(settings.method)
    if info.chooses:
        return {name: entry.sha256 for name, entry in list_weights().items()}
    if not info.network:
        return {}
    try:
        entry = find_weights(settings.method, settings.network.weights)
    except ModelError:
        return {}  # the fallback takes over, as the scans will say
    return {one.name: one.sha256 for one in (entry, weights_of_start(entry.start, entry)) if one is not None}


def _state(output: Path, origin: dict[str, Any]) -> tuple[str, Outcome | None]:
    """Why images are to be made, and the outcome of those that are there; no reason, if these are right."""
    if not output.exists():
        return "there are no images yet", None
    try:
        found = read_outcome(read_record(output))
    except CinestreamError as error:
        found, said = None, f" ({error})"
    else:
        said = ""
    if found is None:
        text = f"{output} is there and was not made by cinestream batch{said}; choose another folder, or --overwrite"
        return text, Outcome.failure(text)
    differences = [_DIFFERENT[name] for name, value in origin.items() if found[0].get(name) != value]
    if not differences:
        return "", found[1]
    return f"the images were made {' and '.join(differences)}", found[1]


def made_by(job: Job) -> Outcome | None:
    """Outcome of a job that has left its images, though nothing else is known of it; None if it has not."""
    why, outcome = _state(Path(job.output), dict(job.origin))
    return None if why else outcome


_DIFFERENT = {
    "version": "by another version",
    "group": "of another group",
    "settings": "with other settings",
    "weights": "with other weights",
    "file": "before the raw file changed",
}


def summary_of(entries: list[Entry]) -> str:
    """Say what there is to do."""
    jobs = [entry for entry in entries if entry.job]
    impossible = sum(1 for entry in entries if entry.before is not None and entry.before.failed)
    parts = [f"{many(len(jobs), 'scan')} ({sum(entry.size for entry in jobs) / 1e6:.0f} MB) to reconstruct"]
    parts.append(f"{len(entries) - len(jobs) - impossible} there already")
    return ", ".join([*parts, f"{impossible} that cannot be"] if impossible else parts)
