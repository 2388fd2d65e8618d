"""Whole slices: one buffer per slice, each leaving on its own completion.

What the header promises is a plan. A slice leaves before the end of the scan when the plan is kept and the stream goes
on without it; a plan that the stream exceeds, or that is none, ends nothing. Nothing is assumed of the order in which
slices, frames and lines come; buffers grow with what arrives. Where a gate makes the frames from the time stamps, a
slice is complete when the next one has begun or the measurement ends: no counter says how long the last beat is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gadgets.gating.gate import MOST_FRAMES
from gadgets.gating.heartbeat import find_heartbeat
from gadgets.problems import Kind
from gadgets.slices.complete import CompleteSlice, describe
from gadgets.slices.shared import BELIEVED_SHARE, LAST, first_name, merge
from gadgets.wire.messages import AcquisitionFlag, Readouts, flag_mask, join_headers
from recon_core.data import CineSlice
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate, Gated
    from gadgets.slices.complete import SliceKey
    from gadgets.slices.shared import SlicePlan, SortingContext, VirtualCoils
    from gadgets.wire.messages import Waveform


_MOST_STRAY = 8  # readouts of another slice that do not end one which is gated
_MOST_WAITING = 4  # slices that wait for their ECG; then the first goes on with what there is
_CUT_SHARE = 0.75  # of the usual lines: a last frame with fewer was cut short
_CALIBRATION = flag_mask(AcquisitionFlag.CALIBRATION_AND_IMAGING, AcquisitionFlag.PARALLEL_CALIBRATION)
_FEWEST_COUNTED = 8  # fewer lines in a row say nothing


@dataclass
class _Buffer:
    """What has arrived of one slice."""

    plan: SlicePlan
    virtual: VirtualCoils | None = None
    gate: Gate | None = None
    further: bool = False
    """The slice has left before; these are frames that came afterwards."""
    parts: list[Readouts] = field(default_factory=list)
    frame: list[NDArray[np.intp]] = field(default_factory=list)
    line: list[NDArray[np.intp]] = field(default_factory=list)
    count: int = 0
    came: NDArray[np.bool_] = field(init=False)  # (frame, row, average); further averages count as the last
    flagged: NDArray[np.intp] = field(init=False)  # (frame,): LAST_IN_SLICE so far
    reopened: bool = False  # readouts came after the flag that should have been the last of their frame
    visits: int = 0  # how often the stream came to it from another slice
    left_at: int = 0  # visits of all slices when the stream last went on without it
    longest_gap: int = 0  # visits of others in between
    beyond: int = 0  # readouts of frames above the header's limit
    phases: set[int] = field(default_factory=set)  # one or two, where another counter should number the frames
    stamps: set[int] = field(default_factory=set)  # one or two values of the time since the trigger

    def __post_init__(self) -> None:
        self.came = np.zeros((0, self.plan.rows, self.plan.averages), np.bool_)
        self.flagged = np.zeros(0, np.intp)

    def room_for(self, frames: int) -> int:
        """Bytes that places for so many frames take, if there are none yet."""
        return frames * self.plan.rows * self.plan.averages if frames > len(self.came) else 0

    def add(self, readouts: Readouts, frame: NDArray[np.intp], line: NDArray[np.intp]) -> None:
        """Add readouts; the last may carry a flag."""
        plan = self.plan
        most = int(frame.max()) + 1
        if most > len(self.came):
            more = min(max(most, len(self.came) + len(self.came) // 2), MOST_FRAMES) - len(self.came)
            self.came = np.concatenate([self.came, np.zeros((more, *self.came.shape[1:]), np.bool_)])
            self.flagged = np.concatenate([self.flagged, np.zeros(more, np.intp)])
        average = readouts.headers["idx"]["average"].astype(np.intp) - plan.first_average
        row = line + plan.offset
        inside = (row >= 0) & (row < plan.rows)
        self.came[frame[inside], row[inside], average[inside].clip(0, plan.averages - 1)] = True
        self.reopened |= bool((self.flagged[frame] >= plan.averages).any())
        np.add.at(self.flagged, frame[readouts.flagged(AcquisitionFlag.LAST_IN_SLICE)], 1)
        self.beyond += int(np.count_nonzero(frame >= plan.frames.stop))
        if self.gate is not None and len(self.stamps) < 2:
            self.stamps.update(np.unique(readouts.headers["physiology_time_stamp"][:, 0])[:2].tolist())
        if plan.axis_is_open and plan.time_axis != "phase" and len(self.phases) < 2:
            self.phases.update(np.unique(readouts.headers["idx"]["phase"])[:2].tolist())
        self.parts.append(readouts)
        self.frame.append(frame)
        self.line.append(line)
        self.count += len(readouts)
        if self.virtual is not None:
            self.virtual.take(self.parts, row)

    @property
    def needs_more_ecg(self) -> bool:
        """The gate needs more of the ECG than has come."""
        if self.gate is None or not self.gate.expected:
            return False
        return self.gate.needs_more_ecg(join_headers(part.headers for part in self.parts))

    @property
    def gated(self) -> bool:
        """Time stamps make the frames, which no counter promises."""
        if self.gate is None:
            return False
        runs_on = len(self.stamps) > 1 and self.gate.runs_on(self.beyond, self.count)
        return self.gate.expected or runs_on

    @property
    def keeps_plan(self) -> bool:
        """Every promised frame, and no other, has at least the lines that the acceleration leaves, in every average.

        A plan of one frame, or of none, is no plan: many senders write that whatever comes.
        """
        plan = self.plan
        if self.gated:
            return int(np.count_nonzero(self.came.any(axis=(0, 2)))) >= plan.fewest_lines
        frames = len(plan.frames)
        is_plan = plan.limited and plan.averages_limited and frames > 1 and len(self.phases) < 2
        enough = self.count >= frames * plan.fewest_lines * plan.averages and len(self.came) >= plan.frames.stop
        if self.further or not is_plan or not enough:
            return False
        lines = np.count_nonzero(self.came.all(axis=2), axis=1)
        planned = np.zeros(len(lines), np.bool_)
        planned[plan.frames] = True
        if lines[planned].min() < plan.fewest_lines:
            return False
        center = slice(max(0, plan.rows // 2 - plan.acceleration), plan.rows // 2 + plan.acceleration + 1)
        others = np.count_nonzero(self.came[~planned].any(axis=2), axis=1)
        strange = others >= BELIEVED_SHARE * np.median(lines[planned])
        return bool(self.came[:, center].any()) and not strange.any()

    @property
    def is_even(self) -> bool:
        """All promised frames have as many lines, so that none of them is in the middle of a segment."""
        lines = np.count_nonzero(self.came[self.plan.frames.start : self.plan.frames.stop], axis=(1, 2))
        return bool((lines == lines[0]).all())

    @property
    def is_flagged_complete(self) -> bool:
        """A LAST_IN_SLICE flag is that of the slice, or of slices that take turns that of the last frame."""
        if self.gated or not self.keeps_plan:
            return False
        if self.flagged.sum() == 1:
            return self.is_even
        planned = self.flagged[self.plan.frames.start : self.plan.frames.stop]
        return self.visits > 1 and not self.reopened and bool((planned == self.plan.averages).all())

    @property
    def is_full(self) -> bool:
        """No line of the matrix is left in any promised frame."""
        return not self.gated and bool(self.came[self.plan.frames.start : self.plan.frames.stop].all())


class WholeSlices:
    """Keeps the readouts of every slice until it is complete.

    Parameters
    ----------
    context
        What is known of the scan.
    gate
        Makes frames from time stamps where the counter cannot; None takes the counter.
    """

    most_frames: ClassVar[int] = MOST_FRAMES

    def __init__(self, context: SortingContext, gate: Gate | None) -> None:
        self._context = context
        self._problems = context.problems
        self._gate = gate
        self._open: dict[SliceKey, _Buffer] = {}
        self._waiting: dict[SliceKey, _Buffer] = {}  # complete, but for the ECG
        self._left: dict[SliceKey, set[int] | None] = {}  # frames of those that have left; None for all there may be
        self._together: set[SliceKey] = set()  # of those: with all repetitions, as they number the frames
        self._due: set[SliceKey] = set()  # left by the stream with all that is promised
        self._visits = 0  # of all slices
        self.sent: dict[SliceKey, int] = {}
        self.cut_short = False
        self._usual_lines = 0.0
        self._ended = False  # the last readout of the measurement came
        self._goes_on = False  # and others after it
        self._latest: SliceKey | None = None
        self._next: tuple[SliceKey, int] | None = None  # what may follow it, and how many readouts of that have come

    def take(
        self, key: SliceKey, readouts: Readouts, line: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice."""
        if not self._beyond(key):
            yield from self._pass_on(key, len(readouts))
        late = self._late(key, time)
        if late.any():
            self._context.report_late(describe(key), readouts[late])
            readouts, line, time = readouts[~late], line[~late], time[~late]
        ends = np.flatnonzero(readouts.headers["flags"] & LAST) + 1
        for begin, end in itertools.pairwise(np.unique([0, *ends, len(readouts)]).tolist()):
            # The slice may end within the run: what it holds must not depend on how the stream was cut into runs.
            part = slice(begin, end)
            self._goes_on |= self._ended
            buffer = self._buffer(key, plan, readouts.data.shape[1])
            if key == self._latest:
                buffer.visits = max(1, buffer.visits)
            room = buffer.room_for(int(time[part].max()) + 1)
            with self._context.budget.lent(room, "the places of frames, lines and averages"):
                buffer.add(readouts[part], time[part], line[part])
            flags = int(readouts.headers["flags"][end - 1])
            if flags & int(AcquisitionFlag.LAST_IN_MEASUREMENT.bit):
                yield from self._end_measurement(key)
            elif flags & int(LAST) and buffer.is_flagged_complete:
                yield from self._finish(key)
            if key not in self._open and end < len(readouts):
                rest = slice(end, None)
                yield from self.take(key, readouts[rest], line[rest], time[rest], plan)
                return

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield the slices that waited for it."""
        if self._gate is None:
            return
        self._gate.add_waveform(waveform)
        for key, buffer in list(self._waiting.items()):
            if not buffer.needs_more_ecg:
                yield from self._assemble(key, self._waiting.pop(key))

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""
        for key in list(self._waiting):
            yield from self._assemble(key, self._waiting.pop(key))
        self._join_repetitions()
        for key in sorted(self._open):
            yield from self._finish(key, wait=False)

    def to_come(self, promised: int) -> tuple[int, int]:
        """How many slices have not left, if so many more are promised, and how many of their readouts have not come."""
        counts = [buffer.count for buffer in self._open.values()]
        slices = max(promised, len(counts))
        usual = float(np.median([*self.sent.values()])) if self.sent else 0.0
        return slices + len(self._waiting), max(0, round(slices * usual) - sum(counts))

    def _late(self, key: SliceKey, time: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which readouts are of frames that have left, whose images cannot be changed any more."""
        if key not in self._left:
            return np.zeros(len(time), np.bool_)
        left = self._left[key]
        return np.ones(len(time), np.bool_) if left is None else np.isin(time, list(left))

    def _pass_on(self, key: SliceKey, count: int) -> Iterator[CompleteSlice]:
        """The stream goes on with a slice, of which `count` readouts came: what it has finished leaves."""
        before = self._open.get(self._latest) if self._latest is not None else None
        if self._latest == key:
            self._next = None
            return
        if before is not None and self._latest is not None:
            if before.gated:  # no counter says that it is over, so that a stray readout of another must not
                self._next = (key, count + (self._next[1] if self._next and self._next[0] == key else 0))
                if self._next[1] <= _MOST_STRAY:
                    return
            if before.keeps_plan:
                if before.visits <= 1 or before.is_full:
                    yield from self._finish(self._latest)
                else:
                    self._due.add(self._latest)
            before.left_at = self._visits
        self._visits += 1
        self._due.discard(key)
        for other in sorted(self._due):
            one = self._open[other]
            if self._visits - one.left_at > 2 * one.longest_gap:  # its turn would have been before
                yield from self._finish(other)
        self._latest, self._next = key, None
        if key in self._open:
            one = self._open[key]
            one.visits += 1
            one.longest_gap = max(one.longest_gap, self._visits - one.left_at)

    def _beyond(self, key: SliceKey) -> list[str]:
        """Counters above the limits of the header: a slice that it forgot, or a stray readout."""
        encoding = self._context.header.encodings[key.encoding]
        names = ("repetition", "set", "contrast", "slice")
        return [name for name in names if name in encoding.limits and getattr(key, name) not in encoding.promised(name)]

    def _end_measurement(self, key: SliceKey) -> Iterator[CompleteSlice]:
        """At the last readout of the measurement its slice leaves if it keeps the plan; the end of the scan follows.

        Not where an earlier readout was said to be the last: some senders flag every slice or repetition.
        """
        self._ended = True
        buffer = self._open[key]
        if not self._goes_on and buffer.keeps_plan and (buffer.gated or buffer.is_even):
            yield from self._finish(key)

    def _buffer(self, key: SliceKey, plan: SlicePlan, n_coils: int) -> _Buffer:
        buffer = self._open.get(key)
        if buffer is None:
            virtual = self._context.virtual_coils(plan, n_coils)
            self._open[key] = buffer = _Buffer(plan, virtual, self._gate_of(plan), key in self._left)
        return buffer

    def _gate_of(self, plan: SlicePlan) -> Gate | None:
        """The gate, unless repetitions are the frames, which run through the beats, or nothing promises frames."""
        gate = self._gate
        if gate is None or not (plan.limited or gate.expected):
            return None
        return gate if plan.time_axis == "phase" or gate.forced else None

    def _finish(self, key: SliceKey, *, wait: bool = True) -> Iterator[CompleteSlice]:
        buffer = self._open.pop(key)
        self._due.discard(key)
        left = self._left.get(key, set())
        gated = buffer.gated or left is None
        self._left[key] = None if gated or left is None else left | set(np.concatenate(buffer.frame).tolist())
        series = [(key, buffer)] if key in self._together else _by_counters(key, buffer)
        if series[0][1] is buffer:
            self._together.add(key)
        usual = float(np.median([*self.sent.values(), *(one.count for _, one in series)]))
        for own, one in series:
            beyond = self._beyond(own)
            if beyond and one.count < BELIEVED_SHARE * usual:
                text = f"{first_name(one.parts[0])} has {beyond[0]} {getattr(own, beyond[0])}, above the header's limit"
                text = f"{text}; it is left out"
                self._problems.add(Kind.STRAY_SLICE, text, damage=True, count=one.count, of=beyond[0])
                continue
            self.sent[own] = self.sent.get(own, 0) + one.count
            if wait and one.needs_more_ecg:
                self._waiting[own] = one
                if len(self._waiting) > _MOST_WAITING:
                    first = next(iter(self._waiting))
                    yield from self._assemble(first, self._waiting.pop(first))
            else:
                yield from self._assemble(own, one)

    def _join_repetitions(self) -> None:
        """Where the phases of an encoding never ran, and nothing of it has left, the repetitions are the frames."""
        gone = {key.encoding for key in self.sent}
        for encoding in {key.encoding for key in self._open} - gone:
            own = {key: self._open.pop(key) for key in sorted(self._open) if key.encoding == encoding}
            self._open |= _joined(own)

    def _assemble(self, key: SliceKey, buffer: _Buffer) -> Iterator[CompleteSlice]:
        try:
            yield from self._assembled(key, buffer)
        except ResourceError as error:  # the other slices may have room
            self._problems.add(Kind.MEMORY, f"there are no images of {describe(key)}: {error}", damage=True)

    def _assembled(self, key: SliceKey, buffer: _Buffer) -> Iterator[CompleteSlice]:
        plan = buffer.plan
        compression = None
        if buffer.virtual is not None:
            buffer.virtual.learn(buffer.parts)
            compression = buffer.virtual.matrix
        frame, line = np.concatenate(buffer.frame), np.concatenate(buffer.line)
        data = np.concatenate([part.data for part in buffer.parts])
        headers = join_headers(part.headers for part in buffer.parts)
        buffer.parts.clear()
        shift = self._shift(key, plan, line, frame)
        row = line + plan.offset + shift
        inside = self._context.inside(headers, line, row, plan)
        if not inside.any():
            return
        if not inside.all():
            frame, row, data, headers = frame[inside], row[inside], data[inside], headers[inside]
        if not (headers["flags"] & _CALIBRATION).any():  # reference lines lie next to each other
            self._say_counted(key, np.unique(row), plan)
        reference = self._context.reference.kspace(key, plan, compression, shift)
        try:
            gated = self._gated(key, plan, headers, frame, row, data)
            if gated:
                yield from (self._from_gate(key, one, plan, compression, reference) for one in gated)
                return
            frames = self._frames(key, buffer, headers, frame, row)
        except DataError as error:
            frames = self._only_complete(plan, str(error), frame, row)
        if len(frames):
            self._context.check_room(key, len(frames), data.shape[1], plan.rows, data.shape[2])
            parts = frame, row, data, headers
            yield self._from_counter(key, buffer, parts, frames, compression, reference)

    def _from_counter(
        self,
        key: SliceKey,
        buffer: _Buffer,
        parts: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.complex64], NDArray[np.void]],
        frames: NDArray[np.intp],
        compression: NDArray[np.complex64] | None,
        reference: NDArray[np.complex64] | None,
    ) -> CompleteSlice:
        """The frames of a counter; `parts` are frames, rows, data and headers of the readouts."""
        plan = buffer.plan
        frame, row, data, headers = parts
        place = np.full(int(frame.max()) + 1, -1)
        place[frames] = np.arange(len(frames))
        kspace, measured, of_frames, stamps = merge(place[frame], row, data, headers, (len(frames), plan.rows))
        lines = np.count_nonzero(measured, axis=1)
        periodic = plan.time_axis == "phase"
        further = buffer.further
        notes = self._further(key, frames) if further else self._missing(key, frames, lines, plan.frames, plan)
        return CompleteSlice(
            key,
            CineSlice(
                kspace,
                measured > 0,
                reference,
                periodic=periodic,
                noise_share=float(np.mean(1.0 / measured[measured > 0])),
            ),
            of_frames,
            find_heartbeat(of_frames, headers, self._context.tick, real_time=not periodic),
            frames,
            lines,
            tuple(notes),
            compression,
            stamps,
        )

    def _shift(self, key: SliceKey, plan: SlicePlan, line: NDArray[np.intp], frame: NDArray[np.intp]) -> int:
        """How far the lines of a slice must be moved to fit into the matrix."""
        shift = plan.shift(line, frame)
        if shift:
            text = f"the lines of {describe(key)} do not fit into the matrix around the k-space centre of the header; "
            text += f"line {plan.rows // 2 - plan.offset - shift} is taken for the centre, center_line says otherwise"
            self._problems.add(Kind.CENTER_LINE, text, damage=False, pixels=True)
        return shift

    def _say_counted(self, key: SliceKey, rows: NDArray[np.intp], plan: SlicePlan) -> None:
        """Doubt lines that some senders count one after the other although an acceleration leaves gaps between them.

        Where they lie cannot be known then.
        """
        first, last, most = int(rows[0]), int(rows[-1]), -(-plan.rows // plan.acceleration) + 1
        if plan.acceleration > 1 and last - first + 1 == len(rows) and _FEWEST_COUNTED <= len(rows) <= most:
            text = f"{describe(key)} has {len(rows)} of {plan.rows} lines, all next to each other, and the header says"
            text += f" acceleration {plan.acceleration}: if the sender counts measured lines instead of their places,"
            text += " the images are wrong"
            self._problems.add(Kind.COUNTED_LINES, text, damage=False, pixels=True)

    def _gated(
        self,
        key: SliceKey,
        plan: SlicePlan,
        headers: NDArray[np.void],
        frame: NDArray[np.intp],
        row: NDArray[np.intp],
        data: NDArray[np.complex64],
    ) -> tuple[Gated, ...]:
        gate = self._gate_of(plan)
        if gate is None:
            return ()
        promised = plan.frames if plan.limited else range(0)
        return gate(describe(key), headers, frame, row, data, promised, plan.rows)

    def _from_gate(
        self,
        key: SliceKey,
        gated: Gated,
        plan: SlicePlan,
        compression: NDArray[np.complex64] | None,
        reference: NDArray[np.complex64] | None,
    ) -> CompleteSlice:
        lines = np.count_nonzero(gated.mask, axis=1)
        frames = np.flatnonzero(lines)
        headers = gated.headers[frames]
        missing = self._missing(key, frames, lines[frames], range(len(lines)), plan)
        return CompleteSlice(
            key._replace(repetition=key.repetition + (gated.gating.beat or 0)),
            CineSlice(
                gated.kspace[frames],
                gated.mask[frames],
                reference,
                noise_share=None,
            ),
            headers,
            replace(find_heartbeat(headers, headers[:0], self._context.tick), rr=gated.gating.rr),
            frames,
            lines[frames],
            (*gated.notes, *missing),
            compression,
            gating=gated.gating,
        )

    def _only_complete(
        self, plan: SlicePlan, why: str, frame: NDArray[np.intp], row: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """The counter's frames that have all lines, where the gate that should have made others could not."""
        lines = _lines_of_frames(frame, row)
        complete = np.flatnonzero(lines >= plan.fewest_lines)
        if self._gate is not None and self._gate.forced:
            complete = complete[:0]
        lost = np.count_nonzero(lines) - len(complete)
        text = f"{why}. {len(complete)} frames of the counter are shown, {lost} without all their lines are not"
        self._problems.add(
            Kind.GATED_SLICE, text if len(complete) else f"{why}. There are no images of it", damage=bool(lost)
        )
        return complete

    def _frames(
        self,
        key: SliceKey,
        buffer: _Buffer,
        headers: NDArray[np.void],
        frame: NDArray[np.intp],
        row: NDArray[np.intp],
    ) -> NDArray[np.intp]:
        """The counter values that become frames: all with lines, beyond the header's limit only with enough of them."""
        plan, lines = buffer.plan, _lines_of_frames(frame, row)
        came = np.flatnonzero(lines)
        planned = came[np.isin(came, plan.frames)] if plan.limited else came
        typical = float(np.median(lines[planned if len(planned) else came]))
        stray = came[~np.isin(came, planned) & (lines[came] < BELIEVED_SHARE * typical)]
        if len(stray):
            which = np.isin(frame, stray)
            first = headers[np.argmax(which)]
            text = (
                f"readout {first['scan_counter']} has frame {stray[0]} of {describe(key)}, the header "
                f"ends at {plan.frames.stop - 1}; it is left out"
            )
            self._problems.add(Kind.STRAY_FRAME, text, damage=True, count=int(np.count_nonzero(which)))
        return came[~np.isin(came, stray)]

    def _further(self, key: SliceKey, frames: NDArray[np.intp]) -> Iterator[str]:
        """Note and name frames that came after all that the header promises."""
        text = (
            f"{describe(key)} went on with {len(frames)} frames, from {frames[0]}, after all that the header promises"
        )
        text = f"{text} had come; they are reconstructed by themselves"
        self._problems.add(Kind.FURTHER_FRAMES, text, damage=False)
        yield text

    def _missing(
        self, key: SliceKey, frames: NDArray[np.intp], lines: NDArray[np.intp], promised: range, plan: SlicePlan
    ) -> Iterator[str]:
        """Note and name what was promised and did not come; `lines` is how many each of the frames has.

        The protocol may promise more frames than are measured: where whole ones came without a gap nothing is lost.
        """
        usual = float(np.quantile(lines, 0.5, method="higher"))
        self._usual_lines = max(usual, self._usual_lines)
        cut = lines[-1] < _CUT_SHARE * usual or usual < _CUT_SHARE * self._usual_lines
        self.cut_short |= bool(cut)
        absent = sorted(set(promised) - set(frames.tolist()))
        gaps = any(frames[0] < number < frames[-1] for number in absent)
        if absent and not cut and not gaps:
            text = f"{describe(key)} has {len(frames)} frames, the header has room for {len(promised)}"
            self._problems.add(Kind.FEWER_FRAMES, text, damage=False)
        elif absent:
            text = f"{describe(key)} has no readouts in {len(absent)} of {len(promised)} frames (first: {absent[0]})"
            self._problems.add(Kind.ABSENT_FRAMES, f"{text}; no images are made for them", damage=True)
            yield text
        short = lines < plan.fewest_lines
        if short.any():
            first = int(np.argmax(short))
            text = (
                f"{describe(key)} lacks lines in {np.count_nonzero(short)} of {len(frames)} frames; frame "
                f"{frames[first]} has {lines[first]}, expected at least {plan.fewest_lines}"
            )
            self._problems.add(Kind.MISSING_LINES, text, damage=False)
            yield text


def _lines_of_frames(frame: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many lines each frame has ``(frame,)``."""
    places = np.unique(np.stack([frame, row], axis=1), axis=0)[:, 0]
    return np.bincount(places)


def _run(values: NDArray[np.integer[Any]]) -> bool:
    """Whether a counter takes several values, each for more than a stray readout."""
    counts = np.unique(values, return_counts=True)[1]
    return int(np.count_nonzero(counts >= BELIEVED_SHARE * np.median(counts))) > 1


def _by_counters(key: SliceKey, buffer: _Buffer) -> list[tuple[SliceKey, _Buffer]]:
    """A slice whose repetitions were kept together, as the stream shows what they are: frames, or series of phases."""
    if not buffer.plan.axis_is_open or buffer.plan.time_axis != "repetition":
        return [(key, buffer)]
    counters = join_headers(part.headers for part in buffer.parts)["idx"]
    frames_run = not _run(counters["phase"]) and _run(counters["repetition"])
    if frames_run or int(counters["phase"].max(initial=0)) >= MOST_FRAMES:  # which number no frames
        return [(key, buffer)]
    if buffer.virtual is not None:
        buffer.virtual.learn(buffer.parts)
    plan = buffer.plan.by("phase")
    series: dict[int, _Buffer] = {}
    for readouts, line in zip(buffer.parts, buffer.line, strict=True):
        repetition = readouts.headers["idx"]["repetition"].astype(np.intp)
        for number in np.unique(repetition).tolist():
            which = np.asarray(repetition == number)
            one = series.setdefault(number, _Buffer(plan, further=buffer.further))
            own = readouts if which.all() else readouts[which]
            one.add(own, own.headers["idx"]["phase"].astype(np.intp), line[which])
    buffer.parts.clear()  # their memory
    for one in series.values():
        one.virtual = buffer.virtual
    return [(key._replace(repetition=number), one) for number, one in sorted(series.items())]


def _joined(buffers: dict[SliceKey, _Buffer]) -> dict[SliceKey, _Buffer]:
    """Slices of one encoding at the end of the scan; where the phases never ran, repetitions are their frames."""
    repetitions = {key.repetition for key in buffers}
    one = next(iter(buffers.values()))
    still = not any(_run(np.concatenate(buffer.frame)) for buffer in buffers.values())
    numbers_frames = len(repetitions) > 1 and max(repetitions) < MOST_FRAMES
    if not one.plan.axis_is_open or one.plan.time_axis != "phase" or one.gated or not numbers_frames or not still:
        return buffers
    plan = one.plan.by("repetition")
    joined: dict[SliceKey, _Buffer] = {}
    for key, buffer in sorted(buffers.items()):
        whole = joined.setdefault(key._replace(repetition=0), _Buffer(plan))
        back = None if buffer.virtual is None or buffer.virtual.matrix is None else buffer.virtual.matrix.conj().T
        for readouts, line in zip(buffer.parts, buffer.line, strict=True):
            own = readouts if back is None else Readouts(readouts.headers, np.matmul(back, readouts.data))
            whole.add(own, np.full(len(own), key.repetition), line)
        buffer.parts.clear()  # their memory
    return joined
