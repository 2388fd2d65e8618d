"""ECG waveforms in, R waves out, on the clock of the readouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.vendor import DAY
from recon_core.errors import DataError
from recon_core.gating.beats import SHORTEST_RR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.wire.messages import Waveform

# Of Siemens; 1 to 4 are pulse, respiration and external signals, 5 to 9 the same while the scanner learns them.
_ECG_ID = 0
_USUAL_SAMPLE, _LONGEST_SAMPLE = 2500.0, 100_000.0  # us


class Ecg:
    """The R waves of a scan, as its waveforms come in.

    Parameters
    ----------
    tick
        Length of a tick of the time stamps in ms.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._triggers: list[float] = []
        self._ends: list[float] = []

    def add(self, waveform: Waveform) -> None:
        """Add a waveform; one that is not an ECG with a trigger channel is ignored."""
        header, (channels, samples) = waveform.header, waveform.data.shape
        if int(header["waveform_id"]) != _ECG_ID or channels < 2 or not samples:
            return
        spacing = float(header["sample_time_us"])
        if not 0.0 < spacing <= _LONGEST_SAMPLE:
            spacing = _USUAL_SAMPLE
        begin = float(header["time_stamp"]) * self._tick
        # the trigger is the last channel, whatever the header says of its number; any value but 0 is one
        on = np.concatenate([[False], waveform.data[-1] != 0])
        rises = np.flatnonzero(on[1:] & ~on[:-1])
        self._triggers += (begin + rises * spacing / 1000).tolist()
        self._ends.append(begin + samples * spacing / 1000)

    @property
    def has_data(self) -> bool:
        """Whether any ECG came."""
        return bool(self._ends)

    def reaches(self, moment: float) -> bool:
        """Tell whether the ECG came as far as a moment in ms on the clock of the time stamps."""
        return bool((_near(np.array(self._ends), moment) >= moment).any())

    def triggers(self, moment: float) -> NDArray[np.float64]:
        """Return the R waves.

        Parameters
        ----------
        moment
            ms on the clock of the time stamps; the triggers are those of the half days before and after it.

        Returns
        -------
        NDArray[np.float64]
            Ascending times in ms.

        Raises
        ------
        DataError
            If there are none.
        """
        if not self._ends:
            raise DataError("no ECG came")
        if not self._triggers:
            raise DataError(f"the trigger channel of the ECG ({len(self._ends)} packets) is silent")
        times = np.unique(_near(np.array(self._triggers), moment))
        # a trigger that lasts from one packet into the next, or a packet that came twice
        apart = np.diff(times, prepend=-np.inf) >= SHORTEST_RR
        return np.asarray(times[apart])


def _near(times: NDArray[np.float64], moment: float) -> NDArray[np.float64]:
    """Times on the day that brings them nearest to a moment."""
    return np.asarray(moment + np.mod(times - moment + DAY / 2, DAY) - DAY / 2)
