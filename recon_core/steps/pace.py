"""How long methods take here: expected from a table at first, and learned while they run."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING, NamedTuple

from recon_core.methods import METHODS, find_method
from recon_core.turns import work_time

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Frames, coils, ky and kx of the slice that `recon_core.methods.MethodInfo.seconds` is for.
REFERENCE_SHAPE = (24, 10, 192, 156)
_UNKNOWN = 2.0  # times the table, before anything has run here
_LEAST = 0.01  # of the time of the table, for whatever does not depend on the size
_LEARNT = 0.5  # of the difference to what was known, with each run of a method
# The same with each run of another method: what was slow once, as in its first run, is tried again some time.
_FORGOTTEN = 0.02


class Job(NamedTuple):
    """A method and what it is run on."""

    method: str
    """Name of the method."""
    weights: str
    """Name of its weights; empty without."""
    place: tuple[str, int]
    """Kind of device, and number of threads."""
    shape: tuple[int, ...]
    """(frame, coil, y, x)."""


class Pace:
    """Time that methods take, by device and number of threads, over that of the table."""

    def __init__(self) -> None:
        self._factors: dict[tuple[str, int], dict[tuple[str, str], float]] = {}

    def seconds(self, job: Job) -> float:
        """Predict how long a method will take.

        Parameters
        ----------
        job
            Where its method has not run yet, it is taken to be as much slower than in the table as the others were.
        """
        known = self._factors.get(job.place, {})
        others = statistics.median(known.values()) if known else _UNKNOWN
        return known.get((job.method, job.weights), others) * expected_seconds(job)

    @contextlib.contextmanager
    def measured(self, job: Job) -> Iterator[None]:
        """Learn how long a method takes that is run meanwhile; nothing is learned if it fails."""
        begin = work_time()
        yield
        self.learn(job, work_time() - begin)

    def learn(self, job: Job, seconds: float) -> None:
        """Take into account how long a method took."""
        found = seconds / expected_seconds(job)
        known, key = self._factors.setdefault(job.place, {}), (job.method, job.weights)
        for other, factor in known.items():
            known[other] = factor + (_LEARNT if other == key else _FORGOTTEN) * (found - factor)
        known.setdefault(key, found)


def expected_seconds(job: Job) -> float:
    """Time by the table, for the size of the slice; of a method that is not in it, that of a usual network."""
    usual = statistics.median(one.seconds for one in METHODS.values() if one.network)
    return (find_method(job.method).seconds or usual) * relative_size(job)


def relative_size(job: Job) -> float:
    """What there is to do for a slice, over that for the reference shape.

    Networks work on the image, all other methods on the data of every coil.
    """
    size = 1.0
    for axis, (number, usual) in enumerate(zip(job.shape, REFERENCE_SHAPE, strict=True)):
        if axis != 1 or not find_method(job.method).network:
            size *= number / usual
    return size + _LEAST
