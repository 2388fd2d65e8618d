"""The trained weights that there are, by name; light to import, so that a missing one is found before the scan."""

from __future__ import annotations

import functools
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.methods import method_names
from recon_core.storage import packaged_folder, replacing, xdg_folder
from recon_core.trust.ranges import LINE_PATTERNS, PATTERNS, Limits, TrainingRange
from recon_core.trust.weighing import LEAST_GAIN, Weighing
from recon_core.values import read_yaml
from recon_core.words import choose_from, meant

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("cinestream")

#: Folders to search first, separated as in PATH.
VARIABLE = "CINESTREAM_WEIGHTS"
MANIFEST = "manifest.yaml"
#: What a network may start from without weights: the zero-filled image, as published, that of a few iterations of
#: CG-SENSE, or that of k-t SENSE.
STARTS = ("zero_filled", "cg_sense", "kt_sense")
#: Methods that the images of a network may be compared with.
REFERENCES = ("cg_sense", "kt_sense")
#: The one of them whose error is known, so that images can be weighed against it.
WEIGHED_AGAINST = "kt_sense"
_KNOWN = "known.yaml"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LARGEST = 1e30  # of any number; far from where float32 overflows
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class WeightsFacts:
    """What is known of trained weights, in whatever file they are."""

    method: str
    """The reconstruction method that they belong to."""
    config: dict[str, object] = field(default_factory=dict)
    """Fields of the network's ``Config``; the others have their defaults."""
    input_peak: float = 1.0
    """Peak of the time-averaged image, in the units of the training; matters where ``Network.scale`` is ``peak``."""
    window: int = 0
    """Frames that the network is run on at a time, at most; 0 is the whole series."""
    start: str = "zero_filled"
    """The image that the network starts from, one of `STARTS` or by their name weights, see `weights_of_start`."""
    range: TrainingRange | None = None
    """The scans that they were trained for, or None where that was not recorded."""
    limits: Limits | None = None
    """How far their images are from the data and from those of the reference on such scans, or None where that was not
    recorded."""
    reference: str = "cg_sense"
    """The method that the images are compared with, one of `REFERENCES`: what the limits were measured against."""
    weighing: Weighing | None = None
    """How far their images are believed beside those of `reference`, which is `WEIGHED_AGAINST` then; the range is not
    asked. None sends an image as it is, where range and limits allow."""
    weighed_on: tuple[str, ...] = ()
    """Patterns beside whole lines, of `recon_core.trust.ranges.PATTERNS`, on which weighed images were found to help;
    a scan of any other goes to the fallback."""
    training: dict[str, str | float] = field(default_factory=dict)
    """How they were trained: texts and numbers by name, such as recipe, seed, steps and hardware."""
    metrics: dict[str, float | dict[str, float]] = field(default_factory=dict)
    """How good they are: numbers by name, or by condition and name."""
    source: str = ""
    licence: str = ""
    notes: str = ""
    """`source`, `licence`, `notes`: Where they come from, under which licence, and what a user should know."""

    def describe(self) -> str:
        """Say in one line what they add and need, for which scans they are, their limits, and how they were trained."""
        trained_on = self.range.describe() if self.range else "training not recorded"
        if self.range and self.weighing:
            trained_on = f"trained on {trained_on}, which limits nothing, as every image is weighed"
        parts = [
            self._worth(),
            trained_on,
            "" if self.start in STARTS else f"start from the image of the weights {self.start}",
            self.limits.describe() if self.limits else "",
            ", ".join(f"{name} {value}" for name, value in self.training.items()),
        ]
        return "; ".join(filter(None, parts))

    def _worth(self) -> str:
        """What they add to the image that theirs is weighed against, or that they add nothing."""
        survey = self.metrics.get("survey")
        if self.weighing is None or not isinstance(survey, dict):
            return ""
        gain, moving = survey.get("median_gain", 0.0), survey.get("median_moving_gain", 0.0)
        if not self.helps:
            return f"add nothing to {self.reference}, and are there for weights of your own"
        served = f"{survey.get('served', 0):.0f} of {survey.get('scans', 0):.0f}"
        text = f"add {gain:.2f} dB to {self.reference} ({moving:.2f} dB where it moves) on {served} surveyed scans"
        return text + (f", and help on {' and '.join(self.weighed_on)} patterns" if self.weighed_on else "")

    @property
    def helps(self) -> bool:
        """Whether they were found to add to the image that theirs is weighed against, or that is not known."""
        survey = self.metrics.get("survey")
        known = self.weighing is not None and isinstance(survey, dict)
        return not known or cast("dict[str, float]", survey).get("median_gain", 0.0) >= LEAST_GAIN


@dataclass(frozen=True, kw_only=True)
class WeightsEntry(WeightsFacts):
    """Trained weights in a folder."""

    name: str
    """What a user chooses them by."""
    file: Path
    """The safetensors file."""
    sha256: str
    """Digest of that file, 64 hexadecimal digits."""

    def why_not_on(self, pattern: str) -> str:
        """Why weighed images are not sent of scans of a pattern, of `recon_core.trust.ranges.PATTERNS`; else empty."""
        if not self.weighing or pattern in (*LINE_PATTERNS, *self.weighed_on):
            return ""
        return f"the weights {self.name} were not found to help on scans of {pattern} pattern"


# --- finding ----------------------------------------------------------------------------------------------------------


def user_folder() -> Path:
    """Folder of the user's own weights, whether it exists or not.

    Raises
    ------
    ResourceError
        If this user has no home.
    """
    return xdg_folder("XDG_DATA_HOME", ".local/share", f"weights in; set {VARIABLE} to a folder") / "weights"


def list_weights() -> dict[str, WeightsEntry]:
    """All usable weights by name, in the order of the search; `weights_problems` reports the others.

    The folders of the environment variable ``CINESTREAM_WEIGHTS`` come first, then `user_folder`, then what comes with
    cinestream; the first of a name counts.
    """
    return {name: found for name, found in _search().found.items() if isinstance(found, WeightsEntry)}


def weights_of(method: str) -> list[WeightsEntry]:
    """The usable weights of a method, in the order of the search."""
    return [entry for entry in list_weights().values() if entry.method == method]


def weights_of_start(start: str, beside: WeightsEntry | None = None) -> WeightsEntry | None:
    """The weights of which a start is the image; None where it needs none.

    A network may start from `STARTS`, and by their names from weights that start from `WEIGHED_AGAINST` and are weighed
    against it: of what is sent of them it is known how far it may be from the truth, and one goes on from it once.

    Parameters
    ----------
    start
        What is started from.
    beside
        The weights that start from it: others of their own folder come first, as they were found with those.

    Raises
    ------
    SettingsError
        If nothing can start from it.
    """
    if start in STARTS:
        return None
    searched = _search()
    seen = searched.seen_from(beside.file.parent if beside else None)
    if problem := _why_no_start(start, seen):
        raise SettingsError(problem)
    return cast("WeightsEntry", seen[start])


def weights_problems() -> list[str]:
    """What is wrong with the manifests and the files that they name, one text each."""
    found, broken, _ = _search()
    return [*broken, *(str(entry.error) for entry in found.values() if isinstance(entry, _Broken))]


def find_weights(method: str, name: str = "") -> WeightsEntry:
    """Find the weights for a method.

    Parameters
    ----------
    method
        Name of the method.
    name
        Bare name of the weights. Empty takes those called like the method, else the first that are made for it.

    Raises
    ------
    ModelError
        If there are none, they belong to another method, or their entry is broken.
    """
    if name and not _NAME.fullmatch(name):
        raise ModelError(f"weights are chosen by their bare name, without path parts; got {name[:60]!r}")
    found, broken, _ = _search()
    for problem in broken:  # it may hide weights that should have come first
        logger.warning(problem)
    made = {key: entry for key, entry in found.items() if entry.method == method}
    if name:
        chosen = found.get(name)
    else:
        usable = (entry for entry in made.values() if isinstance(entry, WeightsEntry))
        chosen = made.get(method) or next(usable, None) or next(iter(made.values()), None)
    if isinstance(chosen, _Broken):
        raise chosen.error.with_traceback(None)  # it is kept, and would grow with each time
    if chosen is None:
        raise ModelError(_nothing(method, name, list(made), broken))
    if chosen.method != method:
        others = f"; for {method} there are {', '.join(made)}" if made else ""
        raise ModelError(f"the weights {name!r} are for {chosen.method}, not for {method}{others}")
    return chosen


def _nothing(method: str, name: str, made: list[str], broken: list[str]) -> str:
    what = f"weights {name!r} for {method}" if name else f"weights for {method}"
    others = f" (there are {', '.join(made)})" if made else ""
    folders = ", ".join(map(str, _folders()))
    named = f" --name {name}" if name else ""
    return "; ".join(
        [f"there are no {what}{others} in {folders}", *broken, f"run: cinestream import-weights {method} FILE{named}"]
    )


def _folders() -> list[Path]:
    folders = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    with suppress(ResourceError):  # no home, no weights in it
        folders.append(user_folder())
    return [*folders, _packaged()]


def _packaged() -> Path:
    return Path(str(packaged_folder("weights")))


@dataclass(frozen=True)
class _Broken:
    """An entry that cannot be used; it still hides those of its name in later folders, as a good one would."""

    method: str
    error: ModelError


class _Searched(NamedTuple):
    found: dict[str, WeightsEntry | _Broken]  # the first of every name
    problems: list[str]  # of whole manifests
    own: dict[Path, dict[str, WeightsEntry | _Broken]]  # of every folder

    def seen_from(self, folder: Path | None) -> dict[str, WeightsEntry | _Broken]:
        """Entries by name, those of a folder first."""
        return self.found if folder is None else {**self.found, **self.own.get(folder, {})}


def _search() -> _Searched:
    """All entries; parsed again only where something has changed."""
    return _read_all(tuple((folder, _state(folder)) for folder in _folders()), method_names())


def _state(folder: Path) -> tuple[object, ...]:
    """The manifest of a folder as it is, and the names of its files."""
    try:
        return (folder / MANIFEST).read_bytes(), *sorted(folder.iterdir())
    except OSError as error:
        return (str(error),)


@functools.lru_cache(maxsize=4)
def _read_all(folders: tuple[tuple[Path, tuple[object, ...]], ...], _: tuple[str, ...]) -> _Searched:
    """Read the manifests of folders; `_` holds the methods that entries may be of."""
    parsed = _Searched({}, [], {})
    for folder, _content in folders:
        try:
            manifest = read_manifest(folder / MANIFEST)
        except ModelError as error:
            parsed.problems.append(str(error))
            continue
        own = parsed.own.setdefault(folder, {})
        for name, fields in manifest.items():
            try:
                own.setdefault(name, _parse_entry(folder, name, fields))
            except ModelError as error:
                method = fields.get("method") if isinstance(fields, dict) else None
                own.setdefault(name, _Broken(str(method), error))
            parsed.found.setdefault(name, own[name])
    checked = {
        folder: {name: _started(parsed, name, entry) for name, entry in entries.items()}
        for folder, entries in parsed.own.items()
    }
    found: dict[str, WeightsEntry | _Broken] = {}
    for entries in checked.values():
        found |= {name: entry for name, entry in entries.items() if name not in found}
    return _Searched(found, parsed.problems, checked)


def _started(parsed: _Searched, name: str, entry: WeightsEntry | _Broken) -> WeightsEntry | _Broken:
    """An entry, unless it starts from what no network can start from."""
    if isinstance(entry, _Broken):
        return entry
    problem = _why_no_start(entry.start, parsed.seen_from(entry.file.parent))
    where = f"{entry.file.parent / MANIFEST}, entry {name!r}"
    return _Broken(entry.method, ModelError(f"{where}: {problem}")) if problem else entry


def _why_no_start(start: str, found: Mapping[str, WeightsEntry | _Broken]) -> str:
    """Why a network cannot start from something; empty if it can."""
    known, entry = _starts(found), found.get(start)
    if start in known:
        return ""
    text = f"a network cannot start from {start!r:.100}"
    if isinstance(entry, _Broken):
        return f"{text}: {entry.error}"
    if entry is not None:
        fault = "have no weighing"
        if entry.start != WEIGHED_AGAINST:
            fault = f"start from {entry.start!r:.100} instead of {WEIGHED_AGAINST}"
        return f"{text}: those weights, of {entry.file.parent / MANIFEST}, {fault}"
    return f"{text}; {choose_from(start, known)}"


def _starts(found: Mapping[str, WeightsEntry | _Broken]) -> tuple[str, ...]:
    """What a network may start from, see `weights_of_start`."""
    usable = ((name, entry) for name, entry in found.items() if isinstance(entry, WeightsEntry))
    return *STARTS, *(name for name, entry in usable if entry.weighing and entry.start == WEIGHED_AGAINST)


# --- what a manifest holds --------------------------------------------------------------------------------------------


def known_weights(digest: str) -> WeightsFacts | None:
    """What is known of published weights, by the digest of their content; None of all others.

    Parameters
    ----------
    digest
        As `recon_core.weights.checkpoint.content_digest` gives it.

    Raises
    ------
    ModelError
        If the list that comes with cinestream is damaged.
    """
    path = _packaged() / _KNOWN
    fields = read_manifest(path).get(digest)
    return None if fields is None else _Fields(fields, f"{path}, entry {digest}").facts()


def read_manifest(path: Path) -> dict[str, object]:
    """Read what a manifest has under each name, not yet checked; an absent or empty file has nothing.

    Raises
    ------
    ModelError
        If it cannot be read, or is no YAML mapping of names.
    """
    import yaml

    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ModelError(f"{path} must map names to the fields of their weights")
    return document


def _parse_entry(folder: Path, name: str, mapping: object) -> WeightsEntry:
    where = f"{folder / MANIFEST}, entry {name!r}"
    if not _NAME.fullmatch(name):
        raise ModelError(f"{where}: a name has letters, digits and _.- only")
    fields = _Fields(mapping, where)
    file = fields.text("file", required=True)
    if not _FILE.fullmatch(file):
        raise fields.wrong("file", "a bare file name, in the folder of the manifest")
    sha256 = fields.text("sha256", required=True).lower()
    if not _DIGEST.fullmatch(sha256):
        raise fields.wrong("sha256", "64 hexadecimal digits")
    facts = fields.facts()
    path = folder / file
    if not path.is_file():
        raise ModelError(f"{where}: there is no file {path}; import the weights again or take the entry out")
    return WeightsEntry(**vars(facts), name=name, file=path, sha256=sha256)


class _Fields:
    """The fields of one entry, checked as they are read."""

    def __init__(self, mapping: object, where: str) -> None:
        if not isinstance(mapping, dict):
            raise ModelError(f"{where}: expected the fields of weights, got {mapping!r:.60}")
        self._left: dict[object, object] = dict(mapping)
        self._where = where

    def wrong(self, name: str, expected: str) -> ModelError:
        return ModelError(f"{self._where}: {name} must be {expected}")

    def text(self, name: str, *, required: bool = False) -> str:
        if required and name not in self._left:
            raise ModelError(f"{self._where}: {name} is missing")
        value = self._left.pop(name, "")
        if not isinstance(value, str) or (required and not value):
            raise self.wrong(name, f"a text, got {value!r:.60}")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self.text(name) or default
        if value not in choices:
            parts = (f"one of {', '.join(choices)}, got {value!r:.60}", meant(value, choices))
            raise self.wrong(name, "; ".join(filter(None, parts)))
        return value

    def patterns(self, name: str) -> tuple[str, ...]:
        value = self._left.pop(name, [])
        if not isinstance(value, list) or any(pattern not in PATTERNS for pattern in value):
            raise self.wrong(name, f"a list of some of {', '.join(PATTERNS)}; got {value!r:.60}")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, object]:
        value = self._left.pop(name, {})
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self.wrong(name, f"a mapping of names to values, got {value!r:.60}")
        return value

    def facts(self) -> WeightsFacts:
        """Read what all entries have; whatever is left then is unknown."""
        method = self.text("method", required=True)
        if method not in method_names():
            raise self.wrong("method", f"one of {', '.join(method_names())}; got {method!r:.60}")
        peak = self._left.pop("input_peak", 1.0)
        if isinstance(peak, bool) or not isinstance(peak, int | float) or not 0 < peak <= _LARGEST:
            raise self.wrong("input_peak", f"a positive number, got {peak!r:.60}")
        window = self._left.pop("window", 0)
        if isinstance(window, bool) or not isinstance(window, int) or window < 0:
            raise self.wrong("window", f"a whole number of frames, 0 for all, got {window!r:.60}")
        start = self.text("start") or STARTS[0]
        reference = self.choice("reference", REFERENCES, "cg_sense")
        ranges, limits, weighing = self.mapping("range"), self.mapping("limits"), self.mapping("weighing")
        try:
            trained = TrainingRange.parse(ranges) if ranges else None
            kept = Limits.parse(limits) if limits else None
            weighed = Weighing.parse(weighing) if weighing else None
        except SettingsError as error:
            raise ModelError(f"{self._where}: {error}") from error
        if weighed and reference != WEIGHED_AGAINST:
            raise self.wrong("reference", f"{WEIGHED_AGAINST} where there is a weighing, got {reference}")
        facts = WeightsFacts(
            method=method,
            config=self.mapping("config"),
            input_peak=float(peak),
            window=window,
            start=start,
            range=trained,
            limits=kept,
            reference=reference,
            weighing=weighed,
            weighed_on=self.patterns("weighed_on"),
            training=self._training(),
            metrics=self._metrics(),
            source=self.text("source"),
            licence=self.text("licence"),
            notes=self.text("notes"),
        )
        if self._left:
            raise ModelError(f"{self._where}: unknown field {next(iter(self._left))!r:.60}")
        return facts

    def _training(self) -> dict[str, str | float]:
        found: dict[str, str | float] = {}
        for name, value in self.mapping("training").items():
            if not isinstance(value, str) and not _is_number(value):
                raise self.wrong("training", f"names with texts and numbers; got {name!r:.60}: {value!r:.60}")
            found[name] = cast("str | float", value)
        return found

    def _metrics(self) -> dict[str, float | dict[str, float]]:
        found = self.mapping("metrics")
        for name, value in found.items():
            inner = value if isinstance(value, dict) else {name: value}
            if not all(isinstance(key, str) and _is_number(number) for key, number in inner.items()):
                expected = "a mapping of names to numbers, or of conditions to such mappings"
                raise self.wrong("metrics", f"{expected}; got {name!r:.60}: {value!r:.60}")
        return cast("dict[str, float | dict[str, float]]", found)


def _is_number(value: object) -> bool:
    """Whether a manifest may have it for a measured number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


# --- writing ----------------------------------------------------------------------------------------------------------


def write_entry(folder: Path, entry: WeightsEntry) -> None:
    """Add an entry to the manifest of a folder, or replace the one of its name; the others stay as they are.

    Parameters
    ----------
    folder
        Made if it is not there.
    entry
        Its file must lie in the folder.

    Raises
    ------
    SettingsError
        If the name or the file is not one that a manifest can hold.
    ModelError
        If the manifest that is there cannot be read; it is left alone.
    ResourceError
        If it cannot be written.
    """
    import yaml

    check_name(entry.name)
    if not _FILE.fullmatch(entry.file.name) or entry.file.absolute().parent != folder.absolute():
        raise SettingsError(f"{entry.file} must lie in {folder}, under a name of letters, digits and _.- only")
    path = folder / MANIFEST
    manifest = read_manifest(path)
    manifest[entry.name] = {
        "method": entry.method,
        "file": entry.file.name,
        "sha256": entry.sha256,
        "config": {key: list(value) if isinstance(value, tuple) else value for key, value in entry.config.items()},
        "input_peak": entry.input_peak,
        "window": entry.window,
        "start": entry.start,
        "weighed_on": list(entry.weighed_on),
        "range": entry.range.mapping() if entry.range else {},
        "limits": entry.limits.mapping() if entry.limits else {},
        "reference": entry.reference,
        "weighing": entry.weighing.mapping() if entry.weighing else {},
        "training": entry.training,
        "metrics": entry.metrics,
        "source": entry.source,
        "licence": entry.licence,
        "notes": entry.notes,
    }
    text = yaml.safe_dump(manifest, sort_keys=False, width=120)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of weights.

    Raises
    ------
    SettingsError
        If it has other characters than letters, digits and ``_.-``, or too many of them.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"the name of weights has letters, digits and _.- only, 100 at most; got {name[:120]!r}")
