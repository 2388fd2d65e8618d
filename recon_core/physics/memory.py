"""Prediction of the memory of a stage, so that the work can be divided to fit."""

from __future__ import annotations

from typing import Literal

import torch

from recon_core.budget import free_bytes
from recon_core.physics.sense import WORKSPACE_BYTES, portion_sizes
from recon_core.physics.solvers import PORTION_BYTES

#: What helps where a GPU has too little memory.
MORE_GPU_MEMORY = "compress the coils (virtual_coils), end other programs on it, or set device=cpu"

Stage = Literal["sense", "consistency", "consistency_solve"]


def predicted_bytes(
    stage: Stage,
    shape: tuple[int, int, int, int],
    *,
    batch: int = 1,
    maps_per_frame: bool = False,
    folds: int = 0,
    dtype: torch.dtype = torch.complex64,
    device: str = "cpu",
    workspace_bytes: int | None = None,
) -> int:
    """Predict the memory that a stage takes at its peak beyond its inputs, results included.

    Parameters
    ----------
    stage
        ``sense``: iterative SENSE of one slice; ``consistency``: making a `DataConsistency` and applying `hard`,
        `weighted` or `gradient` once; ``consistency_solve``: the same with `solve`.
    shape
        (frame, coil, ky, x).
    batch
        Slices at once; not for ``sense``.
    maps_per_frame
        Every frame has coil maps of its own.
    folds
        R of regular undersampling, where the operator folds instead of transforming; else 0.
    dtype
        complex64 or complex128.
    device
        ``cpu`` or ``cuda``.
    workspace_bytes
        As given to the operator; None is its default.

    Returns
    -------
    int
        Bytes. Memory that libraries hold for themselves (transform plans, allocator caches) is not in it.
    """
    n_frames, n_coils, n_y, n_x = shape
    size = dtype.itemsize
    plane = n_y * n_x * size
    n_sets = batch * n_frames if maps_per_frame else 1
    frames_of_set = 1 if maps_per_frame else batch * n_frames
    budget = WORKSPACE_BYTES[device] if workspace_bytes is None else workspace_bytes

    def portion(coils: int) -> int:
        column_bytes = coils * n_y * size
        columns, frames, sets = portion_sizes(budget, column_bytes, (n_x, frames_of_set, n_sets))
        return column_bytes * columns * frames * sets

    # The operator holds the maps, their conjugate and, where it folds, the products of maps.
    held = n_sets * plane * (2 * n_coils + folds)
    # A transform has its input and its output; folding has the image twice, while that of before still stands.
    transform = 2 * portion(n_coils)
    normal = 4 * portion(1) if folds else transform
    images = batch * n_frames * plane

    if stage == "sense":
        # Image, residual, direction, and A^H A of the last direction; while the next is made, two more and their sum.
        solved = plane * min(n_frames, max(1, PORTION_BYTES[device] // plane))
        return held + images + max(transform, 7 * solved, 5 * solved + normal)
    held += images + n_sets * plane // 2
    if stage == "consistency":
        return held + max(transform, 3 * images + normal)
    # As for ``sense``, and the right side and the image with y contiguous.
    return held + max(transform, 9 * images, 7 * images + normal)


def available_bytes(device: torch.device) -> int | None:
    """Say how much memory of a device is free for this process; None where the system does not say.

    On a GPU that is what the driver has left and what torch keeps for later, within the fraction of the memory that
    `torch.cuda.set_per_process_memory_fraction` allows.
    """
    if device.type != "cuda":
        return free_bytes()
    left, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device.index)  # from torch 2.7 on
    return max(0, min(left + torch.cuda.memory_reserved(device) - used, int(fraction * total) - used))
