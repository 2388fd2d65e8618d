"""The noise of a scan: gathered from noise readouts, and turned into the matrix that whitens the coils.

A scan's noise comes from a file that the user names, from the scan's own noise readouts, or from the store, where
another measurement left it that the header names. Which one it was is told in the log and with every image.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadgets.files.raw import open_scan
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Readouts
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.preparation.noise_store import NoiseStore
    from gadgets.problems import Problems
    from gadgets.wire.header import ScanHeader

logger = logging.getLogger("cinestream")

_WORST_CONDITION = 1e10


@dataclass(frozen=True)
class Whitening:
    """What makes the coils' noise independent and of unit standard deviation in real and imaginary part.

    Parameters
    ----------
    matrix
        ``(coil, coil)`` complex64, to be multiplied from the left.
    factor
        Variance of the noise readouts over that of the image readouts, by their dwell times and the receiver
        bandwidth; None where these are not known, then 1 is taken.
    condition
        Condition number of the covariance.
    """

    matrix: NDArray[np.complex64]
    factor: float | None
    condition: float


@dataclass
class NoiseStatistics:
    """What is known of the noise of a set of coils.

    Parameters
    ----------
    labels
        ``(coil,)`` names of the coils, or none.
    products
        ``(coil, coil)`` complex128, sum of ``n n^H`` over all samples; None before the first readout.
    samples
        How many samples per coil are in it.
    dwell_us
        Dwell time of the noise readouts.
    """

    labels: tuple[str, ...] = ()
    products: NDArray[np.complex128] | None = None
    samples: int = 0
    dwell_us: float = 0.0

    def add(self, readouts: Readouts) -> None:
        """Take noise readouts in; those with values that are not finite or of another coil count are ignored."""
        readouts = readouts[np.asarray(np.isfinite(readouts.data).all(axis=(1, 2)))]
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

    def whitening(self, coils: int, labels: tuple[str, ...], dwell_us: float, bandwidth: float) -> Whitening:
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
        condition = float(np.linalg.cond(covariance))
        if not condition < _WORST_CONDITION:
            raise DataError(f"the noise covariance is singular (condition {condition:.1e}); a coil may be dead")
        known = all(0 < value < math.inf for value in (dwell_us, self.dwell_us, bandwidth))
        factor = dwell_us / self.dwell_us * bandwidth if known else None
        matrix = np.linalg.inv(np.linalg.cholesky(covariance)) * np.sqrt(2 * (1.0 if factor is None else factor))
        return Whitening(np.asarray(matrix, np.complex64), factor, condition)

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


def read_noise(path: Path, group: str = "dataset") -> KnownNoise:
    """Read the noise readouts of a raw file.

    Raises
    ------
    DataError
        If it holds none that can be used.
    CinestreamError
        If it cannot be read.
    """
    with open_scan(path, group) as scan:
        statistics = NoiseStatistics(parse_header(scan.header).coil_labels)
        for item in scan.items:
            if isinstance(item, Readouts):
                statistics.add(item[(item.headers["flags"] & AcquisitionFlag.NOISE.bit) != 0])
    if not statistics.samples:
        raise DataError(f"{path}, group {group!r}, has no noise readouts (flag NOISE) with samples; name another file")
    return KnownNoise(statistics, f"file {path.name}, group {group}")


class ScanNoise:
    """Chooses the noise of one scan.

    Parameters
    ----------
    header
        The scan's header.
    problems
        Where to note why there is no whitening although there could be.
    whiten
        Use the noise at all.
    given
        Noise that goes before the scan's own, or None.
    store
        Where noise of other measurements is kept, and that of this one will be; or None.
    """

    def __init__(
        self,
        header: ScanHeader,
        problems: Problems,
        *,
        whiten: bool,
        given: KnownNoise | None = None,
        store: NoiseStore | None = None,
    ) -> None:
        self._header = header
        self._problems = problems
        self._whiten = whiten
        self._given = given
        self._store = store
        self._own = NoiseStatistics(header.coil_labels)
        #: What was used, for the images: the origin, then the figures of it.
        self.used: tuple[str, ...] = ("none",)
        #: Whether whitened data are in units of the noise, rather than only free of its correlations.
        self.scaled = False

    def add(self, readouts: Readouts) -> None:
        """Take noise readouts of the scan in."""
        self._own.add(readouts)

    def whitening(self, coils: int, dwell_us: float) -> NDArray[np.complex64] | None:
        """The whitening matrix ``(coil, coil)`` for image readouts, or None; noise that cannot be used is noticed."""
        self.keep(alone=False)
        if not self._whiten:
            return None
        for known in self._candidates():
            try:
                made = known.statistics.whitening(
                    coils, self._header.coil_labels, dwell_us, self._header.noise_bandwidth
                )
            except DataError as error:
                text = f"no noise whitening with the noise of the {known.origin}: {error}"
                self._problems.add("noise", text, damage=False)
                continue
            factor = "unknown, taken as 1" if made.factor is None else f"{made.factor:.4g}"
            figures = known.statistics.samples, factor, made.condition
            forms = ("samples {}", "bandwidth factor {}", "condition {:.4g}")
            self.used = (known.origin, *map(str.format, forms, figures))
            self.scaled = made.factor is not None
            logger.info("noise: %s", ", ".join(self.used))
            return made.matrix
        logger.info("noise: none, so the coils are not whitened")
        return None

    def keep(self, *, alone: bool) -> None:
        """Put the noise of the scan into the store.

        Parameters
        ----------
        alone
            The scan has nothing but noise: then to keep it is all that can be done, and not to is worth a word.
        """
        name = self._header.measurement_id
        if self._store is not None and name and self._own.samples:
            why = self._store.put(name, self._own)
            if not why:
                logger.info("noise of measurement %s is kept: %d samples", name, self._own.samples)
                return
        elif not alone:
            return
        elif not self._own.samples:
            why = "its readouts hold no samples that are finite"
        elif self._store is None:
            why = "no noise store is in use (--noise-store DIR)"
        else:
            why = "the header has no measurementID to find it by"
        text = f"the noise of this scan is not kept for others that depend on it: {why}"
        self._problems.add("noise store", text, damage=False)

    def _candidates(self) -> Iterator[KnownNoise]:
        """All noise that there is, the best first."""
        if self._given is not None:
            yield self._given
        if self._own.samples:
            yield KnownNoise(self._own, "stream")
        wanted = self._header.noise_dependency
        if not wanted or self._given is not None or self._own.samples:
            return
        if self._store is None:
            found, why = None, "no noise store is in use"
        else:
            found, why = self._store.find(wanted)
        if found is not None:
            yield found
            return
        text = f"the scan depends on noise of measurement {wanted}, which is not known: {why}. It is not whitened"
        remedy = "send the noise measurement first to a server with a noise store, or replay with --noise FILE"
        self._problems.add("noise dependency", f"{text}; {remedy}", damage=False)
