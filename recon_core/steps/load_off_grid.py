"""First step for samples that follow no grid: their weights, the gridded average, and coil maps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.coils.estimate import estimate_maps
from recon_core.errors import DataError
from recon_core.methods import find_method
from recon_core.off_grid.delays import correct_positions, find_delays
from recon_core.off_grid.density import iterated_areas
from recon_core.off_grid.slice import OffGridSlice
from recon_core.off_grid.trajectory import are_straight, cell_areas
from recon_core.off_grid.transforms import grid_samples
from recon_core.physics.fourier import fft
from recon_core.steps.defects import right_noise, usable_maps
from recon_core.steps.device import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.data import CineSlice, Trajectory
    from recon_core.options import ReconOptions

_AVERAGE_ERROR = 1e-3  # of the gridded average, which what moves and the noise leave far less exact


def load_off_grid(cine: CineSlice, trajectory: Trajectory, options: ReconOptions, device: torch.device) -> OffGridSlice:
    """Bring a slice to the device, weigh its samples, grid their average and estimate its coil maps.

    Parameters
    ----------
    cine
        The slice.
    trajectory
        Where its samples lie.
    options
        How coil maps are estimated.
    device
        Where to compute.

    Returns
    -------
    OffGridSlice
        Without the frames of the context where the method takes each frame on its own.

    Raises
    ------
    DataError
        If nothing was measured.
    """
    if not cine.mask.any():
        raise DataError("no readout was measured")
    notes: list[str] = []
    if options.off_grid.delay_correction == "auto":
        trajectory = _without_delays(cine, trajectory, notes)
    # from frame to frame: then the context is nothing but a part of the average, also of that of a series
    first = cine.context if find_method(options.method).framewise else 0
    begin = first if cine.series is not None and cine.series.goes_on else 0
    trajectory, measured_here = trajectory.after(begin), cine.mask[begin:]
    first -= begin
    areas = _areas(trajectory, measured_here, first)
    spacing = _largest_weight(trajectory.positions, measured_here, trajectory.matrix)
    counted = np.minimum(areas, spacing)
    mask, kspace = to_device(measured_here, device), to_device(cine.kspace[begin:], device)
    positions = to_device(np.where(measured_here[..., None, None], trajectory.positions, np.float32(0)), device)
    weights = to_device(np.sqrt(counted), device)
    gridding = to_device(np.where(counted > 0, areas / np.where(counted > 0, counted, 1), np.float32(0)), device)
    hybrid = torch.where(mask[:, None, :, None], kspace * weights[:, None], 0)

    def average() -> torch.Tensor:
        merged = _merged_areas(trajectory, measured_here, areas, evenly=begin > 0)
        return _gridded_average(kspace, mask, positions, merged, trajectory.matrix)

    if cine.series is None:
        reference = average()
    elif begin:
        reference = cine.series.average(cine.kspace, len(kspace) / len(cine.kspace), average)
    else:
        reference = cine.series.begin(average())
    measured = torch.ones(trajectory.matrix[0], dtype=torch.bool, device=device)
    maps = None if cine.series is None else cine.series.maps
    if maps is None:
        maps, said = usable_maps(cine, device)
        notes += said
    if maps is None:
        maps, more = estimate_maps(reference, measured, options.maps)
        notes.extend(more)
    if cine.series is not None:
        cine.series.maps = maps
    variance = None
    if cine.receiver.is_white:
        variance = 2.0 * spacing * (1.0 if cine.noise_share is None else cine.noise_share)
    data = OffGridSlice(
        hybrid[first:],
        mask[first:],
        maps,
        reference,
        measured,
        noise_variance=variance,
        notes=notes,
        periodic=cine.periodic,
        before=cine.series.last(options.method) if cine.series is not None and begin else None,
        positions=positions[first:],
        weights=weights[first:],
        gridding=gridding[first:],
    )
    variance, said = right_noise(data, data.seen_noise(), lines=False)
    notes += [] if cine.context else said  # once in a series
    return replace(data, noise_variance=variance)


def _without_delays(cine: CineSlice, trajectory: Trajectory, notes: list[str]) -> Trajectory:
    """The trajectory as gradient delays left it, where they are found and matter; a note says so."""
    positions = trajectory.positions[cine.mask]
    if not are_straight(positions):
        return trajectory
    delays = find_delays(cine.kspace.swapaxes(1, 2)[cine.mask], positions)
    if delays is None or not delays.matter:
        return trajectory
    notes.append(f"gradient delays in samples, corrected: {delays}")
    return replace(trajectory, positions=correct_positions(trajectory.positions, delays))


def _areas(trajectory: Trajectory, mask: NDArray[np.bool_], first: int) -> NDArray[np.float32]:
    """The part of k-space ``(frame, readout, sample)`` of each sample within its frame, in cells of the grid.

    Where it is not given, that of the frames before the first one stays zero.
    """
    areas = np.zeros(trajectory.positions.shape[:-1], np.float32)
    for frame, used in enumerate(mask):
        if not used.any() or (frame < first and trajectory.density is None):
            continue
        if trajectory.density is None:
            areas[frame, used] = _found_areas(trajectory.positions[frame, used], trajectory.matrix)
        else:
            areas[frame, used] = _in_cells(
                trajectory.density[frame, used], trajectory.positions[frame, used], trajectory
            )
    return areas


def _found_areas(
    positions: NDArray[np.float32], matrix: tuple[int, int], *, evenly: bool = False
) -> NDArray[np.float32]:
    """The part of k-space of each sample of readouts that are used together, where nothing gives it."""
    if are_straight(positions):
        return cell_areas(positions, matrix, evenly=evenly)
    return iterated_areas(positions, matrix)


def _in_cells(
    density: NDArray[np.float32], positions: NDArray[np.float32], trajectory: Trajectory
) -> NDArray[np.float32]:
    """Bring density weights of any unit to cells of the grid: together they are the disk that the samples cover."""
    scaled = positions * np.array([trajectory.matrix[1], trajectory.matrix[0]], np.float32)
    disk = np.pi * float(np.linalg.norm(scaled, axis=-1).max()) ** 2
    total = float(density.sum())
    return np.asarray(density * np.float32(disk / total if total > 0 else 0.0))


def _merged_areas(
    trajectory: Trajectory, mask: NDArray[np.bool_], areas: NDArray[np.float32], *, evenly: bool
) -> NDArray[np.float32]:
    """The part of k-space ``(frame, readout, sample)`` of each sample among those of all frames.

    With `evenly` these are a few frames of a long series, whose angles lie between those of the others.
    """
    if trajectory.density is not None:
        return np.asarray(areas / np.float32(np.count_nonzero(mask.any(1))))
    merged = np.zeros_like(areas)
    merged[mask] = _found_areas(trajectory.positions[mask], trajectory.matrix, evenly=evenly)
    return merged


def _largest_weight(positions: NDArray[np.float32], mask: NDArray[np.bool_], matrix: tuple[int, int]) -> float:
    """Distance of neighbouring samples of a readout in pixels of k-space, at most one: what such a sample adds."""
    scaled = positions[mask] * np.array([matrix[1], matrix[0]], np.float32)
    steps = np.linalg.norm(np.diff(scaled, axis=1), axis=-1)
    return min(1.0, float(np.median(steps))) if steps.size else 1.0


def _gridded_average(
    kspace: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    areas: NDArray[np.float32],
    matrix: tuple[int, int],
) -> torch.Tensor:
    """Grid the readouts of all frames together: ``(coil, ky, x)``, as the reference of any slice."""
    weights = to_device(areas, kspace.device)[mask]
    samples = kspace.movedim(1, 2)[mask] * weights[:, None]
    images = grid_samples(samples.movedim(1, 0).flatten(1), positions[mask].flatten(0, 1), matrix, _AVERAGE_ERROR)
    return fft(images, (-2,))
