"""Images as ISMRMRD has them, sorted into series, slices and frames, with the times that the writers need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gadgets.images.geometry import plane_of, slice_step
from gadgets.wire.attributes import read_meta
from gadgets.wire.vendor import DAY
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gadgets.images.geometry import Plane
    from gadgets.problems import Problems
    from gadgets.wire.attributes import Meta
    from gadgets.wire.messages import Image

_SHORTEST_RR, _LONGEST_RR = 300.0, 2500.0  # ms


class LoopKey(NamedTuple):
    """Counters that tell loops of a series apart; the repetition is 0 where it counts the frames."""

    contrast: int
    set: int
    repetition: int
    slice: int


@dataclass(frozen=True)
class Loop:
    """The frames of one slice.

    Parameters
    ----------
    key
        Which slice.
    pixels
        ``(frame, y, x)`` as the images hold them, complex64 or a real type.
    values
        ``(frame, y, x)`` float32: magnitudes, or what else a real image holds.
    planes
        One per frame; they differ where the slice follows a motion.
    meta
        One per frame.
    since_trigger
        ``(frame,)`` ms since the R wave; None if the images do not know.
    clock
        ``(frame,)`` ms since midnight at which each was measured; None if the images do not know.
    """

    key: LoopKey
    pixels: NDArray[Any]
    values: NDArray[np.float32]
    planes: tuple[Plane, ...]
    meta: tuple[Meta, ...]
    since_trigger: NDArray[np.float64] | None
    clock: NDArray[np.float64] | None


@dataclass(frozen=True)
class Series:
    """All images with one ``image_series_index``.

    Parameters
    ----------
    number
        The index.
    loops
        By their counters.
    real_time
        The frames are repetitions of a scan that runs on, not phases of one heartbeat.
    image_type
        As in the ISMRMRD header: 1 magnitude, 2 phase, 3 real, 4 imaginary.
    """

    number: int
    loops: tuple[Loop, ...]
    real_time: bool
    image_type: int

    @property
    def meta(self) -> Meta:
        """That of the first image."""
        return self.loops[0].meta[0]

    @property
    def name(self) -> str:
        """What the images say of themselves, such as the method."""
        for key in ("SequenceDescriptionAdditional", "SeriesDescription", "GADGETRON_SeqDescription"):
            text = " ".join(self.meta.get(key, ())).strip(" _")
            if text:
                return text
        return f"series {self.number}"

    @property
    def stacks(self) -> list[tuple[Loop, ...]]:
        """Loops that differ in the slice only, in the order of the slices."""
        groups: dict[tuple[int, ...], list[Loop]] = {}
        for loop in self.loops:
            groups.setdefault(loop.key[:3], []).append(loop)
        return [tuple(group) for group in groups.values()]

    @property
    def frame_time(self) -> float | None:
        """Time from frame to frame in ms; None if nothing tells."""
        times = [loop.clock if self.real_time else loop.since_trigger for loop in self.loops]
        steps = np.concatenate([np.empty(0), *(np.diff(row) for row in times if row is not None)])
        # The median forgives single steps: a line that came late, or a day that began.
        step = float(np.median(steps)) if len(steps) else 0.0
        if step > 0:
            return step
        rr = self._stated_rr
        return rr / len(self.loops[0].values) if rr and not self.real_time else None

    @property
    def rr(self) -> float | None:
        """The RR interval in ms: as the gating found it, from the R waves before the frames, else the frames' time."""
        return self._stated_rr or self._seen_rr or self._cycle

    @property
    def _stated_rr(self) -> float | None:
        try:
            value = float(self.meta.get("cinestream_rr_ms", ("0",))[0])
        except ValueError:
            return None
        return value if _SHORTEST_RR <= value <= _LONGEST_RR else None

    @property
    def _seen_rr(self) -> float | None:
        waves = [
            loop.clock - loop.since_trigger
            for loop in self.loops
            if loop.clock is not None and loop.since_trigger is not None
        ]
        gaps = np.diff(np.sort(np.concatenate([np.empty(0), *waves])))
        beats = gaps[(gaps >= _SHORTEST_RR) & (gaps <= _LONGEST_RR)]
        # A gap of two beats is no RR interval.
        return float(np.median(beats[beats < 1.5 * beats.min()])) if len(beats) else None

    @property
    def _cycle(self) -> float | None:
        step = None if self.real_time else self.frame_time
        cycle = step * len(self.loops[0].values) if step else 0.0
        return cycle if _SHORTEST_RR <= cycle <= _LONGEST_RR else None

    @property
    def slice_spacing(self) -> float | None:
        """Distance of neighbouring slices in mm; None for a single one and where they are not evenly spaced."""
        planes = [loop.planes[0] for loop in self.stacks[0]]
        step = slice_step(planes) if len(planes) > 1 else None
        return None if step is None else round(float(np.linalg.norm(step)), 4)


def sort_images(images: Mapping[int, Sequence[Image]], tick: float, problems: Problems) -> list[Series]:
    """Sort images into series.

    Parameters
    ----------
    images
        By series index, as `gadgets.files.images.read_images` gives them.
    tick
        Length of a tick of the time stamps in ms.
    problems
        Where to note what cannot be exported, or not as it should.

    Returns
    -------
    list of Series
        By index.

    Raises
    ------
    DataError
        If there is no image that can be exported.
    """
    found = []
    for number, members in sorted(images.items()):
        flat = [image for image in members if image.data.shape[:2] == (1, 1) and image.data.size]
        others = [image.data.shape for image in members if image.data.shape[:2] != (1, 1) or not image.data.size]
        if others:
            text = (
                f"{len(others)} images of series {number} are not single 2-D images (channel, z, y, x: {others[0]}) "
                "and are left out; combine coils and send slices one by one"
            )
            problems.add(f"shape {number}", text, damage=True)
        if flat:
            found.append(_series(number, flat, tick, problems))
    if not found:
        raise DataError("there are no 2-D images to export; look whether --group names the right HDF5 group")
    return found


def _series(number: int, images: Sequence[Image], tick: float, problems: Problems) -> Series:
    counters = {name: {int(image.header[name]) for image in images} for name in ("phase", "repetition")}
    real_time = len(counters["phase"]) == 1 and len(counters["repetition"]) > 1
    groups: dict[LoopKey, list[Image]] = {}
    for image in images:
        contrast, set_, repetition, place = (int(image.header[name]) for name in LoopKey._fields)
        key = LoopKey(contrast, set_, 0 if real_time else repetition, place)
        groups.setdefault(key, []).append(image)
    axis = "repetition" if real_time else "phase"
    loops = []
    for key, group in sorted(groups.items()):
        frames = sorted(group, key=lambda image: (int(image.header[axis]), int(image.header["image_index"])))
        loops.append(_loop(key, frames, tick, problems))
    kind = int(images[0].header["image_type"])
    return Series(number, tuple(loops), real_time, kind if kind in (1, 2, 3, 4) else 1)


def _loop(key: LoopKey, images: Sequence[Image], tick: float, problems: Problems) -> Loop:
    pixels = np.stack([image.data[0, 0] for image in images])
    values = np.asarray(np.abs(pixels) if np.iscomplexobj(pixels) else pixels, np.float32)
    if not np.isfinite(values).all():
        text = "images hold values that are not finite; they are exported as 0"
        problems.add("not finite", text, damage=True)
        values = np.where(np.isfinite(values), values, 0)
    rows, columns = values.shape[1:]
    planes = tuple(plane_of(image.header, (columns, rows)) for image in images)
    for plane in planes:
        if plane.doubt:
            text = f"{plane.doubt}: the exported images do not lie at their place in the patient, and say so"
            problems.add("geometry", text, damage=False)
    meta = tuple(read_meta(image.attributes) for image in images)
    stamps = [float(image.header["physiology_time_stamp"][0]) * tick for image in images]
    told = [number_of(one, ["cinestream_trigger_time_ms"]) for one in meta]
    since = np.array([stamp if time is None else time for stamp, time in zip(stamps, told, strict=True)])
    clock = np.array([image.header["acquisition_time_stamp"] for image in images], np.float64) * tick
    return Loop(
        key=key,
        pixels=pixels,
        values=values,
        planes=planes,
        meta=meta,
        since_trigger=since if since.any() else None,
        clock=np.mod(clock, DAY) if clock.any() else None,
    )


def number_of(meta: Meta, names: Iterable[str]) -> float | None:
    """The first of these attributes that is a finite number."""
    for name in names:
        try:
            value = float(meta.get(name, ("",))[0])
        except (ValueError, IndexError):
            continue
        if math.isfinite(value):
            return value
    return None
