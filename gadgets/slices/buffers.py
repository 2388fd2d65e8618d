"""Prepared readouts in, complete slices out: every readout finds its place, and a strategy decides what leaves when.

`SliceBuffers` reads the plan of the header, checks the counters against it, and keeps reference lines; the runs of
readouts of one slice that are left go to the strategy: `whole.WholeSlices`, `windows.FrameWindows` in real time, or
`spokes.SpokeSlices` off the Cartesian grid.
What the header says of counters is a plan, not a promise.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gadgets.gating.gate import Gate
from gadgets.problems import Kind
from gadgets.slices.complete import SliceKey
from gadgets.slices.echoes import EchoWatch
from gadgets.slices.shared import ReferenceLines, SlicePlan, SliceStrategy, SortingContext, first_name
from gadgets.slices.spokes import SpokeSlices
from gadgets.slices.whole import WholeSlices
from gadgets.slices.windows import FEWEST_FRAMES, REFERENCE_REPEATS, FrameWindows
from gadgets.wire.flags import is_reference
from gadgets.wire.vendor import center_line, find_vendor, tick_length
from recon_core.budget import Budget
from recon_core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import Encoding, ScanHeader
    from gadgets.wire.messages import Readouts, Waveform

_MOST_LISTED = 5


class Absent(NamedTuple):
    """What of a scan did not come."""

    gaps: list[SliceKey]
    """The first few slices that lie between others that came."""
    promised: int
    """How many more the header promises."""
    cut_short: bool
    """The scan broke off: a slice ended amid a frame, or before the others did."""


def slice_buffers(header: ScanHeader, settings: Settings, problems: Problems, budget: Budget) -> SliceBuffers:
    """Make the buffers of a scan: whole slices, gated or not, or windows of frames in real time.

    Parameters
    ----------
    header, settings, problems, budget
        As for `SliceBuffers`.

    Raises
    ------
    SettingsError
        If frames are to be sent as they are measured, or made of consecutive spokes, and made from all beats.
    """
    real_time = settings.realtime.mode != "off"
    if real_time and settings.gating.mode == "retrospective":
        raise SettingsError(
            f"realtime={settings.realtime.mode} sends frames as they are measured, gating=retrospective makes them "
            "from all beats; set one of them to off or counter"
        )
    if settings.realtime.lines_per_frame and settings.gating.mode == "retrospective" and _is_off_grid(header):
        raise SettingsError(
            "lines_per_frame makes frames of consecutive spokes, gating=retrospective makes them from all beats; set "
            "one of them to 0 or counter"
        )
    gate = None if real_time or settings.gating.mode == "counter" else Gate(header, settings, problems, budget)
    return SliceBuffers(header, problems, settings, gate, budget)


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
        wanted, real_time = settings.readouts.time_axis, settings.realtime.mode != "off"
        # Where the header says nothing all repetitions are kept together: the stream shows what numbers the frames.
        silent = "phase" if real_time or (gate is not None and gate.expected) else "repetition"
        self._axis_is_open = wanted == "auto" and not real_time
        self._time_axis = [frame_counter(encoding, wanted, silent) for encoding in header.encodings]
        self._plans: dict[int, SlicePlan] = {}
        self._echoes = EchoWatch(problems)
        self._ended = False
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
        self._strategy: SliceStrategy
        if _is_off_grid(header):
            one = settings.realtime
            window = (one.window or FEWEST_FRAMES) if real_time else 0
            gates = gate if gate is not None and gate.expected and not one.lines_per_frame else None
            self._strategy = SpokeSlices(
                context, one.lines_per_frame, window, sliding=one.mode == "sliding", gate=gates
            )
        elif real_time:
            self._strategy = FrameWindows(context, settings.realtime)
        else:
            self._strategy = WholeSlices(context, gate)

    def add(self, readouts: Readouts) -> Iterator[CompleteSlice]:
        """Add prepared readouts of one encoding and yield the slices that they complete.

        Raises
        ------
        ResourceError
            If there is no room for them; they are then left out.
        """
        encoding = int(readouts.headers["encoding_space_ref"][0])
        plan = self._plan(encoding, readouts)
        counters = readouts.headers["idx"]
        line = counters["kspace_encode_step_1"].astype(np.int16).astype(np.intp)  # some senders count from below 0
        time = counters[self._time_axis[encoding]].astype(np.intp)
        fits = self._possible(readouts, np.maximum(time, counters["phase"]) if plan.axis_is_open else time)
        if not fits.all():
            readouts, line, time = readouts[fits], line[fits], time[fits]
        reference = self._reference_only(readouts, encoding)
        if reference.any():
            self._reference.add(readouts[reference], line[reference], encoding, plan.rows)
            readouts, line, time = readouts[~reference], line[~reference], time[~reference]
        if not len(readouts):
            return
        if not self._header.encodings[encoding].off_grid:
            self._echoes.look(readouts, np.abs(line + plan.offset - plan.rows // 2) <= 1)
        self._budget.keep(readouts.data, "the readouts that wait for the rest of their slices")
        keys = self._keys(readouts, encoding)
        edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        for begin, end in zip([0, *edges], [*edges, len(readouts)], strict=True):
            run = slice(int(begin), int(end))
            yield from self._strategy.take(SliceKey(*keys[begin].tolist()), readouts[run], line[run], time[run], plan)

    def flush(self) -> Iterator[CompleteSlice]:
        """Yield what is left at the end of the scan, complete or not."""
        self._ended = True
        return self._strategy.flush()

    def to_come(self) -> tuple[int, int]:
        """How many slices have not left yet, as far as is known, and how many of their readouts have not come.

        None in real time, where every window has time for itself.
        """
        slices, readouts = self._strategy.to_come(0 if self._ended else self.absent().promised)
        return slices, 0 if self._ended else readouts

    def add_waveform(self, waveform: Waveform) -> Iterator[CompleteSlice]:
        """Add a waveform of the stream and yield the slices that waited for it."""
        return self._strategy.add_waveform(waveform)

    @property
    def sent(self) -> int:
        """How many slices have left."""
        return len(self._strategy.sent)

    def absent(self) -> Absent:
        """Slices that have not left although others of their kind have, or although the header promises them."""
        sent = self._strategy.sent
        gaps: list[SliceKey] = []
        promised = 0
        for number in sorted({key.encoding for key in sent}):
            encoding = self._header.encodings[number]
            own = np.array([key[1:] for key in sent if key.encoding == number])
            ranges, every = [], 1
            for name, values in zip(SliceKey._fields[1:], own.T, strict=True):
                seen = range(int(values.min()), int(values.max()) + 1)
                one = encoding.promised(name) if name in encoding.limits else range(0)
                is_axis = name == self._time_axis[number]
                ranges.append([value for value in seen if value in one or value in values])
                every *= 1 if is_axis else max(len(one), len(set(values.tolist())))
            missing = (SliceKey(number, *counters) for counters in itertools.product(*ranges))
            gaps += itertools.islice((key for key in missing if key not in sent), _MOST_LISTED - len(gaps))
            promised += every - len(own)
        return Absent(gaps, max(0, promised), cut_short=self._strategy.cut_short)

    def _plan(self, encoding: int, readouts: Readouts) -> SlicePlan:
        plan = self._plans.get(encoding)
        if plan is None:
            space = self._header.encodings[encoding]
            if space.off_grid:  # no line lies at the centre, whatever is said of one
                center = space.encoded.matrix[1] // 2
            else:
                center = center_line(self._header, space, readouts.headers[0], self._problems, self._center)
            self._plans[encoding] = plan = SlicePlan(
                space,
                self._time_axis[encoding],
                center,
                axis_is_open=self._axis_is_open,
                center_is_sure=self._center != "auto" or find_vendor(self._header.vendor).center_in_readouts,
            )
        return plan

    def _possible(self, readouts: Readouts, time: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which readouts have a frame that can be; the others are reported."""
        most = self._strategy.most_frames
        possible = np.asarray(time < most)
        if not possible.all():
            text = f"{first_name(readouts, ~possible)} has frame {time[~possible][0]}; at most {most} are"
            count = int(np.count_nonzero(~possible))
            self._problems.add(Kind.FRAME_NUMBER, f"{text} believed; it is left out", damage=True, count=count)
        return possible

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


def _is_off_grid(header: ScanHeader) -> bool:
    """Whether readouts of a scan are slices of samples that follow no Cartesian grid."""
    return any(encoding.off_grid and not encoding.refusal for encoding in header.encodings)


def frame_counter(encoding: Encoding, wanted: str, silent: str = "phase") -> str:
    """Name the counter that numbers the frames.

    As `wanted`, or where that is ``auto`` as the header suggests; `silent` where it promises one value of each.
    """
    if wanted != "auto":
        return wanted
    if encoding.count("phase") > 1:
        return "phase"
    return "repetition" if encoding.count("repetition") > 1 else silent
