"""Fourth step: what the images are multiplied by, and how much the method amplified the noise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recon_core.classical.g_factor import replica_g_factor
from recon_core.methods import find_method, method_names
from recon_core.options import GrappaOptions
from recon_core.steps.device import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.steps.work import Outcome, Work

_REPLICAS = 64  # 6 % error per pixel


class Units(NamedTuple):
    """The units of the images of a slice."""

    intensity: torch.Tensor
    """``(y, x)`` or ``()`` factor of the shading of the receive coils."""
    per_noise: torch.Tensor | None
    """``(frame, y, x)`` factor that gives the main images in units of the noise; None leaves them relative."""
    g_factor: NDArray[np.float32] | None
    """``(y, x)`` float32, where it was asked for and is defined."""


def find_units(work: Work, main: Outcome) -> Units:
    """Find the units that the options ask for; notes say where they cannot be had.

    Parameters
    ----------
    work
        The slice.
    main
        The images to send, of the frames after the context.
    """
    options = work.options.finish
    g_factor = _g_factor(work, main) if options.g_factor else None
    per_noise = _per_noise(work, main, g_factor) if options.units == "snr" else None
    return Units(_receive_intensity(work.data.maps, work.cine.receiver.colouring), per_noise, g_factor)


def _receive_intensity(maps: torch.Tensor, colouring_matrix: NDArray[np.complex64] | None) -> torch.Tensor:
    """Find the shading ``(y, x)`` of the receive coils, about one on average; one where nothing was whitened.

    Maps of unit norm among whitened coils leave the image weighted with the signal-to-noise ratio of each pixel. Times
    the norm of the same maps among the receive coils it is the root-sum-of-squares image a reader is used to.
    """
    if colouring_matrix is None:
        return torch.ones((), device=maps.device)
    colouring = to_device(colouring_matrix, maps.device)
    scale = torch.linalg.matrix_norm(colouring) / maps.shape[0] ** 0.5
    receive_maps = torch.einsum("rc,cyx->ryx", colouring / scale, maps)
    # as real numbers: many times faster than the norm of complex ones over the first axis
    intensity: torch.Tensor = torch.view_as_real(receive_maps).square().sum((0, -1)).sqrt()
    return intensity


def _per_noise(work: Work, main: Outcome, g_factor: NDArray[np.float32] | None) -> torch.Tensor | None:
    """One over the standard deviation ``(frame, y, x)`` of the noise in the real part of an image.

    None (noted) where it is not known. A frame has the g-factor of the first one, and its own number of lines.
    """
    data, share = work.data, work.cine.noise_share
    why = _why_noise_is_unknown(work, main.method)
    if why or share is None:
        main.notes.append(f"relative units instead of SNR: {why}")
        return None
    sampled = data.mask[-len(main.image) :].float().mean(-1)[:, None, None]  # of the lines, by frame
    spread = sampled.sqrt()
    if find_method(main.method).g_factor:
        known = _g_factor(work, main) if g_factor is None else g_factor
        spread = to_device(np.asarray(known), data.maps.device) / sampled.sqrt()
        if bool((data.mask != data.mask[:1]).any()):
            main.notes.append("the g-factor in the SNR units is that of the first frame's lines")
    measured = work.cine.receiver.columns
    columns = 1.0 if measured is None else float(np.mean(measured))
    deviation = spread * torch.linalg.vector_norm(data.maps, dim=0) * (share * columns) ** 0.5
    # an empty frame, and a pixel that no coil sees, has neither noise nor signal
    good = deviation.isfinite() & (deviation > 0)
    return torch.where(good, 1 / torch.where(good, deviation, 1), 0)


def _why_noise_is_unknown(work: Work, method: str) -> str:
    """Why the noise in the images of a method is not known; empty where it is."""
    if work.cine.trajectory is not None:
        return "the noise in images of samples that follow no grid is not known"
    if not work.data.whole_lines:
        return "the noise in images of a mask of points is not known"
    if not find_method(method).linear:
        return f"the noise in an image of {method} is not known"
    if not work.cine.receiver.is_white:
        return "no noise was measured"
    if work.cine.noise_share is None or not work.cine.receiver.scaled:
        return "the noise of a line is not known (lines interpolated between readouts, or no dwell times)"
    if work.options.finish.partial_fourier != "off" or work.options.finish.kspace_filter:
        return "partial_fourier and kspace_filter change the noise"
    return "" if bool(work.data.mask.any()) else "no line was measured"


def _g_factor(work: Work, main: Outcome) -> NDArray[np.float32] | None:
    """The g-factor ``(y, x)`` of the first frame that has lines; below one where a prior takes noise away."""
    data = work.data
    if not find_method(main.method).g_factor:
        defined = " and ".join(method_names(lambda info: info.g_factor))
        main.notes.append(f"no g-factor: it is defined for {defined}, not for {main.method}")
        return None
    if work.cine.trajectory is not None or not data.whole_lines:
        main.notes.append("no g-factor: it is defined for whole lines of a Cartesian grid")
        return None
    if not bool(data.mask.any()):
        main.notes.append("no g-factor: no line was measured")
        return None
    frame = int(data.mask.any(-1).int().argmax())
    pattern = data.mask[frame]
    # linear in the noise only from a zero start
    cold = dataclasses.replace(work.options.cg_sense, warm_start=False)
    options = dataclasses.replace(work.options, cg_sense=cold)
    own = options.of_method(main.method)
    if isinstance(own, GrappaOptions) and own.calibration == "frame":  # the weights are of its lines, not of noise
        options = dataclasses.replace(options, grappa=dataclasses.replace(own, calibration="average"))
        data = dataclasses.replace(data, reference=data.hybrid[frame], measured=pattern)
    method = work.build(main.method, options)

    def reconstruct(noise: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return method(dataclasses.replace(data, hybrid=noise, maps=maps, mask=mask, notes=[]))

    g_factor = replica_g_factor(reconstruct, data.maps, pattern, replicas=_REPLICAS)
    return np.asarray(g_factor.cpu().numpy(), np.float32)
