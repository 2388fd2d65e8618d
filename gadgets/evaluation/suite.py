"""The standard suite: every method on held-out scans under equal conditions, as table, JSON file, page and figure."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from itertools import chain, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from gadgets import __version__
from gadgets.evaluation.held_out import CONDITIONS, PARTS, SEED, HeldOutScan, LoadedScan, held_out_scans
from gadgets.files.raw import open_scan
from gadgets.preparation.noise import ScanNoise
from gadgets.preparation.readouts import Preparation
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.slices.buffers import SliceBuffers
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Readouts
from recon_core.ct.alignment import check_alignment, time_average_magnitude
from recon_core.data import CtImage
from recon_core.engine import Engine
from recon_core.errors import CinestreamError, DataError, ModelError, ResourceError, SettingsError
from recon_core.methods import find_method, method_names
from recon_core.metrics.scores import SCORES, measure, read_truth, scaled
from recon_core.options import ReconOptions, apply
from recon_core.storage import replacing
from recon_core.weights.manifest import WeightsFacts, find_weights, weights_of_start
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recon_core.data import CineSlice
    from recon_core.weights.manifest import WeightsEntry

    Key = tuple[str, str, str, str]
    Facts = dict[str, str | int]
    Methods = dict[str, WeightsEntry | None]


SEMI_REAL = "semi_real"
PART_TITLES = {
    **PARTS,
    SEMI_REAL: "Semi-real scans: cines of patients with measured coil maps and noise, sampled as they are",
}
SCORE_FORMS = {  # of the scores in tables; more of them are in the file
    "dynamic_psnr": "{:.1f}",
    "dynamic_ssim": "{:.3f}",
    "nrmse": "{:.3f}",
    "psnr": "{:.1f}",
    "ssim": "{:.3f}",
    "haarpsi": "{:.3f}",
}
_QUICK = tuple(name for name in CONDITIONS if name.endswith("_8"))
_SHOWN = "random_8"  # its net acceleration is the one in its name, and the methods without weights do best on it


@dataclass(frozen=True)
class Variant:
    """Another way to use a method, with the same weights."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `ReconOptions`, where they are not those by default."""
    ct_off: float | None = None
    """How many mm off its place the CT lies that is given; None gives none."""
    all_scans: bool = False
    """Whether it is measured on all scans; else, because it is slow, on the last one of each part."""


#: By the name of the method, a slash, and what is different.
VARIANTS = {
    "dstdm/paper": Variant({"sampler": "paper"}),
    "atlf_net/ct": Variant(ct_off=0.0, all_scans=True),
    "atlf_net/ct_shifted": Variant(ct_off=8.0, all_scans=True),
}
# What the manifest tells of weights; all else that it says may change what becomes of a scan.
_DESCRIBES = {"training", "metrics", "source", "licence", "notes"}
VARIED = "uniform_8"  # the one condition under which they are measured
YARDSTICK = "kt_sense"  # what networks are to add to
DIFFERENCE_FORMS = {"dynamic_psnr": "{:+.2f}", "psnr": "{:+.2f}", "ssim": "{:+.4f}"}  # in tables; all are in the file
COMPARED = "Variants minus their method, on the same scans"
GAINED = f"Networks minus {YARDSTICK}, on the same scans, under all conditions"


def method_of(name: str) -> str:
    """The method that is meant by its own name or by that of a variant."""
    return name.partition("/")[0]


_MEASURED = method_names(lambda info: not info.chooses)
NAMES = sorted([*_MEASURED, *VARIANTS], key=lambda name: _MEASURED.index(method_of(name)))


@dataclass(frozen=True)
class Cell:
    """What a method made of a scan under a condition."""

    part: str
    scan: str
    condition: str
    method: str
    """`part`, `scan`, `condition`, `method`: Which one; a variant stands where a method does."""
    weights: str = ""
    """Their name, digest, and that of how they are used; empty for a method that needs none."""
    source: str = ""
    """Digest of the file that the scan was made of; empty for a simulated one."""
    net_acceleration: float = 1.0
    """Lines over measured lines."""
    seconds: float = 0.0
    """Wall time of the reconstruction with its coil maps."""
    scores: dict[str, float] = field(default_factory=dict)
    """As `recon_core.metrics.scores.measure`; empty if there is no image."""
    outside: tuple[str, ...] = ()
    """Why a stream would send the fallback's image instead of this one."""
    failure: str = ""
    """Why there is no image."""
    ct_suspect: bool = False
    """Whether a stream would say that the CT may not lie where the slice is."""

    @property
    def key(self) -> Key:
        """What distinguishes it from all others."""
        return self.part, self.scan, self.condition, self.method


@dataclass(frozen=True)
class Row:
    """What a method made of all scans of a part under a condition."""

    part: str
    condition: str
    method: str
    """`part`, `condition`, `method`: Which ones."""
    scans: int
    """How many have an image; everything below is of those."""
    outside: int
    """Of how many of them a stream would send the fallback's image instead."""
    net_acceleration: float
    seconds: float
    """`net_acceleration`, `seconds`: Medians."""
    median: dict[str, float]
    worst: dict[str, float]
    """`median`, `worst`: Of every score."""
    failure: str
    """Why a scan has no image; empty if all have one."""


@dataclass(frozen=True)
class Difference:
    """Scores of a variant minus those of its method, or of a method minus those of `YARDSTICK`."""

    name: str
    """Of the variant or the method, of the latter with the part."""
    scans: int
    """How many series have an image of both under the same condition; everything below is of those."""
    median: dict[str, float]
    worst: dict[str, float]
    """`median`, `worst`: Of every score of the one minus that of the other."""


@dataclass(frozen=True)
class Shown:
    """One scan under one condition, to look at."""

    part: str
    scan: str
    condition: str
    """`part`, `scan`, `condition`: Which one."""
    truth: NDArray[np.float32]
    """``(frame, y, x)`` magnitudes of its first slice."""
    aspect: float
    """Width over height of an image in mm."""
    frame_seconds: float
    """Time from frame to frame for a loop."""
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """By method ``(frame, y, x)`` magnitudes in the unit of the truth."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the suite found."""

    facts: Facts
    """What the numbers hold for."""
    methods: Methods
    """Weights of every network, None for methods that need none."""
    missing: list[str]
    """Networks without weights."""
    cells: list[Cell]
    """Scan by scan, method by method, condition by condition."""
    shown: list[Shown]
    """The last scan of each part, if images were wanted."""


def choose_methods(names: Sequence[str] = ()) -> tuple[Methods, list[str]]:
    """Find the methods to evaluate.

    Parameters
    ----------
    names
        Methods and variants; empty takes all that can run.

    Returns
    -------
    dict, list of str
        Weights of every method, None where it needs none; networks that are left out because they have no weights.

    Raises
    ------
    SettingsError
        If no method has one of the names.
    ModelError
        If a network that was named has no usable weights.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise SettingsError(f"there is no method {unknown[0]!r}; {choose_from(unknown[0], NAMES)}")
    chosen: Methods = {}
    missing = []
    for name in NAMES:
        if names and name not in names:
            continue
        method = method_of(name)
        try:
            chosen[name] = find_weights(method) if find_method(method).network else None
        except ModelError:
            if names:
                raise
            if name == method:
                missing.append(name)
    return chosen, missing


def semi_real_scans(folder: Path) -> list[HeldOutScan]:
    """List the semi-real scans of a folder: every raw file with a reference next to it.

    Parameters
    ----------
    folder
        Has ``<name>.h5`` and ``<name>_ref.npz`` with ``reference`` ``(slice, frame, y, x)``, and ``coil_maps``
        ``(slice, coil, y, x)`` where they are known.

    Returns
    -------
    list of HeldOutScan
        Sorted by name, each under one condition: the sampling of its file.
    """
    scans = []
    for truth in sorted(folder.glob("*_ref.npz")):
        path = truth.with_name(f"{truth.stem.removesuffix('_ref')}.h5")
        if path.is_file():
            source = hashlib.sha256(path.read_bytes() + truth.read_bytes()).hexdigest()
            name = path.stem.removeprefix("cine_")
            scans.append(HeldOutScan(SEMI_REAL, name, (name,), partial(_read_scan, path, truth), source))
    return scans


def _read_scan(path: Path, truth: Path) -> LoadedScan:
    """Read a raw file as a stream is read: noise-whitened, without oversampling, slice by slice."""
    reference = np.asarray(read_truth(truth), np.complex64)
    with open_scan(path) as scan:
        header = parse_header(scan.header)
        problems = Problems()
        preparation = Preparation(header, problems, ScanNoise(header, problems, whiten=True))
        buffers = SliceBuffers(header, problems, Settings())
        runs = chain.from_iterable(preparation(item) for item in scan.items if isinstance(item, Readouts))
        complete = [one for run in runs for one in buffers.add(run)]
        complete += [one for run in preparation.flush() for one in buffers.add(run)]
        complete += buffers.flush()
    complete.sort(key=lambda one: one.key)
    slices = [replace(one.cine, receiver=preparation.receiver(one.key.encoding)) for one in complete]
    x, y, _ = header.encodings[0].recon.field_of_view
    n_frames, n_rows, n_columns = reference.shape[1:]
    aspect = x / y if x > 0 and y > 0 else n_columns / n_rows
    with np.load(truth) as arrays:
        maps = np.asarray(arrays["coil_maps"], np.complex64) if "coil_maps" in arrays else None
    return LoadedScan(reference, lambda _: slices, aspect, 1.0 / n_frames, maps=maps)


def run_suite(
    names: Sequence[str] = (),
    *,
    data: Path | None = None,
    quick: bool = False,
    stored: Path | None = None,
    fresh: bool = False,
    images: bool = False,
) -> Outcome:
    """Evaluate methods on the held-out scans, and variants of them on those that they are for.

    Coil maps come from the undersampled data, as in a stream. Where a stream would send the image of the fallback,
    because the scan is not like the training of a network or its image is doubtful, that of the network is measured all
    the same, and marked.

    Parameters
    ----------
    names
        Methods and variants; empty takes all that need no weights or have some.
    data
        Folder with ``scd_cine`` and, where there are some, ``semi_real_cine``; None leaves the simulated scans.
    quick
        One scan of each part, and only the conditions with R = 8.
    stored
        JSON file that is brought up to date after every cell; what an earlier run with the same facts left in it is not
        computed again.
    fresh
        Start that file again.
    images
        Keep the images of one scan of each part, which are computed again for that.

    Returns
    -------
    Outcome
        Everything that was asked for.

    Raises
    ------
    SettingsError
        If a method is unknown, or the file comes from a run with other facts.
    ModelError
        If a network that was named has no usable weights.
    ResourceError
        If the data cannot be read, or the file neither read nor written.
    """
    methods, missing = choose_methods(names)
    scans = [*held_out_scans(data), *(semi_real_scans(data / "semi_real_cine") if data else ())]
    if quick:
        last = {scan.part: scan for scan in scans}.values()
        scans = [scan if scan.part == SEMI_REAL else replace(scan, conditions=_QUICK) for scan in last]
    engine = Engine()
    facts: Facts = {
        "suite": "standard",
        "version": __version__,
        "torch": torch.__version__,
        "device": engine.device.type,
        "threads": torch.get_num_threads(),
        "seed": SEED,
    }
    known = _read_cells(stored, facts) if stored and stored.exists() and not fresh else {}
    if stored:  # better known now than after the first cell
        _write_cells(stored, facts, known.values())

    last_of = {scan.part: scan for scan in scans}
    plan = [(scan, _series(scan, methods, is_last=scan is last_of[scan.part])) for scan in scans]
    cells: list[Cell] = []
    shown: dict[str, Shown] = {}
    total = sum(len(series) for _, series in plan)
    with tqdm(total=total, desc="evaluating", unit=" series", disable=None, leave=False) as bar:
        for scan, series in plan:
            load = cache(scan.load)
            for method, condition in series:
                entry = methods[method]
                show = images and scan is last_of[scan.part] and condition == _shown(scan)
                cell = known.get((scan.part, scan.name, condition, method))
                if show or cell is None or cell.failure or (cell.weights, cell.source) != (_named(entry), scan.source):
                    cell, made = _evaluate(engine, scan, load(), condition, method, entry)
                    known[cell.key] = cell
                    if stored:
                        _write_cells(stored, facts, known.values())
                    if show:
                        shown.setdefault(scan.part, _nothing_shown(scan, load()))
                        shown[scan.part].images.update(zip([method], made[:1], strict=False))
                cells.append(cell)
                bar.update()
    return Outcome(facts, methods, missing, cells, list(shown.values()))


def _series(scan: HeldOutScan, methods: Iterable[str], *, is_last: bool) -> list[tuple[str, str]]:
    """The methods to run on a scan and the conditions to run each under; `is_last` says that it is of its part."""
    return [
        (name, condition)
        for name, condition in product(methods, scan.conditions)
        if name not in VARIANTS or (condition == VARIED and (is_last or VARIANTS[name].all_scans))
    ]


def _shown(scan: HeldOutScan) -> str:
    return _SHOWN if _SHOWN in scan.conditions else scan.conditions[0]


def _nothing_shown(scan: HeldOutScan, loaded: LoadedScan) -> Shown:
    truth = np.abs(loaded.truth[0])
    return Shown(scan.part, scan.name, _shown(scan), truth, loaded.aspect, loaded.frame_seconds)


def _evaluate(
    engine: Engine, scan: HeldOutScan, loaded: LoadedScan, condition: str, method: str, entry: WeightsEntry | None
) -> tuple[Cell, list[NDArray[np.float32]]]:
    """Reconstruct and measure; gives no images where the method cannot do the scan."""
    name = method_of(method)
    variant = VARIANTS.get(method, Variant())
    # As in a stream, except that a doubtful image is kept instead of that of the fallback.
    options = (
        ReconOptions.of(method=name, weights=entry.name, outside_range="note")
        if entry
        else ReconOptions(method=name, fallback="none")
    )
    options = apply(options, variant.options)
    slices = loaded.measured(condition)
    cell = Cell(
        *(scan.part, scan.name, condition, method),
        weights=_named(entry),
        source=scan.source,
        net_acceleration=sum(one.mask.size for one in slices) / sum(int(one.mask.sum()) for one in slices),
    )
    try:
        if variant.ct_off is not None:
            slices, ct_suspect = _with_ct(slices, loaded, variant.ct_off)
            cell = replace(cell, ct_suspect=ct_suspect)
        engine.prepare(options)
        made = [engine.reconstruct(one, options) for one in slices]
        for one in made:
            if one.method != name:
                return replace(cell, failure="; ".join(one.notes)), []
        frames = scaled([np.abs(one.image) for one in made], loaded.truth)
        scores = measure(frames, list(loaded.truth))
    except CinestreamError as error:
        return replace(cell, failure=str(error)), []
    seconds = sum(sum(one.seconds.values()) for one in made)
    outside = dict.fromkeys("; ".join(one.doubts) for one in made if one.doubts)
    return replace(cell, seconds=seconds, scores=scores, outside=tuple(outside)), frames


def _with_ct(slices: Sequence[CineSlice], loaded: LoadedScan, off: float) -> tuple[list[CineSlice], bool]:
    """Give the slices a CT so many mm off its place, suspect or not, as by default; say whether it is."""
    if loaded.placed is None:
        raise DataError("the scan has no CT")
    pairs = list(zip(slices, loaded.placed(off), strict=True))
    suspect = any(
        check_alignment(ct, time_average_magnitude(one.kspace, one.mask), cover).suspect for one, (ct, cover) in pairs
    )
    return [replace(one, ct=CtImage(ct, cover)) for one, (ct, cover) in pairs], suspect


def _named(entry: WeightsEntry | None) -> str:
    """The weights, how they are used, and those that they start from."""
    if entry is None:
        return ""
    use = [getattr(entry, one.name) for one in fields(WeightsFacts) if one.name not in _DESCRIBES]
    digest = hashlib.sha256(repr(use).encode()).hexdigest()
    first = _named(weights_of_start(entry.start, entry))
    return f"{entry.name}, sha256 {entry.sha256}, used as {digest[:16]}" + (first and f", from {first}")


def _write_cells(path: Path, facts: Facts, cells: Iterable[Cell]) -> None:
    kept = list(cells)
    content = {
        "facts": facts,
        "conditions": {name: asdict(condition) for name, condition in CONDITIONS.items()},
        "cells": [asdict(cell) for cell in kept],
        "summary": [asdict(row) for row in summarise(kept)],
        "gains": [asdict(one) for one in gains(kept)],
        "variants": [asdict(one) for one in differences(kept)],
    }
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_cells(path: Path, facts: Facts) -> dict[Key, Cell]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        theirs: Facts = dict(content["facts"])
        cells = [Cell(**{**fields, "outside": tuple(fields["outside"])}) for fields in content["cells"]]
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResourceError(f"{path} is no result of this suite; choose another file for --json") from error
    other = [f"{name} {theirs.get(name)}, now {value}" for name, value in facts.items() if theirs.get(name) != value]
    if other:
        raise SettingsError(
            f"{path} has results of a run with {'; '.join(other)}; choose another file, or --fresh to start it again"
        )
    return {cell.key: cell for cell in cells}


def summarise(cells: Iterable[Cell]) -> list[Row]:
    """Bring the scans of each part together: medians and worst values, in the order in which the cells come."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.part, cell.condition, cell.method), []).append(cell)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, str, str], cells: list[Cell]) -> Row:
    scored = [cell for cell in cells if cell.scores]
    median, worst = _median_and_worst([cell.scores for cell in scored])
    return Row(
        *key,
        scans=len(scored),
        outside=sum(bool(cell.outside) for cell in scored),
        net_acceleration=statistics.median(cell.net_acceleration for cell in cells),
        seconds=statistics.median([cell.seconds for cell in scored] or [0.0]),
        median=median,
        worst=worst,
        failure=next((cell.failure for cell in cells if cell.failure), ""),
    )


def _median_and_worst(scores: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Of every score that all have."""
    names = [name for name in SCORES if scores and all(name in one for one in scores)]
    values = {name: [one[name] for one in scores] for name in names}
    worst = {name: (max if SCORES[name].best is min else min)(found) for name, found in values.items()}
    return {name: statistics.median(found) for name, found in values.items()}, worst


def differences(cells: Iterable[Cell]) -> list[Difference]:
    """Compare every variant with its method, scan by scan over all parts, where there are scans with images of both."""
    by_series = _by_series(cells)
    found = (_difference(variant, variant, method_of(variant), by_series) for variant in VARIANTS)
    return [one for one in found if one]


def gains(cells: Iterable[Cell]) -> list[Difference]:
    """Compare every network with `YARDSTICK`, part by part, over all scans and conditions with images of both."""
    kept = list(cells)
    networks = dict.fromkeys(cell.method for cell in kept if cell.weights and cell.method not in VARIANTS)
    found = []
    for method, part in product(networks, PART_TITLES):
        by_series = _by_series(cell for cell in kept if cell.part == part)
        found.append(_difference(f"{method}, {part.replace('_', '-')}", method, YARDSTICK, by_series))
    return [one for one in found if one]


def _by_series(cells: Iterable[Cell]) -> dict[tuple[str, str, str], dict[str, dict[str, float]]]:
    """Scores by method of every scan under every condition."""
    by_series: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for cell in cells:
        if cell.scores:
            by_series.setdefault((cell.part, cell.scan, cell.condition), {})[cell.method] = cell.scores
    return by_series


def _difference(
    name: str, ours: str, theirs: str, by_series: Mapping[Any, Mapping[str, Mapping[str, float]]]
) -> Difference | None:
    pairs = [(of[ours], of[theirs]) for of in by_series.values() if {ours, theirs} <= of.keys()]
    minus = [{score: one[score] - other[score] for score in one if score in other} for one, other in pairs]
    return Difference(name, len(minus), *_median_and_worst(minus)) if minus else None


def table(outcome: Outcome) -> str:
    """Lay the medians out as text, part by part, conditions side by side; below stand the notes that belong to them."""
    rows = summarise(outcome.cells)
    blocks = []
    for part, title in PART_TITLES.items():
        found = {(row.method, row.condition): row for row in rows if row.part == part}
        if not found:
            continue
        scans = dict.fromkeys(cell.scan for cell in outcome.cells if cell.part == part)
        lines = [title, f"  {', '.join(scans)}"]
        conditions = list(dict.fromkeys(condition for _, condition in found))
        methods = {method: [found.get((method, name)) for name in conditions] for method in outcome.methods}
        n_scans = scan_counts(outcome, part)
        methods = {row_label(method, ours, n_scans): ours for method, ours in methods.items() if any(ours)}
        for heading, whole in (("dynamic PSNR / PSNR, dB", "psnr"), ("dynamic SSIM / SSIM", "ssim")):
            cells = [[heading, *(name.replace("_", " ") for name in conditions)]]
            cells += [[label, *(_pair(row, whole) for row in ours)] for label, ours in methods.items()]
            if whole == "psnr":
                cells.insert(1, ["net acceleration", *(f"{_net(found, name):.1f} " for name in conditions)])
                cells[0].append("s per series")
                cells[1].append("")
                for line, ours in zip(cells[2:], methods.values(), strict=True):
                    seconds = [row.seconds for row in ours if row and row.scans]
                    line.append(f"{statistics.median(seconds):.2f}" if seconds else "–")
            lines += ["", *_aligned(cells)]
        blocks.append("\n".join(lines))
    for title, compared in comparisons(outcome).items():
        heads = [f"{SCORES[name].title}{', dB' if 'psnr' in name else ''}" for name in DIFFERENCE_FORMS]
        cells = [["median (worst) difference", "series", *heads]]
        cells += [[one.name, str(one.scans), *(_change(one, name) for name in DIFFERENCE_FORMS)] for one in compared]
        blocks.append("\n".join([title, "", *_aligned(cells)]))
    return "\n\n".join([*blocks, "\n".join(notes(outcome))])


def comparisons(outcome: Outcome) -> dict[str, list[Difference]]:
    """Gains of networks and differences of variants, by title, where there are any."""
    both = {GAINED: gains(outcome.cells), f"{COMPARED}, {CONDITIONS[VARIED].title}": differences(outcome.cells)}
    return {title: found for title, found in both.items() if found}


def scan_counts(outcome: Outcome, part: str) -> Counter[str]:
    """How many scans of a part there are under every condition."""
    return Counter(condition for _, condition in {(c.scan, c.condition) for c in outcome.cells if c.part == part})


def row_label(method: str, rows: Sequence[Row | None], n_scans: Mapping[str, int]) -> str:
    """Name a method, and say of how many scans its medians are where that is not all."""
    ours = max(row.scans for row in rows if row)
    there = max(n_scans[row.condition] for row in rows if row)
    return method if ours == there else f"{method} ({ours} of {there} scans)"


def _pair(row: Row | None, whole: str) -> str:
    """A score of what moves and of everything, with a mark; blank where nothing was to be measured."""
    if row is None:
        return ""
    pair = " / ".join(score_text_of(SCORE_FORMS[name], row.median, name) for name in (f"dynamic_{whole}", whole))
    return pair + ("*" if row.outside else " ")


def _change(one: Difference, name: str) -> str:
    form = DIFFERENCE_FORMS[name]
    return f"{score_text_of(form, one.median, name)} ({score_text_of(form, one.worst, name)})"


def _net(found: Mapping[tuple[str, str], Row], condition: str) -> float:
    return next(row.net_acceleration for (_, name), row in found.items() if name == condition)


def score_text_of(form: str, values: Mapping[str, float], name: str) -> str:
    """One score in words, or a dash where there is none."""
    return form.format(values[name]) if name in values else "–"


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(texts, widths[1:], strict=True))])
        for name, *texts in cells
    ]


def notes(outcome: Outcome) -> list[str]:
    """Say what a reader of the tables must know: marks, dashes, and what was left out."""
    said = ["Medians over the scans of a part; one factor per series; coil maps from the undersampled data."]
    if all(not cell.source for cell in outcome.cells):
        said.append("Simulated scans only: --data DIR brings the held-out patient and the semi-real scans.")
    for method in outcome.methods:
        cells = [cell for cell in outcome.cells if cell.method == method]
        outside = [cell for cell in cells if cell.outside]
        if outside:
            said.append(
                f"* {method}: for {len(outside)} of {len(cells)} series a stream sends the image of the fallback "
                f"instead, such as: {outside[0].outside[0]}"
            )
        failed = [cell for cell in cells if cell.failure]
        if failed:
            said.append(f"– {method}: no image of {len(failed)} of {len(cells)} series, such as: {failed[0].failure}")
        if VARIANTS.get(method, Variant()).ct_off is not None:
            suspect = sum(cell.ct_suspect for cell in cells)
            said.append(
                f"{method}: for {suspect} of {len(cells)} series a stream says that the CT may lie elsewhere (and goes "
                "without it if ct_policy is fallback)"
            )
    if any(outcome.methods.values()):
        said.append("The time of a network includes the image of the method that its own is compared with.")
    if outcome.missing:
        said.append(f"Left out, because they have no weights: {', '.join(outcome.missing)}")
    return said
