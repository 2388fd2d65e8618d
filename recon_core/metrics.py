"""How far a reconstruction is from its reference: on magnitudes, over the whole series, with numpy alone.

None of the measures scales the image: multiply it by `best_scale` first where the units differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.number[Any]]


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


def nrmse(image: Image, reference: Image) -> float:
    """Normalised root mean square error, ``|| |image| - |reference| || / || reference ||``.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        0 for a perfect image, 1 for an image of zeros.
    """
    ours, theirs = _magnitudes(image, reference)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def psnr(image: Image, reference: Image, region: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the maximum of the whole reference series.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.
    region
        ``(y, x)`` bool, pixels to average the error over in every frame; None takes all.

    Returns
    -------
    float
        20 log10(peak / root mean square error); infinite for a perfect image.
    """
    ours, theirs = _magnitudes(image, reference)
    error = ours - theirs if region is None else (ours - theirs)[:, region]
    rmse = math.sqrt(float(np.mean(np.square(error))))
    return 20 * math.log10(float(theirs.max()) / rmse) if rmse > 0 else math.inf


def dynamic_region(reference: Image) -> NDArray[np.bool_]:
    """Find the moving part of a series: pixels above the 90th percentile of the temporal standard deviation.

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


def dynamic_psnr(image: Image, reference: Image) -> float:
    """`psnr` over the `dynamic_region` of the reference; the peak is still that of the whole series.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    float
        Decibel.
    """
    return psnr(image, reference, dynamic_region(reference))


def ssim(image: Image, reference: Image) -> float:
    """Structural similarity, averaged over all pixels and frames.

    Windows are 7 x 7 squares with equal weights that lie inside the frame, variances are unbiased (divided by 48),
    constants are K1 = 0.01 and K2 = 0.03, and the dynamic range is the maximum of the whole reference series.
    Wang et al., IEEE Trans Image Process 2004, doi:10.1109/TIP.2003.819861.

    Parameters
    ----------
    image, reference
        ``(frame, y, x)``, real or complex, at least 7 x 7 pixels; magnitudes are compared.

    Returns
    -------
    float
        1 for a perfect image.

    Raises
    ------
    DataError
        If the frames are smaller than the window.
    """
    ours, theirs = _magnitudes(image, reference)
    if min(ours.shape[1:]) < 7:
        raise DataError(f"SSIM needs frames of at least 7 x 7 pixels, got {ours.shape[1:]}")
    unbiased = 49 / 48
    mean_ours, mean_theirs = _window_mean(ours), _window_mean(theirs)
    variance_ours = unbiased * (_window_mean(ours * ours) - mean_ours**2)
    variance_theirs = unbiased * (_window_mean(theirs * theirs) - mean_theirs**2)
    covariance = unbiased * (_window_mean(ours * theirs) - mean_ours * mean_theirs)
    peak = float(theirs.max())
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = ((2 * mean_ours * mean_theirs + c1) * (2 * covariance + c2)) / (
        (mean_ours**2 + mean_theirs**2 + c1) * (variance_ours + variance_theirs + c2)
    )
    return float(similarity.mean())


def _magnitudes(image: Image, reference: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitudes in double precision, after checking that they can be compared."""
    if image.shape != reference.shape or image.ndim != 3:
        raise DataError(f"image and reference must both be (frame, y, x), got {image.shape} and {reference.shape}")
    theirs = np.abs(reference).astype(np.float64)
    if not theirs.any():
        raise DataError("the reference is zero everywhere; no relative error exists")
    return np.abs(image).astype(np.float64), theirs


def _window_mean(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of every 7 x 7 window of ``(frame, y, x)``."""
    for axis in (1, 2):
        frames = np.lib.stride_tricks.sliding_window_view(frames, 7, axis=axis).mean(axis=-1)
    return frames
