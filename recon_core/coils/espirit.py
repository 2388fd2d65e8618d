"""Coil maps from a subspace: the combinations of coils that neighbouring k-space samples obey, pixel by pixel.

Uecker, Lai, Murphy, Virtue, Elad, Pauly, Vasanawala, Lustig, Magn Reson Med 2014, doi:10.1002/mrm.24751.
"""

from __future__ import annotations

import torch

from recon_core.coils.vectors import virtual_body_coil
from recon_core.errors import DataError
from recon_core.physics.fourier import fft

# Points of the coarse grid for every one that the band limit of the transfer matrix asks for. At 4 the interpolated
# maps agree with those of every pixel to 1e-5 (1 - correlation).
_OVERSAMPLING = 4
# An interpolated vector that is shorter or longer than one by more than this comes from neighbours that disagree.
_DISAGREEMENT = 0.005
# Matrices of single pixels in work at a time.
_BATCH_BYTES = 64 << 20
# A column of the block below this part of the peak was never sampled (asymmetric echo), but came back from a Fourier
# transform.
_NOTHING = 1e-6
# Maps of good data explain more than 0.99 of the block; with 10 lines, or folded tissue, it is 0.9 to 0.97.
_REFUSED, _NOTED = 0.9, 0.98
_REMEDY = "choose Walsh maps"


def espirit_maps(
    hybrid: torch.Tensor,
    measured: torch.Tensor,
    *,
    kernel: int = 6,
    calibration: int = 24,
    threshold: float = 0.001,
    crop: float = 0.8,
    soft: bool = False,
    sets: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Estimate coil maps from the fully sampled centre of k-space.

    All patches of the calibration block span a subspace. Projecting every patch of a k-space onto it and averaging
    where patches overlap is, in image space, one coil-by-coil matrix per pixel, the transfer matrix; vectors that it
    keeps are coil maps.

    Parameters
    ----------
    hybrid
        ``(coil, ky, x)`` complex64, lines averaged over time, transformed along the readout; any unit.
    measured
        ``(ky,)`` bool, True where `hybrid` holds a line.
    kernel
        Side of the patch in k-space samples.
    calibration
        Side of the calibration block in k-space samples at most; it shrinks to what is fully sampled.
    threshold
        Squared singular values of the patches, relative to the largest, above which a singular vector is kept.
    crop
        Eigenvalue (one where the maps explain everything) above which a pixel has maps.
    soft
        False sets the maps to zero where the eigenvalue is not above `crop`. True lets their norm rise smoothly with
        the eigenvalue, from 0 at ``2 crop - 1`` through 1/2 at `crop` to 1 at 1.
    sets
        Sets of maps, more than one for a field of view smaller than the body, or motion.

    Returns
    -------
    tuple
        Maps ``(set, coil, y, x)`` complex64 of unit norm over the coils, or smaller, see `crop` and `soft`; eigenvalues
        ``(set, y, x)`` float32, descending; notes on what the user should know. Phase: the combination of coils
        that receives most of the block (virtual body coil) has phase zero everywhere.

    Raises
    ------
    DataError
        If the centre of k-space is missing, without signal or smaller than the kernel, if the maps do not explain it
        (too few lines, noise), or if more sets are asked for than there are coils.
    """
    n_coils, n_y, n_x = hybrid.shape
    if sets > n_coils:
        raise DataError(f"ESPIRiT gives at most as many sets of maps as there are coils; asked {sets} of {n_coils}")
    block = _calibration_block(hybrid, measured, kernel, calibration)
    transfer = _transfer_function(_signal_space(block, kernel, threshold))
    reference = virtual_body_coil(block)

    # The transfer matrix is a trigonometric polynomial of few terms, so that its eigenvectors vary slowly.
    side = _OVERSAMPLING * transfer.shape[0]
    pixel_y, pixel_x = _positions(n_y).to(hybrid.device), _positions(n_x).to(hybrid.device)
    rows, columns = (_positions(min(side, size)).to(hybrid.device) for size in (n_y, n_x))
    grid = torch.cartesian_prod(rows, columns)
    values, vectors = _eigen(transfer, grid, reference)
    values, vectors = values[:, :sets], vectors[:, :sets]
    notes = _judge(_explained_share(block, rows, columns, vectors, values > crop), block, crop)
    fields = torch.cat([values[:, :, None], torch.view_as_real(vectors).flatten(-2)], -1)
    fields = fields.reshape(len(rows), len(columns), sets, 1 + 2 * n_coils).permute(2, 3, 0, 1)
    fields = _cubic(n_y, len(rows)).to(fields) @ fields @ _cubic(n_x, len(columns)).to(fields).mT
    eigenvalues = fields[:, 0].contiguous()
    maps = torch.complex(fields[:, 1::2], fields[:, 2::2])
    norm = torch.linalg.vector_norm(maps, dim=1)

    # Where eigenvectors change places, or turn their phase around a zero of the reference, neighbours do not tell.
    floor = 2 * crop - 1 if soft else crop
    unsure = (((norm - 1).abs() > _DISAGREEMENT) & (eigenvalues > floor - _DISAGREEMENT)).any(0).nonzero()
    if len(unsure):
        y, x = unsure.unbind(1)
        values, vectors = _eigen(transfer, torch.stack([pixel_y[y], pixel_x[x]], 1), reference)
        eigenvalues[:, y, x] = values[:, :sets].mT
        maps[:, :, y, x] = vectors[:, :sets].permute(1, 2, 0)
        norm[:, y, x] = 1
    weight = _smooth_step((eigenvalues - floor) / (1 - floor)) if soft else (eigenvalues > crop).to(norm)
    return maps * (weight / torch.where(norm > 0, norm, 1))[:, None], eigenvalues, notes


def _calibration_block(hybrid: torch.Tensor, measured: torch.Tensor, kernel: int, limit: int) -> torch.Tensor:
    """Cut the fully sampled centre ``(coil, ky, kx)`` out of the lines, scaled to a maximum of one."""
    lines = _central_run(measured, limit)
    if lines.stop - lines.start < kernel:
        raise DataError(
            f"ESPIRiT needs at least {kernel} adjacent measured lines around the centre of k-space, found "
            f"{lines.stop - lines.start}; {_REMEDY}, measure more central lines, or average a pattern that moves"
        )
    block = fft(hybrid[:, lines], (-1,))
    strength = block.abs().amax((0, 1))
    peak = strength.amax()
    if not bool((peak > 0) & peak.isfinite()):
        raise DataError(
            f"ESPIRiT needs a signal, but the {lines.stop - lines.start} central lines of k-space hold "
            f"{'only zeros' if bool(peak == 0) else 'values that are not finite'}"
        )
    columns = _central_run(strength > _NOTHING * peak, limit)
    if columns.stop - columns.start < kernel:
        raise DataError(
            f"ESPIRiT needs at least {kernel} adjacent samples around the centre of the readout, found "
            f"{columns.stop - columns.start} with signal; {_REMEDY}"
        )
    return block[:, :, columns] / peak


def _central_run(present: torch.Tensor, limit: int) -> slice:
    """Find the adjacent samples around ``N//2``, at most `limit` and as central as they can be."""
    centre = present.numel() // 2
    gaps = torch.nonzero(~present).flatten().tolist()
    first = max((gap + 1 for gap in gaps if gap <= centre), default=0)
    last = max(first, min((gap for gap in gaps if gap >= centre), default=present.numel()))
    length = min(limit, last - first)
    start = min(max(first, centre - length // 2), last - length)
    return slice(start, start + length)


def _signal_space(block: torch.Tensor, kernel: int, threshold: float) -> torch.Tensor:
    """Find the kernels ``(coil, ky, kx, kernel)``, orthonormal, that span all patches of the block ``(coil, ky, kx)``.

    Raises
    ------
    DataError
        If every patch brings something new, or nothing is left for the null space.
    """
    n_coils, n_lines, n_samples = block.shape
    patches = block.unfold(1, kernel, 1).unfold(2, kernel, 1).permute(0, 3, 4, 1, 2).reshape(n_coils * kernel**2, -1)
    n_entries, n_patches = patches.shape
    # The smaller of the two Gram matrices has the same singular values.
    gram = patches @ patches.mH if n_entries <= n_patches else patches.mH @ patches
    squares, vectors = torch.linalg.eigh(gram)
    # Below rounding no singular vector means anything, whatever the threshold.
    kept = squares > max(threshold, len(squares) * torch.finfo(squares.dtype).eps) * squares[-1]
    n_kept = int(kept.sum())
    if n_kept == n_patches:
        raise DataError(
            f"the calibration block of {n_lines} lines x {n_samples} samples is too small for ESPIRiT with a kernel of "
            f"{kernel} x {kernel}: each of its {n_patches} patches brings something new; {_REMEDY}, or measure more "
            "central lines"
        )
    if n_kept == n_entries and n_coils > 1:
        raise DataError(
            f"the calibration data are too noisy for ESPIRiT with a threshold of {threshold:g}: no combination of "
            f"coils is excluded; raise the threshold, or {_REMEDY}"
        )
    kernels = vectors[:, kept]
    if n_entries > n_patches:
        kernels = patches @ kernels / squares[kept].sqrt()
    space: torch.Tensor = kernels.reshape(n_coils, kernel, kernel, n_kept)
    return space


def _transfer_function(kernels: torch.Tensor) -> torch.Tensor:
    """Sum over the kernels the outer products of their images, ``(y, x, coil, coil)``.

    Products of kernels of n samples have 2 n - 1, so that as many points, in FFT order, determine the whole field.
    """
    side = kernels.shape[1]
    n_points = 2 * side - 1
    images = torch.fft.ifft2(kernels, s=(n_points, n_points), dim=(1, 2), norm="forward").permute(1, 2, 0, 3)
    transfer: torch.Tensor = images @ images.mH / side**2
    return transfer


def _eigen(transfer: torch.Tensor, points: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve the transfer matrix at `points` ``(point, 2)``, fractions of the field of view.

    Returns the eigenvalues ``(point, rank)``, descending, and the vectors ``(point, rank, coil)``, turned so that their
    product with the `reference` ``(coil,)`` is real.
    """
    n_points, _, n_coils, _ = transfer.shape
    terms = torch.view_as_real(transfer).reshape(n_points**2, -1)
    values, vectors = [], []
    batch = max(1, _BATCH_BYTES // (n_coils**2 * transfer.element_size()))
    for part in torch.split(points, batch):
        weight_y, weight_x = _trigonometric(part[:, 0], n_points), _trigonometric(part[:, 1], n_points)
        weight = (weight_y[:, :, None] * weight_x[:, None, :]).flatten(1).to(terms)
        matrices = torch.view_as_complex((weight @ terms).reshape(-1, n_coils, n_coils, 2))
        ascending = torch.linalg.eigh(matrices)
        values.append(ascending.eigenvalues.flip(-1))
        vectors.append(ascending.eigenvectors.mT.flip(-2))
    turned = torch.cat(vectors)
    phase = (turned @ reference.conj()).angle()
    return torch.cat(values), turned * torch.polar(torch.ones_like(phase), -phase)[..., None]


def _explained_share(
    block: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, vectors: torch.Tensor, valid: torch.Tensor
) -> float:
    """Share of the energy of the block that maps ``(point, set, coil)``, where `valid`, hold on a grid of points.

    Maps with holes in the body, maps chosen among equals (noise) and maps of one of two tissues that are folded onto
    each other leave much of it.
    """
    n_lines, n_samples = block.shape[1:]
    # The rings of a short block reach far into the dark surround; the window keeps them in.
    window_y, window_x = (
        torch.hann_window(size + 2, periodic=False, device=block.device, dtype=block.real.dtype)[1:-1]
        for size in (n_lines, n_samples)
    )
    windowed = block * window_y[:, None] * window_x
    images = _waves(rows, n_lines).to(block) @ windowed @ _waves(columns, n_samples).to(block).mT
    images = images.flatten(1).mT
    held = torch.einsum("psc,pc->ps", vectors.conj(), images).abs().square() * valid
    return float(held.sum() / images.abs().square().sum())


def _judge(share: float, block: torch.Tensor, crop: float) -> tuple[str, ...]:
    """Refuse maps that hold too small a share of the block they come from; note where it is smaller than usual."""
    finding = (
        f"ESPIRiT maps from {block.shape[1]} lines x {block.shape[2]} samples explain {share:.1%} of them (above the "
        f"crop of {crop:g}): too few lines, much noise, or a field of view that folds"
    )
    if share < _REFUSED:
        raise DataError(f"{finding}; {_REMEDY}, lower the crop or ask for more sets of maps")
    return (f"coil maps: {finding}",) if share < _NOTED else ()


def _positions(n_pixels: int) -> torch.Tensor:
    """Positions ``(pixel,)`` float64 of centred pixels, as fractions of the field of view."""
    return (torch.arange(n_pixels, dtype=torch.float64) - n_pixels // 2) / n_pixels


def _trigonometric(positions: torch.Tensor, n_points: int) -> torch.Tensor:
    """Weights ``(position, point)`` that evaluate a polynomial of `n_points` (odd) frequencies from as many points."""
    distance = positions[:, None] - torch.arange(n_points, device=positions.device) / n_points
    frequency = torch.arange(1, n_points // 2 + 1, device=positions.device)
    return (1 + 2 * torch.cos(2 * torch.pi * distance[..., None] * frequency).sum(-1)) / n_points


def _waves(positions: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Fourier matrix ``(position, sample)``, to image space up to a scale and a phase per position."""
    turns = positions[:, None] * torch.arange(n_samples, device=positions.device)
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)


def _cubic(n_pixels: int, n_points: int) -> torch.Tensor:
    """Weights ``(pixel, point)`` of periodic cubic convolution between `n_points` points, both grids centred.

    Keys, IEEE Trans Acoust Speech Signal Process 1981, doi:10.1109/TASSP.1981.1163711.
    """
    place = _positions(n_pixels) * n_points + n_points // 2
    distance = (place[:, None] - torch.arange(n_points) + n_points / 2).remainder(n_points) - n_points / 2
    near, far = distance.abs().clamp(max=1), distance.abs().clamp(1, 2)
    return (1.5 * near**3 - 2.5 * near**2 + 1) + (-0.5 * far**3 + 2.5 * far**2 - 4 * far + 2)


def _smooth_step(share: torch.Tensor) -> torch.Tensor:
    """Rise from 0 at 0 to 1 at 1 with horizontal ends."""
    share = share.clamp(0, 1)
    return share**2 * (3 - 2 * share)
