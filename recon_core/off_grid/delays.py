"""Gradient delays of radial scans: found where spokes cross, and put into their positions.

Rosenzweig, Holme, Uecker, Magn Reson Med 2019, doi:10.1002/mrm.27506 (RING).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Samples around the centre in which spokes may cross, how finely, and how many pairs of spokes are looked at.
_REACH, _FINENESS, _MOST_PAIRS = 4.0, 16, 300
_STEEPNESS = 0.5  # least sine of the angle between two spokes
_NEAR = 40  # spokes between those of a pair: what has moved in between crosses nowhere
_ROUNDS, _TRIM = 6, 2.5  # of the robust fit, and residuals, in their median, that are left out
_FEWEST_PAIRS = 20
_FIELD = 0.55  # share of the oversampled projection that holds the object


class Delays(NamedTuple):
    """Shifts of spokes in samples: a spoke of angle a lies ``(x cos a + xy sin a, xy cos a + y sin a)`` off."""

    x: float
    y: float
    xy: float
    error: float
    """Standard error of each."""

    @property
    def matter(self) -> bool:
        """Whether they are more than what chance makes of none, and change the image."""
        return max(abs(self.x), abs(self.y), abs(self.xy)) > max(0.05, 4 * self.error)

    def __str__(self) -> str:
        """The three values in samples."""
        return f"{self.x:.2f} along x, {self.y:.2f} along y, {self.xy:.2f} between them"


def find_delays(samples: NDArray[np.complex64], positions: NDArray[np.float32]) -> Delays | None:
    """Find the delays of spokes through the centre of k-space, in the order in which they were measured.

    Where two spokes cross they measure the same; where they should do so, they do not if there are delays. Each pair
    gives two equations for the three delays.

    Parameters
    ----------
    samples
        ``(spoke, coil, sample)`` complex64.
    positions
        ``(spoke, sample, 2)`` in cycles per pixel, as planned.

    Returns
    -------
    Delays or None
        None where spokes have no middle, or too few of them cross.
    """
    spokes = _usable(positions)
    if len(spokes) < 2:
        return None
    samples, positions = samples[spokes], positions[spokes]
    step = (positions[:, -1] - positions[:, 0]) / (positions.shape[1] - 1)
    spacing = np.linalg.norm(step, axis=-1)
    directions = (step / spacing[:, None]).astype(np.float64)
    centre = -np.einsum("sd,sd->s", positions[:, 0], directions) / spacing  # sample at which it passes the centre
    offsets = np.arange(-_REACH, _REACH + 0.5 / _FINENESS, 1 / _FINENESS)
    values = np.stack([_between(one, at + offsets) for one, at in zip(samples, centre, strict=True)])
    left, right = _pairs(directions)
    if len(left) < _FEWEST_PAIRS:
        return None
    rows, sides = [], []
    for one, other in zip(left, right, strict=True):
        a, b = values[one], values[other]
        distance = np.square(np.abs(a)).sum(0)[:, None] + np.square(np.abs(b)).sum(0) - 2 * (a.T @ b.conj()).real
        at, there = np.unravel_index(int(distance.argmin()), distance.shape)
        along = directions[one] - directions[other]
        rows += [(along[0], 0.0, along[1]), (0.0, along[1], along[0])]
        sides += list(offsets[there] * directions[other] - offsets[at] * directions[one])
    return _fit(np.array(rows), np.array(sides))


def correct_positions(positions: NDArray[np.float32], delays: Delays) -> NDArray[np.float32]:
    """Shift spokes ``(..., sample, 2)`` by their delays."""
    step = positions[..., 1:2, :] - positions[..., :1, :]
    matrix = np.array([[delays.x, delays.xy], [delays.xy, delays.y]], np.float32)
    return np.asarray(positions + step @ matrix, np.float32)


def _usable(positions: NDArray[np.float32]) -> NDArray[np.intp]:
    """Spokes that go on far enough on both sides of the centre."""
    radius = np.linalg.norm(positions, axis=-1)
    nearest = radius.argmin(axis=1)
    reach = int(_REACH) + 2
    return np.flatnonzero((nearest >= reach) & (nearest < positions.shape[1] - reach))


def _between(spoke: NDArray[np.complex64], at: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Values ``(coil, place)`` between the samples ``(coil, sample)``, without what lies beside the object."""
    n = spoke.shape[1]
    place = np.fft.fftfreq(n, 1 / n)
    projection = np.fft.ifft(spoke, axis=1) * (np.abs(place) <= _FIELD * n / 2)
    waves = np.exp(-2j * np.pi / n * np.outer(place, at))
    return np.asarray(projection @ waves, np.complex64)


def _pairs(directions: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of spokes that cross steeply, were measured soon after each other, and are spread over the scan."""
    count = len(directions)
    first, apart = np.meshgrid(np.arange(count), np.arange(1, min(_NEAR, count - 1) + 1), indexing="ij")
    left, right = first.ravel(), (first + apart).ravel()
    left, right = left[right < count], right[right < count]
    sine = directions[left, 0] * directions[right, 1] - directions[left, 1] * directions[right, 0]
    steep = np.flatnonzero(np.abs(sine) > _STEEPNESS)
    chosen = np.random.default_rng(0).permutation(steep)[:_MOST_PAIRS]
    return left[chosen], right[chosen]


def _fit(rows: NDArray[np.float64], sides: NDArray[np.float64]) -> Delays:
    """Least squares without the pairs that say something else than most."""
    used = np.ones(len(sides), np.bool_)
    for _ in range(_ROUNDS):
        solution = np.linalg.lstsq(rows[used], sides[used], rcond=None)[0]
        residual = np.abs(rows @ solution - sides)
        used = residual <= max(_TRIM * float(np.median(residual)), 1 / _FINENESS)
    spread = float(np.sqrt(np.mean(residual[used] ** 2)))
    x, y, xy = (float(value) for value in solution)
    return Delays(x, y, xy, float(spread / np.sqrt(max(1, np.count_nonzero(used) / 3))))
