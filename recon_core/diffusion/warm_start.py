"""A first image to start the sampling from, and how far from the truth it may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from recon_core.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.physics.consistency import DataConsistency
    from recon_core.physics.sense import NormalOperator

# Weights of the change from frame to frame and of the image itself, for maps of unit norm; best of 0.01 to 1 and of 0
# to 0.03 on simulated cines of 1 to 5 % noise, R = 4 to 12.
_TEMPORAL_WEIGHT, _WEIGHT = 0.3, 0.003
_ITERATIONS, _TOLERANCE = 25, 1e-3
# With both weights this many times as large the image changes, where the data leave it free, by about 0.75 of its error
# (0.5 to 1.2 for R = 2 to 8 on the same cines).
_STRONGER = 10.0
# Start noise over that change: three to six times the error in most of those cines. More lets the sampling redraw what
# the first image has right, less lets it keep what is wrong.
_NOISE_PER_CHANGE = 5.0
#: Least and largest start noise that is chosen, relative to the peak of the image.
START_NOISE_RANGE = (0.03, 0.5)
# First and last noise level over the error of a start of which it is known. Where less is allowed in the end, the prior
# smooths what the start has right.
_LEVELS_PER_ERROR = (3.0, 0.5)
_SMALL = 1e-6  # error over the peak


class KnownStart(NamedTuple):
    """A start whose error is known."""

    image: torch.Tensor
    """``(frame, y, x)`` complex64."""
    levels: tuple[float, float]
    """Noise to start with and to end with, standard deviation in real and imaginary part."""
    weight: float
    """Of an image with such an error beside the data: the variance of the noise over its own."""

    @classmethod
    def of(cls, data: HybridSlice) -> KnownStart | None:
        """The start of a slice, scaled so that the peak of the image is one; None if the error is not known."""
        if data.start is None or data.start_deviation is None:
            return None
        error = max(float(data.start_deviation.square().mean().sqrt()), _SMALL)
        noise = data.noise_deviation()
        # where no noise is seen there is none
        weight = noise**2 / 2 / error**2 if math.isfinite(noise) else 0.0
        first, last = (ratio * error for ratio in _LEVELS_PER_ERROR)
        return cls(data.start, (first, last), weight)


def temporal_sense(consistency: DataConsistency, *, stronger: float = 1.0) -> torch.Tensor:
    """Reconstruct a periodic series that changes little from frame to frame.

    Parameters
    ----------
    consistency
        The measured data of one slice.
    stronger
        Factor on the weights.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64, the minimum of ``||A x - y||^2 + w sum_t ||x_t - x_(t-1)||^2 + v ||x||^2`` with the
        frame before the first being the last. Frames without data are filled from their neighbours.
    """
    return conjugate_gradient(
        _Temporal(consistency.operator, stronger * _TEMPORAL_WEIGHT),
        consistency.zero_filled,
        iterations=_ITERATIONS,
        regularization=stronger * _WEIGHT,
        tolerance=_TOLERANCE,
        joint=True,
    )


def start_noise(consistency: DataConsistency, first: torch.Tensor) -> float:
    """Choose the noise to start with, three to six times the error that a first image may have.

    Parameters
    ----------
    consistency
        The measured data of one slice, scaled so that the peak of the image is one.
    first
        ``(frame, y, x)``, its `temporal_sense`.

    Returns
    -------
    float
        Standard deviation in real and imaginary part, within `START_NOISE_RANGE`.

    Notes
    -----
    What the data do not determine follows the regularisation: the change with it stands for the error. The part that
    the measured samples settle is left out, because data consistency puts it right.

    Starting from a noisy first image instead of from noise: Chung et al., CVPR 2022, doi:10.48550/arXiv.2112.05146.
    """
    change = temporal_sense(consistency, stronger=_STRONGER).sub_(first)
    change = change.sub_(consistency.operator.normal(change))
    root_mean_square = torch.view_as_real(change).square().sum(-1).mean().sqrt()
    least, most = START_NOISE_RANGE
    return min(max(_NOISE_PER_CHANGE * float(root_mean_square), least), most)


class _Temporal:
    """The normal operator of the data and of the change from frame to frame."""

    def __init__(self, operator: NormalOperator, weight: float) -> None:
        self._operator = operator
        self._weight = weight

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """``A^H A x + w D^H D x`` with the periodic difference D along the frames."""
        neighbours = image.roll(1, -3).add_(image.roll(-1, -3))
        return self._operator.normal(image).add_(2 * image - neighbours, alpha=self._weight)
