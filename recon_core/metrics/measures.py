"""How far a reconstruction is from its reference: on magnitudes, over the whole series, with numpy alone.

None of the measures scales the image: multiply it by `best_scale` first where the units differ. Where a dynamic range
is needed it is the maximum of the whole reference series, so that frames weigh alike. Published numbers differ in this:

- CRUNet-MR (Lyu et al., PMC12754836): every frame on its own, image and reference each divided by their own maximum;
  `frame_mean` gives that.
- CST-Net (Wang et al., doi:10.1016/j.compbiomed.2024.109133) and its relatives: PSNR of the complex error with the
  maximum of the label (DUS-Net) or of the reconstruction (T2LR-Net) as peak; SSIM with frames as channels and range 1.
- PromptMR (Xin et al., doi:10.48550/arXiv.2309.13839) and CineNet: NMSE and PSNR per volume, as here, with the maximum
  of the target as peak; SSIM per frame.
- Dual U-Net with 3-D ResNet: peak 1, SSIM with Gaussian windows over time and space; `block_psnr` and `block_ssim`.

So numbers of different papers can be compared neither with each other nor with these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Image = NDArray[np.number[Any]]
    Frames = NDArray[np.float64]

_WINDOW = 7  # pixels, side of an SSIM window
_GAUSSIAN_WINDOW = 11  # frames and pixels, side of an SSIM window over time and space
_GAUSSIAN_SIGMA = 1.5
_HAAR_C = 30.0
_HAAR_ALPHA = 4.2


def best_scale(image: Image, reference: Image) -> float:
    """Find the one factor for the whole series that brings the image closest to the reference (least squares).

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        sum(|image| |reference|) / sum(|image|^2); 1 for an image of zeros.
    """
    ours, theirs = _magnitudes(image, reference)
    energy = float(np.vdot(ours, ours))
    return float(np.vdot(ours, theirs)) / energy if energy > 0 else 1.0


def nrmse(image: Image, reference: Image, region: NDArray[np.bool_] | None = None) -> float:
    """Normalised root mean square error, ``|| |image| - |reference| || / || reference ||``.

    Its square is the NMSE of CRUNet-MR, PromptMR and CineNet.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.
    region
        ``(y, x)`` or ``(frame, y, x)`` bool, pixels that both norms are taken over; None takes all.

    Returns
    -------
    float
        0 for a perfect image, 1 for an image of zeros.

    Raises
    ------
    DataError
        If the reference is zero within the region.
    """
    ours, theirs = _magnitudes(image, reference)
    error, signal = _pixels(ours - theirs, region), _pixels(theirs, region)
    if not signal.any():
        raise DataError("the reference is zero everywhere in the region; no relative error exists")
    return float(np.linalg.norm(error) / np.linalg.norm(signal))


def psnr(image: Image, reference: Image, region: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the maximum of the whole reference series.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.
    region
        ``(y, x)`` or ``(frame, y, x)`` bool, pixels to average the error over; None takes all.

    Returns
    -------
    float
        20 log10(peak / root mean square error); infinite for a perfect image.
    """
    ours, theirs = _magnitudes(image, reference)
    rmse = math.sqrt(float(np.mean(np.square(_pixels(ours - theirs, region)))))
    return 20 * math.log10(float(theirs.max()) / rmse) if rmse > 0 else math.inf


def dynamic_region(reference: Image) -> NDArray[np.bool_]:
    """Find the moving part of a series: pixels above the 90th percentile of the temporal standard deviation.

    The dynamic region of CRUNet-MR (Lyu et al., PMC12754836); give it to `nrmse`, `psnr` and `ssim` as their region.

    Parameters
    ----------
    reference
        ``(frame, y, x)``, real or complex; the magnitude counts.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` bool.
    """
    deviation = np.abs(reference).astype(np.float64).std(axis=0)
    return np.asarray(deviation > np.percentile(deviation, 90))


def ssim(image: Image, reference: Image, region: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity, averaged over pixels and frames.

    Windows are 7 x 7 squares with equal weights that lie inside the frame, variances are unbiased (divided by 48),
    constants are K1 = 0.01 and K2 = 0.03, and the dynamic range is the maximum of the whole reference series.
    Wang et al., IEEE Trans Image Process 2004, doi:10.1109/TIP.2003.819861.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex, at least 7 x 7 pixels; magnitudes are compared.
    region
        ``(y, x)`` or ``(frame, y, x)`` bool, centres of the windows to average over; None takes all. Pixels less than
        3 from an edge are the centre of no window.

    Returns
    -------
    float
        1 for a perfect image.

    Raises
    ------
    DataError
        If the frames are smaller than the window, or no window has its centre in the region.
    """
    ours, theirs = _magnitudes(image, reference)
    if min(ours.shape[1:]) < _WINDOW:
        raise DataError(f"SSIM needs frames of at least {_WINDOW} x {_WINDOW} pixels, got {ours.shape[1:]}")
    peak = float(theirs.max())
    similarity = _similarity(ours, theirs, _window_mean, peak, _WINDOW**2 / (_WINDOW**2 - 1))
    return float(_pixels(similarity, None if region is None else window_centres(region)).mean())


def window_centres(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut a region ``(..., y, x)`` to the pixels that are the centre of an SSIM window, 3 less on every side."""
    inside = slice(_WINDOW // 2, -(_WINDOW // 2))
    return np.asarray(region[..., inside, inside])


def haarpsi(image: Image, reference: Image) -> float:
    """Haar wavelet-based perceptual similarity index, averaged over the frames.

    Magnitudes are scaled so that the maximum of the whole reference series is 255, and averaged over 2 x 2 pixels.
    Haar filters of three scales j, 2^j pixels wide with values of 2^-j, are applied along both axes with zeros outside
    the frame. The similarity ``(2ab + C) / (a^2 + b^2 + C)`` of the magnitudes a and b of the coefficients, averaged
    over the finer two scales, goes through the logistic function of slope alpha; its mean over pixels and axes,
    weighted with the larger magnitude of the coarsest scale, comes back through the inverse and is squared. C = 30,
    alpha = 4.2.
    Reisenhofer et al., Signal Process Image Commun 2018, doi:10.1016/j.image.2017.11.001.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        1 for a perfect image, above 0; a frame that is zero in both counts as 1.
    """
    ours, theirs = _magnitudes(image, reference)
    scale = 255 / float(theirs.max())
    ours, theirs = _halved(ours * scale), _halved(theirs * scale)
    value, weight = np.zeros(len(ours)), np.zeros(len(ours))
    for axis in (1, 2):
        similarity = np.zeros_like(ours)
        for j in (1, 2):
            a, b = _haar_magnitude(ours, j, axis), _haar_magnitude(theirs, j, axis)
            similarity += (2 * a * b + _HAAR_C) / (a * a + b * b + _HAAR_C) / 2
        weights = np.maximum(_haar_magnitude(ours, 3, axis), _haar_magnitude(theirs, 3, axis))
        value += (weights / (1 + np.exp(-_HAAR_ALPHA * similarity))).sum(axis=(1, 2))
        weight += weights.sum(axis=(1, 2))
    mean = np.divide(value, weight, out=np.full_like(value, 1 / (1 + math.exp(-_HAAR_ALPHA))), where=weight > 0)
    return float(np.mean(np.square(np.log(mean / (1 - mean)) / _HAAR_ALPHA)))


def frame_mean(measure: Callable[[Image, Image], float], image: Image, reference: Image) -> float:
    """Mean of a measure over the frames, each frame of both series divided by its own maximum first.

    The way CRUNet-MR was scored (Lyu et al., PMC12754836). It hides errors of brightness from frame to frame.

    Parameters
    ----------
    measure
        `nrmse`, `psnr`, `ssim`, `haarpsi` or the like.
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        In the unit of the measure.
    """
    ours, theirs = (
        frames / np.maximum(frames.max(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)
        for frames in _magnitudes(image, reference)
    )
    return float(np.mean([measure(ours[i : i + 1], theirs[i : i + 1]) for i in range(len(ours))]))


def block_psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB of a series that was scaled to a peak of one, over the whole series.

    The way the Dual U-Net with 3-D ResNet was scored (github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction).

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        ``-10 log10(mean square error + 1e-8)``, so that a perfect image has 80 dB.
    """
    ours, theirs = _magnitudes(image, reference)
    return -10 * math.log10(float(np.mean(np.square(ours - theirs))) + 1e-8)


def block_ssim(image: Image, reference: Image) -> float:
    """Structural similarity in space and time, averaged over pixels and frames.

    The way the Dual U-Net with 3-D ResNet was scored (github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction):
    windows are cubes of 11 frames, rows and columns that lie inside the series, with Gaussian weights of standard
    deviation 1.5; variances are divided by the sum of the weights, constants are K1 = 0.01 and K2 = 0.03, and the
    dynamic range is maximum less minimum of the reference. Wang et al., IEEE Trans Image Process 2004,
    doi:10.1109/TIP.2003.819861.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex, at least 11 along each axis; magnitudes are compared.

    Returns
    -------
    float
        1 for a perfect image.

    Raises
    ------
    DataError
        If the series is smaller than the window, or the reference is the same everywhere.
    """
    ours, theirs = _magnitudes(image, reference)
    if min(ours.shape) < _GAUSSIAN_WINDOW:
        raise DataError(f"SSIM over time needs at least {_GAUSSIAN_WINDOW} frames, rows and columns, got {ours.shape}")
    dynamic_range = float(np.ptp(theirs))
    if dynamic_range == 0:
        raise DataError("the reference is the same everywhere; it has no range to measure in")
    return float(_similarity(ours, theirs, _gaussian_mean, dynamic_range, 1.0).mean())


def _magnitudes(image: Image, reference: Image) -> tuple[Frames, Frames]:
    """Magnitudes in double precision, after checking that they can be compared."""
    if image.shape != reference.shape or image.ndim != 3:
        raise DataError(f"image and reference must both be (frame, y, x), got {image.shape} and {reference.shape}")
    ours, theirs = np.abs(image).astype(np.float64), np.abs(reference).astype(np.float64)
    for name, frames in (("image", ours), ("reference", theirs)):
        if not np.isfinite(frames).all():
            raise DataError(f"the {name} holds NaN or infinite values; nothing can be measured on them")
    if not theirs.any():
        raise DataError("the reference is zero everywhere; no relative error exists")
    return ours, theirs


def _pixels(frames: Frames, region: NDArray[np.bool_] | None) -> Frames:
    """Values of the pixels in a region, which is the same for all frames or has one mask per frame."""
    if region is None:
        return frames
    chosen = frames[np.broadcast_to(region, frames.shape)]
    if not chosen.size:
        raise DataError("the region to measure in has no pixel")
    return chosen


def _window_mean(frames: Frames) -> Frames:
    """Mean of every 7 x 7 window of ``(frame, y, x)``."""
    for axis in (1, 2):
        frames = np.lib.stride_tricks.sliding_window_view(frames, _WINDOW, axis=axis).mean(axis=-1)
    return frames


def _gaussian_mean(frames: Frames) -> Frames:
    """Mean of every 11 x 11 x 11 window of ``(frame, y, x)`` with Gaussian weights."""
    distance = np.arange(_GAUSSIAN_WINDOW) - _GAUSSIAN_WINDOW // 2
    weights = np.exp(-0.5 * np.square(distance / _GAUSSIAN_SIGMA))
    for axis in (0, 1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(frames, _GAUSSIAN_WINDOW, axis=axis)
        frames = np.asarray(windows @ (weights / weights.sum()))
    return frames


def _similarity(
    ours: Frames, theirs: Frames, mean: Callable[[Frames], Frames], dynamic_range: float, correction: float
) -> Frames:
    """Structural similarity of all windows that `mean` averages over; variances are corrected by a factor."""
    mean_ours, mean_theirs = mean(ours), mean(theirs)
    variance_ours = correction * (mean(ours * ours) - mean_ours**2)
    variance_theirs = correction * (mean(theirs * theirs) - mean_theirs**2)
    covariance = correction * (mean(ours * theirs) - mean_ours * mean_theirs)
    c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2
    return ((2 * mean_ours * mean_theirs + c1) * (2 * covariance + c2)) / (
        (mean_ours**2 + mean_theirs**2 + c1) * (variance_ours + variance_theirs + c2)
    )


def _halved(frames: Frames) -> Frames:
    """Mean of every 2 x 2 block of ``(frame, y, x)``; zeros complete an odd size."""
    n_frames, n_rows, n_columns = frames.shape
    frames = np.pad(frames, ((0, 0), (0, n_rows % 2), (0, n_columns % 2)))
    return np.asarray(frames.reshape(n_frames, (n_rows + 1) // 2, 2, (n_columns + 1) // 2, 2).mean(axis=(2, 4)))


def _haar_magnitude(frames: Frames, j: int, along: int) -> Frames:
    """Magnitude of the Haar coefficients of scale `j` of ``(frame, y, x)``, differences along one axis."""
    half = 2 ** (j - 1)
    for axis in (1, 2):
        padded = np.pad(frames, [(half - 1, half) if i == axis else (0, 0) for i in range(3)])
        kernel = np.repeat([-1.0 if axis == along else 1.0, 1.0], half)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * half, axis=axis) @ kernel
    return np.asarray(np.abs(frames) / (2 * half))
