"""Averages over the neighbours of each pixel."""

from __future__ import annotations

import torch


def box_average(n_pixels: int, side: int, device: torch.device | None = None) -> torch.Tensor:
    """Matrix ``(pixel, pixel)`` that averages over `side` neighbours, mirrored (edge pixel included) at the border."""
    pixel = torch.arange(n_pixels, device=device)[:, None].expand(-1, side)
    neighbour = (pixel + torch.arange(-(side // 2), side - side // 2, device=device)).remainder(2 * n_pixels)
    neighbour = torch.where(neighbour < n_pixels, neighbour, 2 * n_pixels - 1 - neighbour)
    share = torch.full((), 1 / side, device=device)
    return torch.zeros(n_pixels, n_pixels, device=device).index_put_((pixel, neighbour), share, accumulate=True)


def box_mean(field: torch.Tensor, side: int) -> torch.Tensor:
    """Average real ``(..., y, x)`` over squares of `side` pixels, mirrored at the border."""
    along_y, along_x = (box_average(size, side, field.device).to(field) for size in field.shape[-2:])
    mean: torch.Tensor = along_y @ field @ along_x.mT
    return mean
