"""Images of a file sorted into series, slices and frames, with their times: for exports and for comparisons."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.gating.clock import frame_time
from gadgets.images.geometry import plane_of, slice_step
from gadgets.slices.complete import SliceKey, describe
from gadgets.wire.attributes import read_meta
from gadgets.wire.header import read_xml
from gadgets.wire.vendor import DAY, tick_length
from recon_core.errors import DataError, HeaderError
from recon_core.gating.beats import LONGEST_RR, SHORTEST_RR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gadgets.images.geometry import Plane
    from gadgets.wire.attributes import Meta
    from gadgets.wire.messages import Image


_FURTHER_STACKS = 100_000  # from the number of a series to that of its next stack; an index is below


@dataclass(frozen=True)
class Loop:
    """The frames of one slice."""

    key: SliceKey
    """Which slice; images do not say the encoding, which is 0."""
    frames: tuple[int, ...]
    """Number of every frame, in order: its phase, or its repetition in real time."""
    pixels: NDArray[Any]
    """``(frame, y, x)`` as the images hold them, complex64 or a real type."""
    values: NDArray[np.float32]
    """``(frame, y, x)`` float32: magnitudes, or what else a real image holds."""
    planes: tuple[Plane, ...]
    """One per frame; they differ where the slice follows a motion."""
    meta: tuple[Meta, ...]
    """One per frame."""
    since_trigger: NDArray[np.float64] | None
    """``(frame,)`` ms since the R wave; None if the images do not know."""
    clock: NDArray[np.float64] | None
    """``(frame,)`` ms since midnight at which each was measured; None if the images do not know."""

    @property
    def name(self) -> str:
        """Slice and, where they count, contrast, set and repetition."""
        return describe(self.key)

    @property
    def acquired(self) -> NDArray[np.float32]:
        """``(frame, y, x)`` values in the order of the scan, however the images are turned."""
        flipped = self.meta[0].get("cinestream_orientation") == ("flipped",)
        return self.values[:, ::-1, ::-1] if flipped else self.values

    @property
    def aspect(self) -> float:
        """Width over height of an image in mm."""
        (columns, rows), (wide, tall) = self.planes[0].matrix, self.planes[0].pixel
        return columns * wide / (rows * tall)

    def frame_time(self, *, real_time: bool) -> float:
        """Time from frame to frame in ms: as all images say, else by their time stamps; 0 if they do not show it."""
        stated = [number_of(one, ["cinestream_frame_time_ms"]) or 0.0 for one in self.meta]
        if min(stated) > 0:
            return float(np.median(stated))
        unknown = np.full(len(self.values), np.nan)
        since, clock = (unknown if times is None else times for times in (self.since_trigger, self.clock))
        return frame_time(since, clock, real_time=real_time)


@dataclass(frozen=True)
class Series:
    """All images with one ``image_series_index``."""

    number: int
    """The index."""
    loops: tuple[Loop, ...]
    """By their counters."""
    real_time: bool
    """The frames are repetitions of a scan that runs on, not phases of one heartbeat."""
    image_type: int
    """As in the ISMRMRD header: 1 magnitude, 2 phase, 3 real, 4 imaginary."""
    part: str = ""
    """Which contrast, set and repetition it is of, in words; empty where it is of all."""

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
                return f"{text} {self.part}".strip()
        return f"series {self.number} {self.part}".strip()

    @property
    def stacks(self) -> list[tuple[Loop, ...]]:
        """Loops that differ in the slice only, in the order of the slices.

        Parallel ones that are not evenly spaced in that order go by their places.
        """
        groups: dict[tuple[int, ...], list[Loop]] = {}
        for loop in self.loops:
            groups.setdefault(loop.key[:-1], []).append(loop)
        return [_by_place(group) for group in groups.values()]

    @property
    def apart(self) -> tuple[Series, ...]:
        """A series for every stack, the first with the number of this one: readers take one for one run of frames."""
        if len(self.stacks) == 1:
            return (self,)
        return tuple(
            replace(self, number=self.number + order * _FURTHER_STACKS, loops=stack, part=_part(stack[0].key))
            for order, stack in enumerate(self.stacks)
        )

    @property
    def frame_time(self) -> float | None:
        """Time from frame to frame in ms; None where it is not known."""
        known = [step for loop in self.loops if (step := loop.frame_time(real_time=self.real_time))]
        if known:
            return float(np.median(known))
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
        return value if SHORTEST_RR <= value <= LONGEST_RR else None

    @property
    def _seen_rr(self) -> float | None:
        waves = [
            loop.clock - loop.since_trigger
            for loop in self.loops
            if loop.clock is not None and loop.since_trigger is not None
        ]
        gaps = np.diff(np.sort(np.concatenate([np.empty(0), *waves])))
        beats = gaps[(gaps >= SHORTEST_RR) & (gaps <= LONGEST_RR)]
        # A gap of two beats is no RR interval.
        return float(np.median(beats[beats < 1.5 * beats.min()])) if len(beats) else None

    @property
    def _cycle(self) -> float | None:
        step = None if self.real_time else self.frame_time
        cycle = step * len(self.loops[0].values) if step else 0.0
        return cycle if SHORTEST_RR <= cycle <= LONGEST_RR else None

    @property
    def slice_spacing(self) -> float | None:
        """Distance of neighbouring slices in mm; None for a single one and where they are not evenly spaced."""
        planes = [loop.planes[0] for loop in self.stacks[0]]
        step = slice_step(planes) if len(planes) > 1 else None
        return None if step is None else round(float(np.linalg.norm(step)), 4)


def _by_place(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    planes = [loop.planes[0] for loop in loops]
    first = planes[0]
    if slice_step(planes) is None and all(first.parallel(plane) for plane in planes):
        return tuple(sorted(loops, key=lambda loop: float(loop.planes[0].position @ first.normal)))
    return tuple(loops)


def _part(key: SliceKey) -> str:
    return ", ".join(f"{name} {getattr(key, name)}" for name in ("contrast", "set", "repetition") if getattr(key, name))


def tick_of_images(header: str) -> float:
    """Length in ms of a tick of time stamps, by the ISMRMRD header that images come with; without one, Gadgetron's."""
    vendor = "SIEMENS"
    if header.strip():
        with contextlib.suppress(HeaderError):  # whoever needs more of the header reports it
            vendor = read_xml(header).findtext("acquisitionSystemInformation/systemVendor", "").strip()
    return tick_length(vendor)


def sort_images(images: Mapping[int, Sequence[Image]], tick: float) -> list[Series]:
    """Sort images into series.

    Parameters
    ----------
    images
        By series index, as `gadgets.files.images.read_images` gives them.
    tick
        Length of a tick of the time stamps in ms.

    Returns
    -------
    list of Series
        By index.

    Raises
    ------
    DataError
        If an image is not two-dimensional, or those of a slice differ in size.
    """
    return [_series(number, members, tick) for number, members in sorted(images.items())]


def _series(number: int, images: Sequence[Image], tick: float) -> Series:
    odd = [image.data.shape for image in images if not image.is_plane]
    if odd:
        raise DataError(f"expected two-dimensional images of one channel, got {odd[0]} (channel, z, y, x)")
    counters = {name: {int(image.header[name]) for image in images} for name in ("phase", "repetition")}
    real_time = len(counters["phase"]) == 1 and len(counters["repetition"]) > 1
    groups: dict[SliceKey, list[Image]] = {}
    for image in images:
        counters_of = (int(image.header[name]) for name in ("set", "contrast", "slice"))
        key = SliceKey(0, 0 if real_time else int(image.header["repetition"]), *counters_of)
        groups.setdefault(key, []).append(image)
    axis = "repetition" if real_time else "phase"
    loops = []
    for key, group in sorted(groups.items()):
        frames = sorted(group, key=lambda image: (int(image.header[axis]), int(image.header["image_index"])))
        loops.append(_loop(key, tuple(int(image.header[axis]) for image in frames), frames, tick))
    kind = int(images[0].header["image_type"])
    return Series(number, tuple(loops), real_time, kind if kind in (1, 2, 3, 4) else 1)


def _loop(key: SliceKey, frames: tuple[int, ...], images: Sequence[Image], tick: float) -> Loop:
    if len({image.data.shape for image in images}) > 1:
        raise DataError(f"the images of {describe(key)} differ in size; give one reconstruction at a time")
    pixels = np.stack([image.data[0, 0] for image in images])
    values = np.asarray(np.abs(pixels) if np.iscomplexobj(pixels) else pixels, np.float32)
    rows, columns = values.shape[1:]
    planes = tuple(plane_of(image.header, (columns, rows)) for image in images)
    meta = tuple(read_meta(image.attributes) for image in images)
    stamps = [float(image.header["physiology_time_stamp"][0]) * tick for image in images]
    stated = [number_of(one, ["cinestream_trigger_time_ms"]) for one in meta]
    since = np.array([stamp if time is None else time for stamp, time in zip(stamps, stated, strict=True)])
    clock = np.array([image.header["acquisition_time_stamp"] for image in images], np.float64) * tick
    return Loop(
        key=key,
        frames=frames,
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
