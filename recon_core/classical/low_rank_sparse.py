"""Low rank plus sparse: a background that all frames share, and changes that have few temporal frequencies.

Otazo, Candes, Sodickson, Magn Reson Med 2015, doi:10.1002/mrm.25240.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import LowRankSparseOptions
    from recon_core.physics.sense import NormalOperator

# The published stopping rule; with momentum the change per pass is small before the solution is near.
_TOLERANCE, _MOMENTUM_TOLERANCE = 0.0025, 1e-3


def low_rank_sparse(
    operator: NormalOperator,
    right_side: torch.Tensor,
    *,
    low_rank_weight: float = 0.01,
    sparse_weight: float = 0.01,
    iterations: int = 50,
    tolerance: float = _TOLERANCE,
    momentum: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Separate a series into L + S by soft thresholding of its singular values and of its temporal spectrum.

    Parameters
    ----------
    operator
        E, with maps of unit norm, so that a step of one converges.
    right_side
        E^H d, ``(frame, y, x)`` complex64.
    low_rank_weight
        Threshold of the singular values of L, relative to the largest one of the same pass.
    sparse_weight
        Threshold of the temporal spectrum of S (unitary FFT), relative to the largest magnitude in `right_side`.
    iterations
        Passes after the first one, at most.
    tolerance
        Stop when L + S, after data consistency, changes by less than this times its norm.
    momentum
        False iterates as the paper does. True takes steps of half the length, which are certain to descend as L and S
        move together, and goes on in the direction of the last one until that leads uphill: about six times fewer
        passes to the same solution. Beck, Teboulle, SIAM J Imaging Sci 2009, doi:10.1137/080716542; O'Donoghue, Candes,
        Found Comput Math 2015, doi:10.1007/s10208-013-9150-3.

    Returns
    -------
    tuple
        L and S, both ``(frame, y, x)`` complex64 in the units of the data, and the number of passes.
    """
    # In units of the largest magnitude: sums of squares below fit into float32, and the threshold of S is its weight.
    peak = right_side.abs().amax() if len(right_side) else right_side.new_zeros(())
    if bool(peak == 0):
        return torch.zeros_like(right_side), torch.zeros_like(right_side), 0
    # With y contiguous, the order of the operator; to the decomposition the order of the pixels means nothing.
    target = (right_side / peak).mT.contiguous()
    length = 0.5 if momentum else 1.0
    parts = torch.stack([target, torch.zeros_like(target)])  # L and S
    point = parts  # where the gradient is taken
    descent = torch.zeros_like(target)  # E^H (d - E (L + S)) there
    consistent = target
    inertia = 1.0
    passes = 0
    while passes <= iterations:
        passes += 1
        low_rank, sparse = torch.add(point, descent, alpha=length)
        spectrum = _soften(torch.fft.fft(sparse, dim=0, norm="ortho"), length * sparse_weight)
        sparse = torch.fft.ifft(spectrum, dim=0, norm="ortho")
        previous, parts = parts, torch.stack([_shrink_singular_values(low_rank, length * low_rank_weight), sparse])
        if momentum:
            move = parts - previous
            uphill = bool(_inner(point - parts, move) > 0)
            before = 1.0 if uphill else inertia
            inertia = (1 + (1 + 4 * before**2) ** 0.5) / 2
            point = torch.add(parts, move, alpha=(before - 1) / inertia)
        else:
            point = parts
        total = point.sum(0)
        descent = target - operator.normal(total.mT).mT
        change = torch.linalg.vector_norm(total + descent - consistent)
        enough = bool(change < tolerance * torch.linalg.vector_norm(consistent))
        consistent = total + descent
        if enough:
            break
    low_rank, sparse = peak * parts
    return low_rank.mT, sparse.mT, passes


class LowRankSparse:
    """L + S of all frames of a slice.

    Parameters
    ----------
    options
        Weights and iterations.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Notes
    -----
    Otazo et al., Magn Reson Med 2015, doi:10.1002/mrm.25240.
    """

    def __init__(self, options: LowRankSparseOptions, implementation: str = "auto") -> None:
        self._options = options
        self._implementation = implementation

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice.

        Returns
        -------
        torch.Tensor
            L + S, ``(frame, y, x)`` complex64 in the units of the data; zero in frames without a measured line, which
            the others could fill only with what was never measured.
        """
        measured = data.mask.any(-1)
        frames = slice(None) if bool(measured.all()) else measured
        some = data.select(frames)
        operator = some.operator(self._implementation)
        low_rank, sparse, _ = low_rank_sparse(
            operator,
            operator.adjoint(some.hybrid),
            low_rank_weight=self._options.low_rank_weight,
            sparse_weight=self._options.sparse_weight,
            iterations=self._options.iterations,
            tolerance=_MOMENTUM_TOLERANCE if self._options.momentum else _TOLERANCE,
            momentum=self._options.momentum,
        )
        image = data.hybrid.new_zeros((len(data.mask), *data.maps.shape[-2:]))
        image[frames] = low_rank + sparse
        return image


def _shrink_singular_values(series: torch.Tensor, weight: float) -> torch.Tensor:
    """Soften the singular values of ``(frame, ...)``, seen as pixels x frames, by `weight` times the largest.

    The eigenvectors of the small Gram matrix (frame x frame) are the singular vectors along time; a product with them
    scales every component without a decomposition of the large matrix.
    """
    matrix = series.flatten(1)
    values, vectors = torch.linalg.eigh((matrix @ matrix.mH).to(torch.complex128))
    singular = values.clamp(min=0).sqrt()
    factor = 1 - weight * singular[-1] / torch.where(singular > 0, singular, 1)
    factor = torch.where(singular > 0, factor.clamp(min=0), 0)
    projection = (vectors * factor) @ vectors.mH
    shrunk: torch.Tensor = projection.to(matrix.dtype) @ matrix
    return shrunk.view_as(series)


def _soften(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Shorten complex values by `threshold`; those below vanish."""
    magnitude = values.abs()
    return values * (1 - threshold / magnitude.clamp(min=threshold)) if threshold > 0 else values


def _inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Real part of the inner product."""
    product: torch.Tensor = torch.dot(torch.view_as_real(left).flatten(), torch.view_as_real(right).flatten())
    return product
