"""The process that turns images into noise, and the noise levels at which its reversal is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

#: Where time ends in training and sampling; at 0 the process is not defined.
SHORTEST_TIME = 1e-5


@dataclass(frozen=True)
class VarianceExploding:
    """Noise that grows geometrically over the time from 0 to 1, while the image stays.

    Notes
    -----
    Song et al., ICLR 2021, doi:10.48550/arXiv.2011.13456. Times and levels are float32 tensors of any shape.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    """`sigma_min`, `sigma_max`: Standard deviation of the noise at the times 0 and 1, in real and imaginary part
    each."""

    def sigma(self, time: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the noise at a time."""
        ratio = torch.full_like(time, self.sigma_max / self.sigma_min)
        return self.sigma_min * ratio**time

    def diffusion(self, time: torch.Tensor) -> torch.Tensor:
        """The coefficient g of dx = g dw: the variance of the noise grows at the rate of its square."""
        return self.sigma(time) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def perturb(self, clean: torch.Tensor, time: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Images ``(slice, ...)`` at a time ``(slice,)`` of the process, with standard normal noise."""
        return clean + self.sigma(time).reshape(-1, *[1] * (clean.ndim - 1)) * noise

    def levels(self, n_levels: int) -> torch.Tensor:
        """Noise levels ``(n_levels,)`` at equal ratios, ascending."""
        return torch.linspace(math.log(self.sigma_min), math.log(self.sigma_max), n_levels).exp()


@dataclass(frozen=True)
class Schedule:
    """The steps from noise to image, the noisiest first."""

    labels: torch.Tensor
    """``(step,)``: noise level, as input of the network."""
    gains: torch.Tensor
    """``(step,)``: the step goes along the score by the square of the gain, and adds as much noise."""

    @classmethod
    def published(cls, process: VarianceExploding, n_steps: int) -> Schedule:
        """Labels at equal times down to `SHORTEST_TIME`: nearly, not exactly, the levels that the gains are made of."""
        times = torch.linspace(1, SHORTEST_TIME, n_steps)
        return cls(process.sigma(times), _gains(process.levels(n_steps)))

    @classmethod
    def of_levels(cls, process: VarianceExploding, n_steps: int) -> Schedule:
        """Labels and gains of the same levels."""
        levels = process.levels(n_steps)
        return cls(levels.flip(0), _gains(levels))


def _gains(levels: torch.Tensor) -> torch.Tensor:
    """What the variance loses from each level to the next lower one, or to none; as a standard deviation."""
    squares = levels.square()
    lower = torch.cat((squares.new_zeros(1), squares[:-1]))
    return (squares - lower).sqrt().flip(0)
