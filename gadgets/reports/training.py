"""Pages about a training: its samples and its learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from gadgets.images.pictures import GAP, encoded, gray, montage, moving_column
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


_BASELINES = ("zero_filled", "cg_sense", "kt_sense")
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
        plots.append(_plot("Loss, mean since the last point", minutes, {"loss": [point.loss for point in points]}))
        references = {method: trainer.compare(method) for method in _BASELINES}
        for index, title in (
            (1, "PSNR of the held-out scans where they move, in dB"),
            (0, "PSNR of all of them, in dB"),
        ):
            lines = {str(kind): [point.psnr[kind][index] for point in points] for kind in KINDS}
            for method, values in references.items():
                lines |= {f"{method}, {kind}": [values[kind][index]] * len(points) for kind in KINDS}
            plots.append(_plot(title, minutes, lines))
    write_file(path, render("training.html", plan=plan, summary=find_method(plan.method).summary, plots=plots))


class Curve(NamedTuple):
    """A line of a plot."""

    name: str
    colour: int
    places: list[tuple[float, float]]  # x and y in pixels
    label_y: float  # of its name, in pixels
    dashed: bool


class Plot(NamedTuple):
    """Curves over minutes, and both ends of the y axis."""

    title: str
    curves: list[Curve]
    low: float
    high: float
    minutes: float


def _plot(title: str, minutes: Sequence[float], lines: Mapping[str, list[float]]) -> Plot:
    """Place lines in a plot; those of other methods are named METHOD, LINE and have the colour of that line."""
    left, right, top, bottom = _PLOT
    low, high = min(map(min, lines.values())), max(map(max, lines.values()))
    across, down = (right - left) / max(minutes[-1], 1e-6), (bottom - top) / max(high - low, 1e-6)
    places = {
        name: [
            (left + across * minute, bottom - down * (value - low))
            for minute, value in zip(minutes, values, strict=True)
        ]
        for name, values in lines.items()
    }
    names = sorted(lines, key=lambda name: places[name][-1][1])
    heights = _apart([places[name][-1][1] for name in names], bottom)
    own = [name for name in lines if ", " not in name]
    curves = [
        Curve(name, own.index(name.rpartition(", ")[2]), places[name], height, dashed=name not in own)
        for name, height in zip(names, heights, strict=True)
    ]
    return Plot(title, curves, low, high, minutes[-1])


def _apart(heights: Sequence[float], lowest: float) -> list[float]:
    """Move names apart, so that they do not cover each other: from the top down, then up from the lowest place."""
    down: list[float] = []
    for height in heights:
        down.append(max(height, down[-1] + _LABEL) if down else height)
    up: list[float] = []
    for height in reversed(down):
        up.append(min(height, up[-1] - _LABEL if up else lowest))
    return up[::-1]
