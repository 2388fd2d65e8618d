"""A scan at a glance: looped GIFs, scores against a known truth, and a report in one self-contained HTML file.

The report needs no network, no script and no other file: images are embedded, plots are SVG.
"""

# ruff: noqa: RUF001 - multiplication sign and dash are meant

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture

from gadgets import __version__
from gadgets.buffer import describe
from gadgets.pipeline import describe_settings
from recon_core.errors import DataError, ResourceError, SettingsError
from recon_core.metrics import best_scale, dynamic_region, nrmse, psnr, ssim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.buffer import CompleteSlice, SliceKey
    from gadgets.chain import ScanSummary
    from gadgets.header import ScanHeader
    from gadgets.pipeline import Settings
    from gadgets.protocol import Image
    from recon_core.data import Reconstruction

    Pixels = NDArray[np.uint8]

_TICK = 0.0025  # s, clock of the time stamps
_ERROR_GAIN = 5
_GIF_TILE = 256  # pixels along the shorter side of a tile at least
_GIF_LEVELS = np.uint8(0xFE)  # 7 bits of gray, which no eye misses and saves a third of the file
_GAP = 2  # pixels between the panels of one picture
_GAP_GRAY = 30
_MAP_SIDE = 64  # pixels kept of a coil map along the longer side, about
_MOST_LOOP_FRAMES = 240  # a loop of thousands of frames would make a file no browser opens
_ROW_HEIGHT = 360  # CSS pixels of a row of figures at most


# --- what a report is made of -----------------------------------------------------------------------------------------


@dataclass
class SliceRecord:
    """What is kept of one slice.

    Parameters
    ----------
    key
        Which one.
    method
        The method that made it.
    mask
        ``(frame, ky)`` bool, measured lines.
    maps
        ``(coil, y, x)`` float32 magnitudes of the coil maps, thinned out, over the encoded field of view.
    whitened
        Whether its k-space was noise-whitened.
    seconds
        Wall time of all stages together.
    notes
        What a reader of the images must know.
    images
        One ``(y, x)`` float32 magnitude per frame.
    stamps
        Per frame the first physiology time stamp in ticks.
    """

    key: SliceKey
    method: str
    mask: NDArray[np.bool_]
    maps: NDArray[np.float32]
    whitened: bool
    seconds: float
    notes: tuple[str, ...]
    images: list[NDArray[np.float32]] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Slice and, where they count, contrast, set and repetition."""
        return describe(self.key)


class ReportCollector:
    """Keeps, while a scan is reconstructed, the little of it that GIF and report are made from."""

    def __init__(self) -> None:
        self._slices: list[SliceRecord] = []

    def watch(self, complete: CompleteSlice, reconstruction: Reconstruction) -> None:
        """Take note of a slice; `gadgets.chain.Chain` calls it before the images of that slice."""
        maps = reconstruction.maps
        step = max(1, max(maps.shape[1:]) // _MAP_SIDE)
        self._slices.append(
            SliceRecord(
                key=complete.key,
                method=reconstruction.method,
                mask=complete.cine.mask,
                maps=np.abs(maps[:, ::step, ::step]),
                whitened=complete.cine.colouring is not None,
                seconds=sum(reconstruction.seconds.values()),
                notes=(*complete.notes, *reconstruction.notes),
            )
        )

    def add_image(self, image: Image) -> None:
        """Add an image to the slice that was watched last.

        Raises
        ------
        DataError
            If no slice was watched before.
        """
        if not self._slices:
            raise DataError("an image came before any slice; give `watch` to the chain")
        record = self._slices[-1]
        record.images.append(np.abs(image.data[0, 0]).astype(np.float32))
        record.stamps.append(int(image.header["physiology_time_stamp"][0]))

    @property
    def slices(self) -> list[SliceRecord]:
        """Slices that have images, in the order of their counters."""
        return sorted((record for record in self._slices if record.images), key=lambda record: record.key)

    def series(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Name and ``(frame, y, x)`` float32 magnitude of every slice, in the order of their counters."""
        return [(record.name, np.stack(record.images)) for record in self.slices]

    @property
    def frame_seconds(self) -> float:
        """Time from frame to frame in s for a loop: from the time stamps, else 0.04; within 0.02 to 0.2."""
        steps = [np.diff(record.stamps) for record in self.slices]
        # The median forgives the step back at every heartbeat of a real-time scan.
        step = float(np.median(np.concatenate(steps))) if any(map(len, steps)) else 0.0
        return min(max(step * _TICK, 0.02), 0.2) if step > 0 else 0.04


# --- scores -----------------------------------------------------------------------------------------------------------


def score(series: Sequence[tuple[str, NDArray[np.float32]]], truth: NDArray[np.number]) -> dict[str, float]:
    """Compare a whole scan with the truth, after one factor for all of its images.

    Parameters
    ----------
    series
        As `ReportCollector.series` gives it.
    truth
        ``(slice, frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    dict
        ``nrmse``, ``psnr`` and ``ssim`` of `recon_core.metrics` over all slices and frames, and ``dynamic_psnr``, the
        PSNR in the `recon_core.metrics.dynamic_region` of each slice, where anything moves.

    Raises
    ------
    SettingsError
        If the truth has another shape.
    DataError
        If the truth is zero everywhere.
    """
    return _measure(_scaled([frames for _, frames in series], truth), list(truth))


def _scaled(series: Sequence[NDArray[np.float32]], truth: NDArray[np.number]) -> list[NDArray[np.float32]]:
    """Bring the images to the unit of the truth, by one factor for all."""
    shapes = {frames.shape for frames in series}
    if truth.ndim != 4 or not len(truth) or len(series) != len(truth) or shapes != {truth.shape[1:]}:
        ours = " and ".join(str(shape) for shape in sorted(shapes)) or "(none)"
        raise SettingsError(
            f"the truth does not fit the images: expected (slice, frame, y, x) with {len(series)} slices of {ours}, "
            f"got {truth.shape}; take the truth of this very scan"
        )
    factor = best_scale(np.concatenate(series), np.concatenate(truth))
    return [frames * np.float32(factor) for frames in series]


def _measure(images: Sequence[NDArray[np.float32]], truth: Sequence[NDArray[np.number]]) -> dict[str, float]:
    ours, theirs = np.concatenate(images), np.concatenate(truth)
    scores = {"nrmse": nrmse(ours, theirs), "psnr": psnr(ours, theirs), "ssim": ssim(ours, theirs)}
    # Every slice has a region of its own, so slices are laid side by side and not after one another.
    region = np.concatenate([dynamic_region(frames) for frames in truth])
    if region.any():
        scores["dynamic_psnr"] = psnr(np.concatenate(images, axis=1), np.concatenate(truth, axis=1), region)
    return scores


# --- pictures ---------------------------------------------------------------------------------------------------------


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
    tiles = [panel for row in panels for panel in row]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    factor = max(1.0, _GIF_TILE / min(height, width))
    size = (round(width * factor), round(height * factor))
    across = math.ceil(math.sqrt(len(panels) / len(panels[0]))) * len(panels[0])
    n_frames = max(map(len, tiles))
    pictures = []
    for i in range(n_frames):
        # Slices with fewer frames run slower, so that all loops stay in step.
        frames = [
            Picture.fromarray(_padded(tile[i * len(tile) // n_frames], (height, width))).resize(
                size, Picture.Resampling.LANCZOS
            )
            for tile in tiles
        ]
        page = _montage([np.asarray(frame) for frame in frames], across)
        pictures.append(Picture.fromarray(page & _GIF_LEVELS))
    duration = 10 * round(collector.frame_seconds * 100)  # GIF knows no finer steps
    _write(path, _encoded(pictures, "GIF", duration))


def _panels(series: Sequence[NDArray[np.float32]], truth: NDArray[np.number] | None) -> list[list[Pixels]]:
    """Gray values ``(frame, y, x)`` of every slice: the images or, with truth, images, truth and error."""
    if truth is None:
        window = _window(series)
        return [[_gray(frames, window)] for frames in series]
    window = _window(truth)
    return [
        [_gray(ours, window), _gray(theirs, window), _gray(np.abs(ours - theirs), window / _ERROR_GAIN)]
        for ours, theirs in zip(_scaled(series, truth), np.abs(truth), strict=True)
    ]


def _window(series: Iterable[NDArray[np.number]]) -> float:
    """The brightest value to show: the 99.7th percentile of all pixels."""
    return float(np.percentile(np.concatenate([np.abs(frames).ravel() for frames in series]), 99.7)) or 1.0


def _gray(values: NDArray[np.floating], window: float) -> Pixels:
    return np.asarray(np.clip(values * (255 / window) + 0.5, 0, 255), np.uint8)


def _padded(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    before = [(wanted - size) // 2 for wanted, size in zip(shape, pixels.shape, strict=True)]
    after = [wanted - size - b for wanted, size, b in zip(shape, pixels.shape, before, strict=True)]
    return np.pad(pixels, tuple(zip(before, after, strict=True)))


def _montage(tiles: Sequence[Pixels], across: int) -> Pixels:
    """Lay equally large ``(y, x)`` tiles in rows of `across`."""
    height, width = tiles[0].shape
    down = math.ceil(len(tiles) / across)
    page = np.full((down * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP), _GAP_GRAY, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // across) * (height + _GAP), (i % across) * (width + _GAP)
        page[y : y + height, x : x + width] = tile
    return page


def _encoded(pictures: Sequence[Picture.Image], kind: str, duration: int = 0) -> bytes:
    buffer = io.BytesIO()
    if len(pictures) > 1:
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    else:
        pictures[0].save(buffer, kind)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


# --- the report -------------------------------------------------------------------------------------------------------


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
        As `score`; empty without truth.

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
        scaled = _scaled(series, truth)
        totals = _measure(scaled, list(truth))
        scores = [
            _measure([ours], [theirs]) if theirs.any() else {} for ours, theirs in zip(scaled, truth, strict=True)
        ]
        series = scaled
    methods = ", ".join(sorted({record.method for record in slices})) or settings.method
    protocol = header.protocol_name or "Cine"
    sections = [
        _head(protocol, methods, source),
        _facts(collector, header, settings, summary),
        _score_table(slices, scores, totals) if totals else "",
        _problems(summary),
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
    title = escape(f"{protocol} – {methods} – {source}")
    body = "\n".join(sections)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
    _write(path, page.encode())
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
        ("Slices", str(summary.slices), _many(summary.images, "image")),
    ]
    if slices:
        possible = sum(record.mask.size for record in slices)
        measured = sum(int(record.mask.sum()) for record in slices)
        facts += [
            ("Frames", _range(len(record.images) for record in slices), f"{collector.frame_seconds * 1e3:.3g} ms each"),
            ("Coils", _range(len(record.maps) for record in slices), _whitening(slices, settings)),
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


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _whitening(slices: Sequence[SliceRecord], settings: Settings) -> str:
    if all(record.whitened for record in slices):
        return "noise-whitened"
    return "not whitened: no usable noise scan" if settings.whiten else "whitening switched off"


_SCORES = {
    "nrmse": ("NRMSE", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.4f}"),
    "dynamic_psnr": ("Dynamic PSNR", "{:.2f} dB"),
}


def _score_table(slices: Sequence[SliceRecord], scores: Sequence[dict[str, float]], totals: dict[str, float]) -> str:
    rows = [(record.name, values, "") for record, values in zip(slices, scores, strict=True)]
    if len(rows) > 1:
        rows.append(("all slices", totals, ' class="total"'))
    head = "".join(f"<th>{title}</th>" for title, _ in _SCORES.values())
    body = "".join(
        f"<tr{style}><td>{escape(name)}</td>"
        + "".join(f"<td>{_score_text(key, values)}</td>" for key in _SCORES)
        + "</tr>"
        for name, values, style in rows
    )
    return (
        f'<section><h2>Agreement with the truth</h2><table class="numbers"><tr><th></th>{head}</tr>{body}</table>'
        '<p class="muted small">On magnitudes, after one least-squares factor for the whole scan. NRMSE: norm of the '
        "error over norm of the truth. PSNR: peak is the maximum of the truth, of the slice or of all slices. SSIM: "
        "7 × 7 windows, K1 = 0.01, K2 = 0.03, range is the same maximum. Dynamic PSNR: the error counts only in pixels "
        "above the 90th percentile of the temporal standard deviation of the truth, slice by slice.</p></section>"
    )


def _score_text(key: str, values: dict[str, float]) -> str:
    if key not in values:
        return "–"
    return _SCORES[key][1].format(values[key]).replace("inf", "∞")


def _problems(summary: ScanSummary) -> str:
    items = [
        f'<li class="{"damage" if problem.damage else "notice"}">{escape(str(problem))}</li>'
        for problem in sorted(summary.problems, key=lambda problem: not problem.damage)
    ]
    found = f"<ul>{''.join(items)}</ul>" if items else '<p class="muted">Nothing unusual.</p>'
    return f"<section><h2>What was noticed</h2>{found}</section>"


def _slice_section(record: SliceRecord, figures: str, scores: dict[str, float]) -> str:
    facts = [record.method, _many(len(record.images), "frame"), f"{record.seconds:.2f} s"]
    facts += [f"{_SCORES[key][0]} {_score_text(key, scores)}" for key in ("nrmse", "psnr") if key in scores]
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
    window = _window([frames] if truth is None else [truth])
    column, side = _moving_column(frames if truth is None else truth)
    cut = f'<i style="left:{100 * (column + 0.5) / frames.shape[2]:.2f}%"></i>'

    shown = [panel[:_MOST_LOOP_FRAMES] for panel in panels]
    wide = aspect * (len(shown) * (frames.shape[2] + _GAP) - _GAP) / frames.shape[2]
    caption = ["Reconstruction", "Truth", f"Error × {_ERROR_GAIN}"][: len(shown)]
    if len(frames) > _MOST_LOOP_FRAMES:
        caption[0] += f" (first {_MOST_LOOP_FRAMES} of {len(frames)} frames)"
    loop = _figure(_loop_uri(shown, frame_seconds), wide, caption)
    mean = _figure(_uri([_gray(frames.mean(axis=0), window)]), aspect, ["Temporal mean"], cut)

    n_frames, n_rows, _ = frames.shape
    profile_aspect = min(max(n_frames / n_rows, 0.75), 2.0)
    profiles = [("Temporal profile", frames, window)]
    if truth is None:
        rows = [[loop, mean]]
    else:
        difference = frames - truth
        rms = np.sqrt(np.mean(np.square(difference), axis=0))
        error = _figure(
            _uri([_gray(rms, window / _ERROR_GAIN)]), aspect, [f"Error × {_ERROR_GAIN}, RMS over time"], cut
        )
        rows = [[loop], [mean, error]]
        profiles += [("Truth", truth, window), (f"Error × {_ERROR_GAIN}", np.abs(difference), window / _ERROR_GAIN)]
    for title, values, brightest in profiles:
        picture = np.repeat(_gray(values[:, :, column].T, brightest), math.ceil(n_rows / n_frames), axis=1)
        rows[-1].append(_figure(_uri([picture]), profile_aspect, [title]))

    coils = _montage(list(_gray(record.maps, float(record.maps.max()) or 1.0)), _columns(len(record.maps)))
    coil_aspect = coils.shape[1] / coils.shape[0]
    coil_figure = _figure(_uri([coils]), coil_aspect, ["Coil maps, magnitude, encoded field of view"])
    rows.append([_sampling(record.mask), coil_figure])
    step = f"{frame_seconds * 1e3:.3g} ms"
    explained = (
        f'<p class="muted small">Temporal profiles run down the dashed line (x = {column}, where the temporal standard '
        f"deviation, averaged over {side} × {side} pixels, is largest); time runs to the right in {n_frames} steps of "
        f"{step}.</p>"
    )
    return _row(rows[0]) + "".join(map(_row, rows[1:-1])) + explained + _row(rows[-1])


def _moving_column(frames: NDArray[np.floating]) -> tuple[int, int]:
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


def _columns(tiles: int) -> int:
    """Columns of a montage about twice as wide as high that leaves few tiles empty."""
    candidates = range(math.ceil(math.sqrt(tiles)), math.ceil(2 * math.sqrt(tiles)) + 1)
    rows = {columns: math.ceil(tiles / columns) for columns in candidates}
    return min(candidates, key=lambda columns: rows[columns] * columns - tiles + abs(columns / rows[columns] - 2))


@dataclass(frozen=True)
class _Figure:
    html: str
    aspect: float


def _figure(uri: str, aspect: float, captions: Sequence[str], overlay: str = "") -> _Figure:
    text = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    html = (
        f'<div class="picture"><img src="{uri}" alt="{escape(", ".join(captions))}" '
        f'style="aspect-ratio:{aspect:.4f}">{overlay}</div><figcaption>{text}</figcaption>'
    )
    return _Figure(html, aspect)


def _row(figures: Sequence[_Figure]) -> str:
    # Widths in proportion to the aspect ratios give equal heights.
    wide = sum(figure.aspect for figure in figures) * _ROW_HEIGHT + 14 * (len(figures) - 1)
    cells = "".join(f'<figure style="flex:{figure.aspect:.4f} 1 0">{figure.html}</figure>' for figure in figures)
    return f'<div class="row" style="max-width:{wide:.0f}px">{cells}</div>'


def _uri(pictures: Sequence[Pixels], duration: int = 0) -> str:
    """Embed gray pictures as PNG; several make an animated one, which keeps every gray value."""
    content = _encoded([Picture.fromarray(pixels) for pixels in pictures], "PNG", duration)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _loop_uri(panels: Sequence[Pixels], frame_seconds: float) -> str:
    # One picture for all panels: separate loops would drift apart.
    pictures = [_montage(frames, len(panels)) for frames in zip(*panels, strict=True)]
    return _uri(pictures, round(frame_seconds * 1000))


def _sampling(mask: NDArray[np.bool_]) -> _Figure:
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
    often = _range(lines.tolist())
    svg = (
        f'<svg viewBox="0 0 {width} {height - 14}" role="img" aria-label="Sampling mask"><path d="{bars}"/>'
        f'<image x="{left}" y="{mask_top}" width="{right - left}" height="{mask_base - mask_top}" '
        f'preserveAspectRatio="none" href="{_uri([picture])}"/>{texts}</svg>'
        f"<figcaption><span>Lines per frame ({often} of {n_rows}) and sampling mask</span></figcaption>"
    )
    return _Figure(svg, width / (height - 14))


def _timing(summary: ScanSummary) -> str:
    total = summary.seconds.get("slice", 0.0) or sum(summary.seconds.values()) or 1.0
    stages = {name: seconds for name, seconds in summary.seconds.items() if name != "slice"}
    rows = [(name, seconds, "") for name, seconds in stages.items()]
    if "slice" in summary.seconds:
        rows.append(("images, headers, rest", max(total - sum(stages.values()), 0.0), ""))
        rows.append(("all", total, ' class="total"'))
    body = "".join(
        f"<tr{style}><td>{escape(name)}</td><td>{seconds:.3f} s</td>"
        f"<td>{1e3 * seconds / max(summary.slices, 1):.0f} ms</td>"
        f"<td>{1e3 * seconds / max(summary.images, 1):.1f} ms</td>"
        f'<td class="bar"><b style="width:{min(100 * seconds / total, 100):.1f}%"></b></td></tr>'
        for name, seconds, style in rows
    )
    return (
        '<section><h2>Time</h2><table class="numbers time"><tr><th></th><th>scan</th><th>per slice</th>'
        f"<th>per frame</th><th></th></tr>{body}</table></section>"
    )


def _settings_table(settings: Settings) -> str:
    rows = []
    for name, _, default, text in describe_settings():
        value = getattr(settings, name)
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        changed = shown != default
        style = ' class="changed"' if changed else ""
        more = f'<br><span class="muted">default {escape(default or "empty")}</span>' if changed else ""
        rows.append(
            f'<tr{style}><td>{name}</td><td>{escape(shown) or "–"}{more}</td><td class="muted">{escape(text)}</td></tr>'
        )
    return f'<section><h2>Settings</h2><table class="settings">{"".join(rows)}</table></section>'


_STYLE = """
:root { color-scheme: dark; --page: #131517; --panel: #1b1e21; --line: #2c3035; --text: #d9dce0; --muted: #8d949c;
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
.numbers td, .numbers th { white-space: nowrap; } .time { width: 100%; } .time td, .time th { padding-right: 14px; }
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
svg path { fill: var(--accent); } svg text { fill: var(--muted); font-size: 11px; }
.slice .small { margin: 0 0 12px; }
footer { color: var(--muted); font-size: 12px; margin-top: 18px; }
@media (max-width: 800px) { .two { grid-template-columns: minmax(0, 1fr); } }
@media print {
  :root { color-scheme: light; --page: #fff; --panel: #fff; --line: #ccc; --text: #111; --muted: #555;
    --accent: #1f5f99; --warn: #8a4b00; --warn-panel: #fdf3e3; }
  body { font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .row, tr, li, .facts { break-inside: avoid; } h2 { break-after: avoid; }
  .facts { grid-template-columns: repeat(4, 1fr); } .two { display: block; }
}
"""
