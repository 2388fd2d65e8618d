"""How much of the image of a network, and how much of the image that it is weighed against, is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from recon_core.classical.kt_sense import settle
from recon_core.inference.signal import peak_of_average, signal_to_noise
from recon_core.physics.neighbourhood import box_mean
from recon_core.trust.weighing import USUAL_SNR, USUAL_VARIANCE, Beyond

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.trust.weighing import Weighing

# Sides of squares, in pixels: over the first the error of the start is averaged, as a few samples know it roughly; over
# the second it is compared with what a network changes.
_NEIGHBOURHOOD, _REGION = 9, 25
_SMALL = 1e-12  # of a variance, over the square of the peak
_LEAST = torch.finfo(torch.float32).tiny


class Evidence(NamedTuple):
    """What is known of the error of a start, and how far a network goes from it, without knowing the truth."""

    variance: torch.Tensor
    """``(y, x)`` float32, around each pixel, over the square of the peak."""
    change: torch.Tensor
    """``()`` float32: mean square of what it changes of the magnitudes over `variance`, both of a region, averaged over
    the slice. A network that changes much where nothing is left open is not right elsewhere either."""


class Fused(NamedTuple):
    """Two images of a series, weighed."""

    image: torch.Tensor
    """``(frame, y, x)`` complex64."""
    weight: torch.Tensor
    """``(y, x)`` float32, of the network."""
    share: float
    """Of the network, of what the data leave open."""


def settled(data: HybridSlice, image: torch.Tensor, implementation: str = "auto") -> torch.Tensor:
    """Settle the image of a network by one more round of the method that it starts from, before it is weighed.

    The round begins with what `limited` leaves of it.

    Parameters
    ----------
    data
        The slice, with a start whose error is known.
    image
        ``(frame, y, x)`` complex64, complex or magnitudes; one that is not finite, which nobody sends, stays as it is.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64, see `recon_core.classical.kt_sense.settle`.

    Raises
    ------
    TypeError
        If the slice has no such start.
    """
    if data.start is None or data.start_deviation is None:
        raise TypeError("expected a slice with the image that the network starts from and its deviation, got none")
    if not bool(image.isfinite().all()):
        return image
    # magnitudes alone get the phase of the start
    image = image if bool(image.imag.any()) else torch.polar(image.abs(), data.start.angle())
    with torch.autocast(image.device.type, enabled=False):  # training has it on, for the convolutions
        # of little noise, k-t SENSE reckons with more, and the deviation is as many times too large
        known = min(1.0, USUAL_SNR / max(signal_to_noise(data) or USUAL_SNR, 1.0))
        image = limited(data.start, known * data.start_deviation, image, repeats=data.sampling().repeats)
        return settle(data, image, data.start_deviation, implementation)


def limited(start: torch.Tensor, deviation: torch.Tensor, image: torch.Tensor, *, repeats: bool) -> torch.Tensor:
    """Let the image of a network go no further from its start than the data leave open around a pixel.

    Where it goes further it is wrong more often than right, as at edges that it draws too smooth.

    Parameters
    ----------
    start, deviation, image
        As for `fuse`; an image that is the start plus a change of at most one deviation (of a complex value, averaged
        over frames and neighbours) is left as it is.
    repeats
        See `recon_core.trust.ranges.Sampling.repeats`. Then what is the same in all frames may change as it likes, as
        the deviation does not count what folds over in all of them.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64.
    """
    change = image - start
    free = change.mean(0) if repeats else torch.zeros_like(change[0])
    reach = box_mean(2 * deviation.square().mean(0), _NEIGHBOURHOOD).sqrt()
    change = change - free
    return start + free + change * (reach / change.abs().clamp(min=_LEAST)).clamp(max=1)


def weighed(data: HybridSlice, image: torch.Tensor, weighing: Weighing, implementation: str = "auto") -> Fused:
    """Settle the image of a network, and weigh it against the start of the slice; as `settled` and `fuse`."""
    image, peak = settled(data, image, implementation), peak_of_average(data)
    assert data.start is not None  # noqa: S101 - for the type checker; it could not be settled without
    assert data.start_deviation is not None  # noqa: S101
    of_scan = weighing.of_scan(Beyond.of(data.sampling(signal_to_noise(data, peak))))
    return fuse(data.start, data.start_deviation, image, peak, of_scan)


def fuse(start: torch.Tensor, deviation: torch.Tensor, image: torch.Tensor, peak: float, weighing: Weighing) -> Fused:
    """Weigh two images of a series by what is known of their errors.

    Where the data alone settle a pixel, a network can only lose; where they leave much open, it knows better.

    Parameters
    ----------
    start
        ``(frame, y, x)`` complex64: what the network is weighed against.
    deviation
        ``(frame, y, x)`` float32: standard deviation that the real part of `start` is left with.
    image
        ``(frame, y, x)`` complex64: what the network made, settled.
    peak
        Of the image of the time average, in the units of the images.
    weighing
        What was found of the weights.

    Returns
    -------
    Fused
        The weighed image.
    """
    evidence = gather(start, deviation, image, peak)
    weight = weights(evidence, weighing)
    share = float((weight * evidence.variance).sum() / evidence.variance.sum().clamp(min=_SMALL))
    return Fused(start + weight * (image - start), weight, share)


def gather(start: torch.Tensor, deviation: torch.Tensor, image: torch.Tensor, peak: float) -> Evidence:
    """Collect what the weight of every pixel is made of; parameters as of `fuse`."""
    square = max(peak, _SMALL) ** 2
    variance = box_mean(2 * deviation.square().mean(0), _NEIGHBOURHOOD) / square
    change = box_mean((image.abs() - start.abs()).square().mean(0), _REGION) / square
    return Evidence(variance, (change / box_mean(variance, _REGION).clamp(min=_SMALL)).mean())


def decades(evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders of magnitude that a weighing counts: of the variance ``(y, x)`` and of the change ``()``."""
    return (evidence.variance.clamp(min=_SMALL) / USUAL_VARIANCE).log10(), evidence.change.clamp(min=_SMALL).log10()


def weights(evidence: Evidence, weighing: Weighing) -> torch.Tensor:
    """Weight ``(y, x)`` float32 between 0 and 1 of the image of the network in every pixel."""
    variance, change = decades(evidence)
    return torch.sigmoid(weighing.level + weighing.variance * variance + weighing.change * change)
