"""Summary sections of the report: verdict, all slices, range check, heartbeat, geometry, noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gadgets.images.pictures import gray, moving_part, white_level
from gadgets.reports.page import Figure, embedded
from gadgets.reports.viewer import loop_of, panel
from recon_core.methods import find_method, is_asked_for
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gadgets.chain import ScanSummary
    from gadgets.reports.record import SliceRecord
    from gadgets.settings.settings import Settings

_TILE = 160  # pixels of a slice in the first loop along the longer side, at most
_MOST_FRAMES = 60  # of the first loop; those of the slices have more


# --- verdict ----------------------------------------------------------------------------------------------------------


def verdict(slices: Sequence[SliceRecord], settings: Settings, summary: ScanSummary) -> tuple[str, str]:
    """Whether all images were made, with which method, and what to look at: ``good``, ``warn`` or ``bad``, and why."""
    images = sum(len(record.images) for record in slices)
    places = {(record.key.encoding, record.key.slice) for record in slices}  # beats, sets, repetitions are of one slice
    made = f"{many(images, 'image')} of {many(len(places), 'slice')}"
    replaced = [record for record in slices if not is_asked_for(settings.method, record.method)]
    doubtful = [record for record in slices if record.doubts]
    if not images:
        return "bad", "No images were made."
    if summary.problems.damage:
        return "bad", f"{made} were made, but data or images were lost: {summary.problems.damage[0]}."
    if replaced:
        others = ", ".join(sorted({record.method for record in replaced}))
        return "warn", f"All {made} were made, {_which(replaced, slices)} with {others} instead of {settings.method}."
    if doubtful:
        return "warn", f"All {made} were made with {settings.method}; doubtful: {_which(doubtful, slices)}."
    return "warn" if list(summary.problems) else "good", f"All {made} were made with {settings.method}."


def _which(some: Sequence[SliceRecord], slices: Sequence[SliceRecord]) -> str:
    if len(some) == len(slices):
        return "all of them"
    names = [record.name for record in some]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def first_loop(slices: Sequence[SliceRecord], aspect: float, frame_seconds: float) -> dict[str, Any] | None:
    """All slices side by side as small loops for the viewer; None if there are not several."""
    if len(slices) < 2:
        return None
    frames = min(_MOST_FRAMES, *(len(record.images) for record in slices))
    shape = slices[0].images[0].shape
    alike = [record for record in slices if record.images[0].shape == shape]
    window = white_level([np.stack(record.images[:frames]) for record in alike])
    step = max(1, math.ceil(max(shape) / _TILE))
    tall = shape[1] / (shape[0] * aspect)
    loops = [(record.name, _smaller(np.stack(record.images[:frames]), step)) for record in alike]
    panels = [panel(loop, window, name, tall=tall, shown=moving_part(loop)) for name, loop in loops]
    return loop_of(panels, frame_seconds)


def _smaller(frames: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of squares of `step` pixels; what is left over at the edge is cut."""
    n_frames, n_rows, n_columns = frames.shape
    n_rows, n_columns = n_rows // step, n_columns // step
    kept = frames[:, : n_rows * step, : n_columns * step]
    return np.asarray(kept.reshape(n_frames, n_rows, step, n_columns, step).mean(axis=(2, 4)))


# --- tables -----------------------------------------------------------------------------------------------------------


def range_check(record: SliceRecord, settings: Settings) -> str:
    """What the check of range and image said of a slice."""
    if record.doubts:
        return "; ".join(record.doubts)
    if not is_asked_for(settings.method, record.method):
        start = f"{record.method} instead of {settings.method}: "
        return next((note.removeprefix(start) for note in record.notes if note.startswith(start)), "was not used")
    if find_method(settings.method).chooses:
        starts = (f"{settings.method}: ", f"{record.method} instead of ")
        return "; ".join(note for note in record.notes if note.startswith(starts))
    if find_method(record.method).network:
        return "scan like those of its training, image agrees with the data"
    return "none needed"


def coordinates(position: NDArray[np.floating]) -> str:
    """Place in the patient in mm."""
    return ", ".join(f"{value:.1f}" for value in (position.astype(np.float64) + 0.0).tolist())


def direction(vector: NDArray[np.floating]) -> str:
    """The patient's side that a direction points to most, and by how much it is tilted from it."""
    axis = int(np.argmax(np.abs(vector)))
    length = float(np.linalg.norm(vector))
    if not length:
        return "not given"
    side = ("right", "left"), ("front", "back"), ("feet", "head")
    tilt = math.degrees(math.acos(min(abs(float(vector[axis])) / length, 1.0)))
    return f"to the {side[axis][int(vector[axis] > 0)]}" + (f", {tilt:.0f}° off" if tilt >= 0.5 else "")


class Noise(NamedTuple):
    """Noise of the receive coils."""

    picture: Figure  # correlation of every two coils
    levels: float  # the noisiest coil over the quietest
    largest: float  # correlation of two coils
    coils: tuple[int, int]  # the two with the largest
    mean: float  # correlation of two coils


def noise(slices: Sequence[SliceRecord]) -> Noise | None:
    """The noise of the receive coils as the noise scan has it; None without one."""
    covariance = next((record.noise for record in slices if record.noise is not None), None)
    if covariance is None or len(covariance) < 2:
        return None
    level = np.sqrt(np.maximum(np.diagonal(covariance).real, np.finfo(np.float32).tiny))
    shared = np.abs(covariance) / np.outer(level, level)
    n_coils = len(shared)
    others = np.where(np.eye(n_coils), 0, shared)
    size = max(1, 240 // n_coils)
    matrix = gray(shared.astype(np.float32), 1.0).repeat(size, axis=0).repeat(size, axis=1)
    return Noise(
        Figure(embedded(matrix), 1.0, (f"Noise correlation of {n_coils} receive coils, white is 1",)),
        levels=float(level.max() / level.min()),
        largest=float(others.max()),
        coils=divmod(int(np.argmax(others)), n_coils),
        mean=float(others.sum() / (n_coils * (n_coils - 1))),
    )
