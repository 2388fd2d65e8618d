"""What whole slices and windows of frames have in common: plan, virtual coils, reference lines, readouts to k-space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gadgets.gating.gate import MOST_FRAMES
from gadgets.problems import Kind
from gadgets.slices.complete import describe
from gadgets.wire.messages import AcquisitionFlag, Readouts, flag_mask
from recon_core.budget import Budget
from recon_core.coils.compression import CoilCompression
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.header import Encoding, ScanHeader
    from gadgets.wire.messages import Waveform

#: Flags with which a slice may be over.
LAST = flag_mask(AcquisitionFlag.LAST_IN_SLICE, AcquisitionFlag.LAST_IN_MEASUREMENT)
_MOST_AVERAGES = 64
# of a pixel of a frame off the grid: four images of the solver, and the kernel of a convolution over twice the image
_PIXEL_BYTES = 4 * np.dtype(np.complex64).itemsize + 4 * np.dtype(np.float32).itemsize
_BYTES = 3 * np.dtype(np.complex64).itemsize  # of a sample: as it came, sorted, and on its way through the engine
_FEWEST_MOVED = 3  # lines that can show where the matrix lies
#: What a stray counter says is believed when this share of what is usual stands behind it.
BELIEVED_SHARE = 0.25


class SliceStrategy(Protocol):
    """When readouts that belong to one slice leave, and as what."""

    cut_short: bool
    """A slice ended amid a frame, or before the others did."""

    @property
    def most_frames(self) -> int:
        """Values of the counter of the frames that are believed."""

    @property
    def sent(self) -> Mapping[SliceKey, int]:
        """Slices that have left, and how many readouts or frames of each."""

    def take(
        self, key: SliceKey, readouts: Readouts, line: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice, with their lines and counters of frames ``(readout,)``."""

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield what waited for it."""

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""

    def to_come(self, promised: int) -> tuple[int, int]:
        """As `gadgets.slices.buffers.SliceBuffers.to_come`, if so many more slices are promised."""


class SlicePlan:
    """What the header promises of every slice of one encoding.

    Parameters
    ----------
    encoding
        The header's.
    time_axis
        Counter of the frames.
    center
        Line of the k-space centre.
    axis_is_open
        The stream may show that another counter numbers the frames.
    center_is_sure
        Not the header alone says where the centre is.
    """

    def __init__(
        self,
        encoding: Encoding,
        time_axis: str,
        center: int,
        *,
        axis_is_open: bool = False,
        center_is_sure: bool = False,
    ) -> None:
        self._encoding = encoding
        self._center = center
        self._center_is_sure = center_is_sure
        self.time_axis = time_axis
        self.axis_is_open = axis_is_open
        self.acceleration = encoding.acceleration
        limit = encoding.limits.get("kspace_encoding_step_1")
        self.rows = encoding.encoded.matrix[1]
        self.offset = self.rows // 2 - center
        first, last = (limit.minimum, limit.maximum) if limit else (0, self.rows - 1)
        self.first = max(0, first + self.offset)
        self.last = min(self.rows - 1, last + self.offset)
        self.lines_in_header = (first, last)
        promised = encoding.promised(time_axis)
        self.frames = range(promised.start, min(promised.stop, MOST_FRAMES))
        # Repetitions are a plan of the frames only where the header says that there are no phases.
        self.limited = time_axis in encoding.limits and (not axis_is_open or "phase" in encoding.limits)
        averages = encoding.promised("average")
        self.averages = min(len(averages), _MOST_AVERAGES)
        self.first_average = averages.start
        self.averages_limited = "average" in encoding.limits
        self.lines = max(0, self.last - self.first + 1)
        self.fewest_lines = max(1, self.lines // encoding.acceleration)

    def by(self, time_axis: str) -> SlicePlan:
        """The same with another counter of the frames."""
        return SlicePlan(self._encoding, time_axis, self._center, center_is_sure=self._center_is_sure)

    def shift(self, line: NDArray[np.intp], frame: NDArray[np.intp]) -> int:
        """How far lines must be moved to fit into the matrix, where those around the centre of the header do not.

        Lines that few frames have are not asked: they are damage.

        Parameters
        ----------
        line, frame
            ``(readout,)`` of a slice.
        """
        of_frames = np.unique(np.stack([line, frame], axis=1), axis=0)[:, 0]
        lines, counts = np.unique(of_frames, return_counts=True)
        lines = lines[counts >= BELIEVED_SHARE * np.median(counts)] + self.offset
        first, last = int(lines[0]), int(lines[-1])
        if self._center_is_sure or len(lines) < _FEWEST_MOVED or last - first >= self.rows:
            return 0
        return int(np.clip(0, -first, self.rows - 1 - last))


class VirtualCoils:
    """Coil compression of one slice while it is buffered.

    The virtual coils are learned as soon as the k-space centre and a frame's worth of lines are there; from then on
    only they are kept. What they are does not depend on how the stream was cut into runs.

    Parameters
    ----------
    coils
        Virtual coils to keep; 0 keeps as many as `energy` asks for.
    energy
        Share of the signal energy to keep.
    center
        Row of the k-space centre.
    fewest
        Readouts to learn from at least.
    budget
        Memory that the compressed readouts are kept in.
    """

    def __init__(self, coils: int, energy: float, center: int, fewest: int, budget: Budget) -> None:
        self._budget = budget
        self._coils = coils or None
        self._energy = energy
        self._center = center
        self._fewest = fewest
        self._count = 0
        self._center_at: int | None = None
        self.matrix: NDArray[np.complex64] | None = None

    def take(self, parts: list[Readouts], row: NDArray[np.intp]) -> None:
        """Compress the last of the parts, of lines `row`; all of them change when the coils are learned."""
        if self.matrix is not None:
            parts[-1] = self._compressed(parts[-1], self.matrix)
            return
        hits = np.flatnonzero(row == self._center)
        if self._center_at is None and len(hits):
            self._center_at = self._count + int(hits[0])
        self._count += len(row)
        if self._center_at is not None and self._count >= max(self._fewest, self._center_at + 1):
            self.learn(parts, max(self._fewest, self._center_at + 1))

    def learn(self, parts: list[Readouts], count: int | None = None) -> None:
        """Learn the virtual coils from the first `count` readouts and bring all parts to them."""
        if self.matrix is not None:
            return
        data = np.concatenate([part.data for part in parts])
        compression = CoilCompression(data.shape[1])
        compression.add(data[:count])
        try:
            matrix = compression.matrix(coils=self._coils, energy=self._energy)
        except DataError:  # nothing but zeros: keep the coils as they are
            matrix = np.eye(data.shape[1], dtype=np.complex64)
        self.matrix = matrix
        parts[:] = [self._compressed(part, matrix) for part in parts]

    def _compressed(self, readouts: Readouts, matrix: NDArray[np.complex64]) -> Readouts:
        data = np.matmul(matrix, readouts.data)
        kept = self._budget.keep(data, "the virtual coils of the readouts")
        return Readouts(readouts.headers, kept, readouts.trajectory)


class ReferenceLines:
    """Lines that were measured for the coil maps alone, by encoding and slice.

    Parameters
    ----------
    repeats
        How often a line is kept about, the last ones of a scan that measures them on and on; 0 keeps all.
    budget
        Memory that they are kept in.
    """

    def __init__(self, repeats: int = 0, budget: Budget | None = None) -> None:
        self._repeats = repeats
        self._budget = budget or Budget()
        self._parts: dict[tuple[int, int], list[tuple[NDArray[np.intp], Readouts]]] = {}

    def add(self, readouts: Readouts, line: NDArray[np.intp], encoding: int, rows: int) -> None:
        """Add readouts of one encoding with their lines ``(readout,)``, of `rows` in all.

        Raises
        ------
        ResourceError
            If there is no room for them.
        """
        slices = readouts.headers["idx"]["slice"]
        for number in np.unique(slices).tolist():
            same = np.asarray(slices == number)
            part = readouts[same]
            self._budget.keep(part.data, f"the reference lines of slice {number}")
            parts = self._parts.setdefault((encoding, number), [])
            parts.append((line[same], part))
            while self._repeats and sum(len(lines) for lines, _ in parts[1:]) >= self._repeats * rows:
                parts.pop(0)

    def kspace(
        self, key: SliceKey, plan: SlicePlan, compression: NDArray[np.complex64] | None, shift: int = 0
    ) -> NDArray[np.complex64] | None:
        """K-space ``(coil, ky, kx)`` of a slice in the coils that `compression` makes; None without such lines."""
        parts = self._parts.get((key.encoding, key.slice))
        if not parts:
            return None
        row = np.concatenate([lines for lines, _ in parts]) + plan.offset + shift
        data = np.concatenate([readouts.data for _, readouts in parts])
        inside = (row >= 0) & (row < plan.rows)
        if not inside.any():
            return None
        row, data = row[inside], data[inside]
        if compression is not None:
            data = np.matmul(compression, data)
        kspace, _ = _accumulate(np.zeros_like(row), row, data, (1, plan.rows))
        return np.asarray(kspace[0], np.complex64)


@dataclass(frozen=True)
class SortingContext:
    """What a strategy knows of the scan."""

    header: ScanHeader
    """The scan's header."""
    problems: Problems
    """Where to report what is left out or missing."""
    tick: float
    """Length of a tick of the time stamps in ms."""
    coils: int
    """Virtual coils to keep, or 0."""
    coil_energy: float
    """Share of the signal energy that the virtual coils keep, where their number is 0."""
    reference: ReferenceLines = field(default_factory=ReferenceLines)
    """Reference lines of all slices."""
    budget: Budget = field(default_factory=Budget)
    """Memory that slices are gathered in."""

    def virtual_coils(self, plan: SlicePlan, n_coils: int) -> VirtualCoils | None:
        """Coil compression for a new slice; None where all coils are kept."""
        fewer = self.coils < n_coils if self.coils else self.coil_energy < 1
        center, fewest = plan.rows // 2, plan.fewest_lines
        return VirtualCoils(self.coils, self.coil_energy, center, fewest, self.budget) if fewer else None

    def check_room(self, key: SliceKey, *shape: int) -> None:
        """Refuse a slice whose k-space ``(frame, coil, ky, kx)`` would take more memory than is left.

        Raises
        ------
        ResourceError
            If it would.
        """
        size = " x ".join(map(str, shape))
        with self.budget.lent(_BYTES * math.prod(shape), f"{size} (frame x coil x ky x kx) of {describe(key)}"):
            pass

    def check_pixels(self, key: SliceKey, frames: int, coils: int, rows: int, columns: int) -> None:
        """Refuse a slice off the grid whose images and coil maps would take more memory than is left.

        Raises
        ------
        ResourceError
            If they would.
        """
        what = f"{frames} images and {coils} coil maps of {columns} x {rows} pixels of {describe(key)}"
        with self.budget.lent((_PIXEL_BYTES * frames + _BYTES * coils) * rows * columns, what):
            pass

    def inside(
        self, headers: NDArray[np.void], line: NDArray[np.intp], row: NDArray[np.intp], plan: SlicePlan
    ) -> NDArray[np.bool_]:
        """Which readouts have a row in the matrix; the others are reported."""
        inside = np.asarray((row >= 0) & (row < plan.rows))
        if inside.all():
            return inside
        first, last = plan.lines_in_header
        planned = (line >= first) & (line <= last)
        for kind, out, damage in (
            (Kind.SURPLUS_LINE, ~inside & planned, False),
            (Kind.STRAY_LINE, ~inside & ~planned, True),
        ):
            if out.any():
                where = f"lines {-plan.offset} to {plan.rows - 1 - plan.offset}"
                text = f"readout {int(headers['scan_counter'][out][0])} has line {line[out][0] % 65536}; the encoded "
                count = int(np.count_nonzero(out))
                text += f"matrix has room for {where}; it is left out"
                self.problems.add(kind, text, damage=damage, count=count)
                if damage:
                    self.problems.left_out.add(headers[out])
        return inside

    def report_late(self, what: str, readouts: Readouts) -> None:
        """Report readouts of a slice or frame that has left."""
        text = f"{first_name(readouts)} belongs to {what}, which was complete already; it is left out"
        remedy = "Check the limits of averages, phases and repetitions in the header"
        self.problems.add(Kind.LATE_READOUT, f"{text}. {remedy}", damage=True, count=len(readouts))


def merge(
    frame: NDArray[np.intp],
    row: NDArray[np.intp],
    data: NDArray[np.complex64],
    headers: NDArray[np.void],
    shape: tuple[int, int],
) -> tuple[NDArray[np.complex64], NDArray[np.intp], NDArray[np.void], NDArray[np.uint32]]:
    """Put readouts in their places; averages are averaged, and what was measured again replaces what was before.

    Parameters
    ----------
    frame, row
        ``(readout,)`` the place of each; a negative frame leaves it out.
    data
        ``(readout, coil, kx)`` complex64.
    headers
        ``(readout,)`` acquisition headers.
    shape
        Frames and rows.

    Returns
    -------
    tuple
        K-space ``(frame, coil, ky, kx)`` complex64, ``(frame, ky)`` how often each line was measured, ``(frame,)``
        the header of the readout nearest to the k-space centre, and the stamps of `CompleteSlice`.
    """
    used = _latest_of_each(frame, row, headers["idx"]["average"].astype(np.intp))
    frame, row = frame[used], row[used]
    kspace, measured = _accumulate(frame, row, data[used], shape)
    headers = headers[used]
    nearest = headers[_nearest_to_center(frame, row, shape[0], shape[1] // 2)]
    return kspace, measured, nearest, time_span(frame, headers, shape[0])


def time_span(frame: NDArray[np.intp], headers: NDArray[np.void], frames: int) -> NDArray[np.uint32]:
    """Least and greatest time stamps of every frame ``(frame, stamp, 2)``, that of the acquisition first."""
    stamps = np.column_stack([headers["acquisition_time_stamp"], headers["physiology_time_stamp"]])
    least = np.full((frames, stamps.shape[1]), np.iinfo(np.uint32).max, np.uint32)
    most = np.zeros_like(least)
    np.minimum.at(least, frame, stamps)
    np.maximum.at(most, frame, stamps)
    return np.stack([least, most], axis=-1)


def _latest_of_each(frame: NDArray[np.intp], row: NDArray[np.intp], average: NDArray[np.intp]) -> NDArray[np.intp]:
    """Readouts to use: of several with the same frame, line and average the last, which replaced a rejected one."""
    positions = np.stack([frame, row, average], axis=1)[::-1]
    _, first = np.unique(positions, axis=0, return_index=True)
    latest = np.sort(len(frame) - 1 - first)
    return latest[frame[latest] >= 0]


def _accumulate(
    frame: NDArray[np.intp], row: NDArray[np.intp], data: NDArray[np.complex64], shape: tuple[int, int]
) -> tuple[NDArray[np.complex64], NDArray[np.intp]]:
    """Sum readouts of equal position and divide by their number: ``(frame, coil, ky, kx)``, counts ``(frame, ky)``."""
    frames, rows = shape
    kspace = np.zeros((frames, data.shape[1], rows, data.shape[2]), np.complex64)
    counts = np.zeros(shape, np.intp)
    np.add.at(counts, (frame, row), 1)
    if counts.max(initial=0) <= 1:
        kspace[frame, :, row] = data
        return kspace, counts
    for f, r, line in zip(frame, row, data, strict=True):
        kspace[f, :, r] += line
    kspace /= np.maximum(counts, 1).astype(np.float32)[:, None, :, None]
    return kspace, counts


def _nearest_to_center(frame: NDArray[np.intp], row: NDArray[np.intp], frames: int, center: int) -> NDArray[np.intp]:
    """Index of the readout of every frame with the line nearest to the centre; of equals the first."""
    order = np.lexsort((np.arange(len(row)), np.abs(row - center), frame))
    return order[np.searchsorted(frame[order], np.arange(frames))]


def first_name(readouts: Readouts, which: NDArray[np.bool_] | None = None) -> str:
    """Name the first readout, or the first of `which`, in a sentence."""
    counters = readouts.headers["scan_counter"]
    return f"readout {int(counters[0] if which is None else counters[which][0])}"
