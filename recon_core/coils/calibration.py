"""The k-space that coil maps are made from: one fully sampled centre per slice."""

from __future__ import annotations

import torch

from recon_core.physics.fourier import ifft

#: Fewer adjacent lines than this tell nothing about where a coil sees.
MINIMUM_LINES = 4


def time_average(kspace: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average every line over the frames that measured it.

    With a sampling pattern that moves from frame to frame the average is complete although no frame is.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, x)`` complex64, in k-space or hybrid space.
    mask
        ``(frame, ky)`` bool.

    Returns
    -------
    tuple of torch.Tensor
        Average ``(coil, ky, x)`` complex64, zero where never measured, and ``(ky,)`` bool, True where measured at all.
    """
    counts = mask.sum(0)
    average = torch.zeros_like(kspace[0])
    # Measured lines only: those in between are not data, and most of the memory.
    for frame, measured in zip(kspace, mask, strict=True):
        if kspace.device.type != "cpu":  # there the number of lines would have to be waited for
            average += torch.where(measured[:, None], frame, 0)
            continue
        lines = measured.nonzero().flatten()
        average.index_add_(1, lines, frame[:, lines])
    return average / counts.clamp(min=1)[None, :, None], counts > 0


def measured_lines(reference: torch.Tensor) -> torch.Tensor:
    """Lines ``(ky,)`` bool that a reference ``(coil, ky, x)`` holds."""
    return reference.ne(0).any(-1).any(0)


def calibration_lines(measured: torch.Tensor) -> slice:
    """Find the fully sampled centre.

    Parameters
    ----------
    measured
        ``(ky,)`` bool.

    Returns
    -------
    slice
        The longest run of adjacent measured lines around ``N//2``, cut to equal length on both sides of it unless it is
        the whole axis; empty when the centre itself was not measured.
    """
    n_lines = measured.numel()
    centre = n_lines // 2
    gaps = torch.nonzero(~measured).flatten().tolist()
    first = max((gap + 1 for gap in gaps if gap <= centre), default=0)
    last = min((gap for gap in gaps if gap >= centre), default=n_lines)
    if (first, last) == (0, n_lines) or first >= last:
        return slice(first, max(first, last))
    half = min(centre - first, last - 1 - centre)
    return slice(centre - half, centre + half + 1)


def central_lines(measured: torch.Tensor) -> tuple[slice, tuple[str, ...]]:
    """Find the lines that tell where a coil sees.

    Parameters
    ----------
    measured
        ``(ky,)`` bool.

    Returns
    -------
    tuple
        The fully sampled centre, or all lines, measured or not, where there is none; and a note if so.
    """
    n_lines = measured.numel()
    lines = calibration_lines(measured)
    if lines.stop - lines.start >= min(MINIMUM_LINES, n_lines):
        return lines, ()
    note = (
        f"coil maps: fewer than {MINIMUM_LINES} adjacent lines around the centre were measured, all "
        f"{int(measured.sum())} of {n_lines} lines are used and the maps may be aliased"
    )
    return slice(0, n_lines), (note,)


def coil_images(hybrid: torch.Tensor, lines: slice) -> torch.Tensor:
    """Transform a block of central lines into low-resolution coil images.

    Parameters
    ----------
    hybrid
        ``(coil, ky, x)`` complex64, transformed along the readout.
    lines
        The block. Unless it is the whole axis it is apodised with a Hann window, so that its edges do not ring:
        ringing would carry the maps of bright tissue into dark pixels.

    Returns
    -------
    torch.Tensor
        ``(coil, y, x)`` complex64.
    """
    n_lines = hybrid.shape[1]
    n_block = lines.stop - lines.start
    block = torch.zeros_like(hybrid)
    block[:, lines] = hybrid[:, lines]
    if n_block < n_lines:
        window = torch.hann_window(n_block + 1, periodic=True, device=hybrid.device, dtype=hybrid.real.dtype)[1:]
        block[:, lines] *= window[:, None]
    return ifft(block, (1,))
