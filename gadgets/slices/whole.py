"""Whole slices: one buffer per slice, each leaving on its own completion.

A slice is complete when every (frame, line) that the header promises has arrived, or its flags or the order of the
stream say so, or at the end. Nothing is assumed of the order in which slices, frames and lines come; buffers grow with
what arrives. Where a gate makes the frames from the time stamps, a slice is complete when the next one has begun or
the measurement ends: no counter says how long the last beat is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gadgets.gating.gate import MOST_FRAMES
from gadgets.gating.heartbeat import find_heartbeat
from gadgets.problems import Kind
from gadgets.slices.complete import CompleteSlice, describe
from gadgets.slices.shared import LAST, first_name, merge
from gadgets.wire.messages import AcquisitionFlag, join_headers
from recon_core.data import CineSlice
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate, Gated
    from gadgets.slices.complete import SliceKey
    from gadgets.slices.shared import SlicePlan, SortingContext, VirtualCoils
    from gadgets.wire.messages import Readouts, Waveform


_MOST_STRAY = 8  # readouts of another slice that do not end one which is gated
_MOST_WAITING = 4  # slices that wait for their ECG; then the first goes on with what there is
# A counter above the header's limit is believed when this share of the usual number of lines stands behind it.
_BELIEVED_SHARE = 0.25


@dataclass
class _Buffer:
    """What has arrived of one slice."""

    plan: SlicePlan
    virtual: VirtualCoils | None = None
    gate: Gate | None = None
    parts: list[Readouts] = field(default_factory=list)
    frame: list[NDArray[np.intp]] = field(default_factory=list)
    row: list[NDArray[np.intp]] = field(default_factory=list)
    count: int = 0
    came: NDArray[np.bool_] = field(init=False)  # (frame, row, average); further averages count as the last
    flagged: NDArray[np.intp] = field(init=False)  # (frame,): LAST_IN_SLICE so far
    reopened: bool = False  # readouts came after the flag that should have been the last of their frame
    was_left: bool = False  # readouts of another slice came in between
    beyond: int = 0  # readouts of frames above the header's limit
    stamps: set[int] = field(default_factory=set)  # one or two values of the time since the trigger

    def __post_init__(self) -> None:
        self.came = np.zeros((self.plan.frames, self.plan.rows, self.plan.averages), np.bool_)
        self.flagged = np.zeros(self.plan.frames, np.intp)

    def add(self, readouts: Readouts, frame: NDArray[np.intp], row: NDArray[np.intp]) -> None:
        most = int(frame.max()) + 1
        if most > len(self.came):
            more = most - len(self.came)
            self.came = np.concatenate([self.came, np.zeros((more, *self.came.shape[1:]), np.bool_)])
            self.flagged = np.concatenate([self.flagged, np.zeros(more, np.intp)])
        self.came[frame, row, np.minimum(readouts.headers["idx"]["average"], self.plan.averages - 1)] = True
        self.reopened |= bool((self.flagged[frame] >= self.plan.averages).any())
        self.beyond += int(np.count_nonzero(frame >= self.plan.frames))
        if self.gate is not None and len(self.stamps) < 2:
            self.stamps.update(np.unique(readouts.headers["physiology_time_stamp"][:, 0])[:2].tolist())
        last = readouts.flagged(AcquisitionFlag.LAST_IN_SLICE)
        np.add.at(self.flagged, frame[last], 1)
        self.parts.append(readouts)
        self.frame.append(frame)
        self.row.append(row)
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

    def lines(self, *, complete: bool = False) -> NDArray[np.intp]:
        """How many lines each frame has ``(frame,)``; `complete` counts those with all averages only."""
        lines = self.came.all(axis=2) if complete else self.came.any(axis=2)
        return np.asarray(np.count_nonzero(lines, axis=1))

    @property
    def is_full(self) -> bool:
        """Every promised line of every promised frame has come, as often as promised."""
        return (
            not self.gated
            and self.count >= self.plan.fewest_readouts
            and bool(self.came[: self.plan.frames, self.plan.first : self.plan.last + 1].all())
        )

    @property
    def looks_complete(self) -> bool:
        """Every promised frame has at least the lines that the acceleration leaves."""
        if self.gated:
            return int(np.count_nonzero(self.came.any(axis=(0, 2)))) >= self.plan.fewest_lines
        if self.count < self.plan.frames * self.plan.averages * self.plan.fewest_lines:
            return False  # the limits of a header may be large, and to count is slow then
        return bool((self.lines(complete=True)[: self.plan.frames] >= self.plan.fewest_lines).all())

    @property
    def is_flagged_complete(self) -> bool:
        """Decide on a LAST_IN_SLICE flag, which senders set once per slice, per frame, or per segment."""
        if self.reopened or self.gated:
            return False
        enough = self.looks_complete
        if (self.flagged[: self.plan.frames] >= self.plan.averages).all():
            return enough or not self.plan.segmented
        readouts = np.count_nonzero(self.came[: self.plan.frames], axis=(1, 2))
        return enough and bool((readouts == readouts[0]).all())


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
        self.sent: dict[SliceKey, int] = {}
        self._latest: SliceKey | None = None
        self._next: tuple[SliceKey, int] | None = None  # what may follow it, and how many readouts of that have come

    def take(
        self, key: SliceKey, readouts: Readouts, row: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice."""
        if not self._beyond(key):
            yield from self._leave(key, len(readouts))
        if key in self.sent:
            self._context.report_late(describe(key), readouts)
            return
        buffer = self._buffer(key, plan, readouts.data.shape[1])
        flags = readouts.headers["flags"] & LAST
        open_end = buffer.gate is not None and buffer.gate.expected
        if not flags.any() and (open_end or buffer.count + len(readouts) < plan.fewest_readouts):
            buffer.add(readouts, time, row)
            return
        # The slice may end within the run: what it holds must not depend on how the stream was cut into runs.
        for i in range(len(readouts)):
            one = slice(i, i + 1)
            buffer.add(readouts[one], time[one], row[one])
            if flags[i] & AcquisitionFlag.LAST_IN_MEASUREMENT.bit:
                yield from self._finish_complete()
            elif buffer.is_full or (flags[i] and buffer.is_flagged_complete):
                yield from self._finish(key)
            if key not in self._open:
                if i + 1 < len(readouts):
                    rest = slice(i + 1, None)
                    yield from self.take(key, readouts[rest], row[rest], time[rest], plan)
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
        for key in sorted(self._open):
            yield from self._finish(key, wait=False)

    def to_come(self, promised: int) -> tuple[int, int]:
        """How many slices have not left, if so many more are promised, and how many of their readouts have not come."""
        counts = [buffer.count for buffer in self._open.values()]
        slices = max(promised, len(counts))
        usual = float(np.median([*self.sent.values()])) if self.sent else 0.0
        return slices + len(self._waiting), max(0, round(slices * usual) - sum(counts))

    def _leave(self, key: SliceKey, count: int) -> Iterator[CompleteSlice]:
        """With slices one after another, the next slice, of which `count` readouts came, ends the one before."""
        if self._latest is not None and key != self._latest and self._latest in self._open:
            before = self._open[self._latest]
            if before.gated:  # no counter says that it is over, so that a stray readout of another must not
                self._next = (key, count + (self._next[1] if self._next and self._next[0] == key else 0))
                if self._next[1] <= _MOST_STRAY:
                    return
            if not before.was_left and before.looks_complete:
                yield from self._finish(self._latest)
            else:
                before.was_left = True
        self._latest, self._next = key, None

    def _beyond(self, key: SliceKey) -> list[str]:
        """Counters above the limits of the header: a slice that it forgot, or a stray readout."""
        encoding = self._context.header.encodings[key.encoding]
        names = ("repetition", "set", "contrast", "slice")
        return [name for name in names if name in encoding.limits and getattr(key, name) not in encoding.promised(name)]

    def _finish_complete(self) -> Iterator[CompleteSlice]:
        """At the last readout of the measurement: what has all its lines leaves, the rest waits for the end."""
        for key in sorted(self._open):
            if self._open[key].looks_complete:
                yield from self._finish(key)

    def _buffer(self, key: SliceKey, plan: SlicePlan, n_coils: int) -> _Buffer:
        buffer = self._open.get(key)
        if buffer is None:
            gate = self._gate_of(plan)
            if gate is not None and not plan.limited and not gate.expected:
                gate = None
            promised = plan.frames * plan.rows * plan.averages
            with self._context.budget.lent(promised, "the phases, lines and averages of the encoding limits"):
                buffer = _Buffer(plan, self._context.virtual_coils(plan, n_coils), gate)
            self._open[key] = buffer
        return buffer

    def _gate_of(self, plan: SlicePlan) -> Gate | None:
        """The gate, unless repetitions are the frames: those run through the beats."""
        gate = self._gate
        return gate if gate is not None and (plan.time_axis == "phase" or gate.forced) else None

    def _finish(self, key: SliceKey, *, wait: bool = True) -> Iterator[CompleteSlice]:
        buffer = self._open.pop(key)
        typical = float(np.median([*self.sent.values()])) if self.sent else 0.0
        beyond = self._beyond(key)
        if beyond and buffer.count < _BELIEVED_SHARE * typical:
            text = f"{first_name(buffer.parts[0])} has {beyond[0]} {getattr(key, beyond[0])}, above the header's limit"
            text = f"{text}; it is left out"
            self._problems.add(Kind.STRAY_SLICE, text, damage=True, count=buffer.count, of=beyond[0])
            return
        self.sent[key] = buffer.count
        if wait and buffer.needs_more_ecg:
            self._waiting[key] = buffer
            if len(self._waiting) > _MOST_WAITING:
                first = next(iter(self._waiting))
                yield from self._assemble(first, self._waiting.pop(first))
        else:
            yield from self._assemble(key, buffer)

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
        frame, row = np.concatenate(buffer.frame), np.concatenate(buffer.row)
        data = np.concatenate([part.data for part in buffer.parts])
        headers = join_headers(part.headers for part in buffer.parts)
        buffer.parts.clear()
        try:
            gated = self._gated(key, plan, headers, frame, row, data)
            if gated:
                yield from (self._from_gate(key, one, plan, compression) for one in gated)
                return
            frames = self._frames(key, buffer, headers, frame)
        except DataError as error:
            frames = self._only_complete(buffer, str(error))
        if not len(frames):
            return
        self._context.check_room(key, len(frames), data.shape[1], plan.rows, data.shape[2])
        place = np.full(len(buffer.came), -1)
        place[frames] = np.arange(len(frames))
        kspace, measured, of_frames = merge(place[frame], row, data, headers, (len(frames), plan.rows))
        lines = np.count_nonzero(measured, axis=1)
        periodic = plan.time_axis == "phase"
        heartbeat = find_heartbeat(of_frames, headers, self._context.tick, real_time=not periodic)
        yield CompleteSlice(
            key,
            CineSlice(
                kspace,
                measured > 0,
                self._context.reference.kspace(key, plan.rows, compression),
                periodic=periodic,
                noise_share=float(np.mean(1.0 / measured[measured > 0])),
            ),
            of_frames,
            heartbeat,
            frames,
            lines,
            tuple(self._missing(key, frames, lines, plan.frames, plan, ended=bool(buffer.flagged[frames[-1]]))),
            compression,
        )

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
        promised = plan.frames if plan.limited else 0
        return gate(describe(key), headers, frame, row, data, (promised, plan.rows))

    def _from_gate(
        self, key: SliceKey, gated: Gated, plan: SlicePlan, compression: NDArray[np.complex64] | None
    ) -> CompleteSlice:
        lines = np.count_nonzero(gated.mask, axis=1)
        frames = np.flatnonzero(lines)
        headers = gated.headers[frames]
        missing = self._missing(key, frames, lines[frames], len(lines), plan)
        return CompleteSlice(
            key._replace(repetition=key.repetition + (gated.gating.beat or 0)),
            CineSlice(
                gated.kspace[frames],
                gated.mask[frames],
                self._context.reference.kspace(key, plan.rows, compression),
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

    def _only_complete(self, buffer: _Buffer, why: str) -> NDArray[np.intp]:
        """The counter's frames that have all lines, where the gate that should have made others could not."""
        lines = buffer.lines()
        complete = np.flatnonzero(lines >= buffer.plan.fewest_lines)
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
    ) -> NDArray[np.intp]:
        """The counter values that become frames: all with lines, above the header's limit only with enough of them."""
        lines = buffer.lines()
        keep = lines > 0
        planned = lines[: buffer.plan.frames][keep[: buffer.plan.frames]]
        typical = float(np.median(planned)) if len(planned) else 0.0
        stray = keep & (np.arange(len(lines)) >= buffer.plan.frames) & (lines < _BELIEVED_SHARE * typical)
        if stray.any():
            first = headers[np.flatnonzero(stray[frame])[0]]
            text = (
                f"readout {first['scan_counter']} has frame {np.flatnonzero(stray)[0]} of {describe(key)}, the header "
                f"ends at {buffer.plan.frames - 1}; it is left out"
            )
            self._problems.add(Kind.STRAY_FRAME, text, damage=True, count=int(np.count_nonzero(stray[frame])))
        return np.flatnonzero(keep & ~stray)

    def _missing(
        self,
        key: SliceKey,
        frames: NDArray[np.intp],
        lines: NDArray[np.intp],
        promised: int,
        plan: SlicePlan,
        *,
        ended: bool = False,
    ) -> Iterator[str]:
        """Note and name what was promised and did not come; `lines` is how many each of the frames has.

        The protocol may promise more frames than are measured: where whole ones came and the last `ended` by its flag,
        nothing is lost.
        """
        short = lines < plan.fewest_lines
        absent = sorted(set(range(promised)) - set(frames.tolist()))
        if absent and ended and not short.any() and absent[0] > frames[-1]:
            text = f"{describe(key)} has {len(frames)} frames, the header has room for {promised}"
            self._problems.add(Kind.FEWER_FRAMES, text, damage=False)
        elif absent:
            text = f"{describe(key)} has no readouts in {len(absent)} of {promised} frames (first: {absent[0]})"
            self._problems.add(Kind.ABSENT_FRAMES, f"{text}; no images are made for them", damage=True)
            yield text
        if short.any():
            first = int(np.argmax(short))
            text = (
                f"{describe(key)} lacks lines in {np.count_nonzero(short)} of {len(frames)} frames; frame "
                f"{frames[first]} has {lines[first]}, expected at least {plan.fewest_lines}"
            )
            self._problems.add(Kind.MISSING_LINES, text, damage=False)
            yield text
