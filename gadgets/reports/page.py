"""What the HTML pages and loops of cinestream are drawn with: gray pictures, figures in rows, one style.

A page needs no network, no script and no other file: images are embedded, plots are SVG.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture

from gadgets.pictures import ERROR_GAIN, GAP, MOST_LOOP_FRAMES, encoded, gray, montage, moving_column, profile
from recon_core.metrics.measures import dynamic_region
from recon_core.metrics.scores import SCORES, score_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


_ROW_HEIGHT = 360  # CSS pixels of a row of figures at most
_MOST_ACROSS = 4  # outputs at most beside the truth in one picture
_PROFILE_ASPECT = 1.8  # width over height


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
    lines = [profile(panel, column).repeat(repeats, axis=1) for panel in (*shown, np.zeros_like(region), *errors)]
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
        Name and scores of every row, by the names of `recon_core.metrics.scores.SCORES`.
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
