"""k-t SENSE: all frames together, with a prior of their changes that is read off the scan itself.

Tsao, Boesiger, Pruessmann, Magn Reson Med 2003, doi:10.1002/mrm.10611; the prior read off the reconstruction as in k-t
FOCUSS: Jung et al., Magn Reson Med 2009, doi:10.1002/mrm.21757.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.kt_prior import KtPrior, first_prior, next_prior, settled_prior
from recon_core.options import CGSenseOptions
from recon_core.physics.neighbourhood import box_mean
from recon_core.physics.solvers import ratio
from recon_core.words import listed

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import KtSenseOptions
    from recon_core.physics.sense import Encoding

# In the first round and in each other one; what they leave is done in the next one, with a better prior.
_FIRST_ITERATIONS, _ITERATIONS = 12, 4
_SETTLING_ITERATIONS = 8  # there is no next round
# Rounds after which it may end, and the mean square of what the last one changed, over the variance that the data leave
# open, below which it does; less from some ratio of the peak to the noise on. Where data are strong, a prior that is
# not found yet holds them back; where they are not, further rounds take weak changes for none.
_FEWEST_ROUNDS, _NEAR, _STRONG = 7, 0.02, 100.0
# Share of the lines below which more rounds are needed, with its root, as conjugate gradients go.
_FEW_LINES = 1 / 8
_SAMPLE_ITERATIONS = 30  # from zero; after 12 the easiest scans seem three times less well known than they are
_LOST = 3e-4  # share of the energy of the coil maps that need not be modelled
# Times the noise that is reckoned with for the prior: it knows less than it thinks of what the data leave open.
_CAUTION = 1.15
#: Deviation of the noise, relative to the largest pixel of a coil, that is reckoned with at least: with less the steps
#: go so slowly that the image is worse.
LEAST_NOISE = 5e-3
_SMALL = 1e-6  # variance of a given image, over that of the noise
_AVERAGE = CGSenseOptions(warm_start=False)
# Side of the squares, in pixels, over which the error of a given image is averaged: one sample knows it roughly.
_NEIGHBOURHOOD = 9


class KtSense:
    """The estimate of least mean square error of all frames, given the noise and a prior learned on the way.

    Parameters
    ----------
    options
        Rounds, and samples for the uncertainty.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Notes
    -----
    The temporal components of the series are expected to be Gaussian with a power P that differs from pixel to pixel
    (`recon_core.classical.kt_prior`). With noise of variance s^2 the estimate of x is the minimum of |A x - y|^2 / s^2
    + sum |c|^2 / P over its components c. Rounds of a few conjugate gradient steps and a new prior take turns; they
    begin with the image of the time average, for all frames, and end where one changes little of what is left open.
    """

    def __init__(self, options: KtSenseOptions, implementation: str = "auto") -> None:
        self._options = options
        self._implementation = implementation

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice. With samples, the standard deviation that the magnitudes are left with is added to
            `HybridSlice.extra` as ``uncertainty``.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data. Frames without a measured line are predicted from the
            others.
        """
        data, deviation, peak = _with_noise(data)
        near = _NEAR * min(1.0, _STRONG * deviation / peak) ** 2
        deviation *= _CAUTION
        data = replace(data, noise_variance=deviation**2)
        fewest = round(_FEWEST_ROUNDS * max(1.0, _FEW_LINES / max(data.sampled, _SMALL)) ** 0.5)
        average = self._average(data)
        problem = _Problem.of(data, self._implementation)
        prior = first_prior(average[0].mT / deviation, len(data.mask))
        components = prior.analyse(problem.flat((average / deviation).expand(len(data.mask), -1, -1)))
        remaining = problem.adjoint(data, deviation) - problem.normal(prior.synthesise(components))
        components, remaining = problem.improve(prior, components, remaining, _FIRST_ITERATIONS)
        series = prior.synthesise(components)
        for number in range(1, self._options.rounds):
            before, last = prior, series
            prior = next_prior(before, series, problem.plane, problem.sampled)
            components, remaining = problem.improve(prior, prior.express(components, before), remaining)
            series = prior.synthesise(components)
            if number + 1 >= fewest and problem.changed(series, last, prior) < near:
                break
        empty = (~data.mask.any(-1)).nonzero().flatten().tolist()
        if empty:
            data.notes.append(f"frames without a line are predicted from the others: {listed(empty)}")
        if self._options.samples:
            data.extra["uncertainty"] = deviation * problem.uncertainty(prior, self._options.samples)
        return deviation * problem.image(series)

    def _average(self, data: HybridSlice) -> torch.Tensor:
        """The image ``(1, y, x)`` of the time average."""
        return CGSense(_AVERAGE, self._implementation)(data.average())


def settle(
    data: HybridSlice, image: torch.Tensor, deviation: torch.Tensor, implementation: str = "auto"
) -> torch.Tensor:
    """Bring an image of another method, the data, and the prior that is read off that image together.

    What changes from frame to frame without a pattern in time is less likely than the image says.

    Parameters
    ----------
    data
        The slice.
    image
        ``(frame, y, x)`` complex64.
    deviation
        ``(frame, y, x)`` float32: standard deviation of its real part from the truth.
    implementation
        As for `KtSense`.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64: the minimum of |A x - y|^2 / s^2 + sum |d|^2 / e^2 + |m|^2 / (n e^2) + sum |c|^2 /
        P, with the noise s, the error e, the change d that is made of the n frames without their mean, the mean m of
        the change times the root of n, and the power P of the components of the image.

    Notes
    -----
    What a method gets wrong where nothing moves, such as the sharpness of edges, it gets wrong in all frames, so that
    the errors of the mean add up. It is what the data know best, too.
    """
    data, noise, _ = _with_noise(data)
    problem = _Problem.of(data, implementation)
    variance = box_mean(2 * (deviation / noise).square().mean(0).mT[None], _NEIGHBOURHOOD)
    problem = replace(problem, held=1 / variance.flatten().clamp(min=_SMALL))
    series = problem.flat(image / noise)
    remaining = problem.adjoint(data, noise) - problem.explained(series)
    before = settled_prior(len(series), series.shape[-1], series.device)
    # for a training the prior is given: the gradient of principal components knows no bounds
    prior = next_prior(before, series.detach(), problem.plane, problem.sampled)
    components = prior.express(before.analyse(series), before)
    components, _ = problem.improve(prior, components, remaining, _SETTLING_ITERATIONS)
    return noise * problem.image(prior.synthesise(components))


def _with_noise(data: HybridSlice) -> tuple[HybridSlice, float, float]:
    """The slice with the noise that is reckoned with, its deviation in a complex sample, and the peak of the coils.

    Where there is less noise than the least, it is that.
    """
    deviation = data.noise_deviation()
    peak = max(float(data.average_images().abs().max()), torch.finfo(torch.float32).tiny)
    least = max(LEAST_NOISE * peak, torch.finfo(torch.float32).tiny)
    deviation = max(deviation, least) if math.isfinite(deviation) else least
    return replace(data, noise_variance=deviation**2), deviation, peak


@dataclass(frozen=True)
class _Problem:
    """The least squares problem of a slice in units of its noise; series are ``(frame, part, pixel)``, y contiguous."""

    operator: Encoding
    """With maps of few combinations of coils."""
    whole: Encoding
    """With all coils."""
    plane: tuple[int, int]
    """Pixels along x and y."""
    coils: int
    """Combinations of coils."""
    samples: tuple[int, ...]
    """Samples of a frame along the further axes of the data."""
    sampled: float
    """Share of the lines that were measured."""
    held: torch.Tensor | float = 0.0
    """``(pixel,)``: weight of a given series beside the data, one over its variance; that of the mean of its frames is
    as many times less as there are frames."""

    @classmethod
    def of(cls, data: HybridSlice, implementation: str) -> _Problem:
        """Prepare the operators of a slice."""
        whole = data.operator(implementation)
        n_y, n_x = data.maps.shape[-2:]
        operator, coils = whole, data.maps.shape[-3]
        if data.maps.ndim == 3:
            maps = data.fewer_maps(_LOST)
            operator, coils = data.operator(implementation, maps), len(maps)
        return cls(operator, whole, (n_x, n_y), coils, tuple(data.hybrid.shape[2:]), data.sampled)

    def flat(self, image: torch.Tensor) -> torch.Tensor:
        """Bring ``(frame, y, x)`` complex64 to ``(frame, part, pixel)`` float32."""
        return torch.view_as_real(image.mT).movedim(-1, 1).reshape(len(image), 2, -1)

    def image(self, series: torch.Tensor) -> torch.Tensor:
        """The inverse of `flat`."""
        return torch.complex(series[:, 0], series[:, 1]).view(-1, *self.plane).mT

    def changed(self, series: torch.Tensor, last: torch.Tensor, prior: KtPrior) -> float:
        """Mean square of what a round changed, over the variance that the data leave open."""
        left = prior.left_open(self.sampled)[: len(series)].mean()
        return float((series - last).square().sum(1).mean() / left)

    def adjoint(self, data: HybridSlice, deviation: float) -> torch.Tensor:
        """Apply A^H to the data."""
        return self.flat(self.whole.adjoint(data.hybrid)) / deviation

    def explained(self, series: torch.Tensor) -> torch.Tensor:
        """Apply A^H A."""
        return self.flat(self.operator.normal(self.image(series)))

    def normal(self, series: torch.Tensor) -> torch.Tensor:
        """Apply A^H A and the weight of the given series."""
        explained = self.explained(series)
        if not isinstance(self.held, torch.Tensor):
            return explained
        return explained.addcmul(series - (1 - 1 / len(series)) * series.mean(0), self.held)

    def improve(
        self, prior: KtPrior, components: torch.Tensor | None, remaining: torch.Tensor, iterations: int = _ITERATIONS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Go some steps from components, or zero, towards those whose series explains the data best.

        The unknowns are scaled so that the diagonal of the system is one: that saves three quarters of the steps.

        Parameters
        ----------
        prior
            Of the components.
        components
            Where to start; None is zero.
        remaining
            ``(frame, part, pixel)``: A^H of what the series does not explain of the data, and its distance to the
            given one times the weight of that.
        iterations
            Steps.

        Returns
        -------
        tuple
            The components, and what remains with them. Nothing is done in place, so both can be differentiated.
        """
        diagonal = self.sampled + self.held + 1 / prior.power
        diagonal[0] -= (1 - 1 / prior.basis.shape[1]) * self.held  # of the mean
        scale = diagonal.rsqrt()[:, None]
        rest = scale.square() / prior.power[:, None]
        residual = prior.analyse(remaining) * scale
        solution = torch.zeros_like(residual)
        if components is not None:
            solution = components / scale
            residual = residual.addcmul(rest, solution, value=-1)
        direction, power = residual, _inner(residual, residual)
        for _ in range(iterations):
            explained = self.normal(prior.synthesise(scale * direction))
            image = (prior.analyse(explained) * scale).addcmul(rest, direction)
            step = ratio(power, _inner(direction, image))
            solution = solution.addcmul(direction, step)
            remaining = remaining.addcmul(explained, step, value=-1)
            residual = residual.addcmul(image, step, value=-1)
            previous, power = power, _inner(residual, residual)
            direction = residual.addcmul(direction, ratio(power, previous))
        return solution * scale, remaining

    def uncertainty(self, prior: KtPrior, samples: int) -> torch.Tensor:
        """Find the standard deviation ``(frame, y, x)`` of the real part of what the data leave open.

        A series that is drawn from the prior, minus its own estimate from noisy data, is such a sample. What stays the
        same is drawn as weak as the slowest change: it is known nearly as well, and found in few steps then.
        """
        power = prior.power.clone()
        power[0] = power[:2].amin(0)
        prior = KtPrior(prior.basis, power)
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(())

        def normal_noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.complex64).to(prior.power.device)

        for _ in range(samples):
            drawn = torch.view_as_real(normal_noise(*prior.power.shape)).movedim(-1, 1)
            truth = prior.synthesise(prior.power.sqrt()[:, None] * drawn)
            noise = self.operator.adjoint(normal_noise(len(truth), self.coils, *self.samples))
            estimate, _ = self.improve(prior, None, self.normal(truth) + self.flat(noise), _SAMPLE_ITERATIONS)
            error = (truth - prior.synthesise(estimate)).square().mean(1)
            total = total.to(error) + error
        return (total / samples).sqrt().view(-1, *self.plane).mT


def _inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Inner product."""
    product: torch.Tensor = torch.dot(left.flatten(), right.flatten())
    return product
