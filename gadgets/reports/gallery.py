"""The latest loops of running scans, kept small, for who looks at them: made into pictures only then."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Picture

from gadgets.images.pictures import columns_of, encoded, gray, loop_seconds, montage, moving_part, white_level
from gadgets.reports.viewer import panel
from gadgets.slices.complete import describe
from recon_core.errors import CinestreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.chain import Watch
    from gadgets.reports.viewer import Panel
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.header import ScanHeader
    from recon_core.data import Reconstruction

logger = logging.getLogger("cinestream")

_MIB = 1 << 20
_LARGEST_SIDE = 256  # pixels that are kept along the longer side, about
_MOST_FRAMES = 240  # of a loop: those of a scan in real time go on and on
_MAP_SIDE = 64  # pixels that are kept of a coil map along the longer side, about
_LEVELS = 65535
#: From one picture of a loop that goes on to the next, over the time that it takes: looking takes a 50th of a core.
_PATIENCE = 50.0


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
    _made: tuple[int, float, float, Panel] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.frames) * self.frames[0].levels.nbytes + self.maps.nbytes

    @property
    def series(self) -> NDArray[np.float32]:
        """``(frame, y, x)`` float32 magnitudes."""
        return np.stack([frame.magnitude for frame in list(self.frames)])

    @property
    def snr(self) -> float | None:
        """Signal of bright tissue over the noise: the 99th percentile of the mean over time."""
        if not self.noise:
            return None
        few = list(self.frames)[-24:]
        mean = np.mean([frame.levels[::2, ::2] * np.float32(frame.step) for frame in few], axis=0)
        return float(np.percentile(mean, 99)) / self.noise

    def panel(self) -> Panel:
        """Make the loop for the viewer; one that goes on is made anew only after a while."""
        now = time.monotonic()
        if self._made is not None:
            version, at, took, made = self._made
            if version == self.version or now - at < _PATIENCE * took:
                return made
        version, series = self.version, self.series
        made = panel(series, white_level([_middle(series)]), describe(self.key), tall=self.tall, level=1)
        self._made = version, now, time.monotonic() - now, made
        return made

    def maps_picture(self) -> bytes:
        """Make a PNG of the coil maps, side by side."""
        return encoded([Picture.fromarray(montage(list(self.maps), columns_of(len(self.maps))))], "PNG")


class Gallery:
    """Keeps the loops of the scans that were looked at last; a `gadgets.connection.records.Viewer`.

    Parameters
    ----------
    bytes_kept
        For all loops; the oldest scans go first.
    """

    def __init__(self, bytes_kept: int = 96 * _MIB) -> None:
        self._limit = bytes_kept
        self._lock = threading.Lock()
        self._scans: dict[str, dict[SliceKey, LiveLoop]] = {}

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
        """What there is to see of a scan."""
        loops = self.loops(scan)
        ratios = [ratio for loop in loops if (ratio := loop.snr) is not None]
        return {
            "loops": [{"name": describe(loop.key), "version": loop.version, "method": loop.method} for loop in loops],
            "snr": round(float(np.median(ratios)), 1) if ratios else None,
        }

    def _add(self, scan: str, header: ScanHeader, complete: CompleteSlice, reconstruction: Reconstruction) -> None:
        made = _loop(header, complete, reconstruction)
        with self._lock:
            known = self._scans.setdefault(scan, {})
            before = known.get(complete.key)
            if before is not None:
                made.version = before.version + 1
            if before is not None and complete.running is not None:
                made.frames = deque((*before.frames, *made.frames), maxlen=_MOST_FRAMES)
                made._made = before._made
            known[complete.key] = made
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


def _loop(header: ScanHeader, complete: CompleteSlice, reconstruction: Reconstruction) -> LiveLoop:
    """Keep of a slice what is to be shown."""
    encoded, maps = header.encodings[complete.key.encoding].encoded, np.abs(reconstruction.maps)
    (columns, rows, _), (wide, high, _) = encoded.matrix, encoded.field_of_view
    step = max(1, max(maps.shape[1:]) // _MAP_SIDE)
    return LiveLoop(
        complete.key,
        reconstruction.method,
        loop_seconds(complete.heartbeat.frame_time),
        tall=(high / rows) / (wide / columns) if min(high, rows, wide, columns) > 0 else 1.0,
        noise=_noise(complete, reconstruction),
        maps=gray(maps[:, ::step, ::step], float(maps.max()) or 1.0),
        frames=deque((Frame(_smaller(np.abs(image))) for image in reconstruction.image), maxlen=_MOST_FRAMES),
    )


def _middle(series: NDArray[np.float32]) -> NDArray[np.float32]:
    """The heart without the chest wall near the coils, which is brighter: the middle of what moves."""
    rows, columns = (
        slice((3 * part.start + part.stop) // 4, (part.start + 3 * part.stop + 3) // 4) for part in moving_part(series)
    )
    return series[:, rows, columns]


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
