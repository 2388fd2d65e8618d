"""Heartbeats from the data themselves: where neither time stamps nor an ECG show the R waves.

A line that is measured again and again shows the heart beating. What changes in the lines near the k-space centre is
one motion for all of them, their first principal component over time; ejection and filling give it the shape of the
volume of the ventricle, from which the beats and the beginning of each contraction are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LINES, _COLUMNS = 8, 48  # around the k-space centre, that a signal is made of
_FEWEST = 8  # measurements of a line that show a motion
_STEP = 5.0  # ms, grid of the signal
_SLOWEST, _FASTEST = 0.5, 3.0  # Hz, heart rates that are looked for
_SHAPE = 8.0  # Hz, up to which the shape of a beat is looked at
_SIMILARITY = 0.2  # autocorrelation one beat later that a rhythm has at least, however irregular
_STANDS_OUT = 1.5  # of the first principal component over the second, in energy: one motion, not noise
_BEATING = 0.1  # share of the variance at heart rates; the rest is drift and breathing
_ROUNDING = 1e-9  # of the energy of the lines: less is no motion, but their finite precision
_HARMONIC = 0.8  # of the best autocorrelation: the shortest period as good as that is the beat, not two of them
_WINDOW = 0.4, 0.15  # of a period before end systole: what is compared of two beats, and how far it may move
_ALIKE = 0.5  # correlation with the mean beat that makes a beat one
_ROUNDS = 4
_HARMONICS = 2  # of the angle, up to which the centres of spokes depend on it
_SPOKE_STEP = 10.0  # ms, spokes that are averaged
_SLOW_SHARE = 1e-3  # of the energy of their change that is at heart rates at least; the rest is breathing


def find_triggers(
    data: NDArray[np.complex64], row: NDArray[np.intp], time: NDArray[np.float64], center: int
) -> NDArray[np.float64]:
    """Find the moments at which the R waves must have been.

    Parameters
    ----------
    data
        ``(readout, coil, kx)`` complex64, in order of acquisition.
    row
        ``(readout,)`` line of k-space. All lines may repeat from beat to beat (freely running), or a few of them for a
        beat before others follow (segmented).
    time
        ``(readout,)`` ms, rising.
    center
        Row of the k-space centre.

    Returns
    -------
    NDArray[np.float64]
        Ascending times in ms: the beginning of ejection [1]_, less the pre-ejection period that is usual at this heart
        rate, ``131 - 0.4 HR`` ms [2]_.

    Raises
    ------
    DataError
        If no heartbeat is found.

    References
    ----------
    .. [1] Larson et al., Self-gated cardiac cine MRI, Magn Reson Med 51 (2004), doi:10.1002/mrm.10664.
    .. [2] Weissler et al., Systolic time intervals in heart failure in man, Circulation 37 (1968),
       doi:10.1161/01.CIR.37.2.149.
    """
    pieces = [_motion(data[run], row[run], time[run], center) for run in _runs(row, time)]
    found = [piece for piece in pieces if piece is not None]
    if not found:
        raise DataError(f"no line was measured {_FEWEST} times in a row, or all stand still: no motion shows")
    stands_out = float(np.median([piece.stands_out for piece in found]))
    _check_stands_out(stands_out)
    moments = np.concatenate([piece.time for piece in found])
    values = np.concatenate([piece.value for piece in found])
    order = np.argsort(moments)
    grid = _grid(moments)
    return _triggers(grid, np.interp(grid, moments[order], values[order]))


def find_triggers_of_spokes(
    centres: NDArray[np.complex64], angles: NDArray[np.float64], time: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the moments at which the R waves must have been, from the centre of k-space that every spoke crosses.

    What goes with the angle of the spokes (gradient delays) and what is slower than any heart (breathing) is taken out.

    Parameters
    ----------
    centres
        ``(spoke, coil)`` complex64 samples at the k-space centre, in order of acquisition.
    angles
        ``(spoke,)`` in radians.
    time
        ``(spoke,)`` ms, rising.

    Returns
    -------
    NDArray[np.float64]
        As `find_triggers`.

    Raises
    ------
    DataError
        If no heartbeat is found.
    """
    waves = np.exp(1j * np.outer(angles, np.arange(-_HARMONICS, _HARMONICS + 1)))
    still = np.linalg.lstsq(waves, centres, rcond=None)[0]
    moving = centres - waves @ still + still[_HARMONICS]
    bins = ((time - time[0]) // _SPOKE_STEP).astype(np.intp)
    _, group = np.unique(bins, return_inverse=True)
    counts = np.bincount(group)
    moments = np.bincount(group, time) / counts
    grid = _grid(moments)
    parts = np.concatenate([moving.real, moving.imag], axis=1).T
    series = np.stack([np.interp(grid, moments, np.bincount(group, part) / counts) for part in parts])
    series -= series.mean(axis=1, keepdims=True)
    faded = series * np.hanning(len(grid))  # so that what is slow stays below the heart rates
    beating = np.stack([_band(one, _SLOWEST, _SHAPE) for one in faded])
    energy, components = np.linalg.eigh(beating @ beating.T)
    if energy[-1] <= max(
        _SLOW_SHARE * float(np.square(faded).sum()), _ROUNDING * float(np.square(np.abs(centres)).sum())
    ):
        raise DataError(
            "the centres of the spokes stand still, or change far more slowly than a heart: no motion shows"
        )
    _check_stands_out(float(energy[-1] / max(energy[-2], 1e-12 * energy[-1])))
    series = np.stack([_band(one, _SLOWEST, _SHAPE) for one in series])
    signal = components[:, -1] @ series
    return _triggers(grid, signal * (-np.sign(np.mean(signal**3)) or 1.0))


def _check_stands_out(stands_out: float) -> None:
    if stands_out < _STANDS_OUT:
        raise DataError(
            "the lines near the k-space centre show noise and no heartbeat: their strongest change has "
            f"{stands_out:.1f} times the energy of the next, expected {_STANDS_OUT} or more"
        )


def _grid(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Even moments for a signal that was measured at these."""
    grid = np.arange(moments.min(), moments.max(), _STEP)
    if len(grid) < 2 * 1000.0 / _FASTEST / _STEP:
        raise DataError(f"the readouts last {np.ptp(moments):.0f} ms, too short for two heartbeats")
    return grid


def _triggers(grid: NDArray[np.float64], signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Triggers in the time of the grid from a signal on it, low in systole."""
    beating = _band(signal, _SLOWEST, _FASTEST)
    share = float(beating.var() / signal.var())
    if share < _BEATING:
        raise DataError(
            f"the lines near the k-space centre change at no heart rate: {100 * share:.0f} % of it is at "
            f"{_SLOWEST:g} to {_FASTEST:g} Hz, expected {100 * _BEATING:.0f} or more"
        )
    shape = _band(signal, _SLOWEST / 2, _SHAPE)
    period = _period(beating)
    ends, mean = _systoles(shape, _minima(beating, period), period)
    pre_ejection = 131.0 - 0.4 * 60_000.0 / (_STEP * period)
    return np.asarray(grid[0] + _STEP * (ends + _ejection(mean, period)) - pre_ejection)


class _Motion(NamedTuple):
    """What moves in lines that repeat together."""

    time: NDArray[np.float64]
    value: NDArray[np.float64]
    """`time`, `value`: ``(visit,)`` ms, and how far the motion is: low in systole, of the less variance the less it
    stands out."""
    stands_out: float
    """Energy of this change over that of the next principal component."""


def _runs(row: NDArray[np.intp], time: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Divide the readouts where other lines begin to repeat: ``(readout,)`` indices of each part."""
    order = np.lexsort((np.arange(len(row)), row))
    again = np.diff(row[order]) == 0
    pause = np.full(len(row), np.inf)
    pause[order[1:][again]] = np.diff(time[order])[again]
    known = pause[np.isfinite(pause)]
    if not len(known):
        return []
    new = pause > 3 * float(np.median(known))
    begins = np.flatnonzero(new & ~np.concatenate([[False], new[:-1]]))
    return np.split(np.arange(len(row)), begins[1:])


def _motion(
    data: NDArray[np.complex64], row: NDArray[np.intp], time: NDArray[np.float64], center: int
) -> _Motion | None:
    """First principal component over time of lines that repeat together; None if they do not."""
    lines, counts = np.unique(row, return_counts=True)
    lines = lines[counts >= max(_FEWEST, 0.8 * counts.max())]
    lines = lines[np.argsort(np.abs(lines - center), kind="stable")][:_LINES]
    if not len(lines):
        return None
    visits = [np.flatnonzero(row == line) for line in lines]
    count = min(len(visit) for visit in visits)
    middle = data.shape[2] // 2
    columns = slice(max(0, middle - _COLUMNS // 2), middle + _COLUMNS // 2)
    gram, whole = np.zeros((count, count)), 0.0
    for visit in visits:
        series = data[visit[:count], :, columns].reshape(count, -1)
        whole += float(np.vdot(series, series).real)
        series = series - series.mean(axis=0)
        gram += (series @ series.conj().T).real  # the motion is real, whatever the phase of what it changes
    energy, components = np.linalg.eigh(gram)
    if energy[-1] <= _ROUNDING * whole:
        return None
    values = components[:, -1] / components[:, -1].std()  # of zero mean, as the series are
    # The ventricle is full for most of a beat: the longer tail of the distribution is systole.
    values *= -np.sign(np.mean(values**3)) or 1.0
    moments = np.mean([time[visit[:count]] for visit in visits], axis=0)
    stands_out = float(energy[-1] / max(energy[-2], 1e-12 * energy[-1]))
    return _Motion(moments, values * (1 - 1 / stands_out), stands_out)


def _band(signal: NDArray[np.float64], lowest: float, highest: float) -> NDArray[np.float64]:
    """Keep the frequencies (Hz) between two; the signal is mirrored at its ends."""
    both = np.concatenate([signal, signal[::-1]])
    spectrum = np.fft.rfft(both)
    frequency = np.fft.rfftfreq(len(both), _STEP / 1000)
    spectrum[(frequency < lowest) | (frequency > highest)] = 0
    return np.asarray(np.fft.irfft(spectrum, len(both))[: len(signal)])


def _period(signal: NDArray[np.float64]) -> int:
    """Steps of the grid from beat to beat, by autocorrelation."""
    shortest, longest = round(1000 / _FASTEST / _STEP), round(1000 / _SLOWEST / _STEP)
    lags = np.arange(shortest, min(longest, round(0.7 * len(signal))))
    alike = np.array([_correlation(signal[:-lag], signal[lag:]) for lag in lags])
    peaks = np.flatnonzero((alike[1:-1] >= alike[:-2]) & (alike[1:-1] > alike[2:])) + 1
    best = float(alike[peaks].max(initial=0.0))
    if best < _SIMILARITY:
        raise DataError(
            f"the lines near the k-space centre show no heartbeat: from beat to beat they correlate by {best:.2f} at "
            f"most, expected {_SIMILARITY} or more"
        )
    return int(lags[next(peak for peak in peaks if alike[peak] >= _HARMONIC * best)])


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm else 0.0


def _minima(signal: NDArray[np.float64], period: int) -> NDArray[np.intp]:
    """Indices of the lowest local minima that are at least half a period apart, ascending."""
    low = np.flatnonzero((signal[1:-1] <= signal[:-2]) & (signal[1:-1] < signal[2:])) + 1
    kept: list[int] = []
    for index in low[np.argsort(signal[low])].tolist():
        if signal[index] < 0 and all(abs(index - other) >= period // 2 for other in kept):
            kept.append(index)
    return np.sort(np.array(kept, np.intp))


def _systoles(
    signal: NDArray[np.float64], ends: NDArray[np.intp], period: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Align the beats to their mean up to end systole: how long diastole is after it depends on the rhythm.

    Returns the ends of the systoles, of the beats that are like the mean, and the mean beat: one period on either side.
    """
    before, reach = (round(share * period) for share in _WINDOW)
    ends = ends[ends >= before // 2]  # the first beat may have begun before the scan
    padded = np.pad(signal, (before, 0), mode="edge")
    for _ in range(_ROUNDS):
        if len(ends) < 2:
            raise DataError("the lines near the k-space centre show fewer than two heartbeats")
        template = np.mean([padded[end : end + before] for end in ends], axis=0)
        moved, fits = [], []
        for end in ends.tolist():
            places = range(max(0, end - reach), min(len(signal) - 1, end + reach) + 1)
            scores = [_correlation(padded[place : place + before], template) for place in places]
            moved.append(places[int(np.argmax(scores))])
            fits.append(max(scores))
        ends = np.unique(np.array(moved, np.intp)[np.array(fits) >= _ALIKE])
    around = np.pad(signal, period, constant_values=np.nan)
    beats = np.array([around[end : end + 2 * period] for end in ends])
    known = np.isfinite(beats)
    return ends, np.where(known, beats, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _ejection(mean: NDArray[np.float64], period: int) -> int:
    """Steps from end systole, in the middle of the mean beat, back to where the steepest fall leaves the full level."""
    fall = mean[period // 2 : period + 1]
    slope = np.diff(fall)
    steepest = int(np.argmin(slope))
    full = float(fall[: steepest + 1].max())
    before = (full - float(fall[steepest])) / max(-float(slope[steepest]), 1e-12)
    return round(steepest - before) + period // 2 - period
