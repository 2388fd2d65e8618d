"""The k-space of a beating heart as arrays, for examples and tests; `gadgets.simulation` makes whole scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.simulate.coils import coil_maps, noise_covariance
from recon_core.simulate.phantom import BLOOD_SIGNAL, beating_thorax
from recon_core.simulate.sampling import sampling_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIELD_OF_VIEW = (300.0, 360.0)  # mm along y and x: the thorax with some air around it


@dataclass(frozen=True)
class SimulatedCine:
    """One slice of simulated cine k-space, with the truth."""

    kspace: NDArray[np.complex64]
    """``(frame, coil, ky, kx)`` complex64, zero where nothing was measured, centre at ``N//2``."""
    mask: NDArray[np.bool_]
    """``(frame, ky)`` bool, True where a line was measured."""
    coil_maps: NDArray[np.complex64]
    """``(coil, y, x)`` complex64, not of unit norm."""
    noise_covariance: NDArray[np.complex64]
    """``(coil, coil)`` complex64: mean of ``n n^H`` over the noise of the samples."""
    image: NDArray[np.complex64]
    """``(frame, y, x)`` complex64, the image without noise as maps of unit norm combine it from all lines."""


def simulate_cine(
    frames: int = 12,
    matrix: tuple[int, int] = (80, 96),
    coils: int = 6,
    *,
    sampling: str = "interleaved",
    acceleration: int = 4,
    acs_lines: int = 0,
    snr: float = 40.0,
    seed: int = 0,
) -> SimulatedCine:
    """Simulate the k-space of one slice.

    Parameters
    ----------
    frames
        Frames of the cardiac cycle.
    matrix
        ``(y, x)`` pixels.
    coils
        Receive coils.
    sampling
        One of `recon_core.simulate.sampling.SAMPLINGS`.
    acceleration, acs_lines
        As for `recon_core.simulate.sampling.sampling_mask`.
    snr
        Signal of blood over the standard deviation of the noise of a pixel (real part, mean over the coils); 0 adds no
        noise.
    seed
        Same seed, same data.

    Raises
    ------
    SettingsError
        If a value is out of bounds.

    Examples
    --------
    >>> from recon_core.simulate.kspace import simulate_cine
    >>> scan = simulate_cine(frames=8, matrix=(64, 72), coils=4, acceleration=4)
    >>> scan.kspace.shape
    (8, 4, 64, 72)
    >>> int(scan.mask[0].sum())
    16
    """
    truth = beating_thorax(np.arange(frames) / frames, matrix, _FIELD_OF_VIEW, seed=seed)
    maps = coil_maps(coils, matrix, _FIELD_OF_VIEW, seed=seed)
    covariance = noise_covariance(coils, seed=seed) * np.float32(2 * (BLOOD_SIGNAL / snr) ** 2 if snr else 1.0)
    mask = sampling_mask(sampling, frames, matrix[0], acceleration=acceleration, acs_lines=acs_lines, seed=seed)
    kspace = _transform(maps * truth[:, None])
    if snr:
        rng = np.random.default_rng([seed, 71])
        white = rng.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0] / np.float32(2**0.5)
        root = np.asarray(np.linalg.cholesky(covariance), np.complex64)
        kspace += np.einsum("ij,fjyx->fiyx", root, white)
    kspace *= mask[:, None, :, None]
    weight = np.linalg.norm(maps, axis=0)
    return SimulatedCine(kspace, mask, maps, covariance, np.asarray(truth * weight, np.complex64))


def _transform(images: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Centred orthonormal FFT over the last two axes."""
    axes = (-2, -1)
    spectrum = np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho")
    return np.asarray(np.fft.fftshift(spectrum, axes=axes), np.complex64)
