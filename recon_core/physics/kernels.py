"""The three elementwise steps of the encoding - expand by coil maps, keep what is sampled, combine the coils.

They are written twice, with torch and with CuPy; the transforms between them, the memory and the portions are
`recon_core.physics.sense`'s, once. Arrays are torch tensors everywhere: CuPy works on their memory without a copy, on
torch's current stream.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from recon_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Kernels(Protocol):
    """What the encoding needs apart from the Fourier transform.

    Axes: `maps` ``(set, coil, x, y)``, `image` ``(set, frame, x, y)``, `lines` ``(set, frame, coil, x, y or ky)``, each
    set of maps being that of its frames; `lines` is contiguous, the others may be views.
    """

    def weights(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Turn a mask ``(set, frame, ky)`` bool into what `sample` works with, same axes, ky maybe longer."""

    def expand(self, maps: torch.Tensor, image: torch.Tensor, lines: torch.Tensor) -> None:
        """Write ``maps * image`` to `lines`."""

    def sample(self, lines: torch.Tensor, weights: torch.Tensor) -> None:
        """Set to zero, in place, what is not measured."""

    def combine(self, lines: torch.Tensor, maps: torch.Tensor, image: torch.Tensor) -> None:
        """Write the sum over coils of ``maps * lines`` to `image`; `lines` may be overwritten."""


class TorchKernels:
    """The steps as torch operations, on any device."""

    def weights(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Give each weight twice, for real and imaginary part: a real product is half the work of a complex one."""
        return mask.to(dtype.to_real()).repeat_interleave(2, -1)

    def expand(self, maps: torch.Tensor, image: torch.Tensor, lines: torch.Tensor) -> None:
        """Write ``maps * image`` to `lines`."""
        torch.mul(maps[:, None], image[:, :, None], out=lines)

    def sample(self, lines: torch.Tensor, weights: torch.Tensor) -> None:
        """Set to zero, in place, what is not measured."""
        torch.view_as_real(lines).flatten(-2).mul_(weights[:, :, None, None])

    def combine(self, lines: torch.Tensor, maps: torch.Tensor, image: torch.Tensor) -> None:
        """Write the sum over coils of ``maps * lines`` to `image`; `lines` is overwritten."""
        torch.sum(lines.mul_(maps[:, None]), 2, out=image)


class CupyKernels:
    """The steps as one fused CUDA kernel each.

    One thread takes one pixel and walks over the coils, so that the image is read or written once; what is measured is
    not touched by `sample`.

    Parameters
    ----------
    cupy
        The module, imported where it is known to be there.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy: Any = cupy
        sizes = "int32 n_coils, int32 n_pixels, int32 n_frames"
        # Thread i has pixel (set, frame, x, y) number i. 32-bit division is several times faster than 64-bit; the
        # portions of recon_core.physics.sense stay far below 2^31 samples.
        start = """
            const unsigned int pixel = (unsigned int)i % n_pixels;
            const unsigned int frame = (unsigned int)i / n_pixels;
            const unsigned int map = frame / n_frames * n_coils * n_pixels + pixel;
            const unsigned int line = frame * n_coils * n_pixels + pixel;
        """
        self._expand = self._cupy.ElementwiseKernel(
            f"T image, raw T maps, {sizes}",
            "raw T lines",
            start
            + """
            const T value = image;
            for (int coil = 0; coil < n_coils; ++coil) {
                lines[line + coil * n_pixels] = maps[map + coil * n_pixels] * value;
            }
            """,
            "cinestream_expand",
        )
        self._sample = self._cupy.ElementwiseKernel(
            "raw bool measured, int32 n_y, int32 n_block",
            "T line",
            "if (!measured[(unsigned int)i / n_block * n_y + (unsigned int)i % n_y]) { line = T(0); }",
            "cinestream_sample",
        )
        self._combine = self._cupy.ElementwiseKernel(
            f"raw T lines, raw T maps, {sizes}",
            "T image",
            start
            + """
            T total = T(0);
            for (int coil = 0; coil < n_coils; ++coil) {
                total += maps[map + coil * n_pixels] * lines[line + coil * n_pixels];
            }
            image = total;
            """,
            "cinestream_combine",
        )

    def try_out(self) -> None:
        """Run each kernel on the GPU once, so that whatever is missing is noticed."""
        lines = torch.ones((1, 1, 1, 1, 2), dtype=torch.complex64, device="cuda")
        image = torch.ones((1, 1, 1, 2), dtype=torch.complex64, device="cuda")
        self.expand(lines[0], image, lines)
        self.sample(lines, torch.ones((1, 1, 2), dtype=torch.bool, device="cuda"))
        self.combine(lines, lines[0], image)

    def weights(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Take the mask as it is."""
        del dtype
        return mask.contiguous()

    def expand(self, maps: torch.Tensor, image: torch.Tensor, lines: torch.Tensor) -> None:
        """Write ``maps * image`` to `lines`."""
        self._run(self._expand, (image, maps), _sizes(lines), lines)

    def sample(self, lines: torch.Tensor, weights: torch.Tensor) -> None:
        """Set to zero, in place, what is not measured."""
        n_y = lines.shape[-1]
        self._run(self._sample, (weights,), (n_y, lines[0, 0].numel()), lines)

    def combine(self, lines: torch.Tensor, maps: torch.Tensor, image: torch.Tensor) -> None:
        """Write the sum over coils of ``maps * lines`` to `image`."""
        self._run(self._combine, (lines, maps), _sizes(lines), image)

    def _run(
        self,
        kernel: Callable[..., object],
        sources: tuple[torch.Tensor, ...],
        sizes: tuple[int, ...],
        target: torch.Tensor,
    ) -> None:
        """Launch on the memory, the device and the stream of torch."""
        stream = torch.cuda.current_stream(target.device).cuda_stream
        with self._cupy.cuda.Device(target.device.index), self._cupy.cuda.ExternalStream(stream):
            arrays = [self._cupy.asarray(source.detach()) for source in sources]
            scalars = [np.int32(size) for size in sizes]
            kernel(*arrays, *scalars, self._cupy.asarray(target))


def choose_kernels(implementation: str, device: torch.device) -> Kernels:
    """Find the kernels for a device.

    Parameters
    ----------
    implementation
        ``torch``; ``cupy`` (needs a GPU and CuPy); ``auto`` takes CuPy where it can be used.
    device
        Where the tensors are.

    Returns
    -------
    Kernels
        One object per process and kind.

    Raises
    ------
    ModelError
        If CuPy is asked for and cannot be used, or the name is unknown.
    """
    if implementation == "torch":
        return TorchKernels()
    if implementation == "auto":
        if device.type != "cuda":
            return TorchKernels()
        fused = _cupy_kernels()
        return fused if isinstance(fused, CupyKernels) else TorchKernels()
    if implementation != "cupy":
        raise ModelError(f"there is no implementation {implementation!r}; choose auto, torch or cupy")
    if device.type != "cuda":
        raise ModelError(f"the cupy implementation needs a GPU, and the data is on {device.type}; choose auto or torch")
    fused = _cupy_kernels()
    if isinstance(fused, str):
        raise ModelError(
            f"CuPy cannot be used ({fused}); install it with `pip install cinestream[cuda]`, for a torch built with "
            "CUDA 13 `cinestream[cuda13]`, or choose torch"
        )
    return fused


@lru_cache(maxsize=1)
def _cupy_kernels() -> CupyKernels | str:
    """Import CuPy when it is first needed, and only then: to look for it in vain takes time too. Or say why not.

    A CuPy for another CUDA than that of torch is imported and fails at its first kernel, so that one is tried.
    """
    try:
        fused = CupyKernels(importlib.import_module("cupy"))
        fused.try_out()
    except Exception as error:  # noqa: BLE001 - of many kinds: imports, libraries, compiler, driver
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return fused


def _sizes(lines: torch.Tensor) -> tuple[int, int, int]:
    """Coils, pixels and frames per set."""
    _, n_frames, n_coils, n_x, n_y = lines.shape
    return n_coils, n_x * n_y, n_frames
