"""Coil maps and image together: the smooth maps and the one image that explain every measured line best.

Ying and Sheng, Magn Reson Med 2007, doi:10.1002/mrm.21245 (JSENSE); Uecker, Hohage, Block, Frahm, Magn Reson Med 2008,
doi:10.1002/mrm.21691 (nonlinear inversion).
"""

from __future__ import annotations

import torch

from recon_core.coils.calibration import central_lines
from recon_core.coils.vectors import align_phase, normalise, virtual_coils
from recon_core.errors import DataError
from recon_core.physics.fourier import ifft
from recon_core.physics.solvers import conjugate_gradient

# Half waves across the field of view that a map may have along each axis; the prior leaves nothing for more.
_WAVES = 16
# Amplitude expected of so many half waves: (1 + waves^2 / corner^2)^-power.
_CORNER, _POWER = 2.0, 2.0
# Weight of the priors for every unit of what is left unexplained, relative to the data: noise, or motion between lines.
_WEIGHT = 5e-4
_LEAST_LEFT, _MOST_LEFT = 0.005, 0.2
# The priors start strong, so that the first maps are the smoothest, and relax with every step.
_STEPS, _FIRST_LEFT, _RELAXATION = 10, 5.0, 0.5
# From maps that are near only the last of these steps are left to do: two suffice where the average has grown, the
# third is for what has moved.
_STEPS_FROM_NEAR = 3
# What of given maps counts as no part of a cosine series, relative to the amplitude expected of its waves, squared.
_BESIDE = 1e-3
_ITERATIONS = 12
# Virtual coils, and columns along y, that are enough for the joint estimate; the lines of a column tell of it alone.
_MOST_COILS, _COLUMNS = 12, 64


def joint_maps(
    hybrid: torch.Tensor, measured: torch.Tensor, near: torch.Tensor | None = None, caution: float = 1.0
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Estimate coil maps from all measured lines of the time average.

    Unknown are one image and, per coil, the coefficients of a cosine series. Their prior makes maps smooth, so that
    they go on into the air around the body. Gauss-Newton steps, each solved by conjugate gradients, fit the products of
    image and maps to all lines, those outside the centre included. The start is a map that is the same everywhere, or
    maps that are known to be near, which saves most of the steps.

    Parameters
    ----------
    hybrid
        ``(coil, ky, x)`` complex64, lines averaged over time, transformed along the readout; any unit.
    measured
        ``(ky,)`` bool, True where `hybrid` holds a line.
    near
        Maps ``(coil, y, x)`` complex64 of the same coils, as were found of fewer frames; None where there are none.
    caution
        Times the usual weight of the priors.

    Returns
    -------
    tuple
        Maps ``(coil, y, x)`` complex64, unit norm over the coils, and notes on what the user should know. Phase: the
        combination of coils that receives most of the central lines (virtual body coil) has phase zero everywhere.

    Raises
    ------
    DataError
        If there is no signal, or none in the columns that are looked at, or values are not finite.
    """
    lines = torch.where(measured[:, None], hybrid, 0)
    peak = lines.abs().amax()
    if not bool((peak > 0) & peak.isfinite()):
        raise DataError(
            "the joint estimate of coil maps needs a signal, but the measured lines hold "
            f"{'only zeros' if bool(peak == 0) else 'values that are not finite'}"
        )
    lines = lines / peak
    columns = fitted_columns(lines.shape[2])
    some = few = lines[:, :, columns]
    if float(some.abs().amax()) < torch.finfo(lines.real.dtype).eps:
        raise DataError("the joint estimate of coil maps needs a signal in more than a few columns along the readout")
    start = None if near is None or not bool(near[:, :, columns].any()) else near[:, :, columns]
    if len(some) > _MOST_COILS:
        combine = virtual_coils(some, _MOST_COILS).conj()
        few = torch.einsum("cv,cyx->vyx", combine, some)
        start = None if start is None else torch.einsum("cv,cyx->vyx", combine, start)
    fit = _Fit(few, measured, lines.shape[2], caution)
    image, series = fit.start() if start is None else fit.start_near(start)
    prior = 0.0
    for step in range(0 if start is None else _STEPS - _STEPS_FROM_NEAR, _STEPS):
        image, series, prior = fit.step(image, series, _FIRST_LEFT * _RELAXATION**step)
    if len(few) < len(some):
        fit = _Fit(some, measured, lines.shape[2], caution)
        series = fit.series(image, prior)
    maps, _ = normalise(fit.full_maps(series))
    centre, notes = central_lines(measured)
    return align_phase(maps, lines[:, centre]), notes


def fitted_columns(n_columns: int) -> slice:
    """Columns that `joint_maps` looks at: at equal distances, or all where there are few."""
    stride = max(1, n_columns // _COLUMNS)
    return slice(stride // 2, None, stride)


class _Fit:
    """Fits an image ``(x, y)`` and cosine series ``(coil, wave x, wave y)`` to lines, by least squares with priors."""

    def __init__(self, lines: torch.Tensor, measured: torch.Tensor, n_columns: int, caution: float) -> None:
        self._weight = _WEIGHT * caution
        self.share = float(measured.float().mean())
        # The centring of the transform cancels in F^H M F, see SenseOperator.
        self._missing = torch.fft.ifftshift(~measured)
        self._folded = ifft(lines.mT, (-1,)).contiguous()
        self._energy = _energy(self._folded)
        self._along_y, self._along_full_x = (_half_waves(size).to(lines) for size in (lines.shape[1], n_columns))
        self._along_x = self._along_full_x[:, fitted_columns(n_columns)].contiguous()
        waves_y, waves_x = (torch.arange(len(along)).square() for along in (self._along_y, self._along_x))
        self.decay = ((1 + (waves_x[:, None] + waves_y) / _CORNER**2) ** -_POWER).to(lines.real)

    def maps(self, series: torch.Tensor) -> torch.Tensor:
        """Sum the half waves: maps ``(coil, x, y)`` in the columns of the fit."""
        return self._along_x.mT @ (self.decay * series) @ self._along_y

    def full_maps(self, series: torch.Tensor) -> torch.Tensor:
        """Sum the half waves: maps ``(coil, y, x)`` in all columns."""
        return self._along_y.mT @ (self.decay * series).mT @ self._along_full_x

    def waves(self, products: torch.Tensor) -> torch.Tensor:
        """Adjoint of `maps`."""
        return self.decay * (self._along_x @ (products @ self._along_y.mT))

    def project(self, coil_images: torch.Tensor) -> torch.Tensor:
        """F^H M F: what the measured lines tell of coil images ``(coil, x, y)``."""
        projected: torch.Tensor = torch.fft.ifft(torch.fft.fft(coil_images).masked_fill_(self._missing, 0))
        return projected

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The image that the combination of coils with most signal sees, and the same map everywhere."""
        body = virtual_coils(self._folded, 1)
        series = self._folded.new_zeros((len(body), *self.decay.shape))
        series[:, 0, 0] = body[:, 0]
        return (body.conj()[:, :, None] * self._folded).sum(0), series

    def start_near(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The series nearest to maps ``(coil, y, x)``, and the image that coils with these maps see."""
        series = self.waves(maps.mT / maps[0].numel()) / (self.decay.square() + _BESIDE)
        smooth = self.maps(series)
        seen = (smooth.conj() * self._folded).sum(0)
        return seen / (self.share * _power(smooth).sum(0) + _BESIDE), series

    def series(self, image: torch.Tensor, prior: float) -> torch.Tensor:
        """Fit the series to a known image; `prior` is the weight of its own prior."""
        nothing = self._folded.new_zeros((len(self._folded), *self.decay.shape))
        return _Tangent(self, image, nothing, prior, image_too=False).solve(self._folded)[1]

    def step(
        self, image: torch.Tensor, series: torch.Tensor, least_left: float
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Improve both by a Gauss-Newton step; the third result is the weight of the priors."""
        # The product stays when one grows as the other shrinks; the priors want them equal.
        growth = (_energy(series) / _energy(image)) ** 0.25
        image, series = image * growth, series / growth
        unexplained = self._folded - self.project(image * self.maps(series))
        left = (_energy(unexplained) / self._energy) ** 0.5
        prior = self._weight * max(min(left, _MOST_LEFT), least_left, _LEAST_LEFT) * self._energy**0.5
        change, changes = _Tangent(self, image, series, prior).solve(unexplained)
        return image + change, series + changes, prior


class _Tangent:
    """The fit near an image and series, where it is linear in both; in units that make it well conditioned."""

    def __init__(
        self, fit: _Fit, image: torch.Tensor, series: torch.Tensor, prior: float, *, image_too: bool = True
    ) -> None:
        self._fit, self._image, self._series, self._prior = fit, image, series, prior
        self._maps = fit.maps(series)
        self._unit_image = (fit.share * _power(self._maps).sum(0) + prior).rsqrt() * image_too
        self._unit_series = (fit.share * _energy(image) * fit.decay.square() + prior).rsqrt()

    def solve(self, unexplained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the changes of image and series."""
        gradient = self._adjoint(unexplained, -self._prior, self._image, self._series)
        changes = conjugate_gradient(self, gradient, iterations=_ITERATIONS, regularization=0, joint=True)
        return self._unpack(changes)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the normal operator to both unknowns, ``(1, 1, unknown)``."""
        change, changes = self._unpack(image)
        products = self._fit.project(change * self._maps + self._image * self._fit.maps(changes))
        return self._adjoint(products, self._prior, change, changes)

    def _unpack(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n_pixels = self._image.numel()
        change, changes = vector[0, 0, :n_pixels], vector[0, 0, n_pixels:]
        return self._unit_image * change.view_as(self._image), self._unit_series * changes.view_as(self._series)

    def _adjoint(
        self, products: torch.Tensor, weight: float, image: torch.Tensor, series: torch.Tensor
    ) -> torch.Tensor:
        """Give both unknowns ``(1, 1, unknown)`` of coil images, plus so much of an image and series."""
        for_image = (self._maps.conj() * products).sum(0) + weight * image
        for_series = self._fit.waves(self._image.conj() * products) + weight * series
        return torch.cat([(self._unit_image * for_image).flatten(), (self._unit_series * for_series).flatten()])[
            None, None
        ]


def _half_waves(n_pixels: int) -> torch.Tensor:
    """Cosines ``(wave, pixel)`` of mean square one, as many as there are pixels, but at most `_WAVES`."""
    pixel = torch.arange(n_pixels, dtype=torch.float64)
    cosines = torch.cos(torch.pi * torch.outer(pixel[:_WAVES], (pixel + 0.5) / n_pixels))
    return cosines / cosines.square().mean(1, keepdim=True).sqrt()


def _power(array: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(array).square().sum(-1)


def _energy(array: torch.Tensor) -> float:
    return float(_power(array).sum())
