"""What the score network is trained with: denoising, and the running average of its weights that is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from recon_core.diffusion.sde import SHORTEST_TIME, VarianceExploding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from recon_core.diffusion.score_network import ScoreNetwork

# Largest error, relative to the peak, that an image to start from may have, and how often no more noise is trained on.
_ERROR_OF_AN_IMAGE, _SHARE_OF_LOW = 0.4, 0.88


def draw_times(uniform: torch.Tensor) -> torch.Tensor:
    """Times of the process to train at, from uniform numbers in [0, 1) of any shape."""
    return uniform * (1 - SHORTEST_TIME) + SHORTEST_TIME


def draw_low_times(uniform: torch.Tensor, rarely: torch.Tensor, process: VarianceExploding) -> torch.Tensor:
    """Times to train at for what starts from an image: mostly of noise as large as the error that one may have.

    Parameters
    ----------
    uniform, rarely
        Uniform numbers in [0, 1), both of one shape: the time, and whether it is one of little noise.
    process
        Its levels.
    """
    low = math.log(_ERROR_OF_AN_IMAGE / process.sigma_min) / math.log(process.sigma_max / process.sigma_min)
    return draw_times(torch.where(rarely < _SHARE_OF_LOW, uniform * min(1.0, max(low, 0.0)), uniform))


def denoising_loss(
    network: ScoreNetwork,
    clean: torch.Tensor,
    times: torch.Tensor,
    noise: torch.Tensor,
    *,
    likelihood_weighting: bool = False,
) -> torch.Tensor:
    """How badly a score network estimates the noise in slices.

    Parameters
    ----------
    network
        The score network; its configuration gives the process and the weighting.
    clean
        ``(slice, 2, frame, position)`` float32, real and imaginary part, peak about one.
    times
        ``(slice,)`` float32, as `draw_times` makes them.
    noise
        Standard normal numbers, shape of `clean`.
    likelihood_weighting
        Weigh slices by ``(g / sigma)^2``, which bounds the likelihood of the data; not used by the paper.

    Returns
    -------
    torch.Tensor
        Mean over slices and elements of ``(sigma score + noise)^2``. For a preconditioned network (``edm``) times
        ``1 + (sigma / data_deviation)^2``, so that every noise level counts the same in its own output.

    Notes
    -----
    Song et al., ICLR 2021, doi:10.48550/arXiv.2011.13456; Karras et al., NeurIPS 2022, doi:10.48550/arXiv.2206.00364.
    """
    config = network.config
    process = VarianceExploding(config.sigma_min, config.sigma_max)
    sigma = process.sigma(times)
    score = network(process.perturb(clean, times, noise), sigma)
    errors: torch.Tensor = (sigma[:, None, None, None] * score + noise).square().flatten(1).mean(1)
    if config.parametrisation == "edm":
        errors = errors * (1 + (sigma / config.data_deviation).square())
    if likelihood_weighting:
        errors = errors * (process.diffusion(times) / sigma).square()
    return errors.mean()


class ExponentialAverage:
    """A running average of the parameters of a network, which reconstructs better than its last ones.

    Parameters
    ----------
    network
        The network; the average starts from its present parameters.
    decay
        What remains of the average in an update, at most; in the n-th update ``(1 + n) / (10 + n)`` at most, so that it
        forgets the start.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self._network = network
        self._decay = decay
        self._n_updates = 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @property
    def decay(self) -> float:
        """What remained of the average in the last update."""
        return min(self._decay, (1 + self._n_updates) / (10 + self._n_updates))

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters in."""
        self._n_updates += 1
        for name, parameter in self._network.named_parameters():
            self.tensors[name].lerp_(parameter, 1 - self.decay)

    def state_dict(self) -> dict[str, object]:
        """What is needed to go on later."""
        return {"n_updates": self._n_updates, "tensors": self.tensors}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what `state_dict` gave."""
        n_updates, tensors = state["n_updates"], state["tensors"]
        if not isinstance(n_updates, int) or not isinstance(tensors, dict):
            raise TypeError("this is no state of an average")
        self._n_updates = n_updates
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])
