"""Lower precision for the convolutions of networks, where a device is made for it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Processors and GPUs (compute capability) with units for bfloat16.
_BFLOAT16_QUERIES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
_BFLOAT16_GPU = (8, 0)
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextlib.contextmanager
def precision_of_convolutions(name: str, device: torch.device) -> Iterator[None]:
    """Let convolutions run in a lower precision; normalisation, transforms and data consistency stay in float32.

    Parameters
    ----------
    name
        ``float32``, ``tf32`` (of NVIDIA GPUs), ``bfloat16``, ``float16``, or ``auto``: ``bfloat16`` where the device is
        made for it, else ``float32``.
    device
        Where they run.
    """
    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float32"
    # convolutions along time are products of matrices
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, dtype=_HALVES.get(name), enabled=name in _HALVES):
            yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32; a processor that emulates it takes many times longer.

    What torch tells of a processor has private names that come and go; where it tells nothing there is none.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _BFLOAT16_GPU
    queries = (getattr(torch.cpu, name, None) for name in _BFLOAT16_QUERIES)
    return any(bool(query()) for query in queries if query is not None)
