"""What makes a method of a network: weights, range and limits, scale, windows of frames, memory and precision."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import torch

from recon_core.errors import ResourceError
from recon_core.inference.fusion import fuse, settled
from recon_core.inference.start import start_method, with_start
from recon_core.inference.windows import over_windows
from recon_core.physics.memory import MORE_GPU_MEMORY, available_bytes
from recon_core.trust.image_figures import image_figures
from recon_core.trust.ranges import Limits
from recon_core.trust.weighing import Beyond, objections
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import WEIGHED_AGAINST, find_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recon_core.data import HybridSlice
    from recon_core.options import NetworkOptions, Options

# Processors and GPUs (compute capability) with units for bfloat16.
_BFLOAT16_QUERIES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
_BFLOAT16_GPU = (8, 0)
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NetworkMethod:
    """The network of a method, with its trained weights.

    Parameters
    ----------
    method
        Name of the method.
    options
        Weights, window and precision.
    own
        The method's own group of options, where it has one; the network takes it.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Raises
    ------
    ModelError
        If there are no such weights, or they do not fit the network.
    """

    def __init__(
        self, method: str, options: NetworkOptions, own: Options | None = None, implementation: str = "auto"
    ) -> None:
        self._method = method
        self._options = options
        self._implementation = implementation
        self._entry = find_weights(method, options.weights)
        self._network = load_network(self._entry, torch.device("cpu"))
        if own is not None:
            self._network.configure(own)

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice, independent of the range of the weights; `unlike_training` and `doubts` check that.

        Parameters
        ----------
        data
            The slice; with a start, which is the image of `start_method` then.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data.

        Raises
        ------
        ResourceError
            If the fewest frames that the network takes do not fit into memory.
        """
        if self._entry.range is None:
            data.notes.append(f"what the weights {self._entry.name} were trained for is not known")
        data.notes.append(f"weights {self._entry.name} (sha256 {self._entry.sha256[:8]})")
        scale = 1.0
        peak = _peak(data) if self._network.scale == "peak" or self._entry.weighing else 0.0
        if self._network.scale == "peak":
            if peak == 0:
                return data.hybrid.new_zeros((len(data.mask), *data.maps.shape[-2:]))
            scale = self._entry.input_peak / peak
        if data.start is None and self.start_method:
            data = with_start(data, self.start_method)
        begun = data if self._entry.start == self.start_method else with_start(data, self._entry.start)
        scaled = dataclasses.replace(
            data,
            hybrid=data.hybrid * scale,
            noise_variance=None if data.noise_variance is None else data.noise_variance * scale**2,
            start=None if begun.start is None else begun.start * scale,
            start_deviation=None if begun.start_deviation is None else begun.start_deviation * scale,
        )
        with precision_of_convolutions(self._options.precision, data.hybrid.device):
            image = self._reconstruct(scaled) / scale
        if self._entry.weighing:
            image = self._weighed(data, image, peak)
        if "uncertainty" in data.extra:
            data.extra["uncertainty"] = data.extra["uncertainty"] / scale
        return image

    @property
    def start_method(self) -> str:
        """The method whose image is needed first, see `recon_core.inference.start.start_method`."""
        return start_method(self._entry)

    @property
    def reference(self) -> str:
        """The method whose images those of these weights are compared with."""
        return self._entry.reference

    def unlike_training(self, data: HybridSlice) -> str:
        """Differences of a scan from those that the weights were trained for; called before the network runs.

        Parameters
        ----------
        data
            The slice.

        Returns
        -------
        str
            Empty if it is like them, or if nothing was recorded.
        """
        trained = self._entry.range
        if self._entry.weighing:  # what is weighed need not be like the training
            return self._entry.why_not_on(data.sampling().pattern)
        if trained is None:
            return ""
        snr = signal_to_noise(data) if trained.snr else None
        reasons = "; ".join(trained.outside(data.sampling(snr)))
        return reasons and f"the scan is not like the training of the weights {self._entry.name}: {reasons}"

    def doubts(
        self, data: HybridSlice, image: torch.Tensor, reference: torch.Tensor, deviation: torch.Tensor | None = None
    ) -> str:
        """Reasons not to trust the image of the network; called after it has run.

        Parameters
        ----------
        data
            The slice.
        image
            ``(frame, y, x)`` complex64, image of the network.
        reference
            Image of the slice by the method `reference`.
        deviation
            ``(frame, y, x)`` float32: standard deviation that it is left with, where it is known.

        Returns
        -------
        str
            Empty if the image is within the limits stored with the weights, or else the default ones.
        """
        figures = image_figures(data, image, reference, deviation=deviation, implementation=self._implementation)
        reasons = ", ".join((self._entry.limits or Limits()).objections(figures, self.reference))
        return reasons and f"the image of {self._method} {reasons}"

    def _weighed(self, data: HybridSlice, image: torch.Tensor, peak: float) -> torch.Tensor:
        """Settle an image, weigh it against the start of a slice, and note how far it counts."""
        if data.start is None or data.start_deviation is None or self._entry.weighing is None:
            return image
        image = settled(data, image, self._implementation)
        weighing = self._entry.weighing.of_scan(Beyond.of(data.sampling(signal_to_noise(data, peak))))
        fused = fuse(data.start, data.start_deviation, image, peak, weighing)
        data.notes.append(f"weighed against {WEIGHED_AGAINST}: {self._method} counts {100 * fused.share:.0f} %")
        if not self._entry.helps:
            data.notes.append(f"the weights {self._entry.name} were found to add nothing to {WEIGHED_AGAINST}")
        data.doubts.extend(f"the image of {self._method} {why}" for why in objections(fused.share, WEIGHED_AGAINST))
        return fused.image

    def _reconstruct(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct in windows of as many frames as the weights require and the memory allows."""
        network = self._network.to(data.hybrid.device)
        n_frames = len(data.hybrid)
        wanted = max(self._options.window or self._entry.window or n_frames, network.minimum_frames)
        # a cycle that is repeated more often than the weights want costs time and memory, and shows nothing more
        most = max(n_frames, self._entry.window, network.minimum_frames)
        wanted = min(wanted, most, network.maximum_frames or most)
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
                raise ResourceError(f"{self._method} does not fit into the memory of the GPU; {MORE_GPU_MEMORY}")
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
                    f"{self._method} needs {needed / 2**30:.1f} GiB for {window} frames of {n_coils} coils, "
                    f"{n_y} x {n_x}, and {free / 2**30:.1f} GiB are free on {data.hybrid.device.type}"
                )
            window = max(fewest, window // 2)
        return window


def signal_to_noise(data: HybridSlice, peak: float | None = None) -> float | None:
    """Estimate the peak signal-to-noise ratio of a scan.

    Parameters
    ----------
    data
        The slice.
    peak
        Of the image of the time average, where it is known already.

    Returns
    -------
    float or None
        Peak magnitude of the image of the time average over the standard deviation of a complex sample; None where the
        noise is not known.
    """
    if data.noise_variance is None:
        return None
    deviation: float = data.noise_variance**0.5
    return (_peak(data) if peak is None else peak) / deviation


def _peak(data: HybridSlice) -> float:
    """The largest magnitude of the image of the time average."""
    return float(data.average_image().abs().max())


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
