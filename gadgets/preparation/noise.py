"""Choice of the noise of a scan: a given file, the scan's own noise readouts, or the store of earlier measurements.

The source that was used is logged and stored with every image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gadgets.preparation.noise_statistics import KnownNoise, NoiseStatistics
from gadgets.problems import Kind
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from gadgets.preparation.noise_statistics import Whitening
    from gadgets.preparation.noise_store import NoiseStore
    from gadgets.problems import Problems
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import Readouts

logger = logging.getLogger("cinestream")


@dataclass(frozen=True)
class NoiseSources:
    """Noise from outside of a scan."""

    given: KnownNoise | None = None
    """Noise of a file that the user names, used instead of the scan's own; or None."""
    store: NoiseStore | None = None
    """Where noise of other measurements is kept, and that of this one will be; or None."""


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
    sources
        Noise from outside of the scan.
    """

    def __init__(
        self, header: ScanHeader, problems: Problems, *, whiten: bool, sources: NoiseSources | None = None
    ) -> None:
        self._header = header
        self._problems = problems
        self._whiten = whiten
        sources = sources or NoiseSources()
        self._given = sources.given
        self._store = sources.store
        self._own = NoiseStatistics(header.coil_labels)
        #: What was used, for the images: the origin, then the figures of it.
        self.used: tuple[str, ...] = ("none",)
        #: Whether whitened data are in units of the noise, rather than only free of its correlations.
        self.scaled = False

    def add(self, readouts: Readouts) -> None:
        """Take noise readouts of the scan in."""
        self._own.add(readouts)

    def whitening(
        self, coils: int, dwell_us: float, readout: tuple[NDArray[np.complex64], int] | None = None
    ) -> Whitening | None:
        """The whitening of image readouts, or None; noise and coils that cannot be used are noticed.

        Parameters
        ----------
        coils, dwell_us
            Of the image readouts.
        readout
            As for `NoiseStatistics.whitening`.
        """
        self.keep(alone=False)
        if not self._whiten:
            return None
        if self._own.ignored:
            text = f"{self._own.ignored} noise readouts hold values that are not finite, or have other coils"
            self._problems.add(Kind.NOISE_VALUES, f"{text}; they are not used", damage=False, pixels=True)
        for known in self._candidates():
            try:
                made = known.statistics.whitening(
                    coils, self._header.coil_labels, dwell_us, self._header.noise_bandwidth, readout
                )
            except DataError as error:
                text = f"no noise whitening with the noise of the {known.origin}: {error}"
                self._problems.add(Kind.NOISE, text, damage=False, pixels=True)
                continue
            factor = "unknown, taken as 1" if made.factor is None else f"{made.factor:.4g}"
            figures = known.statistics.samples, factor, made.condition
            forms = ("samples {}", "bandwidth factor {}", "condition {:.4g}")
            self.used = (known.origin, *map(str.format, forms, figures))
            self.scaled = made.factor is not None
            logger.info("noise: %s", ", ".join(self.used))
            if made.notes:
                self._problems.add(Kind.ODD_COIL, "; ".join(made.notes), damage=False, pixels=True)
            return made
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
        self._problems.add(Kind.NOISE_STORE, text, damage=False)

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
        self._problems.add(Kind.NOISE_DEPENDENCY, f"{text}; {remedy}", damage=False, pixels=True)
