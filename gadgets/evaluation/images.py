"""Image files against the truth of their scan: a table and a CSV file."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from gadgets.files.images import read_images
from gadgets.images.maker import as_acquired
from gadgets.pictures import loop_step
from gadgets.slices.complete import SliceKey, describe
from gadgets.wire.attributes import comes_along, read_meta
from recon_core.errors import DataError, SettingsError
from recon_core.metrics.scores import SCORES, measure, read_truth, scaled, score_text
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.wire.messages import Image
    from recon_core.metrics.scores import Truth


@dataclass(frozen=True)
class Series:
    """One series of an image file.

    Parameters
    ----------
    name
        Its file, and the series where the file has several.
    slices
        Name of every slice, in the order of their counters.
    frames
        For every slice ``(frame, y, x)`` float32 magnitudes.
    aspect
        Width over height of an image in mm.
    seconds
        Time from frame to frame for a loop.
    """

    name: str
    slices: tuple[str, ...]
    frames: tuple[NDArray[np.float32], ...]
    aspect: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A series, scaled to the truth, and its scores.

    Parameters
    ----------
    series
        In the unit of the truth.
    total
        Scores of all slices together, as `recon_core.metrics.scores.measure` gives them.
    scores
        Scores of every slice; empty where its truth is zero everywhere.
    """

    series: Series
    total: dict[str, float]
    scores: tuple[dict[str, float], ...]


def read_series(path: Path, group: str = "dataset", name: str = "") -> list[Series]:
    """Read the image series of a file; maps that came along are left out.

    Slices are told apart and put in order by repetition, set, contrast and slice counter. Their frames are numbered by
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
    try:
        found = read_images(path, group)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no image file as replay writes it: group {group!r} is laid out otherwise"
        ) from error
    found = {
        number: images
        for number, images in found.items()
        if images and not comes_along(read_meta(images[0].attributes))
    }
    if not found:
        raise DataError(f"{path} holds no image series in group {group!r}; give what replay or a client wrote")
    name = name or str(path)
    return [
        _sorted_series(name if len(found) == 1 else f"{name}, series {number}", images)
        for number, images in sorted(found.items())
    ]


def _sorted_series(name: str, images: Sequence[Image]) -> Series:
    headers = np.array([image.header for image in images])
    by_repetition = len(np.unique(headers["phase"])) == 1 < len(np.unique(headers["repetition"]))
    slices: dict[SliceKey, dict[int, Image]] = defaultdict(dict)
    for image in images:
        if image.data.shape[:2] != (1, 1):
            raise DataError(f"{name}: expected two-dimensional images of one channel, got {image.data.shape}")
        phase, repetition, contrast, number, of_set = (
            int(image.header[counter]) for counter in ("phase", "repetition", "contrast", "slice", "set")
        )
        key = SliceKey(0, 0 if by_repetition else repetition, of_set, contrast, number)
        frame = repetition if by_repetition else phase
        if frame in slices[key]:
            raise DataError(
                f"{name}: {describe(key)} has two images of frame {frame}; give one reconstruction at a time"
            )
        slices[key][frame] = image
    ordered = [[frames[i] for i in sorted(frames)] for _, frames in sorted(slices.items())]
    width, height, _ = headers[0]["field_of_view"].tolist()
    rows, columns = images[0].data.shape[2:]
    return Series(
        name,
        tuple(describe(key) for key in sorted(slices)),
        tuple(np.stack([np.abs(as_acquired(image)).astype(np.float32) for image in frames]) for frames in ordered),
        width / height if width > 0 and height > 0 else columns / rows,
        loop_step([[int(image.header["physiology_time_stamp"][0]) for image in frames] for frames in ordered]),
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
