"""Scores of images against a known truth: reading the truth, one intensity factor per scan, scores by name."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recon_core.errors import ResourceError, SettingsError
from recon_core.metrics.measures import best_scale, dynamic_region, haarpsi, nrmse, psnr, ssim, window_centres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Truth = NDArray[np.number[Any]]

_TRUTH_KEYS = ("image", "reference")  # names used by the simulator and by reference data sets


class Score(NamedTuple):
    """How a score is shown: its title, a format, and which of several values is the best one."""

    title: str
    form: str
    best: Callable[[Iterable[float]], float]


SCORES = {
    "dynamic_nrmse": Score("Dynamic NRMSE", "{:.4f}", min),  # the heart, which is looked at, comes first
    "dynamic_psnr": Score("Dynamic PSNR", "{:.2f} dB", max),
    "dynamic_ssim": Score("Dynamic SSIM", "{:.4f}", max),
    "nrmse": Score("NRMSE", "{:.4f}", min),
    "psnr": Score("PSNR", "{:.2f} dB", max),
    "ssim": Score("SSIM", "{:.4f}", max),
    "haarpsi": Score("HaarPSI", "{:.4f}", max),
    "dists": Score("DISTS", "{:.4f}", min),
}


def score_text(name: str, values: Mapping[str, float]) -> str:
    """One score as text; a dash where it is missing."""
    return SCORES[name].form.format(values[name]).replace("inf", "∞") if name in values else "–"


def read_truth(path: Path) -> Truth:
    """Read the truth of a scan.

    Parameters
    ----------
    path
        An ``.npz`` with ``image``, as ``cinestream simulate`` writes it, or else ``reference``.

    Returns
    -------
    ndarray
        ``(slice, frame, y, x)``, real or complex, in any unit.

    Raises
    ------
    ResourceError
        If the file cannot be read or holds neither.
    """
    wanted = " or ".join(map(repr, _TRUTH_KEYS))
    if (kind := _other_kind(path)) is not None:
        usual = path.with_name(f"{path.stem}_truth.npz")
        hint = f"; {usual} is there" if usual.is_file() else ""
        raise ResourceError(f"cannot read the truth {path}: expected an .npz with {wanted}, got {kind}{hint}")
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            truth = next((arrays[key] for key in _TRUTH_KEYS if key in arrays), None)
            found = ", ".join(arrays)
    except (OSError, EOFError, AttributeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ResourceError(f"cannot read the truth {path}: expected an .npz with {wanted} ({error})") from error
    if truth is None or not np.issubdtype(truth.dtype, np.number):
        raise ResourceError(
            f"cannot read the truth {path}: expected numbers in an .npz as {wanted}; it has {found or 'nothing'}"
        )
    return np.asarray(truth)


def _other_kind(path: Path) -> str | None:
    """What a file is that is no ``.npz``, by its first bytes; None for one, and where it cannot be read."""
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError:
        return None
    if begin.startswith(b"PK"):
        return None
    kinds = {b"\x89HDF\r\n\x1a\n": "an HDF5 file, as raw data and images are", b"\x93NUMPY": "a single array (.npy)"}
    return next((kind for start, kind in kinds.items() if begin.startswith(start)), "a file of another kind")


def score(series: Sequence[tuple[str, NDArray[np.float32]]], truth: Truth) -> dict[str, float]:
    """Compare a whole scan with the truth, after one factor for all of its images.

    Parameters
    ----------
    series
        As `gadgets.reports.record.ReportCollector.series` gives it.
    truth
        ``(slice, frame, y, x)``, real or complex; magnitudes are compared.

    Returns
    -------
    dict
        As `measure`, over all slices and frames.

    Raises
    ------
    SettingsError
        If the truth has another shape.
    DataError
        If the truth is zero everywhere.
    """
    return measure(scaled([frames for _, frames in series], truth), list(truth))


def scaled(series: Sequence[NDArray[np.float32]], truth: Truth) -> list[NDArray[np.float32]]:
    """Bring the images to the unit of the truth, by one factor for all.

    Parameters
    ----------
    series
        For every slice ``(frame, y, x)`` magnitudes.
    truth
        ``(slice, frame, y, x)``, real or complex.

    Raises
    ------
    SettingsError
        If the truth has another shape.
    DataError
        If the truth is zero everywhere.
    """
    shapes = {frames.shape for frames in series}
    if truth.ndim != 4 or not len(truth) or len(series) != len(truth) or shapes != {truth.shape[1:]}:
        ours = " and ".join(str(shape) for shape in sorted(shapes)) or "(none)"
        raise SettingsError(
            f"the truth does not fit the images: expected (slice, frame, y, x) with {len(series)} slices of {ours}, "
            f"got {truth.shape}; take the truth of this very scan"
        )
    factor = best_scale(np.concatenate(series), np.concatenate(truth))
    return [frames * np.float32(factor) for frames in series]


def measure(
    images: Sequence[NDArray[np.float32]],
    truth: Sequence[Truth],
    dists: Callable[[NDArray[np.float32], Truth], float] | None = None,
) -> dict[str, float]:
    """Compare slices with their truth by every measure there is; none of them scales.

    Parameters
    ----------
    images, truth
        For every slice ``(frame, y, x)``; magnitudes are compared.
    dists
        A `recon_core.metrics.dists.Dists`, if its weights are available.

    Returns
    -------
    dict
        By the names of `SCORES`: ``nrmse``, ``psnr``, ``ssim`` and ``haarpsi`` of `recon_core.metrics.measures` over
        all slices and frames with the maximum of all as peak; the first three also in the `dynamic_region` of each
        slice as ``dynamic_...``, where anything moves; ``dists`` if it was given.
    """
    ours, theirs = np.concatenate(images), np.concatenate(truth)
    scores = {function.__name__: function(ours, theirs) for function in (nrmse, psnr, ssim, haarpsi)}
    region = np.concatenate([np.broadcast_to(dynamic_region(frames), frames.shape) for frames in truth])
    if region.any():
        scores["dynamic_nrmse"] = nrmse(ours, theirs, region)
        scores["dynamic_psnr"] = psnr(ours, theirs, region)
    if window_centres(region).any():
        scores["dynamic_ssim"] = ssim(ours, theirs, region)
    if dists is not None:
        scores["dists"] = dists(ours, theirs)
    return scores
