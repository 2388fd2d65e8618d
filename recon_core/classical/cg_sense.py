"""Iterative SENSE: least squares with the coil maps, solved by conjugate gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.sense import SenseOperator

if TYPE_CHECKING:
    from recon_core.options import ReconOptions


def conjugate_gradient(
    operator: SenseOperator, right_side: torch.Tensor, *, iterations: int, regularization: float, tolerance: float = 0.0
) -> torch.Tensor:
    """Solve (A^H A + lambda) x = b from a zero start, each frame with step sizes of its own.

    Parameters
    ----------
    operator
        A.
    right_side
        b = A^H y, ``(frame, y, x)`` complex64.
    iterations
        Steps at most; stopping early regularises, as noise enters late.
    regularization
        Lambda; absolute, because the system is linear in the data.
    tolerance
        Stop when ``||b - (A^H A + lambda) x|| <= tolerance * ||b||`` in every frame.

    Returns
    -------
    torch.Tensor
        x, ``(frame, y, x)`` complex64; zero in frames where b is zero.
    """
    # In units of ||b||, so that no data scale can underflow or overflow in the squares below.
    scale: torch.Tensor = torch.linalg.vector_norm(right_side, dim=(1, 2), keepdim=True)
    residual = _ratio(right_side, scale)
    image = torch.zeros_like(residual)
    direction = residual
    power = _inner(residual, residual)
    for _ in range(iterations):
        if bool((power <= tolerance**2).all()):
            break
        image_of_direction = torch.add(operator.normal(direction), direction, alpha=regularization)
        step = _ratio(power, _inner(direction, image_of_direction))
        image = torch.addcmul(image, direction, step)
        residual = torch.addcmul(residual, image_of_direction, step, value=-1)
        previous, power = power, _inner(residual, residual)
        direction = torch.addcmul(residual, direction, _ratio(power, previous))
    return image * scale


class CGSense:
    """Conjugate-gradient SENSE, every frame on its own, all frames computed at once.

    Parameters
    ----------
    options
        Uses `iterations`, `regularization` and `tolerance`.

    Notes
    -----
    Pruessmann et al., Magn Reson Med 2001, doi:10.1002/mrm.1241.
    """

    def __init__(self, options: ReconOptions) -> None:
        self._iterations = options.iterations
        self._regularization = options.regularization
        self._tolerance = options.tolerance

    def __call__(self, hybrid: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        hybrid
            ``(frame, coil, ky, x)`` complex64 measured lines, transformed to image space along the readout.
        maps
            ``(coil, y, x)`` or ``(frame, coil, y, x)`` complex64, unit norm over the coils.
        mask
            ``(frame, ky)`` bool.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data; zero in frames without a measured line.
        """
        operator = SenseOperator(maps, mask)
        return conjugate_gradient(
            operator,
            operator.adjoint(hybrid),
            iterations=self._iterations,
            regularization=self._regularization,
            tolerance=self._tolerance,
        )


def _inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Real part of the inner product of each frame, ``(frame, 1, 1)``."""
    return (torch.view_as_real(left) * torch.view_as_real(right)).sum((1, 2, 3))[:, None, None]


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Quotient, zero where the denominator is: a frame without data, or one already solved, stays as it is."""
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1), 0)
