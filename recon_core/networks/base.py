"""Base classes of the networks: input, and the properties that the engine needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recon_core.data import HybridSlice
    from recon_core.options import Options
    from recon_core.physics.consistency import DataConsistency


class Network(nn.Module, ABC):
    """A network that reconstructs a cine slice.

    The tensors of a network have the names of the authors' checkpoints wherever that is possible, so that these load
    as they are; `authors_key` translates the rest.
    """

    #: The dataclass that configures it; every field has the published default.
    Config: ClassVar[type[Any]]
    #: Configuration of this network.
    config: Any
    #: ``free``: scaling the data scales the image. ``peak``: the data must be scaled, as in training, so that the peak
    #: of the time-averaged image has the value that belongs to the weights.
    scale: ClassVar[Literal["free", "peak"]]
    #: Pattern of the tensors that the authors' checkpoints hold and their networks never use.
    unused_keys: ClassVar[str] = "(?!)"
    #: Restriction by the licence of the authors' checkpoints; shown on import.
    licence_notice: ClassVar[str] = ""

    @property
    def minimum_frames(self) -> int:
        """Frames that it needs at least; the cycle of a shorter series is repeated."""
        return 1

    @property
    def maximum_frames(self) -> int | None:
        """Frames that it takes at most, in windows around the cycle of a longer series; None for any number."""
        return None

    def configure(self, options: Options) -> None:
        """Take over the method's own group of options; called for methods that have one."""

    @classmethod
    def from_checkpoint(cls, document: Mapping[str, object]) -> dict[str, torch.Tensor] | None:
        """Find the weights in a checkpoint of an unusual form; None where it is an ordinary one."""
        del document
        return None

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        return key

    def check_checkpoint(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse a checkpoint, by the authors' names, that has the right shapes and belongs to another variant.

        Raises
        ------
        ModelError
            Saying which variant it belongs to.
        """

    @abstractmethod
    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes at its peak beyond weights and inputs, in bytes.

        Parameters
        ----------
        shape
            (frame, coil, y, x).
        """

    @abstractmethod
    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice, scaled as `scale` asks for, with at least `minimum_frames`.
        implementation
            Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64, in the units of the data.
        """


class ImageNetwork(Network):
    """A network that goes from image to image: the coils are combined with the maps of the slice."""

    @abstractmethod
    def forward(self, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
        """Improve an image.

        Parameters
        ----------
        image
            ``(frame, y, x)`` or ``(batch, frame, y, x)`` complex64; usually ``consistency.zero_filled``. y is the axis
            of phase encoding.
        consistency
            The measured data, with the same batch axis.

        Returns
        -------
        torch.Tensor
            Shape of `image`.
        """

    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:
        """Reconstruct one slice, from its start or its zero-filled image; see `Network.reconstruct`."""
        consistency = data.consistency(implementation)
        image: torch.Tensor = self(consistency.zero_filled if data.start is None else data.start, consistency)
        return image


def zero_without_signal(result: torch.Tensor, image: torch.Tensor, consistency: DataConsistency) -> torch.Tensor:
    """Zeros instead of what biases make where neither the image nor the data hold anything, per entry of the batch."""
    signal = (image != 0) | (consistency.zero_filled != 0)
    return torch.where(signal.flatten(-3).any(-1)[..., None, None, None], result, 0)
