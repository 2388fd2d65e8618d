"""Image files against the truth of their scan: a table and a CSV file."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from gadgets.files.images import read_header, read_images
from gadgets.images.collection import sort_images, tick_of_images
from gadgets.images.pictures import loop_seconds
from gadgets.wire.attributes import is_derived, read_meta
from recon_core.errors import DataError, SettingsError
from recon_core.metrics.scores import SCORES, measure, read_truth, scaled, score_text
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.images import collection
    from recon_core.metrics.scores import Truth


@dataclass(frozen=True)
class Series:
    """One series of an image file."""

    name: str
    """Its file, and the series where the file has several."""
    slices: tuple[str, ...]
    """Name of every slice, in the order of their counters."""
    frames: tuple[NDArray[np.float32], ...]
    """For every slice ``(frame, y, x)`` float32 magnitudes."""
    aspect: float
    """Width over height of an image in mm."""
    seconds: float
    """Time from frame to frame for a loop."""


@dataclass(frozen=True)
class Evaluation:
    """A series, scaled to the truth, and its scores."""

    series: Series
    """In the unit of the truth."""
    total: dict[str, float]
    """Scores of all slices together, as `recon_core.metrics.scores.measure` gives them."""
    scores: tuple[dict[str, float], ...]
    """Scores of every slice; empty where its truth is zero everywhere."""


def read_series(path: Path, group: str = "dataset", name: str = "") -> list[Series]:
    """Read the image series of a file; maps that came along are left out.

    Slices are separated and put in order by repetition, set, contrast and slice counter. Their frames are numbered by
    the phase counter, or by the repetition counter where only that one counts.

    Parameters
    ----------
    path
        As ``cinestream replay`` and the stock client write it.
    group
        HDF5 group of the series.
    name
        What to call the file; its path if empty.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    DataError
        If it holds no images, images that are not two-dimensional, or two images of one frame.
    """
    found, header = read_images(path, group), read_header(path, group)
    found = {
        number: images for number, images in found.items() if images and not is_derived(read_meta(images[0].attributes))
    }
    if not found:
        raise DataError(f"{path} holds no image series in group {group!r}; give what replay or a client wrote")
    name = name or str(path)
    try:
        several = sort_images(found, tick_of_images(header))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return [_compared(name if len(found) == 1 else f"{name}, series {one.number}", one) for one in several]


def _compared(name: str, series: collection.Series) -> Series:
    for one in series.loops:
        twice = [frame for frame, after in itertools.pairwise(one.frames) if frame == after]
        if twice:
            text = f"{name}: {one.name} has two images of frame {twice[0]}"
            raise DataError(f"{text}; give one reconstruction at a time")
    return Series(
        name,
        tuple(one.name for one in series.loops),
        tuple(np.abs(one.acquired) for one in series.loops),
        series.loops[0].aspect,
        loop_seconds(series.frame_time),
    )


def evaluate(
    outputs: Sequence[Path],
    truth: Path,
    group: str = "dataset",
    dists: Callable[[NDArray[np.float32], Truth], float] | None = None,
) -> tuple[list[Evaluation], Truth]:
    """Compare image files with one truth, each after one least-squares factor for its whole scan.

    Parameters
    ----------
    outputs
        Image files; every series in them is taken as a scan of its own.
    truth
        As `recon_core.metrics.scores.read_truth` reads it.
    group
        HDF5 group of the images.
    dists
        A `recon_core.metrics.dists.Dists`, where its weights are at hand.

    Returns
    -------
    list of Evaluation, ndarray
        In the order of the outputs, and the truth.

    Raises
    ------
    ResourceError
        If a file cannot be read.
    DataError
        If an output holds no images or does not fit the truth, or nothing can be measured.
    """
    known = read_truth(truth)
    distinct = len({path.name for path in outputs}) == len(outputs)
    series = [one for path in outputs for one in read_series(path, group, path.name if distinct else str(path))]
    evaluations = []
    for one in tqdm(series, desc="measuring", unit=" scans", disable=None, leave=False):
        try:
            frames = scaled(one.frames, known)
        except SettingsError as error:
            raise DataError(f"{one.name} and {truth} do not belong together: {error}") from error
        except DataError as error:
            raise DataError(f"{one.name} and {truth} cannot be compared: {error}") from error
        total = measure(frames, list(known), dists)
        scores = [total]
        if len(known) > 1:
            scores = [
                measure([ours], [theirs], dists) if theirs.any() else {}
                for ours, theirs in zip(frames, known, strict=True)
            ]
        brought = Series(one.name, one.slices, tuple(frames), one.aspect, one.seconds)
        evaluations.append(Evaluation(brought, total, tuple(scores)))
    return evaluations, known


def table(evaluations: Sequence[Evaluation], *, slices: bool = False) -> str:
    """Lay the scores out as aligned text; with `slices` those of every slice stand below those of several together."""
    rows = []
    for evaluation in evaluations:
        rows.append((evaluation.series.name, evaluation.total))
        if slices and len(evaluation.scores) > 1:
            named = zip(evaluation.series.slices, evaluation.scores, strict=True)
            rows += [(f"  {name}", scores) for name, scores in named]
    columns = [key for key in SCORES if any(key in values for _, values in rows)]
    cells = [["", *(SCORES[key].title for key in columns)]]
    cells += [[name, *(score_text(key, values) for key in columns)] for name, values in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *values in cells:
        texts = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *texts]))
    return "\n".join(lines)


def write_csv(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the scores in full precision: output, slice (``all``, then one by one) and one column for every score.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    columns = [key for key in SCORES if any(key in evaluation.total for evaluation in evaluations)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["output", "slice", *columns])
    for evaluation in evaluations:
        lines = [("all", evaluation.total), *zip(evaluation.series.slices, evaluation.scores, strict=True)]
        for name, scores in lines:
            rows.writerow([evaluation.series.name, name, *(scores.get(key, "") for key in columns)])
    write_file(path, text.getvalue().encode())
