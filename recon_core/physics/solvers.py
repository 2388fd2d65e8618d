"""Conjugate gradients, for whatever normal operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.stopping import check

if TYPE_CHECKING:
    from recon_core.physics.sense import NormalOperator

#: Frames that are solved together, as bytes of their images: on the CPU the few vectors of the iteration should stay in
#: the cache (measured: half the time of 12 frames together), on the GPU there should be enough to do.
PORTION_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
# Iterations until the host asks again whether all is solved: a GPU must not wait for the answer in each.
_ASKED_EVERY = {"cpu": 1}
_ASKED_EVERY_ON_GPU = 8


def conjugate_gradient(
    operator: NormalOperator,
    right_side: torch.Tensor,
    *,
    iterations: int,
    regularization: float | torch.Tensor,
    tolerance: float = 0.0,
    joint: bool = False,
    constant_steps: bool = False,
) -> torch.Tensor:
    """Solve (A^H A + lambda) x = b from a zero start, each frame with step sizes of its own.

    Differentiable in b and lambda, step sizes included unless they are to be constants.

    Parameters
    ----------
    operator
        A.
    right_side
        b = A^H y, ``(frame, y, x)`` complex64, or with a batch axis in front where the operator has one.
    iterations
        Steps at most; stopping early regularises, as noise enters late.
    regularization
        Lambda; absolute, because the system is linear in the data.
    tolerance
        Stop when ``||b - (A^H A + lambda) x|| <= tolerance * ||b||`` in every frame.
    joint
        One step size for all frames together, as if they were one image; entries of a batch stay apart.
    constant_steps
        In back-propagation the step sizes are numbers that depend on nothing. That is another gradient than the one of
        the solution, but some published networks are trained with it.

    Returns
    -------
    torch.Tensor
        x, shape of b; zero in frames where b is zero.
    """
    axes = (-3, -2, -1) if joint else (-2, -1)

    def kept(number: torch.Tensor) -> torch.Tensor:
        return number.detach() if constant_steps else number

    # y contiguous in memory, as the operator likes it; and in units of ||b||, so that no data scale can underflow or
    # overflow in the squares below.
    right_side = right_side.mT.contiguous().mT
    scale = kept(_norm(right_side, axes))
    residual = ratio(right_side, scale)
    image = torch.zeros_like(residual)
    direction = residual
    power = _inner(residual, residual, axes)
    asked_every = _ASKED_EVERY.get(residual.device.type, _ASKED_EVERY_ON_GPU)
    for number in range(iterations):
        check()
        if tolerance > 0:
            solved = (power <= tolerance**2).all()
            if number % asked_every == 0 and bool(solved):
                break
            if asked_every > 1:  # then the steps until the next question are zero
                power = torch.where(solved, 0, power)
        image_of_direction = operator.normal(direction) + regularization * direction
        step = kept(ratio(power, _inner(direction, image_of_direction, axes)))
        image = torch.addcmul(image, direction, step)
        residual = torch.addcmul(residual, image_of_direction, step, value=-1)
        previous, power = power, _inner(residual, residual, axes)
        direction = torch.addcmul(residual, direction, kept(ratio(power, previous)))
    return image * scale


def _inner(left: torch.Tensor, right: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Real part of the inner product over the last axes, which stay with length one."""
    product = torch.view_as_real(left) * torch.view_as_real(right)
    return product.sum((-1, *(axis - 1 for axis in axes)), keepdim=True).squeeze(-1)


def _norm(vector: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """2-norm over the last axes, which stay with length one; as real numbers, ten times faster than as complex."""
    parts = torch.view_as_real(vector)
    norm: torch.Tensor = torch.linalg.vector_norm(parts, dim=(-1, *(axis - 1 for axis in axes)), keepdim=True)
    return norm.squeeze(-1)


def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Quotient, zero where the denominator is: a frame without data, or one already solved, stays as it is."""
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1), 0)
