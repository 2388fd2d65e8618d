"""Time stamps of a slice in, times in ms within the heartbeat out; none where the stamps cannot be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadgets.gating.clock import readout_times
from recon_core.errors import DataError
from recon_core.gating.beats import trigger_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

# ms since an R wave that are believed: the slowest heart, and a trigger that was missed
_LONGEST = 8000.0


@dataclass(frozen=True)
class Heartbeat:
    """When in the heartbeat the frames of a slice were measured.

    Parameters
    ----------
    since
        ``(frame,)`` time in ms since the R wave, NaN where it is not known.
    rr
        Typical RR interval in ms; 0 where it is not known.
    frame_time
        Time in ms from frame to frame; 0 where it is not known.
    doubt
        Why there are no times since the R wave; empty where there are.
    stamped
        False where the time stamps were left empty, which is nothing unusual without an ECG.
    """

    since: NDArray[np.float64]
    rr: float
    frame_time: float
    doubt: str
    stamped: bool


def find_heartbeat(headers: NDArray[np.void], readouts: NDArray[np.void], tick: float) -> Heartbeat:
    """Turn the time stamps of a slice into times.

    Parameters
    ----------
    headers
        ``(frame,)`` of the acquisition header, one per frame.
    readouts
        ``(readout,)`` with the fields ``acquisition_time_stamp`` and ``physiology_time_stamp``, of all readouts of the
        slice in order of acquisition; empty where only those of the frames are known.
    tick
        Length of a tick of the stamps in ms.

    Returns
    -------
    Heartbeat
        The RR interval is the typical time between the triggers that were used, known from two of them on where the
        clock of the scanner is stamped too.
    """
    since = headers["physiology_time_stamp"][:, 0] * float(tick)
    all_stamps = readouts if len(readouts) else headers
    times = all_stamps["physiology_time_stamp"][:, 0] * float(tick)
    rr, doubt, stamped = 0.0, "", bool(times.any())
    believed = times <= _LONGEST
    if not stamped:
        doubt = "the readouts carry no time since an R wave"
    elif believed.mean() < 0.5:
        doubt = f"the time since the R wave is {np.median(times) / 1000:.0f} s: no gating was on"
    elif len(readouts):
        try:
            clock, _ = readout_times(readouts[believed], times[believed], tick)
            rr = trigger_interval(times[believed], clock)
        except DataError as error:
            doubt = str(error)
    known = np.where((since <= _LONGEST) & (not doubt), since, np.nan)
    return Heartbeat(known, rr, _frame_time(known, headers, tick), doubt, stamped)


def _frame_time(since: NDArray[np.float64], headers: NDArray[np.void], tick: float) -> float:
    """From the time since the R wave; where that does not rise or is not known, from the clock of the scanner."""
    steps = np.diff(since)
    if len(steps) and (steps > 0).all():
        return float(steps.mean())  # finer than the ticks
    clock = np.diff(headers["acquisition_time_stamp"].astype(np.float64))
    steps = np.concatenate([steps[steps > 0], clock[clock > 0] * tick if (clock > 0).all() else clock[:0]])
    return float(np.median(steps)) if len(steps) else 0.0
