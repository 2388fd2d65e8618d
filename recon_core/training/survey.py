"""Range in which a trained network is reliable: compared with the best method without weights on other scans.

Not every scan drawn in training was learned. The range stored with the weights is reduced to the scans on which the
network is no worse than that method, and the limits of its images are those found there. Easy scans, on which it has
nothing to gain, are recognised by an image that hardly differs from that of the method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon_core.engine import create_method
from recon_core.errors import ModelError
from recon_core.inference.method import signal_to_noise
from recon_core.options import ReconOptions
from recon_core.training.trainer import draw_scan, place_of_crop, reconstruct_series, scores
from recon_core.trust.image_figures import image_figures
from recon_core.trust.ranges import Limits, Sampling, TrainingRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recon_core.networks.base import Network
    from recon_core.training.library import Library
    from recon_core.training.plan import TrainingPlan
    from recon_core.trust.ranges import Bounds, ImageFigures

#: What a network must do no worse than: the best there is without weights.
REFERENCE = "kt_sense"
_SEED = 800_000  # far from the seeds of any training
_WIDTH = 48  # columns, for speed
_TOLERANCE = 0.2  # dB that an image may be worse than that of the reference
_MARGIN = 1.2  # of the limits, over the largest figure found
_BEAM = 40  # width of the search: ranges kept per step
_LEAST_CHANGES = np.arange(11) / 50  # candidates for the least change, below which the network is not used
# What may be cut at its lower or upper end. More calibration lines do no harm, though easy scans have more.
_LOWER = ("acceleration", "coils", "centre_lines", "snr")
_UPPER = ("acceleration", "coils", "empty_frames", "snr")


@dataclass(frozen=True)
class Finding:
    """A scan, and what the network made of it."""

    scan: Sampling
    """Its properties that a range checks."""
    gain: float
    """PSNR in dB above that of `REFERENCE`."""
    figures: ImageFigures
    """Of the image, as checked after the network has run."""


def survey(network: Network, plan: TrainingPlan, library: Library) -> Iterator[Finding]:
    """Compare a network with `REFERENCE` on `TrainingPlan.survey` scans, one after the other.

    Parameters
    ----------
    network
        In evaluation mode.
    plan
        How it was trained.
    library
        Held-out images; may be empty.

    Yields
    ------
    Finding
        Of scan after scan.
    """
    method = create_method(REFERENCE, ReconOptions())
    for number in range(plan.survey):
        seed = (_SEED, plan.seed, number)
        whole = draw_scan(seed, plan, library, network.minimum_frames)
        snr = signal_to_noise(whole.slice())
        width = min(_WIDTH, whole.maps.shape[-1])
        first = place_of_crop(whole.target, width, np.random.default_rng(seed))
        _, n_coils, _, n_samples = whole.hybrid.shape
        with torch.inference_mode():
            reference = method(whole.slice())[..., first : first + width]
            scan = whole.started(plan.start).crop(first, width)
            image = reconstruct_series(network, scan)
            ours, theirs = (scores(each.numpy(), scan.target.numpy())[0] for each in (image, reference))
            figures = image_figures(scan.slice(), image, reference)
        yield Finding(Sampling.of(scan.mask.numpy(), n_coils, n_samples, snr), round(ours - theirs, 2), figures)


def reliable(trained: TrainingRange, findings: list[Finding]) -> tuple[TrainingRange, Limits, list[Finding]]:
    """Find the scans on which a network is no more than 0.2 dB worse than `REFERENCE`, by range and limits.

    Parameters
    ----------
    trained
        What was drawn in training.
    findings
        Of scans of all kinds.

    Returns
    -------
    tuple
        The reduced range; the limits of the images; the findings inside both, as many as the search could keep. The
        least change is the candidate that keeps most of them; of several, the one with the wider range.

    Raises
    ------
    ModelError
        If no scan is left.
    """
    best: tuple[TrainingRange, Limits, list[Finding]] | None = None
    most = (0, 0)
    for least_change in _LEAST_CHANGES:
        lower = Limits(least_change=float(least_change) or None)
        gaining = [finding for finding in findings if lower.gains(finding.figures.change)]
        cut = narrowed(trained, gaining)
        if cut is None:
            continue
        inside = [finding for finding in gaining if not cut.outside(finding.scan)]
        worth = len(inside), sum(not cut.outside(finding.scan) for finding in findings)
        if worth > most:
            upper = found_limits(inside)
            best, most = (cut, dataclasses.replace(upper, least_change=lower.least_change), inside), worth
    if best is None:
        raise ModelError(
            f"no kind of scan was found on which the network is as good as {REFERENCE} to within {_TOLERANCE} dB; the "
            "weights are not exported. Train for more steps, or at another rate"
        )
    return best


def narrowed(trained: TrainingRange, findings: list[Finding]) -> TrainingRange | None:
    """Cut a range down until no scan inside it is more than 0.2 dB worse than with `REFERENCE`.

    Parameters
    ----------
    trained
        What was drawn in training.
    findings
        Of scans of all kinds.

    Returns
    -------
    TrainingRange or None
        The range with most scans of a beam search: each cut excludes the worst remaining scan by one bound or pattern,
        and the most promising ranges are cut further. None if no scan is left.
    """
    beam, best, most = [trained], None, 0
    while beam:
        cuts: dict[TrainingRange, tuple[int, int]] = {}
        for one in beam:
            inside = [finding for finding in findings if not one.outside(finding.scan)]
            worst = min(inside, key=lambda finding: finding.gain, default=None)
            if worst is not None and worst.gain < -_TOLERANCE:
                cuts |= {cut: _worth(cut, inside) for cut in _cuts(one, worst.scan, inside)}
            elif len(inside) > most:
                best, most = one, len(inside)
        beam = sorted((cut for cut in cuts if cuts[cut][1] > most), key=lambda cut: cuts[cut], reverse=True)[:_BEAM]
    return best


def _worth(cut: TrainingRange, findings: list[Finding]) -> tuple[int, int]:
    """Good scans less bad ones that a range keeps, and good ones."""
    kept = [one.gain >= -_TOLERANCE for one in findings if not cut.outside(one.scan)]
    return 2 * sum(kept) - len(kept), sum(kept)


def _cuts(trained: TrainingRange, scan: Sampling, findings: list[Finding]) -> Iterator[TrainingRange]:
    """Ranges without a scan, each a little more than what one bound or pattern of another range excludes."""
    for name in dict.fromkeys((*_LOWER, *_UPPER)):
        bounds: Bounds | None = getattr(trained, name)
        value: float | None = getattr(scan, name)
        if bounds is None or value is None:
            continue
        own = round(value, 2)  # rounded as in a range
        others = sorted(_rounded(float(getattr(one.scan, name)), name) for one in findings)
        below = [other for other in others if other < own and name in _UPPER]
        above = [other for other in others if other > own and name in _LOWER]
        narrower = [(bounds[0], other) for other in below[-1:]] + [(other, bounds[1]) for other in above[:1]]
        for low, high in narrower:
            if low <= high:
                yield dataclasses.replace(trained, **{name: (low, high)})  # type: ignore[arg-type]
    rest = tuple(pattern for pattern in trained.patterns or () if pattern != scan.pattern)
    yield dataclasses.replace(trained, patterns=rest)


def _rounded(value: float, name: str) -> float:
    return round(value, 1) if name in ("acceleration", "snr") else value


def found_limits(findings: list[Finding]) -> Limits:
    """Upper limits of images: a fifth more than the largest figures found.

    Parameters
    ----------
    findings
        Of scans inside the range.
    """

    def most(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(_MARGIN * max(known), 2) or None if known else None

    figures = [finding.figures for finding in findings]
    return Limits(residual=most([each.residual for each in figures]), change=most([each.change for each in figures]))
