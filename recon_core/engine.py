"""One place that owns the device: it builds methods, keeps them warm, and runs one reconstruction at a time."""

from __future__ import annotations

import dataclasses
import importlib
import time
from dataclasses import fields
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from recon_core.classical.g_factor import replica_g_factor
from recon_core.coils.calibration import time_average
from recon_core.coils.espirit import espirit_maps
from recon_core.coils.inati import inati_maps
from recon_core.coils.walsh import walsh_maps
from recon_core.data import CineSlice, HybridSlice, Reconstruction
from recon_core.errors import CinestreamError, DataError, ModelError, ResourceError
from recon_core.fourier import ifft
from recon_core.memory import available_bytes, predicted_bytes
from recon_core.methods import METHODS
from recon_core.options import ReconOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Method = Callable[[HybridSlice], torch.Tensor]

_WITH_G_FACTOR = ("cg_sense", "grappa")
_REPLICAS = 64  # 6 % error per pixel


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
        Takes a `HybridSlice` and gives the image ``(frame, y, x)``.

    Raises
    ------
    ModelError
        If no method has this name.
    """
    _check_name(name)
    module, _, attribute = METHODS[name].target.partition(":")
    return cast("Method", getattr(importlib.import_module(module), attribute)(options))


def _check_name(name: str) -> None:
    if name not in METHODS:
        raise ModelError(f"there is no method {name!r}; choose one of {', '.join(sorted(METHODS))}")


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

    def prepare(self, options: ReconOptions) -> None:
        """Build the method, so that the weights of a network are read before the first slice arrives.

        Parameters
        ----------
        options
            As for the slices to come.

        Raises
        ------
        ModelError
            If the method cannot be built.
        """
        with self._lock, torch.inference_mode():
            self._method(options.method, _core(options))

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
        ResourceError
            If the slice does not fit into the memory that is free.
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
                    f"{type(error).__name__}: {error}; {_finiteness(cine_slice)}"
                ) from error

    def _reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        device = self.device if options.device == "auto" else _resolve(options.device)
        core = _core(options)
        _check_memory(cine_slice.kspace.shape, device)
        started = time.perf_counter()
        data = _on_device(cine_slice, core, device)
        _synchronise(device)
        mapped = time.perf_counter()

        name, image = self._run(core, data)
        g_factor = self._g_factor(name, core, data) if core.g_factor else None
        if cine_slice.colouring is not None:
            intensity = _receive_intensity(data.maps, _tensor(cine_slice.colouring, device))
            image = image * intensity
            if "uncertainty" in data.extra:
                data.extra["uncertainty"] = data.extra["uncertainty"] * intensity
        result = image.contiguous().cpu().numpy()
        finished = time.perf_counter()

        if not np.isfinite(result).all():
            bad = sorted({int(frame) for frame in np.argwhere(~np.isfinite(result))[:, 0]})
            raise ModelError(f"{name} gave values that are not finite in frames {bad}; {_finiteness(cine_slice)}")
        return Reconstruction(
            image=result,
            maps=data.maps.cpu().numpy(),
            method=name,
            seconds={"maps": mapped - started, "reconstruct": finished - mapped},
            notes=tuple(data.notes),
            g_factor=g_factor,
            extra={name: image.float().cpu().numpy() for name, image in data.extra.items()},
        )

    def _run(self, options: ReconOptions, data: HybridSlice) -> tuple[str, torch.Tensor]:
        """Run the chosen method; where it cannot do the scan, the fallback, so that there are images."""
        _check_name(options.method)
        before = len(data.notes)
        try:
            return options.method, self._method(options.method, options)(data)
        except CinestreamError as error:
            if options.fallback in ("none", options.method):
                raise
            # what the method that gave up had to say and to show
            del data.notes[before:]
            data.extra.clear()
            data.notes.append(f"{options.fallback} instead of {options.method}: {error}")
            return options.fallback, self._method(options.fallback, options)(data)

    def _g_factor(self, name: str, options: ReconOptions, data: HybridSlice) -> NDArray[np.float32] | None:
        """The g-factor ``(y, x)`` of the first frame that has lines; below one where a prior takes noise away."""
        if name not in _WITH_G_FACTOR:
            data.notes.append(f"no g-factor: it is defined for {' and '.join(_WITH_G_FACTOR)}, not for {name}")
            return None
        if not bool(data.mask.any()):
            data.notes.append("no g-factor: no line was measured")
            return None
        # linear in the noise only from a zero start
        method = self._method(name, dataclasses.replace(options, warm_start=False))
        pattern = data.mask[int(data.mask.any(-1).int().argmax())]

        def reconstruct(noise: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return method(dataclasses.replace(data, hybrid=noise, maps=maps, mask=mask, notes=[]))

        g_factor = replica_g_factor(reconstruct, data.maps, pattern, replicas=_REPLICAS)
        return np.asarray(g_factor.cpu().numpy(), np.float32)


def _core(options: ReconOptions) -> ReconOptions:
    """Leave out the settings of the stream that a subclass may carry; they must not make a new method each."""
    return ReconOptions(**{field.name: getattr(options, field.name) for field in fields(ReconOptions)})


def _check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a slice that would take the machine down: a scan too large, or a forged matrix size."""
    n_frames, n_coils, n_y, n_x = shape
    # the data as they came, transformed along the readout, and once more in between
    needed = 3 * 8 * n_frames * n_coils * n_y * n_x
    needed += predicted_bytes("cg_sense", (n_frames, n_coils, n_y, n_x), device=device.type)
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ResourceError(
            f"a slice of {' x '.join(map(str, shape))} (frame x coil x ky x kx) needs {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free on {device.type}; compress the coils (virtual_coils) or free memory"
        )


def _on_device(cine_slice: CineSlice, options: ReconOptions, device: torch.device) -> HybridSlice:
    """Bring a slice to the device, transform it along the readout and estimate its coil maps."""
    mask = _tensor(cine_slice.mask, device)
    hybrid = ifft(_tensor(cine_slice.kspace, device), (-1,))
    if cine_slice.calibration is None:
        reference, measured = time_average(hybrid, mask)
    else:
        reference = ifft(_tensor(cine_slice.calibration, device), (-1,))
        measured = reference.ne(0).any(-1).any(0)
    maps, notes = _coil_maps(reference, measured, options)
    # whitening gives real and imaginary part unit variance each
    noise_variance = None if cine_slice.colouring is None else 2.0
    ct, cover = (None if plane is None else _tensor(plane, device) for plane in (cine_slice.ct, cine_slice.ct_cover))
    return HybridSlice(hybrid, mask, maps, reference, measured, noise_variance, list(notes), ct=ct, ct_cover=cover)


def _coil_maps(
    reference: torch.Tensor, measured: torch.Tensor, options: ReconOptions
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Maps ``(coil, y, x)`` of the chosen kind; where the data do not allow it, Walsh's, which any data allow."""
    side = options.map_neighbourhood
    why: tuple[str, ...] = ()
    try:
        if options.maps == "espirit":
            maps, _, notes = espirit_maps(
                reference,
                measured,
                kernel=options.map_kernel,
                calibration=options.map_calibration,
                threshold=options.map_threshold,
                crop=options.map_crop,
                soft=options.map_soft,
            )
            return maps[0], notes
        if options.maps == "inati":
            return inati_maps(reference, measured, neighbourhood=side), ()
    except DataError as error:
        why = (f"walsh coil maps instead of {options.maps}: {error}",)
    maps, notes = walsh_maps(reference, measured, neighbourhood=side, refinements=options.map_refinements)
    return maps, why + notes


def _receive_intensity(maps: torch.Tensor, colouring: torch.Tensor) -> torch.Tensor:
    """Find the shading ``(y, x)`` of the receive coils, about one on average.

    Maps of unit norm among whitened coils leave the image weighted with the signal-to-noise ratio of each pixel. Times
    the norm of the same maps among the receive coils it is the root-sum-of-squares image a reader is used to.
    """
    scale = torch.linalg.matrix_norm(colouring) / maps.shape[0] ** 0.5
    receive_maps = torch.einsum("rc,cyx->ryx", colouring / scale, maps)
    intensity: torch.Tensor = torch.linalg.vector_norm(receive_maps, dim=0)
    return intensity


def _finiteness(cine_slice: CineSlice) -> str:
    """Say whether what came in is to blame for what did not work out."""
    for name, array in (("k-space", cine_slice.kspace), ("calibration", cine_slice.calibration)):
        if array is not None and not np.isfinite(array).all():
            return f"the {name} is not finite itself"
    return "the k-space is finite"


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
