"""Cartesian ky-t sampling masks ``(frame, ky)``: which line is measured in which frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError
from recon_core.off_grid.trajectory import GOLDEN_ANGLE
from recon_core.words import choose_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLINGS = ("full", "uniform", "interleaved", "variable_density", "gro")

_WIDTH = 0.22  # standard deviation of the variable density, relative to the number of lines
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_FLOOR = 0.12  # its value far from the centre, relative to the centre


def acs_rows(lines: int, acs_lines: int) -> NDArray[np.bool_]:
    """Mark the block of autocalibration lines.

    Parameters
    ----------
    lines
        Number of lines of k-space.
    acs_lines
        Length of the block; it is centred on line ``lines // 2``.

    Returns
    -------
    NDArray[np.bool_]
        ``(ky,)``.

    Raises
    ------
    SettingsError
        If the block is longer than k-space.
    """
    if not 0 <= acs_lines <= lines:
        raise SettingsError(f"the ACS block must have between 0 and {lines} lines, got {acs_lines}")
    rows = np.zeros(lines, np.bool_)
    first = lines // 2 - acs_lines // 2
    rows[first : first + acs_lines] = True
    return rows


def grid_rows(frames: int, lines: int, acceleration: int, shift: int = 0) -> NDArray[np.bool_]:
    """Mark every R-th line, through the centre of k-space in frame 0.

    Parameters
    ----------
    frames, lines
        Size of the mask.
    acceleration
        Distance R between the lines.
    shift
        By how many lines the grid moves from frame to frame.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.

    Raises
    ------
    SettingsError
        If there are no frames or lines, or R is not between 1 and the number of lines.
    """
    if frames < 1 or lines < 1 or not 1 <= acceleration <= lines:
        raise SettingsError(
            f"a mask needs frames, lines and 1 <= R <= lines, got {frames}, {lines}, R = {acceleration}"
        )
    distance = np.arange(lines)[None, :] - lines // 2 - shift * np.arange(frames)[:, None]
    return np.asarray(distance % acceleration == 0)


def full_mask(frames: int, lines: int) -> NDArray[np.bool_]:
    """Measure everything: ``(frame, ky)``, all True."""
    return grid_rows(frames, lines, 1)


def uniform_mask(frames: int, lines: int, acceleration: int, acs_lines: int = 0) -> NDArray[np.bool_]:
    """Every R-th line and the ACS block, the same in all frames (GRAPPA, SENSE): ``(frame, ky)``."""
    return grid_rows(frames, lines, acceleration) | acs_rows(lines, acs_lines)


def interleaved_mask(frames: int, lines: int, acceleration: int, acs_lines: int = 0) -> NDArray[np.bool_]:
    """Every R-th line, moved by one line per frame (TGRAPPA, TSENSE), and the ACS block: ``(frame, ky)``.

    R neighbouring frames together measure all lines (DOI 10.1002/mrm.20430).
    """
    return grid_rows(frames, lines, acceleration, shift=1) | acs_rows(lines, acs_lines)


def variable_density_mask(
    frames: int, lines: int, acceleration: int, acs_lines: int = 0, *, seed: int = 0
) -> NDArray[np.bool_]:
    """Random lines, denser towards the centre, different in each frame.

    Parameters
    ----------
    frames, lines
        Size of the mask.
    acceleration
        Every frame has ``round(lines / R)`` lines, those of the ACS block among them, but at least the block.
    acs_lines
        Lines at the centre that every frame has.
    seed
        Same seed, same mask.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.
    """
    mask, outside, density, count = _drawing(frames, lines, acceleration, acs_lines)
    rng = np.random.default_rng([seed, 41])
    for frame in mask:
        frame[rng.choice(outside, count, replace=False, p=density)] = True
    return mask


def _drawing(
    frames: int, lines: int, acceleration: int, acs_lines: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.float64], int]:
    """Prepare to draw lines: the mask with its block, the lines outside it with their density, and how many to take."""
    grid_rows(frames, lines, acceleration)  # checks the arguments
    block = acs_rows(lines, acs_lines)
    outside = np.flatnonzero(~block)
    count = min(max(round(lines / acceleration) - acs_lines, 0 if acs_lines else 1), len(outside))
    distance = (outside - lines // 2) / (_WIDTH * lines)
    density = _FLOOR + np.exp(-0.5 * distance**2)
    return np.tile(block, (frames, 1)), outside, density / density.sum(), count


def golden_mask(frames: int, lines: int, acceleration: int, acs_lines: int = 0, *, seed: int = 0) -> NDArray[np.bool_]:
    """Lines that follow each other at the golden ratio, denser towards the centre, as real-time scans take them.

    Any run of frames covers k-space about evenly (the Cartesian relative of golden-angle radial scans,
    doi:10.1109/TMI.2006.885337). The density is that of `variable_density_mask`.

    Parameters
    ----------
    frames, lines
        Size of the mask.
    acceleration
        Every frame has ``round(lines / R)`` lines, those of the ACS block among them, but at least the block.
    acs_lines
        Lines at the centre that every frame has.
    seed
        Where the sequence starts.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.
    """
    mask, outside, density, count = _drawing(frames, lines, acceleration, acs_lines)
    edges = np.cumsum(density)
    place = np.random.default_rng([seed, 42]).random()
    for frame in mask:
        taken = 0
        while taken < count:
            place = (place + _GOLDEN_RATIO) % 1.0
            line = outside[min(int(np.searchsorted(edges, place)), len(outside) - 1)]
            taken += not frame[line]
            frame[line] = True
    return mask


def gro_mask(frames: int, lines: int, acceleration: int, acs_lines: int = 0) -> NDArray[np.bool_]:
    """Golden-ratio offset sampling, as prospectively undersampled real-time scans take it (OCMR).

    The lines of a frame lie at equal distances on a grid that is stretched away from the centre, so that they are
    denser there; from frame to frame they move by the golden ratio of that distance (doi:10.48550/arXiv.2206.03630).

    Parameters
    ----------
    frames, lines
        Size of the mask.
    acceleration
        Every frame has ``round(lines / R)`` lines, and those of the ACS block.
    acs_lines
        Lines at the centre that every frame has; the published pattern has none.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.
    """
    grid_rows(frames, lines, acceleration)  # checks the arguments
    count = max(1, round(lines / acceleration))
    shrunk = max(-(-lines // 2), count)  # lines of the grid before it is stretched
    step, centre = shrunk / count, shrunk / 2 + 0.5
    stretch = (lines / 2 - shrunk / 2) / (shrunk / 2) ** 3
    mask = np.tile(acs_rows(lines, acs_lines), (frames, 1))
    for number, frame in enumerate(mask):
        place = 0.5 + (step * (1 + np.arange(count)) + number * step * _GOLDEN_RATIO) % shrunk
        away = place - centre
        rows = np.floor(lines / 2 + away + stretch * away**3).astype(np.intp)
        frame[rows.clip(0, lines - 1)] = True
    return mask


def partial_fourier_mask(mask: NDArray[np.bool_], fraction: float) -> NDArray[np.bool_]:
    """Drop the first lines of k-space.

    Parameters
    ----------
    mask
        ``(..., ky)``.
    fraction
        Share of the lines that remains, above 0.5 and at most 1.

    Returns
    -------
    NDArray[np.bool_]
        Copy of `mask`, False in the first ``ky - round(ky * fraction)`` lines.

    Raises
    ------
    SettingsError
        If the fraction lies outside (0.5, 1].
    """
    if not 0.5 < fraction <= 1.0:
        raise SettingsError(f"partial Fourier must be above 0.5 and at most 1, got {fraction}")
    lines = mask.shape[-1]
    kept = mask.copy()
    kept[..., : lines - round(lines * fraction)] = False
    return kept


def pseudo_radial_mask(frames: int, lines: int, samples: int, spokes: int) -> NDArray[np.bool_]:
    """Points of the grid next to spokes through its centre, which turn by the golden angle from one to the next.

    Parameters
    ----------
    frames, lines, samples
        Size of the mask.
    spokes
        Spokes of each frame, from edge to edge.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky, kx)``.
    """
    mask = np.zeros((frames, lines, samples), np.bool_)
    along = np.linspace(-0.5, 0.5, 4 * max(lines, samples))
    for number in range(frames * spokes):
        angle = np.radians(GOLDEN_ANGLE * number)
        steps = np.array([np.sin(angle), np.cos(angle)]) / max(abs(np.sin(angle)), abs(np.cos(angle)))
        row, column = (
            np.rint(along * step * n).astype(int) + n // 2 for step, n in zip(steps, (lines, samples), strict=True)
        )
        inside = (row < lines) & (column < samples)
        mask[number // spokes, row[inside], column[inside]] = True
    return mask


def sampling_mask(
    sampling: str, frames: int, lines: int, *, acceleration: int = 1, acs_lines: int = 0, seed: int = 0
) -> NDArray[np.bool_]:
    """Make a mask by the name of its pattern.

    Parameters
    ----------
    sampling
        One of `SAMPLINGS`.
    frames, lines, acceleration, acs_lines, seed
        As for the function of that name; ``full`` ignores all but the size, only ``variable_density`` uses the seed.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.

    Raises
    ------
    SettingsError
        If there is no such pattern.
    """
    if sampling == "full":
        return full_mask(frames, lines)
    if sampling == "uniform":
        return uniform_mask(frames, lines, acceleration, acs_lines)
    if sampling == "interleaved":
        return interleaved_mask(frames, lines, acceleration, acs_lines)
    if sampling == "variable_density":
        return variable_density_mask(frames, lines, acceleration, acs_lines, seed=seed)
    if sampling == "gro":
        return gro_mask(frames, lines, acceleration, acs_lines)
    raise SettingsError(f"unknown sampling {sampling!r}; {choose_from(sampling, SAMPLINGS)}")
