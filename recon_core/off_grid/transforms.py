"""Non-uniform Fourier transforms: finufft on the CPU, on a GPU cufinufft where it can be used."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from recon_core.errors import ResourceError
from recon_core.stopping import check

#: Error that the transforms are asked for; what comes of it is below 2e-4 for any image.
TOLERANCE = 1e-4


class _Library(NamedTuple):
    """Finufft or cufinufft, which have the same functions; one takes arrays of NumPy, the other tensors of a GPU."""

    module: Any
    on_gpu: bool

    def given(self, tensor: torch.Tensor) -> Any:  # noqa: ANN401 - an array or a tensor
        """What the library takes: contiguous, without gradients, on its device."""
        tensor = tensor.detach().resolve_conj()
        return tensor.contiguous() if self.on_gpu else tensor.cpu().contiguous().numpy()

    def taken(self, result: Any, device: torch.device) -> torch.Tensor:  # noqa: ANN401 - an array or a tensor
        """What it has made, as a tensor of the device."""
        return result if self.on_gpu else torch.from_numpy(result).to(device)

    def points(self, positions: torch.Tensor, device: torch.device) -> tuple[Any, Any]:
        """Positions ``(sample, 2)`` (x, y) in cycles per pixel as y and x in radians, where it works."""
        positions = positions.detach().to(device if self.on_gpu else "cpu", torch.float32)
        x, y = (positions * (2 * torch.pi)).T
        return self.given(y), self.given(x)

    def options(self, device: torch.device, finer: float = 0.0) -> dict[str, Any]:
        """Where it works; how fine the grid in between is, cufinufft is left to choose."""
        if self.on_gpu:
            stream = torch.cuda.current_stream(device).cuda_stream
            return {"gpu_device_id": device.index or 0, "gpu_stream": stream}
        return {"nthreads": torch.get_num_threads(), "showwarn": 0, "upsampfac": finer}


def choose_transforms(device: torch.device) -> _Library:
    """Find the library that transforms tensors of a device.

    Parameters
    ----------
    device
        Of the tensors. Those of a GPU go to finufft on the CPU and back where cufinufft cannot be used.

    Returns
    -------
    _Library
        With the module.

    Raises
    ------
    ResourceError
        If there is none.
    """
    cufinufft = _cufinufft(device) if device.type == "cuda" else ""
    if not isinstance(cufinufft, str):
        return _Library(cufinufft, on_gpu=True)
    try:
        return _Library(importlib.import_module("finufft"), on_gpu=False)
    except ImportError as error:
        on_gpu = f"; on this GPU cufinufft would do as well ({cufinufft}): pip install 'cinestream[cuda]'"
        raise ResourceError(
            "scans that follow no Cartesian grid need finufft, which is not installed: pip install 'cinestream[radial]'"
            + (on_gpu if cufinufft else "")
        ) from error


@lru_cache(maxsize=8)
def _cufinufft(device: torch.device) -> Any:  # noqa: ANN401 - a module without types, or why there is none
    """Import cufinufft when it is first needed, or say why it cannot be used.

    One that was built for another CUDA or another GPU may fail at its first transform only, so that one is tried.
    """
    try:
        module = importlib.import_module("cufinufft")
        library = _Library(module, on_gpu=True)
        image = torch.ones(1, 2, 2, dtype=torch.complex64, device=device)
        points = library.points(torch.zeros(1, 2), device)
        module.nufft2d2(*points, image, eps=TOLERANCE, isign=-1, **library.options(device)).cpu()
    except Exception as error:  # noqa: BLE001 - of many kinds: imports, libraries, driver
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return module


def sample_image(images: torch.Tensor, positions: torch.Tensor, tolerance: float = TOLERANCE) -> torch.Tensor:
    """Sum images at the positions of samples, as an orthonormal transform.

    Parameters
    ----------
    images
        ``(n, y, x)`` complex64, centre at ``N//2``.
    positions
        ``(sample, 2)`` float32 (x, y) in cycles per pixel.
    tolerance
        Relative error.

    Returns
    -------
    torch.Tensor
        ``(n, sample)`` complex64 on the device of the images.

    Raises
    ------
    ResourceError
        If there is no library for it.
    """
    check()
    device = images.device
    library = choose_transforms(device)
    samples = library.module.nufft2d2(
        *library.points(positions, device), library.given(images), eps=tolerance, isign=-1, **library.options(device)
    )
    scale = (images.shape[-2] * images.shape[-1]) ** -0.5
    return library.taken(samples.reshape(len(images), -1) * scale, device)


def grid_samples(
    samples: torch.Tensor,
    positions: torch.Tensor,
    matrix: tuple[int, ...],
    tolerance: float = TOLERANCE,
    finer: float = 0.0,
) -> torch.Tensor:
    """Sum samples to images: the adjoint of `sample_image`.

    Parameters
    ----------
    samples
        ``(n, sample)`` complex64.
    positions
        ``(sample, 2)`` float32 (x, y) in cycles per pixel.
    matrix
        ``(y, x)`` pixels of the images.
    tolerance
        Relative error.
    finer
        How much finer than the image the grid in between is; 0 leaves that to the library, and so does a GPU.

    Returns
    -------
    torch.Tensor
        ``(n, y, x)`` complex64 on the device of the samples.

    Raises
    ------
    ResourceError
        If there is no library for it.
    """
    check()
    device = samples.device
    library = choose_transforms(device)
    points, options = library.points(positions, device), library.options(device, finer)
    images = library.module.nufft2d1(*points, library.given(samples), tuple(matrix), eps=tolerance, isign=1, **options)
    scale = (matrix[0] * matrix[1]) ** -0.5
    return library.taken(images.reshape(len(samples), *matrix) * scale, device)
