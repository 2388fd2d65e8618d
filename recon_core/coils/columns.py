"""Fewer coils for the model of a slice: where columns are on their own, each may have combinations of its own.

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
    energy = values.clamp(min=0).sum(0).cumsum(0)
    kept = max(1, int((energy > lost * energy[-1]).sum()))
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
    energy = values.clamp(min=0).cumsum(0)
    kept = max(1, int((energy > lost * energy[-1]).sum()))
    return torch.einsum("cv,cyx->vyx", vectors[:, -kept:].conj(), maps).contiguous()
