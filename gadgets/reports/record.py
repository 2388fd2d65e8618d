"""What a report keeps of every slice while a scan runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gadgets.images.pictures import loop_seconds
from gadgets.slices.complete import describe
from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.gating.gate import Beat
    from gadgets.gating.heartbeat import Heartbeat
    from gadgets.images.maker import CineImage
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from recon_core.data import Reconstruction

    Pixels = NDArray[np.uint8]

_MAP_SIDE = 64  # pixels kept of a coil map along the longer side, about


@dataclass
class SliceRecord:
    """What is kept of one slice."""

    key: SliceKey
    """Which one."""
    method: str
    """The method that made it."""
    mask: NDArray[np.bool_]
    """``(frame, ky)`` bool, measured lines."""
    maps: NDArray[np.float32]
    """``(coil, y, x)`` float32 magnitudes of the coil maps, thinned out, over the encoded field of view."""
    whitened: bool
    """Whether its k-space was noise-whitened."""
    seconds: float
    """Wall time of all stages together."""
    notes: tuple[str, ...]
    """What a reader of the images must know."""
    place: np.void
    """Acquisition header of the first frame: position and directions."""
    heartbeat: Heartbeat
    """When in the heartbeat the frames were measured."""
    doubts: tuple[str, ...] = ()
    """What speaks against the images, which were sent all the same."""
    noise: NDArray[np.complex64] | None = None
    """``(coil, coil)`` complex64 covariance of the receive coils in any unit; None where no noise was measured."""
    beats: tuple[Beat, ...] = ()
    """All beats of a slice that was gated retrospectively."""
    images: list[NDArray[np.float32]] = field(default_factory=list)
    """One ``(y, x)`` float32 magnitude per frame."""
    others: dict[str, tuple[NDArray[np.float32], int, float]] = field(default_factory=dict)
    """Sums ``(y, x)`` of other images of the slice, how many, and their brightest shade, by what they are."""

    def add_window(self, window: SliceRecord) -> None:
        """Take what is known of the next frames of a slice that comes in windows; the latest coil maps are kept."""
        rows = max(self.mask.shape[1], window.mask.shape[1])  # off the grid those of the frame with most readouts
        masks = (self.mask, window.mask)
        self.mask = np.concatenate([np.pad(one, ((0, 0), (0, rows - one.shape[1]))) for one in masks])
        self.maps = window.maps
        self.heartbeat = self.heartbeat.joined(window.heartbeat)
        self.seconds += window.seconds
        self.notes = tuple(dict.fromkeys((*self.notes, *window.notes)))

    @property
    def name(self) -> str:
        """Slice and, where they count, contrast, set and repetition."""
        return describe(self.key)

    @property
    def rr(self) -> float:
        """RR interval in ms; 0 where it is not known."""
        return self.heartbeat.rr

    @property
    def frame_time(self) -> float:
        """Time from frame to frame in ms; 0 where it is not known."""
        return self.heartbeat.frame_time

    @property
    def triggers(self) -> list[float]:
        """Times in ms since the R wave, of the frames with a known time."""
        since = self.heartbeat.since
        return [float(time) for time in since[~np.isnan(since)]]

    @property
    def no_trigger(self) -> str:
        """Why there are no times since the R wave."""
        return self.heartbeat.doubt


class ReportCollector:
    """Keeps, while a scan is reconstructed, the little of it that GIF and report are made from."""

    def __init__(self) -> None:
        self._slices: list[SliceRecord] = []
        self._watched: SliceRecord | None = None

    def watch(self, complete: CompleteSlice, reconstruction: Reconstruction) -> None:
        """Take note of a slice; `gadgets.chain.Chain` calls it before the images of that slice."""
        maps, colouring = reconstruction.maps, complete.cine.receiver.colouring
        step = max(1, max(maps.shape[1:]) // _MAP_SIDE)
        record = SliceRecord(
            key=complete.key,
            method=reconstruction.method,
            mask=complete.cine.mask[complete.cine.context :],
            maps=np.abs(maps[:, ::step, ::step]),
            whitened=complete.cine.receiver.is_white,
            seconds=sum(reconstruction.seconds.values()),
            notes=(*complete.notes, *reconstruction.notes),
            place=complete.headers[0],
            heartbeat=complete.heartbeat,
            doubts=reconstruction.doubts,
            noise=None if colouring is None else colouring @ colouring.conj().T,
            beats=complete.gating.beats if complete.gating else (),
        )
        same = [known for known in self._slices if complete.is_window and known.key == complete.key]
        if same:
            self._watched = same[0]
            same[0].add_window(record)
        else:
            self._watched = record
            self._slices.append(record)

    def add_image(self, image: CineImage) -> None:
        """Add an image to the slice that was watched last; a preview, which goes ahead of its slice, is left out.

        Raises
        ------
        DataError
            If no slice was watched before.
        """
        if image.kind == "preview":
            return
        record = self._watched
        if record is None:
            raise DataError("an image came before any slice; give `watch` to the chain")
        pixels = image.magnitude
        if image.kind:
            total, count, _ = record.others.get(image.kind, (np.zeros_like(pixels), 0, 0.0))
            record.others[image.kind] = total + pixels, count + 1, image.window
        else:
            record.images.append(pixels)

    @property
    def slices(self) -> list[SliceRecord]:
        """Slices that have images, in the order of their counters."""
        return sorted((record for record in self._slices if record.images), key=lambda record: record.key)

    def series(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Name and ``(frame, y, x)`` float32 magnitude of every slice, in the order of their counters."""
        return [(record.name, np.stack(record.images)) for record in self.slices]

    @property
    def frame_seconds(self) -> float:
        """Time in s that a loop of all slices shows each frame for."""
        known = [record.frame_time for record in self.slices if record.frame_time]
        return loop_seconds(float(np.median(known)) if known else None)
