"""Less ringing and less noise for less resolution: a window on the k-space of the finished image."""

from __future__ import annotations

import math

import torch

from recon_core.physics.fourier import fft, ifft


def tukey_window(size: int, reach: float, taper: float) -> torch.Tensor:
    """Make a window that is one around the centre and falls to zero as a cosine.

    Parameters
    ----------
    size
        Samples of the axis; the centre is ``size // 2``.
    reach
        Distance from the centre, in samples, at which the window is zero; beyond it too.
    taper
        Share of `reach` over which it falls: 0 does not fall at all, 1 is a Hann window.

    Returns
    -------
    torch.Tensor
        ``(size,)`` float32.

    Notes
    -----
    Harris, Proc IEEE 1978, doi:10.1109/PROC.1978.10837.
    """
    distance = (torch.arange(size) - size // 2).abs() / reach
    taper = max(taper, 1e-6)  # where it does not fall it is cut
    fallen = ((distance - (1 - taper)) / taper).clamp(0, 1)
    return (1 + torch.cos(math.pi * fallen)) / 2


def filter_image(image: torch.Tensor, taper: float, lines: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    """Window the k-space of an image along both axes.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64.
    taper
        As for `tukey_window`.
    lines, columns
        First and last measured sample along ky and along kx: the window is zero just beyond the one further out.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64, the mean of every frame as it was.
    """
    for axis, (first, last) in ((-2, lines), (-1, columns)):
        size = image.shape[axis]
        # half a sample further out, so that what was measured at the edge keeps a little
        reach = max(size // 2 - first, last - size // 2) + 0.5
        window = tukey_window(size, reach, taper).to(image.device)
        image = ifft(fft(image, (axis,)) * (window[:, None] if axis == -2 else window), (axis,))
    return image
