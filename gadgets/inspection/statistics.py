"""Counts over the messages of a scan: flags, counters, shapes and stamps, in memory that hardly grows with the scan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gadgets.wire.flags import carries_image, is_reference, may_carry_image
from gadgets.wire.messages import ENCODING_COUNTERS, AcquisitionFlag, Readouts, Waveform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gadgets.wire.messages import Message

_SIMPLE_COUNTERS = tuple(name for name in ENCODING_COUNTERS.names or () if name != "user")
_USER_COUNTERS = 8
_MARKED = "marked"  # kind of readouts of which the rest of the scan tells what they are
# what is kept of every image readout
_RECORD = np.dtype(
    [
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("encoding_space_ref", "<u2"),
        *((name, "<u2") for name in _SIMPLE_COUNTERS),
    ]
)


class Shape(NamedTuple):
    """What readouts have in common."""

    kind: str  # image, reference, noise, other
    encoding: int
    coils: int
    samples: int
    center: int
    discard_pre: int
    discard_post: int
    dwell_us: float


@dataclass
class WaveformCount:
    """The packets of one waveform."""

    packets: int = 0
    channels: int = 0
    samples: int = 0
    """`packets`, `channels`, `samples`: Packets; channels of the first; samples over all of them."""
    sample_time_us: float = 0.0
    """Of the first packet."""
    triggers: int = 0
    """Rising edges in the last channel."""
    _level: int = 0

    def add(self, waveform: Waveform) -> None:
        """Count a packet."""
        if not self.packets:
            self.channels = len(waveform.data)
            self.sample_time_us = float(waveform.header["sample_time_us"])
        self.packets += 1
        self.samples += waveform.data.shape[1]
        if waveform.data.size:
            high = np.concatenate([[self._level], waveform.data[-1] > 0]).astype(np.int8)
            self.triggers += int(np.count_nonzero(np.diff(high) > 0))
            self._level = int(high[-1])


@dataclass
class _Images:
    """Counters and stamps of image readouts."""

    seen: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    records: list[NDArray[np.void]] = field(default_factory=list)

    def add(self, image: NDArray[np.void]) -> None:
        """Add acquisition headers ``(readout,)``."""
        counters = image["idx"]
        for name in _SIMPLE_COUNTERS:
            self._see(name, counters[name])
        for number in range(_USER_COUNTERS):
            self._see(f"user[{number}]", counters["user"][:, number])
        record = np.empty(len(image), _RECORD)
        for name in _RECORD.names or ():
            record[name] = counters[name] if name in _SIMPLE_COUNTERS else image[name]
        self.records.append(record)

    def _see(self, name: str, values: NDArray[np.uint16]) -> None:
        seen = self.seen.setdefault(name, np.zeros(1 << 16, np.bool_))
        seen[values] = True


@dataclass
class Tally:
    """Counts of one scan; `watching` fills it."""

    readouts: int = 0
    """All of them."""
    flags: Counter[int] = field(default_factory=Counter)
    """Readouts by the number of a flag."""
    unflagged: int = 0
    """Readouts without any flag."""
    shapes: Counter[Shape] = field(default_factory=Counter)
    """Readouts by what they look like."""
    waveforms: dict[int, WaveformCount] = field(default_factory=dict)
    """By id."""
    zero: int = 0
    not_finite: int = 0
    """`zero`, `not_finite`: Readouts of nothing but zeros, and with values that are no numbers."""
    largest: float = 0.0
    """Largest magnitude of the real or imaginary part of a sample."""
    first_scan_counter: int = 0
    gaps: int = 0
    """`first_scan_counter`, `gaps`: Scan counter of the first readout; how many did not come, of those between it and
    the last."""
    _images: _Images = field(default_factory=_Images)
    _marked: _Images = field(default_factory=_Images)
    _last_scan_counter: int | None = None

    def watching(self, items: Iterable[Message]) -> Iterator[Message]:
        """Hand messages through and count them."""
        for item in items:
            if isinstance(item, Readouts):
                self._add(item)
            elif isinstance(item, Waveform):
                self.waveforms.setdefault(int(item.header["waveform_id"]), WaveformCount()).add(item)
            yield item
        self._settle()

    def _settle(self) -> None:
        """Readouts with a mark are image data where there are no others."""
        marked = [shape for shape in self.shapes if shape.kind == _MARKED]
        others = any(shape.kind == "image" for shape in self.shapes)
        for shape in marked:
            self.shapes[shape._replace(kind="other" if others else "image")] += self.shapes.pop(shape)
        if not others:
            self._images = self._marked

    def counters(self) -> dict[str, NDArray[np.intp]]:
        """The distinct values of every counter over the image readouts; user counters only where they are used."""
        values = {name: np.flatnonzero(seen) for name, seen in self._images.seen.items()}
        return {name: found for name, found in values.items() if not name.startswith("user") or found.any()}

    def records(self) -> NDArray[np.void]:
        """Counters and stamps of all image readouts ``(readout,)`` in the order of the stream."""
        return np.concatenate(self._images.records) if self._images.records else np.empty(0, _RECORD)

    def _add(self, readouts: Readouts) -> None:
        headers = readouts.headers
        flags = headers["flags"]
        self.readouts += len(readouts)
        for number in range(1, 65):
            count = int(np.count_nonzero(flags & np.uint64(1 << (number - 1))))
            if count:
                self.flags[number] += count
        self.unflagged += int(np.count_nonzero(flags == 0))
        self._add_shapes(readouts)
        self._add_values(readouts.data)
        scan = headers["scan_counter"].astype(np.int64)
        before = self._last_scan_counter
        if before is None:
            self.first_scan_counter = int(scan[0])
        steps = np.diff(scan) if before is None else np.diff(scan, prepend=before)
        self.gaps += int(np.maximum(steps - 1, 0).sum())
        self._last_scan_counter = int(scan[-1])
        for image, one in ((carries_image(flags), self._images), (may_carry_image(flags), self._marked)):
            if image.any():
                one.add(headers[image])

    def _add_shapes(self, readouts: Readouts) -> None:
        headers, flags = readouts.headers, readouts.headers["flags"]
        kind = np.full(len(readouts), "other", "U9")
        kind[may_carry_image(flags)] = _MARKED
        kind[carries_image(flags)] = "image"
        kind[carries_image(flags) & is_reference(flags)] = "reference"
        kind[(flags & AcquisitionFlag.NOISE.bit) != 0] = "noise"
        coils, samples = readouts.data.shape[1:]
        columns = ("encoding_space_ref", "center_sample", "discard_pre", "discard_post", "sample_time_us")
        rows = list(zip(kind.tolist(), *(headers[name].tolist() for name in columns), strict=True))
        for (name, encoding, center, pre, post, dwell), count in Counter(rows).items():
            self.shapes[Shape(name, encoding, coils, samples, center, pre, post, dwell)] += count

    def _add_values(self, data: NDArray[np.complex64]) -> None:
        if not data.size:
            return
        parts = np.abs(np.ascontiguousarray(data).view(np.float32)).max(axis=(1, 2))
        finite = np.isfinite(parts)  # the maximum of what holds a value that is no number is no number
        self.not_finite += int(np.count_nonzero(~finite))
        self.zero += int(np.count_nonzero(parts == 0))
        self.largest = max(self.largest, float(parts[finite].max(initial=0.0)))
