"""When each readout was measured, in milliseconds since the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.vendor import DAY
from recon_core.gating.beats import (
    TRIGGER_STEP,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def readout_times(
    headers: NDArray[np.void], since: NDArray[np.float64] | None, tick: float
) -> tuple[NDArray[np.float64] | None, str]:
    """Time of the readouts in ms by the clock of the scanner, which may begin anew at midnight.

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
