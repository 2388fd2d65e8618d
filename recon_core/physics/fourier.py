"""The Fourier transform of this package: centred and orthonormal, on any axes, for odd and even lengths."""

from __future__ import annotations

import torch

from recon_core.stopping import check


def fft(array: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Transform from image space to k-space.

    Parameters
    ----------
    array
        Any shape, complex64; the origin of each transformed axis at index ``N//2``.
    dims
        Axes to transform.

    Returns
    -------
    torch.Tensor
        Same shape, unit and 2-norm, zero frequency at index ``N//2``.
    """
    check()
    spectrum = torch.fft.fftn(torch.fft.ifftshift(array, dims), dim=dims, norm="ortho")
    kspace: torch.Tensor = torch.fft.fftshift(spectrum, dims)
    return kspace


def ifft(array: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Transform from k-space to image space: the inverse, and the adjoint, of `fft`.

    Parameters
    ----------
    array
        Any shape, complex64; zero frequency of each transformed axis at index ``N//2``.
    dims
        Axes to transform.

    Returns
    -------
    torch.Tensor
        Same shape, unit and 2-norm, origin at index ``N//2``.
    """
    check()
    periodic = torch.fft.ifftn(torch.fft.ifftshift(array, dims), dim=dims, norm="ortho")
    image: torch.Tensor = torch.fft.fftshift(periodic, dims)
    return image
