"""Whether the echoes lie where the readouts say that the k-space centre is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.problems import Kind
from gadgets.wire.messages import AcquisitionFlag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.wire.messages import Readouts

# Readouts by the k-space centre that are looked at, in either direction; most of them must agree.
_READOUTS, _AGREEING = 8, 6
# Columns: off-resonance and coils move an echo by few, and noise has no echo at all.
_SPREAD, _LEAST, _SHARE = 2, 4, 1 / 16
_DISTINCT = 4.0  # energy of the echo over the mean of the readout


class EchoWatch:
    """Says once per encoding and direction of readouts that their echoes lie far from the k-space centre.

    Nothing is moved: whether samples or the number of the central one are wrong is not seen from them.

    Parameters
    ----------
    problems
        Where it is said.
    """

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._places: dict[tuple[int, bool], list[int]] = {}

    def look(self, readouts: Readouts, central: NDArray[np.bool_]) -> None:
        """Look at prepared readouts of one encoding.

        Parameters
        ----------
        readouts
            Their column ``n // 2`` is the k-space centre as the sender has it.
        central
            ``(readout,)`` bool, True where the line goes by the k-space centre: every second one may be reversed.
        """
        encoding = int(readouts.headers["encoding_space_ref"][0])
        reverse = readouts.flagged(AcquisitionFlag.REVERSE)
        for direction in (False, True):
            places = self._places.setdefault((encoding, direction), [])
            which = np.flatnonzero(central & (reverse == direction))[: _READOUTS - len(places)]
            if len(which):
                places += _peaks(readouts.data[which])
                if len(places) == _READOUTS:
                    self._judge(places, readouts.data.shape[2], "reversed " if direction else "")

    def _judge(self, places: list[int], columns: int, which: str) -> None:
        usual = int(np.median(places))
        agreeing = sum(abs(place - usual) <= _SPREAD for place in places)
        if agreeing >= _AGREEING and abs(usual) > max(_LEAST, _SHARE * columns):
            side = "after" if usual > 0 else "before"
            text = (
                f"the echoes of {which}readouts lie {abs(usual)} of {columns} columns {side} the k-space centre that "
            )
            text += "center_sample says: samples may be lost and the phase be wrong; look at what converts the scan"
            self._problems.add(Kind.ECHO, text, damage=False, pixels=True)


def _peaks(data: NDArray[np.complex64]) -> list[int]:
    """Column of most energy of each readout, from the k-space centre; where none stands out, the centre."""
    energy = (data.real**2 + data.imag**2).sum(axis=1)
    peak = energy.argmax(axis=1)
    distinct = energy.max(axis=1) > _DISTINCT * energy.mean(axis=1)
    return [int(place) for place in np.where(distinct, peak - data.shape[2] // 2, 0)]
