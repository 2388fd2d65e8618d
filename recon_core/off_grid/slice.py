"""A slice of which the samples follow no Cartesian grid: what the methods need of it, as of any other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch

from recon_core.coils.columns import combine_everywhere
from recon_core.data import HybridSlice
from recon_core.errors import DataError
from recon_core.off_grid.nufft import NufftSenseOperator
from recon_core.off_grid.trajectory import are_straight
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import ifft
from recon_core.physics.noise_level import UNIT_MEDIAN
from recon_core.trust.ranges import Sampling

_OUTER = 0.8  # of the largest radius: beyond, signal is weakest


@dataclass(frozen=True)
class OffGridSlice(HybridSlice):
    """Samples at any positions, each times a weight that is part of the encoding too.

    `hybrid` is ``(frame, coil, readout, sample)`` complex64, samples times their weights, and `mask` ``(frame,
    readout)``. `maps`, `reference` and `measured` are on the grid of the image, as those of any slice: the reference is
    the gridded average of all frames. `noise_variance` is that of a sample with the largest weight.

    With weights of one, the samples near the centre, which lie many times denser than the grid, would count as often,
    and the conjugate gradients would see to little else for long. So those within a cell of the grid count as one.
    """

    whole_average: ClassVar[bool] = True

    positions: torch.Tensor | None = None
    """``(frame, readout, sample, 2)`` float32 in cycles per pixel, in the order (x, y)."""
    weights: torch.Tensor | None = None
    """``(frame, readout, sample)`` float32, zero where nothing was measured."""
    gridding: torch.Tensor | None = None
    """``(frame, readout, sample)`` float32: factors of the weighted samples that make A^H the gridded image."""

    @property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.positions is None or self.weights is None or self.gridding is None:
            raise DataError("a slice off the grid needs positions, weights and gridding factors of its samples")
        return self.positions, self.weights, self.gridding

    def operator(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> NufftSenseOperator:
        """The encoding of all frames; `implementation` makes no difference."""
        del implementation
        positions, weights, _ = self._places
        return NufftSenseOperator(self.maps if maps is None else maps, positions, weights)

    def consistency(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> DataConsistency:
        """The data as networks take them, through the non-uniform transform."""
        del implementation
        maps = self.maps if maps is None else maps
        return DataConsistency.through(self.operator(maps=maps), maps, self.hybrid)

    def zero_filled(self, implementation: str = "auto") -> torch.Tensor:
        """The gridded image ``(frame, y, x)``, every sample times its part of k-space."""
        return self.operator(implementation).adjoint(self.hybrid * self._places[2][:, None])

    def select(self, frames: slice | torch.Tensor) -> OffGridSlice:
        """The data of some frames, without their start."""
        positions, weights, gridding = (part[frames] for part in self._places)
        return replace(
            self,
            hybrid=self.hybrid[frames],
            mask=self.mask[frames],
            positions=positions,
            weights=weights,
            gridding=gridding,
            start=None,
            start_deviation=None,
        )

    def average(self) -> OffGridSlice:
        """One frame of all readouts, which counts as much as a frame does on average."""
        positions, weights, gridding = self._places
        frames = len(self.mask)
        scale = frames**-0.5
        return replace(
            self,
            hybrid=self.hybrid.movedim(1, 0).flatten(1, 2)[None] * scale,
            mask=self.mask.reshape(1, -1),
            positions=positions.flatten(0, 1)[None],
            weights=weights.flatten(0, 1)[None] * scale,
            gridding=gridding.flatten(0, 1)[None],
            start=None,
            start_deviation=None,
        )

    def average_images(self) -> torch.Tensor:
        """Coil images ``(coil, y, x)`` of the reference, which is that of all readouts."""
        return ifft(self.reference, (-2,))

    @cached_property
    def _average_image(self) -> torch.Tensor:
        return super().average_image()

    def average_image(self) -> torch.Tensor:
        """Image ``(y, x)`` of the reference, made once."""
        return self._average_image

    @property
    def average_lines(self) -> torch.Tensor:
        """``(ky,)`` bool: all of them."""
        return self.measured

    def sampling(self, snr: float | None = None) -> Sampling:
        """The scan as a network sees it, on the grid of the image."""
        positions, _, _ = self._places
        n_y, n_x = self.maps.shape[-2:]
        return Sampling.off_grid(
            self.mask.cpu().numpy(),
            self.hybrid.shape[1],
            (n_y, n_x),
            straight=are_straight(positions[self.mask].cpu().numpy()),
            share=self.sampled,
            snr=snr,
            repeats=bool((self.mask == self.mask[:1]).all()) and bool((positions == positions[:1]).all()),
        )

    @property
    def counted_samples(self) -> torch.Tensor:
        """``(frame,)`` float32: the sum of their powers, over the largest."""
        power = self._places[1].square()
        return power.sum((1, 2)) / power.max().clamp(min=1e-12)

    def fewer_maps(self, lost: float) -> torch.Tensor:
        """Maps of few combinations of the coils, the same everywhere: off the grid no column is on its own."""
        return combine_everywhere(self.maps, lost)

    def seen_noise(self) -> float:
        """Standard deviation of real and imaginary part of a sample far out, times the largest weight."""
        positions, weights, _ = self._places
        radius = torch.linalg.vector_norm(positions, dim=-1)
        used = weights > 0
        if not bool(used.any()):
            return math.nan
        outer = used & (radius > _OUTER * radius[used].max())
        samples = self.hybrid.movedim(1, -1)[outer].abs() / weights[outer][:, None]
        medians = samples.median(0).values[samples.any(0)]
        return float(medians.min() * weights.max()) / UNIT_MEDIAN if len(medians) else math.nan

    @property
    def sampled(self) -> float:
        """Mean of the diagonal of A^H A."""
        return self.operator().share

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together.

        Raises
        ------
        DataError
            If axes disagree.
        """
        frames, coils, readouts, samples = self.hybrid.shape
        n_y, n_x = self.maps.shape[-2:]
        for name, found, wanted in (
            ("mask", self.mask, (frames, readouts)),
            ("maps", self.maps, (coils, n_y, n_x)),
            ("reference", self.reference, (coils, n_y, n_x)),
            ("measured", self.measured, (n_y,)),
            ("positions", self._places[0], (frames, readouts, samples, 2)),
            ("weights", self._places[1], (frames, readouts, samples)),
            ("gridding", self._places[2], (frames, readouts, samples)),
        ):
            if found.shape != wanted:
                raise DataError(f"{name} must be {wanted}, got {tuple(found.shape)}")
