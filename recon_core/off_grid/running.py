"""What the windows of a slice in real time leave to those that follow: coil maps, an average, the last images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a server that buffers spokes imports no torch
    from collections.abc import Callable

    import torch


class RunningSeries:
    """A slice off the grid of which windows of frames are reconstructed one after the other.

    Coil maps stay those of the first window. The average begins with that of the first window, too, and goes on with
    every new frame, which counts the less the longer ago it was measured; so it costs a frame, not a window.
    """

    def __init__(self) -> None:
        self.maps: torch.Tensor | None = None
        """``(coil, y, x)`` complex64; None before the first window."""
        self._average: torch.Tensor | None = None
        self._window: object = None  # that the average was made with last
        self._images: dict[str, torch.Tensor] = {}

    @property
    def goes_on(self) -> bool:
        """Whether there is an average of frames before."""
        return self._average is not None

    def begin(self, average: torch.Tensor) -> torch.Tensor:
        """Take the average ``(coil, ky, x)`` of a first window; others that bring all they need keep theirs."""
        if self._average is None:
            self._average = average
        return average

    def average(self, window: object, share: float, new: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Take the new frames of a window into the average, and give it.

        Parameters
        ----------
        window
            What stands for the window: where a second method asks for the same one, nothing is new.
        share
            How much the new frames count.
        new
            Makes their own average ``(coil, ky, x)``.
        """
        if self._average is None or window is not self._window:
            self._average = new() if self._average is None else self._average.lerp(new(), share)
        self._window = window
        return self._average

    def keep(self, method: str, image: torch.Tensor) -> None:
        """Keep the image ``(y, x)`` that a method made of the last frame."""
        self._images[method] = image

    def last(self, method: str) -> torch.Tensor | None:
        """The image ``(y, x)`` that a method made last; None before its first."""
        return self._images.get(method)
