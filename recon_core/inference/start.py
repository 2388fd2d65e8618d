"""The image that a network starts from.

As published it is the zero-filled one. The weights of cinestream are trained with that of a few iterations of CG-SENSE
around the time average: a network that need not remove aliasing learns the rest in a fraction of the steps. That of k-t
SENSE, with a prior of the scan itself, leaves less to learn still, and takes several times as long. A network may also
go on from the image of another one, which sees what it does not: errors of two kinds are smaller than those of either.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.classical.kt_sense import KtSense
from recon_core.errors import ModelError
from recon_core.inference.fusion import weighed
from recon_core.inference.trained import TrainedNetwork
from recon_core.options import CGSenseOptions, KtSenseOptions, NetworkOptions
from recon_core.weights.manifest import STARTS, WEIGHED_AGAINST, weights_of_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from recon_core.data import HybridSlice
    from recon_core.weights.manifest import WeightsEntry

    #: Image ``(frame, y, x)`` and the deviation that it is left with, where there are any.
    Made = tuple[torch.Tensor | None, torch.Tensor | None]

#: Samples that tell how well the start of a network is known, and what its image is compared with: their squares are
#: averaged over frames and neighbours.
SAMPLES = 1
# Of the deviation of k-t SENSE, where a network counts fully: it takes 1 to 2 dB off the error, and the next one does
# best if it expects less than that (0.6 to 1 differ by 0.1 dB).
_LEFT = 0.7
_ITERATIONS = 10  # more amplify the noise (measured on training scans: 5, 10, 30 give 28.3, 28.3, 27.9 dB)


class Start:
    """The image that a network starts from; weights that make it are read here, before there is a slice.

    Parameters
    ----------
    name, beside
        As for `recon_core.weights.manifest.weights_of_start`.
    options, implementation
        As for `recon_core.inference.trained.TrainedNetwork`, where the start is the image of weights.

    Raises
    ------
    SettingsError
        If there is no such start.
    ModelError
        If weights do not fit their network.
    """

    def __init__(
        self,
        name: str,
        options: NetworkOptions | None = None,
        implementation: str = "auto",
        beside: WeightsEntry | None = None,
    ) -> None:
        self._name = name
        self._implementation = implementation
        self._entry = weights_of_start(name, beside)
        self._network = None
        if self._entry is not None:
            self._network = TrainedNetwork(self._entry, options or NetworkOptions(), implementation=implementation)

    @property
    def network(self) -> str:
        """The method of the weights that make it; empty where it needs none."""
        return "" if self._entry is None else self._entry.method

    def __call__(self, data: HybridSlice) -> HybridSlice:
        """Add the initial image of the network to a slice.

        Parameters
        ----------
        data
            The slice.

        Returns
        -------
        HybridSlice
            The same data, with `HybridSlice.start`. Frames without data start from the mean of the others, or, with
            ``kt_sense``, from what it predicts; it gives `HybridSlice.start_deviation`, too. The image of weights is
            what would be sent of them, weighed against the start that the slice has, or that of ``kt_sense``.

        Raises
        ------
        ModelError
            If weights give values that are not finite.
        ResourceError
            If their network does not fit into memory.
        """
        if self._entry is None or self._network is None:
            image, deviation = _MAKERS[self._name](data)
            return dataclasses.replace(data, start=image, start_deviation=deviation)
        begun = data if data.start_deviation is not None else with_start(data, self._entry.start)
        if why := self._entry.why_not_on(data.sampling().pattern):
            begun.notes.append(f"not from their image: {why}")
            return begun
        notes: list[str] = []
        made = self._network(dataclasses.replace(begun, notes=notes, extra={}))
        if not bool(made.isfinite().all()):
            raise ModelError(f"the weights {self._name}, which are started from, gave values that are not finite")
        assert self._entry.weighing is not None  # noqa: S101 - for the type checker; without they are no start
        fused = weighed(begun, made, self._entry.weighing, self._implementation)
        begun.notes.append(
            f"from the image of the weights {self._name} (sha256 {self._entry.sha256[:8]}), which counts "
            f"{100 * fused.share:.0f} %"
        )
        begun.notes.extend(f"{self._name}: {note}" for note in notes)
        assert begun.start_deviation is not None  # noqa: S101 - for the type checker; it could not be weighed without
        deviation = begun.start_deviation * (1 - (1 - _LEFT) * fused.weight)
        return dataclasses.replace(begun, start=fused.image, start_deviation=deviation)


def with_start(data: HybridSlice, start: str) -> HybridSlice:
    """Add the initial image of a network to one slice, see `Start`."""
    return Start(start)(data)


def _zero_filled(data: HybridSlice) -> Made:
    """What a network takes without a start."""
    del data
    return None, None


def _cg_sense(data: HybridSlice) -> Made:
    image = CGSense(CGSenseOptions(iterations=_ITERATIONS))(data)
    filled = data.mask.any(-1)
    if not bool(filled.all()) and bool(filled.any()):
        image[~filled] = image[filled].mean(0)
    return image, None


def _kt_sense(data: HybridSlice) -> Made:
    own = dataclasses.replace(data, notes=[], doubts=[], extra={})
    with torch.autocast(data.hybrid.device.type, enabled=False):  # training has it on, for the convolutions
        image = KtSense(KtSenseOptions(samples=SAMPLES))(own)
    data.notes.extend(own.notes)
    return image, own.extra.get("uncertainty")


_MAKERS: dict[str, Callable[[HybridSlice], Made]] = dict(zip(STARTS, (_zero_filled, _cg_sense, _kt_sense), strict=True))
#: Those that are the images of the method of the same name, which may have been made already.
METHODS_AS_START = tuple(name for name, make in _MAKERS.items() if make is _kt_sense)


def start_method(entry: WeightsEntry) -> str:
    """The method whose image is needed first, to be weighed against or to start from; empty where none is.

    Parameters
    ----------
    entry
        The weights of the network.
    """
    if entry.weighing or entry.start not in STARTS:  # weights are started from if they start from that themselves
        return WEIGHED_AGAINST
    return entry.start if entry.start in METHODS_AS_START else ""
