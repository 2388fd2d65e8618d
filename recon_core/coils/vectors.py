"""Vectors of coils: their length, their phase, and the combinations of coils that receive most."""

from __future__ import annotations

import torch


def normalise(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide ``(coil, y, x)`` by its norm over the coils, which is returned too; zero stays zero."""
    norm = torch.view_as_real(vectors).square().sum((0, -1)).sqrt()
    return vectors / torch.where(norm > 0, norm, 1), norm


def align_phase(maps: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Give the virtual body coil of some lines phase zero everywhere.

    A vector of coils is free up to a phase. One fixed combination of coils that is real everywhere leaves the smooth
    phase differences between the coils, and the phase of the object to the image.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64.
    lines
        ``(coil, ky, x)`` complex64, any domain.

    Returns
    -------
    torch.Tensor
        ``(coil, y, x)`` complex64.
    """
    phase = (virtual_body_coil(lines).conj()[:, None, None] * maps).sum(0).angle()
    return maps * torch.polar(torch.ones_like(phase), -phase)


def virtual_body_coil(lines: torch.Tensor) -> torch.Tensor:
    """Find the combination ``(coil,)`` of coils that receives most signal from ``(coil, ky, x)``."""
    return virtual_coils(lines, 1)[:, 0]


def virtual_coils(lines: torch.Tensor, n_virtual: int) -> torch.Tensor:
    """Find the combinations ``(coil, virtual coil)``, orthonormal, that receive most signal from ``(coil, ky, x)``."""
    scaled = lines / lines.abs().amax().clamp(min=torch.finfo(lines.real.dtype).tiny)
    covariance = torch.einsum("pyx,qyx->pq", scaled, scaled.conj())
    vectors: torch.Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -n_virtual:]
