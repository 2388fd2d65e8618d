"""A scan at a glance: looped GIFs and a report in one self-contained HTML file."""

from __future__ import annotations

import math
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from gadgets import __version__
from gadgets.pictures import (
    ERROR_GAIN,
    GAP,
    MOST_LOOP_FRAMES,
    gray,
    loop,
    montage,
    moving_column,
    white_level,
)
from gadgets.reports.page import SCORES_EXPLAINED, Figure, document, embedded, embedded_loop, figure, row, score_table
from gadgets.reports.summary import first_loop, geometry, heartbeats, many, noise, slice_table, span, verdict
from gadgets.settings.settings import describe_settings
from recon_core.errors import DataError
from recon_core.metrics.scores import SCORES, measure, scaled, score_text
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.chain import ScanSummary
    from gadgets.reports.record import ReportCollector, SliceRecord
    from gadgets.settings.settings import Settings
    from gadgets.wire.header import ScanHeader

    Pixels = NDArray[np.uint8]


_OTHERS_HEIGHT = 220  # CSS pixels of other images of a slice


def write_gif(path: Path, collector: ReportCollector, truth: NDArray[np.number] | None = None) -> None:
    """Write a looped GIF with all slices in a grid and one window for all.

    Parameters
    ----------
    path
        Where to write.
    collector
        Has the images of the scan; sizes and frame counts of slices may differ.
    truth
        ``(slice, frame, y, x)``; with it every slice shows reconstruction, truth, and five times the error.

    Raises
    ------
    DataError
        If there are no images.
    SettingsError
        If the truth has another shape.
    ResourceError
        If the file cannot be written.
    """
    series = [frames for _, frames in collector.series()]
    if not series:
        raise DataError("there are no images to make a GIF from")
    panels = _panels(series, truth)
    across = math.ceil(math.sqrt(len(panels) / len(panels[0]))) * len(panels[0])
    tiles = [panel for row in panels for panel in row]
    write_file(path, loop(tiles, across, collector.frame_seconds))


def _panels(series: Sequence[NDArray[np.float32]], truth: NDArray[np.number] | None) -> list[list[Pixels]]:
    """Gray values ``(frame, y, x)`` of every slice: the images or, with truth, images, truth and error."""
    if truth is None:
        window = white_level(series)
        return [[gray(frames, window)] for frames in series]
    window = white_level(truth)
    return [
        [gray(ours, window), gray(theirs, window), gray(np.abs(ours - theirs), window / ERROR_GAIN)]
        for ours, theirs in zip(scaled(series, truth), np.abs(truth), strict=True)
    ]


def write_report(
    path: Path,
    collector: ReportCollector,
    header: ScanHeader,
    settings: Settings,
    summary: ScanSummary,
    truth: NDArray[np.number] | None,
    source: str,
) -> dict[str, float]:
    """Write the report of a scan as one HTML file.

    Parameters
    ----------
    path
        Where to write.
    collector
        Has watched the scan and got its images.
    header, settings, summary
        Of the scan.
    truth
        ``(slice, frame, y, x)``, or None.
    source
        Name of the raw file.

    Returns
    -------
    dict
        As `recon_core.metrics.scores.score`; empty without truth.

    Raises
    ------
    SettingsError
        If the truth has another shape than the images.
    DataError
        If the truth is zero everywhere.
    ResourceError
        If the file cannot be written.
    """
    slices = collector.slices
    series = [frames for _, frames in collector.series()]
    panels = _panels(series, truth) if series else []
    totals: dict[str, float] = {}
    scores: list[dict[str, float]] = [{} for _ in slices]
    if truth is not None:
        series = scaled(series, truth)
        totals = measure(series, list(truth))
        scores = [measure([ours], [theirs]) if theirs.any() else {} for ours, theirs in zip(series, truth, strict=True)]
    methods = ", ".join(sorted({record.method for record in slices})) or settings.method
    protocol = header.protocol_name or "Cine"
    aspect = _aspect(slices[0], header, series[0]) if series else 1.0
    sections = [
        _head(protocol, methods, source),
        verdict(slices, settings, summary),
        first_loop(slices, aspect, collector.frame_seconds),
        _facts(collector, header, settings, summary),
        _problems(summary),
        _agreement(slices, scores, totals) if totals else "",
        slice_table(slices, settings),
        heartbeats(slices),
        geometry(slices, header),
        noise(slices),
    ]
    for i, record in enumerate(slices):
        seconds = collector.frame_seconds
        reference = None if truth is None else np.abs(truth[i])
        figures = _slice_figures(record, series[i], reference, panels[i], _aspect(record, header, series[i]), seconds)
        sections.append(_slice_section(record, figures, scores[i]))
    sections += [
        f'<div class="two">{_timing(summary)}{_settings_table(settings)}</div>',
        _foot(),
    ]
    write_file(path, document(f"{protocol} – {methods} – {source}", "\n".join(sections)))
    return totals


def _aspect(record: SliceRecord, header: ScanHeader, frames: NDArray[np.float32]) -> float:
    """Width over height of an image in mm."""
    x, y, _ = header.encodings[record.key.encoding].recon.field_of_view
    return x / y if x > 0 and y > 0 else frames.shape[2] / frames.shape[1]


def _head(protocol: str, methods: str, source: str) -> str:
    now = datetime.now().astimezone()
    return (
        f'<header><h1>{escape(protocol)} <span class="method">{escape(methods)}</span></h1>'
        f'<p class="muted">{escape(source)} &middot; {now:%d %B %Y, %H:%M}</p></header>'
    )


def _foot() -> str:
    return (
        f"<footer>cinestream {__version__}. One window for all images: from zero to the 99.7th percentile of the scan, "
        "of the truth where there is one.</footer>"
    )


def _facts(collector: ReportCollector, header: ScanHeader, settings: Settings, summary: ScanSummary) -> str:
    slices = collector.slices
    encoding = header.encodings[slices[0].key.encoding if slices else 0]
    encoded, recon = encoding.encoded, encoding.recon
    facts = [
        ("Matrix", f"{recon.matrix[0]} × {recon.matrix[1]}", f"encoded {encoded.matrix[0]} × {encoded.matrix[1]}"),
        (
            "Field of view",
            f"{recon.field_of_view[0]:.4g} × {recon.field_of_view[1]:.4g} mm",
            " × ".join(f"{recon.field_of_view[i] / recon.matrix[i]:.2f}" for i in (0, 1)) + " mm pixels",
        ),
        ("Slices", str(summary.slices), many(summary.images, "image")),
    ]
    if slices:
        possible = sum(record.mask.size for record in slices)
        measured = sum(int(record.mask.sum()) for record in slices)
        facts += [
            ("Frames", span(len(record.images) for record in slices), _frame_time(slices)),
            ("Coils", span(len(record.maps) for record in slices), _whitening(slices, settings)),
            ("Acceleration", f"{possible / max(measured, 1):.2f}", f"{measured} of {possible} lines"),
        ]
    facts += [
        ("Readouts", str(summary.readouts), "of any kind"),
        ("Vendor", header.vendor or "not given", header.patient_position),
    ]
    cells = "".join(
        f'<div><dt>{name}</dt><dd>{escape(value)}</dd><dd class="muted">{escape(more)}</dd></div>'
        for name, value, more in facts
    )
    return f'<dl class="facts">{cells}</dl>'


def _frame_time(slices: Sequence[SliceRecord]) -> str:
    known = [record.frame_time for record in slices if record.frame_time]
    return f"{span(known, 1)} ms each" if known else "how long is not known"


def _whitening(slices: Sequence[SliceRecord], settings: Settings) -> str:
    if all(record.whitened for record in slices):
        return "noise-whitened"
    return "not whitened: no usable noise scan" if settings.whiten else "whitening switched off"


def _agreement(slices: Sequence[SliceRecord], scores: Sequence[dict[str, float]], totals: dict[str, float]) -> str:
    rows = [(record.name, values) for record, values in zip(slices, scores, strict=True)]
    table = score_table(rows, ("all slices", totals) if len(rows) > 1 else None)
    return f"<section><h2>Agreement with the truth</h2>{table}{SCORES_EXPLAINED}</section>"


def _problems(summary: ScanSummary) -> str:
    items = [
        f'<li class="{"damage" if problem.damage else "notice"}">{escape(str(problem))}</li>'
        for problem in sorted(summary.problems, key=lambda problem: not problem.damage)
    ]
    found = f"<ul>{''.join(items)}</ul>" if items else '<p class="muted">Nothing unusual.</p>'
    return f"<section><h2>What was noticed</h2>{found}</section>"


def _slice_section(record: SliceRecord, figures: str, scores: dict[str, float]) -> str:
    facts = [record.method, many(len(record.images), "frame"), f"{record.seconds:.2f} s"]
    facts += [f"{SCORES[key].title} {score_text(key, scores)}" for key in ("nrmse", "psnr") if key in scores]
    notes = "".join(f'<li class="notice">{escape(note)}</li>' for note in record.notes)
    return (
        f'<section class="slice"><h2>{escape(record.name[:1].upper() + record.name[1:])} '
        f'<span class="muted">{escape(" · ".join(facts))}</span></h2>'
        f"{f'<ul>{notes}</ul>' if notes else ''}{figures}</section>"
    )


def _slice_figures(
    record: SliceRecord,
    frames: NDArray[np.float32],
    truth: NDArray[np.floating] | None,
    panels: Sequence[Pixels],
    aspect: float,
    frame_seconds: float,
) -> str:
    """All figures of one slice, in rows of equal height."""
    window = white_level([frames] if truth is None else [truth])
    column, side = moving_column(frames if truth is None else truth)
    cut = f'<i style="left:{100 * (column + 0.5) / frames.shape[2]:.2f}%"></i>'

    shown = [panel[:MOST_LOOP_FRAMES] for panel in panels]
    wide = aspect * (len(shown) * (frames.shape[2] + GAP) - GAP) / frames.shape[2]
    caption = ["Reconstruction", "Truth", f"Error × {ERROR_GAIN}"][: len(shown)]
    if len(frames) > MOST_LOOP_FRAMES:
        caption[0] += f" (first {MOST_LOOP_FRAMES} of {len(frames)} frames)"
    loop = figure(embedded_loop(shown, frame_seconds), wide, caption)
    mean = figure(embedded([gray(frames.mean(axis=0), window)]), aspect, ["Temporal mean"], cut)

    n_frames, n_rows, _ = frames.shape
    profile_aspect = min(max(n_frames / n_rows, 0.75), 2.0)
    profiles = [("Temporal profile", frames, window)]
    if truth is None:
        rows = [[loop, mean]]
    else:
        difference = frames - truth
        rms = np.sqrt(np.mean(np.square(difference), axis=0))
        error = figure(
            embedded([gray(rms, window / ERROR_GAIN)]), aspect, [f"Error × {ERROR_GAIN}, RMS over time"], cut
        )
        rows = [[loop], [mean, error]]
        profiles += [("Truth", truth, window), (f"Error × {ERROR_GAIN}", np.abs(difference), window / ERROR_GAIN)]
    for title, values, brightest in profiles:
        picture = np.repeat(gray(values[:, :, column].T, brightest), math.ceil(n_rows / n_frames), axis=1)
        rows[-1].append(figure(embedded([picture]), profile_aspect, [title]))

    coils = montage(list(gray(record.maps, float(record.maps.max()) or 1.0)), _columns(len(record.maps)))
    coil_aspect = coils.shape[1] / coils.shape[0]
    coil_figure = figure(embedded([coils]), coil_aspect, ["Coil maps, magnitude, encoded field of view"])
    rows.append([_sampling(record.mask), coil_figure])
    others = [
        figure(embedded([gray(total / count, brightest)]), aspect, [kind if count == 1 else f"{kind}, temporal mean"])
        for kind, (total, count, brightest) in record.others.items()
    ]
    step = f"{frame_seconds * 1e3:.3g} ms"
    explained = (
        f'<p class="muted small">Temporal profiles run down the dashed line (x = {column}, where the temporal standard '
        f"deviation, averaged over {side} × {side} pixels, is largest); time runs to the right in {n_frames} steps of "
        f"{step}.</p>"
    )
    figures = row(rows[0]) + "".join(map(row, rows[1:-1])) + explained
    return figures + (row(others, _OTHERS_HEIGHT) if others else "") + row(rows[-1])


def _columns(tiles: int) -> int:
    """Columns of a montage about twice as wide as high that leaves few tiles empty."""
    candidates = range(math.ceil(math.sqrt(tiles)), math.ceil(2 * math.sqrt(tiles)) + 1)
    rows = {columns: math.ceil(tiles / columns) for columns in candidates}
    return min(candidates, key=lambda columns: rows[columns] * columns - tiles + abs(columns / rows[columns] - 2))


def _sampling(mask: NDArray[np.bool_]) -> Figure:
    """Sampling mask over ky and frame with the number of lines of every frame above it."""
    width, height, left, right = 480, 330, 44, 474
    bars_top, bars_base, mask_top, mask_base = 12, 76, 86, 296
    n_frames, n_rows = mask.shape
    lines = mask.sum(axis=1)
    most = max(int(lines.max()), 1)
    step = (right - left) / n_frames
    bars = "".join(
        f"M{left + i * step:.2f} {bars_base}h{0.86 * step:.2f}v{-(bars_base - bars_top) * n / most:.2f}"
        f"h{-0.86 * step:.2f}z"
        for i, n in enumerate(lines.tolist())
    )
    # Enlarged beforehand, because browsers that shrink or stretch by odd factors make even patterns look uneven.
    picture = np.where(mask.T, 225, 40).astype(np.uint8).repeat(4, axis=0).repeat(max(1, 400 // n_frames), axis=1)
    middle = mask_top + (mask_base - mask_top) * (n_rows // 2 + 0.5) / n_rows
    labels = [
        (left - 6, bars_top + 9, "end", str(most)),
        (left - 6, bars_base, "end", "0"),
        (left - 6, mask_top + 9, "end", str(-(n_rows // 2))),
        (left - 6, middle + 4, "end", "ky 0"),
        (left - 6, mask_base, "end", str((n_rows - 1) // 2)),
        (left, mask_base + 16, "start", "frame 0"),
        (right, mask_base + 16, "end", str(n_frames - 1)),
    ]
    texts = "".join(f'<text x="{x}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels)
    often = span(lines.tolist())
    svg = (
        f'<svg viewBox="0 0 {width} {height - 14}" role="img" aria-label="Sampling mask"><path d="{bars}"/>'
        f'<image x="{left}" y="{mask_top}" width="{right - left}" height="{mask_base - mask_top}" '
        f'preserveAspectRatio="none" href="{embedded([picture])}"/>{texts}</svg>'
        f"<figcaption><span>Lines per frame ({often} of {n_rows}) and sampling mask</span></figcaption>"
    )
    return Figure(svg, width / (height - 14))


def _timing(summary: ScanSummary) -> str:
    total = summary.seconds.get("slice", 0.0) or sum(summary.seconds.values()) or 1.0
    stages = {name: seconds for name, seconds in summary.seconds.items() if name != "slice"}
    rows = [(name, seconds, "") for name, seconds in stages.items()]
    if "slice" in summary.seconds:
        rows.append(("images, headers, rest", max(total - sum(stages.values()), 0.0), ""))
        rows.append(("all", total, ' class="total"'))
    body = "".join(
        f'<tr{style}><th scope="row">{escape(name)}</th><td>{seconds:.3f} s</td>'
        f"<td>{1e3 * seconds / max(summary.slices, 1):.0f} ms</td>"
        f"<td>{1e3 * seconds / max(summary.images, 1):.1f} ms</td>"
        f'<td class="bar"><b style="width:{min(100 * seconds / total, 100):.1f}%"></b></td></tr>'
        for name, seconds, style in rows
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("", "scan", "per slice", "per frame", ""))
    return (
        '<section><h2>Time</h2><table class="named numbers time"><caption>Wall time by stage</caption>'
        f"<tr>{head}</tr>{body}</table></section>"
    )


def _settings_table(settings: Settings) -> str:
    """What was set, and folded away what was left as it is."""
    changed: list[str] = []
    kept: list[str] = []
    for name, _, default, text in describe_settings():
        value = getattr(settings, name)
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        more = f'<br><span class="muted">default {escape(default or "empty")}</span>' if shown != default else ""
        style, rows = (' class="changed"', changed) if shown != default else ("", kept)
        rows.append(
            f'<tr{style}><th scope="row">{name}</th><td>{escape(shown) or "–"}{more}</td>'
            f'<td class="muted">{escape(text)}</td></tr>'
        )

    def made(caption: str, rows: Sequence[str]) -> str:
        return f'<table class="named settings"><caption>{caption}</caption>{"".join(rows)}</table>'

    own = made("Settings that were changed", changed) if changed else '<p class="muted">All as by default.</p>'
    title = f"{len(kept)} settings as by default"
    rest = f"<details><summary>{title}</summary>{made('Settings as by default', kept)}</details>"
    return f"<section><h2>Settings</h2>{own}{rest}</section>"
