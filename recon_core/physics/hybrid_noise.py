"""How strong the noise is, seen from data that were transformed along the readout already."""

from __future__ import annotations

import math

import numpy as np
import torch

from recon_core.physics.fourier import fft
from recon_core.physics.noise_level import UNIT_MEDIAN, is_outer, outer_lines

_MOST_LINES = 256  # that are looked at


def hybrid_noise_deviation(hybrid: torch.Tensor, mask: torch.Tensor) -> float:
    """Estimate the noise in the corners of k-space, as `noise_deviation` does, by the coil with least signal there.

    Parameters
    ----------
    hybrid
        ``(frame, coil, ky, x)`` complex64, centre at ``N//2``.
    mask
        ``(frame, ky)`` bool, True where a line was measured.

    Returns
    -------
    float
        Standard deviation of the real and of the imaginary part, in the units of the data; NaN where no corner was
        measured. Coils that hold nothing but zeros do not count.
    """
    frame, row = (torch.from_numpy(index).to(hybrid.device) for index in outer_lines(mask.cpu().numpy()))
    if not len(row):
        return math.nan
    some = torch.linspace(0, len(row) - 1, min(len(row), _MOST_LINES), device=row.device).long()
    lines = fft(hybrid[frame[some], :, row[some]], (-1,)).abs()
    corners = lines[..., torch.from_numpy(is_outer(np.arange(hybrid.shape[3]), hybrid.shape[3])).to(hybrid.device)]
    # an asymmetric echo leaves columns out: zero but for rounding
    present = corners > 1e-5 * lines.amax()
    found = [
        float(coil[here].median())
        for coil, here in zip(corners.unbind(1), present.unbind(1), strict=True)
        if here.any()
    ]
    return min(found, default=math.nan) / UNIT_MEDIAN
