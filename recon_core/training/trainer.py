"""Trainer for all networks: steps, running average of the weights, validation on held-out scans, resuming."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recon_core.diffusion.loss import ExponentialAverage
from recon_core.engine import create_method
from recon_core.errors import DataError, ResourceError, SettingsError
from recon_core.inference.precision import precision_of_convolutions
from recon_core.inference.start import Start
from recon_core.methods import why_not_points
from recon_core.metrics.measures import best_scale, dynamic_region, psnr
from recon_core.options import ReconOptions
from recon_core.simulate.sampling import uniform_mask
from recon_core.storage import replacing
from recon_core.training.checkpoint import read_checkpoint, write_checkpoint
from recon_core.training.images import reconstruct_series, settle_series
from recon_core.training.measurements import Measurement, draw_points, measure
from recon_core.training.objectives import find_objective
from recon_core.training.series import KINDS, draw_series, sharpened
from recon_core.weights.config import build_network, parse_config
from recon_core.weights.loading import load_network
from recon_core.weights.manifest import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from recon_core.networks.base import Network
    from recon_core.training.library import Library
    from recon_core.training.plan import TrainingPlan

_SHARPEST = 3.0  # see `recon_core.training.series.sharpened`
_WIDEST_OF_POINTS = 150  # pixels along either axis of scans of points, of which a step sees all columns
_FRAMES = (8, 10, 12, 16, 20, 25, 30, 40)
_HELD_OUT_SEED = 900_000  # far from the seeds of any training
_CHECKPOINT, _CURVE = "checkpoint", "curve.jsonl"
_SAVE_EVERY = 120.0  # seconds
_LEAST_SIGNAL = 0.5  # of a crop, relative to the mean of the slice


class Point(NamedTuple):
    """A point of the training curve."""

    step: int
    seconds: float
    """`step`, `seconds`: How far training is, and how long it took so far."""
    loss: float
    """Mean since the last point, or since training was resumed if that was later."""
    psnr: dict[str, tuple[float, float]]
    """Of the running average on the held-out scans, in dB, by kind: whole image and dynamic region."""


class Trainer:
    """Trains one network by a plan, resuming from the checkpoint in the folder if there is one.

    Parameters
    ----------
    plan
        How to train.
    library
        Training images; may be empty.
    held_out
        Images to validate on; without any, only the project's own anatomies are drawn.
    folder
        Of the checkpoint and the curve; made if it is not there.

    Raises
    ------
    SettingsError
        If the folder is of a training by another plan, or the plan names a start that there is not or that its scans
        cannot have, or parameters that the network does not have.
    ModelError
        If the weights that the network starts from or goes on from cannot be read.
    ResourceError
        If the checkpoint cannot be read.
    """

    def __init__(self, plan: TrainingPlan, library: Library, held_out: Library, folder: Path) -> None:
        _check_start(plan)
        self.plan = plan
        self.library = library
        self.held_out = held_out
        self._folder = folder
        torch.manual_seed(plan.seed)
        self.network = build_network(plan.method, plan.network)
        if plan.begin_with:
            self.network.load_state_dict(_begun(plan))
        self._objective = find_objective(plan.method)
        for name in _named(self.network, "zeroed", plan.zeroed):
            nn.init.zeros_(self.network.get_parameter(name))
        for name in _named(self.network, "passing", plan.passing):
            _pass_on(name, self.network.get_parameter(name))
        kind = torch.optim.AdamW if plan.decoupled else torch.optim.Adam
        parameters = list(self.network.parameters())
        self._optimiser = kind(parameters, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay)
        self._average = ExponentialAverage(self.network, plan.average)
        self.step = 0
        self.seconds = 0.0
        self._scan: tuple[int, Measurement] | None = None
        self._restore()

    # --- resuming from a checkpoint -----------------------------------------------------------------------------------

    def _restore(self) -> None:
        found = read_checkpoint(self._folder / _CHECKPOINT)
        if found is None:
            return
        tensors, facts = found
        plan = json.loads(json.dumps(dataclasses.asdict(self.plan)))
        # fields that an earlier version did not have are compared as their defaults
        fields = dataclasses.fields(self.plan)
        defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
        former = json.loads(json.dumps(defaults)) | facts["plan"]
        differing = [name for name in plan if former.get(name) != plan[name]]
        if differing:
            changes = ", ".join(f"{name} {former.get(name)!r}, now {plan[name]!r}" for name in differing)
            raise SettingsError(
                f"{self._folder} holds a training by another plan ({changes}); take it up with that plan, or choose "
                "another folder"
            )
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.network.load_state_dict(_part(tensors, "network."), strict=True)
        updates = int(facts.get("updates", self.step))  # fewer than steps where a gradient was left out
        self._average.load_state_dict({"n_updates": updates, "tensors": _part(tensors, "average.")})
        for number, parameter in enumerate(self._optimiser.param_groups[0]["params"]):
            state = _part(tensors, f"optimiser.{number}.")
            if state:
                self._optimiser.state[parameter] = state

    def save(self) -> None:
        """Write the checkpoint.

        Raises
        ------
        ResourceError
            If it cannot be written; the former one is still there then.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.tensors.items()}
        for number, parameter in enumerate(self._optimiser.param_groups[0]["params"]):
            for name, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{number}.{name}"] = value
        facts = {
            "plan": dataclasses.asdict(self.plan),
            "step": self.step,
            "updates": self._average.state_dict()["n_updates"],
            "seconds": round(self.seconds, 1),
        }
        write_checkpoint(self._folder / _CHECKPOINT, _unshared(tensors), facts)

    def curve(self) -> list[Point]:
        """Points so far.

        Raises
        ------
        ResourceError
            If they cannot be read.
        """
        path = self._folder / _CURVE
        if not path.exists():
            return []
        try:
            points = [Point(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            return [point._replace(psnr={kind: (a, b) for kind, (a, b) in point.psnr.items()}) for point in points]
        except (OSError, ValueError, TypeError) as error:
            raise ResourceError(f"cannot read the curve {path}: {error}; remove it to go on without") from error

    # --- learning -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float = float("inf"), report: Callable[[int, float], None] | None = None) -> bool:
        """Train until the plan is done or the time is over, and save.

        Parameters
        ----------
        seconds
            Wall time after which no step is begun.
        report
            Called after every step with its number and its loss.

        Returns
        -------
        bool
            Whether the plan is done.

        Raises
        ------
        DataError
            If the loss is not finite; the checkpoint before that is left as it was.
        """
        begun, before = time.perf_counter(), self.seconds
        saved = begun
        losses: list[float] = []
        while self.step < self.plan.steps and time.perf_counter() - begun < seconds:
            losses.append(self._learn())
            self.step += 1
            self.seconds = before + time.perf_counter() - begun
            if report is not None:
                report(self.step, losses[-1])
            if self.step % self.plan.validate_every == 0 or self.step == self.plan.steps:
                self._append(Point(self.step, round(self.seconds, 1), float(np.mean(losses)), self.validate()))
                losses = []
            if time.perf_counter() - saved > _SAVE_EVERY:
                self.save()
                saved = time.perf_counter()
        self.save()
        return self.step >= self.plan.steps

    def _learn(self) -> float:
        plan = self.plan
        for group in self._optimiser.param_groups:
            group["lr"] = plan.rate_at(self.step)
        self.network.train()
        if self.step >= plan.frozen_norm * plan.steps:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        rng = np.random.default_rng([plan.seed, self.step, 404])
        scan = self._measured(self.step // plan.crops)
        torch.manual_seed(int(rng.spawn(1)[0].integers(2**31)))  # of dropout, the same after an interruption
        width = scan.width_of_crop(plan.width)
        crop = scan.crop(place_of_crop(scan.target, width, rng), width)
        self._optimiser.zero_grad(set_to_none=True)
        with precision_of_convolutions(plan.precision, torch.device("cpu")):
            loss = self._objective(self.network, crop, plan.loss, rng)
        if not bool(loss.isfinite()):
            raise DataError(f"the loss of step {self.step} is not finite; lower the rate ({plan.rate:g})")
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip or float("inf"))
        if not bool(norm.isfinite()):
            return loss.item()  # one bad gradient is left out
        self._optimiser.step()
        self._average.update()
        return loss.item()

    def _measured(self, number: int) -> Measurement:
        """The scan of that number."""
        if self._scan is None or self._scan[0] != number:
            seed = (self.plan.seed, number)
            scan = draw_scan(seed, self.plan, self.library, self.network.minimum_frames)
            self._scan = number, scan.started(self.plan.start)
        return self._scan[1]

    # --- held-out scans -----------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, tuple[float, float]]:
        """Reconstruct the held-out scans with the running average; PSNR in dB by kind: all, and dynamic region."""
        with self.averaged() as network, torch.inference_mode():
            scans = [scan.started(self.plan.start) for scan in self._validation()]
            images = [settle_series(scan, reconstruct_series(network, scan)) for scan in scans]
            return {
                scan.family: scores(image.numpy(), scan.target.numpy())
                for scan, image in zip(scans, images, strict=True)
            }

    def compare(self, method: str) -> dict[str, tuple[float, float]]:
        """PSNR of another method on the held-out scans; as `validate`."""
        reconstruct = create_method(method, ReconOptions(method=method))
        with torch.inference_mode():
            return {
                scan.family: scores(reconstruct(scan.slice()).numpy(), scan.target.numpy())
                for scan in self._validation()
            }

    def _validation(self) -> Iterator[Measurement]:
        for number, kind in enumerate(KINDS):
            seed = (_HELD_OUT_SEED, number)
            series = draw_series(seed, self.held_out, kind=kind, frames=16, matrix=(128, 96))
            scan = measure(seed, series, mask=uniform_mask(16, 128, 8, 24), n_coils=8, snr=40)
            yield dataclasses.replace(scan, family=kind)

    def averaged(self) -> _Averaged:
        """Context in which the network has the averaged weights, in evaluation mode."""
        return _Averaged(self.network, self._average)

    def _append(self, point: Point) -> None:
        points = [known for known in self.curve() if known.step < point.step] + [point]
        text = "".join(json.dumps(known._asdict()) + "\n" for known in points)
        with replacing(self._folder / _CURVE) as part:
            part.write_text(text, encoding="utf-8")


class _Averaged:
    """Swaps the averaged weights in and out."""

    def __init__(self, network: Network, average: ExponentialAverage) -> None:
        self._network = network
        self._average = average

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                kept = self._average.tensors[name]
                value = parameter.clone()
                parameter.copy_(kept)
                kept.copy_(value)

    def __enter__(self) -> Network:
        self._swap()
        return self._network.eval()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _check_start(plan: TrainingPlan) -> None:
    """Refuse a start that is not there, or that scans of the plan cannot have, before the first of them is drawn."""
    network = Start(plan.start).network
    if plan.points and network and (why := why_not_points(network)):
        raise SettingsError(f"points must be 0 with start {plan.start}: {why}")


def _begun(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    """Weights that a plan begins with."""
    entry = find_weights(plan.method, plan.begin_with)
    if parse_config(plan.method, entry.config) != parse_config(plan.method, plan.network):
        raise SettingsError(
            f"the weights {plan.begin_with} are of another network than the plan's: expected network to be "
            f"{dict(entry.config)}, got {dict(plan.network)}"
        )
    return load_network(entry, "cpu").state_dict()


def _named(network: nn.Module, field: str, patterns: Iterable[str]) -> Iterator[str]:
    """Names of the parameters that match patterns of a plan."""
    known = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise SettingsError(f"{field} names no parameter by {pattern!r}; there are such as {', '.join(known)}")
        yield from names


def _pass_on(name: str, weight: torch.Tensor) -> None:
    """Make a convolution give the mean of its input, taken as several images of the size of its result."""
    if weight.ndim < 3 or weight.shape[1] % weight.shape[0]:
        raise SettingsError(f"passing names {name}, which is no weight of a convolution of whole images")
    n_out, n_images = len(weight), weight.shape[1] // len(weight)
    kernels = weight.detach().zero_().flatten(2)
    for channel in range(n_out):
        kernels[channel, channel::n_out, kernels.shape[2] // 2] = 1 / n_images


def draw_scan(seed: tuple[int, ...], plan: TrainingPlan, library: Library, fewest: int = 1) -> Measurement:
    """Draw a scan by a plan.

    Parameters
    ----------
    seed
        Same seed, plan and library, same scan.
    plan
        Of the training.
    library
        Images that join the drawn anatomies.
    fewest
        Frames that the network needs.
    """
    rng = np.random.default_rng([*seed, 303])
    points = bool(rng.random() < plan.points)
    least, most = plan.lines
    most = max(least, min(most, _WIDEST_OF_POINTS)) if points else most
    size = tuple(2 * int(rng.integers(least // 2, most // 2 + 1)) for _ in range(2))
    matrix = (size[0], size[1])
    usual = [n for n in _FRAMES if plan.frames[0] <= n <= plan.frames[1]] or [plan.frames[0]]
    frames = max(fewest, int(rng.choice(usual)))
    mask = draw_points(rng, frames, matrix) if points else None
    series = sharpened(draw_series(seed, library, frames=frames, matrix=matrix), float(rng.uniform(0, _SHARPEST)))
    return measure(seed, series, mask=mask)


def place_of_crop(target: torch.Tensor, width: int, rng: np.random.Generator) -> int:
    """First column of a crop ``(frame, y, x)`` that is not mostly air."""
    columns = target.abs().mean((0, 1))
    energy = functional.avg_pool1d(columns[None, None], width, 1)[0, 0]
    good = torch.nonzero(energy >= _LEAST_SIGNAL * columns.mean()).flatten()
    return int(good[int(rng.integers(len(good)))])


def scores(image: NDArray[np.complex64], target: NDArray[np.complex64]) -> tuple[float, float]:
    """PSNR of magnitudes after one factor for the series, in dB: of all and of the dynamic region."""
    scaled = np.abs(image) * np.float32(best_scale(image, target))
    return round(psnr(scaled, target), 2), round(psnr(scaled, target, dynamic_region(target)), 2)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of tensors that share memory: the file format does not support sharing."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
