"""The latest loops of running scans, kept small, for who looks at them: made into pictures only then."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as Picture

from gadgets.images.pictures import (
    columns_of,
    encoded,
    gray,
    loop_seconds,
    montage,
    moving_column,
    moving_part,
    white_level,
)
from gadgets.reports.viewer import panel
from gadgets.slices.complete import describe
from recon_core.errors import CinestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.chain import Watch
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.header import ScanHeader
    from recon_core.data import Reconstruction

logger = logging.getLogger("cinestream")

#: For the loops of all scans of a server.
BYTES_KEPT = 96 << 20
_LARGEST_SIDE = 256  # pixels that are kept along the longer side, about
_MOST_FRAMES = 240  # of a loop: those of a scan in real time go on and on
_MAP_SIDE = 64  # pixels that are kept of a coil map along the longer side, about
_LEVELS = 65535
_FEW_FRAMES = 24  # that show where the heart is, and how bright
#: From one picture of a loop that goes on to the next, over the time it takes: looking takes a hundredth of a core.
_PATIENCE = 100.0


class Frame:
    """A magnitude image in 16 bits.

    Parameters
    ----------
    magnitude
        ``(y, x)`` float32.
    """

    def __init__(self, magnitude: NDArray[np.float32]) -> None:
        top = float(magnitude.max())
        self.step = top / _LEVELS if top > 0 else 1.0
        self.levels = (magnitude / np.float32(self.step)).astype(np.uint16)

    @property
    def magnitude(self) -> NDArray[np.float32]:
        """``(y, x)`` float32."""
        return self.levels.astype(np.float32) * np.float32(self.step)


class Made(NamedTuple):
    """A loop as the viewer wants it."""

    version: int
    """Of the loop."""
    text: bytes
    """JSON with the picture in it."""
    at: float
    """When it was made, as `time.monotonic` has it."""
    took: float
    """CPU time in s that it took."""


@dataclass
class LiveLoop:
    """The frames of a slice that were made last."""

    key: SliceKey
    """Which slice."""
    method: str
    """The method that made it."""
    seconds: float
    """Time in s that each frame is shown for."""
    tall: float
    """Height over width of a pixel in mm."""
    noise: float | None
    """Standard deviation of the noise in the real part of a fully sampled image, in the units of the frames; None where
    it is not known."""
    maps: NDArray[np.uint8]
    """``(coil, y, x)`` magnitudes of the coil maps, thinned out."""
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=_MOST_FRAMES))
    """In order; the first of a scan that goes on are dropped."""
    version: int = 0
    """Grows with every change."""
    made: Made | None = None
    """As it was looked at last."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.frames) * self.frames[0].levels.nbytes + self.maps.nbytes

    @property
    def series(self) -> NDArray[np.float32]:
        """``(frame, y, x)`` float32 magnitudes."""
        return np.stack([frame.magnitude for frame in list(self.frames)])

    @cached_property
    def snr(self) -> float | None:
        """Signal of bright tissue over the noise: the 99th percentile of the mean over time."""
        if not self.noise:
            return None
        few = list(self.frames)[-_FEW_FRAMES:]
        mean = np.mean([frame.levels[::2, ::2] * np.float32(frame.step) for frame in few], axis=0)
        return float(np.percentile(mean, 99)) / self.noise

    @property
    def offered(self) -> int:
        """The version that is to be fetched: of a loop that goes on, a newer one is offered only after a while."""
        if self.made is None or time.monotonic() - self.made.at >= _PATIENCE * self.made.took:
            return self.version
        return self.made.version

    def picture(self) -> Made:
        """Make the loop for the viewer, unless it was."""
        if self.made is None or self.made.version != self.offered:
            began, version, series = time.thread_time(), self.version, self.series
            few = series[:: math.ceil(len(series) / _FEW_FRAMES), ::2, ::2]
            rows, columns = moving_part(few)
            made = panel(
                series,
                white_level([few[:, _middle(rows), _middle(columns)]]),
                describe(self.key),
                tall=self.tall,
                shown=(slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop)),
                line=2 * moving_column(few)[0],
                fast=True,
            )
            view = {**made.embedded, "version": version, "seconds": self.seconds}
            text = json.dumps(view, separators=(",", ":")).encode()
            self.made = Made(version, text, time.monotonic(), time.thread_time() - began)
        return self.made

    def maps_picture(self) -> bytes:
        """Make a PNG of the coil maps, side by side."""
        return encoded([Picture.fromarray(montage(list(self.maps), columns_of(len(self.maps))))], "PNG")


class Gallery:
    """Keeps the loops of the scans that were looked at last; a `gadgets.connection.looks.Viewer`.

    Parameters
    ----------
    bytes_kept
        For all loops; the oldest scans go first.
    """

    def __init__(self, bytes_kept: int = BYTES_KEPT) -> None:
        self._limit = bytes_kept
        self._lock = threading.Lock()
        self._scans: dict[str, dict[SliceKey, LiveLoop]] = {}
        self.changes = 0  # grows with every slice

    def begin(self, scan: str, header: ScanHeader) -> Watch:
        """Give what is to be called with every slice of a scan."""

        def look(complete: CompleteSlice, reconstruction: Reconstruction) -> None:
            try:
                self._add(scan, header, complete, reconstruction)
            except (CinestreamError, ArithmeticError, MemoryError, TypeError, ValueError):
                logger.exception("a slice cannot be shown")

        return look

    def loops(self, scan: str) -> list[LiveLoop]:
        """The loops of a scan in the order of their counters."""
        with self._lock:
            return [loop for _, loop in sorted(self._scans.get(scan, {}).items())]

    def scans(self) -> list[str]:
        """Scans that have loops, the latest last."""
        with self._lock:
            return list(self._scans)

    def facts(self, scan: str) -> dict[str, Any]:
        """What there is to see of a scan; nothing if it has no loops."""
        loops = self.loops(scan)
        if not loops:
            return {}
        ratios = [ratio for loop in loops if (ratio := loop.snr) is not None]
        return {
            "loops": [{"name": describe(loop.key), "version": loop.offered, "method": loop.method} for loop in loops],
            "snr": round(float(np.median(ratios)), 1) if ratios else None,
        }

    def loop(self, scan: str, number: int) -> bytes:
        """One of the loops of a scan for the viewer, as JSON; empty if it is not kept any more."""
        loop = self._loop_of(scan, number)
        return loop.picture().text if loop else b""

    def maps(self, scan: str, number: int) -> bytes:
        """The coil maps of its slice as PNG; empty if it is not kept any more."""
        loop = self._loop_of(scan, number)
        return loop.maps_picture() if loop else b""

    def _loop_of(self, scan: str, number: int) -> LiveLoop | None:
        return next(iter(self.loops(scan)[number : number + 1]), None)

    def _add(self, scan: str, header: ScanHeader, complete: CompleteSlice, reconstruction: Reconstruction) -> None:
        with self._lock:
            before = self._scans.get(scan, {}).get(complete.key)
        going_on = before if complete.is_window else None
        made = _loop(header, complete, reconstruction, None if going_on is None else going_on.maps)
        with self._lock:
            known = self._scans.setdefault(scan, {})
            if before is not None:
                made.version = before.version + 1
            if going_on is not None:
                made.frames = deque((*going_on.frames, *made.frames), maxlen=_MOST_FRAMES)
                made.made = going_on.made
            known[complete.key] = made
            self.changes += 1
            self._shrink(scan)

    def _shrink(self, scan: str) -> None:
        """Drop loops until the others fit: of the oldest scan first, and of this one the slice that came first."""
        sizes = {name: sum(loop.size for loop in loops.values()) for name, loops in self._scans.items()}
        while sum(sizes.values()) > self._limit:
            oldest = next(iter(self._scans))
            if oldest != scan:
                del self._scans[oldest], sizes[oldest]
                continue
            loops = self._scans[scan]
            if len(loops) == 1:
                return
            sizes[scan] -= loops.pop(next(iter(loops))).size


def _loop(
    header: ScanHeader, complete: CompleteSlice, reconstruction: Reconstruction, maps: NDArray[np.uint8] | None
) -> LiveLoop:
    """Keep of a slice what is to be shown; with the coil maps that are kept of its series already, if any are."""
    encoded = header.encodings[complete.key.encoding].encoded
    (columns, rows, _), (wide, high, _) = encoded.matrix, encoded.field_of_view
    if maps is None:
        step = max(1, max(reconstruction.maps.shape[1:]) // _MAP_SIDE)
        thinned = np.abs(reconstruction.maps[:, ::step, ::step])
        maps = gray(thinned, float(thinned.max()) or 1.0)
    return LiveLoop(
        complete.key,
        reconstruction.method,
        loop_seconds(complete.heartbeat.frame_time),
        tall=(high / rows) / (wide / columns) if min(high, rows, wide, columns) > 0 else 1.0,
        noise=_noise(complete, reconstruction),
        maps=maps,
        frames=deque((Frame(_smaller(np.abs(image))) for image in reconstruction.image), maxlen=_MOST_FRAMES),
    )


def _middle(part: slice) -> slice:
    """The heart without the chest wall near the coils, which is brighter: the middle of an axis of what moves."""
    return slice((3 * part.start + part.stop) // 4, (part.start + 3 * part.stop + 3) // 4)


def _noise(complete: CompleteSlice, reconstruction: Reconstruction) -> float | None:
    receiver, share = complete.cine.receiver, complete.cine.noise_share
    if reconstruction.units == "snr":
        return 1.0
    return math.sqrt(share) if share is not None and receiver.is_white and receiver.scaled else None


def _smaller(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of squares of pixels, where the image is larger than what is kept; what is left over at the edge is cut."""
    step = math.ceil(max(image.shape) / _LARGEST_SIDE)
    if step == 1:
        return image
    rows, columns = (size // step for size in image.shape)
    squares = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    return np.asarray(squares.mean(axis=(1, 3)), np.float32)
