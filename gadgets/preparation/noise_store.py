"""Noise of earlier measurements on disk, by measurement id, for scans that come in another connection.

One file per measurement. Each is written whole under another name and then renamed, so that several processes may share
a folder: a reader finds the old file or the new one, and a file that vanishes meanwhile was never there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import time
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from gadgets.preparation.noise_statistics import KnownNoise, NoiseStatistics
from recon_core.errors import ResourceError
from recon_core.storage import open_private, replacing, xdg_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger("cinestream")

#: How long noise is kept, and of how many measurements at most, where the operator does not say.
DAYS, ENTRIES = 7.0, 1000
_DAY_SECONDS = 86_400.0
_SUFFIX = ".noise.npz"
_LEFTOVER_SECONDS = 3600.0  # after which a file that was never renamed has no writer any more
_BROKEN = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def default_folder() -> Path:
    """Folder for the noise in the cache of the user, whether it exists or not.

    Raises
    ------
    ResourceError
        If this user has no home.
    """
    return xdg_folder("XDG_CACHE_HOME", ".cache", "noise in; name one with --noise-store DIR") / "noise"


class NoiseStore:
    """A folder of noise statistics.

    Parameters
    ----------
    folder
        Made when it is first written to.
    days
        How long noise may be used after it was measured.
    entries
        Measurements that are kept at most; the oldest go first.
    """

    def __init__(self, folder: Path, days: float = DAYS, entries: int = ENTRIES) -> None:
        self.folder = folder
        self._days = days
        self._entries = entries

    def put(self, measurement: str, statistics: NoiseStatistics) -> str:
        """Keep the noise of a measurement, instead of what there was of it, unless that is of other coils.

        Returns
        -------
        str
            Why that could not be done; empty if it was.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._path(measurement)
            if path.exists():
                with contextlib.suppress(*_BROKEN):
                    earlier = _read(path, measurement)
                    if not _same_coils(earlier, statistics):
                        return "noise of other coils is kept under its measurementID; that of another scanner maybe"
                    logger.warning("the noise of measurement %s is kept already, and is replaced", measurement)
            with replacing(path) as part, io.BufferedWriter(open_private(part)) as file:
                np.savez(
                    file,
                    measurement=np.array(measurement),
                    labels=np.array(statistics.labels, np.str_),
                    products=np.asarray(statistics.products),
                    samples=np.array(statistics.samples),
                    dwell_us=np.array(statistics.dwell_us),
                )
            self._prune()
        except (OSError, ResourceError) as error:
            return f"{self.folder} cannot be written ({error}); free space or choose another folder"
        return ""

    def find(self, measurement: str) -> tuple[KnownNoise | None, str]:
        """Look for the noise of a measurement.

        Returns
        -------
        KnownNoise or None, str
            The noise; or None, and why there is none.
        """
        path = self._path(measurement)
        try:
            age = max(0.0, time.time() - path.stat().st_mtime)
        except OSError:
            return None, f"{self.folder} does not hold it"
        if age > self._days * _DAY_SECONDS:
            return None, f"what {self.folder} holds of it is {_in_words(age)} old, at most {self._days:g} days count"
        try:
            statistics = _read(path, measurement)
        except _BROKEN as error:
            return None, f"{path} is damaged and is ignored ({error})"
        return KnownNoise(statistics, f"store, measurement {measurement}, {_in_words(age)} old"), ""

    def _path(self, measurement: str) -> Path:
        """A name that no measurement id can lead out of the folder."""
        return self.folder / f"{hashlib.sha256(measurement.encode('utf-8', 'replace')).hexdigest()[:40]}{_SUFFIX}"

    def _prune(self) -> None:
        """Drop what is too old, and the oldest of what is too much."""
        now = time.time()
        kept = sorted(self._ages(now, _SUFFIX))
        surplus = [path for age, path in kept if age > self._days * _DAY_SECONDS] + [
            path for _, path in kept[self._entries :]
        ]
        surplus += [path for age, path in self._ages(now, ".part") if age > _LEFTOVER_SECONDS]
        for path in surplus:
            with contextlib.suppress(OSError):
                path.unlink()

    def _ages(self, now: float, suffix: str) -> Iterator[tuple[float, Path]]:
        for path in self.folder.glob(f"*{suffix}"):
            with contextlib.suppress(OSError):  # another process was faster
                yield now - path.stat().st_mtime, path


def _read(path: Path, measurement: str) -> NoiseStatistics:
    """Read a file of the store; raises one of `_BROKEN` if it is none."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:  # numpy leaves a broken file open
        found = str(stored["measurement"])
        labels = tuple(str(label) for label in stored["labels"])
        products = np.asarray(stored["products"], np.complex128)
        samples, dwell_us = int(stored["samples"]), float(stored["dwell_us"])
    if found != measurement:
        raise ValueError(f"it holds measurement {found}")
    if products.ndim != 2 or products.shape[0] != products.shape[1] or not np.isfinite(products).all() or samples < 1:
        raise ValueError(f"{samples} samples with products of shape {products.shape}")
    return NoiseStatistics(labels, products, samples, dwell_us)


def _same_coils(one: NoiseStatistics, other: NoiseStatistics) -> bool:
    if one.labels and other.labels:
        return one.labels == other.labels
    return one.products is not None and other.products is not None and one.products.shape == other.products.shape


def _in_words(seconds: float) -> str:
    for unit, name in ((_DAY_SECONDS, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.0f} s"
