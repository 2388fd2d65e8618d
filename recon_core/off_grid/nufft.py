"""The encoding of a slice of which the samples follow no grid: coil maps and a non-uniform Fourier transform."""

from __future__ import annotations

import itertools
from copy import copy

import torch

from recon_core.errors import DataError
from recon_core.off_grid.transforms import TOLERANCE, choose_transforms, grid_samples, sample_image
from recon_core.physics.sense import linear
from recon_core.physics.threads import threads
from recon_core.stopping import check

# Of a kernel, and how much finer than the image finufft's grid is: a third of the time of its own choice, error 1e-5.
_KERNEL_TOLERANCE, _KERNEL_GRID = 1e-5, 1.5


class NufftSenseOperator:
    """A = W F S: image to samples at any positions, frame by frame, with a weight for each.

    The counterpart of `recon_core.physics.sense.SenseOperator`, with the same operations in the same units: with
    samples and weights of one on a Cartesian grid it is that operator. All are differentiable in the array given.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64.
    positions
        ``(frame, readout, sample, 2)`` float32 in cycles per pixel, in the order (x, y).
    weights
        ``(frame, readout, sample)`` float32 factors of the samples, zero where nothing was measured.
    tolerance
        Relative error of `forward` and `adjoint`.

    Raises
    ------
    DataError
        If axes disagree.
    ResourceError
        If no library for the transforms is installed.

    Notes
    -----
    Barnett, Magland, af Klinteberg, SIAM J Sci Comput 2019, doi:10.1137/18M120885X. A^H A is a convolution per frame,
    done with transforms of twice the size and without the samples: Fessler et al., IEEE Trans Signal Process 2005,
    doi:10.1109/TSP.2005.853152. Its kernel is real there, as the point spread function is Hermitian.
    """

    def __init__(
        self, maps: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor, *, tolerance: float = TOLERANCE
    ) -> None:
        if positions.shape[-1:] != (2,) or positions.ndim != 4 or weights.shape != positions.shape[:-1]:
            raise DataError(
                "positions must be (frame, readout, sample, 2) and weights (frame, readout, sample), got "
                f"{tuple(positions.shape)} and {tuple(weights.shape)}"
            )
        if maps.ndim != 3 or maps.dtype != torch.complex64:
            raise DataError(f"maps must be (coil, y, x) complex64, got {tuple(maps.shape)} {maps.dtype}")
        choose_transforms(maps.device)  # before anything else is done
        self._maps = maps.detach().contiguous()
        self._positions, self._weights = positions, weights
        self._tolerance = tolerance
        self._kernels: dict[int, torch.Tensor] = {}  # by frame of the operator that this one is a part of
        self._first = 0
        self.n_frames = len(positions)

    @property
    def share(self) -> float:
        """Mean of the diagonal of A^H A, for maps of unit norm."""
        return float(self._weights.square().sum()) / (self.n_frames * self._maps[0].numel())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement: ``(frame, y, x)`` to ``(frame, coil, readout, sample)``."""
        return linear(image, self._forward, self._adjoint)

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Combine the samples of the coils: ``(frame, coil, readout, sample)`` to ``(frame, y, x)``."""
        return linear(samples, self._adjoint, self._forward)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A to ``(frame, y, x)``."""
        return linear(image, self._normal, self._normal)

    def select(self, frames: slice) -> NufftSenseOperator:
        """Take some consecutive frames: their operator, which shares maps and kernels."""
        chosen = copy(self)
        chosen._positions, chosen._weights = self._positions[frames], self._weights[frames]
        chosen._first = self._first + frames.indices(self.n_frames)[0]
        chosen.n_frames = len(chosen._positions)
        return chosen

    def with_maps(self, maps: torch.Tensor) -> NufftSenseOperator:
        """The same samples seen by other coils ``(coil, y, x)``; the kernels are shared."""
        chosen = copy(self)
        chosen._maps = maps.detach().contiguous()
        return chosen

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        self._check_image(image)
        n_coils = len(self._maps)
        samples = image.new_empty((self.n_frames, n_coils, *self._weights.shape[1:]))
        for frame, one in enumerate(image):
            coils = self._maps * one
            flat = sample_image(coils, self._positions[frame].flatten(0, 1), self._tolerance)
            samples[frame] = flat.view(samples.shape[1:]) * self._weights[frame]
        return samples

    def _adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        expected = (self.n_frames, len(self._maps), *self._weights.shape[1:])
        if samples.shape != expected:
            raise DataError(f"samples must be (frame, coil, readout, sample) = {expected}, got {tuple(samples.shape)}")
        image = samples.new_empty((self.n_frames, *self._maps.shape[1:]))
        for frame, one in enumerate(samples):
            # filled, not multiplied: what was not measured may not even be a number
            weights = self._weights[frame]
            flat = torch.where(weights > 0, one * weights, 0).flatten(1)
            coils = grid_samples(flat, self._positions[frame].flatten(0, 1), self._maps.shape[1:], self._tolerance)
            image[frame] = (self._maps.conj() * coils).sum(0)
        return image

    def _normal(self, image: torch.Tensor) -> torch.Tensor:
        self._check_image(image)
        result = torch.empty_like(image, memory_format=torch.contiguous_format)
        n_y, n_x = self._maps.shape[1:]
        conjugate = self._maps.conj().resolve_conj()
        # one coil at a time in arrays of one size: larger ones would be asked of the system and zeroed by it each time
        padded = image.new_zeros(self._wide)
        for frame, one in enumerate(image):
            check()
            total = torch.zeros((n_y, n_x), dtype=image.dtype, device=image.device)
            kernel = self._kernel(frame).to(image.dtype)  # once: a real one would be made complex for every coil
            # the threads of MKL spin amid a transform of two axes until the last one is there: 0.06 ms become 24 ms
            # where another process has one of two cores
            with threads(1):
                for coil, other in zip(self._maps, conjugate, strict=True):
                    torch.mul(coil, one, out=padded[:n_y, :n_x])
                    spectrum = torch.fft.fft2(padded).mul_(kernel)
                    total.addcmul_(other, torch.fft.ifft2(spectrum)[:n_y, :n_x])
            result[frame] = total
        return result

    @property
    def _wide(self) -> tuple[int, int]:
        """Twice the image or a little more, of lengths that are fast to transform."""
        n_y, n_x = (2 * _smooth(size) for size in self._maps.shape[1:])
        return n_y, n_x

    def _kernel(self, frame: int) -> torch.Tensor:
        """The transform `_wide` float32 of the point spread function of a frame."""
        known = self._kernels.get(self._first + frame)
        if known is None:
            n_y, n_x = self._maps.shape[1:]
            power = self._weights[frame].square().flatten().to(torch.complex64)[None]
            wide_y, wide_x = self._wide
            spread = grid_samples(
                power, self._positions[frame].flatten(0, 1), (wide_y, wide_x), _KERNEL_TOLERANCE, _KERNEL_GRID
            )
            spread = spread[0] * (wide_y * wide_x) ** 0.5 / (n_y * n_x)
            spread[0], spread[:, 0] = 0, 0  # so far a shift is never asked for, and has no opposite
            with threads(1):
                known = torch.fft.fft2(torch.fft.ifftshift(spread)).real.contiguous()
            self._kernels[self._first + frame] = known
        return known

    def _check_image(self, image: torch.Tensor) -> None:
        expected = (self.n_frames, *self._maps.shape[1:])
        if image.shape != expected or image.dtype != self._maps.dtype:
            raise DataError(
                f"image must be (frame, y, x) = {expected} {self._maps.dtype}, got {tuple(image.shape)} {image.dtype}"
            )


def _smooth(least: int) -> int:
    """The first length without prime factors above 5, which take several times longer to transform."""
    for length in itertools.count(least):
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            break
    return length
