"""A network with its trained weights, as it makes images by itself: scale, windows of frames, memory and precision."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import torch

from recon_core.errors import ResourceError
from recon_core.inference.precision import precision_of_convolutions
from recon_core.inference.signal import peak_of_average
from recon_core.inference.windows import over_windows
from recon_core.physics.memory import MORE_GPU_MEMORY, available_bytes
from recon_core.weights.loading import load_network

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import NetworkOptions, Options
    from recon_core.weights.manifest import WeightsEntry


class TrainedNetwork:
    """A network, run as its weights ask for.

    Parameters
    ----------
    entry
        The weights.
    options
        Window and precision.
    own
        The method's own group of options, where it has one; the network takes it.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Raises
    ------
    ModelError
        If the weights do not fit the network.
    """

    def __init__(
        self,
        entry: WeightsEntry,
        options: NetworkOptions,
        own: Options | None = None,
        implementation: str = "auto",
    ) -> None:
        self._entry = entry
        self._options = options
        self._implementation = implementation
        self._network = load_network(entry, torch.device("cpu"))
        if own is not None:
            self._network.configure(own)

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice, with the start of the weights.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data.

        Raises
        ------
        ResourceError
            If the fewest frames that the network takes do not fit into memory.
        """
        scale = 1.0
        if self._network.scale == "peak":
            peak = peak_of_average(data)
            if peak == 0:
                return data.hybrid.new_zeros((len(data.mask), *data.maps.shape[-2:]))
            scale = self._entry.input_peak / peak
        scaled = dataclasses.replace(
            data,
            hybrid=data.hybrid * scale,
            noise_variance=None if data.noise_variance is None else data.noise_variance * scale**2,
            start=None if data.start is None else data.start * scale,
            start_deviation=None if data.start_deviation is None else data.start_deviation * scale,
            extra={},
        )
        with precision_of_convolutions(self._options.precision, data.hybrid.device):
            image = self._reconstruct(scaled) / scale
        if "uncertainty" in scaled.extra:
            scaled.extra["uncertainty"] = scaled.extra["uncertainty"] / scale
        data.extra.update(scaled.extra)
        return image

    def _reconstruct(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct in windows of as many frames as the weights and the memory allow; a shorter series as it is."""
        network = self._network.to(data.hybrid.device)
        n_frames = len(data.hybrid)
        wanted = min(self._options.window or self._entry.window or n_frames, n_frames)
        wanted = max(min(wanted, network.maximum_frames or wanted), network.minimum_frames)
        window = wanted

        def reconstruct(frames: torch.Tensor) -> torch.Tensor:
            part = dataclasses.replace(data.select_started(frames), extra={})
            image = network.reconstruct(part, implementation=self._implementation)
            uncertainty = part.extra.pop("uncertainty", None)
            data.extra.update(part.extra)
            # one is blended as the other is
            return image[:, None] if uncertainty is None else torch.stack((image, uncertainty.to(image.dtype)), 1)

        while True:
            window = self._fitting(window, data)
            # The error keeps what was computed; it is gone where less is tried.
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                images = over_windows(reconstruct, n_frames, window, data.hybrid.device, periodic=data.periodic)
                break
            if window == network.minimum_frames:
                raise ResourceError(f"{self._entry.method} does not fit into the memory of the GPU; {MORE_GPU_MEMORY}")
            window = max(network.minimum_frames, window // 2)
            torch.cuda.empty_cache()
        if window < min(wanted, n_frames):
            data.notes.append(f"in windows of {window} frames, because more do not fit into memory")
        if images.shape[1] > 1:
            data.extra["uncertainty"] = images[:, 1].real
        return images[:, 0]

    def _fitting(self, window: int, data: HybridSlice) -> int:
        """The most frames, up to a window, that fit into memory together."""
        n_coils, n_y, n_x = data.maps.shape[-3:]
        free = available_bytes(data.hybrid.device)
        fewest = self._network.minimum_frames
        while free is not None:
            # in addition to the work of the network: the frames of the window
            needed = self._network.working_bytes((window, n_coils, n_y, n_x)) + 8 * window * n_coils * n_y * n_x
            if needed <= free:
                break
            if window == fewest:
                raise ResourceError(
                    f"{self._entry.method} needs {needed / 2**30:.1f} GiB for {window} frames of {n_coils} coils, "
                    f"{n_y} x {n_x}, and {free / 2**30:.1f} GiB are free on {data.hybrid.device.type}"
                )
            window = max(fewest, window // 2)
        return window
