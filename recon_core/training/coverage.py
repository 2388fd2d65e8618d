"""Range of the scans that a training covers, to be stored with the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.training.measurements import COILS, SNR, draw_mask, draw_points
from recon_core.trust.ranges import PATTERNS, Sampling, TrainingRange

if TYPE_CHECKING:
    from recon_core.training.plan import TrainingPlan

_DRAWS = 400
_LONGEST = 1000  # frames; any more than a window are reconstructed in windows
# Peak of a scan over its noise, which is what is checked, relative to the SNR that was drawn: the array sees some
# tissue better than other (measured on 150 scans; the hundredth at either end of all scans is left out here, too).
_LEAST_GAIN, _MOST_GAIN = 0.6, 1.55


def covered(plan: TrainingPlan, fewest: int = 1) -> TrainingRange:
    """Range of the scans that a plan covers.

    Parameters
    ----------
    plan
        How the network is trained.
    fewest
        Frames that the network needs.

    Returns
    -------
    TrainingRange
        From the extremes of many masks of the training, without the most extreme hundredth at either end.
    """
    rng = np.random.default_rng([plan.seed, 505])
    least, most = plan.lines
    scans = []
    for _ in range(_DRAWS):
        lines = 2 * int(rng.integers(least // 2, most // 2 + 1))
        frames = max(fewest, int(rng.integers(plan.frames[0], plan.frames[1] + 1)))
        points = plan.points > 0 and rng.random() < plan.points  # nothing else is drawn for a plan without
        mask = draw_points(rng, frames, (lines, lines)) if points else draw_mask(rng, frames, lines)[0]
        scans.append(Sampling.of(mask, 1, lines))

    def extremes(values: list[float]) -> tuple[float, float]:
        low, high = np.quantile(values, (0.01, 0.99))
        return round(float(low), 1), round(float(high), 1)

    patterns = {scan.pattern for scan in scans}
    return TrainingRange(
        acceleration=extremes([scan.acceleration for scan in scans]),
        centre_lines=(0, extremes([scan.centre_lines for scan in scans])[1]),
        frames=(max(fewest, plan.frames[0]), _LONGEST),
        lines=(least, most),
        coils=(COILS[0], COILS[-1]),
        snr=(round(_LEAST_GAIN * SNR[0], 1), round(_MOST_GAIN * SNR[1], 1)),
        empty_frames=(0, max(scan.empty_frames for scan in scans)),
        patterns=tuple(name for name in PATTERNS if name in patterns),
    )
