"""Slices with samples that follow no grid: every readout is a row of its frame, in the order in which they came.

A slice leaves when the stream goes on with another one and all frames that the header promises have come, else at the
end of the scan. In real time windows of frames leave, as those of `windows.FrameWindows`: a frame is complete with the
last of `lines_per_frame` readouts, or when the counter of the frames goes on. Where a gate makes the frames, from time
stamps, an ECG or the spokes themselves, a slice leaves when the next one has begun or the scan ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gadgets.gating.gate import MOST_FRAMES
from gadgets.gating.heartbeat import find_heartbeat
from gadgets.gating.spokes import centre_of_spokes, gate_spokes
from gadgets.problems import Kind
from gadgets.slices.complete import CompleteSlice, describe
from gadgets.slices.shared import time_span
from gadgets.slices.windows import FEWEST_FRAMES
from gadgets.wire.messages import join_headers
from recon_core.data import CineSlice, Trajectory
from recon_core.errors import DataError, ResourceError
from recon_core.off_grid.running import RunningSeries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate
    from gadgets.gating.spokes import GatedSpokes
    from gadgets.slices.complete import SliceKey
    from gadgets.slices.shared import SlicePlan, SortingContext, VirtualCoils
    from gadgets.wire.messages import Readouts, Waveform

_COUNTERS = 1 << 16  # values of a counter
_ENOUGH = 0.4  # share of the cells of k-space that all frames together reach: spokes for a Nyquist rate of 2.5 at most
_CUT_SHARE = 0.75  # of the usual spokes: a last frame with fewer was cut short
_MOST_STRAY = 8  # readouts of another slice in a row that do not end one which is gated


@dataclass
class _Buffer:
    """What has arrived of one slice."""

    plan: SlicePlan
    virtual: VirtualCoils | None
    parts: list[Readouts] = field(default_factory=list)
    frame: list[NDArray[np.intp]] = field(default_factory=list)
    count: int = 0
    next: int = 0
    """Real time: the frames from here on have not left; counted on where the counter wraps around."""
    series: RunningSeries = field(default_factory=RunningSeries)
    """Real time: what the windows leave to those that follow."""

    def numbers(self, counter: NDArray[np.intp]) -> NDArray[np.intp]:
        """Real time: numbers of frames of their counters ``(readout,)``; those below `next` have left."""
        if not self.count and counter[0] >= _COUNTERS // 2:  # else it would lie before frame 0
            self.next = int(counter[0])
        ahead = (counter - self.next) % _COUNTERS
        return np.asarray(self.next + np.where(ahead < _COUNTERS // 2, ahead, ahead - _COUNTERS))

    def forget(self, first: int) -> None:
        """Drop the frames before the first one of the windows to come."""
        for number in range(len(self.parts)):
            kept = self.frame[number] >= first
            if not kept.all():
                self.parts[number], self.frame[number] = self.parts[number][kept], self.frame[number][kept]
        kept_parts = [number for number, part in enumerate(self.parts) if len(part)]
        self.parts = [self.parts[number] for number in kept_parts]
        self.frame = [self.frame[number] for number in kept_parts]

    def keeps_plan(self, spokes: int) -> bool:
        """All promised frames have come, with as many spokes each; with a number of spokes nothing is promised."""
        plan = self.plan
        if spokes or not plan.limited or len(plan.frames) < 2:
            return False
        counts = np.bincount(np.concatenate(self.frame), minlength=plan.frames.stop)
        return len(counts) == plan.frames.stop and bool((counts[plan.frames.start :] == counts[-1]).all())


class SpokeSlices:
    """Keeps the readouts of every slice until it is complete.

    Parameters
    ----------
    context
        What is known of the scan.
    spokes
        Consecutive readouts of a slice that make a frame; 0 goes by the counter of the frames.
    window
        Real time: frames that are reconstructed together; 0 waits for the whole slice.
    sliding
        Real time: after the first window every frame leaves when it is complete.
    gate
        Makes the frames, all together; None takes the counter or `spokes`.
    """

    def __init__(
        self,
        context: SortingContext,
        spokes: int = 0,
        window: int = 0,
        *,
        sliding: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self._context = context
        self._problems = context.problems
        self._spokes = spokes
        self._window = window
        self._sliding = sliding
        self._gate = gate
        # frames that leave, or that no counter numbers, may be any number
        self.most_frames = _COUNTERS if window or spokes else MOST_FRAMES
        self._open: dict[SliceKey, _Buffer] = {}
        self._waiting: dict[SliceKey, _Buffer] = {}  # over, but for the ECG
        self._latest: SliceKey | None = None
        self._in_a_row = 0  # readouts of it
        self.sent: dict[SliceKey, int] = {}
        self.cut_short = False

    def take(
        self, key: SliceKey, readouts: Readouts, line: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice."""
        del line  # which angle it is, the positions say
        yield from self._pass_on(key, len(readouts))
        if key in self.sent:
            self._context.report_late(describe(key), readouts)
            return
        if readouts.trajectory is None:
            text = f"{describe(key)} has readouts on a Cartesian grid in a scan that follows none; they are left out"
            self._problems.add(Kind.TRAJECTORY, text, damage=True, count=len(readouts))
            return
        if key not in self._open:
            self._open[key] = _Buffer(plan, self._context.virtual_coils(plan, readouts.data.shape[1]))
        buffer = self._open[key]
        if self._spokes:
            time = (buffer.count + np.arange(len(readouts))) // self._spokes
        elif self._window:
            time = buffer.numbers(time)
            late = time < buffer.next
            if late.any():
                what = f"frame {int(time[late][0]) % _COUNTERS} of {describe(key)}"
                self._context.report_late(what, readouts[late])
                readouts, time = readouts[~late], time[~late]
            if not len(readouts):
                return
        buffer.parts.append(readouts)
        buffer.frame.append(time)
        buffer.count += len(readouts)
        if buffer.virtual is not None:  # every spoke crosses the centre
            buffer.virtual.take(buffer.parts, np.full(len(readouts), plan.rows // 2))
        if self._window:
            yield from self._windows(key, buffer)

    def _pass_on(self, key: SliceKey, count: int) -> Iterator[CompleteSlice]:
        """The stream goes on with a slice, of which `count` readouts came: those that are over leave."""
        before, self._latest = self._latest, key
        if self._gate is not None:  # no counter says that a slice is over, so that a stray readout of another must not
            self._in_a_row = count + (self._in_a_row if key == before else 0)
            others = [other for other in self._open if other != key] if self._in_a_row > _MOST_STRAY else []
            for other in others:
                yield from self._finish(other, wait=True)
        elif (
            before in self._open and before != key and not self._window and self._open[before].keeps_plan(self._spokes)
        ):
            yield from self._finish(before)

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield the slices that waited for it."""
        if self._gate is None:
            return
        self._gate.add_waveform(waveform)
        for key, buffer in list(self._waiting.items()):
            if not self._needs_more_ecg(buffer):
                yield from self._leave(key, self._waiting.pop(key))

    def _needs_more_ecg(self, buffer: _Buffer) -> bool:
        headers = [part.headers for part in buffer.parts]
        return self._gate is not None and bool(headers) and self._gate.needs_more_ecg(join_headers(headers))

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""
        for key in list(self._waiting):
            yield from self._leave(key, self._waiting.pop(key))
        for key in sorted(self._open):
            yield from self._finish(key)

    def to_come(self, promised: int) -> tuple[int, int]:
        """How many slices have not left, if so many more are promised, and how many of their readouts have not come."""
        slices = max(promised, len(self._open))
        usual = float(np.median([*self.sent.values()])) if self.sent else 0.0
        return slices + len(self._waiting), max(
            0, round(slices * usual) - sum(buffer.count for buffer in self._open.values())
        )

    def _finish(self, key: SliceKey, *, wait: bool = False) -> Iterator[CompleteSlice]:
        buffer = self._open.pop(key)
        self.sent[key] = buffer.count
        if wait and self._needs_more_ecg(buffer):
            self._waiting[key] = buffer
        else:
            yield from self._leave(key, buffer)

    def _leave(self, key: SliceKey, buffer: _Buffer) -> Iterator[CompleteSlice]:
        if self._window:
            yield from self._windows(key, buffer, over=True)
        elif buffer.parts:
            gated = self._gated(key, buffer, self._gate) if self._gate is not None else ()
            for one in gated:
                own = key._replace(repetition=key.repetition + (one.gating.beat or 0))
                yield from self._assembled(own, buffer, one.frame, 0, one)
            if gated:
                return
            if self._gate is None or not self._gate.forced:
                yield from self._assembled(key, buffer, np.concatenate(buffer.frame), 0)

    def _gated(self, key: SliceKey, buffer: _Buffer, gate: Gate) -> tuple[GatedSpokes, ...]:
        """The frames that the gate makes; none, which is reported, where it cannot."""
        parts = [centre_of_spokes(part.data, part.trajectory) for part in buffer.parts if part.trajectory is not None]
        centres, angles = (np.concatenate(some) for some in zip(*parts, strict=True))
        headers = join_headers(part.headers for part in buffer.parts)
        plan = buffer.plan
        # what else numbers the frames numbers moments of a scan that runs through the beats
        promised = len(plan.frames) if plan.limited and plan.time_axis == "phase" else 0
        try:
            return gate_spokes(gate, describe(key), headers, centres, angles, promised)
        except DataError as error:
            left = "There are no images of it" if gate.forced else "The frames are those of the counter"
            self._problems.add(Kind.GATED_SLICE, f"{error}. {left}", damage=False)
            return ()

    def _windows(self, key: SliceKey, buffer: _Buffer, *, over: bool = False) -> Iterator[CompleteSlice]:
        """The windows that are complete."""
        if not buffer.parts:
            return
        latest = buffer.count // self._spokes if self._spokes else int(buffer.frame[-1][-1])
        wanted, size = self._next_window(buffer)
        if latest - buffer.next < wanted and not over:  # as most readouts find it
            return
        frame = np.concatenate(buffer.frame)
        complete = np.unique(frame)
        complete = complete[(complete >= buffer.next) & (over | (complete < latest))]
        while len(complete):
            if len(complete) < wanted and not over:
                return
            new, complete = complete[:wanted], complete[wanted:]
            frame = np.concatenate(buffer.frame)
            known = np.unique(frame[frame <= new[-1]])[-size:]
            inside = np.where(np.isin(frame, known), frame, -1)
            yield from self._assembled(key, buffer, inside, int(np.count_nonzero(known < new[0])))
            buffer.next = int(new[-1]) + 1
            buffer.forget(int(known[-self._window + 1 :][0]) if self._window > 1 else buffer.next)
            wanted, size = self._next_window(buffer)

    def _next_window(self, buffer: _Buffer) -> tuple[int, int]:
        """New frames and all frames of the next window: the first one gives the coil maps that all others have."""
        if not self._sliding:
            return self._window, self._window
        return (1, self._window) if buffer.next else (max(self._window, FEWEST_FRAMES),) * 2

    def _assembled(
        self, key: SliceKey, buffer: _Buffer, frame: NDArray[np.intp], context: int, gated: GatedSpokes | None = None
    ) -> Iterator[CompleteSlice]:
        try:
            made = self._made(key, buffer, frame, context)
            yield made if gated is None else self._as_gated(made, gated)
        except (ResourceError, DataError) as error:  # the other slices may be better
            kind = Kind.MEMORY if isinstance(error, ResourceError) else Kind.TRAJECTORY
            self._problems.add(kind, f"there are no images of {describe(key)}: {error}", damage=True)

    def _made(self, key: SliceKey, buffer: _Buffer, frame: NDArray[np.intp], context: int) -> CompleteSlice:
        """A slice of the readouts with these frames, -1 being none; the first ones only help with the others."""
        compression = None
        if buffer.virtual is not None:
            buffer.virtual.learn(buffer.parts)
            compression = buffer.virtual.matrix
        used = frame >= 0
        frames, place, row, notes = self._places(key, frame[used])
        kept = place >= 0
        place, row = place[kept], row[kept]
        data = np.concatenate([part.data for part in buffer.parts])[used][kept]
        paths = np.concatenate([part.trajectory for part in buffer.parts if part.trajectory is not None])[used][kept]
        headers = join_headers(part.headers for part in buffer.parts)[used][kept]
        if not self._window:
            notes += self._too_few(key, paths)
        lines = np.bincount(place, minlength=len(frames))
        shape = (len(frames), int(lines.max()), data.shape[2])
        columns, rows = self._context.header.encodings[key.encoding].encoded.matrix[:2]
        self._context.check_room(key, shape[0], data.shape[1], *shape[1:])
        self._context.check_pixels(key, shape[0], data.shape[1], rows, columns)
        kspace = np.zeros((shape[0], data.shape[1], *shape[1:]), np.complex64)
        kspace[place, :, row] = data
        path = np.zeros((*shape, paths.shape[2]), np.float32)
        path[place, row] = paths
        mask = np.zeros(shape[:2], np.bool_)
        mask[place, row] = True
        density = np.ascontiguousarray(path[..., 2]) if path.shape[-1] > 2 else None
        trajectory = Trajectory(np.ascontiguousarray(path[..., :2]), (rows, columns), density)
        periodic = buffer.plan.time_axis == "phase" and not self._spokes and not self._window
        of_frames = headers[np.unique(place, return_index=True)[1]][context:]
        if self._spokes:  # no counter numbers them
            of_frames["idx"][buffer.plan.time_axis] = frames[context:] % _COUNTERS
        readouts = headers[:0] if self._window else headers
        return CompleteSlice(
            key,
            CineSlice(
                kspace,
                mask,
                context=context,
                periodic=periodic,
                trajectory=trajectory,
                series=buffer.series if self._window else None,
            ),
            of_frames,
            find_heartbeat(of_frames, readouts, self._context.tick, real_time=not periodic),
            frames[context:] if self._spokes else frames[context:] % _COUNTERS,
            lines[context:],
            tuple(notes),
            compression,
            time_span(place, headers, len(frames))[context:],
        )

    def _places(
        self, key: SliceKey, frame: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], list[str]]:
        """The frames, and the place among them and in its frame of every readout; -1 leaves one out. And notes."""
        counts = np.bincount(frame)
        frames = np.flatnonzero(counts)
        usual = float(np.quantile(counts[frames], 0.5, method="higher"))
        notes = []
        self.cut_short |= self._gate is None and bool(counts[frames[-1]] < _CUT_SHARE * usual)
        if self._spokes and len(frames) > 1 and counts[frames[-1]] < _CUT_SHARE * usual:
            frames = frames[:-1]
        short = counts[frames] < _CUT_SHARE * usual
        if short.any():
            text = f"{describe(key)} lacks spokes in {np.count_nonzero(short)} of {len(frames)} frames; frame "
            text += f"{frames[np.argmax(short)]} has {counts[frames[np.argmax(short)]]}, most have {usual:g}"
            self._problems.add(Kind.MISSING_LINES, text, damage=False)
            notes.append(text)
        order = np.argsort(frame, kind="stable")
        row = np.empty_like(frame)
        row[order] = np.arange(len(frame)) - np.concatenate([[0], np.cumsum(counts)])[frame[order]]
        where = np.full(len(counts), -1)
        where[frames] = np.arange(len(frames))
        return frames, where[frame], row, notes

    def _too_few(self, key: SliceKey, paths: NDArray[np.float32]) -> list[str]:
        """Notes on readouts ``(readout, sample, 2)`` of all frames that leave much of k-space out."""
        columns, rows = self._context.header.encodings[key.encoding].encoded.matrix[:2]
        if len(paths) > max(columns, rows):
            return []
        cells = np.rint(paths[..., :2] * np.array([columns, rows], np.float32)).reshape(-1, 2)
        share = 4 / np.pi * len(np.unique(cells, axis=0)) / (columns * rows)
        if share > _ENOUGH:
            return []
        text = (
            f"{describe(key)} has {len(paths)} readouts, which reach {100 * share:.2g} % of k-space in all frames "
            "together: its images are not to be trusted"
        )
        self._problems.add(Kind.MISSING_LINES, text, damage=False)
        return [text]

    def _as_gated(self, made: CompleteSlice, gated: GatedSpokes) -> CompleteSlice:
        """A slice of which the frames are those of the cycle, not of a counter."""
        headers = gated.headers[made.frames]
        heartbeat = find_heartbeat(headers, headers[:0], self._context.tick)
        return replace(
            made,
            cine=replace(made.cine, periodic=True),
            headers=headers,
            heartbeat=replace(heartbeat, rr=gated.gating.rr),
            notes=(*gated.notes, *made.notes),
            stamps=None,
            gating=gated.gating,
        )
