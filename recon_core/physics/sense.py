"""The encoding of a cine slice: coil maps, Fourier transform along y, sampling mask.

Only ky is undersampled, so the transform along the readout cancels in the normal operator: it is done once, before, and
everything here lives in hybrid space ``(ky, x)``. Masks that vary along the readout too need `PlaneSenseOperator`.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from recon_core.errors import DataError
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.kernels import Kernels, choose_kernels
from recon_core.stopping import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Coil images in work at a time. On the CPU they should stay in the cache of one core, and their memory be used again
# rather than fetched again each time (measured: 2x faster than 8 MB); on the GPU they should be enough to fill it.
WORKSPACE_BYTES = {"cpu": 1 << 20, "cuda": 128 << 20}
_MOST_BYTES = 1 << 30
# Regular undersampling by R folds R pixels onto each other; that is cheaper than transforms up to about this R.
_MOST_FOLDS = 12


class NormalOperator(Protocol):
    """Anything that can apply A^H A to ``(..., frame, y, x)``."""

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A."""


class Encoding(NormalOperator, Protocol):
    """What the methods need of the encoding of a slice, whatever its samples follow."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement of ``(frame, y, x)``."""

    def adjoint(self, hybrid: torch.Tensor, /) -> torch.Tensor:
        """Combine measured samples ``(frame, coil, ...)`` to ``(frame, y, x)``."""

    def select(self, frames: slice) -> Encoding:
        """Take some consecutive frames."""


class SenseOperator:
    """A = M F S: image to measured lines, frame by frame.

    With maps of norm one or less in every pixel, the norm of A is at most one. All three operations are differentiable,
    any number of times, in the array that they are given (not in maps or mask).

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64 or complex128, constant, or ``(frame, coil, y, x)``, one set per frame.
    mask
        ``(frame, ky)`` bool, True where a line was measured. With a batch axis in front, images and lines have it too,
        and maps may have: ``(batch, coil, y, x)`` or ``(batch, frame, coil, y, x)``.
    implementation
        ``torch``, ``cupy`` or ``auto``: see `choose_kernels`. Concerns the steps between transforms.
    workspace_bytes
        Size of the coil images that are in work at a time, at most 1 GiB; two buffers of this size are held. None takes
        what is fast on the device. At least one column along y of all coils is always taken.

    Raises
    ------
    DataError
        If the axes of maps and mask disagree, or maps need a gradient.
    ModelError
        If CuPy is asked for and cannot be used.

    Notes
    -----
    Pruessmann et al., Magn Reson Med 2001, doi:10.1002/mrm.1241.

    Internally y is the last, contiguous axis, and the centring shifts are gone from the loop: with the mask in FFT
    order, the shift of the k-space axis is a matter of storage, and that of the y axis a phase per line, which cancels
    in A^H A. So does the scale of the transform: a factor ``1/sqrt(N)`` sits in the maps.

    Where the masks of all frames are periodic along ky, A^H A needs no transform. F^H M F is a circular convolution
    with the inverse transform of the mask, and that of a mask of period p is zero but for p shifts ``d = s N/p``:
    ``(A^H A m)(y) = sum_s k(d) G_d(y) m(y - d)`` with ``G_d(y) = sum_c conj(S_c(y)) S_c(y - d)``, whatever the number
    of coils.
    """

    def __init__(
        self,
        maps: torch.Tensor,
        mask: torch.Tensor,
        *,
        implementation: str = "auto",
        workspace_bytes: int | None = None,
    ) -> None:
        maps = _set_axis(maps, mask, mask.shape[-1:]).detach()
        n_sets, n_coils, n_y, n_x = maps.shape
        self._shape = (*mask.shape[:-1], n_y, n_x)
        self.n_frames = mask.shape[-2]
        self._kernels: Kernels = choose_kernels(implementation, maps.device)
        self._maps = maps.new_empty((n_sets, n_coils, n_x, n_y))
        torch.div(maps.mT, n_y**0.5, out=self._maps)
        self._conjugate_maps = self._maps.conj().resolve_conj()
        mask = torch.fft.ifftshift(mask.to(maps.device, torch.bool), -1)
        # (set, frame of the set, ky); a set of maps serves consecutive frames
        self._excluded = ~mask.reshape(n_sets, mask.shape[:-1].numel() // max(1, n_sets), n_y)
        self._weights = self._kernels.weights(~self._excluded, maps.dtype)
        line = torch.arange(n_y, dtype=torch.float64, device=maps.device)
        turns = (line * (n_y // 2)).remainder(n_y) / n_y
        phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
        self._phase = phase.to(maps.dtype)
        if workspace_bytes is None:
            workspace_bytes = WORKSPACE_BYTES.get(maps.device.type, WORKSPACE_BYTES["cuda"])
        self._workspace_bytes = min(workspace_bytes, _MOST_BYTES)
        period = _period(mask.cpu())
        self._folds = period if period <= min(n_coils, _MOST_FOLDS) and mask.numel() else 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement.

        Parameters
        ----------
        image
            ``(frame, y, x)``, of the dtype of the maps.

        Returns
        -------
        torch.Tensor
            ``(frame, coil, ky, x)``, zero where nothing is measured, zero frequency at ``N//2``.
        """
        return linear(image, self._forward, self._adjoint)

    def adjoint(self, hybrid: torch.Tensor) -> torch.Tensor:
        """Combine the coil images of the measured lines.

        Parameters
        ----------
        hybrid
            ``(frame, coil, ky, x)``, zero frequency at ``N//2``; lines that the mask excludes are ignored.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)``.
        """
        return linear(hybrid, self._adjoint, self._forward)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A, the inner loop of every iterative method.

        Parameters
        ----------
        image
            ``(frame, y, x)``; fastest when y is contiguous in memory, as `adjoint` returns it.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)``, y contiguous in memory.
        """
        apply = self._normal_by_folding if self._folds else self._normal_by_transforms
        return linear(image, apply, apply)

    def select(self, frames: slice) -> SenseOperator:
        """Take some frames: their operator, which shares the maps and costs nothing.

        Parameters
        ----------
        frames
            Consecutive frames.

        Returns
        -------
        SenseOperator
            For images of these frames.

        Raises
        ------
        DataError
            If the operator has a batch axis.
        """
        if len(self._shape) != 3:
            raise DataError(f"frames can be selected without a batch axis only; the images are {self._shape}")
        chosen = copy(self)
        # Frames lie along the sets where every frame has maps of its own, else along the frames of the one set.
        per_frame = self._maps.shape[0] > 1
        sets, frames_of_set = (frames, slice(None)) if per_frame else (slice(None), frames)
        chosen._excluded = self._excluded[sets, frames_of_set]
        chosen._weights = self._weights[sets, frames_of_set]
        chosen._maps, chosen._conjugate_maps = self._maps[sets], self._conjugate_maps[sets]
        if self._folds:
            products, weights = self._folding
            chosen._folding = products[sets], weights[sets, frames_of_set]
        chosen.n_frames = chosen._excluded.shape[:2].numel()
        chosen._shape = (chosen.n_frames, *self._shape[1:])
        return chosen

    def _forward(self, image: torch.Tensor) -> torch.Tensor:
        source = self._by_set(image)
        n_sets, n_frames, n_x, n_y = source.shape
        n_coils = self._maps.shape[1]
        hybrid = source.new_empty((n_sets, n_frames, n_coils, n_x, n_y))
        half = n_y // 2
        for sets, frames, columns in self._portions():
            lines = self._expand(source, sets, frames, columns)
            lines = torch.fft.fft(lines)
            lines.masked_fill_(self._excluded[sets, frames, None, None], 0).mul_(self._phase)
            target = hybrid[sets, frames, :, columns]
            target[..., half:] = lines[..., : n_y - half]
            target[..., :half] = lines[..., n_y - half :]
        return hybrid.mT.reshape(*self._shape[:-2], n_coils, n_y, n_x)

    def _adjoint(self, hybrid: torch.Tensor) -> torch.Tensor:
        n_sets, n_frames, n_y = self._excluded.shape
        n_coils, n_x = self._maps.shape[1:3]
        expected = (*self._shape[:-2], n_coils, n_y, n_x)
        if hybrid.shape != expected:
            raise DataError(f"hybrid data must be {expected} (..., frame, coil, ky, x), got {tuple(hybrid.shape)}")
        source = hybrid.mT.reshape(n_sets, n_frames, n_coils, n_x, n_y)
        image = source.new_empty((n_sets, n_frames, n_x, n_y))
        half, phase = n_y // 2, self._phase.conj().resolve_conj()
        for sets, frames, columns in self._portions():
            measured = source[sets, frames, :, columns]
            lines = torch.empty_like(measured, memory_format=torch.contiguous_format)
            lines[..., : n_y - half] = measured[..., half:]
            lines[..., n_y - half :] = measured[..., :half]
            # Filled, not multiplied: what stands in excluded lines may not even be a number.
            lines.masked_fill_(self._excluded[sets, frames, None, None], 0).mul_(phase)
            lines = torch.fft.ifft(lines, norm="forward")
            self._kernels.combine(lines, self._conjugate_maps[sets, :, columns], image[sets, frames, columns])
        return image.mT.reshape(self._shape)

    def _normal_by_transforms(self, image: torch.Tensor) -> torch.Tensor:
        source = self._by_set(image)
        result = torch.empty_like(source, memory_format=torch.contiguous_format)
        for sets, frames, columns in self._portions():
            lines = self._expand(source, sets, frames, columns)
            lines = torch.fft.fft(lines)
            self._kernels.sample(lines, self._weights[sets, frames])
            lines = torch.fft.ifft(lines, norm="forward")
            self._kernels.combine(lines, self._conjugate_maps[sets, :, columns], result[sets, frames, columns])
        return result.mT.reshape(self._shape)

    @cached_property
    def _folding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The coil products ``(set, fold, x, y)`` and the convolution kernels ``(set, frame, fold)``."""
        n_sets, n_coils, n_x, n_y = self._maps.shape
        shift = n_y // self._folds
        products = self._maps.new_zeros((n_sets, self._folds, n_x, n_y))
        for coil in range(n_coils):
            twice = torch.cat((self._maps[:, coil], self._maps[:, coil]), -1)
            for fold in range(self._folds):
                shifted = twice[..., n_y - fold * shift : 2 * n_y - fold * shift]
                products[:, fold].addcmul_(self._conjugate_maps[:, coil], shifted)
        # The maps carry 1/N already.
        kernels = torch.fft.ifft((~self._excluded).to(torch.float64), norm="forward")[..., ::shift]
        return products, kernels.to(self._maps.dtype).reshape(n_sets, -1, self._folds)

    def _normal_by_folding(self, image: torch.Tensor) -> torch.Tensor:
        source = self._by_set(image)
        result = torch.empty_like(source, memory_format=torch.contiguous_format)
        n_y = source.shape[-1]
        shift = n_y // self._folds
        products, weights = self._folding
        for sets, frames, columns in self._portions(n_coils=1):
            part, target = source[sets, frames, columns], result[sets, frames, columns]
            twice = torch.cat((part, part), -1)
            for fold in range(self._folds):
                shifted = twice[..., n_y - fold * shift : 2 * n_y - fold * shift]
                weighted = shifted * weights[sets, frames, fold, None, None]
                product = products[sets, None, fold, columns]
                if fold == 0:
                    torch.mul(weighted, product, out=target)
                else:
                    target.addcmul_(weighted, product)
        return result.mT.reshape(self._shape)

    def _by_set(self, image: torch.Tensor) -> torch.Tensor:
        """View ``(..., frame, y, x)`` as contiguous ``(set, frame, x, y)``; copies where the memory is ordered else."""
        if image.shape != self._shape:
            raise DataError(f"image must be {self._shape} (..., frame, y, x), got {tuple(image.shape)}")
        if image.dtype != self._maps.dtype:
            raise DataError(f"image must be {self._maps.dtype} like the maps, got {image.dtype}")
        n_sets, n_frames, _ = self._excluded.shape
        n_y, n_x = self._shape[-2:]
        return image.mT.reshape(n_sets, n_frames, n_x, n_y).contiguous().resolve_conj()

    def _expand(self, source: torch.Tensor, sets: slice, frames: slice, columns: slice) -> torch.Tensor:
        """Make the coil images of one portion, contiguous."""
        part, maps = source[sets, frames, columns], self._maps[sets, :, columns]
        n_sets, n_frames, n_x, n_y = part.shape
        lines = part.new_empty((n_sets, n_frames, maps.shape[1], n_x, n_y))
        self._kernels.expand(maps, part, lines)
        return lines

    def _portions(self, n_coils: int | None = None) -> Iterator[tuple[slice, slice, slice]]:
        """Give sets, frames and columns in portions that fit the workspace; columns are split first."""
        n_sets, n_frames, _ = self._excluded.shape
        n_x, n_y = self._maps.shape[2:]
        column_bytes = (self._maps.shape[1] if n_coils is None else n_coils) * n_y * self._maps.element_size()
        column, frame, group = portion_sizes(self._workspace_bytes, column_bytes, (n_x, n_frames, n_sets))
        for first_set in range(0, n_sets, group):
            sets = slice(first_set, first_set + group)
            for first_column in range(0, n_x, column):
                columns = slice(first_column, first_column + column)
                for first_frame in range(0, n_frames, frame):
                    check()
                    yield sets, slice(first_frame, first_frame + frame), columns


class PlaneSenseOperator:
    """A = M F S with the centred transform along y and x: the plain definition, for masks that vary along kx too.

    Parameters
    ----------
    maps
        As for `SenseOperator`.
    mask
        ``(frame, ky, kx)`` bool, or with a batch axis in front.

    Raises
    ------
    DataError
        If the axes of maps and mask disagree, or maps need a gradient.

    Notes
    -----
    All frames at once, no portions; differentiable like any torch code.
    """

    def __init__(self, maps: torch.Tensor, mask: torch.Tensor) -> None:
        maps = _set_axis(maps, mask[..., 0], mask.shape[-2:])
        if maps.shape[0] > 1:
            per_set = mask.shape[:-2].numel() // maps.shape[0]
            maps = maps.repeat_interleave(per_set, 0).reshape(*mask.shape[:-2], *maps.shape[1:])
        self._maps = maps
        self._mask = mask.to(maps.device, torch.bool)[..., None, :, :]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement: ``(frame, y, x)`` to ``(frame, coil, ky, kx)``."""
        return fft(self._maps * image[..., None, :, :], (-2, -1)) * self._mask

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """Combine the coil images of the measured samples: ``(frame, coil, ky, kx)`` to ``(frame, y, x)``."""
        samples = torch.where(self._mask, kspace, 0)
        return (ifft(samples, (-2, -1)) * self._maps.conj()).sum(-3)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A to ``(frame, y, x)``."""
        return self.adjoint(self.forward(image))


def portion_sizes(budget: int, unit_bytes: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Say how much of each axis, the first being filled first, is taken at a time so that it fits `budget` bytes."""
    units = max(1, budget // max(1, unit_bytes))
    taken = []
    for size in sizes:
        taken.append(max(1, min(size, units)))
        units //= max(1, size)
    return tuple(taken)


def _set_axis(maps: torch.Tensor, mask: torch.Tensor, lines: torch.Size) -> torch.Tensor:
    """Bring maps to ``(set, coil, y, x)``, each set serving as many consecutive frames; check them."""
    lead = mask.shape[:-1]
    leads = [lead[:length] for length in range(len(lead) + 1)]
    plane = maps.shape[-2 : maps.ndim - 2 + len(lines)]
    if maps.ndim < 3 or not lead or maps.shape[:-3] not in leads or plane != lines or 0 in lines:
        size = ", ".join(("coil", *map(str, lines), "x")[:3])
        allowed = " or ".join("(" + "".join(f"{count}, " for count in some) + size + ")" for some in leads)
        raise DataError(
            f"maps must be {allowed} to fit a mask with {tuple(lead)} frames and {tuple(lines)} samples, "
            f"got {tuple(maps.shape)}"
        )
    if not maps.is_complex():
        raise DataError(f"maps must be complex64 or complex128, got {maps.dtype}")
    if maps.requires_grad and torch.is_grad_enabled():
        raise DataError("the encoding cannot be differentiated in the coil maps; detach them")
    return maps.flatten(0, -4) if maps.ndim > 3 else maps[None]


def _period(mask: torch.Tensor) -> int:
    """Find the smallest period along the last axis, a divisor of its length, that all masks have."""
    n_lines = mask.shape[-1]
    for period in range(1, n_lines):
        if n_lines % period == 0 and bool((mask == mask.roll(period, -1)).all()):
            return period
    return n_lines


class _Linear(torch.autograd.Function):
    """A linear map with its adjoint as derivative."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives its own class per function
        array: torch.Tensor,
        apply: Callable[[torch.Tensor], torch.Tensor],
        adjoint: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        ctx.forth, ctx.back = apply, adjoint  # `apply` is torch's own name
        return apply(array)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        return linear(gradients[0], ctx.back, ctx.forth), None, None


def linear(
    array: torch.Tensor,
    apply: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Apply a linear map so that torch can differentiate it, with its adjoint as derivative."""
    if not (array.requires_grad and torch.is_grad_enabled()):
        return apply(array)
    return cast("torch.Tensor", _Linear.apply(array, apply, adjoint))  # type: ignore[no-untyped-call]
