"""Noise of a set of coils: gathered from noise readouts, and turned into the matrix that whitens the coils."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadgets.preparation.odd_coils import check_coils
from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.wire.messages import Readouts

_WORST_CONDITION = 1e10
_LARGEST_RATIO = 1e12  # of a sample to the noise
_LARGEST_FACTOR = 1e30  # that float32 can multiply with
#: Coils that are believed; their covariance grows with the square.
MOST_COILS = 1024


@dataclass(frozen=True)
class Whitening:
    """Makes the noise of the coils independent and of unit standard deviation in real and imaginary part."""

    matrix: NDArray[np.complex64]
    """``(used coil, coil)`` complex64, to be multiplied from the left."""
    colouring: NDArray[np.complex64]
    """``(used coil, used coil)`` complex64, the inverse among the coils that are used."""
    factor: float | None
    """Variance of the noise readouts over that of the image readouts, by their dwell times and the receiver bandwidth;
    None where these are not known, then 1 is taken."""
    condition: float
    """Condition number of the covariance."""
    notes: tuple[str, ...] = ()
    """Coils that are left out or not believed."""


@dataclass
class NoiseStatistics:
    """Noise statistics of a set of coils."""

    labels: tuple[str, ...] = ()
    """``(coil,)`` names of the coils, or none."""
    products: NDArray[np.complex128] | None = None
    """``(coil, coil)`` complex128, sum of ``n n^H`` over all samples; None before the first readout."""
    samples: int = 0
    """How many samples per coil are in it."""
    dwell_us: float = 0.0
    """Dwell time of the noise readouts."""
    ignored: int = 0
    """How many readouts could not be used."""

    def add(self, readouts: Readouts) -> None:
        """Take noise readouts in; those with values not finite, or with other or too many coils, are ignored."""
        usable = np.isfinite(readouts.data).all(axis=(1, 2)) & (0 < readouts.data.shape[1] <= MOST_COILS)
        self.ignored += int(np.count_nonzero(~usable))
        readouts = readouts[np.asarray(usable)]
        if not readouts.data.size:
            return
        coils = readouts.data.shape[1]
        if self.products is None:
            self.products = np.zeros((coils, coils), np.complex128)
            self.dwell_us = float(readouts.headers["sample_time_us"][0])
        if self.products.shape[0] == coils:
            # one by one, so that rounding does not depend on how the stream was cut into runs
            for values in readouts.data.astype(np.complex128):
                self.products += values @ values.conj().T
                self.samples += values.shape[1]
        else:
            self.ignored += len(readouts)

    def whitening(
        self,
        coils: int,
        labels: tuple[str, ...],
        dwell_us: float,
        bandwidth: float,
        readout: tuple[NDArray[np.complex64], int] | None = None,
    ) -> Whitening:
        """Make the whitening matrix for image readouts.

        Parameters
        ----------
        coils
            Of the image readouts.
        labels
            ``(coil,)`` their names, or none.
        dwell_us
            Their dwell time.
        bandwidth
            ``relativeReceiverNoiseBandwidth`` of the scan.
        readout
            An image readout ``(coil, sample)`` and its sample of the k-space centre, to compare the noise with.

        Raises
        ------
        DataError
            If the noise is that of other coils, or not good enough.

        Notes
        -----
        The scale follows Gadgetron: unit standard deviation at the bandwidth of the image readouts.
        """
        if self.products is None or self.products.shape[0] != coils:
            own = 0 if self.products is None else self.products.shape[0]
            raise DataError(f"the noise readouts have {own} coils, the image readouts {coils}")
        if self.samples <= 2 * coils:
            raise DataError(f"{self.samples} noise samples are too few for {coils} coils")
        order = self._order(labels, coils)
        covariance = self.products[np.ix_(order, order)] / (self.samples - 1)
        names = labels if len(labels) == coils else tuple(map(str, range(coils)))
        checked = check_coils(covariance, readout, names)
        used = checked.used
        if not used.any():
            raise DataError("no coil has any noise")
        covariance = checked.covariance[np.ix_(used, used)]
        condition = float(np.linalg.cond(covariance))
        if not condition < _WORST_CONDITION:
            raise DataError(f"the noise covariance is singular (condition {condition:.1e}); a coil may be dead")
        known = all(0 < value < math.inf for value in (dwell_us, self.dwell_us, bandwidth))
        factor = dwell_us / self.dwell_us * bandwidth if known else None
        root = np.linalg.cholesky(covariance) / np.sqrt(2 * (1.0 if factor is None else factor))
        matrix = np.zeros((len(root), coils), np.complex128)
        matrix[:, used] = np.linalg.inv(root)
        seen = 0.0 if readout is None else np.abs(matrix @ readout[0]).max(initial=0.0)
        if not (seen < _LARGEST_RATIO and np.abs(matrix).max() < _LARGEST_FACTOR):
            raise DataError("it is so much weaker than the image readouts that it cannot be theirs")
        single = np.asarray(matrix, np.complex64), np.asarray(root, np.complex64)
        return Whitening(*single, factor, condition, checked.notes)

    def _order(self, labels: tuple[str, ...], coils: int) -> list[int]:
        """Where each coil of the image readouts is among those of the noise; by their names, where both have them."""
        if len(self.labels) != coils or len(labels) != coils or self.labels == labels:
            return list(range(coils))
        if len(set(labels)) < coils or set(labels) != set(self.labels):
            odd = sorted({*labels} ^ {*self.labels}) or sorted(labels)
            raise DataError(f"the noise was measured with other coils than the images ({', '.join(odd[:6])})")
        return [self.labels.index(label) for label in labels]


@dataclass(frozen=True)
class KnownNoise:
    """Noise that was measured elsewhere, and where it is from, in words."""

    statistics: NoiseStatistics
    origin: str
