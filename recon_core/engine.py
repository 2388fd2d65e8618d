"""One place that owns the device: it builds methods, keeps them warm, and runs one reconstruction at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from recon_core.coils.calibration import measured_lines
from recon_core.coils.estimate import estimate_maps
from recon_core.data import CineSlice
from recon_core.errors import CinestreamError, ModelError, ResourceError
from recon_core.inference.precision import precision_of_convolutions
from recon_core.methods import METHODS, find_method, load_target
from recon_core.own_methods import guarded
from recon_core.physics.fourier import ifft
from recon_core.physics.memory import MORE_GPU_MEMORY
from recon_core.physics.threads import threads, threads_for
from recon_core.steps.choose import candidates
from recon_core.steps.device import resolve_device, timed, to_device
from recon_core.steps.finish import finish
from recon_core.steps.load import load
from recon_core.steps.pace import Pace
from recon_core.steps.package import package
from recon_core.steps.run import run
from recon_core.steps.units import find_units
from recon_core.steps.work import Work, finiteness
from recon_core.stopping import checked_networks
from recon_core.turns import Turns
from recon_core.weights.manifest import find_weights, weights_of_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from recon_core.data import Reconstruction
    from recon_core.methods import MethodInfo
    from recon_core.options import ReconOptions
    from recon_core.steps.work import Method


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
    samples = find_method(name).samples
    if samples and "uncertainty" in options.finish.extras and hasattr(own, "samples"):
        own = dataclasses.replace(cast("Any", own), samples=max(samples, cast("Any", own).samples))
    if find_method(name).network:
        return name, options.network, own, implementation
    if name not in METHODS:
        return (options if own is None else own,)  # a method of the user's own without options may use any
    return (implementation,) if own is None else (own, implementation)


def _create(info: MethodInfo, arguments: tuple[object, ...], weights: str = "", place: str = "") -> Method:
    """Build a method.

    A change of what the manifest has of its `weights`, or of those that they start from, makes another one. So does
    another device, its `place`: a slice that gives way in the middle of a network must find it where it was.
    """
    del weights, place
    if info.chooses:
        raise ModelError(f"{info.label!r} is no method to build: it chooses one for every slice")
    return cast("Method", load_target(info.target)(*arguments))


class Engine:
    """Reconstructs slices; safe to share between threads.

    Slices of few samples, as windows in real time are, are worked on by one thread, others by as many as torch had when
    the engine was made.

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
        self.device = resolve_device(device)
        self._turns = Turns()
        self._pace = Pace()
        self._threads = torch.get_num_threads()
        # Bounded, because the options may come from any client.
        self._method = functools.lru_cache(maxsize=16)(_create)

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
        with self._turns.turn(), torch.inference_mode():
            if not find_method(options.method).chooses:
                self._build(options.method, options)
                return
            for one in candidates(options):
                with contextlib.suppress(ModelError):  # another one is chosen then
                    self._build(one.options.method, one.options)

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
        if find_method(options.method).chooses:
            options = candidates(options)[0].options
        # noise is like no training, and the network is to be run all the same
        self.reconstruct(CineSlice(kspace, mask), dataclasses.replace(options, outside_range="note"))

    def coil_maps(
        self,
        calibration: NDArray[np.complex64],
        options: ReconOptions,
        near: NDArray[np.complex64] | None = None,
    ) -> tuple[NDArray[np.complex64], tuple[str, ...]]:
        """Estimate coil maps apart from a reconstruction, for slices that bring theirs along.

        Parameters
        ----------
        calibration
            ``(coil, ky, kx)`` complex64, zero where nothing was measured.
        options
            Device, and how maps are estimated.
        near
            ``(coil, y, x)`` complex64, maps of the same coils that were found before; estimates that can go on from
            them take less time.

        Returns
        -------
        tuple
            Maps ``(coil, y, x)`` complex64, and notes on what had to be done differently.

        Raises
        ------
        ModelError
            If the device is missing, or the computation fails.
        ResourceError
            If it does not fit into the memory of a GPU.
        """
        what = f"a calibration of {_sizes(calibration)} (coil x ky x kx)"
        with (
            self._turns.turn(),
            threads(threads_for(calibration.size, self._threads)),
            precision_of_convolutions("float32", self.device),  # whatever who gave way is in the middle of
            torch.inference_mode(),
            _explained("the estimate of coil maps", what, None, calibration),
        ):
            device = self._device_for(options)
            reference = ifft(to_device(calibration, device), (-1,))
            before = None if near is None else to_device(near, device)
            maps, notes = estimate_maps(reference, measured_lines(reference), options.maps, before)
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
        ScanStoppedError
            If nobody waits for it any more, see `recon_core.stopping`.
        """
        deadline = options.compute.deadline
        until = time.monotonic() + deadline if deadline else math.inf
        what = f"a slice of {_sizes(cine_slice.kspace)} (frame x coil x ky x kx)"
        with (
            self._turns.turn(until),
            threads(self._threads_for(cine_slice, options)),
            precision_of_convolutions("float32", self.device),  # whatever who gave way is in the middle of
            torch.inference_mode(),
            _explained(options.method, what, cine_slice.kspace, cine_slice.calibration),
            checked_networks(),
        ):
            return self._reconstruct(cine_slice, options, until)

    def _threads_for(self, cine_slice: CineSlice, options: ReconOptions) -> int:
        info = METHODS.get(options.method)
        known = cine_slice.context if info is not None and info.framewise else 0
        return threads_for(cine_slice.kspace[known:].size, self._threads)

    def _device_for(self, options: ReconOptions) -> torch.device:
        return self.device if options.compute.device == "auto" else resolve_device(options.compute.device)

    def _reconstruct(self, cine_slice: CineSlice, options: ReconOptions, until: float) -> Reconstruction:
        device = self._device_for(options)
        seconds: dict[str, float] = {}
        with timed(seconds, "maps", device):
            data = load(cine_slice, options, device)
        with timed(seconds, "reconstruct", device):
            work = self._with_method(Work(cine_slice, data, options, self._build, self._pace, until))
            made = run(work)
            if cine_slice.series is not None:
                cine_slice.series.keep(made.main.method, made.main.image[-1])
            outcomes = finish(work, made)
            result = package(work, outcomes, find_units(work, outcomes.main))
        return dataclasses.replace(result, seconds=seconds)

    @staticmethod
    def _with_method(work: Work) -> Work:
        """Let a method that chooses do so."""
        info = find_method(work.options.method)
        return cast("Work", load_target(info.target)(work)) if info.chooses else work

    def _build(self, name: str, options: ReconOptions) -> Method:
        info = find_method(name)
        weights = ""
        if info.network:
            entry = find_weights(name, options.network.weights)
            weights = repr((entry, weights_of_start(entry.start, entry)))
        place = self.device.type if options.compute.device == "auto" else options.compute.device
        with guarded(name):
            return self._method(info, _arguments(name, options), weights, place)


@contextlib.contextmanager
def _explained(
    doing: str, what: str, kspace: NDArray[np.complex64] | None, calibration: NDArray[np.complex64] | None
) -> Iterator[None]:
    """Make of whatever goes wrong an error that says what failed, on what, and whether the input is the reason."""
    try:
        yield
    except CinestreamError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(f"{what} does not fit into the memory of the GPU; {MORE_GPU_MEMORY}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}; {finiteness(kspace, calibration)}"
        raise ModelError(f"{doing} failed on {what}: {why}") from error


def _sizes(array: NDArray[np.complex64]) -> str:
    return " x ".join(str(size) for size in array.shape)
