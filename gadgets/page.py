"""What the HTML pages and loops of cinestream are drawn with: gray pictures, figures in rows, one style.

A page needs no network, no script and no other file: images are embedded, plots are SVG.
"""

# ruff: noqa: RUF001 - multiplication sign is meant

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from gadgets.scores import SCORES, score_text
from recon_core.errors import ResourceError
from recon_core.metrics import dynamic_region

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

ERROR_GAIN = 5
_TICK = 0.0025  # s, clock of the time stamps
MOST_LOOP_FRAMES = 240  # a loop of thousands of frames would make a file no browser opens
GAP = 2  # pixels between the panels of one picture
_GAP_GRAY = 30
_ROW_HEIGHT = 360  # CSS pixels of a row of figures at most
_MOST_ACROSS = 4  # outputs at most beside the truth in one picture
_PROFILE_ASPECT = 1.8  # width over height
_STILL = 240  # pixels, height of an image in a still
_SHOWN = 0.62  # part of the field of view in a still, along each axis
_HEAD = 28  # pixels for a line of text in a still
_GIF_TILE = 256  # pixels along the shorter side of a tile at least
_GIF_HEAD = 26  # pixels for the titles
_GIF_LEVELS = np.uint8(0xFE)  # 7 bits of gray, which no eye misses and saves a third of the file


# --- pictures ---------------------------------------------------------------------------------------------------------


def white_level(series: Iterable[NDArray[np.number]]) -> float:
    """The brightest value to show: the 99.7th percentile of the magnitudes of all pixels; 1 where that is zero."""
    return float(np.percentile(np.concatenate([np.abs(frames).ravel() for frames in series]), 99.7)) or 1.0


def gray(values: NDArray[np.floating], window: float) -> Pixels:
    """Gray values from black at zero to white at `window`."""
    return np.asarray(np.clip(values * (255 / window) + 0.5, 0, 255), np.uint8)


def moving_column(frames: NDArray[np.floating]) -> tuple[int, int]:
    """Column ``x`` through the part of the image that changes most in time, and the side of that part in pixels.

    Parts are as large as a heart is, about: an edge of the chest wall or noise changes single pixels as much.
    """
    deviation = frames.std(axis=0)
    reach = max(2, min(deviation.shape) // 16)
    side = 2 * reach + 1
    for axis in (0, 1):
        padded = np.pad(deviation, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        deviation = np.lib.stride_tricks.sliding_window_view(padded, side, axis=axis).mean(axis=-1)
    return int(np.argmax(deviation.max(axis=0))), side


def loop_step(stamps: Iterable[Sequence[int]]) -> float:
    """Time from frame to frame in s for a loop, within 0.02 to 0.2; 0.04 where time stamps do not tell.

    Parameters
    ----------
    stamps
        For every slice the first physiology time stamp of every frame in ticks.
    """
    # The median forgives the step back at every heartbeat of a real-time scan.
    steps = np.concatenate([np.empty(0), *(np.diff(row) for row in stamps)])
    step = float(np.median(steps)) if len(steps) else 0.0
    return min(max(step * _TICK, 0.02), 0.2) if step > 0 else 0.04


def montage(tiles: Sequence[Pixels], across: int) -> Pixels:
    """Lay equally large ``(y, x)`` tiles in rows of `across`."""
    height, width = tiles[0].shape
    down = math.ceil(len(tiles) / across)
    page = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP), _GAP_GRAY, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // across) * (height + GAP), (i % across) * (width + GAP)
        page[y : y + height, x : x + width] = tile
    return page


def encoded(pictures: Sequence[Picture.Image], kind: str, duration: int = 0) -> bytes:
    """Make an image file; several pictures become a loop with `duration` in ms for each."""
    buffer = io.BytesIO()
    if len(pictures) > 1:
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    else:
        pictures[0].save(buffer, kind)
    return buffer.getvalue()


def loop(tiles: Sequence[Pixels], across: int, frame_seconds: float, titles: Sequence[str] = ()) -> bytes:
    """Make a looped GIF.

    Parameters
    ----------
    tiles, across, titles
        As in `loop_pages`.
    frame_seconds
        Time from frame to frame of the longest.
    """
    pictures = [Picture.fromarray(page & _GIF_LEVELS) for page in loop_pages(tiles, across, titles)]
    return encoded(pictures, "GIF", 10 * round(frame_seconds * 100))  # GIF knows no finer steps


def loop_pages(tiles: Sequence[Pixels], across: int, titles: Sequence[str] = (), tall: float = 1.0) -> Iterator[Pixels]:
    """Lay loops side by side, large enough to be seen.

    Parameters
    ----------
    tiles
        ``(frame, y, x)`` each; sizes and frame counts may differ.
    across
        Tiles of a row.
    titles
        Written above the columns, if there are any.
    tall
        Height over width of a pixel in mm.

    Yields
    ------
    ndarray
        ``(y, x)``, one page for every frame of the longest.
    """
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    factor = max(1.0, _GIF_TILE / min(height, width))
    size = (round(width * factor), round(height * factor * tall))
    n_frames = max(map(len, tiles))
    head = _titles(titles, size[0] + GAP)
    for i in range(n_frames):
        # Those with fewer frames run slower, so that all loops stay in step.
        frames = [
            Picture.fromarray(_padded(tile[i * len(tile) // n_frames], (height, width))).resize(
                size, Picture.Resampling.LANCZOS
            )
            for tile in tiles
        ]
        page = montage([np.asarray(frame) for frame in frames], across)
        if titles:
            page = np.concatenate((head[:, : page.shape[1]], page))
        yield page


def _titles(titles: Sequence[str], width: int) -> Pixels:
    """Write titles in the middle of columns of that width."""
    head = Picture.new("L", (max(1, width * len(titles)), _GIF_HEAD))
    draw, font = ImageDraw.Draw(head), ImageFont.load_default(16)
    for i, title in enumerate(titles):
        draw.text(((i + 0.5) * width - GAP / 2, _GIF_HEAD / 2), title, 220, font, anchor="mm")
    return np.asarray(head)


def _padded(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    before = [(wanted - size) // 2 for wanted, size in zip(shape, pixels.shape, strict=True)]
    after = [wanted - size - b for wanted, size, b in zip(shape, pixels.shape, before, strict=True)]
    return np.pad(pixels, tuple(zip(before, after, strict=True)))


def still(
    truth: NDArray[np.floating], columns: Sequence[tuple[str, NDArray[np.floating], str]], caption: str, aspect: float
) -> Picture.Image:
    """Draw series beside their truth as one picture: the part that moves, at the moment when it is furthest from rest.

    From top to bottom: images, their errors, temporal profiles along the dashed line, their errors.

    Parameters
    ----------
    truth
        ``(frame, y, x)`` magnitudes.
    columns
        For every series its name, ``(frame, y, x)`` magnitudes in the unit of the truth, and what to write below.
    caption
        What to write below the truth.
    aspect
        Width over height of an image in mm.
    """
    window = white_level([truth])
    region = dynamic_region(truth)
    weight = np.where(region, truth.std(axis=0), 0) if region.any() else np.ones(region.shape)
    moment = int((np.abs(truth - truth.mean(axis=0)) * weight).sum(axis=(1, 2)).argmax())
    column, _ = moving_column(truth)
    rows, across = (_around(weight.sum(axis=1 - axis), column if axis else None) for axis in (0, 1))
    column -= across.start
    shown = [(name, frames[:, rows, across], below) for name, frames, below in [("truth", truth, caption), *columns]]

    width = round(_STILL * aspect)
    tops = np.cumsum([_HEAD, *(height + GAP for height in (_STILL, _STILL, _STILL // 2, _STILL // 2))]).tolist()
    size = (len(shown) * (width + GAP) - GAP, tops[-1] + _HEAD - GAP)
    page = Picture.new("L", size, _GAP_GRAY)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for place, (name, frames, below) in enumerate(shown):
        left = place * (width + GAP)
        shades = gray(frames, window)
        errors = gray(np.abs(frames - shown[0][1]), window / ERROR_GAIN)
        panels = (shades[moment], errors[moment], _profile(shades, column), _profile(errors, column))
        for i, (panel, top, bottom) in enumerate(zip(panels, tops, tops[1:], strict=False)):
            if place or i % 2 == 0:
                tile = Picture.fromarray(panel).resize((width, bottom - GAP - top), Picture.Resampling.BICUBIC)
                page.paste(tile, (left, top))
            else:
                draw.text((left + width / 2, (top + bottom) / 2), f"{ERROR_GAIN} x error", 150, font, anchor="mm")
        draw.text((left + width / 2, _HEAD / 2), name, 220, font, anchor="mm")
        draw.text((left + width / 2, size[1] - _HEAD / 2), below, 220 if place else 150, font, anchor="mm")
    at = round((column + 0.5) / (across.stop - across.start) * width)
    for top in range(tops[0], tops[1] - GAP, 10):
        draw.line((at, top, at, top + 4), 255)
    return page


def _around(weight: NDArray[np.floating], included: int | None) -> slice:
    """The part of an axis that a still shows: around the centre of the weight, and with one place that must be in."""
    shown = round(_SHOWN * len(weight))
    first = int(np.average(np.arange(len(weight)), weights=weight)) - shown // 2
    if included is not None:
        first = min(max(first, included - shown + 1), included)
    first = min(max(first, 0), len(weight) - shown)
    return slice(first, first + shown)


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises
    ------
    ResourceError
        If it cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


# --- pages ------------------------------------------------------------------------------------------------------------


def document(title: str, body: str) -> bytes:
    """Put sections of HTML into a whole page; the title is plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    ).encode()


@dataclass(frozen=True)
class Figure:
    """What stands within one ``<figure>``, and its width over its height."""

    html: str
    aspect: float


def figure(uri: str, aspect: float, captions: Sequence[str], overlay: str = "") -> Figure:
    """A picture with captions side by side below it and HTML laid over it."""
    text = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    html = (
        f'<div class="picture"><img src="{uri}" alt="{escape(", ".join(captions))}" '
        f'style="aspect-ratio:{aspect:.4f}">{overlay}</div><figcaption>{text}</figcaption>'
    )
    return Figure(html, aspect)


def row(figures: Sequence[Figure], height: int = _ROW_HEIGHT) -> str:
    """Figures side by side; widths in proportion to their aspect give them equal heights, in CSS pixels at most."""
    wide = sum(one.aspect for one in figures) * height + 14 * (len(figures) - 1)
    cells = "".join(f'<figure style="flex:{one.aspect:.4f} 1 0">{one.html}</figure>' for one in figures)
    return f'<div class="row" style="max-width:{wide:.0f}px">{cells}</div>'


def embedded(pictures: Sequence[Pixels], duration: int = 0) -> str:
    """Embed gray pictures as PNG; several make an animated one, which keeps every gray value."""
    content = encoded([Picture.fromarray(pixels) for pixels in pictures], "PNG", duration)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def embedded_loop(panels: Sequence[Pixels], frame_seconds: float, across: int = 0) -> str:
    """Embed panels ``(frame, y, x)`` as one loop, in rows of `across` or side by side; separate loops would drift."""
    pictures = [montage(frames, across or len(panels)) for frames in zip(*panels, strict=True)]
    return embedded(pictures, round(frame_seconds * 1000))


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table of plain text; the first cell of a row names it, and the caption is for those who do not see the page."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(text)}</td>" for text in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<div class="wide"><table class="named {style}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def comparison(
    images: Sequence[tuple[str, NDArray[np.floating]]],
    truth: NDArray[np.floating],
    window: float,
    aspect: float,
    seconds: float,
) -> str:
    """Series and their truth side by side: cine loops, errors, temporal profiles through the part that moves most.

    Parameters
    ----------
    images
        Name and ``(frame, y, x)`` magnitudes of every series, in the unit of the truth.
    truth
        ``(frame, y, x)`` magnitudes.
    window
        The brightest value to show.
    aspect
        Width over height of an image in mm.
    seconds
        Time from frame to frame for the loops.
    """
    column, side = moving_column(truth)
    most = math.ceil(len(images) / math.ceil(len(images) / _MOST_ACROSS))
    pictures = [
        _side_by_side(images[begin : begin + most], truth, window, column, most + 1, aspect, seconds)
        for begin in range(0, len(images), most)
    ]
    cut = f", the first {MOST_LOOP_FRAMES} of {len(truth)} frames" if len(truth) > MOST_LOOP_FRAMES else ""
    return (
        f'{"".join(pictures)}<p class="muted small">From top to bottom: cine loops{cut}; their errors × {ERROR_GAIN} '
        "and, below the truth, its dynamic region left bright; temporal profiles along the dashed line "
        f"(x = {column}, where the temporal standard deviation, averaged over {side} × {side} pixels, is largest), "
        f"time running to the right; errors of the profiles × {ERROR_GAIN}.</p>"
    )


def _side_by_side(
    images: Sequence[tuple[str, NDArray[np.floating]]],
    truth: NDArray[np.floating],
    window: float,
    column: int,
    places: int,
    aspect: float,
    seconds: float,
) -> str:
    """Truth and some series as columns: a loop of all, which keeps them in step, and a picture of the profiles.

    They fill as much of the page's width as they need of the `places` for columns.
    """
    region = gray(np.where(dynamic_region(truth), truth, truth / 4), window)
    shown = [gray(frames, window) for frames in (truth, *(frames for _, frames in images))]
    errors = [gray(np.abs(frames - truth), window / ERROR_GAIN) for _, frames in images]
    across = len(shown)
    tiles = [panel[:MOST_LOOP_FRAMES] for panel in (*shown, region, *errors)]
    n_frames, n_rows, n_columns = truth.shape
    width = across * (n_columns + GAP) - GAP
    loop = embedded([montage(frames, across) for frames in zip(*tiles, strict=True)], round(1000 * seconds))
    line = f'<i style="left:{100 * (column + 0.5) / width:.2f}%"></i>'

    repeats = math.ceil(n_rows / n_frames)
    lines = [_profile(panel, column).repeat(repeats, axis=1) for panel in (*shown, np.zeros_like(region), *errors)]
    profiles = embedded([montage(lines, across)])

    heads = "".join(f"<span>{escape(name)}</span>" for name in ("Truth", *(name for name, _ in images)))
    return (
        f'<figure class="columns" style="width:{100 * across / places:.2f}%;'
        f'max-width:{across * aspect * _ROW_HEIGHT:.0f}px">'
        f"<figcaption>{heads}</figcaption>"
        f'<div class="picture"><img src="{loop}" alt="Cine loops and their errors" '
        f'style="aspect-ratio:{aspect * width / n_columns / 2:.4f}">'
        f'{line}</div><div class="picture"><img src="{profiles}" alt="Temporal profiles and their errors" '
        f'style="aspect-ratio:{across * _PROFILE_ASPECT / 2:.4f}"></div></figure>'
    )


def _profile(frames: Pixels, column: int) -> Pixels:
    """One column ``(y,)`` of gray frames ``(frame, y, x)`` over time, which runs to the right."""
    return frames[:, :, column].T


SCORES_EXPLAINED = (
    '<p class="muted small">On magnitudes, after one least-squares factor for the whole scan. NRMSE: norm of the error '
    "over norm of the truth. PSNR: peak is the maximum of the truth, of the slice or of all slices. SSIM: 7 × 7 "
    "windows, K1 = 0.01, K2 = 0.03, range is the same maximum. HaarPSI: C = 30, alpha = 4.2, the same maximum is 255. "
    "Dynamic: only in pixels above the 90th percentile of the temporal standard deviation of the truth, per slice; "
    "the maximum stays. A perfect image has SSIM and HaarPSI of 1, NRMSE and DISTS of 0.</p>"
)


def score_table(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    total: tuple[str, Mapping[str, float]] | None = None,
    *,
    mark_best: bool = False,
) -> str:
    """A table of scores.

    Parameters
    ----------
    rows
        Name and scores of every row, by the names of `gadgets.scores.SCORES`.
    total
        A last row under a line.
    mark_best
        Set off the best value of every column.
    """
    lines = [*rows, total] if total else list(rows)
    columns = [key for key in SCORES if any(key in values for _, values in lines)]
    best = {key: SCORES[key].best(values[key] for _, values in lines if key in values) for key in columns}
    head = "".join(f"<th>{SCORES[key].title}</th>" for key in columns)
    body = ""
    for name, values in lines:
        marks = [' class="best"' if mark_best and values.get(key) == best[key] else "" for key in columns]
        cells = "".join(f"<td{mark}>{score_text(key, values)}</td>" for key, mark in zip(columns, marks, strict=True))
        style = ' class="total"' if total and values is total[1] else ""
        body += f"<tr{style}><td>{escape(name)}</td>{cells}</tr>"
    return f'<table class="numbers"><tr><th></th>{head}</tr>{body}</table>'


STYLE = """
:root { color-scheme: light dark; --good: #7fc28a; --bad: #ef7d73;
  --page: #131517; --panel: #1b1e21; --line: #2c3035; --text: #d9dce0; --muted: #8d949c;
  --accent: #8ab4d8; --warn: #e3a44a; --warn-panel: #33291a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font-size: 25px; font-weight: 600; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 16px; font-weight: 600; margin: 0 0 10px; }
h2 .muted { font-size: 13px; font-weight: 400; margin-left: 8px; }
.method { color: var(--accent); font-weight: 400; margin-left: 8px; }
.muted { color: var(--muted); } .small { font-size: 12px; margin: 8px 0 0; }
section > :last-child { margin-bottom: 0; }
header p { margin: 2px 0 18px; }
section, .facts { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 16px 18px;
  margin: 0 0 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 12px 20px; }
.facts dt { color: var(--muted); font-size: 12px; } .facts dd { margin: 0; font-size: 17px; }
.facts dd.muted { font-size: 12px; }
table { border-collapse: collapse; } th { font-weight: 400; color: var(--muted); font-size: 12px; }
td, th { padding: 4px 22px 4px 0; text-align: left; vertical-align: top; }
.numbers td + td, .numbers th + th { text-align: right; }
.total td { border-top: 1px solid var(--line); font-weight: 600; }
.best { color: var(--accent); font-weight: 600; }
.numbers td, .numbers th { white-space: nowrap; }
.suite { width: 100%; margin-bottom: 22px; } .suite th[colspan] { padding-top: 12px; color: var(--text); }
.suite th, .suite td { padding-right: 14px; } .suite td .muted { font-size: 12px; } .suite .muted { margin-left: 4px; }
 .time { width: 100%; } .time td, .time th { padding-right: 14px; }
.time td.bar { width: 40%; padding-right: 0; vertical-align: middle; }
td.bar b { display: block; height: 8px; background: var(--accent); border-radius: 1px; }
.total td.bar b { visibility: hidden; }
.settings td { font-size: 12.5px; padding: 3px 14px 3px 0; } .settings td:nth-child(2) { white-space: nowrap; }
.settings .changed td:nth-child(-n+2) { color: var(--accent); font-weight: 600; }
.settings .changed td .muted { font-weight: 400; }
.two { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 14px; align-items: start; }
ul { margin: 0 0 12px; padding: 0; list-style: none; }
li { padding: 6px 12px; border-left: 3px solid var(--muted); margin: 0 0 6px; background: var(--page);
  overflow-wrap: anywhere; }
li.damage { border-color: var(--warn); background: var(--warn-panel); color: var(--warn); }
li.damage::before { content: "\\26a0\\fe0e\\a0"; }
.row { display: flex; gap: 14px; margin: 0 0 12px; } figure { margin: 0; min-width: 0; }
.picture { position: relative; line-height: 0; background: #000; }
.picture img, figure svg { display: block; width: 100%; height: auto; }
.picture i { position: absolute; top: 0; bottom: 0; border-left: 1.5px dashed #8fc7f5; }
figcaption { display: flex; margin-top: 5px; font-size: 12px; color: var(--muted); }
figcaption span { flex: 1 1 0; }
.columns { margin-bottom: 12px; } .columns .picture + .picture { margin-top: 3px; }
.columns figcaption { margin: 0 0 5px; text-align: center; } .columns figcaption span { overflow-wrap: anywhere; }
svg path { fill: var(--accent); } svg text { fill: var(--muted); font-size: 11px; }
.slice .small { margin: 0 0 12px; }
footer { color: var(--muted); font-size: 12px; margin-top: 18px; }
.verdict { font-size: 17px; margin: 0 0 14px; padding: 12px 18px; border-left: 5px solid var(--muted);
  background: var(--panel); border-radius: 6px; overflow-wrap: anywhere; }
.verdict b { display: inline-block; min-width: 18px; } .verdict .muted { font-size: 14px; }
.verdict.good { border-color: var(--good); } .verdict.good b { color: var(--good); }
.verdict.warn { border-color: var(--warn); } .verdict.warn b { color: var(--warn); }
.verdict.bad { border-color: var(--bad); } .verdict.bad b { color: var(--bad); }
.wide { overflow-x: auto; } .named { width: 100%; }
.named caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.named th[scope=row] { color: var(--text); font-size: inherit; white-space: nowrap; }
.named td:not(:nth-child(3)) { white-space: nowrap; }
.split { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: start; } .split .row { flex: 0 0 240px; }
.split .wide { flex: 1 1 300px; }
svg path.rejected { fill: var(--warn); } svg path.unused { opacity: 0.4; }
summary { cursor: pointer; color: var(--muted); } details[open] summary { margin-bottom: 8px; }
@media (max-width: 800px) { .two { grid-template-columns: minmax(0, 1fr); } }
@media (prefers-color-scheme: light) {
  :root { --good: #1c7a33; --bad: #b3261e; --page: #f4f5f6; --panel: #fff; --line: #d9dce0; --text: #16191c;
    --muted: #5b636b; --accent: #1f5f99; --warn: #8a4b00; --warn-panel: #fdf3e3; }
}
@media print {
  :root { color-scheme: light; --good: #1c7a33; --bad: #b3261e; --page: #fff; --panel: #fff; --line: #ccc;
    --text: #111; --muted: #555; --accent: #1f5f99; --warn: #8a4b00; --warn-panel: #fdf3e3; }
  body { font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .row, tr, li, .facts { break-inside: avoid; } h2 { break-after: avoid; }
  section:not(.slice), .verdict { break-inside: avoid; }
  .facts { grid-template-columns: repeat(4, 1fr); } .two { display: block; }
}
"""
