"""Loss of a training step: image of the network against its target, with the additional terms of some networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from recon_core.diffusion.loss import denoising_loss, draw_low_times, draw_times
from recon_core.diffusion.samplers import to_slices
from recon_core.diffusion.sde import VarianceExploding
from recon_core.methods import DENOISING, find_method, load_target
from recon_core.training.images import reconstruct_series, settle_series
from recon_core.training.losses import LOSSES, structural_similarity

if TYPE_CHECKING:
    from collections.abc import Callable

    from recon_core.diffusion.method import DSTDM
    from recon_core.diffusion.samplers import Axis
    from recon_core.networks.atlf_net import ATLFNet
    from recon_core.networks.base import Network
    from recon_core.training.measurements import Measurement

    Objective = Callable[[Network, Measurement, str, np.random.Generator], torch.Tensor]

_SYMMETRY, _SIMILARITY, _FUSION = 0.01, 0.1, 0.2  # weights of the terms of ATLF-Net's loss
_PURE_NOISE = 0.12  # probability of a step on noise, for dSTDM: so that it can be sampled from, too
_WITHOUT_CT = 0.4  # probability of a sample without CT, for ATLF-Net


def find_objective(method: str) -> Objective:
    """Find what training minimises for the network of a method.

    Parameters
    ----------
    method
        Name of the method.

    Returns
    -------
    Callable
        Called as `image_objective`.
    """
    objective: Objective = load_target(find_method(method).training.objective)
    return objective


def image_objective(network: Network, scan: Measurement, loss: str, rng: np.random.Generator) -> torch.Tensor:
    """What to minimise for one scan: the loss of the image against the target.

    Of a start whose error is known it is the image of all frames, settled as what is sent: the network learns what is
    left to it.

    Parameters
    ----------
    network
        In training mode.
    scan
        The scan, or columns of it.
    loss
        One of `recon_core.training.losses.LOSSES`, or the network's own.
    rng
        Of what is drawn: here the frames for a network that takes a fixed number of them, if nothing is settled.

    Returns
    -------
    torch.Tensor
        ``()``.
    """
    if scan.start_deviation is not None:
        return LOSSES[loss](settle_series(scan, reconstruct_series(network, scan)), scan.target)
    data, target = scan.slice(), scan.target
    if network.maximum_frames is not None:
        frames = (int(rng.integers(len(target))) + torch.arange(network.maximum_frames)) % len(target)
        data = data.select_started(frames)
        target = target[frames]
    return LOSSES[loss](network.reconstruct(data), target)


def denoising_objective(network: DSTDM, scan: Measurement, loss: str, rng: np.random.Generator) -> torch.Tensor:
    """Loss of the score network: of the images that it expects on the way from a start, or of noise.

    With the loss ``denoising`` it learns from noise of all levels, as published. With one for images it mostly learns
    what stands in the place of noise where the sampling goes out from a start: the errors that are left before each of
    its steps, as far as the data do not put them right.
    """
    if loss == DENOISING or rng.random() < _PURE_NOISE:
        return _loss_of_noise(network, scan.target, rng, low=loss != DENOISING)
    return LOSSES[loss](network.step(scan.slice(), rng.random()), scan.target)


def _loss_of_noise(network: DSTDM, target: torch.Tensor, rng: np.random.Generator, *, low: bool) -> torch.Tensor:
    """Loss of denoising planes of time and y, or of time and x."""
    multiple = network.score.multiple
    axis: Axis = "y" if target.shape[-1] < multiple or rng.random() < 1 / 2 else "x"
    planes = to_slices(target, axis)
    n_frames, n_positions = (n // multiple * multiple for n in planes.shape[-2:])
    clean = planes[:, :, :n_frames, :n_positions].contiguous()
    uniform, rarely = torch.from_numpy(rng.random((2, len(clean)), np.float32))
    process = VarianceExploding(network.config.sigma_min, network.config.sigma_max)
    times = draw_low_times(uniform, rarely, process) if low else draw_times(uniform)
    noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))
    return denoising_loss(network.score, clean, times, noise)


def assisted_objective(network: ATLFNet, scan: Measurement, loss: str, rng: np.random.Generator) -> torch.Tensor:
    """Loss of ATLF-Net, with a CT that may be missing or slightly displaced."""
    consistency = scan.slice().consistency()
    ct = None if rng.random() < _WITHOUT_CT else misplaced(scan.anatomy, rng)
    output = network.run(consistency.zero_filled if scan.start is None else scan.start, consistency, ct)
    image = settle_series(scan, output.image)
    magnitude = scan.target.abs()
    similarity = structural_similarity(image.abs(), magnitude, magnitude.max().expand(len(magnitude))).mean()
    total = LOSSES[loss](image, scan.target) + _SIMILARITY * (1 - similarity)
    if output.symmetry is not None:
        total = total + _SYMMETRY * output.symmetry
    if output.fused is not None and ct is not None:
        average = magnitude.mean(0, keepdim=True)
        edges = [torch.maximum(a, b) for a, b in zip(_gradients(ct[None]), _gradients(average), strict=True)]
        steps = [
            functional.l1_loss(ours, edge.expand_as(ours))
            for ours, edge in zip(_gradients(output.fused), edges, strict=True)
        ]
        total = total + _FUSION * (functional.l1_loss(output.fused, average.expand_as(output.fused)) + sum(steps))
    return total


def misplaced(anatomy: torch.Tensor, rng: np.random.Generator, *, shift: float = 1.5) -> torch.Tensor:
    """Move a CT ``(y, x)`` by a few pixels and add noise: errors of registration, and dose."""
    turn = np.deg2rad(rng.normal(0, 1.5))
    moves = rng.normal(0, shift, 2) * 2 / np.array(anatomy.shape[::-1])
    matrix = np.array([[np.cos(turn), -np.sin(turn), moves[0]], [np.sin(turn), np.cos(turn), moves[1]]], np.float32)
    grid = functional.affine_grid(torch.from_numpy(matrix)[None], [1, 1, *anatomy.shape], align_corners=False)
    moved = functional.grid_sample(anatomy[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    noise = torch.from_numpy(rng.standard_normal(tuple(anatomy.shape), np.float32)) * rng.uniform(0, 0.04)
    return (moved + noise).clamp(0, 1)


def _gradients(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes of the differences along y and along x."""
    return image.diff(dim=-2).abs(), image.diff(dim=-1).abs()
