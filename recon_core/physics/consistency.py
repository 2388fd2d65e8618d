"""Data consistency: bring images into agreement with the lines that were measured.

The forms that unrolled networks use differ in what they do with ``A^H A x - A^H y``, the one thing that they all need.
So the measured data enters once, as the image ``A^H y``, and every application is one normal operator and one linear
combination: the k-space of the coils is never stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.errors import DataError
from recon_core.physics.sense import PlaneSenseOperator, SenseOperator
from recon_core.physics.solvers import conjugate_gradient

if TYPE_CHECKING:
    from recon_core.physics.sense import Encoding


class DataConsistency:
    """Maps, mask and measured data of one slice (or of a batch), prepared once for many applications.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64 or complex128, or ``(frame, coil, y, x)``.
    mask
        ``(frame, ky)`` bool, True where a line was measured; or ``(frame, ky, kx)`` for sampling that varies along the
        readout, which takes 2-D transforms.
    measured
        With a mask of lines: ``(frame, coil, ky, x)`` hybrid data, transformed to image space along the readout. With
        a mask of points: ``(frame, coil, ky, kx)`` k-space. Same dtype as the maps; what the mask excludes is ignored,
        whatever it holds. A batch axis in front is in mask, measured data and images alike, and may be in the maps:
        ``(batch, coil, y, x)``, ``(batch, frame, coil, y, x)``.
    implementation
        ``torch``, ``cupy`` or ``auto``; with a mask of lines only.
    workspace_bytes
        As for `SenseOperator`.

    Raises
    ------
    DataError
        If axes disagree, a measured sample is not finite, or maps or measured data need a gradient.
    ModelError
        If CuPy is asked for and cannot be used.

    Notes
    -----
    Images are ``(frame, y, x)``, of the dtype of the maps; results have y contiguous in memory, and images that have it
    need no copy. All forms can be differentiated in the image and in their
    weights. An image that is not finite gives a result that is not finite, in
    its frame only (in all frames of its entry of the batch for `solve` with ``joint=True``).

    A is M F S with mask M, centred orthonormal transform F and maps S; ``w = sum_c |S_c|^2`` (`intensity`) is one for
    maps of unit norm. Where it is not, nothing is divided by it: `hard` and `weighted` are then the replacement in the
    k-space of the coils followed by ``sum_c conj(S_c)``, scaled by w and zero where the maps are; who wants the
    normalised combination divides by `intensity`. `gradient` and `solve` do not depend on a combination.

    Replacing samples in the k-space of the coils and combining them is ``w x - (A^H A x - A^H y)``; with one coil it is
    exact, with several a gradient step, because the coils of the result are again those of one image. Schlemper et al.,
    IEEE Trans Med Imaging 2018, doi:10.1109/TMI.2017.2760978 (`hard`, `weighted`); Aggarwal et al., IEEE Trans Med
    Imaging 2019, doi:10.1109/TMI.2018.2865356 (`solve`); Hammernik et al., Magn Reson Med 2018, doi:10.1002/mrm.26977
    (`gradient`).
    """

    def __init__(
        self,
        maps: torch.Tensor,
        mask: torch.Tensor,
        measured: torch.Tensor,
        *,
        implementation: str = "auto",
        workspace_bytes: int | None = None,
    ) -> None:
        n_sampled = mask.ndim - measured.ndim + 3  # axes of k-space over which the mask varies
        if n_sampled not in (1, 2) or measured.ndim not in (4, 5) or maps.ndim < 3:
            raise DataError(
                f"measured data must be (frame, coil, ky, x) with a mask (frame, ky) or (frame, ky, kx), both with or "
                f"without a batch axis, and maps (coil, y, x); got {_shapes(measured, mask, maps)}"
            )
        expected = (*mask.shape[:-n_sampled], *maps.shape[-3:])
        if measured.shape != expected:
            raise DataError(f"measured data must be {expected} to fit, got {_shapes(measured, mask, maps)}")
        if measured.dtype != maps.dtype:
            raise DataError(f"measured data must be {maps.dtype} like the maps, got {measured.dtype}")
        if measured.requires_grad and torch.is_grad_enabled():
            raise DataError("data consistency cannot be differentiated in the measured data; detach them")
        operator: Encoding | PlaneSenseOperator
        if n_sampled == 1:
            operator = SenseOperator(maps, mask, implementation=implementation, workspace_bytes=workspace_bytes)
        else:
            operator = PlaneSenseOperator(maps, mask)
        self._begin(operator, maps, measured)

    @classmethod
    def through(cls, operator: Encoding, maps: torch.Tensor, measured: torch.Tensor) -> DataConsistency:
        """The same forms with another encoding, such as a non-uniform transform.

        Parameters
        ----------
        operator
            A, its norm about one; as much as it is above, `hard` and `weighted` go too far.
        maps
            ``(coil, y, x)`` complex64, those of A.
        measured
            y, as ``operator.adjoint`` takes it.

        Raises
        ------
        DataError
            If what was measured or the maps are not finite.
        """
        made = cls.__new__(cls)
        made._begin(operator, maps, measured)
        return made

    def _begin(self, operator: Encoding | PlaneSenseOperator, maps: torch.Tensor, measured: torch.Tensor) -> None:
        #: A.
        self.operator = operator
        #: ``A^H y``, the zero-filled image, ``(frame, y, x)``.
        self.zero_filled = self.operator.adjoint(measured)
        if not bool(self.zero_filled.isfinite().all()):
            raise DataError("the measured data or the coil maps are not finite")
        #: ``w = sum_c |S_c|^2``, real, to be broadcast with images.
        self.intensity = _intensity(maps, self.zero_filled.ndim)

    def hard(self, image: torch.Tensor) -> torch.Tensor:
        """Replace the measured samples in the k-space of the coils, and combine the coils.

        Parameters
        ----------
        image
            ``(frame, y, x)``.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)``.
        """
        image = _lined_up(image)
        return torch.addcmul(self.zero_filled, self.intensity, image).sub_(self.operator.normal(image))

    def weighted(self, image: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
        """Replace measured samples k by ``(k + v y) / (1 + v)``, and combine the coils.

        Parameters
        ----------
        image
            ``(frame, y, x)``.
        weight
            v, finite: 0 keeps the image's samples, large values tend to `hard`. A number or a real tensor that
            broadcasts with the image along its frames, such as ``()`` or ``(frame, 1, 1)``.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)``.
        """
        image = _lined_up(image)
        return (self.intensity * image).sub_(weight / (1 + weight) * self.residual(image))

    def gradient(self, image: torch.Tensor, step: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Go one step down the gradient of ``||A x - y||^2 / 2``.

        Parameters
        ----------
        image
            ``(frame, y, x)``.
        step
            Step size; a number or a tensor that broadcasts with the image.

        Returns
        -------
        torch.Tensor
            ``x - step * A^H (A x - y)``, ``(frame, y, x)``.
        """
        image = _lined_up(image)
        return image - step * self.residual(image)

    def solve(
        self,
        image: torch.Tensor,
        weight: float | torch.Tensor,
        iterations: int,
        *,
        tolerance: float = 0.0,
        joint: bool = False,
        constant_steps: bool = False,
    ) -> torch.Tensor:
        """Minimise ``||A x - y||^2 + lambda ||x - z||^2`` by conjugate gradients that start from z.

        Parameters
        ----------
        image
            z, ``(frame, y, x)``.
        weight
            Lambda; a number or a real tensor that broadcasts with the image along its frames.
        iterations
            Steps at most.
        tolerance
            Stop when the residual, relative to that of z, is at most this in every frame.
        joint
            One step size for all frames together; entries of a batch stay apart.
        constant_steps
            Back-propagation takes the step sizes for constants; see `recon_core.physics.solvers.conjugate_gradient`.

        Returns
        -------
        torch.Tensor
            x, ``(frame, y, x)``; z itself in frames where nothing is measured.
        """
        image = _lined_up(image)
        # From z, the system for the change is (A^H A + lambda) d = A^H y - A^H A z.
        change = conjugate_gradient(
            self.operator,
            -self.residual(image),
            iterations=iterations,
            regularization=weight,
            tolerance=tolerance,
            joint=joint,
            constant_steps=constant_steps,
        )
        return image + change

    def residual(self, image: torch.Tensor) -> torch.Tensor:
        """``A^H (A x - y)``: how far the image is from the data, ``(frame, y, x)``."""
        return self.operator.normal(image) - self.zero_filled


def _lined_up(image: torch.Tensor) -> torch.Tensor:
    """Bring y to where the operator wants it in memory, once, before anything else reads the image."""
    return image.mT.contiguous().mT


def _intensity(maps: torch.Tensor, n_axes: int) -> torch.Tensor:
    """Sum of squares over the coils, with the axes of the image."""
    intensity = maps.real.new_zeros((*maps.shape[:-3], *maps.shape[-2:])).mT.contiguous().mT
    # Coil by coil: all at once would take as much memory as the maps.
    for coil in maps.detach().unbind(-3):
        intensity += torch.view_as_real(coil).square().sum(-1)
    # A batch axis without a frame axis: one set of maps for all frames of each.
    return intensity[:, None] if intensity.ndim == n_axes - 1 and n_axes == 4 else intensity


def _shapes(measured: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor) -> str:
    """Name the shapes that disagree."""
    return f"{tuple(measured.shape)} with mask {tuple(mask.shape)} and maps {tuple(maps.shape)}"
