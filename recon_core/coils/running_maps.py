"""Coil maps of a series without an end, from the running average of its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Protocol

    from numpy.typing import NDArray

    class Estimate(Protocol):
        """Makes coil maps."""

        def __call__(
            self, source: NDArray[np.complex64], /, *, near: NDArray[np.complex64] | None
        ) -> tuple[NDArray[np.complex64], tuple[str, ...]]:
            """Of lines ``(coil, ky, kx)`` and earlier maps give maps ``(coil, y, x)``, and notes."""


# Measurements of a line over which it is averaged: enough against noise and breathing, few enough to follow a patient
# who moves.
_MEMORY = 64
# Frames between updates of settled maps; until then with every doubling of the average.
_REFRESH = 256


class RunningMaps:
    """Averages the lines of the frames of one slice and makes coil maps of them, seldom.

    Memory and work per frame do not grow with the length of the series. Maps are made when they are first asked for,
    whenever the average has doubled since, and from 256 frames on every 256 frames; each time from those before.
    """

    def __init__(self) -> None:
        self._frames = 0
        self._made_from = 0
        self._average: NDArray[np.complex64] | None = None
        self._counts: NDArray[np.intp] | None = None
        self._maps: NDArray[np.complex64] | None = None
        self.notes: tuple[str, ...] = ()  # on what had to be done differently in making the maps

    @property
    def lines(self) -> int:
        """How many lines the average has."""
        return 0 if self._counts is None else int(np.count_nonzero(self._counts))

    def add(self, kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> None:
        """Take a frame into the average.

        Parameters
        ----------
        kspace
            ``(coil, ky, kx)`` complex64.
        mask
            ``(ky,)`` bool, True where a line was measured.
        """
        if self._average is None or self._counts is None:
            self._average, self._counts = np.zeros_like(kspace), np.zeros(len(mask), np.intp)
        self._counts[mask] = np.minimum(self._counts[mask] + 1, _MEMORY)
        weight = (1.0 / self._counts[mask]).astype(np.float32)[:, None]
        self._average[:, mask] += weight * (kspace[:, mask] - self._average[:, mask])
        self._frames += 1

    def maps(self, estimate: Estimate, reference: NDArray[np.complex64] | None = None) -> NDArray[np.complex64] | None:
        """The present coil maps.

        Parameters
        ----------
        estimate
            Takes lines ``(coil, ky, kx)`` and the maps so far and gives maps ``(coil, y, x)``, all complex64, and notes
            on what had to be done differently; called when new maps are due.
        reference
            ``(coil, ky, kx)`` complex64 of a separate reference scan, to take instead of the average; or None.

        Returns
        -------
        ndarray or None
            ``(coil, y, x)`` complex64; None before the first frame.
        """
        if self._average is None:
            return None
        if self._maps is None or self._frames >= min(2 * self._made_from, self._made_from + _REFRESH):
            source = self._average if reference is None else reference
            self._maps, self.notes = estimate(source, near=self._maps)
            self._made_from = self._frames
        return self._maps
