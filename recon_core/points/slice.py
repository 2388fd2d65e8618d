"""A slice with a mask of points: what the methods need of it, as of any other."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from recon_core.coils.columns import combine_everywhere
from recon_core.data import HybridSlice
from recon_core.errors import DataError
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.noise_level import UNIT_MEDIAN
from recon_core.physics.sense import linear
from recon_core.stopping import check
from recon_core.trust.ranges import Sampling

_COMPLETE = 0.9  # share of the points with which an average is complete
_LEAST_CENTRE = 6  # points on either side that coil maps can be made from
_OUTER = 0.8  # of the way to the edges of k-space: beyond, signal is weakest


class PointSenseOperator:
    """A = M F S for a mask that varies along kx too, in hybrid space as `recon_core.physics.sense.SenseOperator`.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64, or ``(frame, coil, y, x)``.
    points
        ``(frame, ky, kx)`` bool, True where a sample was measured.
    """

    def __init__(self, maps: torch.Tensor, points: torch.Tensor) -> None:
        self._maps = maps.detach()
        self._points = points
        self._stored = torch.fft.ifftshift(points, (-2, -1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement: ``(frame, y, x)`` to ``(frame, coil, ky, x)``."""
        return linear(image, self._forward, self._adjoint)

    def adjoint(self, hybrid: torch.Tensor) -> torch.Tensor:
        """Combine the coils of the measured samples: ``(frame, coil, ky, x)`` to ``(frame, y, x)``."""
        return linear(hybrid, self._adjoint, self._forward)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A to ``(frame, y, x)``."""
        return linear(image, self._normal, self._normal)

    def select(self, frames: slice) -> PointSenseOperator:
        """Take some consecutive frames."""
        chosen = copy(self)
        chosen._points, chosen._stored = self._points[frames], self._stored[frames]
        if self._maps.ndim > 3:
            chosen._maps = self._maps[frames]
        return chosen

    def _of(self, frame: int) -> torch.Tensor:
        check()
        return self._maps[frame] if self._maps.ndim > 3 else self._maps

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        coils = (fft(self._of(frame) * one, (-2, -1)) * self._points[frame] for frame, one in enumerate(image))
        return torch.stack([ifft(one, (-1,)) for one in coils])

    def _adjoint(self, hybrid: torch.Tensor) -> torch.Tensor:
        images = torch.empty_like(hybrid[:, 0])
        for frame, one in enumerate(hybrid):
            coils = ifft(torch.where(self._points[frame], fft(one, (-1,)), 0), (-2, -1))
            images[frame] = (self._of(frame).conj() * coils).sum(0)
        return images

    def _normal(self, image: torch.Tensor) -> torch.Tensor:
        # the shifts of the centred transforms cancel, with the mask in the order of the transform
        result = torch.empty_like(image, memory_format=torch.contiguous_format)
        for frame, one in enumerate(image):
            maps = self._of(frame)
            kspace = torch.fft.fft2(maps * one).mul_(self._stored[frame])
            result[frame] = (maps.conj() * torch.fft.ifft2(kspace)).sum(0)
        return result


@dataclass(frozen=True)
class PointSlice(HybridSlice):
    """A slice of which readouts are not whole lines; `hybrid` has them with zeros where nothing was measured."""

    whole_lines: ClassVar[bool] = False

    points: torch.Tensor | None = None
    """``(frame, ky, kx)`` bool, True where a sample was measured."""

    @property
    def sampling_mask(self) -> torch.Tensor:
        """``(frame, ky, kx)`` bool."""
        if self.points is None:
            raise DataError("a slice with a mask of points needs the points")
        return self.points

    def sampling(self, snr: float | None = None) -> Sampling:
        """The scan as a network sees it."""
        return Sampling.of(self.sampling_mask.cpu().numpy(), self.hybrid.shape[1], self.hybrid.shape[3], snr)

    @property
    def counted_samples(self) -> torch.Tensor:
        """``(frame,)`` float32: the points."""
        return self.sampling_mask.sum((1, 2)).float()

    @property
    def sampled(self) -> float:
        """Share of the full grid that was measured."""
        return float(self.sampling_mask.float().mean())

    def operator(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> PointSenseOperator:
        """The encoding of all frames; `implementation` makes no difference."""
        del implementation
        return PointSenseOperator(self.maps if maps is None else maps, self.sampling_mask)

    def consistency(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> DataConsistency:
        """The data as networks take them, frame by frame."""
        maps = self.maps if maps is None else maps
        return DataConsistency.through(self.operator(implementation, maps), maps, self.hybrid)

    def select(self, frames: slice | torch.Tensor) -> PointSlice:
        """The data of some frames, without their start."""
        return replace(
            self,
            hybrid=self.hybrid[frames],
            mask=self.mask[frames],
            points=self.sampling_mask[frames],
            start=None,
            start_deviation=None,
        )

    def average(self) -> PointSlice:
        """One frame of all that was measured, with the mean of maps that differ from frame to frame."""
        kspace, measured = average_of_points(fft(self.hybrid, (-1,)), self.sampling_mask)
        maps = self.maps if self.maps.ndim == 3 else self.maps.mean(0)
        return replace(
            self,
            hybrid=ifft(kspace, (-1,))[None],
            mask=measured.any(-1)[None],
            points=measured[None],
            maps=maps,
            start=None,
            start_deviation=None,
        )

    def of_reference(self) -> HybridSlice:
        """One frame of what is known of all frames: the reference is low in resolution here, the average is not."""
        return self.average()

    def fewer_maps(self, lost: float) -> torch.Tensor:
        """Maps of few combinations of the coils, the same everywhere: no column is on its own."""
        return combine_everywhere(self.maps, lost)

    def seen_noise(self) -> float:
        """Standard deviation of real and imaginary part of the samples far from the centre; NaN without any."""
        n_y, n_x = self.sampling_mask.shape[1:]
        edges = [(torch.arange(n, device=self.hybrid.device) - n // 2).abs() * 2 / n for n in (n_y, n_x)]
        outer = self.sampling_mask & (torch.maximum(edges[0][:, None], edges[1]) > _OUTER)
        if not bool(outer.any()):
            return math.nan
        samples = fft(self.hybrid, (-1,)).movedim(1, -1)[outer].abs()
        medians = samples.median(0).values[samples.any(0)]
        return float(medians.min()) / UNIT_MEDIAN if len(medians) else math.nan


def with_points(data: HybridSlice, points: torch.Tensor) -> PointSlice:
    """A slice of which only these points ``(frame, ky, kx)`` were measured; a note says how many."""
    found = PointSlice(**{item.name: getattr(data, item.name) for item in fields(HybridSlice)}, points=points)
    share = 100 * found.sampled
    found.notes.append(f"a mask of points, not of whole lines: {share:.3g} % of k-space were measured")
    return found


def average_of_points(kspace: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average every sample over the frames that measured it.

    Parameters
    ----------
    kspace
        ``(frame, coil, ky, kx)`` complex64, zero where nothing was measured.
    points
        ``(frame, ky, kx)`` bool.

    Returns
    -------
    tuple of torch.Tensor
        Average ``(coil, ky, kx)`` complex64, and ``(ky, kx)`` bool, True where measured at all.
    """
    counts = points.sum(0)
    return kspace.sum(0) / counts.clamp(min=1), counts > 0


def reference_of_points(kspace: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference ``(coil, ky, x)`` of a slice with a mask of points, and its lines ``(ky,)``.

    That is the average, or only its complete centre where the rest is not: it would fold into the coil maps. The
    parameters are those of `average_of_points`.
    """
    average, measured = average_of_points(kspace, points)
    if float(measured.float().mean()) < _COMPLETE:
        n_y, n_x = measured.shape
        half = 0
        while half < min(n_y, n_x) // 2 - 1 and _share(measured, half + 1) >= _COMPLETE:
            half += 1
        if half >= _LEAST_CENTRE:
            window = torch.zeros(n_x, device=points.device)
            window[n_x // 2 - half : n_x // 2 + half + 1] = torch.hann_window(2 * half + 3, False)[1:-1]
            rows = torch.zeros(n_y, dtype=torch.bool, device=points.device)
            rows[n_y // 2 - half : n_y // 2 + half + 1] = True
            average, measured = average * window * rows[:, None], measured & rows[:, None]
    return ifft(average, (-1,)), measured.any(-1)


def _share(measured: torch.Tensor, half: int) -> float:
    """Share of the points of a central square that were measured."""
    n_y, n_x = measured.shape
    square = measured[n_y // 2 - half : n_y // 2 + half + 1, n_x // 2 - half : n_x // 2 + half + 1]
    return float(square.float().mean())
