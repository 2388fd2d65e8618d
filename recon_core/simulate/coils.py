"""Receive coils: loops on the front and back of a thorax, their maps by the law of Biot and Savart, their noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError
from recon_core.simulate.phantom import pixel_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SURFACE = (210.0, 165.0)  # mm, half axes of the ellipse (x, y) that carries the loops
_WIRE = 55.0  # mm, softens the field near the conductor, which lies outside the body
_SEGMENTS = 24  # straight pieces of a loop
_GRID = 6.0  # mm, the field is computed on this grid and interpolated: it is smooth
_BODY = (160.0, 115.0)  # mm, half axes of the tissue that makes the noise


def _loops(n_coils: int, seed: int) -> NDArray[np.float64]:
    """Corner points ``(coil, corner, xyz)`` in mm; front and back arrays, two rows along z from 16 coils on."""
    rng = np.random.default_rng([seed, 11])
    loops = np.empty((n_coils, _SEGMENTS, 3))
    front = (n_coils + 1) // 2
    turn = np.linspace(0.0, 2.0 * np.pi, _SEGMENTS, endpoint=False)
    for side, first, count in ((-1.0, 0, front), (1.0, front, n_coils - front)):
        rows = 2 if n_coils >= 16 else 1
        columns = -(-count // rows) if count else 1
        radius = float(np.clip(300.0 / columns, 65.0, 110.0))
        for index in range(count):
            row, column = index % rows, index // rows
            spread = (column + 0.5) / columns - 0.5
            angle = side * np.pi / 2 + spread * 2.4 + rng.normal(0.0, 0.03)
            z = (row - (rows - 1) / 2) * 1.3 * radius + rng.normal(0.0, 4.0)
            centre = np.array([_SURFACE[0] * np.cos(angle), _SURFACE[1] * np.sin(angle), z])
            inward = -np.array([np.cos(angle) / _SURFACE[0], np.sin(angle) / _SURFACE[1], 0.0])
            inward /= np.linalg.norm(inward)
            along = np.cross(inward, [0.0, 0.0, 1.0])
            loops[first + index] = (
                centre
                + radius * np.cos(turn)[:, None] * along
                + radius * np.sin(turn)[:, None] * np.array([0.0, 0.0, 1.0])
            )
    return loops


def _fields(
    loops: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64], z: float
) -> NDArray[np.complex64]:
    """Transverse field Bx - i By of each loop on a plane, up to a constant: ``(coil, y, x)``."""
    maps = np.empty((len(loops), len(y), len(x)), np.complex64)
    for index, corners in enumerate(loops):
        ends = np.roll(corners, -1, axis=0)
        middle = ((corners + ends) / 2).astype(np.float32)
        piece = (ends - corners).astype(np.float32)
        dx = x.astype(np.float32)[None, None, :] - middle[:, 0, None, None]
        dy = y.astype(np.float32)[None, :, None] - middle[:, 1, None, None]
        dz = np.float32(z) - middle[:, 2, None, None]
        cubed = (dx * dx + dy * dy + dz * dz + np.float32(_WIRE**2)) ** np.float32(-1.5)
        px, py, pz = piece.T[:, :, None, None]
        maps[index] = ((py * dz - pz * dy) * cubed).sum(0) - 1j * ((pz * dx - px * dz) * cubed).sum(0)
    return maps


def _interpolation(positions: NDArray[np.float32], grid: NDArray[np.float64]) -> NDArray[np.float32]:
    """Matrix ``(position, grid)`` of cubic convolution weights on an even grid (Keys, 10.1109/TASSP.1981.1163711)."""
    distance = np.abs(positions[:, None] - grid[None, :]) / _GRID
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0)).astype(np.float32)


def _grid(reach: float) -> NDArray[np.float64]:
    return np.arange(-np.ceil(reach / _GRID) - 2, np.ceil(reach / _GRID) + 3) * _GRID


def _gains(n_coils: int, seed: int) -> NDArray[np.complex64]:
    """Gain and phase of each receiver."""
    rng = np.random.default_rng([seed, 12])
    gains = rng.uniform(0.85, 1.2, n_coils) * np.exp(1j * rng.uniform(-np.pi, np.pi, n_coils))
    return np.asarray(gains, dtype=np.complex64)


def coil_maps(
    n_coils: int, matrix: tuple[int, int], fov_mm: tuple[float, float], *, slice_offset_mm: float = 0.0, seed: int = 0
) -> NDArray[np.complex64]:
    """Compute the receive sensitivity of a thorax array.

    Parameters
    ----------
    n_coils
        Number of loops, half of them in front; each map has its own gain and phase.
    matrix
        ``(ny, nx)`` pixels.
    fov_mm
        ``(y, x)`` field of view in mm.
    slice_offset_mm
        Position of the slice along the array axis in mm.
    seed
        Same seed, same array.

    Returns
    -------
    NDArray[np.complex64]
        ``(coil, y, x)``; the root sum of squares at pixel ``(ny // 2, nx // 2)`` of the slice at 0 mm is one, near the
        array it is several times that.

    Raises
    ------
    SettingsError
        If there is no coil or the matrix or field of view is not positive.
    """
    ny, nx = matrix
    if n_coils < 1 or ny < 1 or nx < 1 or min(fov_mm) <= 0:
        raise SettingsError(f"coil maps need coils, pixels and a field of view, got {n_coils}, {matrix}, {fov_mm} mm")
    y, x = pixel_positions(ny, fov_mm[0]), pixel_positions(nx, fov_mm[1])
    return coil_maps_at(n_coils, y, x, slice_offset_mm=slice_offset_mm, seed=seed)


def coil_maps_at(
    n_coils: int,
    y_mm: NDArray[np.float32],
    x_mm: NDArray[np.float32],
    *,
    slice_offset_mm: float = 0.0,
    seed: int = 0,
) -> NDArray[np.complex64]:
    """Compute the maps of `coil_maps` at given coordinates: ``(y,)`` and ``(x,)`` in mm give ``(coil, y, x)``."""
    loops, gains = _loops(n_coils, seed), _gains(n_coils, seed)
    centre = _fields(loops, np.zeros(1), np.zeros(1), 0.0)[:, 0, 0] * gains
    grid_y, grid_x = _grid(float(np.abs(y_mm).max())), _grid(float(np.abs(x_mm).max()))
    fields = _fields(loops, grid_y, grid_x, slice_offset_mm)
    maps = _interpolation(y_mm, grid_y) @ fields @ _interpolation(x_mm, grid_x).T
    maps *= (gains / np.float32(np.linalg.norm(centre)))[:, None, None]
    return np.asarray(maps, dtype=np.complex64)


def noise_covariance(n_coils: int, *, seed: int = 0) -> NDArray[np.complex64]:
    """Compute the covariance of the receiver noise of `coil_maps` with the same seed.

    Most of the noise comes from the body and is shared by coils that see the same tissue, the rest is each receiver's
    own (Roemer et al., DOI 10.1002/mrm.1910160203).

    Parameters
    ----------
    n_coils
        Number of loops.
    seed
        Seed given to `coil_maps`.

    Returns
    -------
    NDArray[np.complex64]
        ``(coil, coil)`` Hermitian, positive definite, mean of the diagonal one.
    """
    if n_coils < 1:
        raise SettingsError(f"noise needs at least one coil, got {n_coils}")
    loops, gains = _loops(n_coils, seed), _gains(n_coils, seed)
    step = 20.0
    y = np.arange(-_BODY[1], _BODY[1] + step, step)
    x = np.arange(-_BODY[0], _BODY[0] + step, step)
    body = (x[None, :] / _BODY[0]) ** 2 + (y[:, None] / _BODY[1]) ** 2 <= 1.0
    seen = np.concatenate(
        [_fields(loops, y, x, float(z))[:, body] for z in np.arange(-160.0, 161.0, 2.0 * step)], axis=1
    )
    seen = seen.astype(np.complex128)
    shared = seen @ seen.conj().T
    own = np.mean(np.diag(shared).real)
    covariance = (0.65 * shared + 0.35 * own * np.eye(n_coils)) * np.outer(gains, gains.conj())
    return np.asarray(covariance * (n_coils / np.trace(covariance).real), dtype=np.complex64)
