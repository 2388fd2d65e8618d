"""Time stamps in, frames out: whether the readouts of a slice are gated retrospectively, and how.

The stamps are in ticks of the vendor's clock; here they become times. Where they do not give the time since the R wave,
the ECG of the stream does, or the readouts themselves. The arithmetic is that of `recon_core.gating.beats`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gadgets.gating.clock import readout_times, typical_step
from gadgets.gating.ecg import Ecg
from gadgets.problems import Kind
from gadgets.wire.vendor import find_vendor, tick_doubt, tick_length
from recon_core.budget import Budget
from recon_core.errors import DataError
from recon_core.gating.beats import (
    BRIDGED,
    REGULAR,
    REJECTED,
    REPAIRED,
    bin_lines,
    cycle_position,
    find_rhythm,
    time_since,
)
from recon_core.gating.self_gating import find_triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.settings.settings import Settings
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import Waveform
    from recon_core.gating.beats import Binned, Rhythm


logger = logging.getLogger("cinestream")

MOST_FRAMES = 4096  # of a slice that are believed
_BYTES = 24  # of a sample, while the frames are made
#: Frames of a cycle where nothing says how many.
USUAL_FRAMES = 25
# A counter runs on from beat to beat when this share of the beats goes beyond the header's frames, or ends early.
_RUN_ON_SHARE = 0.25
# Where triggers are looked for, best first, and what that is called in a sentence.
_SOURCES = {"stamps": "the time stamps", "ecg": "the ECG", "self": "the k-space centre"}
_VERDICTS = {REGULAR: "regular", REPAIRED: "repaired", REJECTED: "rejected"}


@dataclass(frozen=True)
class Beat:
    """One beat of a slice that was gated retrospectively."""

    rr: float
    """RR interval in ms."""
    verdict: str
    """``regular``, ``repaired`` (its trigger was missed, or a false one lay in it) or ``rejected``."""
    used: bool
    """Readouts of it are in the frames."""

    def __str__(self) -> str:
        """In words, as the attributes of the images have it."""
        return f"{self.rr:.0f} ms {self.verdict}, {'used' if self.used else 'not used'}"


@dataclass(frozen=True)
class Gating:
    """How the frames of a slice were gated retrospectively."""

    source: str
    """Where the R waves come from: ``stamps``, ``ecg`` or ``self``."""
    rr: float
    """RR interval in ms of the cycle that the frames show."""
    beats: tuple[Beat, ...] = ()
    """All beats of the slice; none where the frames show one of several."""
    beat: int | None = None
    """Number of the beat that the frames show alone; None where they show the mean one."""


@dataclass(frozen=True)
class Gated:
    """The frames of a slice."""

    kspace: NDArray[np.complex64]
    """``(frame, coil, ky, kx)`` complex64."""
    mask: NDArray[np.bool_]
    """``(frame, ky)`` bool, True where a line was measured or lies between measured ones."""
    headers: NDArray[np.void]
    """``(frame,)`` of the acquisition header, with the phase and the time since the R wave that the frame shows."""
    notes: tuple[str, ...]
    """What a reader of the images must know."""
    gating: Gating
    """How they were made."""


class _Slice(NamedTuple):
    """The readouts of a slice in order of acquisition, as `Gate` takes them."""

    name: str
    headers: NDArray[np.void]
    row: NDArray[np.intp]
    data: NDArray[np.complex64]
    rows: int

    def triggers(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """The R waves as the lines show them, by `recon_core.gating.self_gating.find_triggers`."""
        return find_triggers(self.data, self.row, time, self.rows // 2)


class Gate:
    """Retrospective gating of the slices of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        Those of gating.
    problems
        Where to report what is wrong with the time stamps.
    budget
        Memory for the frames; None takes what a process may have.
    """

    def __init__(
        self, header: ScanHeader, settings: Settings, problems: Problems, budget: Budget | None = None
    ) -> None:
        self._budget = budget or Budget()
        self._settings = settings.gating
        self._problems = problems
        self._announced = _announced_frames(header)
        self._tick = tick_length(header.vendor, settings.readouts.stamp_tick)
        self._doubt = tick_doubt(header.vendor, settings.readouts.stamp_tick)
        self._ecg = Ecg(self._tick)
        self._ecg_promised = "ecg" in header.waveform_types
        self._spacing = header.readout_spacing
        # Its scanners sort the cardiac phases themselves, and say the RR interval in the second stamp.
        self._sorted = find_vendor(header.vendor).sorts_phases
        #: The scan has repetitions of its own, so that beats cannot be.
        self.repeats = any(encoding.count("repetition") > 1 for encoding in header.encodings)
        self._counted = 0  # frames of the slices, where nothing says how many
        wanted = settings.gating.trigger_source
        self._sources = tuple(_SOURCES) if wanted == "auto" else (wanted,)

    @property
    def forced(self) -> bool:
        """Nothing but retrospective gating will do."""
        return self._settings.mode == "retrospective"

    @property
    def expected(self) -> bool:
        """The settings ask for retrospective gating, or the header announces it."""
        return self.forced or self._announced > 0

    @property
    def wants_beats(self) -> bool:
        """The frames of every beat are asked for, not those of the mean one."""
        return self._settings.output == "beats"

    def add_waveform(self, waveform: Waveform) -> None:
        """Add a waveform of the stream."""
        self._ecg.add(waveform)

    def needs_more_ecg(self, headers: NDArray[np.void]) -> bool:
        """Whether the readouts of a slice, all there, can only be gated when more of the ECG has come."""
        promised = self._ecg_promised or self._ecg.has_data or self._sources == ("ecg",)
        if not self.expected or "ecg" not in self._sources or not promised:
            return False
        time, _ = readout_times(headers, None, self._tick)
        if time is None or self._ecg.reaches(float(time[-1])):
            return False
        return "stamps" not in self._sources or not self._stamps_show_beats(headers)

    def __call__(
        self,
        name: str,
        headers: NDArray[np.void],
        frame: NDArray[np.intp],
        row: NDArray[np.intp],
        data: NDArray[np.complex64],
        promised: range,
        rows: int,
    ) -> tuple[Gated, ...]:
        """Bin the readouts of a slice, in order of acquisition.

        Parameters
        ----------
        name
            Of the slice, in words.
        headers
            ``(readout,)`` acquisition headers.
        frame, row
            ``(readout,)`` counter of the frames, and row of k-space.
        data
            ``(readout, coil, kx)`` complex64.
        promised
            Frames that the header promises; none where it says nothing.
        rows
            Rows of k-space.

        Returns
        -------
        tuple of Gated
            One; or one for every beat, where that was asked for; or none, if the counter gives the frames.

        Raises
        ------
        DataError
            If the slice cannot be gated although it should be.
        """
        if not self.forced and not self._wanted(headers, frame, row, promised.stop):
            return ()
        readouts = _Slice(name, headers, row, data, rows)
        rhythm, source = self.find_rhythm(name, headers, readouts.triggers)
        frames = self._frames(rhythm, row, len(promised))
        position = self.cycle_position(rhythm)
        if self.wants_beats:
            beats = () if self.repeats else tuple(self._beats(readouts, rhythm, position, frames, source))
            if beats:
                return beats
            self.report_no_beats(name, "no beat has all lines (a segmented scan)")
        return (self._mean(readouts, rhythm, position, frames, source),)

    def _mean(self, readouts: _Slice, rhythm: Rhythm, position: NDArray[np.float64], frames: int, source: str) -> Gated:
        """The frames of the mean beat."""
        name, headers, row, data, rows = readouts
        self._check_room(readouts, frames)
        binned = bin_lines(data, row, position, rhythm, frames, rows)
        words = beats_in_words(rhythm, binned.used, frames, source)
        logger.info("%s: %s", name, words)
        return Gated(
            binned.kspace,
            binned.grade >= 0,
            self.headers_of(headers, row, position, rhythm, frames, rows // 2),
            (words, *self.report_doubts(name, rhythm, _thin_lines(binned))),
            Gating(source, rhythm.typical, beats_of(rhythm, binned.used)),
        )

    def _beats(
        self, readouts: _Slice, rhythm: Rhythm, position: NDArray[np.float64], frames: int, source: str
    ) -> Iterator[Gated]:
        """The frames of every beat that is accepted and has all lines all the time."""
        name, headers, row, data, rows = readouts
        lines = len(np.unique(row))
        self._check_room(readouts, frames * int(np.count_nonzero(rhythm.grade != REJECTED)))
        for number in np.flatnonzero(rhythm.grade != REJECTED).tolist():
            which = np.flatnonzero(rhythm.beat == number)
            if len(np.unique(row[which])) < lines:
                continue
            one = replace(rhythm, beat=rhythm.beat[which], since=rhythm.since[which])
            binned = bin_lines(data[which], row[which], position[which], one, frames, rows)
            if (binned.grade == BRIDGED).any():
                continue
            note = beat_in_words(rhythm, number, frames, source)
            logger.info("%s: %s", name, note)
            made = self.headers_of(headers[which], row[which], position[which], one, frames, rows // 2)
            made["idx"]["repetition"] = number
            yield Gated(
                binned.kspace,
                binned.grade >= 0,
                made,
                (note,),
                Gating(source, float(rhythm.rr[number]), beat=number),
            )

    def _check_room(self, readouts: _Slice, frames: int) -> None:
        _, coils, columns = readouts.data.shape
        count = _BYTES * frames * coils * readouts.rows * columns
        with self._budget.lent(count, f"{frames} gated frames of {readouts.name}"):
            pass

    def cycle_position(self, rhythm: Rhythm) -> NDArray[np.float64]:
        """Fraction of the typical cycle ``(readout,)`` at which each was measured, as the settings stretch beats."""
        stretch = self._settings.rr_stretch
        return cycle_position(rhythm.since, rhythm.rr[rhythm.beat], rhythm.typical, stretch=stretch)

    def report_no_beats(self, name: str, why: str) -> None:
        """Report that the images of a slice are those of the mean beat, though those of every beat were asked for."""
        why = "the scan has repetitions of its own" if self.repeats else why
        text = f"gated_output beats cannot be had of {name}: {why}; the images are those of the mean beat"
        self._problems.add(Kind.GATED_OUTPUT, text, damage=False)

    def find_rhythm(
        self, name: str, headers: NDArray[np.void], triggers: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> tuple[Rhythm, str]:
        """The beats of a slice, by the best source that shows them, and which one that is.

        Parameters
        ----------
        name
            Of the slice, in words.
        headers
            ``(readout,)`` acquisition headers, in order of acquisition.
        triggers
            Finds the R waves in the readouts themselves, from their times in ms.

        Raises
        ------
        DataError
            If none shows any.
        """
        if self._doubt:
            self._problems.add(Kind.TICK, self._doubt, damage=False)
        failed: list[str] = []
        for source in self._sources:
            try:
                if source == "stamps":
                    rhythm = self.by_stamps(headers, name)
                elif source == "ecg":
                    rhythm = self._by_ecg(headers)
                else:
                    rhythm = self._by_motion(headers, triggers)
            except DataError as error:
                failed.append(f"{_SOURCES[source]}: {error}")
                continue
            if failed:
                text = f"the beats of {name} are taken from {_SOURCES[source]}; {'; '.join(failed)}"
                if source == "self":
                    self._problems.add(Kind.TRIGGERS, text, damage=False)
                else:
                    logger.info("%s", text)
            return rhythm, source
        remedy = "set gating to counter to take the counter of the readouts, or stamp_tick if the ticks are others"
        raise DataError(f"{name} cannot be gated retrospectively; {'; '.join(failed)}; {remedy}")

    def by_stamps(self, headers: NDArray[np.void], report_as: str = "") -> Rhythm:
        """Find the beats by the time since the trigger that every readout carries.

        Parameters
        ----------
        headers
            ``(readout,)`` with the time stamps of acquisition headers, in order of acquisition.
        report_as
            Name of the slice, to report a clock of the scanner that cannot be believed; empty reports nothing.

        Raises
        ------
        DataError
            If the stamps are not those of a heart.
        """
        since, stated = (headers["physiology_time_stamp"][:, i].astype(np.float64) * self._tick for i in (0, 1))
        time, wrong = readout_times(headers, since, self._tick)
        rhythm = find_rhythm(since, time, self._settings.arrhythmia_tolerance, stated if self._sorted else None)
        if wrong and report_as and not rhythm.by_time:
            text = f"the acquisition time stamps of {report_as} {wrong}"
            remedy = "RR intervals are taken from the time since the trigger"
            self._problems.add(Kind.TIME_STAMPS, f"{text}; {remedy}", damage=False)
        return rhythm

    def _stamps_show_beats(self, headers: NDArray[np.void]) -> bool:
        try:
            self.by_stamps(headers)
        except DataError:
            return False
        return True

    def _by_ecg(self, headers: NDArray[np.void]) -> Rhythm:
        """The beats by the R waves of the ECG that came with the readouts."""
        time, wrong = readout_times(headers, None, self._tick)
        if time is None:
            raise DataError(f"the acquisition time stamps {wrong}, which alone say when a readout was")
        since = time_since(self._ecg.triggers(float(time[0])), time)
        return find_rhythm(since, time, self._settings.arrhythmia_tolerance)

    def _by_motion(
        self, headers: NDArray[np.void], triggers: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Rhythm:
        """The beats as the readouts themselves show them."""
        time, wrong = readout_times(headers, None, self._tick)
        if time is None:
            if not self._spacing:
                raise DataError(f"the acquisition time stamps {wrong}, and the header has neither echo_spacing nor TR")
            count = headers["scan_counter"].astype(np.float64)
            if (np.diff(count) <= 0).any():
                count = np.arange(len(count), dtype=np.float64)
            time = self._spacing * (count - count[0])
        return find_rhythm(time_since(triggers(time), time), time, self._settings.arrhythmia_tolerance)

    def runs_on(self, beyond: int, count: int) -> bool:
        """So many of the readouts lie beyond the header's frames that it cannot be damage."""
        return not self._sorted and beyond >= _RUN_ON_SHARE * count

    def _wanted(self, headers: NDArray[np.void], frame: NDArray[np.intp], row: NDArray[np.intp], promised: int) -> bool:
        """Whether the header announces retrospective gating, or the counter runs on unevenly from beat to beat."""
        if self._announced:
            places = np.unique(np.stack([frame, row], axis=1), axis=0)[:, 0]
            lines = np.bincount(places, minlength=self._announced)
            return len(lines) != self._announced or bool((lines != lines[0]).any())
        since = headers["physiology_time_stamp"][:, 0]
        if self._sorted or (since.min() == since.max() and not self._ecg.has_data):
            return False
        begins = np.flatnonzero(np.diff(frame, prepend=frame[0] + 1) < 0)
        ends = np.maximum.reduceat(frame, begins)
        if len(ends) < 2:
            return False
        above = bool(promised) and np.mean(ends >= promised) >= _RUN_ON_SHARE
        return bool(above or np.mean(ends[:-1] <= ends[:-1].max() - 2) >= _RUN_ON_SHARE)

    def _frames(self, rhythm: Rhythm, row: NDArray[np.intp], promised: int) -> int:
        """How many frames: as set, announced or promised, else as many as a beat of the first slice has of a line."""
        known = self.known_frames(promised)
        if not known and not self._counted:
            self._counted = self._count(rhythm, row)
        return known or self._counted

    def known_frames(self, promised: int) -> int:
        """How many frames are set, announced or promised by the limits of the header; 0 where nothing says it."""
        return self._settings.frames or self._announced or (promised if promised > 1 else 0)

    def _count(self, rhythm: Rhythm, row: NDArray[np.intp]) -> int:
        """How many readouts of a line a beat has."""
        order = np.lexsort((np.arange(len(row)), row, rhythm.beat))
        same = (np.diff(rhythm.beat[order]) == 0) & (np.diff(row[order]) == 0)
        steps = np.diff(rhythm.since[order])[same]
        steps = steps[steps > 0]
        if not len(steps):
            return USUAL_FRAMES
        return int(np.clip(rhythm.typical / typical_step(steps), 2, MOST_FRAMES))

    def headers_of(
        self,
        headers: NDArray[np.void],
        row: NDArray[np.intp],
        position: NDArray[np.float64],
        rhythm: Rhythm,
        frames: int,
        center: int,
    ) -> NDArray[np.void]:
        """For every frame the header of a readout near to the k-space centre and to its moment."""
        grade = rhythm.grade[rhythm.beat]
        best = np.flatnonzero(grade == grade.min())
        best = best[np.abs(row[best] - center) == np.abs(row[best] - center).min()]
        moments = np.arange(frames) / frames
        away = np.abs(np.mod(position[best][None] - moments[:, None] + 0.5, 1.0) - 0.5)
        made: NDArray[np.void] = headers[best[np.argmin(away, axis=1)]].copy()
        made["idx"]["phase"] = np.arange(frames)
        made["physiology_time_stamp"][:, 0] = np.rint(moments * rhythm.typical / self._tick)
        return made

    def report_doubts(self, name: str, rhythm: Rhythm, thin: Iterable[str] = ()) -> list[str]:
        """What is doubtful about the beats of a slice, and `thin`, how few readouts its frames have: a problem too."""
        doubts = []
        if len(rhythm.rr) == 1:
            doubts.append(f"only one beat of {rhythm.rr[0]:.0f} ms came, which is taken for the whole cycle")
        elif not rhythm.by_time:
            doubts.append("RR intervals are taken from the last readout of each beat")
        kept, rejected = (int(np.count_nonzero(rhythm.grade == grade)) for grade in (REGULAR, REJECTED))
        if rejected > kept:
            doubts.append(f"only {kept} of {len(rhythm.rr)} beats are alike")
        doubts += thin
        if doubts:
            self._problems.add(Kind.HEARTBEAT, f"{name}: {'; '.join(doubts)}", damage=False)
        return doubts


def _thin_lines(binned: Binned) -> Iterator[str]:
    """Lines of which some frames have no good readout."""
    lines = int(np.count_nonzero((binned.grade == REJECTED).any(axis=0)))
    if lines:
        yield f"{lines} lines have frames for which there was a rejected beat only; it was used"
    lines = int(np.count_nonzero((binned.grade == BRIDGED).any(axis=0)))
    if lines:
        yield f"{lines} lines have frames that are interpolated across a wide gap"


def beats_of(rhythm: Rhythm, used: NDArray[np.bool_]) -> tuple[Beat, ...]:
    """All beats of a slice; ``used (beat,)`` says which gave readouts to the frames."""
    return tuple(
        Beat(length, _VERDICTS[grade], was_used)
        for length, grade, was_used in zip(rhythm.rr.tolist(), rhythm.grade.tolist(), used.tolist(), strict=True)
    )


def _announced_frames(header: ScanHeader) -> int:
    """Frames of the user parameter RetroGatedImages, which the Siemens converter writes for retrospective gating."""
    text = header.user_parameters.get("RetroGatedImages", "")
    try:
        frames = int(float(text))
    except (ValueError, OverflowError):
        return 0
    return frames if 1 < frames <= MOST_FRAMES else 0


def beat_in_words(rhythm: Rhythm, number: int, frames: int, source: str) -> str:
    """How the frames of a slice were gated from one beat, in a sentence."""
    return (
        f"gated retrospectively by {_SOURCES[source]} to {frames} frames of beat {number}, "
        f"{float(rhythm.rr[number]):.0f} ms {_VERDICTS[int(rhythm.grade[number])]}"
    )


def beats_in_words(rhythm: Rhythm, used: NDArray[np.bool_], frames: int, source: str) -> str:
    """How the frames of a slice were gated, in a sentence; ``used (beat,)`` as for `beats_of`."""
    rejected = [f"{length:.0f}" for length in rhythm.rr[rhythm.grade == REJECTED].tolist()]
    repaired = [f"{length:.0f}" for length in rhythm.rr[rhythm.grade == REPAIRED].tolist()]
    text = (
        f"gated retrospectively by {_SOURCES[source]} to {frames} frames from {int(used.sum())} of "
        f"{len(rhythm.rr)} beats, RR {rhythm.typical:.0f} ms"
    )
    if repaired:
        text += f", trigger repaired at {', '.join(repaired)} ms"
    if rejected:
        text += f", rejected {', '.join(rejected)} ms"
    return text
