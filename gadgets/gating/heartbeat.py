"""Time stamps of a slice in, times in ms within the heartbeat out; none where the stamps cannot be believed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gadgets.gating.clock import frame_time, readout_times
from recon_core.errors import DataError
from recon_core.gating.beats import LONGEST_RR, trigger_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

# ms since an R wave that are believed: the slowest heart, and one trigger that was missed
_LONGEST = 2 * LONGEST_RR


@dataclass(frozen=True)
class Heartbeat:
    """When in the heartbeat the frames of a slice were measured."""

    since: NDArray[np.float64]
    """``(frame,)`` time in ms since the R wave, NaN where it is not known."""
    clock: NDArray[np.float64]
    """``(frame,)`` ms on the clock of the scanner."""
    real_time: bool = False
    """The frames show a scan that runs through the beats, not the phases of one heartbeat."""
    rr: float = 0.0
    """Typical RR interval in ms; 0 where it is not known."""
    doubt: str = ""
    """Why there are no times since the R wave; empty where there are."""
    stamped: bool = True
    """False where the time stamps were left empty, which is nothing unusual without an ECG."""

    @property
    def frame_time(self) -> float:
        """Time in ms from frame to frame; 0 where it is not known."""
        return frame_time(self.since, self.clock, real_time=self.real_time)

    def joined(self, later: Heartbeat) -> Heartbeat:
        """That of the frames of both, of one slice that comes in windows; the later one knows the RR interval best."""
        since = np.concatenate([self.since, later.since])
        return replace(later, since=since, clock=np.concatenate([self.clock, later.clock]), rr=later.rr or self.rr)


def find_heartbeat(
    headers: NDArray[np.void], readouts: NDArray[np.void], tick: float, *, real_time: bool = False
) -> Heartbeat:
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
    real_time
        As in `Heartbeat`.

    Returns
    -------
    Heartbeat
        The RR interval is the typical time between the triggers that were used, known from two of them on where the
        clock of the scanner is stamped too.
    """
    since, clock = headers["physiology_time_stamp"][:, 0] * float(tick), headers["acquisition_time_stamp"] * float(tick)
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
            by_clock, _ = readout_times(readouts[believed], times[believed], tick)
            rr = trigger_interval(times[believed], by_clock)
        except DataError as error:
            doubt = str(error)
    known = np.where((since <= _LONGEST) & (not doubt), since, np.nan)
    return Heartbeat(known, clock, real_time, rr, doubt, stamped)
