"""First step: the slice on the device, transformed along the readout, with its coil maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.coils.calibration import cancels, measured_lines, time_average
from recon_core.coils.estimate import are_usable, estimate_maps
from recon_core.coils.vectors import normalise
from recon_core.data import HybridSlice
from recon_core.errors import ResourceError
from recon_core.methods import find_method
from recon_core.physics.fourier import ifft
from recon_core.physics.hybrid_noise import coil_noise_deviations
from recon_core.physics.memory import available_bytes, predicted_bytes
from recon_core.points.find import find_points
from recon_core.points.slice import reference_of_points, with_points
from recon_core.steps.device import to_device
from recon_core.steps.load_off_grid import load_off_grid
from recon_core.words import listed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recon_core.data import CineSlice
    from recon_core.options import ReconOptions

# A coil is loud if it has so many times the noise of most and at most so much of the ratio of signal to noise that
# most have: one of a higher gain has as much more signal.
_LOUD, _POOR = 2.5, 0.5


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
    zero = _zero_lines(cine)
    mask, kspace = to_device(cine.mask & ~zero, device), to_device(cine.kspace, device)
    measured_points = find_points(cine.kspace, cine.mask & ~zero) if cine.points is None else cine.points
    points = None if measured_points is None else to_device(measured_points, device)
    # from frame to frame: then the context is nothing but a part of the average, and is transformed as that
    first = cine.context if framewise else 0
    hybrid = ifft(kspace[first:], (-1,))
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
    # noise that is white is the same in all coils: what seems to be more is signal in the corners of k-space
    weights, notes = (None, []) if cine.receiver.is_white else _coil_weights(hybrid, mask[first:], reference)
    if weights is not None:
        hybrid, reference = hybrid * weights, reference * weights
    left_out = zero[first:]
    if left_out.any():
        frames = listed(np.flatnonzero(left_out.any(1)).tolist())
        notes.append(f"lines that hold only zeros count as not measured: {int(left_out.sum())}, of frames {frames}")
    maps = None if cine.maps is None else to_device(cine.maps, device)
    if maps is not None and not are_usable(maps):
        notes.append(
            "the coil maps that came with the slice are zero or not finite: others are estimated from its data"
        )
        maps = None
    if maps is None:
        of_frames = cine.calibration is None and points is None and not first
        turned, said = _turned(hybrid, mask) if of_frames else (None, [])
        maps, more = estimate_maps(reference if turned is None else turned, measured, options.maps)
        notes.extend([*said, *more])
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
    )
    return data if points is None else with_points(data, points[first:])


def _turned(hybrid: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor | None, list[str]]:
    """The time average of frames that are turned to one phase, where they would cancel in it; and a note of that."""
    factors, kept = cancels(hybrid, mask)
    if factors is None:
        return None, []
    average, _ = time_average(hybrid * factors[:, None, None, None], mask)
    said = (
        f"the phase differs from frame to frame, so that their average keeps {100 * kept:.0f} % of the signal: coil "
        "maps are made of frames that are turned to one phase"
    )
    return average, [said]


def _zero_lines(cine: CineSlice) -> NDArray[np.bool_]:
    """Lines ``(frame, ky)`` that were measured and are zero, where others are not: a receiver gives noise at least."""
    if cine.points is not None:  # which samples were measured is known
        return np.zeros_like(cine.mask)
    zero: NDArray[np.bool_] = cine.mask & ~cine.kspace[..., cine.kspace.shape[-1] // 2].any(1)
    where = np.nonzero(zero)
    zero[where] = ~cine.kspace[where[0], :, where[1]].any((1, 2))
    return zero if (cine.mask & ~zero).any() else np.zeros_like(zero)


def _noise_variance(cine: CineSlice, *, lines: bool) -> float | None:
    """Variance of a complex sample, of whole lines behind the transform along them.

    Whitening gives real and imaginary part of a readout unit variance each.
    """
    if not cine.receiver.is_white:
        return None
    columns = 1.0 if cine.receiver.columns is None or not lines else float(np.mean(cine.receiver.columns))
    return 2.0 * columns * (1.0 if cine.noise_share is None else cine.noise_share)


def _coil_weights(
    hybrid: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor
) -> tuple[torch.Tensor | None, list[str]]:
    """Factors ``(coil, 1, 1)`` of coils whose noise would drown the others, or None; and notes that say which."""
    deviations = torch.tensor(coil_noise_deviations(hybrid, mask))
    usual = torch.nanmedian(deviations)
    loud = deviations > _LOUD * usual
    if bool(loud.any()):  # as a rule none is, and this looks at all data
        quality = reference.abs().square().mean((-2, -1)).sqrt().cpu() / deviations
        loud &= quality < _POOR * torch.nanmedian(quality)
    if not bool(loud.any()):
        return None, []
    notes = [
        f"coil {coil} is weighed down: it has {float(deviations[coil] / usual):.2g} times the noise of most coils"
        for coil in loud.nonzero().flatten().tolist()
    ]
    return torch.where(loud, usual / deviations, 1).to(hybrid.real)[:, None, None], notes


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
