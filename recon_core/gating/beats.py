"""Retrospective gating: from the time since the last trigger to frames of one cardiac cycle.

Beats are separated by their triggers, judged by the length of their RR interval and brought to one typical cycle; then
every line of k-space is interpolated in time, on its own, to the moments of the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# What becomes of a beat, best first; and lines that come from far away in the cycle.
REGULAR, REPAIRED, REJECTED, BRIDGED = 0, 1, 2, 3

#: Share of the typical cycle that does not change its length with the RR interval: contraction and relaxation.
SYSTOLE = 0.4
#: ms by which the time since the trigger falls, or the trigger moves, from one beat to the next; less is no new beat.
TRIGGER_STEP = 80.0
#: RR intervals in ms that are believed: 15 to 300 beats per minute.
SHORTEST_RR, LONGEST_RR = 200.0, 4000.0

_UNMEASURED = 0.6  # share of a typical RR without readouts before the next trigger: there may have been others
_BELIEVED = 0.5  # share of the beats that must have a plausible RR interval of the scanner
_WIDE = 3.0  # frames or usual gaps: a line without a readout for that long takes those of poorer beats first


@dataclass(frozen=True)
class Rhythm:
    """The beats of a scan."""

    beat: NDArray[np.intp]
    """``(readout,)`` number of the beat each readout lies in."""
    since: NDArray[np.float64]
    """``(readout,)`` time in ms since the R wave of that beat."""
    rr: NDArray[np.float64]
    """``(beat,)`` RR intervals in ms."""
    grade: NDArray[np.intp]
    """``(beat,)`` `REGULAR`, `REPAIRED` (its trigger was missed, or a false one lay in it) or `REJECTED`."""
    typical: float
    """RR interval in ms to which the regular beats are brought: their median."""
    by_time: bool = True
    """False where only the time since the trigger was there, so that RR intervals end with their last readout."""


def time_since(triggers: NDArray[np.float64], time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tell for every readout how long ago the last trigger was.

    Parameters
    ----------
    triggers
        ``(trigger,)`` ascending times in ms. Readouts before the first are placed as if earlier ones had come with the
        median RR interval.
    time
        ``(readout,)`` ms of the same clock.

    Returns
    -------
    NDArray[np.float64]
        ``(readout,)`` ms.

    Raises
    ------
    DataError
        If there are fewer than two triggers, or readouts without any near by.
    """
    if len(triggers) < 2:
        raise DataError(f"{len(triggers)} R waves came, expected two or more")
    rr = float(np.median(np.diff(triggers)))
    missing = max(0, int(np.ceil((triggers[0] - time.min()) / rr)))
    if missing * rr <= LONGEST_RR:
        triggers = np.concatenate([triggers[0] - rr * np.arange(missing, 0, -1), triggers])
    last = np.searchsorted(triggers, time, side="right") - 1
    since = time - triggers[np.maximum(last, 0)]
    if (last < 0).any() or since.max() > LONGEST_RR:
        raise DataError(f"there are readouts without an R wave in the {LONGEST_RR / 1000:g} s before them")
    return np.asarray(since)


def find_rhythm(
    since: NDArray[np.float64],
    time: NDArray[np.float64] | None,
    tolerance: float = 0.25,
    stated: NDArray[np.float64] | None = None,
) -> Rhythm:
    """Find and judge the beats.

    A beat of about a whole number of typical RR intervals (a trigger was missed) is divided into equal ones, a short
    one that makes up a typical one with its neighbour (a false trigger lay between) is joined to it; others that
    deviate by more than `tolerance` are rejected.

    Parameters
    ----------
    since
        ``(readout,)`` time in ms since the last trigger, in order of acquisition.
    time
        ``(readout,)`` time of the readouts in ms, without wraps; None where it is not known.
    tolerance
        Share of the typical RR interval by which a beat may deviate.
    stated
        ``(readout,)`` RR interval in ms of the beat of each readout, where the scanner says it; None where it does not.
        It is used where no `time` is known, and where it can be true.

    Returns
    -------
    Rhythm
        With at least one beat.

    Raises
    ------
    DataError
        If the times are not those of a heart.
    """
    beat, last = _beats(since, time)
    lengths = None if stated is None or time is not None else _believed(stated, beat, last)
    if lengths is None:
        rr, typical = _rr_intervals(since, time, beat, last, tolerance)
    else:
        rr, typical = lengths, _most_supported(lengths, tolerance)
    _check_interval(typical)
    return _repaired(beat, since, rr, typical, tolerance, by_time=time is not None or lengths is not None)


def trigger_interval(since: NDArray[np.float64], time: NDArray[np.float64] | None) -> float:
    """Typical time from one trigger of a scan to the next that was used.

    Of a scan that is measured around the whole cycle `find_rhythm` finds more; this one also takes a scan that waits
    for the next trigger for a long part of it.

    Parameters
    ----------
    since, time
        As for `find_rhythm`.

    Returns
    -------
    float
        In ms; 0 where there was one trigger only, where beats were left out in between, or where the time of the
        readouts is not known.

    Raises
    ------
    DataError
        If the times are not those of a heart.
    """
    beat, last = _beats(since, time)
    if time is None or len(last) == 1:
        return 0.0
    typical = float(np.median(np.diff(_triggers(since, time, beat))))
    if typical > LONGEST_RR:
        return 0.0
    _check_interval(typical)
    return typical


def _beats(
    since: NDArray[np.float64], time: NDArray[np.float64] | None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Number of the beat of every readout, and the largest time since the trigger in each beat.

    Raises
    ------
    DataError
        If the times are not those of a heart.
    """
    steps = np.diff(since)
    if not len(steps) or not steps.any():
        raise DataError(f"the time since the trigger stands still at {since[0] if len(since) else 0:g} ms: no trigger")
    if np.count_nonzero(steps < 0) > np.count_nonzero(steps > 0):
        raise DataError("the time since the trigger runs backwards")
    new = steps < -TRIGGER_STEP
    if time is not None:
        new |= np.abs(np.diff(time - since)) > TRIGGER_STEP
    beat = np.concatenate([[0], np.cumsum(new)]).astype(np.intp)
    count = int(beat[-1]) + 1
    last = np.zeros(count)
    np.maximum.at(last, beat, since)
    if count == 1 and last[0] > LONGEST_RR:
        raise DataError(f"the time since the trigger never falls and reaches {last[0] / 1000:g} s: no gating was on")
    return beat, last


def _triggers(since: NDArray[np.float64], time: NDArray[np.float64], beat: NDArray[np.intp]) -> NDArray[np.float64]:
    """Time in ms of the trigger of every beat."""
    return np.array([np.median((time - since)[beat == number]) for number in range(int(beat[-1]) + 1)])


def _check_interval(typical: float) -> None:
    if not SHORTEST_RR <= typical <= LONGEST_RR:
        raise DataError(
            f"the typical RR interval is {typical:.0f} ms, expected {SHORTEST_RR:g} to {LONGEST_RR:g}; "
            "the length of a tick may be wrong"
        )


def _believed(
    stated: NDArray[np.float64], beat: NDArray[np.intp], last: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """RR interval ``(beat,)`` of the scanner; None if most are no RR intervals, or end before the readouts."""
    rr = np.array([np.median(stated[beat == number]) for number in range(len(last))])
    plausible = (rr >= SHORTEST_RR) & (rr <= LONGEST_RR) & (rr >= last)
    if np.mean(plausible) <= _BELIEVED:
        return None
    return np.where(plausible, rr, np.maximum(last, float(np.median(rr[plausible]))))


def _rr_intervals(
    since: NDArray[np.float64],
    time: NDArray[np.float64] | None,
    beat: NDArray[np.intp],
    last: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], float]:
    """RR interval of every beat, and the typical one; `last` is the largest time since the trigger in each."""
    steps = np.diff(since)
    ends = last + float(np.median(steps[steps > 0]))
    if time is None or len(last) == 1:
        return ends, _most_supported(ends, tolerance)
    to_next = np.diff(_triggers(since, time, beat))
    if not (to_next > 0).all():
        raise DataError("the time since the trigger and the time of the readouts contradict each other")
    typical = _most_supported(to_next, tolerance)
    # where this slice was measured in every second or third beat only
    typical /= max(1, round(typical / max(float(np.median(last)), 1.0)))
    known = np.concatenate([to_next - last[:-1] <= _UNMEASURED * typical, [False]])
    rest = (to_next - last[:-1])[known[:-1]]
    rr = last + (float(np.median(rest)) if len(rest) else 0.0)
    # a beat that was left before its end says nothing of its length
    rr = np.where((rr < (1 - tolerance) * typical) & ~known, np.maximum(typical, last), rr)
    rr[:-1] = np.where(known[:-1], to_next, rr[:-1])
    return rr, _most_supported(rr, tolerance)


def _most_supported(rr: NDArray[np.float64], tolerance: float) -> float:
    """Median of the largest group of alike RR intervals; of equal groups that nearest to the median of all."""
    alike = np.abs(rr[None] - rr[:, None]) <= tolerance * rr[:, None]
    center = float(np.median(rr))
    best = min(range(len(rr)), key=lambda one: (-int(alike[one].sum()), abs(float(rr[one]) - center), float(rr[one])))
    return float(np.median(rr[alike[best]]))


def _repaired(
    beat: NDArray[np.intp],
    since: NDArray[np.float64],
    rr: NDArray[np.float64],
    typical: float,
    tolerance: float,
    *,
    by_time: bool,
) -> Rhythm:
    def fits(length: float) -> bool:
        return abs(length - typical) <= tolerance * typical

    def deviation(first: int) -> float:
        return abs(float(rr[first : first + 2].sum()) - typical) if first + 1 < len(rr) else np.inf

    def joins(first: int) -> bool:
        """A beat and the next, one of them short, are together nearer to a typical one than apart or otherwise."""
        pair = rr[first : first + 2]
        if len(pair) < 2 or pair.min() >= (1 - tolerance) * typical or not fits(float(pair.sum())):
            return False
        apart = abs(float(pair.max()) - typical)
        with_next = deviation(first + 1) if pair[1] < (1 - tolerance) * typical else np.inf
        return deviation(first) <= min(apart, with_next)

    new_beat, new_since = np.empty_like(beat), since.copy()
    lengths: list[float] = []
    grades: list[int] = []
    number = 0
    while number < len(rr):
        here, length = beat == number, float(rr[number])
        if joins(number):
            second = beat == number + 1
            new_since[second] += length
            new_beat[here | second] = len(lengths)
            lengths.append(length + float(rr[number + 1]))
            grades.append(REPAIRED)
            number += 2
            continue
        parts = round(length / typical)
        if not fits(length) and parts > 1 and fits(length / parts):
            part = np.minimum((since[here] * parts / length).astype(np.intp), parts - 1)
            new_beat[here] = len(lengths) + part
            new_since[here] -= part * length / parts
            lengths += [length / parts] * parts
            grades += [REPAIRED] * parts
        else:
            new_beat[here] = len(lengths)
            lengths.append(length)
            grades.append(REGULAR if fits(length) else REJECTED)
        number += 1
    all_rr, grade = np.array(lengths), np.array(grades, np.intp)
    return Rhythm(new_beat, new_since, all_rr, grade, float(np.median(all_rr[grade == grade.min()])), by_time)


def cycle_position(
    since: ArrayLike, rr: ArrayLike, typical: float, *, stretch: str = "diastole"
) -> NDArray[np.float64]:
    """Tell where moments of beats of different length lie in the typical cycle.

    Systole hardly changes its length with the heart rate [1]_: with `stretch` diastole, the first `SYSTOLE` of the
    typical cycle is kept as it is and only the rest stretched; with cycle, all of it is.

    Parameters
    ----------
    since
        Time in ms since the R wave, any shape.
    rr
        RR interval of the beat in ms, of the same shape or one for all.
    typical
        RR interval in ms of the typical cycle.
    stretch
        ``diastole`` or ``cycle``.

    Returns
    -------
    NDArray[np.float64]
        Fraction of the typical cycle, 0 to below 1, shape of `since`.

    References
    ----------
    .. [1] Weissler et al., Systolic time intervals in heart failure in man, Circulation 37 (1968),
       doi:10.1161/01.CIR.37.2.149.
    """
    moments, lengths = np.broadcast_arrays(np.asarray(since, np.float64), np.asarray(rr, np.float64))
    systole = SYSTOLE * typical
    position = moments / lengths
    if stretch == "diastole":
        diastole = np.maximum(lengths - systole, 1e-3)
        later = SYSTOLE + (1 - SYSTOLE) * (moments - systole) / diastole
        # a beat that leaves no time for a diastole is no whole beat
        position = np.where(lengths > 1.1 * systole, np.where(moments < systole, moments / typical, later), position)
    return np.asarray(np.clip(position, 0.0, np.nextafter(1.0, 0.0)))


@dataclass(frozen=True)
class Binned:
    """K-space of the frames of one cycle."""

    kspace: NDArray[np.complex64]
    """``(frame, coil, ky, kx)`` complex64, zero where nothing was measured."""
    grade: NDArray[np.intp]
    """``(frame, ky)`` of the beats each line is from, `BRIDGED` where they are far apart; -1 for lines that never
    came."""
    used: NDArray[np.bool_]
    """``(beat,)`` bool, True where a beat gave to a frame."""


def bin_lines(
    data: NDArray[np.complex64],
    row: NDArray[np.intp],
    position: NDArray[np.float64],
    rhythm: Rhythm,
    frames: int,
    rows: int,
) -> Binned:
    """Interpolate every line in time, around the cycle, to frames at ``k / frames``.

    A frame takes the readouts of a line with weights that fall linearly from the moment of the frame to nought one
    frame away, or as far away as the next readout lies on the other side: linear interpolation where readouts are rare,
    an average where there are many. Rejected beats serve only lines and frames for which there is no other near by;
    what is empty then is interpolated across the gap.

    Parameters
    ----------
    data
        ``(readout, coil, kx)`` complex64.
    row, position
        ``(readout,)`` row of k-space, and fraction of the cycle.
    rhythm
        The beats of the readouts.
    frames, rows
        Size of what comes out.
    """
    grade_of = rhythm.grade[rhythm.beat]
    kspace = np.zeros((frames, data.shape[1], rows, data.shape[2]), np.complex64)
    grade = np.full((frames, rows), -1, np.intp)
    used = np.zeros(len(rhythm.rr), np.bool_)
    targets = np.arange(frames) / frames
    order = np.argsort(row, kind="stable")
    lines, begins = np.unique(row[order], return_index=True)
    groups = np.split(order, begins[1:])
    usual = max(1.0 / frames, _usual_gap(position, groups, grade_of))
    for line, group in zip(lines.tolist(), groups, strict=True):
        best = group[grade_of[group] <= max(REPAIRED, grade_of[group].min())]
        choices = [(level, group[grade_of[group] == level], _WIDE * usual) for level in (REGULAR, REPAIRED, REJECTED)]
        for level, which, widest in (*choices, (BRIDGED, best, 1.0)):
            empty = np.flatnonzero(grade[:, line] < 0)
            if not len(which) or not len(empty):
                continue
            weights = _weights(targets[empty], position[which], 1.0 / frames, widest)
            total = weights.sum(axis=1)
            filled = total > 0
            weights = (weights[filled] / total[filled, None]).astype(np.float32)
            values = weights.astype(np.complex64) @ data[which].reshape(len(which), -1)
            kspace[empty[filled], :, line] = values.reshape(-1, *data.shape[1:])
            grade[empty[filled], line] = level
            used[rhythm.beat[which[(weights > 0).any(axis=0)]]] = True
    return Binned(kspace, grade, used)


def _usual_gap(position: NDArray[np.float64], groups: list[NDArray[np.intp]], grade: NDArray[np.intp]) -> float:
    """Median gap between neighbouring readouts of the same line around the cycle, of the best grade that there is."""
    gaps = []
    for group in groups:
        places = np.sort(position[group[grade[group] == grade[group].min()]])
        gaps.append(np.diff(places, append=places[0] + 1.0))
    return float(np.median(np.concatenate(gaps)))


def _weights(
    targets: NDArray[np.float64], position: NDArray[np.float64], frame: float, widest: float
) -> NDArray[np.float64]:
    """Weights ``(target, readout)`` of the readouts of one line, not normalised."""
    after = np.mod(position[None] - targets[:, None], 1.0)
    before = np.mod(targets[:, None] - position[None], 1.0)
    gap = after.min(axis=1) + before.min(axis=1)
    reach = np.where(gap <= widest + 1e-9, np.maximum(gap, frame), frame)
    return np.maximum(0.0, 1.0 - np.minimum(after, before) / reach[:, None])
