"""How strong the signal of a slice is: what scales networks, and what tells usual scans from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon_core.data import HybridSlice


def peak_of_average(data: HybridSlice) -> float:
    """The largest magnitude of the image of the time average."""
    return float(data.average_image().abs().max())


def signal_to_noise(data: HybridSlice, peak: float | None = None) -> float | None:
    """Estimate the peak signal-to-noise ratio of a scan.

    Parameters
    ----------
    data
        The slice.
    peak
        Of the image of the time average, where it is known already.

    Returns
    -------
    float or None
        Peak magnitude of the image of the time average over the standard deviation of a complex sample; None where the
        noise is not known.
    """
    if data.noise_variance is None:
        return None
    return (peak_of_average(data) if peak is None else peak) / data.noise_deviation()
