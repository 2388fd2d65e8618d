"""One place that owns the device: it builds methods, keeps them warm, and runs one reconstruction at a time."""

from __future__ import annotations

import importlib
import time
from dataclasses import fields
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from recon_core.coils.calibration import time_average
from recon_core.coils.walsh import walsh_maps
from recon_core.data import CineSlice, Reconstruction
from recon_core.errors import CinestreamError, ModelError
from recon_core.fourier import ifft
from recon_core.methods import METHODS
from recon_core.options import ReconOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Method = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def create_method(name: str, options: ReconOptions) -> Method:
    """Build a reconstruction method.

    Parameters
    ----------
    name
        One of `recon_core.methods.METHODS`.
    options
        What it is built from.

    Returns
    -------
    Callable
        Takes hybrid data ``(frame, coil, ky, x)``, maps ``(coil, y, x)`` and mask ``(frame, ky)`` as tensors on one
        device, and gives the image ``(frame, y, x)``.

    Raises
    ------
    ModelError
        If no method has this name.
    """
    if name not in METHODS:
        raise ModelError(f"there is no method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    module, _, attribute = METHODS[name].target.partition(":")
    return cast("Method", getattr(importlib.import_module(module), attribute)(options))


class Engine:
    """Reconstructs slices; safe to share between threads.

    Parameters
    ----------
    device
        ``auto`` (the GPU when there is one), ``cpu`` or ``cuda``.

    Raises
    ------
    ModelError
        If a GPU is asked for and there is none.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = _resolve(device)
        self._lock = Lock()
        # Bounded, because the options may come from any client.
        self._method = lru_cache(maxsize=8)(create_method)

    def warm(self, options: ReconOptions, shape: tuple[int, int, int, int]) -> None:
        """Reconstruct noise, so that libraries, transform plans and memory are ready when the first slice arrives.

        Parameters
        ----------
        options
            As for the slices to come.
        shape
            (frame, coil, ky, kx) of the slices to come.

        Raises
        ------
        ModelError
            As `reconstruct`; better known before the scan than after.
        """
        n_frames, _, n_lines, _ = shape
        generator = np.random.default_rng(0)
        kspace = generator.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        mask = np.zeros((n_frames, n_lines), dtype=bool)
        mask[:, ::2] = True
        mask[:, n_lines // 2 - n_lines // 16 : n_lines // 2 + n_lines // 16 + 1] = True
        kspace *= mask[:, None, :, None]
        self.reconstruct(CineSlice(kspace, mask), options)

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        """Reconstruct one slice.

        Parameters
        ----------
        cine_slice
            The measured k-space.
        options
            Method, device and everything else.

        Returns
        -------
        Reconstruction
            `seconds` has ``maps`` (with the transform along the readout) and ``reconstruct``.

        Raises
        ------
        ModelError
            If the method is unknown, the device is missing, or the computation fails.
        """
        with self._lock:
            try:
                with torch.inference_mode():
                    return self._reconstruct(cine_slice, options)
            except CinestreamError:
                raise
            except Exception as error:
                shape = " x ".join(str(size) for size in cine_slice.kspace.shape)
                raise ModelError(
                    f"{options.method} failed on a slice of {shape} (frame x coil x ky x kx): "
                    f"{type(error).__name__}: {error}"
                ) from error

    def _reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        device = self.device if options.device == "auto" else _resolve(options.device)
        # A subclass may carry settings of the stream; they must not make a new method each.
        core = ReconOptions(**{field.name: getattr(options, field.name) for field in fields(ReconOptions)})
        method = self._method(core.method, core)

        started = time.perf_counter()
        mask = _tensor(cine_slice.mask, device)
        hybrid = ifft(_tensor(cine_slice.kspace, device), (-1,))
        if cine_slice.calibration is None:
            lines, measured = time_average(hybrid, mask)
        else:
            lines = ifft(_tensor(cine_slice.calibration, device), (-1,))
            measured = lines.ne(0).any(-1).any(0)
        maps, notes = walsh_maps(
            lines, measured, neighbourhood=options.map_neighbourhood, refinements=options.map_refinements
        )
        _synchronise(device)
        mapped = time.perf_counter()

        image = method(hybrid, maps, mask)
        if cine_slice.colouring is not None:
            image = image * _receive_intensity(maps, _tensor(cine_slice.colouring, device))
        result = image.contiguous().cpu().numpy()
        finished = time.perf_counter()

        if not np.isfinite(result).all():
            bad = sorted({int(frame) for frame in np.argwhere(~np.isfinite(result))[:, 0]})
            raise ModelError(
                f"{options.method} gave values that are not finite in frames {bad}; "
                f"the k-space is {'finite' if np.isfinite(cine_slice.kspace).all() else 'not finite itself'}"
            )
        return Reconstruction(
            image=result,
            maps=maps.cpu().numpy(),
            method=options.method,
            seconds={"maps": mapped - started, "reconstruct": finished - mapped},
            notes=notes,
        )


def _receive_intensity(maps: torch.Tensor, colouring: torch.Tensor) -> torch.Tensor:
    """Find the shading ``(y, x)`` of the receive coils, about one on average.

    Maps of unit norm among whitened coils leave the image weighted with the signal-to-noise ratio of each pixel. Times
    the norm of the same maps among the receive coils it is the root-sum-of-squares image a reader is used to.
    """
    scale = torch.linalg.matrix_norm(colouring) / maps.shape[0] ** 0.5
    receive_maps = torch.einsum("rc,cyx->ryx", colouring / scale, maps)
    intensity: torch.Tensor = torch.linalg.vector_norm(receive_maps, dim=0)
    return intensity


def _resolve(device: str) -> torch.device:
    """Turn the name of a device into the device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("a GPU was asked for and none is usable here; set device to auto or cpu")
    return torch.device(device)


def _synchronise(device: torch.device) -> None:
    """Wait for the GPU, so that wall times mean something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensor(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Bring an array to the device; torch refuses to share memory that must not be written."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
