"""First step: the slice on the device, transformed along the readout, with its coil maps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recon_core.coils.calibration import measured_lines, time_average
from recon_core.coils.estimate import estimate_maps
from recon_core.coils.vectors import normalise
from recon_core.data import HybridSlice
from recon_core.errors import ResourceError
from recon_core.methods import find_method
from recon_core.physics.fourier import ifft
from recon_core.physics.hybrid_noise import coil_noise_deviations, least_deviation
from recon_core.physics.memory import available_bytes, predicted_bytes
from recon_core.points.find import find_points
from recon_core.points.slice import reference_of_points, with_points
from recon_core.steps.defects import loud_coils, note_zero_lines, right_noise, usable_maps, zero_lines
from recon_core.steps.device import to_device
from recon_core.steps.equal_frames import equal_frames
from recon_core.steps.load_off_grid import load_off_grid
from recon_core.steps.still_maps import still_maps

if TYPE_CHECKING:
    import torch

    from recon_core.data import CineSlice
    from recon_core.options import ReconOptions


def load(cine: CineSlice, options: ReconOptions, device: torch.device) -> HybridSlice:
    """Bring a slice to the device, transform it along the readout and estimate its coil maps.

    Parameters
    ----------
    cine
        The slice.
    options
        Method, and how coil maps are estimated.
    device
        Where to compute.

    Returns
    -------
    HybridSlice
        Without the frames of the context where the method takes each frame on its own.

    Raises
    ------
    ModelError
        If the method is unknown.
    ResourceError
        If the slice does not fit into the memory that is free.
    """
    framewise = find_method(options.method).framewise
    _check_memory((*cine.kspace.shape[:2], *cine.plane), device)
    if cine.trajectory is not None:
        return load_off_grid(cine, cine.trajectory, options, device)
    zero = zero_lines(cine)
    mask, kspace = to_device(cine.mask & ~zero, device), to_device(cine.kspace, device)
    measured_points = find_points(cine.kspace, cine.mask & ~zero) if cine.points is None else cine.points
    points = None if measured_points is None else to_device(measured_points, device)
    # from frame to frame: then the context is nothing but a part of the average, and is transformed as that
    first = cine.context if framewise else 0
    hybrid = ifft(kspace[first:], (-1,))
    factors, notes = equal_frames(hybrid, mask) if points is None and not first else (None, [])
    if factors is not None:
        hybrid *= factors[:, None, None, None]
    if cine.calibration is not None:
        reference = ifft(to_device(cine.calibration, device), (-1,))
        measured = measured_lines(reference)
    elif points is not None:
        reference, measured = reference_of_points(kspace, points)
    elif first:
        average, measured = time_average(kspace, mask)
        reference = ifft(average, (-1,))
    else:
        reference, measured = time_average(hybrid, mask)
    of_coils = coil_noise_deviations(hybrid, mask[first:])
    weights, said = loud_coils(of_coils, reference, _stated_deviation(cine))
    notes += said
    if weights is not None:
        hybrid, reference = hybrid * weights, reference * weights
    notes += note_zero_lines(zero[first:])
    maps, said = usable_maps(cine, device)
    notes += said
    # of the average of these frames, from which motion can be taken
    of_average = cine.calibration is None and points is None and not first
    of_average = of_average and maps is None and options.maps.kind == "auto"
    if maps is None:
        maps, more = estimate_maps(reference, measured, options.maps)
        notes += more
    elif weights is not None:
        maps, _ = normalise(maps * weights)
    planes = (None, None) if cine.ct is None else (cine.ct.image, cine.ct.cover)
    ct, cover = (None if plane is None else to_device(plane, device) for plane in planes)
    data = HybridSlice(
        hybrid,
        mask[first:],
        maps,
        reference,
        measured,
        noise_variance=_noise_variance(cine, lines=points is None),
        notes=notes,
        ct=ct,
        ct_cover=cover,
        periodic=cine.periodic,
        factors=factors,
    )
    data = data if points is None else with_points(data, points[first:])
    seen = least_deviation(of_coils) if points is None else data.seen_noise()
    variance, said = right_noise(data, seen, lines=points is None)
    notes += [] if cine.context else said  # once in a series
    data = replace(data, noise_variance=variance)
    maps = still_maps(data, options.compute.implementation) if of_average else None
    return data if maps is None else replace(data, maps=maps)


def _stated_deviation(cine: CineSlice) -> float | None:
    """Standard deviation of real and imaginary part of a readout, to which whitening gives unit variance each."""
    if not cine.receiver.is_white:
        return None
    return 1.0 if cine.noise_share is None else cine.noise_share**0.5


def _noise_variance(cine: CineSlice, *, lines: bool) -> float | None:
    """Variance of a complex sample, of whole lines behind the transform along them."""
    stated = _stated_deviation(cine)
    if stated is None:
        return None
    columns = 1.0 if cine.receiver.columns is None or not lines else float(np.mean(cine.receiver.columns))
    return 2.0 * columns * stated**2


def _check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a slice that would take the machine down: a scan too large, or a forged matrix size."""
    n_frames, n_coils, n_y, n_x = shape
    # the data as they came, transformed along the readout, and once more in between
    needed = 3 * 8 * n_frames * n_coils * n_y * n_x
    needed += predicted_bytes("sense", (n_frames, n_coils, n_y, n_x), device=device.type)
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ResourceError(
            f"a slice of {' x '.join(map(str, shape))} (frame x coil x ky x kx) needs {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free on {device.type}; compress the coils (virtual_coils) or free memory"
        )
