"""Prepared readouts in, windows of frames out while the scan still runs, with bounded delay and memory.

Every slice has a window of its own: the last so many complete frames. In sliding mode it leaves with every new frame,
in fixed mode when all its frames are new; images are made of the new frames, the others help.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gadgets.gating.heartbeat import find_heartbeat
from gadgets.problems import Kind
from gadgets.slices.complete import CompleteSlice, describe
from gadgets.slices.shared import LAST, merge
from gadgets.wire.messages import AcquisitionFlag, join_headers
from recon_core.coils.running_maps import RunningMaps
from recon_core.data import CineSlice
from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.settings.settings import RealtimeSettings
    from gadgets.slices.complete import SliceKey
    from gadgets.slices.shared import SlicePlan, SortingContext, VirtualCoils
    from gadgets.wire.messages import Readouts, Waveform

_COUNTERS = 1 << 16  # values of a counter; that of an endless scan wraps around
FEWEST_FRAMES = 8  # of a window without a size of its own, and of a first one that gives the coil maps of all
_RECENT = 16  # counters of frames that have left, by which late readouts are known
#: How often a line of the reference is kept at most.
REFERENCE_REPEATS = 4


@dataclass(frozen=True)
class _Frame:
    """A complete frame, its measured lines only: zeros in between would take most of the memory."""

    number: int
    lines: NDArray[np.complex64]  # (coil, line, kx)
    mask: NDArray[np.bool_]  # (ky,)
    header: NDArray[np.void]  # (1,)
    stamps: NDArray[np.uint32]  # (1, stamp, 2)


@dataclass
class _Running:
    """One slice: its last complete frames, and the one that is being measured."""

    plan: SlicePlan
    window: deque[_Frame]
    virtual: VirtualCoils | None
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))  # counters of complete frames
    maps: RunningMaps = field(default_factory=RunningMaps)
    frames: int = 0  # complete so far
    new: int = 0  # of them not sent
    was_left: bool = False  # in the middle of a frame, for another slice
    counter: int = 0
    parts: list[Readouts] = field(default_factory=list)
    row: list[NDArray[np.intp]] = field(default_factory=list)
    came: int = 0  # readouts of the present frame
    flagged: int = 0  # LAST_IN_SLICE in it

    def take(self, readouts: Readouts, row: NDArray[np.intp], counter: int) -> None:
        """Add readouts of the present frame."""
        self.counter = counter
        self.parts.append(readouts)
        self.row.append(row)
        self.came += len(readouts)
        self.flagged += int(np.count_nonzero(readouts.flagged(AcquisitionFlag.LAST_IN_SLICE)))
        if self.virtual is not None:
            self.virtual.take(self.parts, row)

    def closed(self, frame: _Frame) -> None:
        """Put the present frame, now complete, into the window."""
        self.window.append(frame)
        self.recent.append(frame.number)
        self.frames += 1
        self.new += 1
        self.came = self.flagged = 0
        self.parts, self.row = [], []

    @property
    def lines(self) -> int:
        """How many lines the present frame has."""
        return len(np.unique(np.concatenate(self.row))) if self.row else 0


class FrameWindows:
    """Sorts the readouts of every slice into frames and gives them out in windows.

    A frame is complete when the next one of its slice begins, when it has every line that the header promises, on its
    LAST_IN_SLICE flag or when another slice begins if it has as many lines as the acceleration leaves, or with the last
    of `lines_per_frame` readouts. The first frames of a slice wait for each other while lines are missing and every one
    brings new ones: coil maps and intensity need them.

    Parameters
    ----------
    context
        What is known of the scan.
    settings
        Those of real time.
    """

    most_frames: ClassVar[int] = _COUNTERS

    def __init__(self, context: SortingContext, settings: RealtimeSettings) -> None:
        self._context = context
        self._problems = context.problems
        self._sliding = settings.mode == "sliding"
        self._size = settings.window  # of a window, or 0
        self._count = settings.lines_per_frame  # readouts of a frame, or 0
        self._running: dict[SliceKey, _Running] = {}
        self._latest: SliceKey | None = None
        self.cut_short = False
        self.sent: dict[SliceKey, int] = {}
        for encoding, name in itertools.product(context.header.encodings, ("segment", "average")):
            if encoding.count(name) > 1:
                text = f"the header promises {encoding.count(name)} {name}s; in real time only frames that are measured"
                self._problems.add(Kind.NOT_REAL_TIME, f"{text} one after the other come out complete", damage=False)

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:  # noqa: ARG002 - of every strategy
        """Ignore a waveform: frames wait for none."""
        return iter(())

    def to_come(self, promised: int) -> tuple[int, int]:  # noqa: ARG002 - of every strategy
        """None: every window has time for itself."""
        return 0, 0

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan: frames that were cut short, and the rest of every window."""
        for key in sorted(self._running):
            try:
                yield from self._end(key)
            except ResourceError as error:  # the other slices may have room
                self._problems.add(Kind.MEMORY, f"{describe(key)} is cut short: {error}", damage=True)

    def take(
        self, key: SliceKey, readouts: Readouts, line: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice, one frame after the other."""
        row = line + plan.offset
        inside = self._context.inside(readouts.headers, line, row, plan)
        if not inside.any():
            return
        readouts, row, time = readouts[inside], row[inside], time[inside]
        yield from self._take_turns(key)
        if key in self.sent:
            self._context.report_late(describe(key), readouts)
            return
        if key not in self._running:
            yield from self._end_before(key)
            size = self._size or max(FEWEST_FRAMES, plan.acceleration)
            virtual = self._context.virtual_coils(plan, readouts.data.shape[1])
            self._running[key] = _Running(plan, deque(maxlen=size), virtual)
        running = self._running[key]
        begin = 0
        while begin < len(readouts):
            end = begin + self._together(running, readouts.headers["flags"][begin:], time[begin:], plan)
            part, counter = readouts[begin:end], int(time[begin])
            if self._count:
                counter = running.frames % _COUNTERS
            if running.parts and counter != running.counter:
                yield from self._close(key)
            if self._belongs(key, counter, part):
                running.take(part, row[begin:end], counter)
                if self._is_complete(running, plan):
                    yield from self._close(key)
            if part.headers["flags"][-1] & AcquisitionFlag.LAST_IN_MEASUREMENT.bit:
                yield from self._finish_complete()
            begin = end

    def _together(self, running: _Running, flags: NDArray[np.uint64], time: NDArray[np.intp], plan: SlicePlan) -> int:
        """How many of the next readouts may be taken at once: up to where their frame may be complete."""
        if self._count:
            return min(self._count - running.came, len(time))
        over = np.flatnonzero((flags & LAST) != 0)
        other = np.flatnonzero(time != time[0])
        came = running.came if time[0] == running.counter else 0
        ends = [len(time), *(over[:1] + 1), *other[:1], plan.lines * plan.averages - 1 - came]
        return max(1, int(min(ends)))

    def _belongs(self, key: SliceKey, counter: int, readouts: Readouts) -> bool:
        """Whether readouts belong to the frame that is being measured or to a new one; if not, that is noted."""
        running, plan = self._running[key], self._running[key].plan
        if self._count or (running.parts and counter == running.counter):
            return True
        if counter in running.recent:
            self._context.report_late(f"frame {counter} of {describe(key)}", readouts)
            return False
        follows = not running.recent or counter == (running.recent[-1] + 1) % _COUNTERS
        if plan.limited and counter not in plan.frames and not follows:
            text = f"readout {readouts.headers['scan_counter'][0]} has frame {counter} of {describe(key)}, the header "
            text += f"ends at {plan.frames.stop - 1}; it is left out"
            self._problems.add(Kind.STRAY_FRAME, text, damage=True, count=len(readouts))
            return False
        return True

    def _is_complete(self, running: _Running, plan: SlicePlan) -> bool:
        """Whether the frame that is being measured needs no more readouts."""
        if self._count:
            return running.came >= self._count
        flagged = running.parts[-1].headers["flags"][-1] & AcquisitionFlag.LAST_IN_SLICE.bit
        if flagged and running.flagged >= plan.averages and running.lines >= plan.fewest_lines:
            return True
        # the limits of the lines alone may be too small
        return plan.lines == plan.rows and running.came >= plan.lines * plan.averages and running.lines >= plan.lines

    def _take_turns(self, key: SliceKey) -> Iterator[CompleteSlice]:
        """Where slices take turns frame by frame, the next slice ends a frame."""
        before = None if self._latest in (None, key) else self._running.get(self._latest)
        if before is not None and self._latest is not None and before.parts and not self._count:
            if not before.was_left and before.lines >= before.plan.fewest_lines:
                yield from self._close(self._latest)
            else:
                before.was_left = True
        self._latest = key

    def _finish_complete(self) -> Iterator[CompleteSlice]:
        """At the last readout of the measurement: every window leaves, and frames that have all their lines with it."""
        for key, running in sorted(self._running.items()):
            if running.parts and running.lines >= running.plan.fewest_lines:
                yield from self._close(key)
            if running.new:
                yield self._window(key)

    def _end_before(self, key: SliceKey) -> Iterator[CompleteSlice]:
        """Repetitions that do not number the frames are scans after each other: a new one ends the one before."""
        for other in [other for other in self._running if other._replace(repetition=key.repetition) == key]:
            yield from self._end(other)

    def _end(self, key: SliceKey) -> Iterator[CompleteSlice]:
        """A slice is over: give out what it has left."""
        running, plan = self._running[key], self._running[key].plan
        cut = bool(running.parts) and running.lines < plan.fewest_lines
        if running.parts:
            yield from self._close(key)
        if running.new:
            yield self._window(key)
        self.sent[key] = running.frames
        self.cut_short |= cut
        del self._running[key]
        promised = len(plan.frames)
        if plan.limited and not self._count and running.frames < promised:
            text = f"{describe(key)} has {running.frames} of the {promised} frames that the header promises"
            if cut:
                self._problems.add(Kind.ABSENT_FRAMES, f"{text}; the scan ended early", damage=True)
            else:
                self._problems.add(Kind.FEWER_FRAMES, f"{text}; its limits are larger than the scan", damage=False)

    def _close(self, key: SliceKey) -> Iterator[CompleteSlice]:
        """The frame that is being measured is over; give the window out if it is time."""
        running, plan = self._running[key], self._running[key].plan
        self._context.check_room(key, len(running.window) + 1, *running.parts[0].data.shape[1:], plan.rows)
        if running.virtual is not None:
            running.virtual.learn(running.parts)
        row = np.concatenate(running.row)
        data = np.concatenate([part.data for part in running.parts])
        headers = join_headers(part.headers for part in running.parts)
        if plan.time_axis == "repetition" and not self._count:
            self._look_at_phases(key, headers["idx"]["phase"], running.counter)
        kspace, measured, headers, stamps = merge(np.zeros_like(row), row, data, headers, (1, plan.rows))
        mask = measured > 0
        if self._count:
            headers["idx"][plan.time_axis] = running.counter
        lines = int(np.count_nonzero(mask))
        if lines < plan.fewest_lines:
            text = f"frame {running.counter} of {describe(key)} has {lines} lines, expected at least "
            self._problems.add(Kind.MISSING_LINES, f"{text}{plan.fewest_lines}", damage=False)
        before = running.maps.lines
        running.maps.add(kspace[0], mask[0])
        lines_only = self._context.budget.keep(kspace[0][:, mask[0]], "the frames of the window")
        running.closed(_Frame(running.counter, lines_only, mask[0], headers, stamps))
        begins = running.new == running.frames and before < running.maps.lines < plan.lines
        promised = plan.limited and not self._count and 1 < len(plan.frames) == running.frames
        if (self._sliding and not begins) or promised or running.new == running.window.maxlen:
            yield self._window(key)

    def _look_at_phases(self, key: SliceKey, phase: NDArray[np.uint16], frame: int) -> None:
        """Say that phases are put together where the header promises none and they run all the same."""
        if phase.min() == phase.max():
            return
        text = f"frame {frame} of {describe(key)} holds the phases {phase.min()} to {phase.max()}, as the header "
        text += "promises repetitions and no phases; with time_axis=phase they are the frames"
        self._problems.add(Kind.PHASES_TOGETHER, text, damage=True)

    def _window(self, key: SliceKey) -> CompleteSlice:
        """Bring the frames of the window together, those that were not sent yet being the last."""
        running, plan = self._running[key], self._running[key].plan
        frames = list(running.window)
        context, running.new = len(frames) - running.new, 0
        coils, _, columns = frames[0].lines.shape
        kspace = np.zeros((len(frames), coils, plan.rows, columns), np.complex64)
        for target, frame in zip(kspace, frames, strict=True):
            target[:, frame.mask] = frame.lines
        mask = np.stack([frame.mask for frame in frames])
        compression = running.virtual.matrix if running.virtual is not None else None
        calibration = self._context.reference.kspace(key, plan, compression)
        lines = np.count_nonzero(mask[context:], axis=1)
        shown = frames[context:]
        headers = join_headers(frame.header for frame in shown)
        return CompleteSlice(
            key,
            CineSlice(kspace, mask, calibration, context=context, periodic=False),
            headers,
            find_heartbeat(headers, headers[:0], self._context.tick, real_time=True),
            np.array([frame.number for frame in shown]),
            lines,
            tuple(
                f"frame {frame.number} has {count} lines, expected at least {plan.fewest_lines}"
                for frame, count in zip(shown, lines.tolist(), strict=True)
                if count < plan.fewest_lines
            ),
            compression,
            np.concatenate([frame.stamps for frame in shown]),
            running=running.maps,
        )
