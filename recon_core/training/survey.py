"""What weights are worth beside the best method without weights: on scans that they have not seen, with known truth.

From it comes how far their images are believed (`recon_core.trust.weighing`), and what is gained by it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recon_core.errors import ModelError
from recon_core.inference.fusion import decades, gather, settled
from recon_core.methods import why_not_points
from recon_core.metrics.measures import dynamic_region
from recon_core.training.images import reconstruct_series
from recon_core.training.trainer import draw_scan, place_of_crop
from recon_core.trust.weighing import LEAST_SHARE, Beyond, Weighing
from recon_core.weights.manifest import STARTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from recon_core.data import HybridSlice
    from recon_core.inference.fusion import Evidence
    from recon_core.networks.base import Network
    from recon_core.training.library import Library
    from recon_core.training.measurements import Measurement
    from recon_core.training.plan import TrainingPlan

#: What the images are weighed against: the best there is without weights.
REFERENCE = "kt_sense"
_SEED = 800_000  # far from the seeds of any training
_WIDTH = 64  # columns, for speed
_WORSE = 0.2  # dB that an image may be worse than that of the reference
_FOLDS = 4
_POINTS = 0.2  # share of the scans that have points next to spokes instead of lines
# A dB lost beyond what nobody sees counts as one of these many won, the first that keeps what is clearly worse rare
# among what is sent. More than some dB won on a scan count no more, and more than one lost as one: else a single scan
# which nothing tells from the others spoils all.
_DREADS = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_TOLERATED, _LOST, _ENOUGH = 0.1, 1.0, 6.0
# Share of what is sent that may be clearly worse: a weighing does a little worse on other scans than on its own.
_ALLOWED = 0.005
# What few scans cannot tell is taken from here, as found for several networks together.
_USUAL = Weighing(
    level=0.0, variance=0.5, change=-1.0, snr=-1.0, acceleration=-1.0, density=-4.0, faint=-6.0, complete=-4.0
)
# Kinds of scans on which a network may do otherwise than on the rest, each with a term of its own that is found on
# them alone, after all else: with few of them, one that fails says little of the others.
_KINDS = ("faint", "complete", "points")
_FIELDS = tuple(field.name for field in dataclasses.fields(Weighing))
_DOUBT = 1.0  # how much it takes to differ from it, in scans
_ROUNDS = 40
_SMALL = 1e-12


@dataclass(frozen=True)
class Finding:
    """A scan: what the reference and the network made of it, as means over the frames; all ``(y, x)`` float32."""

    evidence: Evidence
    """What is known without the truth."""
    error: torch.Tensor
    """Squared error of the magnitude of the reference."""
    agreement: torch.Tensor
    """Product of what the network changes of the magnitude, and what should be changed."""
    change: torch.Tensor
    """Square of what the network changes of the magnitude."""
    moving: torch.Tensor
    """bool, True where the truth moves most."""
    beyond: Beyond = dataclasses.field(default=Beyond())
    """How far the scan is beyond usual ones."""

    @property
    def kind(self) -> str:
        """The last of those kinds of scans that it is of which the weighing has terms of their own; empty if none."""
        return next((kind for kind in reversed(_KINDS) if getattr(self.beyond, kind)), "")


class Gain(NamedTuple):
    """What a weighed image of a scan is better than that of the reference, in dB."""

    whole: float
    moving: float
    """`whole`, `moving`: Of the whole image, and of where it moves most."""
    share: float
    """Of the network, see `recon_core.inference.fusion.Fused`."""


def survey(network: Network, plan: TrainingPlan, library: Library, first: int = 0) -> Iterator[Finding]:
    """Compare a network with `REFERENCE` on `TrainingPlan.survey` scans, one after the other.

    Some have points instead of lines, if the network takes them, whatever it learned from.

    Parameters
    ----------
    network
        In evaluation mode.
    plan
        How it was trained.
    library
        Held-out images; may be empty.
    first
        Number of the first scan: those of a survey begin with 0, later ones have never been looked at.

    Yields
    ------
    Finding
        Of scan after scan.
    """
    if not why_not_points(plan.method):
        plan = dataclasses.replace(plan, points=max(plan.points, _POINTS))
    for number in range(first, first + plan.survey):
        seed = (_SEED, plan.seed, number)
        whole = draw_scan(seed, plan, library, network.minimum_frames)
        width = whole.width_of_crop(_WIDTH)
        begin = place_of_crop(whole.target, width, np.random.default_rng(seed))
        with torch.inference_mode():
            part = whole.started(REFERENCE).crop(begin, width)
            image = reconstruct_series(network, _begun(whole, part, begin, plan.start))
            finding = compare(part.slice(), image, part.target)
            sampling = whole.slice().sampling(whole.noise_variance**-0.5)  # the peak is one
            yield dataclasses.replace(finding, beyond=Beyond.of(sampling))


def _begun(whole: Measurement, part: Measurement, begin: int, start: str) -> Measurement:
    """Columns of a scan with a start; `part` has that of the reference, which weights go on from."""
    if start == REFERENCE:
        return part
    return whole.started(start).crop(begin, part.maps.shape[-1]) if start in STARTS else part.started(start)


def compare(data: HybridSlice, image: torch.Tensor, target: torch.Tensor) -> Finding:
    """Find what a network changes for the better and for the worse, settled as what is sent.

    Parameters
    ----------
    data
        The slice, with image and deviation of the reference as its start.
    image
        ``(frame, y, x)`` complex64, that of the network by itself.
    target
        The truth. All are scaled so that the peak of the time average is one.

    Raises
    ------
    TypeError
        If the slice has no start whose error is known.
    """
    image = settled(data, image)
    start, deviation = data.start, data.start_deviation
    assert start is not None  # noqa: S101 - for the type checker; it could not be settled without
    assert deviation is not None  # noqa: S101
    missing = target.abs() - start.abs()
    change = image.abs() - start.abs()
    moving = torch.from_numpy(dynamic_region(target.numpy()))
    return Finding(
        evidence=gather(start, deviation, image, peak=1.0),  # as scans are drawn
        error=missing.square().mean(0),
        agreement=(missing * change).mean(0),
        change=change.square().mean(0),
        moving=moving if bool(moving.any()) else ~moving,
    )


class _Pool(NamedTuple):
    """Findings side by side: all their pixels in a row, as many gains as scans at once."""

    scan: torch.Tensor
    """``(pixel,)`` int64: which of them it is of."""
    variance: torch.Tensor
    error: torch.Tensor
    agreement: torch.Tensor
    squared: torch.Tensor
    moving: torch.Tensor
    """`variance`, `error`, `agreement`, `squared`, `moving`: ``(pixel,)`` float32, as in `Finding`."""
    of_variance: torch.Tensor
    of_change: torch.Tensor
    """`of_variance`, `of_change`: ``(pixel,)`` float32, see `recon_core.inference.fusion.decades`."""
    of_scan: torch.Tensor
    """``(pixel, field)`` float32 of `recon_core.trust.weighing.Beyond`."""

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> _Pool:
        """Put findings side by side."""
        columns = zip(*(_columns(number, finding) for number, finding in enumerate(findings)), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def gains(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gain of the whole and of the moving part of each scan, differentiable, and the share of the network."""
        # of magnitudes, to first order in the change of phase
        left = self.error - 2 * weight * self.agreement + weight.square() * self.squared
        whole, moving = (
            -10 * (self._sums(left * region) / self._sums(self.error * region)).log10()
            for region in (torch.ones_like(left), self.moving)
        )
        return whole, moving, self._sums(weight * self.variance) / self._sums(self.variance)

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(int(self.scan[-1]) + 1, dtype=torch.float64)
        return total.index_add(0, self.scan, values.double()).clamp(min=_SMALL)

    def weights(self, values: torch.Tensor) -> torch.Tensor:
        """The weight of every pixel, as of a weighing that is still sought: its fields in their order."""
        level, variance, change = values[:3]
        of_pixel = level + variance * self.of_variance + change * self.of_change
        return torch.sigmoid(of_pixel + self.of_scan @ values[3:])


def _columns(number: int, finding: Finding) -> tuple[torch.Tensor, ...]:
    """The fields of a pool for one finding."""
    of_variance, of_change = decades(finding.evidence)
    scan = torch.full_like(finding.error, number, dtype=torch.int64)
    variance, moving = finding.evidence.variance, finding.moving.to(finding.error)
    fields = (scan, variance, finding.error, finding.agreement, finding.change, moving, of_variance)
    of_scan = torch.tensor(finding.beyond).expand(scan.numel(), -1)
    return *(field.flatten() for field in fields), of_change.expand_as(scan).flatten(), of_scan


def gains(findings: Sequence[Finding], weighing: Weighing) -> list[Gain]:
    """What is gained on each scan by a weighing."""
    pool = _Pool.of(findings)
    weight = pool.weights(torch.tensor(dataclasses.astuple(weighing)))
    return [Gain(*values) for values in zip(*(column.tolist() for column in pool.gains(weight)), strict=True)]


class Found(NamedTuple):
    """What was found of weights."""

    weighing: Weighing
    """How far they are believed, rounded as a manifest has it."""
    judged: list[Gain]
    """Gain on each scan by a weighing that was not found on it: each quarter is judged by that of the other three."""
    helps_on_points: bool
    """Whether scans of points gain, and few enough of their images that are sent are clearly worse."""


def weigh(findings: Sequence[Finding]) -> Found:
    """Find the weighing that gains most on surveyed scans, as daring as it may be.

    A decibel lost beyond what nobody sees counts as many won. How many is tried from few on, until no more than one in
    two hundred of the images that are sent are clearly worse, as `Found.judged`, or else as few as can be. Terms of
    scans that are faint, complete, or of points are found one after the other after all else, on such scans alone.

    Parameters
    ----------
    findings
        Of scans of all kinds. With a single one nothing is known of others.
    """
    weighing, judged, helps = _USUAL, dict[int, Gain](), False
    for kind in ("", *_KINDS):
        numbers = [number for number, finding in enumerate(findings) if finding.kind == kind]
        if not numbers:
            continue
        free = (kind,) if kind else tuple(name for name in _FIELDS if name not in _KINDS)
        weighing, found, keeps = _dare([findings[number] for number in numbers], weighing, free)
        judged.update(zip(numbers, found, strict=True))
        if kind == "points":
            sent = [gain[:2] for gain in found if gain.share >= LEAST_SHARE]
            helps = keeps and bool(sent) and bool(min(np.median(sent, axis=0)) > 0)
    return Found(weighing, [judged[number] for number in range(len(findings))], helps)


def _dare(findings: Sequence[Finding], usual: Weighing, free: tuple[str, ...]) -> tuple[Weighing, list[Gain], bool]:
    """Find the most daring weighing that keeps what is clearly worse to a share of what is sent.

    If there is none, it is the most daring of those with the least share. Gives what was found on all, how each is
    judged by others, and whether it is kept.
    """
    tried: list[tuple[float, float, list[Gain]]] = []
    for dread in _DREADS:
        judged = _judge(findings, usual, free, dread)
        tried.append((_worse(judged), dread, judged))
        if tried[-1][0] <= _ALLOWED:
            break
    share, dread, judged = min(tried, key=lambda one: one[0])
    return _weigh(findings, usual, free, dread), judged, share <= _ALLOWED


def _worse(judged: Sequence[Gain]) -> float:
    """Share of the images sent that are clearly worse than that of the reference."""
    sent = [min(each.whole, each.moving) < -_WORSE for each in judged if each.share >= LEAST_SHARE]
    return sum(sent) / max(1, len(sent))


def _judge(findings: Sequence[Finding], usual: Weighing, free: tuple[str, ...], dread: float) -> list[Gain]:
    parts = [findings[number::_FOLDS] for number in range(min(_FOLDS, len(findings)))]
    judged: dict[int, Gain] = {}
    for number, part in enumerate(parts):
        others = [finding for other, each in enumerate(parts) if other != number for finding in each] or part
        found = gains(part, _weigh(others, usual, free, dread))
        judged.update(zip(range(number, len(findings), _FOLDS), found, strict=True))
    return [judged[number] for number in range(len(findings))]


def _weigh(findings: Sequence[Finding], usual: Weighing, free: tuple[str, ...], dread: float) -> Weighing:
    pool = _Pool.of(findings)
    begin = torch.tensor(dataclasses.astuple(usual))
    is_free = torch.tensor([float(name in free) for name in _FIELDS])
    changes = torch.zeros_like(begin).requires_grad_()
    optimiser = torch.optim.LBFGS([changes], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        won = torch.cat(pool.gains(pool.weights(begin + is_free * changes))[:2])
        worth = won.clamp(max=_ENOUGH) - dread * (-won - _TOLERATED).clamp(0, _LOST)
        total = _DOUBT / len(findings) * changes.square().sum() - worth.mean()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    values = (begin + is_free * changes).tolist()
    return Weighing(**dict(zip(_FIELDS, (round(value, 2) for value in values), strict=True)))


def summarise(judged: Sequence[Gain]) -> dict[str, float]:
    """Figures of a survey, as they go with weights.

    Parameters
    ----------
    judged
        Gains on all scans, see `Found`.

    Returns
    -------
    dict
        ``scans``; of how many of them the weighed image is sent (``served``); in dB over them the median gain
        (``median_gain``, ``median_moving_gain``) and the least of either (``least_gain``); the part of the images sent
        that are more than 0.2 dB worse than the reference, whole or where it moves (``worse``).

    Raises
    ------
    ModelError
        If the network is of use on none.
    """
    served = [each for each in judged if each.share >= LEAST_SHARE]
    whole, moving = (np.array(values) for values in ([g.whole for g in served], [g.moving for g in served]))
    if not served or np.median(whole) <= 0:
        raise ModelError(
            f"the images of the network add nothing to those of {REFERENCE}; the weights are not exported. Train for "
            "more steps, or at another rate"
        )
    least = np.minimum(whole, moving)
    return {
        "scans": len(judged),
        "served": len(served),
        "median_gain": round(float(np.median(whole)), 2),
        "median_moving_gain": round(float(np.median(moving)), 2),
        "least_gain": round(float(least.min()), 2),
        "worse": round(_worse(judged), 3),
    }
