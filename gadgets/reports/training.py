"""Pages about a training: its samples and its learning curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from gadgets.pictures import GAP, encoded, gray, montage, moving_column
from gadgets.reports.page import render
from recon_core.methods import find_method
from recon_core.storage import write_file
from recon_core.training.library import Library, read_library
from recon_core.training.measurements import draw_mask
from recon_core.training.series import KINDS, draw_series

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recon_core.training.series import Kind
    from recon_core.training.trainer import Trainer


_BASELINES = ("zero_filled", "cg_sense", "low_rank_sparse")
_PLOT = (48, 500, 12, 260)  # left, right, top and bottom of the curves, in pixels
_LABEL = 11  # pixels from name to name


def write_samples(path: Path, data: Path | None, *, seed: int = 0) -> None:
    """Draw a sheet of what networks learn from.

    Parameters
    ----------
    path
        PNG to write: for each kind of series rows of two frames, a temporal profile, the phase, another contrast, and
        the lines that are measured, time running to the right.
    data
        Folder of images to learn from, or None.
    seed
        Of the sheet.
    """
    library = read_library(data, "training") if data else Library()
    kinds = [kind for kind in KINDS for _ in range(_SAMPLES)]
    tiles = [tile for number, kind in enumerate(kinds) for tile in _sample((seed, number), library, kind)]
    pictures = montage(tiles, len(_COLUMNS))
    sheet = Picture.new("L", (_MARGIN + pictures.shape[1], _HEAD + len(pictures)))
    sheet.paste(Picture.fromarray(pictures), (_MARGIN, _HEAD))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, column in enumerate(_COLUMNS):
        draw.text((_MARGIN + place * (_SIDE + GAP) + _SIDE / 2, _HEAD / 2), column, 220, font, anchor="mm")
    for place, kind in enumerate(kinds):
        draw.text((_MARGIN / 2, _HEAD + place * (_SIDE + GAP) + _SIDE / 2), kind, 220, font, anchor="mm")
    write_file(path, encoded([sheet], "PNG"))


_COLUMNS = ("frame 1", "frame 9", "profile over time", "phase", "second contrast", "lines over time")
_SAMPLES = 4  # of a kind
_SIDE = 128  # pixels of a tile
_HEAD, _MARGIN = 22, 64  # pixels above and left of the tiles, for their names
_FRAMES = 16


def _sample(seed: tuple[int, int], library: Library, kind: Kind) -> list[NDArray[np.uint8]]:
    """One row of the sheet."""
    series = draw_series(seed, library, kind=kind, frames=_FRAMES, matrix=(_SIDE, _SIDE))
    mask, _ = draw_mask(np.random.default_rng(seed), _FRAMES, _SIDE)
    magnitude = np.abs(series.image)
    column, _ = moving_column(magnitude)
    phase = (np.angle(series.image[0]) / (2 * np.pi) + 0.5) * (magnitude[0] > 0.05)
    over_time = (np.repeat(plane.T, _SIDE // _FRAMES, axis=1) for plane in (magnitude[:, :, column], mask))
    profile, lines = (np.asarray(plane, np.float32) for plane in over_time)
    planes = (magnitude[0], magnitude[_FRAMES // 2], profile, phase, series.anatomy, lines)
    return [gray(plane, 1.0) for plane in planes]


def write_curves(path: Path, trainer: Trainer) -> None:
    """Draw loss and validation of a training into an HTML page."""
    points, plan = trainer.curve(), trainer.plan
    plots = []
    if points:
        minutes = [point.seconds / 60 for point in points]
        plots.append(_plot("Loss, mean since the last point", minutes, {"loss": [point.loss for point in points]}, {}))
        if points[-1].psnr:
            references = {method: trainer.compare(method) for method in _BASELINES}
            for index, title in enumerate(("PSNR of the held-out scans in dB", "PSNR of their dynamic region in dB")):
                lines = {str(kind): [point.psnr[kind][index] for point in points] for kind in KINDS}
                levels = {
                    (method, str(kind)): values[kind][index] for method, values in references.items() for kind in KINDS
                }
                plots.append(_plot(title, minutes, lines, levels))
    write_file(path, render("training.html", plan=plan, summary=find_method(plan.method).summary, plots=plots))


@dataclass(frozen=True)
class Curve:
    """A line of a plot: its name, which colour it has, places ``(x, y)`` in pixels, and how low its name stands."""

    name: str
    colour: int
    places: list[tuple[float, float]]
    label_y: float
    dashed: bool


@dataclass(frozen=True)
class Plot:
    """Curves over minutes: all of them, and for both ends of the y axis a value and its place in pixels."""

    title: str
    curves: list[Curve]
    axis: list[tuple[float, float]]
    minutes: float


def _plot(
    title: str, minutes: Sequence[float], lines: Mapping[str, list[float]], levels: Mapping[tuple[str, str], float]
) -> Plot:
    """Place lines, and for each the levels of other methods, in a plot."""
    left, right, top, bottom = _PLOT
    every = [value for line in lines.values() for value in line] + list(levels.values())
    low, high = min(every), max(every)
    span, end = max(high - low, 1e-6), max(minutes[-1], 1e-6)

    def place(minute: float, value: float) -> tuple[float, float]:
        return left + minute / end * (right - left), bottom - (value - low) / span * (bottom - top)

    colours = list(lines)
    found = [
        (name, name, [place(*point) for point in zip(minutes, values, strict=True)]) for name, values in lines.items()
    ]
    found += [(f"{method}, {kind}", kind, [place(0, v), place(end, v)]) for (method, kind), v in levels.items()]
    found.sort(key=lambda one: one[2][-1][1])
    heights = _apart([places[-1][1] for *_, places in found], bottom)
    curves = [
        Curve(name, colours.index(kind), places, height, dashed=name != kind)
        for (name, kind, places), height in zip(found, heights, strict=True)
    ]
    return Plot(title, curves, [(value, place(0, value)[1]) for value in (low, high)], end)


def _apart(heights: Sequence[float], lowest: float) -> list[float]:
    """Move names apart, so that they do not cover each other: from the top down, then up from the lowest place."""
    down: list[float] = []
    for height in heights:
        down.append(max(height, down[-1] + _LABEL) if down else height)
    up: list[float] = []
    for height in reversed(down):
        up.append(min(height, up[-1] - _LABEL if up else lowest))
    return up[::-1]
