"""The clock of the scanner, in milliseconds: when readouts were measured, and how far frames are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.vendor import DAY
from recon_core.gating.beats import TRIGGER_STEP

if TYPE_CHECKING:
    from numpy.typing import NDArray


def readout_times(
    headers: NDArray[np.void], since: NDArray[np.float64] | None, tick: float
) -> tuple[NDArray[np.float64] | None, str]:
    """Time of the readouts in ms by the clock of the scanner, which may wrap around at midnight.

    Parameters
    ----------
    headers
        ``(readout,)`` with the field ``acquisition_time_stamp``, in order of acquisition.
    since
        ``(readout,)`` time in ms since the last trigger, which must be of the same clock; None where it is not known.
    tick
        Length of a tick of the stamps in ms.

    Returns
    -------
    ndarray or None, str
        ``(readout,)``, or None and what is wrong with the stamps.
    """
    time = headers["acquisition_time_stamp"].astype(np.float64) * tick
    time[1:] += DAY * np.cumsum(np.diff(time) < -DAY / 2)
    if time.min() == time.max():
        return None, "stand still"
    if (np.diff(time) < -TRIGGER_STEP).any() or time[-1] < time[0]:
        return None, "run backwards"
    if since is not None:
        pause = np.diff(time) > TRIGGER_STEP
        # after a pause it may be another beat, though the time since its trigger goes on to rise from frame to frame
        new = (np.diff(since) < -TRIGGER_STEP) | (pause if 2 * np.count_nonzero(pause) < len(pause) else False)
        beats = np.split(time - since, np.flatnonzero(new) + 1)
        if np.median([np.ptp(beat) for beat in beats]) > TRIGGER_STEP:
            return None, "are not of the clock of the time since the trigger"
    return time, ""


def typical_step(steps: NDArray[np.float64]) -> float:
    """Typical step from one moment to the next: the mean of the rising ones without those across a gap.

    The mean is finer than the ticks of a clock, which are often about as long as the steps are.

    Parameters
    ----------
    steps
        ``(step,)`` in ms; NaN where one is not known.

    Returns
    -------
    float
        In ms; 0 where not most of the steps rise.
    """
    rising = steps[steps > 0]
    if 2 * len(rising) <= np.count_nonzero(~np.isnan(steps)):
        return 0.0
    return float(np.mean(rising[rising < 1.5 * np.median(rising)]))


def frame_time(since: NDArray[np.float64], clock: NDArray[np.float64], *, real_time: bool) -> float:
    """Time from frame to frame of one slice.

    Phases of one heartbeat may be measured in a beat each, so that only their time since the R wave shows how far they
    are apart. In real time that falls back at every beat, and the clock of the scanner shows it.

    Parameters
    ----------
    since
        ``(frame,)`` time in ms since the R wave, NaN where it is not known.
    clock
        ``(frame,)`` ms on the clock of the scanner, NaN where it is not known.
    real_time
        The frames show a scan that runs through the beats, not the phases of one heartbeat.

    Returns
    -------
    float
        In ms; 0 where neither shows it.
    """
    by_clock = np.diff(clock)
    by_clock = np.where(by_clock < -DAY / 2, by_clock + DAY, by_clock)
    best, other = (by_clock, np.diff(since)) if real_time else (np.diff(since), by_clock)
    return typical_step(best) or typical_step(other)
