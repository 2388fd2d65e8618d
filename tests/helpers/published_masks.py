"""The random masks with which CineNet and the Dual U-Net were trained, drawn as their authors draw them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import SettingsError
from recon_core.simulate.sampling import acs_rows, grid_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


def quadratic_density_mask(
    frames: int, lines: int, acceleration: int, acs_lines: int = 11, *, seed: int = 42
) -> NDArray[np.bool_]:
    """Random lines with a density that falls to zero at the edge, as the Dual U-Net with 3-D ResNet was trained with.

    The mask equals that of github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction exactly; its defaults are
    20 frames, 192 lines and R = 5. The density of line i is ``(1 - |i - N//2| / (N//2))^2``, so that the first of an
    even number of lines is never measured.

    Parameters
    ----------
    frames, lines
        Size of the mask. A batch of series is one long series.
    acceleration
        Every frame has ``lines // R`` lines, those of the ACS block among them, but at least the block.
    acs_lines
        Lines at the centre that every frame has.
    seed
        Same seed, same mask.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.

    Raises
    ------
    SettingsError
        If there are not as many lines with a density above zero.
    """
    grid_rows(frames, lines, acceleration)  # checks the arguments
    density = (1 - np.abs(np.arange(lines) - lines // 2) / max(lines // 2, 1)) ** 2
    return _drawn_mask(density, acs_rows(lines, acs_lines), max(lines // acceleration - acs_lines, 0), frames, seed)


def kt_focuss_mask(
    frames: int, lines: int, acceleration: int, acs_lines: int = 10, *, seed: int = 0
) -> NDArray[np.bool_]:
    """Random lines with a nearly even density, as CineNet and the ablations of the Dual U-Net were trained with.

    Drawn as github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction and github.com/f78bono/deep-cine-cardiac-mri
    draw it, who do not fix the seed. The density of line i is ``exp(-50 ((i - N/2) / N)^2) + 1 / (2 R)``.

    Parameters
    ----------
    frames, lines
        Size of the mask. A batch of series is one long series.
    acceleration
        Every frame has ``floor(lines / R)`` lines, those of the ACS block among them, but at least the block.
    acs_lines
        Lines at the centre that every frame has; as published an odd number counts as such, but gives one line less.
    seed
        Same seed, same mask.

    Returns
    -------
    NDArray[np.bool_]
        ``(frame, ky)``.
    """
    grid_rows(frames, lines, acceleration)  # checks the arguments
    distance = (np.arange(lines) - lines / 2) * 10 / lines
    density = np.exp(-0.5 * distance**2) + 1 / (2 * acceleration)
    block = acs_rows(lines, acs_lines - acs_lines % 2)
    return _drawn_mask(density, block, max(lines // acceleration - acs_lines, 0), frames, seed)


def _drawn_mask(
    density: NDArray[np.float64], block: NDArray[np.bool_], count: int, frames: int, seed: int
) -> NDArray[np.bool_]:
    """A block of lines, and others by their density, with the random numbers that the published masks come from."""
    mask = np.tile(block, (frames, 1))
    density = np.where(block, 0, density)
    if count > np.count_nonzero(density):
        raise SettingsError(
            f"{count} random lines are wanted, and {np.count_nonzero(density)} have a density above zero; "
            "take a higher acceleration or more ACS lines"
        )
    if count:
        generator = np.random.RandomState(seed)
        for frame in mask:
            frame[generator.choice(len(density), count, replace=False, p=density / density.sum())] = True
    return mask
