"""What makes a method of a network: weights and their start, range and limits, and how far its image counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.inference.fusion import weighed
from recon_core.inference.signal import signal_to_noise
from recon_core.inference.start import Start, start_method, with_start
from recon_core.inference.trained import TrainedNetwork
from recon_core.trust.image_figures import image_figures
from recon_core.trust.ranges import Limits
from recon_core.trust.weighing import objections
from recon_core.weights.manifest import WEIGHED_AGAINST, find_weights

if TYPE_CHECKING:
    import torch

    from recon_core.data import HybridSlice
    from recon_core.options import NetworkOptions, Options


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
        If there are no such weights, or they or those that they start from do not fit the network.
    """

    def __init__(
        self, method: str, options: NetworkOptions, own: Options | None = None, implementation: str = "auto"
    ) -> None:
        self._method = method
        self._implementation = implementation
        self._entry = find_weights(method, options.weights)
        self._network = TrainedNetwork(self._entry, options, own, implementation)
        self._start = Start(self._entry.start, options, implementation, self._entry)

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
        if data.start is None and self.start_method:
            data = with_start(data, self.start_method)
        begun = data if self._entry.start == self.start_method else self._start(data)
        image = self._network(begun)
        return self._weighed(data, image) if self._entry.weighing else image

    @property
    def start_method(self) -> str:
        """The method whose image is needed first, see `recon_core.inference.start.start_method`."""
        return start_method(self._entry)

    @property
    def first_network(self) -> str:
        """The method of the weights that it goes on from; empty where there are none."""
        return self._start.network

    @property
    def is_weighed(self) -> bool:
        """Whether its image is settled and weighed, and so about as near to the truth as the one it is weighed with."""
        return self._entry.weighing is not None

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

    def _weighed(self, data: HybridSlice, image: torch.Tensor) -> torch.Tensor:
        """Settle an image, weigh it against the start of a slice, and note how far it counts."""
        if data.start_deviation is None or self._entry.weighing is None:
            return image
        fused = weighed(data, image, self._entry.weighing, self._implementation)
        data.notes.append(f"weighed against {WEIGHED_AGAINST}: {self._method} counts {100 * fused.share:.0f} %")
        if not self._entry.helps:
            data.notes.append(f"the weights {self._entry.name} were found to add nothing to {WEIGHED_AGAINST}")
        data.doubts.extend(f"the image of {self._method} {why}" for why in objections(fused.share, WEIGHED_AGAINST))
        return fused.image
