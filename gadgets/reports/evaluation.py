"""The page and the loop of image files against the truth of their scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.images.pictures import ERROR_GAIN, gray, loop, moving_part, white_level
from gadgets.reports.page import comparison, render
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gadgets.evaluation.images import Evaluation
    from recon_core.metrics.scores import Truth


def write_gif(path: Path, evaluations: Sequence[Evaluation], truth: Truth) -> None:
    """Write a looped GIF of what moves: all outputs side by side and the errors of the last, a row for every slice.

    Parameters
    ----------
    path
        Where to write.
    evaluations, truth
        As `gadgets.evaluation.images.evaluate` gives them.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    window = white_level(truth)
    names = [evaluation.series.name.removesuffix(".h5") for evaluation in evaluations]
    tiles = []
    for i, known in enumerate(np.abs(truth)):
        rows, columns = moving_part(known)
        images = [evaluation.series.frames[i][:, rows, columns] for evaluation in evaluations]
        tiles += [gray(frames, window) for frames in images]
        tiles.append(gray(np.abs(images[-1] - known[:, rows, columns]), window / ERROR_GAIN))
    titles = [*names, f"{ERROR_GAIN} x error of {names[-1]}"]
    write_file(path, loop(tiles, len(titles), evaluations[0].series.seconds, titles))


def write_page(path: Path, evaluations: Sequence[Evaluation], truth: Truth, source: str) -> None:
    """Write one HTML file that shows all outputs and the truth side by side.

    Parameters
    ----------
    path
        Where to write.
    evaluations, truth
        As `gadgets.evaluation.images.evaluate` gives them.
    source
        Name of the truth.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    window, first = white_level(truth), evaluations[0].series
    slices = []
    for i, known in enumerate(truth):
        images = [(evaluation.series.name, evaluation.series.frames[i]) for evaluation in evaluations]
        pictures = comparison(images, np.abs(known), window, first.aspect, first.seconds)
        scores = (
            [(evaluation.series.name, evaluation.scores[i]) for evaluation in evaluations] if len(truth) > 1 else []
        )
        slices.append((first.slices[i], pictures, scores))
    totals = [(evaluation.series.name, evaluation.total) for evaluation in evaluations]
    write_file(path, render("evaluation.html", source=source, shape=truth.shape, totals=totals, slices=slices))
