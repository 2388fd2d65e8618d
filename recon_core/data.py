"""Arrays with meaning: a slice of cine k-space goes into the core, a reconstruction comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recon_core.errors import DataError
from recon_core.off_grid.trajectory import check_positions

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from recon_core.off_grid.running import RunningSeries
    from recon_core.physics.consistency import DataConsistency
    from recon_core.physics.sense import Encoding
    from recon_core.trust.ranges import Sampling


@dataclass(frozen=True)
class Receiver:
    """What is known of the coils of a slice and of their noise."""

    colouring: NDArray[np.complex64] | None = None
    """``(receive coil, coil)`` complex64, the inverse of the noise whitening: its product with the coils of the k-space
    gives those of the receiver, in any unit. With it the image is weighted as the root sum of squares of the receive
    coils; None leaves it as coil maps of unit norm give it."""
    columns: NDArray[np.bool_] | None = None
    """``(kx,)`` bool, True where the readouts were measured: not so on one side of an asymmetric echo. None is
    everywhere."""
    whitened: bool = False
    """True where the noise has unit standard deviation though no `colouring` says how it was whitened."""
    scaled: bool = True
    """Whether whitened data are in units of the noise; not so where it was measured without dwell times."""

    @property
    def is_white(self) -> bool:
        """Whether the noise of the coils is white, as far as anything is known of it."""
        return self.colouring is not None or self.whitened

    def check(self, coils: int, columns: int) -> None:
        """Refuse arrays that do not belong to k-space of so many coils and columns.

        Raises
        ------
        DataError
            If axes disagree.
        """
        if self.colouring is not None and (self.colouring.ndim != 2 or self.colouring.shape[1] != coils):
            raise DataError(f"colouring must be (receive coil, coil) = (any, {coils}), got {self.colouring.shape}")
        if self.columns is not None and self.columns.shape != (columns,):
            raise DataError(f"columns must be (kx,) = {(columns,)}, got {self.columns.shape}")


@dataclass(frozen=True)
class CtImage:
    """CT of a slice on the grid of its image."""

    image: NDArray[np.float32]
    """``(y, x)`` float32 in [0, 1]."""
    cover: NDArray[np.bool_] | None = None
    """``(y, x)`` bool, True where `image` holds CT; None is everywhere."""

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse arrays that are not of a shape ``(y, x)``.

        Raises
        ------
        DataError
            If they are not.
        """
        for name, plane in (("ct", self.image), ("ct_cover", self.cover)):
            if plane is not None and plane.shape != shape:
                raise DataError(f"{name} must be (y, x) = {shape}, got {plane.shape}")


@dataclass(frozen=True)
class Trajectory:
    """Where the samples of a slice lie that follow no Cartesian grid."""

    positions: NDArray[np.float32]
    """``(frame, readout, sample, 2)`` float32 in cycles per pixel, -0.5 to 0.5, in the order (x, y)."""
    matrix: tuple[int, int]
    """``(y, x)`` pixels of the image."""
    density: NDArray[np.float32] | None = None
    """``(frame, readout, sample)`` float32: the part of k-space that each sample has, in any unit; None finds it out,
    which takes straight spokes."""

    def after(self, first: int) -> Trajectory:
        """That of the frames from one on."""
        density = None if self.density is None else self.density[first:]
        return replace(self, positions=self.positions[first:], density=density)

    def check(self, shape: tuple[int, ...], mask: NDArray[np.bool_]) -> None:
        """Refuse arrays that do not belong to samples ``(frame, readout, sample)``, or that place them nowhere.

        Raises
        ------
        DataError
            If axes disagree, or positions cannot be.
        """
        if self.positions.shape != (*shape, 2):
            raise DataError(
                f"positions must be (frame, readout, sample, 2) = {(*shape, 2)}, got {self.positions.shape}"
            )
        if self.density is not None and self.density.shape != shape:
            raise DataError(f"density must be (frame, readout, sample) = {shape}, got {self.density.shape}")
        check_positions(self.positions, mask)


@dataclass(frozen=True)
class CineSlice:
    """All k-space of one slice, prepared: noise-whitened, readout oversampling removed, lines in place."""

    kspace: NDArray[np.complex64]
    """``(frame, coil, ky, kx)`` complex64, centre at ``N//2`` on both axes, or with a `trajectory` ``(frame, coil,
    readout, sample)``; zero where nothing was measured, scaled so that the noise of every coil has unit standard
    deviation in real and imaginary part when it was whitened."""
    mask: NDArray[np.bool_]
    """``(frame, ky)`` bool, True where a line or readout was measured."""
    calibration: NDArray[np.complex64] | None = None
    """``(coil, ky, kx)`` complex64 lines for the coil maps when they are not part of `kspace` (a separate reference
    scan), zero where nothing was measured; None lets the maps come from `kspace` itself."""
    receiver: Receiver = Receiver()
    """The coils and their noise."""
    ct: CtImage | None = None
    """CT of the same slice, for methods that take one."""
    unfit: str = ""
    """Why the slice must go to the fallback instead of the method, such as a CT that it lacks; empty if it need not."""
    maps: NDArray[np.complex64] | None = None
    """``(coil, y, x)`` complex64 coil maps to use; None estimates them from the reference or from `kspace`."""
    context: int = 0
    """How many of the first frames only help with the others: no images of them are wanted."""
    periodic: bool = True
    """The frames are those of a cycle, the first following on the last; not so in real time."""
    noise_share: float | None = 1.0
    """Variance of the noise of a line over that of a single readout, mean over the measured lines: 1 over the number of
    averages. None where it is not known, because lines were interpolated between readouts."""
    trajectory: Trajectory | None = None
    """Where the samples lie; None is the Cartesian grid."""
    series: RunningSeries | None = None
    """What earlier windows of the slice left, where it comes in windows and its samples follow no grid; a
    reconstruction adds to it."""
    points: NDArray[np.bool_] | None = None
    """``(frame, ky, kx)`` bool, True where a sample was measured; None finds from the zeros in measured lines whether
    these are whole (`recon_core.points.find`)."""

    @property
    def plane(self) -> tuple[int, int]:
        """Pixels ``(y, x)`` of the image."""
        rows, columns = self.kspace.shape[2:] if self.trajectory is None else self.trajectory.matrix
        return rows, columns

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises
        ------
        DataError
            If axes disagree.
        """
        if self.kspace.ndim != 4 or self.kspace.dtype != np.complex64:
            raise DataError(
                f"k-space must be (frame, coil, ky, kx) complex64, got {self.kspace.shape} {self.kspace.dtype}"
            )
        frames, coils, ny, nx = self.kspace.shape
        if self.mask.shape != (frames, ny) or self.mask.dtype != np.bool_:
            raise DataError(f"mask must be (frame, ky) = {(frames, ny)} bool, got {self.mask.shape} {self.mask.dtype}")
        for name, axes, array in (
            ("calibration", "(coil, ky, kx)", self.calibration),
            ("maps", "(coil, y, x)", self.maps),
        ):
            if array is not None and array.shape != (coils, *self.plane):
                raise DataError(f"{name} must be {axes} = {(coils, *self.plane)}, got {array.shape}")
        if self.trajectory is not None:
            self.trajectory.check((frames, ny, nx), self.mask)
        points = self.points
        if points is not None and (points.shape != (frames, ny, nx) or points.dtype != np.bool_):
            expected = f"(frame, ky, kx) = {(frames, ny, nx)} bool"
            raise DataError(f"points must be {expected}, got {points.shape} {points.dtype}")
        if not 0 <= self.context < max(1, frames):
            raise DataError(f"context must leave frames to reconstruct, got {self.context} of {frames} frames")
        self.receiver.check(coils, nx)
        if self.ct is not None:
            self.ct.check(self.plane)


@dataclass(frozen=True)
class Reconstruction:
    """What a method makes of a `CineSlice`."""

    image: NDArray[np.complex64]
    """``(frame, y, x)`` complex64 of the frames after the context, same field of view as the k-space, in the units of
    the k-space (centred orthonormal FFT, coil maps of unit norm), times the shading of the receive coils, about one,
    where the slice has a `Receiver.colouring`; or in those of `units`."""
    maps: NDArray[np.complex64]
    """``(coil, y, x)`` complex64 coil maps that were used."""
    method: str
    """Name of the method that made it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    notes: tuple[str, ...] = ()
    """Sentences for the image comment and the log: what differed from what was asked."""
    g_factor: NDArray[np.float32] | None = None
    """``(y, x)`` float32 noise amplification, when it was asked for."""
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Other images that the method made, by name: ``uncertainty`` ``(frame, y, x)`` float32 in the units of `image`,
    ``fused`` ``(y, x)`` float32 in no unit."""
    doubts: tuple[str, ...] = ()
    """What speaks against `image`: the scan is not like the training of the method, the image contradicts the data."""
    beside: Reconstruction | None = None
    """What the fallback made of the same slice, where `image` is doubtful and both were asked for, or where
    `extra_series` asks for it or for the difference."""
    zero_filled: Reconstruction | None = None
    """The zero-filled image of the same slice, where `extra_series` asks for it and `image` is another."""
    units: str = "relative"
    """``snr`` if `image` is in units of the standard deviation of the noise in its real (or imaginary) part."""

    def __str__(self) -> str:
        """What was done, in words: images, method, units, and every note."""
        frames, rows, columns = self.image.shape
        head = f"{frames} frames of {rows} x {columns} pixels with {self.method}, {self.units} units"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class HybridSlice:
    """What a method works from: a slice on the device, in image space along the readout and k-space along ky."""

    whole_lines: ClassVar[bool] = True
    """Readouts are lines of the grid, measured as a whole."""
    whole_average: ClassVar[bool] = False
    """The average of all that was measured has the whole k-space of the grid."""

    hybrid: torch.Tensor
    """``(frame, coil, ky, x)`` complex64, zero where nothing was measured."""
    mask: torch.Tensor
    """``(frame, ky)`` bool."""
    maps: torch.Tensor
    """``(coil, y, x)`` complex64 of unit norm over the coils, or zero; iterative methods also take a set per frame."""
    reference: torch.Tensor
    """``(coil, ky, x)`` complex64: lines of a separate reference scan, or the average of the frames."""
    measured: torch.Tensor
    """``(ky,)`` bool, True where `reference` holds a line."""
    noise_variance: float | None = None
    """Variance of a complex sample of `hybrid`, as seen there where that contradicts what was stated; None where it is
    not known because nothing was whitened."""
    notes: list[str] = field(default_factory=list)
    """Methods add sentences on what they had to do differently."""
    doubts: list[str] = field(default_factory=list)
    """Methods add what speaks against sending their image."""
    ct: torch.Tensor | None = None
    """``(y, x)`` float32 in [0, 1]: CT of the same slice on the grid of the image, for methods that take one."""
    ct_cover: torch.Tensor | None = None
    """``(y, x)`` bool, True where `ct` holds CT; None is everywhere."""
    start: torch.Tensor | None = None
    """``(frame, y, x)`` complex64: the image that a network starts from; None is the zero-filled one."""
    start_deviation: torch.Tensor | None = None
    """``(frame, y, x)`` float32: standard deviation that the real part of `start` is left with; None is not known."""
    before: torch.Tensor | None = None
    """``(y, x)`` complex64: what the method made of the frame before the first one, in a series; None is not known."""
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    """Methods add other images that they made, by name."""
    periodic: bool = True
    """The first frame follows on the last."""
    factors: torch.Tensor | None = None
    """``(frame,)`` complex64: what all frames as they came were multiplied by, to be alike; None is nothing."""

    def operator(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> Encoding:
        """The encoding of all frames.

        Parameters
        ----------
        implementation
            Kernels: ``torch``, ``cupy`` or ``auto``.
        maps
            Other coil maps than those of the slice, ``(coil, y, x)``.
        """
        from recon_core.physics.sense import SenseOperator

        return SenseOperator(self.maps if maps is None else maps, self.mask, implementation=implementation)

    def consistency(self, implementation: str = "auto", maps: torch.Tensor | None = None) -> DataConsistency:
        """The data as networks take them; parameters as for `operator`."""
        from recon_core.physics.consistency import DataConsistency

        maps = self.maps if maps is None else maps
        return DataConsistency(maps, self.mask, self.hybrid, implementation=implementation)

    def sampling(self, snr: float | None = None) -> Sampling:
        """The scan as a network sees it, with its signal-to-noise ratio where that is known."""
        from recon_core.trust.ranges import Sampling

        return Sampling.of(self.mask.cpu().numpy(), self.hybrid.shape[1], self.hybrid.shape[3], snr)

    @property
    def counted_samples(self) -> torch.Tensor:
        """``(frame,)`` float32: samples of a coil in each frame, as many as have the noise of `noise_variance`."""
        return self.mask.sum(-1) * float(self.hybrid.shape[-1])

    def zero_filled(self, implementation: str = "auto") -> torch.Tensor:
        """The image ``(frame, y, x)`` of the data as they are: A^H y."""
        return self.operator(implementation).adjoint(self.hybrid)

    def select(self, frames: slice | torch.Tensor) -> HybridSlice:
        """The data of some frames, without their start."""
        return replace(self, hybrid=self.hybrid[frames], mask=self.mask[frames], start=None, start_deviation=None)

    def select_started(self, frames: torch.Tensor) -> HybridSlice:
        """The data of some frames ``(frame,)`` int64, with their start, as a network takes them."""
        start, deviation = (None if part is None else part[frames] for part in (self.start, self.start_deviation))
        return replace(self.select(frames), start=start, start_deviation=deviation)

    def average(self) -> HybridSlice:
        """One frame of all that was measured, with the mean of maps that differ from frame to frame."""
        from recon_core.coils.calibration import time_average

        average, measured = time_average(self.hybrid, self.mask)
        maps = self.maps if self.maps.ndim == 3 else self.maps.mean(0)
        return replace(self, hybrid=average[None], mask=measured[None], maps=maps, start=None, start_deviation=None)

    def of_reference(self) -> HybridSlice:
        """One frame of the lines of the reference, on the grid."""
        return HybridSlice(self.reference[None], self.measured[None], self.maps, self.reference, self.measured)

    def average_images(self) -> torch.Tensor:
        """Coil images ``(coil, y, x)`` of all that was measured."""
        from recon_core.physics.fourier import ifft

        return ifft(self.average().hybrid[0], (-2,))

    def average_image(self) -> torch.Tensor:
        """Image ``(y, x)`` of all that was measured."""
        return (self.maps.conj() * self.average_images()).sum(0)

    @property
    def average_lines(self) -> torch.Tensor:
        """``(ky,)`` bool, True where that average holds a line."""
        return self.mask.any(0)

    def fewer_maps(self, lost: float) -> torch.Tensor:
        """Maps ``(combination, y, x)`` of few combinations of the coils, with which A^H A is as good as the same.

        Parameters
        ----------
        lost
            Share of the energy of all maps that may be left out.
        """
        from recon_core.coils.columns import combine_columnwise

        return combine_columnwise(self.maps, lost)

    def noise_deviation(self) -> float:
        """Standard deviation of a complex sample: as stated, or else as it is seen; NaN if neither is known."""
        return 2**0.5 * self.seen_noise() if self.noise_variance is None else math.sqrt(self.noise_variance)

    def seen_noise(self) -> float:
        """Standard deviation of real and imaginary part of the samples far from the centre; NaN without any."""
        from recon_core.physics.hybrid_noise import hybrid_noise_deviation

        return hybrid_noise_deviation(self.hybrid, self.mask)

    @property
    def sampled(self) -> float:
        """Share of the full grid that was measured: the mean of the diagonal of A^H A."""
        return float(self.mask.float().mean())

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together.

        Raises
        ------
        DataError
            If axes or devices disagree.
        """
        frames, coils, ny, nx = self.hybrid.shape
        for name, wanted in (
            ("mask", (frames, ny)),
            ("maps", (coils, ny, nx)),
            ("reference", (coils, ny, nx)),
            ("measured", (ny,)),
            ("ct", (ny, nx)),
            ("ct_cover", (ny, nx)),
            ("start", (frames, ny, nx)),
            ("start_deviation", (frames, ny, nx)),
            ("before", (ny, nx)),
        ):
            tensor: torch.Tensor | None = getattr(self, name)
            if tensor is None:
                continue
            per_frame = name == "maps" and tensor.shape == (frames, *wanted)
            if tensor.shape != wanted and not per_frame:
                raise DataError(
                    f"{name} must be {wanted} with data (frame, coil, ky, x) = {tuple(self.hybrid.shape)}, "
                    f"got {tuple(tensor.shape)}"
                )
            if tensor.device != self.hybrid.device:
                raise DataError(f"{name} must be on {self.hybrid.device} like the data, got {tensor.device}")
