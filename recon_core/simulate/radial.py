"""Radial k-space of a beating heart as arrays, for examples and tests.

The samples are those of the phantom drawn at twice the resolution of the image, to a part in a million, so that a
reconstruction never meets its own grid or operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_core.off_grid.trajectory import angle_step, spoke_positions
from recon_core.simulate.coils import coil_maps, noise_covariance
from recon_core.simulate.phantom import BLOOD_SIGNAL, beating_thorax

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIELD_OF_VIEW = 360.0  # mm along both axes: the thorax with some air around it
_SUPERSAMPLING = 2
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SimulatedRadial:
    """One slice of simulated radial cine k-space, with the truth."""

    kspace: NDArray[np.complex64]
    """``(frame, coil, spoke, sample)`` complex64."""
    trajectory: NDArray[np.float32]
    """``(frame, spoke, sample, 2)`` float32 in cycles per pixel, (x, y): as planned, without the delays."""
    coil_maps: NDArray[np.complex64]
    """``(coil, y, x)`` complex64, not of unit norm."""
    noise_covariance: NDArray[np.complex64]
    """``(coil, coil)`` complex64: mean of ``n n^H`` over the noise of the samples."""
    image: NDArray[np.complex64]
    """``(frame, y, x)`` complex64: the image without noise of all of k-space that spokes reach, a disk, as maps of unit
    norm combine it."""


def spoke_angles(law: str, frames: int, spokes: int, increment: float = 0.0) -> NDArray[np.float64]:
    """Angles of full spokes.

    Parameters
    ----------
    law
        ``uniform``, the same in every frame; ``golden``, running on from frame to frame; ``tiny_golden``, so with the
        seventh tiny golden angle.
    frames, spokes
        Frames, and spokes of each.
    increment
        Angle from spoke to spoke in degrees; 0 takes that of the law.

    Returns
    -------
    NDArray[np.float64]
        ``(frame, spoke)`` in radians.

    Raises
    ------
    SettingsError
        If there is no such law.
    """
    step = increment or angle_step(law, spokes)
    number = np.arange(frames * spokes).reshape(frames, spokes)
    if law == "uniform":
        number = number % spokes
    angles: NDArray[np.float64] = np.deg2rad(number * step)
    return angles


def measure_off_resonance(
    fine: NDArray[np.complex64],
    positions: NDArray[np.float32],
    field: NDArray[np.float64],
    times: NDArray[np.float64],
) -> NDArray[np.complex64]:
    """Sample images as `measure` does, while the magnetisation turns: a sample at time t has the phase 2 pi f t more.

    Parameters
    ----------
    fine
        ``(coil, 2 y, 2 x)`` complex64.
    positions
        ``(..., sample, 2)`` in cycles per pixel of the image.
    field
        ``(2 y, 2 x)`` in Hz.
    times
        ``(sample,)`` in seconds, zero at the echo.

    Returns
    -------
    NDArray[np.complex64]
        ``(coil, ..., sample)`` complex64, in units of an orthonormal transform of the image.

    Notes
    -----
    The phase is interpolated between as many Chebyshev frequencies as keep the error below a millionth, so that every
    one of them takes a transform.
    """
    reach = float(np.abs(field).max(initial=0.0))
    turn = 2 * math.pi * reach * float(np.abs(times).max(initial=0.0))
    count = 1
    while turn and 2 * (turn / 2) ** count / math.factorial(count) > _TOLERANCE:
        count += 1
    nodes = reach * np.cos(math.pi * (np.arange(count) + 0.5) / count)
    total = np.zeros((len(fine), *positions.shape[:-1]), np.complex64)
    for number, node in enumerate(nodes):
        others = np.delete(nodes, number)
        share = np.prod((field[..., None] - others) / (node - others), axis=-1).astype(np.float32)
        total += measure(fine * share, positions) * np.exp(2j * math.pi * node * times).astype(np.complex64)
    return total


def measure(fine: NDArray[np.complex64], positions: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Sample images that are drawn at twice the resolution.

    Parameters
    ----------
    fine
        ``(coil, 2 y, 2 x)`` complex64.
    positions
        ``(..., 2)`` in cycles per pixel of the image.

    Returns
    -------
    NDArray[np.complex64]
        ``(coil, ...)`` complex64, in units of an orthonormal transform of the image.
    """
    import torch

    from recon_core.off_grid.transforms import sample_image

    places = torch.from_numpy(positions.reshape(-1, 2) / _SUPERSAMPLING)
    samples = sample_image(torch.from_numpy(np.ascontiguousarray(fine)), places, _TOLERANCE).numpy()
    return np.asarray(samples.reshape(len(fine), *positions.shape[:-1]) / np.float32(_SUPERSAMPLING))


def simulate_radial(
    frames: int = 12,
    size: int = 96,
    coils: int = 6,
    *,
    spokes: int = 20,
    law: str = "golden",
    delays: tuple[float, float, float] = (0.0, 0.0, 0.0),
    snr: float = 40.0,
    seed: int = 0,
) -> SimulatedRadial:
    """Simulate the radial k-space of one slice, with twofold oversampling of the spokes.

    Parameters
    ----------
    frames
        Frames of the cardiac cycle.
    size
        Pixels of the image along both axes.
    coils
        Receive coils.
    spokes
        Spokes of a frame.
    law
        As for `spoke_angles`.
    delays
        Gradient delays along x, along y and between both, in samples: they shift a spoke of angle a by
        ``(dx cos a + dxy sin a, dxy cos a + dy sin a)`` (doi:10.1002/mrm.27506).
    snr
        Signal of blood over the standard deviation of the noise of a pixel of a complete Cartesian scan (real part,
        mean over the coils); 0 adds no noise.
    seed
        Same seed, same data.

    Raises
    ------
    SettingsError
        If a value is out of bounds.
    """
    angles = spoke_angles(law, frames, spokes)
    planned = spoke_positions(angles, 2 * size, size, (size, size))
    actual = delayed(planned, angles, delays, 1 / (2 * size))
    fov, fine_size = (_FIELD_OF_VIEW, _FIELD_OF_VIEW), (_SUPERSAMPLING * size, _SUPERSAMPLING * size)
    fine_maps = coil_maps(coils, fine_size, fov, seed=seed)
    maps = coil_maps(coils, (size, size), fov, seed=seed)
    weights = maps.conj() / np.linalg.norm(maps, axis=0)
    covariance = noise_covariance(coils, seed=seed) * np.float32(2 * (BLOOD_SIGNAL / snr) ** 2 if snr else 1.0)
    root = np.linalg.cholesky(covariance).astype(np.complex64)
    kspace = np.empty((frames, coils, spokes, 2 * size), np.complex64)
    image = np.empty((frames, size, size), np.complex64)
    grid = _grid_positions(size)
    disk = np.linalg.norm(grid, axis=-1) <= 0.5
    for frame, moment in enumerate(np.arange(frames) / frames):
        fine = fine_maps * beating_thorax([float(moment)], fine_size, fov, seed=seed)[0]
        kspace[frame] = measure(fine, actual[frame])
        image[frame] = (weights * _centred_ifft(measure(fine, grid) * disk)).sum(0)
        if snr:
            rng = np.random.default_rng([seed, 72, frame])
            white = rng.standard_normal((*kspace.shape[1:], 2), np.float32).view(np.complex64)[..., 0] / 2**0.5
            kspace[frame] += np.einsum("ij,jrs->irs", root, white.astype(np.complex64))
    return SimulatedRadial(kspace, planned, maps, covariance, image)


def delayed(
    positions: NDArray[np.float32], angles: NDArray[np.float64], delays: tuple[float, float, float], spacing: float
) -> NDArray[np.float32]:
    """Shift spokes as gradient delays do: positions ``(..., sample, 2)`` and angles ``(...)`` as of `spoke_positions`.

    `delays` are along x, along y and between both, in samples of the given spacing in cycles per pixel.
    """
    along_x, along_y, between = delays
    cosine, sine = np.cos(angles), np.sin(angles)
    shift = np.stack([along_x * cosine + between * sine, between * cosine + along_y * sine], axis=-1)
    return np.asarray(positions + shift[..., None, :] * spacing, np.float32)


def _grid_positions(size: int) -> NDArray[np.float32]:
    line = (np.arange(size) - size // 2) / size
    return np.stack(np.meshgrid(line, line), axis=-1).astype(np.float32)


def _centred_ifft(kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
    axes = (-2, -1)
    images = np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho")
    return np.asarray(np.fft.fftshift(images, axes=axes), np.complex64)
