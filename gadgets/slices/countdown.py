"""The time that a slice may take, so that the last image of a scan comes so soon after its last readout."""

from __future__ import annotations

import time

_SHORTEST = 1e-3  # s; 0 would be no limit


class Countdown:
    """Shares the time of a scan among its slices.

    Parameters
    ----------
    deadline
        Seconds from the last readout to the last image.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._first: float | None = None
        self._last = 0.0
        self._readouts = 0

    def came(self, readouts: int, at: float) -> None:
        """Note that readouts came, and when by `time.monotonic`."""
        if self._first is None:
            self._first = at
        self._last = at
        self._readouts += readouts

    def share(self, slices: int, readouts: int) -> float:
        """Seconds for the slice that is next.

        Parameters
        ----------
        slices
            How many are still to be made after it, as far as is known.
        readouts
            How many readouts of them have not come.

        Returns
        -------
        float
            Equal parts of the time up to the last image, if the readouts go on coming as they did; but no more than if
            the one that came last were the last of all. At least a millisecond.
        """
        left = self._deadline
        coming = 0.0
        if self._first is not None:
            left -= time.monotonic() - self._last
            coming = readouts * (self._last - self._first) / max(1, self._readouts)
        return max(_SHORTEST, min(left, (left + coming) / (1 + slices)))
