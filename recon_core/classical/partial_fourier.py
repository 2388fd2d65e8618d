"""Partial Fourier and asymmetric echoes: what was not measured on one side of k-space, from the other side.

The image of an object with slowly varying phase is a real image times that phase, and the k-space of a real image is
conjugate symmetric. The phase is read off the part around the centre of which both sides were measured.

POCS: Haacke, Lindskog, Lin, J Magn Reson 1991, doi:10.1016/0022-2364(91)90253-P. Homodyne: Noll, Nishimura, Macovski,
IEEE Trans Med Imaging 1991, doi:10.1109/42.79473.

Both work on the combined image that a method has made: gaps between measured lines are the method's to fill, what lies
beyond the outermost measured line or column is completed here. Coil maps are smooth, so that the border between the two
is as sharp in the k-space of the combined image as in that of a coil, but for a line or two.

Along the readout the methods take the samples that an asymmetric echo lacks for zeros, and so make the image without
them. Leaving them open in the least-squares fit instead lets the coils extrapolate them, which they do badly (measured,
cg_sense with a 2-D mask, a quarter of the echo missing: error 0.123 instead of 0.104, and 0.069 instead of 0.063 after
POCS; twice as much with a weaker regularisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from recon_core.physics.fourier import fft, ifft

# Each pass halves what is missing of the symmetric part, and adds what the phase is wrong by: on simulated hearts, with
# fat of the other sign, three or four leave the least error for 5/8, 6/8 and 7/8 of the lines (ten: up to 10 % more).
_ITERATIONS = 4
# Lines on each side of the centre without which there is no phase to speak of.
_FEWEST = 2
# Frames in work at a time.
_FRAMES = 64


@dataclass(frozen=True)
class Extent:
    """The part of one axis of k-space between the outermost samples that were measured."""

    first: torch.Tensor
    last: torch.Tensor
    """`first`, `last`: ``(frame,)`` int64, or one for all frames: the outermost samples, both included."""
    size: int
    """Samples of the axis; its centre is ``size // 2``."""

    @property
    def symmetric(self) -> torch.Tensor:
        """``(frame,)`` int64: how many samples were measured on the shorter side of the centre; negative without it."""
        return torch.minimum(self.size // 2 - self.first, self.last - self.size // 2)

    @property
    def known(self) -> torch.Tensor:
        """``(frame, size)`` bool."""
        sample = torch.arange(self.size, device=self.first.device)
        return (sample >= self.first[:, None]) & (sample <= self.last[:, None])

    @property
    def window(self) -> torch.Tensor:
        """``(frame, size)`` float32: one at the centre, a cosine to zero beyond the symmetric part."""
        distance = (torch.arange(self.size, device=self.first.device) - self.size // 2).abs()
        within = distance / (self.symmetric[:, None] + 1).clamp(min=1)
        return torch.cos(math.pi / 2 * within.clamp(max=1)).clamp(min=0)

    @property
    def ramp(self) -> torch.Tensor:
        """``(frame, size)`` float32: from zero where nothing is known, over 1/2 at the centre, to one."""
        half = self.symmetric[:, None]
        longer_above = self.size // 2 - self.first < self.last - self.size // 2
        sample = torch.arange(self.size, device=self.first.device) - self.size // 2
        towards = torch.where(longer_above[:, None], sample, -sample)
        return ((towards + half + 1) / (2 * half + 2).clamp(min=1)).clamp(0, 1) * self.known

    def part(self, frames: slice) -> Extent:
        """Take some frames."""
        return self if len(self.first) == 1 else Extent(self.first[frames], self.last[frames], self.size)


def measured_span(measured: torch.Tensor) -> tuple[int, int]:
    """Find the outermost samples of an axis that count as measured.

    Parameters
    ----------
    measured
        ``(sample,)`` bool.

    Returns
    -------
    tuple of int
        First and last, both included. At an end of which no more is missing than between measured samples, that is the
        end itself: undersampling leaves gaps there too. The whole axis where nothing was measured.
    """
    samples = torch.nonzero(measured).flatten()
    if not len(samples):
        return 0, len(measured) - 1
    first, last = int(samples[0]), int(samples[-1])
    gap = int(samples.diff().max()) if len(samples) > 1 else 1
    return (0 if first < gap else first), (len(measured) - 1 if len(measured) - 1 - last < gap else last)


def partial_extents(mask: torch.Tensor, columns: torch.Tensor | None = None) -> dict[int, Extent]:
    """Find the axes of which one side was measured further out than the other.

    Parameters
    ----------
    mask
        ``(frame, ky)`` bool, True where a line was measured.
    columns
        ``(kx,)`` bool, True where the readouts were; None is everywhere.

    Returns
    -------
    dict
        By axis of an image ``(frame, y, x)``, -2 or -1; empty for k-space that is complete, or cut alike on both sides.
    """
    found: dict[int, Extent] = {}
    n_lines = mask.shape[1]
    if _lopsided(mask.any(0)):
        low, high = measured_span(mask.any(0))
        # Frames with shifted lines begin and end at different lines; one without lines has nothing to complete.
        line = torch.arange(n_lines, device=mask.device)
        first = torch.where(mask, line, n_lines).amin(1)
        last = torch.where(mask, line, -1).amax(1)
        empty = ~mask.any(1)
        first = torch.where(empty | torch.tensor(low == 0, device=mask.device), 0, first)
        last = torch.where(empty | torch.tensor(high == n_lines - 1, device=mask.device), n_lines - 1, last)
        found[-2] = Extent(first, last, n_lines)
    if columns is not None and _lopsided(columns):
        low, high = measured_span(columns)
        device = mask.device
        found[-1] = Extent(torch.tensor([low], device=device), torch.tensor([high], device=device), len(columns))
    return found


def pocs(image: torch.Tensor, extents: dict[int, Extent], *, iterations: int = _ITERATIONS) -> torch.Tensor:
    """Project in turn on the images with the phase of the symmetric part, and on those with the known samples.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64: what a method made of the measured part.
    extents
        As `partial_extents` gives them.
    iterations
        How often. With the true phase, each time half of what is still missing is added.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64; its k-space is that of `image` except for samples that were not measured but
        have a measured mirror image.

    Notes
    -----
    Haacke et al., J Magn Reson 1991, doi:10.1016/0022-2364(91)90253-P, who take the magnitude where we take the real
    part: fat and water of opposite sign within a few pixels are not in the slow phase.
    """
    axes = tuple(extents)
    known = _along(image, {axis: extent.known for axis, extent in extents.items()}) > 0
    missing = _mirrored(known, axes) & ~known
    kspace = fft(image, axes)
    phase = _slow_phase(kspace, extents)
    for _ in range(iterations):
        symmetric = fft((image * phase.conj()).real * phase, axes)
        image = ifft(torch.where(missing, symmetric, kspace), axes)
    return image


def homodyne(image: torch.Tensor, extents: dict[int, Extent]) -> torch.Tensor:
    """Weigh what has no measured mirror image twice, and keep the part that has the phase of the symmetric part.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64: what a method made of the measured part.
    extents
        As `partial_extents` gives them.

    Returns
    -------
    torch.Tensor
        ``(frame, y, x)`` complex64, real but for the slow phase.

    Notes
    -----
    Noll et al., IEEE Trans Med Imaging 1991, doi:10.1109/42.79473. The weight of a sample and that of its mirror image
    add up to two, with a linear ramp from 0 to 2 over the symmetric part.
    """
    axes = tuple(extents)
    ramp = _along(image, {axis: extent.ramp for axis, extent in extents.items()})
    both = ramp + _mirrored(ramp, axes)
    weight = torch.where(both > 0, 2 * ramp / both.clamp(min=torch.finfo(both.dtype).tiny), 0)
    kspace = fft(image, axes)
    phase = _slow_phase(kspace, extents)
    return (ifft(weight * kspace, axes) * phase.conj()).real * phase


def complete(image: torch.Tensor, extents: dict[int, Extent], how: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Complete the k-space of an image where its centre allows it.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64: what a method made of the measured part.
    extents
        As `partial_extents` gives them.
    how
        ``pocs`` or ``homodyne``.

    Returns
    -------
    tuple
        The image ``(frame, y, x)``, the very same where there is nothing to do, and notes on what was done.
    """
    if not extents or not len(image):
        return image, ()
    # With neither side missing there is nothing to complete; with too short a side there is no phase.
    possible = torch.ones(len(image), dtype=torch.bool, device=image.device)
    for extent in extents.values():
        possible &= extent.symmetric >= _FEWEST
    notes = []
    names = " and ".join({-2: "ky", -1: "kx"}[axis] for axis in extents)
    if bool(possible.any()):
        notes.append(f"{how} completes the k-space along {names}, of which one side was not measured")
    if not bool(possible.all()):
        count = int((~possible).sum())
        notes.append(
            f"the k-space of {count} of {len(image)} frames stays incomplete along {names}: fewer than {_FEWEST} "
            "samples were measured on one side of its centre"
        )
    method = pocs if how == "pocs" else homodyne
    completed = image.clone()
    for start in range(0, len(image), _FRAMES):
        frames = slice(start, start + _FRAMES)
        part = {axis: extent.part(frames) for axis, extent in extents.items()}
        treated = method(image[frames], part)
        completed[frames] = torch.where(possible[frames, None, None], treated, image[frames])
    return completed, tuple(notes)


def _lopsided(measured: torch.Tensor) -> bool:
    """Whether one side reaches further out, by more than what an even number of samples has more on the first."""
    first, last = measured_span(measured)
    centre = len(measured) // 2
    return abs((centre - first) - (last - centre)) > 1


def _along(image: torch.Tensor, weights: dict[int, torch.Tensor]) -> torch.Tensor:
    """Multiply weights ``(frame, sample)`` of the axes to one that fits the image."""
    product = torch.ones((), device=image.device)
    for axis, weight in weights.items():
        product = product * (weight[:, :, None] if axis == -2 else weight[:, None, :])
    return product


def _mirrored(array: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Bring every sample k of the axes to -k; the first of an even number, which has no partner, stays."""
    flipped = torch.flip(array, axes)
    even = tuple(axis for axis in axes if array.shape[axis] % 2 == 0)
    return torch.roll(flipped, (1,) * len(even), even) if even else flipped


def _slow_phase(kspace: torch.Tensor, extents: dict[int, Extent]) -> torch.Tensor:
    """Phase factor of the image of the symmetric part; `kspace` is transformed along the partial axes only."""
    window = _along(kspace, {axis: extent.window for axis, extent in extents.items()})
    smooth = ifft(kspace * window, tuple(extents))
    return torch.polar(torch.ones_like(smooth.real), smooth.angle())
