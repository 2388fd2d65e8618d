"""Prepared readouts in, complete slices out: every readout finds its place, and a strategy decides what leaves when.

`SliceBuffers` reads the plan of the header, checks the counters against it, and keeps reference lines; the runs of
readouts of one slice that are left go to the strategy: `whole.WholeSlices`, or `windows.FrameWindows` in real time.
What the header says of counters is a plan, not a promise.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from gadgets.problems import Kind
from gadgets.slices.complete import SliceKey
from gadgets.slices.shared import ReferenceLines, SlicePlan, SliceStrategy, SortingContext, first_name
from gadgets.slices.whole import WholeSlices
from gadgets.slices.windows import REFERENCE_REPEATS, FrameWindows
from gadgets.wire.flags import is_reference
from gadgets.wire.vendor import center_line, tick_length
from recon_core.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gate
    from gadgets.problems import Problems
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import Encoding, ScanHeader
    from gadgets.wire.messages import Readouts, Waveform


class SliceBuffers:
    """Sorts the prepared readouts of one scan into slices; in real time into windows of frames.

    Parameters
    ----------
    header
        The scan's header.
    problems
        Where to report what is left out or missing.
    settings
        Those of real time, of the time axis, of the k-space centre and of coil compression.
    gate
        Makes frames of whole slices from time stamps where the counter cannot; None takes the counter.
    budget
        Memory that slices are gathered in; None takes what a process may have.
    """

    def __init__(
        self,
        header: ScanHeader,
        problems: Problems,
        settings: Settings,
        gate: Gate | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget = budget or Budget()
        self._header = header
        self._problems = problems
        self._center = settings.readouts.center_line
        self._time_axis = [frame_counter(encoding, settings.readouts.time_axis) for encoding in header.encodings]
        self._plans: dict[int, SlicePlan] = {}
        self._ended = False
        real_time = settings.realtime.mode != "off"
        self._reference = ReferenceLines(REFERENCE_REPEATS if real_time else 0, budget)
        context = SortingContext(
            header,
            problems,
            tick_length(header.vendor, settings.readouts.stamp_tick),
            settings.coils.virtual,
            settings.coils.energy,
            self._reference,
            budget,
        )
        self._strategy: SliceStrategy = (
            FrameWindows(context, settings.realtime) if real_time else WholeSlices(context, gate)
        )

    def add(self, readouts: Readouts) -> Iterator[CompleteSlice]:
        """Add prepared readouts of one encoding and yield the slices that they complete.

        Raises
        ------
        ResourceError
            If there is no room for them; they are then left out.
        """
        encoding = int(readouts.headers["encoding_space_ref"][0])
        plan = self._plan(encoding, readouts)
        row = readouts.headers["idx"]["kspace_encode_step_1"].astype(np.intp) + plan.offset
        time = readouts.headers["idx"][self._time_axis[encoding]].astype(np.intp)
        fits = self._check(readouts, row, time, plan)
        if not fits.all():
            readouts, row, time = readouts[fits], row[fits], time[fits]
        reference = self._reference_only(readouts, encoding)
        if reference.any():
            self._reference.add(readouts[reference], row[reference], encoding, plan.rows)
            readouts, row, time = readouts[~reference], row[~reference], time[~reference]
        if not len(readouts):
            return
        self._budget.keep(readouts.data, "the readouts that wait for the rest of their slices")
        keys = self._keys(readouts, encoding)
        edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        for begin, end in zip([0, *edges], [*edges, len(readouts)], strict=True):
            run = slice(int(begin), int(end))
            yield from self._strategy.take(SliceKey(*keys[begin].tolist()), readouts[run], row[run], time[run], plan)

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""
        self._ended = True
        return self._strategy.flush()

    def to_come(self) -> tuple[int, int]:
        """How many slices have not left yet, as far as is known, and how many of their readouts have not come.

        None in real time, where every window has time for itself.
        """
        slices, readouts = self._strategy.to_come(0 if self._ended else self.absent()[0])
        return slices, 0 if self._ended else readouts

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield the slices that waited for it."""
        return self._strategy.add_waveform(waveform)

    @property
    def sent(self) -> int:
        """How many slices have left."""
        return len(self._strategy.sent)

    def absent(self) -> tuple[int, list[SliceKey]]:
        """How many slices the header promises that have not left, and the first few of them.

        Of the encodings of which some have.
        """
        count = 0
        first: list[SliceKey] = []
        for number in sorted({key.encoding for key in self._strategy.sent}):
            encoding, axis = self._header.encodings[number], self._time_axis[number]
            ranges = [range(1) if name == axis else encoding.promised(name) for name in SliceKey._fields[1:]]
            sent = sum(
                key.encoding == number and all(value in one for value, one in zip(key[1:], ranges, strict=True))
                for key in self._strategy.sent
            )
            missing = (SliceKey(number, *counters) for counters in itertools.product(*ranges))
            first += itertools.islice((key for key in missing if key not in self._strategy.sent), 5 - len(first))
            count += math.prod(map(len, ranges)) - sent
        return count, first

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
        """Which readouts have a place; the others are reported."""
        inside = (row >= 0) & (row < plan.rows)
        if not inside.all():
            first, last = plan.lines_in_header
            line = row - plan.offset
            planned = (line >= first) & (line <= last)
            for kind, out, damage in (
                (Kind.SURPLUS_LINE, ~inside & planned, False),
                (Kind.STRAY_LINE, ~inside & ~planned, True),
            ):
                if out.any():
                    where = f"lines {-plan.offset} to {plan.rows - 1 - plan.offset}"
                    text = (
                        f"{first_name(readouts, out)} has line {line[out][0]}; the encoded matrix has room for {where}"
                    )
                    count = int(np.count_nonzero(out))
                    self._problems.add(kind, f"{text}; it is left out", damage=damage, count=count)
        most = self._strategy.most_frames
        possible = time < most
        if not possible.all():
            text = f"{first_name(readouts, ~possible)} has frame {time[~possible][0]}; at most {most} are"
            count = int(np.count_nonzero(~possible))
            self._problems.add(Kind.FRAME_NUMBER, f"{text} believed; it is left out", damage=True, count=count)
        return inside & possible

    def _reference_only(self, readouts: Readouts, encoding: int) -> NDArray[np.bool_]:
        # Embedded reference lines lie in the frame they belong to and are as good as any other line of it.
        if self._header.encodings[encoding].calibration_mode == "embedded":
            return np.zeros(len(readouts), np.bool_)
        return is_reference(readouts.headers["flags"])

    def _keys(self, readouts: Readouts, encoding: int) -> NDArray[np.intp]:
        counters = readouts.headers["idx"]
        keys = np.empty((len(readouts), len(SliceKey._fields)), np.intp)
        keys[:, 0] = encoding
        for column, name in enumerate(SliceKey._fields[1:], 1):
            keys[:, column] = 0 if name == self._time_axis[encoding] else counters[name]
        return keys


def frame_counter(encoding: Encoding, wanted: str) -> str:
    """Name the counter that numbers the frames: as `wanted`, or where that is ``auto`` as the header suggests."""
    if wanted != "auto":
        return wanted
    return "repetition" if encoding.count("phase") == 1 and encoding.count("repetition") > 1 else "phase"
