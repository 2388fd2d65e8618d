"""Fewer coils for the model of a slice: combinations of each column, where columns are on their own, or of all pixels.

Zhang, Pauly, Vasanawala, Lustig, Magn Reson Med 2013, doi:10.1002/mrm.24267.
"""

from __future__ import annotations

import torch


def combine_columnwise(maps: torch.Tensor, lost: float) -> torch.Tensor:
    """Find, for every column, the few combinations of coils that hold its maps.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64.
    lost
        Share of the energy of all maps that may be left out.

    Returns
    -------
    torch.Tensor
        ``(combination, y, x)`` complex64: maps of the combinations, which are orthonormal in every column.
    """
    columns = maps.permute(2, 0, 1)
    values, vectors = torch.linalg.eigh(columns @ columns.mH)
    kept = _fewest(values.clamp(min=0).sum(0), lost)
    combinations = vectors[:, :, -kept:].mH
    fewer: torch.Tensor = (combinations @ columns).permute(1, 2, 0).contiguous()
    return fewer


def combine_everywhere(maps: torch.Tensor, lost: float) -> torch.Tensor:
    """Find the few combinations of coils, the same in all pixels, that hold the maps.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64.
    lost
        Share of the energy of all maps that may be left out.

    Returns
    -------
    torch.Tensor
        ``(combination, y, x)`` complex64.
    """
    pixels = maps.flatten(1)
    values, vectors = torch.linalg.eigh(pixels @ pixels.mH)
    kept = _fewest(values.clamp(min=0), lost)
    return torch.einsum("cv,cyx->vyx", vectors[:, -kept:].conj(), maps).contiguous()


def _fewest(energies: torch.Tensor, lost: float) -> int:
    """How many of the combinations, of rising energy, are to be kept."""
    energy = energies.cumsum(0)
    return max(1, int((energy > lost * energy[-1]).sum()))
