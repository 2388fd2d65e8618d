"""What a report says before it shows the slices one by one: what came of the scan, and how, in words and tables."""

from __future__ import annotations

import math
import re
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from gadgets.pictures import gray, white_level
from gadgets.reports.page import Figure, embedded, embedded_loop, figure, row, table
from recon_core.methods import find_method

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gadgets.chain import ScanSummary
    from gadgets.reports.record import SliceRecord
    from gadgets.settings.settings import Settings
    from gadgets.wire.header import ScanHeader

    Pixels = NDArray[np.uint8]

_TILE = 160  # pixels of a slice in the first loop along the longer side, at most
_MOST_FRAMES = 60  # of the first loop; those of the slices have more
_BEAT = re.compile(r"(\d+) ms (\w+), (used|not used)")
_MARKS = {"good": "✓", "warn": "!", "bad": "✗"}


def many(count: int, thing: str) -> str:
    """A count and what is counted."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def span(values: Iterable[float], digits: int = 0) -> str:
    """The one value, or the smallest and the largest."""
    found = sorted({f"{value:.{digits}f}": value for value in values}.items(), key=lambda item: item[1])
    return found[0][0] if len(found) == 1 else f"{found[0][0]} to {found[-1][0]}"


# --- verdict ----------------------------------------------------------------------------------------------------------


def verdict(slices: Sequence[SliceRecord], settings: Settings, summary: ScanSummary) -> str:
    """The first line: whether all images were made, with which method, and what to look at."""
    damage = len(summary.problems.damage)
    notices = len(list(summary.problems)) - damage
    images = sum(len(record.images) for record in slices)
    made = f"{many(images, 'image')} of {many(len(slices), 'slice')}"
    replaced = [record for record in slices if record.method != settings.method]
    doubtful = [record for record in slices if record.doubts]
    if not images:
        kind, text = "bad", "No images were made."
    elif damage:
        kind, text = "bad", f"{made} were made, but data or images were lost: {summary.problems.damage[0]}."
    elif replaced:
        others = ", ".join(sorted({record.method for record in replaced}))
        kind, text = (
            "warn",
            f"All {made} were made, {_which(replaced, slices)} with {others} instead of {settings.method}.",
        )
    elif doubtful:
        kind, text = "warn", f"All {made} were made with {settings.method}; doubtful: {_which(doubtful, slices)}."
    else:
        kind, text = "good", f"All {made} were made with {settings.method}."
        if notices:
            kind = "warn"
    noticed = f"{many(notices, 'warning')}, see below." if notices else "No warnings."
    return (
        f'<p class="verdict {kind}" role="status"><b aria-hidden="true">{_MARKS[kind]}</b> {escape(text)} '
        f'<span class="muted">{noticed}</span></p>'
    )


def _which(some: Sequence[SliceRecord], slices: Sequence[SliceRecord]) -> str:
    if len(some) == len(slices):
        return "all of them"
    names = [record.name for record in some]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def first_loop(slices: Sequence[SliceRecord], aspect: float, frame_seconds: float) -> str:
    """All slices side by side as one small loop."""
    if len(slices) < 2:
        return ""
    frames = min(_MOST_FRAMES, *(len(record.images) for record in slices))
    shape = slices[0].images[0].shape
    alike = [record for record in slices if record.images[0].shape == shape]
    window = white_level([np.stack(record.images[:frames]) for record in alike])
    step = max(1, math.ceil(max(shape) / _TILE))
    across = min(len(alike), math.ceil(math.sqrt(2.4 * len(alike))) if len(alike) > 4 else len(alike))
    tiles = [gray(_smaller(np.stack(record.images[:frames]), step), window) & np.uint8(0xFE) for record in alike]
    rows = math.ceil(len(tiles) / across)
    names = ", ".join(record.name for record in alike)
    picture = figure(embedded_loop(tiles, frame_seconds, across), aspect * across / rows, [names])
    return f"<section><h2>All slices</h2>{row([picture])}</section>"


def _smaller(frames: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of squares of `step` pixels; what is left over at the edge is cut."""
    n_frames, n_rows, n_columns = frames.shape
    n_rows, n_columns = n_rows // step, n_columns // step
    kept = frames[:, : n_rows * step, : n_columns * step]
    return np.asarray(kept.reshape(n_frames, n_rows, step, n_columns, step).mean(axis=(2, 4)))


# --- tables -----------------------------------------------------------------------------------------------------------


def slice_table(slices: Sequence[SliceRecord], settings: Settings) -> str:
    """How every slice was made."""
    if not slices:
        return ""
    rows = [
        (
            record.name,
            record.method,
            _range_check(record, settings),
            str(len(record.images)),
            f"{record.mask.size / max(int(record.mask.sum()), 1):.2f}",
            f"{record.seconds:.2f} s",
        )
        for record in slices
    ]
    head = ("", "method", "check of range and image", "frames", "acceleration", "time")
    return f"<section><h2>Slices</h2>{table('How every slice was made', head, rows)}</section>"


def _range_check(record: SliceRecord, settings: Settings) -> str:
    if record.doubts:
        return "; ".join(record.doubts)
    if record.method != settings.method:
        start = f"{record.method} instead of {settings.method}: "
        return next((note.removeprefix(start) for note in record.notes if note.startswith(start)), "was not used")
    if find_method(record.method).network:
        return "scan like those of its training, image agrees with the data"
    return "none needed"


def heartbeats(slices: Sequence[SliceRecord]) -> str:
    """Beats, RR intervals and when the frames were, where the time stamps told; else why they did not."""
    told = [record for record in slices if record.triggers or record.rr]
    reasons = dict.fromkeys(record.no_trigger for record in slices if record.no_trigger)
    if not told:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        return f'<section><h2>Heartbeat</h2><p class="muted">Not known{escape(why)}.</p></section>' if slices else ""
    rows = []
    for record in told:
        beats = _told_beats(record)
        counts = [sum(verdict == wanted for _, verdict, _ in beats) for wanted in ("rejected", "repaired")]
        rows.append(
            (
                record.name,
                f"{record.rr:.0f} ms" if record.rr else "–",
                f"{60000 / record.rr:.0f}/min" if record.rr else "–",
                f"{span(record.triggers[:: max(len(record.triggers) - 1, 1)])} ms" if record.triggers else "–",
                f"{record.frame_time:.1f} ms" if record.frame_time else "–",
                f"{sum(use == 'used' for *_, use in beats)} of {len(beats)}" if beats else "–",
                str(counts[0]) if beats else "–",
                str(counts[1]) if beats else "–",
            )
        )
    head = ("", "RR", "rate", "first and last frame after the R wave", "frame", "beats used", "rejected", "repaired")
    figures = [_beats(record) for record in told if record.beats]
    bars = "".join(row(figures[i : i + 3]) for i in range(0, len(figures), 3))
    words = "; ".join(reasons)
    more = f'<p class="muted small">Some slices have no times: {escape(words)}.</p>' if reasons else ""
    return f"<section><h2>Heartbeat</h2>{table('Beats of every slice', head, rows)}{bars}{more}</section>"


def _told_beats(record: SliceRecord) -> list[tuple[str, ...]]:
    """Length in ms, verdict, and whether it was used, of every beat that the gating told of."""
    return [match.groups() for text in record.beats if (match := _BEAT.fullmatch(text))]


def _beats(record: SliceRecord) -> Figure:
    """RR intervals of a slice as bars in the order of acquisition."""
    beats = _told_beats(record)
    width, height, left, base, top = 480, 150, 44, 130, 12
    longest = max((int(length) for length, *_ in beats), default=1)
    step = (width - 6 - left) / max(len(beats), 1)
    bars = "".join(
        f'<path class="{kind if kind == "rejected" else ""}{"" if use == "used" else " unused"}" '
        f'd="M{left + i * step:.1f} {base}h{0.8 * step:.1f}v{-(base - top) * int(length) / longest:.1f}'
        f'h{-0.8 * step:.1f}z"><title>{length} ms, {kind}, {use}</title></path>'
        for i, (length, kind, use) in enumerate(beats)
    )
    labels = (
        f'<text x="{left - 6}" y="{top + 9}" text-anchor="end">{longest}</text>'
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0 ms</text>'
        f'<text x="{left}" y="{base + 15}">first beat</text>'
    )
    name = f"RR intervals of {record.name}; rejected beats are orange, those not used pale"
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">{bars}{labels}</svg>'
        f"<figcaption><span>{escape(name)}</span></figcaption>"
    )
    return Figure(svg, width / height / 1.4)


def geometry(slices: Sequence[SliceRecord], header: ScanHeader) -> str:
    """Where the slices lie in the patient."""
    if not slices:
        return ""
    rows, before = [], None
    for record in slices:
        place = record.place
        normal = place["slice_dir"].astype(np.float64)
        apart = "–" if before is None else f"{float((place['position'] - before) @ normal):.1f} mm"
        before = place["position"].astype(np.float64)
        rows.append(
            (
                record.name,
                _place(place["position"]),
                _direction(place["read_dir"]),
                _direction(place["phase_dir"]),
                _direction(normal),
                apart,
                _place(place["patient_table_position"]),
            )
        )
    head = ("", "position", "rows run", "columns run", "normal", "to the one before", "table")
    thickness = header.encodings[slices[0].key.encoding].recon.field_of_view[2]
    text = (
        f"mm to the patient's left, back and head; slices are {thickness:.4g} mm thick, table position as in the header"
    )
    return (
        f"<section><h2>Geometry</h2>{table('Where the slices lie', head, rows)}"
        f'<p class="muted small">Positions of the middle of each slice in {text}.</p></section>'
    )


def _place(position: NDArray[np.floating]) -> str:
    return ", ".join(f"{value:.1f}" for value in (position.astype(np.float64) + 0.0).tolist())


def _direction(vector: NDArray[np.floating]) -> str:
    """The patient's side that a direction points to most, and by how much it is tilted from it."""
    axis = int(np.argmax(np.abs(vector)))
    length = float(np.linalg.norm(vector))
    if not length:
        return "not given"
    side = ("right", "left"), ("front", "back"), ("feet", "head")
    tilt = math.degrees(math.acos(min(abs(float(vector[axis])) / length, 1.0)))
    return f"to the {side[axis][int(vector[axis] > 0)]}" + (f", {tilt:.0f}° off" if tilt >= 0.5 else "")


def noise(slices: Sequence[SliceRecord]) -> str:
    """The noise of the receive coils as the noise scan told: how much it differs, and how it is shared."""
    covariance = next((record.noise for record in slices if record.noise is not None), None)
    if covariance is None or len(covariance) < 2:
        return ""
    level = np.sqrt(np.maximum(np.diagonal(covariance).real, np.finfo(np.float32).tiny))
    shared = np.abs(covariance) / np.outer(level, level)
    others = shared[~np.eye(len(shared), dtype=bool)]
    one, other = divmod(int(np.argmax(np.where(np.eye(len(shared)), 0, shared))), len(shared))
    rows = [
        ("noisiest coil over the quietest", f"{level.max() / level.min():.2f}"),
        ("largest correlation of two coils", f"{others.max():.2f} (coils {one} and {other})"),
        ("mean correlation of two coils", f"{others.mean():.2f}"),
    ]
    size = max(1, 240 // len(shared))
    matrix = gray(shared.astype(np.float32), 1.0).repeat(size, axis=0).repeat(size, axis=1)
    picture = figure(embedded([matrix]), 1.0, [f"Noise correlation of {len(shared)} receive coils, white is 1"])
    return (
        f'<section><h2>Noise</h2><div class="split">{row([picture], 240)}'
        f"{table('Noise of the receive coils', ('', ''), rows)}</div></section>"
    )
