"""Time stamps in, frames out: whether the readouts of a slice are gated retrospectively, and how.

The stamps are in ticks of the vendor's clock; here they become times. The arithmetic is that of `recon_core.gating`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadgets.vendor import tick_doubt, tick_length
from recon_core.errors import DataError
from recon_core.gating import BRIDGED, REGULAR, REJECTED, REPAIRED, TRIGGER_STEP, bin_lines, cycle_position, find_rhythm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gadgets.header import ScanHeader
    from gadgets.pipeline import Settings
    from gadgets.problems import Problems
    from recon_core.gating import Binned, Rhythm

logger = logging.getLogger("cinestream")

_DAY = 86_400_000.0  # ms, at which clocks begin anew
MOST_FRAMES = 4096  # of a slice that are believed
_USUAL_FRAMES = 25
# A counter runs on from beat to beat when this share of the beats goes beyond the header's frames, or ends early.
_RUN_ON_SHARE = 0.25
_VERDICTS = {REGULAR: "regular", REPAIRED: "repaired", REJECTED: "rejected"}


@dataclass(frozen=True)
class Gated:
    """The frames of a slice.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64.
    mask
        ``(frame, ky)`` bool, True where a line was measured or lies between measured ones.
    headers
        ``(frame,)`` of the acquisition header, with the phase and the time since the R wave that the frame shows.
    notes
        What a reader of the images must know.
    meta
        Attributes of the images.
    """

    kspace: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    headers: NDArray[np.void]
    notes: tuple[str, ...]
    meta: Mapping[str, object]


class Gate:
    """Retrospective gating of the slices of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        Those of gating.
    problems
        Where to note what is wrong with the time stamps.
    """

    def __init__(self, header: ScanHeader, settings: Settings, problems: Problems) -> None:
        self._settings = settings
        self._problems = problems
        self._announced = _announced_frames(header)
        self._tick = tick_length(header.vendor, settings.stamp_tick)
        self._doubt = tick_doubt(header.vendor, settings.stamp_tick)

    @property
    def forced(self) -> bool:
        """Nothing but retrospective gating will do."""
        return self._settings.gating == "retrospective"

    @property
    def expected(self) -> bool:
        """The settings ask for retrospective gating, or the header announces it."""
        return self.forced or self._announced > 0

    def __call__(
        self,
        name: str,
        headers: NDArray[np.void],
        frame: NDArray[np.intp],
        row: NDArray[np.intp],
        data: NDArray[np.complex64],
        shape: tuple[int, int],
    ) -> Gated | None:
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
        shape
            Frames that the header promises, or 0, and rows of k-space.

        Returns
        -------
        Gated or None
            None if the counter gives the frames.

        Raises
        ------
        DataError
            If the slice cannot be gated although it should be.
        """
        since = headers["physiology_time_stamp"][:, 0].astype(np.float64) * self._tick
        if not self.forced and not self._wanted(since, frame, row, shape[0]):
            return None
        if self._doubt:
            self._problems.add("ticks", self._doubt, damage=False)
        try:
            rhythm = self.rhythm(name, headers)
        except DataError as error:
            remedy = "set gating to counter to take the counter of the readouts, or stamp_tick if the ticks are others"
            raise DataError(f"{name} cannot be gated retrospectively: {error}; {remedy}") from error
        frames = self._frames(rhythm, row)
        position = cycle_position(
            rhythm.since, rhythm.rr[rhythm.beat], rhythm.typical, stretch=self._settings.rr_stretch
        )
        binned = bin_lines(data, row, position, rhythm, frames, shape[1])
        logger.info("%s: %s", name, _beats_in_words(rhythm, binned))
        return Gated(
            binned.kspace,
            binned.grade >= 0,
            self._headers(headers, row, position, rhythm, frames, shape[1] // 2),
            tuple(self._notes(name, rhythm, binned)),
            {
                "cinestream_gating": "retrospective",
                "cinestream_rr_ms": round(rhythm.typical, 1),
                "cinestream_beats": [
                    f"{length:.0f} ms {_VERDICTS[grade]}, {'used' if used else 'not used'}"
                    for length, grade, used in zip(
                        rhythm.rr.tolist(), rhythm.grade.tolist(), binned.used.tolist(), strict=True
                    )
                ],
            },
        )

    def rhythm(self, name: str, headers: NDArray[np.void]) -> Rhythm:
        """Find the beats of a slice.

        Parameters
        ----------
        name
            Of the slice, in words.
        headers
            ``(readout,)`` with the time stamps of acquisition headers, in order of acquisition.

        Raises
        ------
        DataError
            If the stamps are not those of a heart.
        """
        since = headers["physiology_time_stamp"][:, 0].astype(np.float64) * self._tick
        return find_rhythm(since, self._time(name, headers, since), self._settings.arrhythmia_tolerance)

    def runs_on(self, beyond: int, count: int) -> bool:
        """So many of the readouts lie beyond the header's frames that it cannot be damage."""
        return beyond >= _RUN_ON_SHARE * count

    def _wanted(
        self, since: NDArray[np.float64], frame: NDArray[np.intp], row: NDArray[np.intp], promised: int
    ) -> bool:
        """Whether the header announces retrospective gating, or the counter runs on unevenly from beat to beat."""
        if self._announced:
            places = np.unique(np.stack([frame, row], axis=1), axis=0)[:, 0]
            lines = np.bincount(places, minlength=self._announced)
            return len(lines) != self._announced or bool((lines != lines[0]).any())
        if since.min() == since.max():
            return False
        begins = np.flatnonzero(np.diff(frame, prepend=frame[0] + 1) < 0)
        ends = np.maximum.reduceat(frame, begins)
        if len(ends) < 2:
            return False
        above = bool(promised) and np.mean(ends >= promised) >= _RUN_ON_SHARE
        return bool(above or np.mean(ends[:-1] <= ends[:-1].max() - 2) >= _RUN_ON_SHARE)

    def _time(self, name: str, headers: NDArray[np.void], since: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Time of the readouts in ms; None (noted) where the stamps cannot be believed."""
        time, wrong = readout_times(headers, since, self._tick)
        if wrong:
            remedy = "RR intervals are taken from the time since the trigger"
            self._problems.add("time stamps", f"the acquisition time stamps of {name} {wrong}; {remedy}", damage=False)
        return time

    def _frames(self, rhythm: Rhythm, row: NDArray[np.intp]) -> int:
        """How many frames: as set, as announced, or as many as a beat has readouts of a line."""
        if self._settings.gated_frames or self._announced:
            return self._settings.gated_frames or self._announced
        order = np.lexsort((np.arange(len(row)), row, rhythm.beat))
        same = (np.diff(rhythm.beat[order]) == 0) & (np.diff(row[order]) == 0)
        steps = np.diff(rhythm.since[order])[same]
        steps = steps[steps > 0]
        if not len(steps):
            return _USUAL_FRAMES
        # the mean, as ticks are about as long as the time between readouts; without the gaps of beats left early
        spacing = float(np.mean(steps[steps < 1.5 * np.median(steps)]))
        return int(np.clip(rhythm.typical / spacing, 2, MOST_FRAMES))

    def _headers(
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

    def _notes(self, name: str, rhythm: Rhythm, binned: Binned) -> list[str]:
        """What a reader of the images must know; what is doubtful is a problem too."""
        notes = [_beats_in_words(rhythm, binned)]
        doubts = []
        if len(rhythm.rr) == 1:
            doubts.append(f"only one beat of {rhythm.rr[0]:.0f} ms came, which is taken for the whole cycle")
        elif not rhythm.by_time:
            doubts.append("RR intervals are taken from the last readout of each beat")
        kept, rejected = (int(np.count_nonzero(rhythm.grade == grade)) for grade in (REGULAR, REJECTED))
        if rejected > kept:
            doubts.append(f"only {kept} of {len(rhythm.rr)} beats are alike")
        lines = int(np.count_nonzero((binned.grade == REJECTED).any(axis=0)))
        if lines:
            doubts.append(f"{lines} lines have frames for which there was a rejected beat only; it was used")
        lines = int(np.count_nonzero((binned.grade == BRIDGED).any(axis=0)))
        if lines:
            doubts.append(f"{lines} lines have frames that are interpolated across a wide gap")
        if doubts:
            self._problems.add("gating", f"{name}: {'; '.join(doubts)}", damage=False)
        return notes + doubts


def readout_times(
    headers: NDArray[np.void], since: NDArray[np.float64], tick: float
) -> tuple[NDArray[np.float64] | None, str]:
    """Time of the readouts in ms by the clock of the scanner, which may begin anew at midnight.

    Parameters
    ----------
    headers
        ``(readout,)`` with the field ``acquisition_time_stamp``, in order of acquisition.
    since
        ``(readout,)`` time in ms since the last trigger.
    tick
        Length of a tick of the stamps in ms.

    Returns
    -------
    ndarray or None, str
        ``(readout,)``, or None and what is wrong with the stamps.
    """
    time = headers["acquisition_time_stamp"].astype(np.float64) * tick
    time[1:] += _DAY * np.cumsum(np.diff(time) < -_DAY / 2)
    pause = np.diff(time) > TRIGGER_STEP
    # after a pause it may be another beat, though the time since its trigger goes on to rise from frame to frame
    new = (np.diff(since) < -TRIGGER_STEP) | (pause if 2 * np.count_nonzero(pause) < len(pause) else False)
    beats = np.split(time - since, np.flatnonzero(new) + 1)
    if time.min() == time.max():
        return None, "stand still"
    if (np.diff(time) < -TRIGGER_STEP).any() or time[-1] < time[0]:
        return None, "run backwards"
    if np.median([np.ptp(beat) for beat in beats]) > TRIGGER_STEP:
        return None, "are not of the clock of the time since the trigger"
    return time, ""


def _announced_frames(header: ScanHeader) -> int:
    """Frames of the user parameter RetroGatedImages, which the Siemens converter writes for retrospective gating."""
    text = header.user_parameters.get("RetroGatedImages", "")
    try:
        frames = int(float(text))
    except (ValueError, OverflowError):
        return 0
    return frames if 1 < frames <= MOST_FRAMES else 0


def _beats_in_words(rhythm: Rhythm, binned: Binned) -> str:
    rejected = [f"{length:.0f}" for length in rhythm.rr[rhythm.grade == REJECTED].tolist()]
    repaired = [f"{length:.0f}" for length in rhythm.rr[rhythm.grade == REPAIRED].tolist()]
    text = (
        f"gated retrospectively to {len(binned.grade)} frames from {int(binned.used.sum())} of {len(rhythm.rr)} beats, "
        f"RR {rhythm.typical:.0f} ms"
    )
    if repaired:
        text += f", trigger repaired at {', '.join(repaired)} ms"
    if rejected:
        text += f", rejected {', '.join(rejected)} ms"
    return text
