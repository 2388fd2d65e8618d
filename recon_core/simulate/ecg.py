"""The rhythm of a heart: RR intervals, where a moment lies in its beat, and the electrocardiogram that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_PREMATURE, _PAUSE = 0.6, 1.3  # an ectopic beat and the compensatory pause, relative to the mean RR interval

# Waves of the electrocardiogram: amplitude in mV, time after the R wave and width in s; P and T also move with the RR.
_QRS = ((-0.12, -0.030, 0.009), (1.15, 0.0, 0.010), (-0.28, 0.032, 0.011))
_T_WAVE = (0.32, 0.30, 0.055)
_P_WAVE = (0.14, -0.16, 0.022)


def rr_intervals(
    count: int, *, heart_rate: float = 60.0, variability: float = 0.03, ectopic: int | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Draw RR intervals.

    Parameters
    ----------
    count
        Number of beats.
    heart_rate
        Mean rate in beats per minute.
    variability
        Standard deviation of the RR interval relative to its mean; neighbouring beats are alike.
    ectopic
        Index of a premature beat (60 % of the mean), followed by a pause (130 %); None for none.
    seed
        Same seed, same heart.

    Returns
    -------
    NDArray[np.float64]
        ``(count,)`` seconds.

    Raises
    ------
    SettingsError
        If the rate is not positive or the variability not in [0, 0.3].
    """
    if heart_rate <= 0 or not 0.0 <= variability <= 0.3 or count < 0:
        raise SettingsError(
            f"rr intervals need a rate above 0 and a variability in [0, 0.3], got {heart_rate} and {variability}"
        )
    rng = np.random.default_rng([seed, 31])
    mean = 60.0 / heart_rate
    # first-order autoregression of unit variance, cut at two standard deviations
    memory = 0.6
    steps = rng.standard_normal(count) * np.sqrt(1.0 - memory**2)
    state = 0.0
    deviation = np.empty(count)
    for beat, step in enumerate(steps):
        state = memory * state + step
        deviation[beat] = state
    intervals = mean * (1.0 + variability * np.clip(deviation, -2.0, 2.0))
    if ectopic is not None and 0 <= ectopic < count:
        intervals[ectopic] = _PREMATURE * mean
        intervals[ectopic + 1 : ectopic + 2] = _PAUSE * mean
    return np.asarray(intervals)


def cardiac_position(times: ArrayLike, r_waves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tell where moments lie in their beats.

    Parameters
    ----------
    times
        Moments in s, any shape.
    r_waves
        ``(beat,)`` ascending times of the R waves in s, from before the first to after the last moment.

    Returns
    -------
    tuple
        Time since the last R wave in s, and the same as fraction of that RR interval; shape of `times`.

    Raises
    ------
    SettingsError
        If a moment lies outside the R waves.
    """
    moments = np.asarray(times, dtype=np.float64)
    if moments.size and (len(r_waves) < 2 or moments.min() < r_waves[0] or moments.max() >= r_waves[-1]):
        raise SettingsError("the R waves must begin before the first and end after the last moment")
    beat = np.searchsorted(r_waves, moments, side="right") - 1
    since = moments - r_waves[beat]
    return np.asarray(since), np.asarray(since / (r_waves[beat + 1] - r_waves[beat]))


def seen_triggers(
    r_waves: NDArray[np.float64], *, missed: int | None = None, false: int | None = None
) -> NDArray[np.float64]:
    """Tell which triggers an imperfect detector sends.

    Parameters
    ----------
    r_waves
        ``(beat,)`` ascending times of the R waves in s.
    missed
        Index of an R wave that is not seen; None for none.
    false
        Index of an R wave after which the T wave, 0.3 s later, triggers too; None for none.

    Returns
    -------
    NDArray[np.float64]
        Ascending times in s.
    """
    seen = r_waves if missed is None else np.delete(r_waves, missed)
    return seen if false is None else np.sort(np.append(seen, r_waves[false] + _T_WAVE[1]))


def ecg_signal(times: NDArray[np.float64], r_waves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a lead of the electrocardiogram: P, QRS and T waves of each beat.

    Parameters
    ----------
    times
        ``(sample,)`` moments in s.
    r_waves
        ``(beat,)`` times of the R waves in s.

    Returns
    -------
    NDArray[np.float64]
        ``(sample,)`` millivolts.
    """
    signal = np.zeros(len(times))
    rr = np.diff(r_waves, append=2 * r_waves[-1] - r_waves[-2] if len(r_waves) > 1 else r_waves[-1] + 1.0)
    for r_wave, interval in zip(r_waves, rr, strict=True):
        near = slice(*np.searchsorted(times, (r_wave - 0.3, r_wave + 0.7)))
        after = times[near] - r_wave
        repolarisation = float(np.sqrt(min(interval, 1.2)))
        waves = (*_QRS, _P_WAVE, (_T_WAVE[0], _T_WAVE[1] * repolarisation, _T_WAVE[2]))
        for amplitude, delay, width in waves:
            signal[near] += amplitude * np.exp(-0.5 * ((after - delay) / width) ** 2)
    return signal
