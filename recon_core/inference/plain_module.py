"""A plain ``nn.Module`` as a method: a network from image to image, with no part in the data consistency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.classical.zero_filled import ZeroFilled
from recon_core.errors import ModelError

if TYPE_CHECKING:
    from recon_core.data import HybridSlice


def run_plain_module(module: torch.nn.Module, data: HybridSlice) -> torch.Tensor:
    """Give a module the zero-filled image of a slice; what it returns is the image.

    Parameters
    ----------
    module
        Its ``forward`` takes and gives ``(1, 2, frame, y, x)`` float32: real and imaginary part, the largest magnitude
        of the input scaled to one. It is moved to the device of the slice and put into evaluation mode.
    data
        The slice.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64 in the units of the data.

    Raises
    ------
    ModelError
        If the output of the module has another shape or type.
    """
    image = ZeroFilled()(data)
    peak = image.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    given = torch.view_as_real(image / peak).movedim(-1, 0)[None].contiguous()
    with torch.inference_mode():
        made = module.to(given.device).eval()(given)
    if getattr(made, "dtype", None) != given.dtype or made.shape != given.shape:
        found = f"{tuple(made.shape)} {made.dtype}" if isinstance(made, torch.Tensor) else type(made).__name__
        raise ModelError(f"the module must give (1, 2, frame, y, x) = {tuple(given.shape)} {given.dtype}, got {found}")
    return torch.view_as_complex(made[0].movedim(0, -1).contiguous()) * peak
