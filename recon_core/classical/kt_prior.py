"""What is expected of a series before it is solved for: temporal components, each with a power in every pixel.

Two bases side by side: cosines, for changes that come back or go on smoothly (as the spectrum of k-t SENSE), and the
principal components of the series itself, for what moves together (k-t PCA). Tsao, Boesiger, Pruessmann, Magn Reson Med
2003, doi:10.1002/mrm.10611; Pedersen et al., Magn Reson Med 2009, doi:10.1002/mrm.22052.

Series are ``(frame, part, pixel)`` and components ``(component, part, pixel)``, float32, the parts being real and
imaginary, in units of the noise deviation of a complex sample. All bases are real: a tissue that moves keeps its phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recon_core.physics.neighbourhood import box_mean

# Principal components that are used: the first hold what moves, the others noise.
_COMPONENTS = 8
# Share of the power of the average image that changes, and the frequency, in half cycles per series, up to which.
_FIRST_SHARE, _FIRST_CORNER = 0.05, 3.0
# Sides of the squares, in pixels, over which power is averaged: of the average image, and of components.
_FIRST_NEIGHBOURHOOD, _NEIGHBOURHOOD = 9, 3
# Least power: without influence, but a component that is zero would stay so.
_FLOOR = 0.05


@dataclass(frozen=True)
class KtPrior:
    """Independent Gaussian components of a series, with mean zero."""

    basis: torch.Tensor
    """``(component, frame)`` float32: cosines, of which the first is constant, then principal components of the change;
    both are orthonormal."""
    power: torch.Tensor
    """``(component, pixel)`` float32: variance that is expected."""

    def analyse(self, series: torch.Tensor) -> torch.Tensor:
        """Products ``(component, part, pixel)`` of the basis with a series."""
        return _product(self.basis, series)

    def synthesise(self, components: torch.Tensor) -> torch.Tensor:
        """Sum components to a series ``(frame, part, pixel)``: the adjoint of `analyse`."""
        return _product(self.basis.mT, components)

    def left_open(self, sampled: float) -> torch.Tensor:
        """Variance ``(component, pixel)`` that data leave of components that do not disturb each other.

        Parameters
        ----------
        sampled
            Share of the lines that were measured.
        """
        return 1 / (1 / self.power + sampled)

    def express(self, components: torch.Tensor, before: KtPrior) -> torch.Tensor:
        """Turn components of an earlier prior into components of this one that add up to the same series."""
        frames = self.basis.shape[1]
        cosines, mine = self.basis[:frames], self.basis[frames:]
        theirs, moving = before.basis[frames:], components[frames:]
        if not len(theirs):
            theirs, moving = before.basis, components / 2
        principal = _product(mine @ theirs.mT, moving)
        others = before.synthesise(components) - _product(mine.mT, principal)
        return torch.cat((_product(cosines, others), principal))


def first_prior(average: torch.Tensor, frames: int) -> KtPrior:
    """Expect of every pixel its brightness, and slow changes in proportion to it.

    Parameters
    ----------
    average
        ``(x, y)`` complex64 image of the time average.
    frames
        Frames of the series.
    """
    frequency = torch.arange(frames, device=average.device, dtype=torch.float32)
    shares = 1 / (1 + (frequency.clamp(min=1) / _FIRST_CORNER).square())
    squares = average.abs().square()
    power = _FIRST_SHARE * frames * (shares / shares.sum())[:, None] * box_mean(squares, _FIRST_NEIGHBOURHOOD).flatten()
    power[0] = frames * box_mean(squares, _NEIGHBOURHOOD).flatten()
    return KtPrior(_cosines(frames).to(average.device), power.clamp(min=_FLOOR))


def settled_prior(frames: int, pixels: int, device: torch.device) -> KtPrior:
    """Expect hardly anything of any component: that of a series of which the data leave nothing open."""
    return KtPrior(_cosines(frames).to(device), torch.full((frames, pixels), _FLOOR, device=device))


def next_prior(before: KtPrior, series: torch.Tensor, plane: tuple[int, int], sampled: float) -> KtPrior:
    """Read the power of each component off the present estimate of the series, and off how uncertain that is.

    The power is the square of the estimate, averaged over neighbouring pixels and frequencies, plus the variance that
    the data leave: without that each round would sharpen the noise, and forget what was not measured.

    Parameters
    ----------
    before
        The prior with which the series was estimated.
    series
        The estimate.
    plane
        ``(x, y)``: pixels along both axes.
    sampled
        Share of the lines that were measured.

    Notes
    -----
    Expectation maximisation with the posterior variance of components that do not disturb each other; sparse Bayesian
    learning: Tipping, J Mach Learn Res 2001, 1:211-244.
    """
    frames = len(series)
    cosines, old = before.basis[:frames], before.basis[frames:]
    principal = principal_components(series)
    left = before.left_open(sampled)
    along_time, moving = left[:frames], (left[frames:] if len(old) else left)
    turned = (principal @ (old if len(old) else cosines).mT).square()
    cosine_power = _mean_power(_product(cosines, series), plane)
    cosine_power[1:] = _over_frequencies(cosine_power[1:])  # what stays is far stronger than what changes
    cosine_power += along_time
    principal_power = _mean_power(_product(principal, series), plane) + turned @ moving
    power = torch.cat((cosine_power, principal_power))
    return KtPrior(torch.cat((cosines, principal)), power.clamp(min=_FLOOR))


def principal_components(series: torch.Tensor, most: int = _COMPONENTS) -> torch.Tensor:
    """The orthonormal ``(component, frame)`` float32, so many at most, that hold most of the change of a series.

    Parameters
    ----------
    series
        ``(frame, ...)`` float32.
    most
        Components.
    """
    parts = (series - series.mean(0)).flatten(1)
    vectors = torch.linalg.eigh((parts @ parts.mT).double()).eigenvectors
    chosen: torch.Tensor = vectors.mT.flip(0)[: min(most, len(series) - 1)].float()
    return chosen


def _product(matrix: torch.Tensor, series: torch.Tensor) -> torch.Tensor:
    """Apply a matrix ``(m, n)`` to ``(n, part, pixel)``."""
    product: torch.Tensor = (matrix @ series.flatten(1)).view(len(matrix), *series.shape[1:])
    return product


def _cosines(frames: int) -> torch.Tensor:
    """Orthonormal basis ``(component, frame)`` of the discrete cosine transform, second kind."""
    index = torch.arange(frames, dtype=torch.float64)
    basis: torch.Tensor = torch.cos(torch.pi / frames * torch.outer(index, index + 0.5)) * (2 / frames) ** 0.5
    basis[0] = frames**-0.5
    return basis.float()


def _mean_power(components: torch.Tensor, plane: tuple[int, int]) -> torch.Tensor:
    """Squared magnitudes ``(component, pixel)``, averaged over neighbouring pixels."""
    power = components.square().sum(1)
    return box_mean(power.view(-1, *plane), _NEIGHBOURHOOD).flatten(1)


def _over_frequencies(power: torch.Tensor) -> torch.Tensor:
    """Average ``(frequency, pixel)`` with both neighbours, which have half the weight."""
    above, below = torch.cat((power[1:], power[-1:])), torch.cat((power[:1], power[:-1]))
    return power / 2 + (above + below) / 4
