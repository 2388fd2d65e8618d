"""Pages about a training: its samples and its learning curves."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from gadgets.pictures import GAP, encoded, gray, montage, moving_column
from gadgets.reports.page import document
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
_COLOURS = ("#0b7285", "#c92a2a", "#5f3dc4")
_PLOT = (640, 300, 48)  # width, height and margin of the curves, in pixels


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
_HEAD, _MARGIN = 22, 64  # pixels above and beside the tiles, for their names
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
    points = trainer.curve()
    plan = trainer.plan
    body = [f"<h1>{escape(plan.name)}</h1><p>{escape(find_method(plan.method).summary)}</p>"]
    if points:
        minutes = [point.seconds / 60 for point in points]
        body.append(_plot("Loss", minutes, {"mean since the last point": [point.loss for point in points]}, {}))
        if points[-1].psnr:
            references = {method: trainer.compare(method) for method in _BASELINES}
            for index, title in enumerate(("PSNR of the held-out scans in dB", "PSNR of their dynamic region in dB")):
                lines = {str(kind): [point.psnr[kind][index] for point in points] for kind in KINDS}
                levels = {
                    f"{method}, {kind}": values[kind][index] for method, values in references.items() for kind in KINDS
                }
                body.append(_plot(title, minutes, lines, levels))
    write_file(path, document(f"Training of {plan.name}", "\n".join(body)))


def _plot(title: str, x: Sequence[float], lines: Mapping[str, list[float]], levels: Mapping[str, float]) -> str:
    """Curves over minutes as SVG, with dashed lines for other methods."""
    width, height, margin = _PLOT
    every = [value for line in lines.values() for value in line] + list(levels.values())
    low, high = min(every), max(every)
    span, end = max(high - low, 1e-6), max(x[-1], 1e-6)

    def place(minute: float, value: float) -> tuple[float, float]:
        return margin + minute / end * (width - 2 * margin), height - margin - (value - low) / span * (
            height - 2 * margin
        )

    parts = []
    for colour, (name, values) in zip(_COLOURS, lines.items(), strict=False):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(m, v) for m, v in zip(x, values, strict=True)))
        px, py = place(x[-1], values[-1])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{px + 4:.0f}" y="{py:.0f}" fill="{colour}" font-size="11">{escape(name)}</text>')
    for name, level in levels.items():
        colour = next((c for c, kind in zip(_COLOURS, lines, strict=False) if name.endswith(kind)), "#868e96")
        _, py = place(0, level)
        parts.append(
            f'<line x1="{margin}" x2="{width - margin}" y1="{py:.1f}" y2="{py:.1f}" stroke="{colour}" '
            f'stroke-dasharray="2 4"/><text x="{margin + 2}" y="{py - 2:.0f}" fill="{colour}" font-size="9">'
            f"{escape(name)}</text>"
        )
    parts += [f'<text x="4" y="{place(0, value)[1]:.0f}" font-size="11">{value:.3g}</text>' for value in (low, high)]
    parts.append(f'<text x="{width - margin}" y="{height - 8}" font-size="11" text-anchor="end">{end:.0f} min</text>')
    return f'<h2>{escape(title)}</h2><svg viewBox="0 0 {width} {height}" style="max-width:60rem">{"".join(parts)}</svg>'
