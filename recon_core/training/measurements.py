"""Simulated measurement of a series: coils, sampling and noise, with the target image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.coils.calibration import time_average
from recon_core.coils.estimate import estimate_maps
from recon_core.data import HybridSlice
from recon_core.inference.start import with_start
from recon_core.options import MapOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.points.slice import PointSlice, average_of_points, reference_of_points
from recon_core.simulate.coils import coil_maps, noise_covariance
from recon_core.simulate.sampling import (
    golden_mask,
    interleaved_mask,
    partial_fourier_mask,
    pseudo_radial_mask,
    uniform_mask,
    variable_density_mask,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.training.series import Series

#: Mask families, and how often each is drawn.
FAMILIES = {"uniform": 0.45, "interleaved": 0.2, "variable_density": 0.22, "golden": 0.13}
#: Numbers of coils that are drawn.
COILS = (1, 2, 4, 5, 6, 8, 10, 12, 16, 24, 34)
_COIL_SHARES = (0.02, 0.04, 0.06, 0.08, 0.2, 0.27, 0.17, 0.07, 0.05, 0.03, 0.01)
#: Brightest tissue over the noise of a complete frame, least and most.
SNR = (5.0, 1000.0)
_TRUE_MAPS = 0.15  # probability that the network gets the true maps instead of their estimate
_MOST_IMAGES = 400  # frames times coils
_SPOKES = (2.5, 24.0)  # full spokes that would make complete k-space, over those of a frame: least and most
_TURNING = 0.7  # probability that the spokes of points turn from frame to frame


@dataclass(frozen=True)
class Measurement:
    """An undersampled scan of a series, scaled so that the image of its time average has a peak of one."""

    hybrid: torch.Tensor
    """``(frame, coil, ky, x)`` complex64, zero where nothing was measured."""
    mask: torch.Tensor
    """``(frame, ky)`` bool, or ``(frame, ky, kx)`` of points."""
    maps: torch.Tensor
    """``(coil, y, x)`` complex64, those for the network."""
    target: torch.Tensor
    """``(frame, y, x)`` complex64: complete data without noise, combined with these maps."""
    noise_variance: float
    """Of a complex sample of `hybrid`."""
    anatomy: torch.Tensor
    """``(y, x)`` float32 between 0 and 1, see `recon_core.training.series.Series`."""
    family: str
    """One of `FAMILIES`, ``points``, or ``given``."""
    start: torch.Tensor | None = None
    """``(frame, y, x)`` complex64, the image that a network starts from; None is the zero-filled one."""
    start_deviation: torch.Tensor | None = None
    """``(frame, y, x)`` float32, see `HybridSlice.start_deviation`."""

    def started(self, start: str) -> Measurement:
        """Make the image that a network starts from; of the whole scan, as of an image without columns it is worse.

        Weights go on from the start that there is.

        Parameters
        ----------
        start
            As for `recon_core.inference.start.with_start`.
        """
        data = with_start(self.slice(), start)
        return replace(self, start=data.start, start_deviation=data.start_deviation)

    def width_of_crop(self, width: int) -> int:
        """Columns of a crop: so many, as far as there are, or all of them where points were measured."""
        columns = self.maps.shape[-1]
        return columns if self.mask.ndim > 2 else min(width, columns)

    def crop(self, first: int, width: int) -> Measurement:
        """Cut columns out. All lines, frames and coils stay, and x is no longer encoded, so the physics is exact.

        With a mask of points x is encoded too, and nothing can be cut: see `width_of_crop`.
        """
        columns = slice(first, first + width)
        return replace(
            self,
            hybrid=self.hybrid[..., columns].contiguous(),
            maps=self.maps[..., columns].contiguous(),
            target=self.target[..., columns].contiguous(),
            anatomy=self.anatomy[..., columns].contiguous(),
            start=None if self.start is None else self.start[..., columns].contiguous(),
            start_deviation=None if self.start_deviation is None else self.start_deviation[..., columns].contiguous(),
        )

    def slice(self) -> HybridSlice:
        """As input of the methods."""
        _, reference, measured = _averaged(self.hybrid, self.mask)
        rest = (self.maps, reference, measured, self.noise_variance)
        if self.mask.ndim > 2:
            data: HybridSlice = PointSlice(self.hybrid, self.mask.any(-1), *rest, points=self.mask)
        else:
            data = HybridSlice(self.hybrid, self.mask, *rest)
        return replace(data, start=self.start, start_deviation=self.start_deviation)


def draw_mask(rng: np.random.Generator, frames: int, lines: int) -> tuple[NDArray[np.bool_], str]:
    """Draw the lines that are measured.

    Parameters
    ----------
    rng
        Random generator.
    frames, lines
        Size of the mask.

    Returns
    -------
    tuple
        ``(frame, ky)`` bool, and the name of the family.
    """
    family = str(rng.choice([*FAMILIES], p=[*FAMILIES.values()]))
    seed = int(rng.integers(2**31))
    acs = min(int(rng.integers(4, 17)) * 2, lines)
    if family == "uniform":
        mask = uniform_mask(frames, lines, int(rng.integers(1, 13)), acs)
        mask = np.roll(mask, int(rng.integers(-3, 4)), axis=1) | uniform_mask(frames, lines, lines, acs)
    elif family == "interleaved":
        mask = interleaved_mask(frames, lines, int(rng.integers(1, 13)), acs if rng.random() < 0.3 else 0)
    else:
        fewest = int(rng.integers(2, 9))
        acceleration = round(float(np.exp(rng.uniform(*np.log((2.5, 24))))))
        draw = variable_density_mask if family == "variable_density" else golden_mask
        mask = draw(frames, lines, acceleration, min(fewest, lines // acceleration), seed=seed)
        if rng.random() < 0.1:  # frames that were not measured
            mask[rng.choice(frames, frames // 4, replace=False)] = False
    if rng.random() < 0.08:
        mask = partial_fourier_mask(mask, float(rng.uniform(0.62, 0.9)))
        mask = mask[:, ::-1].copy() if rng.random() < 0.5 else mask
    return mask, family


def draw_points(rng: np.random.Generator, frames: int, matrix: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw the points ``(frame, ky, kx)`` that are measured, next to spokes; parameters as of `draw_mask`."""
    complete = np.pi / 2 * max(matrix)  # spokes
    spokes = max(2, round(complete / float(np.exp(rng.uniform(*np.log(_SPOKES))))))
    first = int(rng.integers(frames))  # so that not all begin with the same angles
    if rng.random() < _TURNING:
        return pseudo_radial_mask(first + frames, *matrix, spokes)[first:]
    return pseudo_radial_mask(first + 1, *matrix, spokes)[[first] * frames]


def measure(
    seed: tuple[int, ...],
    series: Series,
    *,
    mask: NDArray[np.bool_] | None = None,
    n_coils: int | None = None,
    snr: float | None = None,
) -> Measurement:
    """Measure a series.

    Parameters
    ----------
    seed
        Same seed and arguments, same measurement.
    series
        The truth.
    mask, n_coils, snr
        Chosen at random where None, the mask by `draw_mask`; it may be one of points, ``(frame, ky, kx)``. The noise of
        a pixel of the complete image, before any combination with time, is the brightest tissue over `snr`.
    """
    rng = np.random.default_rng([*seed, 202])
    n_frames, ny, nx = series.image.shape
    family = "given"
    if mask is None:
        mask, family = draw_mask(rng, n_frames, ny)
    elif mask.ndim > 2:
        family = "points"
    if n_coils is None:
        usual = [n for n in COILS if n * n_frames <= _MOST_IMAGES or n == COILS[0]]
        shares = np.array(_COIL_SHARES[: len(usual)])
        n_coils = int(rng.choice(usual, p=shares / shares.sum()))
    snr = snr or float(np.exp(rng.uniform(*np.log(SNR))))

    true_maps = torch.from_numpy(_draw_maps(rng, n_coils, (ny, nx)))
    image = torch.from_numpy(series.image)
    sampled = torch.from_numpy(mask)
    complete = fft(true_maps * image[:, None], (-2,))
    noise = torch.from_numpy(rng.standard_normal((*complete.shape, 2), np.float32)).view_as(
        torch.view_as_real(complete)
    )
    # the maps are of unit norm in the middle of the array, so that the sum of the coils has this noise too
    noise_deviation = 1 / snr
    noisy = complete + torch.view_as_complex(noise) * (noise_deviation / 2**0.5)
    hybrid = _sampled(noisy, sampled)

    average, reference, measured = _averaged(hybrid, sampled)
    if rng.random() < _TRUE_MAPS:
        maps = true_maps / torch.linalg.vector_norm(true_maps, dim=0).clamp(min=1e-6)
    else:
        maps, _ = estimate_maps(reference, measured, MapOptions())
    target = (maps.conj() * ifft(complete, (-2,))).sum(1)
    peak = float((maps.conj() * ifft(average, (-2,))).sum(0).abs().max())
    scale = 1 / max(peak, 1e-6)
    return Measurement(
        hybrid=hybrid * scale,
        mask=sampled,
        maps=maps,
        target=target * scale,
        noise_variance=(noise_deviation * scale) ** 2,
        anatomy=torch.from_numpy(series.anatomy),
        family=family,
    )


def _sampled(hybrid: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a mask of lines or points leaves of complete data ``(frame, coil, ky, x)``."""
    if mask.ndim > 2:
        return ifft(fft(hybrid, (-1,)) * mask[:, None], (-1,))
    return hybrid * mask[:, None, :, None]


def _averaged(hybrid: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Average of the frames, and what coil maps are made from: both ``(coil, ky, x)``, and the lines of the latter."""
    if mask.ndim > 2:
        kspace = fft(hybrid, (-1,))
        average, _ = average_of_points(kspace, mask)
        return ifft(average, (-1,)), *reference_of_points(kspace, mask)
    reference, measured = time_average(hybrid, mask)
    return reference, reference, measured


def _draw_maps(rng: np.random.Generator, n_coils: int, matrix: tuple[int, int]) -> NDArray[np.complex64]:
    """Maps ``(coil, y, x)`` of an array somewhere around the slice, whitened as the stream whitens them."""
    seed = int(rng.integers(2**31))
    turned = bool(rng.random() < 0.5)
    ny, nx = matrix[::-1] if turned else matrix
    fov = rng.uniform(260, 400) * np.array((rng.uniform(0.75, 1), 1.0))
    maps = coil_maps(n_coils, (ny, nx), (fov[0], fov[1]), slice_offset_mm=rng.uniform(-60, 60), seed=seed)
    if turned:
        maps = maps.swapaxes(1, 2)
    maps = maps[:, :: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]
    covariance = noise_covariance(n_coils, seed=seed)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.complex64)
    whitened = np.einsum("ij,jyx->iyx", whitening, maps)
    norm = np.sqrt((np.abs(whitened) ** 2).sum(0))
    return np.ascontiguousarray(whitened / np.float32(np.median(norm)))
