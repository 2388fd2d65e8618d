"""Iterative SENSE: least squares with the coil maps, solved by conjugate gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.coils.calibration import calibration_lines, coil_images
from recon_core.physics.neighbourhood import box_mean
from recon_core.physics.solvers import PORTION_BYTES, conjugate_gradient, ratio

if TYPE_CHECKING:
    from recon_core.data import HybridSlice
    from recon_core.options import CGSenseOptions
    from recon_core.physics.sense import Encoding, NormalOperator


# How far from the average to the frame before a frame begins, and the share of the iterations that it needs then.
_NEARER, _FEWER = 0.8, 0.6
# Side, in pixels, of the square over which the power that is expected of a pixel is averaged.
_NEIGHBOURHOOD = 15


class CGSense:
    """Conjugate-gradient SENSE of every frame, around the image of the time average or around zero.

    Parameters
    ----------
    options
        Iterations, regularisation and start.
    implementation
        Kernels of the data consistency: ``torch``, ``cupy`` or ``auto``.

    Notes
    -----
    Pruessmann et al., Magn Reson Med 2001, doi:10.1002/mrm.1241. With the signal prior the image is the estimate of
    least mean square error for pixels that are independent with the power expected of them: lambda is, per pixel, the
    noise variance over that power. It is read off the reference lines, averaged over a neighbourhood.

    With `warm_start` what is solved for is the difference to the image of the time average, so lambda draws a frame to
    that image instead of to zero: where a frame says little, it looks like the average. A start alone, with lambda
    drawing to zero, leaves more error (measured: 0.092 instead of 0.084 on lines that shift, R = 4). Where the image of
    the frame before is known, the frame begins near that one, and fewer iterations do.
    """

    def __init__(self, options: CGSenseOptions, implementation: str = "auto") -> None:
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
            ``(frame, y, x)`` complex64 in the units of the data; zero in frames without a measured line.
        """
        weight, regularization = self._prior(data)
        start = self._start(data, weight, regularization) if self._options.warm_start else None
        iterations = self._options.iterations
        if start is not None and data.before is not None:
            start = torch.lerp(start, data.before, _NEARER)
            iterations = max(1, round(_FEWER * iterations))
        operator = data.operator(self._implementation)
        image = self._solve(operator, operator.adjoint(data.hybrid), weight, regularization, start, iterations)
        if start is not None:
            image = torch.where(data.mask.any(-1)[:, None, None], image, 0)
        return image

    def _prior(self, data: HybridSlice) -> tuple[torch.Tensor | None, float]:
        """Weight ``(y, x)`` of the image that is solved for, and lambda."""
        if self._options.signal_prior and data.noise_variance is not None:
            power = expected_power(data)
            peak = float(power.max())
            if peak > 0:
                return (power / peak).sqrt(), data.noise_variance / peak
        return None, self._options.regularization

    def _start(self, data: HybridSlice, weight: torch.Tensor | None, regularization: float) -> torch.Tensor:
        """The image ``(1, y, x)`` of the time average, or of the separate reference."""
        if data.before is not None and data.whole_average:  # exactly, as it counts little; A^H A is a product
            gain = data.maps.abs().square().sum(0)
            squared = torch.ones_like(gain) if weight is None else weight.square()
            return ratio(squared * data.average_image(), squared * gain + regularization)[None]
        reference = data.of_reference()
        operator = reference.operator(self._implementation)
        right_side = operator.adjoint(reference.hybrid)
        return self._solve(operator, right_side, weight, regularization, None, self._options.iterations)

    def _solve(
        self,
        operator: Encoding,
        image: torch.Tensor,
        weight: torch.Tensor | None,
        regularization: float,
        start: torch.Tensor | None,
        iterations: int,
    ) -> torch.Tensor:
        """Solve for ``(frame, y, x)`` from A^H y, which is overwritten, a portion of frames at a time."""
        frame_bytes = max(1, image[:1].numel() * image.element_size())
        n_frames = max(1, PORTION_BYTES.get(image.device.type, PORTION_BYTES["cuda"]) // frame_bytes)
        for first in range(0, len(image), n_frames):
            frames = slice(first, first + n_frames)
            part: NormalOperator = operator.select(frames)
            right_side = image[frames]
            if start is not None:
                right_side = right_side - part.normal(start.expand_as(right_side))
            if weight is not None:
                part, right_side = _Weighted(part, weight), weight * right_side
            solved = conjugate_gradient(
                part,
                right_side,
                iterations=iterations,
                regularization=regularization,
                tolerance=self._options.tolerance,
            )
            if weight is not None:
                solved = weight * solved
            image[frames] = solved if start is None else start + solved
        return image


class _Weighted:
    """The normal operator of w x instead of x, for real weights w ``(y, x)``."""

    def __init__(self, operator: NormalOperator, weight: torch.Tensor) -> None:
        self._operator = operator
        self._weight = weight

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """W A^H A W."""
        return self._weight * self._operator.normal(self._weight * image)


def expected_power(data: HybridSlice) -> torch.Tensor:
    """Expect of each pixel the mean power of its neighbourhood in the image of the reference lines.

    Parameters
    ----------
    data
        The slice.

    Returns
    -------
    torch.Tensor
        ``(y, x)`` float32, in squared units of the data.
    """
    if data.whole_average:
        return box_mean(data.average_image().abs().square(), _NEIGHBOURHOOD)
    lines = calibration_lines(data.measured)
    if lines.stop <= lines.start:
        lines = slice(0, data.measured.numel())
    low_resolution = (data.maps.conj() * coil_images(data.reference, lines)).sum(0)
    return box_mean(low_resolution.abs().square(), _NEIGHBOURHOOD)
