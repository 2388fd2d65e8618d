"""Prepared readouts in, complete slices out: one buffer per slice, each leaving on its own completion.

A slice is complete when every (frame, line) that the header promises has arrived, or its flags or the order of the
stream say so, or at the end. Nothing is assumed of the order in which slices, frames and lines come. What the header
says of counters is a plan, not a promise: buffers grow with what arrives. Where a gate makes the frames from the time
stamps, a slice is complete when the next one has begun or the measurement ends: no counter says how long the last
beat is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gadgets.gating.gate import MOST_FRAMES
from gadgets.gating.heartbeat import find_heartbeat
from gadgets.slices.complete import CompleteSlice, SliceKey, describe
from gadgets.wire.messages import AcquisitionFlag, Readouts, flag_mask
from gadgets.wire.vendor import center_line, tick_length
from recon_core.coils.compression import CoilCompression
from recon_core.data import CineSlice
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate, Gated
    from gadgets.problems import Problems
    from gadgets.settings.settings import Settings
    from gadgets.wire.header import Encoding, ScanHeader
    from gadgets.wire.messages import Waveform


_LAST = flag_mask(AcquisitionFlag.LAST_IN_SLICE, AcquisitionFlag.LAST_IN_MEASUREMENT)
_MOST_AVERAGES = 64
_MOST_STRAY = 8  # readouts of another slice that do not end one which is gated
_MOST_WAITING = 4  # slices that wait for their ECG; then the first goes on with what there is
# A counter above the header's limit is believed when this share of the usual number of lines stands behind it.
_BELIEVED_SHARE = 0.25


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
    """

    def __init__(self, coils: int, energy: float, center: int, fewest: int) -> None:
        self._coils = coils or None
        self._energy = energy
        self._center = center
        self._fewest = fewest
        self._count = 0
        self._center_at: int | None = None
        self.matrix: NDArray[np.complex64] | None = None

    def take(self, parts: list[Readouts], row: NDArray[np.intp]) -> None:
        """See to the last of the parts, whose lines are `row`; all of them change when the coils are learned."""
        if self.matrix is not None:
            parts[-1] = _compressed(parts[-1], self.matrix)
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
        parts[:] = [_compressed(part, matrix) for part in parts]


def _compressed(readouts: Readouts, matrix: NDArray[np.complex64]) -> Readouts:
    return Readouts(readouts.headers, np.matmul(matrix, readouts.data))


@dataclass
class _Buffer:
    """What has arrived of one slice."""

    frames_expected: int
    rows: int
    averages: int
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
        self.came = np.zeros((self.frames_expected, self.rows, self.averages), np.bool_)
        self.flagged = np.zeros(self.frames_expected, np.intp)

    def add(self, readouts: Readouts, frame: NDArray[np.intp], row: NDArray[np.intp]) -> None:
        most = int(frame.max()) + 1
        if most > len(self.came):
            more = most - len(self.came)
            self.came = np.concatenate([self.came, np.zeros((more, *self.came.shape[1:]), np.bool_)])
            self.flagged = np.concatenate([self.flagged, np.zeros(more, np.intp)])
        self.came[frame, row, np.minimum(readouts.headers["idx"]["average"], self.averages - 1)] = True
        self.reopened |= bool((self.flagged[frame] >= self.averages).any())
        self.beyond += int(np.count_nonzero(frame >= self.frames_expected))
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
        return self.gate.needs_more_ecg(np.concatenate([part.headers for part in self.parts]))

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


class SlicePlan:
    """What the header promises of every slice of one encoding."""

    def __init__(self, encoding: Encoding, time_axis: str, center: int) -> None:
        limit = encoding.limits.get("kspace_encoding_step_1")
        self.rows = encoding.encoded.matrix[1]
        self.offset = self.rows // 2 - center
        first, last = (limit.minimum, limit.maximum) if limit else (0, self.rows - 1)
        self.first = max(0, first + self.offset)
        self.last = min(self.rows - 1, last + self.offset)
        self.lines_in_header = (first, last)
        self.frames = min(encoding.count(time_axis), MOST_FRAMES)
        self.limited = time_axis in encoding.limits
        self.averages = min(encoding.count("average"), _MOST_AVERAGES)
        self.segmented = encoding.count("segment") > 1
        self.lines = max(0, self.last - self.first + 1)
        self.fewest_lines = max(1, self.lines // encoding.acceleration)
        self.fewest_readouts = self.frames * self.lines * self.averages

    def is_full(self, buffer: _Buffer) -> bool:
        """Every promised line of every promised frame has come, as often as promised."""
        return (
            not buffer.gated
            and buffer.count >= self.fewest_readouts
            and bool(buffer.came[: self.frames, self.first : self.last + 1].all())
        )

    def looks_complete(self, buffer: _Buffer) -> bool:
        """Every promised frame has at least the lines that the acceleration leaves."""
        if buffer.gated:
            return int(np.count_nonzero(buffer.came.any(axis=(0, 2)))) >= self.fewest_lines
        return bool((buffer.lines(complete=True)[: self.frames] >= self.fewest_lines).all())

    def is_flagged_complete(self, buffer: _Buffer) -> bool:
        """Decide on a LAST_IN_SLICE flag, which senders set once per slice, per frame, or per segment."""
        if buffer.reopened or buffer.gated:
            return False
        enough = self.looks_complete(buffer)
        if (buffer.flagged[: self.frames] >= self.averages).all():
            return enough or not self.segmented
        readouts = np.count_nonzero(buffer.came[: self.frames], axis=(1, 2))
        return enough and bool((readouts == readouts[0]).all())


class SliceBuffers:
    """Sorts the prepared readouts of one scan into slices.

    Parameters
    ----------
    header
        The scan's header.
    problems
        Where to note what is left out or missing.
    settings
        Those of the time axis, of the k-space centre and of coil compression.
    gate
        Makes frames from time stamps where the counter cannot; None takes the counter.
    """

    _most_frames = MOST_FRAMES

    def __init__(self, header: ScanHeader, problems: Problems, settings: Settings, gate: Gate | None = None) -> None:
        self._header = header
        self._center = settings.readouts.center_line
        self._gate = gate
        self._tick = tick_length(header.vendor, settings.readouts.stamp_tick)
        self._virtual = (settings.coils.virtual, settings.coils.energy)
        self._problems = problems
        self._time_axis = [frame_counter(encoding, settings.readouts.time_axis) for encoding in header.encodings]
        self._plans: dict[int, SlicePlan] = {}
        self._open: dict[SliceKey, _Buffer] = {}
        self._waiting: dict[SliceKey, _Buffer] = {}  # complete, but for the ECG
        self._sent: dict[SliceKey, int] = {}  # readouts by slice
        self._reference: dict[tuple[int, int], list[tuple[NDArray[np.intp], Readouts]]] = {}  # by encoding, slice
        self._latest: SliceKey | None = None
        self._next: tuple[SliceKey, int] | None = None  # what may follow it, and how many readouts of that have come

    def add(self, readouts: Readouts) -> Iterator[CompleteSlice]:
        """Take prepared readouts of one encoding in and yield the slices that they complete."""
        encoding = int(readouts.headers["encoding_space_ref"][0])
        plan = self._plan(encoding, readouts)
        row = readouts.headers["idx"]["kspace_encode_step_1"].astype(np.intp) + plan.offset
        time = readouts.headers["idx"][self._time_axis[encoding]].astype(np.intp)
        fits = self._check(readouts, row, time, plan)
        if not fits.all():
            readouts, row, time = readouts[fits], row[fits], time[fits]
        reference = self._reference_only(readouts, encoding)
        if reference.any():
            self._keep_reference(readouts[reference], row[reference], encoding)
            readouts, row, time = readouts[~reference], row[~reference], time[~reference]
        if not len(readouts):
            return
        keys = self._keys(readouts, encoding)
        edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        for begin, end in zip([0, *edges], [*edges, len(readouts)], strict=True):
            run = slice(int(begin), int(end))
            yield from self._add_run(SliceKey(*keys[begin].tolist()), readouts[run], row[run], time[run], plan)

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""
        for key in list(self._waiting):
            yield from self._assemble(key, self._waiting.pop(key))
        for key in sorted(self._open):
            yield from self._finish(key, wait=False)

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield the slices that waited for it."""
        if self._gate is None:
            return
        self._gate.add_waveform(waveform)
        for key, buffer in list(self._waiting.items()):
            if not buffer.needs_more_ecg:
                yield from self._assemble(key, self._waiting.pop(key))

    @property
    def sent(self) -> int:
        """How many slices have left."""
        return len(self._sent)

    def absent(self) -> tuple[int, list[SliceKey]]:
        """How many slices of the first encoding the header promises that have not left, and the first few of them."""
        encoding, axis = self._header.encodings[0], self._time_axis[0]
        counts = [1 if name == axis else encoding.count(name) for name in SliceKey._fields[1:]]
        ranges = [range(count) for count in counts]
        sent = sum(
            key.encoding == 0 and all(value in promised for value, promised in zip(key[1:], ranges, strict=True))
            for key in self._sent
        )
        missing = (SliceKey(0, *counters) for counters in itertools.product(*ranges))
        first = itertools.islice((key for key in missing if key not in self._sent), 5)
        return math.prod(counts) - sent, list(first)

    def _plan(self, encoding: int, readouts: Readouts) -> SlicePlan:
        plan = self._plans.get(encoding)
        if plan is None:
            space = self._header.encodings[encoding]
            center = center_line(self._header, space, readouts.headers[0], self._problems, self._center)
            self._plans[encoding] = plan = SlicePlan(space, self._time_axis[encoding], center)
        return plan

    def _check(
        self, readouts: Readouts, row: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> NDArray[np.bool_]:
        """Which readouts have a place; the others are noted."""
        inside = (row >= 0) & (row < plan.rows)
        if not inside.all():
            first, last = plan.lines_in_header
            line = row - plan.offset
            for planned, damage in ((True, False), (False, True)):
                out = ~inside & (((line >= first) & (line <= last)) == planned)
                if out.any():
                    where = f"lines {-plan.offset} to {plan.rows - 1 - plan.offset}"
                    text = f"{_name(readouts, out)} has line {line[out][0]}; the encoded matrix has room for {where}"
                    count = int(np.count_nonzero(out))
                    self._problems.add(f"line {planned}", f"{text}; it is left out", damage=damage, count=count)
        possible = time < self._most_frames
        if not possible.all():
            text = f"{_name(readouts, ~possible)} has frame {time[~possible][0]}; at most {self._most_frames} are"
            count = int(np.count_nonzero(~possible))
            self._problems.add("frame", f"{text} believed; it is left out", damage=True, count=count)
        return inside & possible

    def _reference_only(self, readouts: Readouts, encoding: int) -> NDArray[np.bool_]:
        # Embedded reference lines lie in the frame they belong to and are as good as any other line of it.
        if self._header.encodings[encoding].calibration_mode == "embedded":
            return np.zeros(len(readouts), np.bool_)
        return readouts.flagged(AcquisitionFlag.PARALLEL_CALIBRATION)

    def _keep_reference(self, readouts: Readouts, row: NDArray[np.intp], encoding: int) -> None:
        slices = readouts.headers["idx"]["slice"]
        for number in np.unique(slices).tolist():
            same = np.asarray(slices == number)
            self._reference.setdefault((encoding, number), []).append((row[same], readouts[same]))

    def _keys(self, readouts: Readouts, encoding: int) -> NDArray[np.intp]:
        counters = readouts.headers["idx"]
        keys = np.empty((len(readouts), len(SliceKey._fields)), np.intp)
        keys[:, 0] = encoding
        for column, name in enumerate(SliceKey._fields[1:], 1):
            keys[:, column] = 0 if name == self._time_axis[encoding] else counters[name]
        return keys

    def _add_run(
        self, key: SliceKey, readouts: Readouts, row: NDArray[np.intp], time: NDArray[np.intp], plan: SlicePlan
    ) -> Iterator[CompleteSlice]:
        """Take consecutive readouts of one slice."""
        if not self._beyond(key):
            yield from self._leave(key, len(readouts))
        if key in self._sent:
            self._note_late(describe(key), readouts)
            return
        buffer = self._buffer(key, plan, readouts.data.shape[1])
        flags = readouts.headers["flags"] & _LAST
        open_end = self._gate is not None and self._gate.expected
        if not flags.any() and (open_end or buffer.count + len(readouts) < plan.fewest_readouts):
            buffer.add(readouts, time, row)
            return
        # The slice may end within the run: what it holds must not depend on how the stream was cut into runs.
        for i in range(len(readouts)):
            one = slice(i, i + 1)
            buffer.add(readouts[one], time[one], row[one])
            if flags[i] & AcquisitionFlag.LAST_IN_MEASUREMENT.bit:
                yield from self._finish_complete()
            elif plan.is_full(buffer) or (flags[i] and plan.is_flagged_complete(buffer)):
                yield from self._finish(key)
            if key not in self._open:
                if i + 1 < len(readouts):
                    rest = slice(i + 1, None)
                    yield from self._add_run(key, readouts[rest], row[rest], time[rest], plan)
                return

    def _note_late(self, what: str, readouts: Readouts) -> None:
        text = f"{_name(readouts)} belongs to {what}, which was complete already; it is left out"
        remedy = "Check the limits of averages, phases and repetitions in the header"
        self._problems.add("late", f"{text}. {remedy}", damage=True, count=len(readouts))

    def _leave(self, key: SliceKey, count: int) -> Iterator[CompleteSlice]:
        """With slices one after another, the next slice, of which `count` readouts came, tells that one is over."""
        if self._latest is not None and key != self._latest and self._latest in self._open:
            before = self._open[self._latest]
            if before.gated:  # no counter says that it is over, so that a stray readout of another must not
                self._next = (key, count + (self._next[1] if self._next and self._next[0] == key else 0))
                if self._next[1] <= _MOST_STRAY:
                    return
            if not before.was_left and self._plans[self._latest.encoding].looks_complete(before):
                yield from self._finish(self._latest)
            else:
                before.was_left = True
        self._latest, self._next = key, None

    def _beyond(self, key: SliceKey) -> list[str]:
        """Counters above the limits of the header: a slice that it forgot, or a stray readout."""
        encoding = self._header.encodings[key.encoding]
        names = ("repetition", "set", "contrast", "slice")
        return [name for name in names if name in encoding.limits and getattr(key, name) >= encoding.count(name)]

    def _finish_complete(self) -> Iterator[CompleteSlice]:
        """At the last readout of the measurement: what has all its lines leaves, the rest waits for the end."""
        for key in sorted(self._open):
            if self._plans[key.encoding].looks_complete(self._open[key]):
                yield from self._finish(key)

    def _buffer(self, key: SliceKey, plan: SlicePlan, n_coils: int) -> _Buffer:
        buffer = self._open.get(key)
        if buffer is None:
            virtual = self._virtual_coils(plan, n_coils)
            gate = self._gate if plan.limited or self._gate is None or self._gate.expected else None
            self._open[key] = buffer = _Buffer(plan.frames, plan.rows, plan.averages, virtual, gate)
        return buffer

    def _virtual_coils(self, plan: SlicePlan, n_coils: int) -> VirtualCoils | None:
        coils, energy = self._virtual
        fewer = coils < n_coils if coils else energy < 1
        return VirtualCoils(coils, energy, plan.rows // 2, plan.fewest_lines) if fewer else None

    def _finish(self, key: SliceKey, *, wait: bool = True) -> Iterator[CompleteSlice]:
        buffer = self._open.pop(key)
        typical = float(np.median([*self._sent.values()])) if self._sent else 0.0
        beyond = self._beyond(key)
        if beyond and buffer.count < _BELIEVED_SHARE * typical:
            text = f"{_name(buffer.parts[0])} has {beyond[0]} {getattr(key, beyond[0])}, above the header's limit"
            self._problems.add(f"stray {beyond[0]}", f"{text}; it is left out", damage=True, count=buffer.count)
            return
        self._sent[key] = buffer.count
        if wait and buffer.needs_more_ecg:
            self._waiting[key] = buffer
            if len(self._waiting) > _MOST_WAITING:
                first = next(iter(self._waiting))
                yield from self._assemble(first, self._waiting.pop(first))
        else:
            yield from self._assemble(key, buffer)

    def _assemble(self, key: SliceKey, buffer: _Buffer) -> Iterator[CompleteSlice]:
        plan = self._plans[key.encoding]
        compression = None
        if buffer.virtual is not None:
            buffer.virtual.learn(buffer.parts)
            compression = buffer.virtual.matrix
        frame, row = np.concatenate(buffer.frame), np.concatenate(buffer.row)
        data = np.concatenate([part.data for part in buffer.parts])
        headers = np.concatenate([part.headers for part in buffer.parts])
        buffer.parts.clear()
        try:
            gated = self._gated(key, plan, headers, frame, row, data)
            if gated:
                yield from (self._from_gate(key, one, plan, compression) for one in gated)
                return
            frames = self._frames(key, buffer, plan, headers, frame)
        except DataError as error:
            frames = self._only_complete(buffer, plan, str(error))
        if not len(frames):
            return
        place = np.full(len(buffer.came), -1)
        place[frames] = np.arange(len(frames))
        kspace, measured, of_frames = merge(place[frame], row, data, headers, (len(frames), plan.rows))
        lines = np.count_nonzero(measured, axis=1)
        periodic = self._time_axis[key.encoding] == "phase"
        heartbeat = find_heartbeat(of_frames, headers, self._tick, real_time=not periodic)
        yield CompleteSlice(
            key,
            CineSlice(
                kspace,
                measured > 0,
                self._calibration(key, plan.rows, compression),
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
        if self._gate is None or (self._time_axis[key.encoding] != "phase" and not self._gate.forced):
            return ()
        promised = plan.frames if plan.limited else 0
        return self._gate(describe(key), headers, frame, row, data, (promised, plan.rows))

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
                self._calibration(key, plan.rows, compression),
                noise_share=None,
            ),
            headers,
            replace(find_heartbeat(headers, headers[:0], self._tick), rr=gated.gating.rr),
            frames,
            lines[frames],
            (*gated.notes, *missing),
            compression,
            gating=gated.gating,
        )

    def _only_complete(self, buffer: _Buffer, plan: SlicePlan, why: str) -> NDArray[np.intp]:
        """The counter's frames that have all lines, where the gate that should have made others could not."""
        lines = buffer.lines()
        complete = np.flatnonzero(lines >= plan.fewest_lines)
        if self._gate is not None and self._gate.forced:
            complete = complete[:0]
        lost = np.count_nonzero(lines) - len(complete)
        text = f"{why}. {len(complete)} frames of the counter are shown, {lost} without all their lines are not"
        self._problems.add("gating", text if len(complete) else f"{why}. There are no images of it", damage=bool(lost))
        return complete

    def _frames(
        self,
        key: SliceKey,
        buffer: _Buffer,
        plan: SlicePlan,
        headers: NDArray[np.void],
        frame: NDArray[np.intp],
    ) -> NDArray[np.intp]:
        """The counter values that become frames: all with lines, above the header's limit only with enough of them."""
        lines = buffer.lines()
        keep = lines > 0
        planned = lines[: plan.frames][keep[: plan.frames]]
        typical = float(np.median(planned)) if len(planned) else 0.0
        stray = keep & (np.arange(len(lines)) >= plan.frames) & (lines < _BELIEVED_SHARE * typical)
        if stray.any():
            first = headers[np.flatnonzero(stray[frame])[0]]
            text = (
                f"readout {first['scan_counter']} has frame {np.flatnonzero(stray)[0]} of {describe(key)}, the header "
                f"ends at {plan.frames - 1}; it is left out"
            )
            self._problems.add("stray frame", text, damage=True, count=int(np.count_nonzero(stray[frame])))
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
            self._problems.add("fewer frames", text, damage=False)
        elif absent:
            text = f"{describe(key)} has no readouts in {len(absent)} of {promised} frames (first: {absent[0]})"
            self._problems.add("absent", f"{text}; no images are made for them", damage=True)
            yield text
        if short.any():
            first = int(np.argmax(short))
            text = (
                f"{describe(key)} lacks lines in {np.count_nonzero(short)} of {len(frames)} frames; frame "
                f"{frames[first]} has {lines[first]}, expected at least {plan.fewest_lines}"
            )
            self._problems.add("missing lines", text, damage=False)
            yield text

    def _calibration(
        self, key: SliceKey, rows: int, compression: NDArray[np.complex64] | None
    ) -> NDArray[np.complex64] | None:
        parts = self._reference.get((key.encoding, key.slice))
        if not parts:
            return None
        row = np.concatenate([lines for lines, _ in parts])
        data = np.concatenate([readouts.data for _, readouts in parts])
        if compression is not None:
            data = np.matmul(compression, data)
        kspace, _ = _accumulate(np.zeros_like(row), row, data, (1, rows))
        return np.asarray(kspace[0], np.complex64)


def frame_counter(encoding: Encoding, wanted: str) -> str:
    """Name the counter that numbers the frames: as `wanted`, or where that is ``auto`` as the header suggests."""
    if wanted != "auto":
        return wanted
    return "repetition" if encoding.count("phase") == 1 and encoding.count("repetition") > 1 else "phase"


def merge(
    frame: NDArray[np.intp],
    row: NDArray[np.intp],
    data: NDArray[np.complex64],
    headers: NDArray[np.void],
    shape: tuple[int, int],
) -> tuple[NDArray[np.complex64], NDArray[np.intp], NDArray[np.void]]:
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
        K-space ``(frame, coil, ky, kx)`` complex64, ``(frame, ky)`` how often each line was measured, and ``(frame,)``
        the header of the readout nearest to the k-space centre.
    """
    used = _latest_of_each(frame, row, headers["idx"]["average"].astype(np.intp))
    frame, row = frame[used], row[used]
    kspace, measured = _accumulate(frame, row, data[used], shape)
    return kspace, measured, headers[used][_nearest_to_center(frame, row, shape[0], shape[1] // 2)]


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
    """Index of the readout of every frame whose line is nearest to the centre; of equals the first."""
    order = np.lexsort((np.arange(len(row)), np.abs(row - center), frame))
    return order[np.searchsorted(frame[order], np.arange(frames))]


def _name(readouts: Readouts, which: NDArray[np.bool_] | None = None) -> str:
    counters = readouts.headers["scan_counter"]
    return f"readout {int(counters[0] if which is None else counters[which][0])}"
