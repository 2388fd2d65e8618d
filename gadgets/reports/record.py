"""What a report keeps of every slice while a scan runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gadgets.images.maker import as_acquired
from gadgets.pictures import (
    loop_step,
)
from gadgets.slices.complete import describe
from gadgets.wire.attributes import read_meta
from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.messages import Image
    from recon_core.data import Reconstruction

    Pixels = NDArray[np.uint8]

_MAP_SIDE = 64  # pixels kept of a coil map along the longer side, about


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
    place
        Acquisition header of the first frame: position and directions.
    doubts
        What speaks against the images, which were sent all the same.
    noise
        ``(coil, coil)`` complex64 covariance of the receive coils in any unit; None where no noise was measured.
    beats
        What retrospective gating says of every beat.
    images
        One ``(y, x)`` float32 magnitude per frame.
    stamps
        Per frame the first physiology time stamp in ticks.
    triggers
        Per frame the time in ms since the R wave, as far as it is known.
    rr, frame_time
        RR interval and time from frame to frame in ms; 0 where not known.
    no_trigger
        Why there are no times since the R wave.
    others
        Sums ``(y, x)`` of other images of the slice, how many, and their brightest shade, by what they are.
    """

    key: SliceKey
    method: str
    mask: NDArray[np.bool_]
    maps: NDArray[np.float32]
    whitened: bool
    seconds: float
    notes: tuple[str, ...]
    place: np.void
    doubts: tuple[str, ...] = ()
    noise: NDArray[np.complex64] | None = None
    beats: tuple[str, ...] = ()
    images: list[NDArray[np.float32]] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    triggers: list[float] = field(default_factory=list)
    rr: float = 0.0
    frame_time: float = 0.0
    no_trigger: str = ""
    others: dict[str, tuple[NDArray[np.float32], int, float]] = field(default_factory=dict)

    def add_window(self, window: SliceRecord) -> None:
        """Take what is known of the next frames of a slice that comes in windows; the latest coil maps are kept."""
        self.mask = np.concatenate([self.mask, window.mask])
        self.maps = window.maps
        self.seconds += window.seconds
        self.notes = tuple(dict.fromkeys((*self.notes, *window.notes)))

    @property
    def name(self) -> str:
        """Slice and, where they count, contrast, set and repetition."""
        return describe(self.key)


class ReportCollector:
    """Keeps, while a scan is reconstructed, the little of it that GIF and report are made from."""

    def __init__(self) -> None:
        self._slices: list[SliceRecord] = []
        self._watched: SliceRecord | None = None

    def watch(self, complete: CompleteSlice, reconstruction: Reconstruction) -> None:
        """Take note of a slice; `gadgets.chain.Chain` calls it before the images of that slice."""
        maps, colouring = reconstruction.maps, complete.cine.colouring
        step = max(1, max(maps.shape[1:]) // _MAP_SIDE)
        record = SliceRecord(
            key=complete.key,
            method=reconstruction.method,
            mask=complete.cine.mask[complete.cine.context :],
            maps=np.abs(maps[:, ::step, ::step]),
            whitened=colouring is not None or complete.cine.whitened,
            seconds=sum(reconstruction.seconds.values()),
            notes=(*complete.notes, *reconstruction.notes),
            place=complete.headers[0],
            doubts=reconstruction.doubts,
            noise=None if colouring is None else colouring @ colouring.conj().T,
            beats=tuple(complete.meta.get("cinestream_beats", ())),  # type: ignore[arg-type]
        )
        same = [known for known in self._slices if complete.running is not None and known.key == complete.key]
        if same:
            self._watched = same[0]
            same[0].add_window(record)
        else:
            self._watched = record
            self._slices.append(record)

    def add_image(self, image: Image, kind: str = "") -> None:
        """Add an image to the slice that was watched last.

        Parameters
        ----------
        image
            The image.
        kind
            What it is where it is not one of those that were asked for, as `gadgets.images.maker.series_kind` has it.

        Raises
        ------
        DataError
            If no slice was watched before.
        """
        record = self._watched
        if record is None:
            raise DataError("an image came before any slice; give `watch` to the chain")
        pixels = np.abs(as_acquired(image)).astype(np.float32)
        meta = read_meta(image.attributes)
        if kind:
            total, count, _ = record.others.get(kind, (np.zeros_like(pixels), 0, 1.0))
            width = meta.get("WindowWidth")
            record.others[kind] = total + pixels, count + 1, float(width[0]) if width else float(pixels.max())
            return
        record.images.append(pixels)
        record.stamps.append(int(image.header["physiology_time_stamp"][0]))
        record.no_trigger = "".join(meta.get("cinestream_no_trigger_time", ()))
        record.triggers += map(float, meta.get("cinestream_trigger_time_ms", ()))
        record.rr, record.frame_time = (
            float("".join(meta.get(f"cinestream_{name}_ms", ())) or 0) for name in ("rr", "frame_time")
        )

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
        return loop_step(record.stamps for record in self.slices)
