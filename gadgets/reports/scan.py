"""A scan at a glance: looped GIFs and a report in one self-contained HTML file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.images.pictures import (
    ERROR_GAIN,
    MOST_LOOP_FRAMES,
    columns_of,
    gray,
    loop,
    montage,
    moving_column,
    moving_part,
    profile,
    white_level,
)
from gadgets.reports.page import Figure, embedded, render
from gadgets.reports.summary import coordinates, direction, first_loop, noise, range_check, verdict
from gadgets.reports.viewer import loop_of, panel
from gadgets.settings.settings import FIELDS
from recon_core.errors import DataError
from recon_core.metrics.scores import measure, scaled
from recon_core.options import as_text
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.chain import ScanSummary
    from gadgets.reports.record import ReportCollector, SliceRecord
    from gadgets.settings.settings import Settings
    from gadgets.wire.header import ScanHeader

    View = tuple[NDArray[np.floating], float]


def write_gif(path: Path, collector: ReportCollector, truth: NDArray[np.number] | None = None) -> None:
    """Write a looped GIF of what moves, with all slices in a grid and one window for all.

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
    views = _views(series, truth)
    across = math.ceil(math.sqrt(len(views) / len(views[0]))) * len(views[0])
    tiles = [gray(*view) for row in views for view in row]
    write_file(path, loop(tiles, across, collector.frame_seconds))


def _views(series: Sequence[NDArray[np.float32]], truth: NDArray[np.number] | None) -> list[list[View]]:
    """What moves in each slice ``(frame, y, x)``, and its white: images or, with truth, images, truth and error."""
    if truth is None:
        window = white_level(series)
        return [[(frames[:, rows, columns], window)] for frames in series for rows, columns in [moving_part(frames)]]
    window = white_level(truth)
    views = []
    for images, known in zip(scaled(series, truth), np.abs(truth), strict=True):
        rows, columns = moving_part(known)
        ours, theirs = images[:, rows, columns], known[:, rows, columns]
        views.append([(ours, window), (theirs, window), (np.abs(ours - theirs), window / ERROR_GAIN)])
    return views


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
    views = _views(series, truth) if series else []
    totals: dict[str, float] = {}
    scores: list[dict[str, float]] = [{} for _ in slices]
    if truth is not None:
        series = scaled(series, truth)
        totals = measure(series, list(truth))
        scores = [measure([ours], [theirs]) if theirs.any() else {} for ours, theirs in zip(series, truth, strict=True)]
    seconds = collector.frame_seconds
    aspects = [_aspect(record, header, frames) for record, frames in zip(slices, series, strict=True)]
    view = {
        "protocol": header.protocol_name or "Cine",
        "methods": ", ".join(sorted({record.method for record in slices})) or settings.method,
        "source": source,
        "header": header,
        "space": header.encodings[slices[0].key.encoding if slices else 0],
        "settings": settings,
        "summary": summary,
        "verdict": verdict(slices, settings, summary),
        "overview": first_loop(slices, aspects[0], seconds) if slices else None,
        "lines": [sum(int(record.mask.sum()) for record in slices), sum(record.mask.size for record in slices)],
        "scores": [(record.name, values) for record, values in zip(slices, scores, strict=True)],
        "totals": totals,
        "slices": [
            SliceView(
                record,
                range_check(record, settings),
                scores[i],
                _slice_figures(
                    record, series[i], None if truth is None else np.abs(truth[i]), views[i], aspects[i], seconds
                ),
            )
            for i, record in enumerate(slices)
        ],
        "coordinates": coordinates,
        "direction": direction,
        "noise": noise(slices),
        "stages": _stages(summary.seconds),
        "setting_groups": _settings_by_change(settings),
    }
    write_file(path, render("scan.html", **view))
    return totals


def _aspect(record: SliceRecord, header: ScanHeader, frames: NDArray[np.float32]) -> float:
    """Width over height of an image in mm."""
    x, y, _ = header.encodings[record.key.encoding].recon.field_of_view
    return x / y if x > 0 and y > 0 else frames.shape[2] / frames.shape[1]


def _stages(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Wall time by stage and, where that of slices is known, what remains and all together."""
    stages = {name: value for name, value in seconds.items() if name != "slice"}
    if "slice" in seconds:
        total = seconds["slice"] or sum(stages.values())
        stages |= {"images, headers, rest": max(total - sum(stages.values()), 0.0), "all": total}
    return list(stages.items())


def _settings_by_change(settings: Settings) -> list[list[tuple[str, str, str, str]]]:
    """Name, value, default and help of settings: those that were changed, and those as by default."""
    groups: list[list[tuple[str, str, str, str]]] = [[], []]
    for setting in FIELDS.values():
        shown, default = as_text(setting.of(settings)), setting.default_text
        groups[shown == default].append((setting.name, shown, default, setting.help))
    return groups


# --- figures of a slice -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceFigures:
    """Pictures of a slice."""

    loops: dict[str, Any]  # for the viewer
    stills: list[Figure]
    column: int  # where the profiles were taken
    side: int  # pixels of the part that moves most
    others: list[Figure]  # other images of the slice
    mask: str  # the sampling mask
    maps: Figure  # of the coils


@dataclass(frozen=True)
class SliceView:
    """What the report shows of a slice."""

    record: SliceRecord
    range_check: str
    scores: dict[str, float]
    figures: SliceFigures

    @property
    def has_times(self) -> bool:
        """Whether its heartbeat or the times of its frames are known."""
        return bool(self.record.triggers or self.record.rr)


def _slice_figures(
    record: SliceRecord,
    frames: NDArray[np.float32],
    truth: NDArray[np.floating] | None,
    views: Sequence[View],
    aspect: float,
    frame_seconds: float,
) -> SliceFigures:
    shown = frames if truth is None else truth
    window = white_level([shown])
    column, side = moving_column(shown)
    n_frames, height, n_columns = frames.shape
    rows, columns = moving_part(shown)
    n_rows = rows.stop - rows.start
    line = 100 * (column + 0.5) / n_columns

    captions = ["Reconstruction, what moves", "Truth", f"Error × {ERROR_GAIN}"][: len(views)]
    if n_frames > MOST_LOOP_FRAMES:
        captions[0] += f" (first {MOST_LOOP_FRAMES} of {n_frames} frames)"
    tall = n_columns / (height * aspect)
    loops = [
        panel(values[:MOST_LOOP_FRAMES], white, caption, tall=tall, line=column - columns.start)
        for (values, white), caption in zip(views, captions, strict=True)
    ]
    stills = [Figure(embedded(gray(frames.mean(axis=0), window)), aspect, ("Temporal mean",), line)]
    over_time = [("Temporal profile", gray(frames, window))]
    if truth is not None:
        rms = np.sqrt(np.mean(np.square(frames - truth), axis=0))
        caption = f"Error × {ERROR_GAIN}, RMS over time"
        stills.append(Figure(embedded(gray(rms, window / ERROR_GAIN)), aspect, (caption,), line))
        errors = gray(np.abs(frames - truth), window / ERROR_GAIN)
        over_time += [("Truth", gray(truth, window)), (f"Error × {ERROR_GAIN}", errors)]
    repeats, profile_aspect = math.ceil(n_rows / n_frames), min(max(n_frames / n_rows, 0.75), 2.0)
    stills += [
        Figure(embedded(profile(pixels[:, rows], column).repeat(repeats, axis=1)), profile_aspect, (title,))
        for title, pixels in over_time
    ]
    maps = montage(list(gray(record.maps, float(record.maps.max()) or 1.0)), columns_of(len(record.maps)))
    # Enlarged beforehand, because browsers that shrink or stretch by odd factors make even patterns look uneven.
    mask = np.where(record.mask.T, 225, 40).astype(np.uint8).repeat(4, axis=0).repeat(max(1, 400 // n_frames), axis=1)
    return SliceFigures(
        loops=loop_of(loops, frame_seconds),
        stills=stills,
        column=column,
        side=side,
        others=[
            Figure(embedded(gray(total / count, white)), aspect, (kind if count == 1 else f"{kind}, temporal mean",))
            for kind, (total, count, white) in record.others.items()
        ],
        mask=embedded(mask),
        maps=Figure(embedded(maps), maps.shape[1] / maps.shape[0], ("Coil maps, magnitude, encoded field of view",)),
    )
