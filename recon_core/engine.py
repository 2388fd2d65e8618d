"""One place that owns the device: it builds methods, keeps them warm, and runs one reconstruction at a time."""

from __future__ import annotations

import dataclasses
import functools
import time
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from recon_core.classical.g_factor import replica_g_factor
from recon_core.classical.partial_fourier import complete, measured_span, partial_extents
from recon_core.coils.calibration import time_average
from recon_core.coils.espirit import espirit_maps
from recon_core.coils.inati import inati_maps
from recon_core.coils.walsh import walsh_maps
from recon_core.data import CineSlice, HybridSlice, Reconstruction
from recon_core.errors import CinestreamError, DataError, ModelError, ResourceError
from recon_core.methods import METHODS, REFERENCE_METHOD, find_method, load_target, method_names
from recon_core.networks.method import NetworkMethod
from recon_core.physics.fourier import ifft
from recon_core.physics.kspace_filter import filter_image
from recon_core.physics.memory import available_bytes, predicted_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from recon_core.methods import MethodInfo
    from recon_core.options import FinishOptions, MapOptions, ReconOptions

    Method = Callable[[HybridSlice], torch.Tensor]

_REPLICAS = 64  # 6 % error per pixel


def create_method(name: str, options: ReconOptions) -> Method:
    """Build a reconstruction method.

    Parameters
    ----------
    name
        One of `recon_core.methods.method_names`.
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
    return _create(find_method(name), _arguments(name, options))


def _arguments(name: str, options: ReconOptions) -> tuple[object, ...]:
    """What a method is built from: of all options those that concern it, and nothing else."""
    own, implementation = options.of_method(name), options.compute.implementation
    if find_method(name).network:
        return name, options.network, own, implementation
    if name not in METHODS:
        return (options,)  # a method of one's own may use any
    return (implementation,) if own is None else (own, implementation)


def _create(info: MethodInfo, arguments: tuple[object, ...]) -> Method:
    return cast("Method", load_target(info.target)(*arguments))


class _Made(NamedTuple):
    """What a method made of a slice: ``(frame, y, x)`` on the device, with what it had to say and to show."""

    method: str
    image: torch.Tensor
    notes: list[str]
    extra: dict[str, torch.Tensor]
    doubts: tuple[str, ...] = ()


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
        self._method = functools.lru_cache(maxsize=8)(_create)

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
            self._build(options.method, options)

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
        # noise is like no training, and the network is to be run all the same
        self.reconstruct(CineSlice(kspace, mask), dataclasses.replace(options, outside_range="note"))

    def coil_maps(
        self, calibration: NDArray[np.complex64], options: ReconOptions
    ) -> tuple[NDArray[np.complex64], tuple[str, ...]]:
        """Estimate coil maps apart from a reconstruction, for slices that bring theirs along.

        Parameters
        ----------
        calibration
            ``(coil, ky, kx)`` complex64, zero where nothing was measured.
        options
            Device, and how maps are estimated.

        Returns
        -------
        tuple
            Maps ``(coil, y, x)`` complex64, and notes on what had to be done differently.

        Raises
        ------
        ModelError
            If the device is missing.
        """
        with self._lock, torch.inference_mode():
            reference = ifft(_tensor(calibration, self._device_for(options)), (-1,))
            maps, notes = _coil_maps(reference, _measured(reference), options.maps)
            return maps.cpu().numpy(), notes

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

    def _device_for(self, options: ReconOptions) -> torch.device:
        return self.device if options.compute.device == "auto" else _resolve(options.compute.device)

    def _reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        find_method(options.method)  # refuse an unknown one before any work
        device = self._device_for(options)
        _check_memory(cine_slice.kspace.shape, device)
        started = time.perf_counter()
        data = _on_device(cine_slice, options, device)
        _synchronise(device)
        mapped = time.perf_counter()

        made, beside = self._run(options, data, cine_slice)
        zero_filled = (
            self._zero_filled(made, options, data, cine_slice) if "zero_filled" in options.finish.extras else None
        )
        context = len(data.mask) - len(cine_slice.mask) + cine_slice.context
        made = _without_context(made, context)
        beside, zero_filled = (one and _without_context(one, context) for one in (beside, zero_filled))
        g_factor = self._g_factor(made.method, options, data, made.notes) if options.finish.g_factor else None
        intensity = _receive_intensity(data.maps, cine_slice.colouring)
        per_noise = (
            self._per_noise(made, options, data, cine_slice, g_factor) if options.finish.units == "snr" else None
        )
        if "uncertainty" in made.extra:
            made.extra["uncertainty"] = made.extra["uncertainty"] * intensity
        mask = _tensor(cine_slice.mask, device)
        columns = None if cine_slice.columns is None else _tensor(cine_slice.columns, device)
        maps = data.maps.cpu().numpy()

        def result(one: _Made, factor: torch.Tensor | float) -> Reconstruction:
            image = _finite(one.method, _finish(one, options.finish, mask, columns) * factor, cine_slice)
            return Reconstruction(
                image.contiguous().cpu().numpy(), maps, one.method, notes=(*data.notes, *one.notes), doubts=one.doubts
            )

        first = result(made, intensity if per_noise is None else per_noise)
        others = [None if one is None else result(one, intensity) for one in (beside, zero_filled)]
        return dataclasses.replace(
            first,
            seconds={"maps": mapped - started, "reconstruct": time.perf_counter() - mapped},
            g_factor=g_factor,
            extra={name: image.float().cpu().numpy() for name, image in made.extra.items()},
            beside=others[0],
            zero_filled=others[1],
            units="relative" if per_noise is None else "snr",
        )

    def _run(self, options: ReconOptions, data: HybridSlice, cine_slice: CineSlice) -> tuple[_Made, _Made | None]:
        """Run the chosen method; where it cannot do the scan or its image is doubtful, the fallback as well or instead.

        Returns
        -------
        tuple
            The images to send, and those of the fallback to send beside them or to compare them with, or None.
        """
        has_fallback = options.fallback not in ("none", options.method)

        @functools.cache  # to compare with and to send
        def fallback() -> _Made:
            return self._attempt(options.fallback, options, data, cine_slice)

        reasons: list[str] = []
        try:
            method = self._build(options.method, options)
            before = _accept(method.unlike_training(data), options) if isinstance(method, NetworkMethod) else ""
            made = self._attempt(options.method, options, data, cine_slice)
            if isinstance(method, NetworkMethod):
                reference = fallback().image if options.fallback == REFERENCE_METHOD else None
                after = _accept(method.doubts(data, made.image, reference), options)
                reasons = [reason for reason in (before, after) if reason]
        except CinestreamError as error:
            if not has_fallback:
                raise
            note = f"{options.fallback} instead of {options.method}: {error}"
            return fallback()._replace(notes=[note, *fallback().notes]), None
        made.notes.extend(reasons)
        made = made._replace(doubts=tuple(reasons))
        if not has_fallback:
            return made, None
        if reasons and options.outside_range == "beside":
            made.notes.append(f"{options.fallback} is beside it")
            note = f"{options.fallback} beside {options.method}: {'; '.join(reasons)}"
            return made, fallback()._replace(notes=[note, *fallback().notes])
        if not options.finish.extras & {"fallback", "difference"}:
            return made, None
        return made, _unless_it_fails(made, options.fallback, fallback)

    def _zero_filled(
        self, made: _Made, options: ReconOptions, data: HybridSlice, cine_slice: CineSlice
    ) -> _Made | None:
        """The zero-filled image, unless it is what was made."""
        name = "zero_filled"
        if made.method == name:
            return None
        return _unless_it_fails(made, name, lambda: self._attempt(name, options, data, cine_slice))

    def _attempt(self, name: str, options: ReconOptions, data: HybridSlice, cine_slice: CineSlice) -> _Made:
        """Run a method, apart from whatever another one noted."""
        own = dataclasses.replace(data, notes=[], extra={})
        image = _finite(name, self._build(name, options)(own), cine_slice)
        return _Made(name, image, own.notes, own.extra)

    def _build(self, name: str, options: ReconOptions) -> Method:
        return self._method(find_method(name), _arguments(name, options))

    def _per_noise(
        self,
        made: _Made,
        options: ReconOptions,
        data: HybridSlice,
        cine_slice: CineSlice,
        g_factor: NDArray[np.float32] | None,
    ) -> torch.Tensor | None:
        """One over the standard deviation ``(frame, y, x)`` of the noise in the real part of an image.

        None (noted) where it is not known. A frame has the g-factor of the first one, and its own number of lines.
        """
        share = cine_slice.noise_share
        why = ""
        if not find_method(made.method).linear:
            why = f"the noise in an image of {made.method} is not known"
        elif cine_slice.colouring is None and not cine_slice.whitened:
            why = "no noise was measured"
        elif share is None:
            why = "the noise of a line is not known (lines interpolated between readouts, or no dwell times)"
        elif options.finish.partial_fourier != "off" or options.finish.kspace_filter:
            why = "partial_fourier and kspace_filter change the noise"
        elif not bool(data.mask.any()):
            why = "no line was measured"
        if why or share is None:
            made.notes.append(f"relative units instead of SNR: {why}")
            return None
        sampled = data.mask[-len(made.image) :].float().mean(-1)[:, None, None]  # of the lines, by frame
        spread = sampled.sqrt()
        if find_method(made.method).g_factor:
            known = self._g_factor(made.method, options, data, made.notes) if g_factor is None else g_factor
            spread = _tensor(np.asarray(known), data.maps.device) / sampled.sqrt()
            if bool((data.mask != data.mask[:1]).any()):
                made.notes.append("the g-factor in the SNR units is that of the first frame's lines")
        columns = 1.0 if cine_slice.columns is None else float(np.mean(cine_slice.columns))
        deviation = spread * torch.linalg.vector_norm(data.maps, dim=0) * (share * columns) ** 0.5
        # an empty frame, and a pixel that no coil sees, has neither noise nor signal
        good = deviation.isfinite() & (deviation > 0)
        return torch.where(good, 1 / torch.where(good, deviation, 1), 0)

    def _g_factor(
        self, name: str, options: ReconOptions, data: HybridSlice, notes: list[str]
    ) -> NDArray[np.float32] | None:
        """The g-factor ``(y, x)`` of the first frame that has lines; below one where a prior takes noise away."""
        if not find_method(name).g_factor:
            defined = " and ".join(method_names(lambda info: info.g_factor))
            notes.append(f"no g-factor: it is defined for {defined}, not for {name}")
            return None
        if not bool(data.mask.any()):
            notes.append("no g-factor: no line was measured")
            return None
        # linear in the noise only from a zero start
        cold = dataclasses.replace(options.cg_sense, warm_start=False)
        method = self._build(name, dataclasses.replace(options, cg_sense=cold))
        pattern = data.mask[int(data.mask.any(-1).int().argmax())]

        def reconstruct(noise: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return method(dataclasses.replace(data, hybrid=noise, maps=maps, mask=mask, notes=[]))

        g_factor = replica_g_factor(reconstruct, data.maps, pattern, replicas=_REPLICAS)
        return np.asarray(g_factor.cpu().numpy(), np.float32)


def _unless_it_fails(made: _Made, name: str, make: Callable[[], _Made]) -> _Made | None:
    """Make another image of a slice; one that fails is noted, and costs nothing of what was made."""
    try:
        return make()
    except CinestreamError as error:
        made.notes.append(f"no images of {name} beside it: {error}")
        return None


def _without_context(made: _Made, context: int) -> _Made:
    """Leave out the first frames, which only helped."""
    if not context:
        return made
    extra = {name: image[context:] if image.shape == made.image.shape else image for name, image in made.extra.items()}
    return made._replace(image=made.image[context:], extra=extra)


def _finish(made: _Made, options: FinishOptions, mask: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """Complete the k-space of the image of a classical method, and filter that of any, where it is asked for."""
    image = made.image
    if options.partial_fourier != "off":
        extents = partial_extents(mask, columns)
        if not find_method(made.method).network:
            image, notes = complete(image, extents, options.partial_fourier)
            made.notes.extend(notes)
        elif extents:
            made.notes.append(f"partial_fourier={options.partial_fourier} is for classical methods, not {made.method}")
    if options.kspace_filter:
        readout = (0, image.shape[-1] - 1) if columns is None else measured_span(columns)
        image = filter_image(image, options.kspace_filter, measured_span(mask.any(0)), readout)
    return image


def _accept(reason: str, options: ReconOptions) -> str:
    """Hand a reason for doubt on, unless it is to send the scan to the fallback.

    Raises
    ------
    ModelError
        If it is.
    """
    if reason and options.outside_range == "fallback":
        raise ModelError(f"{reason}; outside_range=note sends the image all the same")
    return reason


def _check_memory(shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a slice that would take the machine down: a scan too large, or a forged matrix size."""
    n_frames, n_coils, n_y, n_x = shape
    # the data as they came, transformed along the readout, and once more in between
    needed = 3 * 8 * n_frames * n_coils * n_y * n_x
    needed += predicted_bytes("sense", (n_frames, n_coils, n_y, n_x), device=device.type)
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ResourceError(
            f"a slice of {' x '.join(map(str, shape))} (frame x coil x ky x kx) needs {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free on {device.type}; compress the coils (virtual_coils) or free memory"
        )


def _on_device(cine_slice: CineSlice, options: ReconOptions, device: torch.device) -> HybridSlice:
    """Bring a slice to the device, transform it along the readout and estimate its coil maps."""
    mask, kspace = _tensor(cine_slice.mask, device), _tensor(cine_slice.kspace, device)
    # from frame to frame: then the context is nothing but a part of the average, and is transformed as that
    first = cine_slice.context if find_method(options.method).framewise else 0
    hybrid = ifft(kspace[first:], (-1,))
    if cine_slice.calibration is not None:
        reference = ifft(_tensor(cine_slice.calibration, device), (-1,))
        measured = _measured(reference)
    elif first:
        average, measured = time_average(kspace, mask)
        reference = ifft(average, (-1,))
    else:
        reference, measured = time_average(hybrid, mask)
    maps, notes = _given_maps(cine_slice, device) or _coil_maps(reference, measured, options.maps)
    # whitening gives real and imaginary part unit variance each
    noise_variance = None if cine_slice.colouring is None and not cine_slice.whitened else 2.0
    ct, cover = (None if plane is None else _tensor(plane, device) for plane in (cine_slice.ct, cine_slice.ct_cover))
    return HybridSlice(
        hybrid,
        mask[first:],
        maps,
        reference,
        measured,
        noise_variance,
        list(notes),
        ct=ct,
        ct_cover=cover,
        periodic=cine_slice.periodic,
    )


def _given_maps(cine_slice: CineSlice, device: torch.device) -> tuple[torch.Tensor, tuple[str, ...]] | None:
    return None if cine_slice.maps is None else (_tensor(cine_slice.maps, device), ())


def _measured(reference: torch.Tensor) -> torch.Tensor:
    """Lines ``(ky,)`` that a reference ``(coil, ky, x)`` holds."""
    return reference.ne(0).any(-1).any(0)


def _coil_maps(
    reference: torch.Tensor, measured: torch.Tensor, options: MapOptions
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Maps ``(coil, y, x)`` of the chosen kind; where the data do not allow it, Walsh's, which any data allow."""
    side = options.neighbourhood
    why: tuple[str, ...] = ()
    try:
        if options.kind == "espirit":
            maps, _, notes = espirit_maps(
                reference,
                measured,
                kernel=options.kernel,
                calibration=options.calibration,
                threshold=options.threshold,
                crop=options.crop,
                soft=options.soft,
            )
            return maps[0], notes
        if options.kind == "inati":
            return inati_maps(reference, measured, neighbourhood=side), ()
    except DataError as error:
        why = (f"walsh coil maps instead of {options.kind}: {error}",)
    maps, notes = walsh_maps(reference, measured, neighbourhood=side, refinements=options.refinements)
    return maps, why + notes


def _receive_intensity(maps: torch.Tensor, colouring_matrix: NDArray[np.complex64] | None) -> torch.Tensor:
    """Find the shading ``(y, x)`` of the receive coils, about one on average; one where nothing was whitened.

    Maps of unit norm among whitened coils leave the image weighted with the signal-to-noise ratio of each pixel. Times
    the norm of the same maps among the receive coils it is the root-sum-of-squares image a reader is used to.
    """
    if colouring_matrix is None:
        return torch.ones((), device=maps.device)
    colouring = _tensor(colouring_matrix, maps.device)
    scale = torch.linalg.matrix_norm(colouring) / maps.shape[0] ** 0.5
    receive_maps = torch.einsum("rc,cyx->ryx", colouring / scale, maps)
    # as real numbers: many times faster than the norm of complex ones over the first axis
    intensity: torch.Tensor = torch.view_as_real(receive_maps).square().sum((0, -1)).sqrt()
    return intensity


def _finite(name: str, image: torch.Tensor, cine_slice: CineSlice) -> torch.Tensor:
    """Hand an image ``(frame, y, x)`` on.

    Raises
    ------
    ModelError
        If it has values that are not finite.
    """
    good = image.isfinite().all(-1).all(-1)
    if not bool(good.all()):
        frames = torch.nonzero(~good).flatten().tolist()
        raise ModelError(f"{name} gave values that are not finite in frames {frames}; {_finiteness(cine_slice)}")
    return image


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
