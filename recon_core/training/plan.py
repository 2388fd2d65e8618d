"""How a network is trained: every choice in one place, with the papers' and a short budget's as presets."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, get_args

from recon_core.errors import SettingsError
from recon_core.methods import find_method, network_names, why_not_points
from recon_core.values import Allowed, read_yaml
from recon_core.weights.manifest import check_name
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Schedule = Literal["constant", "cosine", "step", "decay"]
Precision = Literal["auto", "float32", "bfloat16"]

# What a value must be at least, and at most.
_WHOLE = {"steps": 1, "width": 1, "crops": 1, "validate_every": 1, "survey": 1, "warm_up": 0, "seed": 0}
_NUMBERS: dict[str, float | None] = {
    **dict.fromkeys(("rate", "weight_decay", "clip"), None),
    **dict.fromkeys(("floor", "step_at", "frozen_norm", "average", "points"), 1.0),
}
_LEAST = {"frames": 1, "lines": 24}  # a mask may have a central block of 24 lines


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All that decides what training gives; two runs of one plan on one machine give the same weights."""

    method: str
    """Name of the network."""
    name: str
    """Under which the weights will be listed."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network's ``Config``."""
    begin_with: str = ""
    """Name of weights that the training goes on from, of a network of the same fields; none begins at random."""
    zeroed: tuple[str, ...] = ()
    """Patterns (``*``, ``?``) of names of parameters that begin at zero: of the layers that give a change of the image,
    so that the network begins with the image that it starts from."""
    passing: tuple[str, ...] = ()
    """Such patterns of weights of convolutions that begin by handing on the mean of the images they get."""
    steps: int = 4000
    """Updates of the weights, one crop each."""
    loss: str = "decibel"
    """One of `recon_core.training.losses.LOSSES`, or ``denoising`` for the diffusion model, as it is published."""
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    decoupled: bool = True
    """Whether the decay is that of AdamW."""
    clip: float = 1.0
    """`rate`, `betas`, `weight_decay`, `clip`: Of the optimiser (Adam; AdamW with decoupled decay where `decoupled`);
    `clip` limits the norm of the gradient, 0 does not."""
    schedule: Schedule = "cosine"
    warm_up: int = 100
    floor: float = 0.02
    """`schedule`, `warm_up`, `floor`: ``cosine`` falls to `floor` times the rate; ``step`` falls to it at `step_at`;
    ``decay`` falls evenly in the logarithm; the first `warm_up` steps rise from zero."""
    step_at: float = 1.0
    """Share of the steps before the fall of ``step``."""
    frozen_norm: float = 1.0
    """Share of the steps after which batch normalisation takes its running statistics instead of those of one crop."""
    average: float = 0.998
    """Decay of the running average of the weights, which is what will be kept."""
    frames: tuple[int, int] = (8, 30)
    lines: tuple[int, int] = (64, 256)
    """`frames`, `lines`: Least and most of the series to learn from. Networks that take a fixed number of frames get as
    many of them."""
    points: float = 0.0
    """Share of the scans that have points next to spokes instead of lines, see `recon_core.training.measurements`. A
    step sees all columns of such a scan, which has at most 150 along either axis unless `lines` begins with more."""
    width: int = 24
    """Columns of a crop."""
    crops: int = 6
    """Consecutive steps on crops of the same scan."""
    start: str = "kt_sense"
    """The image that the network starts from, see `recon_core.weights.manifest.weights_of_start`."""
    precision: Precision = "auto"
    """Of the convolutions: ``float32`` or ``bfloat16``, or ``auto`` for that which the processor is made for."""
    seed: int = 0
    """Of weights and data."""
    validate_every: int = 250
    """Steps between two looks at held-out scans."""
    survey: int = 120
    """Scans to compare with a method without weights in the end, for the range that goes with the weights."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises
        ------
        SettingsError
            Naming the field.
        """
        if self.method not in network_names():
            raise SettingsError(f"method must be a network, one of {', '.join(network_names())}; got {self.method!r}")
        if not isinstance(self.name, str):
            raise SettingsError(f"name must be a text, got {self.name!r}")
        check_name(self.name)
        for name in ("begin_with", "start"):
            if not isinstance(getattr(self, name), str):
                raise SettingsError(f"{name} must be a name, got {getattr(self, name)!r}")
        if self.start == self.name:
            raise SettingsError(
                f"name must be another one than that of the start, which it would replace, got {self.name}"
            )
        for name, least in _WHOLE.items():
            Allowed(int, minimum=least).check(name, getattr(self, name))
        for name, most in _NUMBERS.items():
            Allowed(float, minimum=0, maximum=most).check(name, getattr(self, name))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not _is_pair(int, value) or not least <= value[0] <= value[1]:
                raise SettingsError(f"{name} must be [least, most], whole numbers from {least}, got {value!r}")
        if not _is_pair((int, float), self.betas) or not all(0 <= beta < 1 for beta in self.betas):
            raise SettingsError(f"betas must be two numbers from 0 to below 1, got {self.betas!r}")
        if self.rate == 0 or self.average == 1:
            raise SettingsError(f"rate must be above 0 and average below 1, got {self.rate} and {self.average}")
        Allowed(bool).check("decoupled", self.decoupled)
        if self.points and (why := why_not_points(self.method)):
            raise SettingsError(f"points must be 0: {why}")
        for name in ("zeroed", "passing"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(pattern, str) for pattern in value):
                raise SettingsError(f"{name} must be a list of names of parameters, got {value!r}")
        for name, choices in _choices(self.method).items():
            if getattr(self, name) not in choices:
                raise SettingsError(
                    f"{name} of {self.method} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0.

        The rise is even, to the rate itself in the last step of the warm-up; those published start from zero or a
        thousandth of the rate and go from epoch to epoch. After it the values are theirs, at the same share of the
        training.
        """
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        if self.schedule == "cosine":
            factor = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        elif self.schedule == "step":
            factor = 1.0 if progress < self.step_at else self.floor
        elif self.schedule == "decay":
            factor = self.floor**progress
        else:
            factor = 1.0
        return self.rate * factor


def _are(kind: type | tuple[type, ...], *values: object) -> bool:
    """Whether values are numbers of a kind, and none is a truth value."""
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _is_pair(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _are(kind, *value)


def _choices(method: str) -> dict[str, tuple[str, ...]]:
    """The names that a field may have."""
    from recon_core.training.losses import LOSSES  # needs torch

    own_loss = find_method(method).training.loss
    return {
        "loss": (*LOSSES, *filter(None, (own_loss,))),
        "schedule": get_args(Schedule),
        "precision": get_args(Precision),
    }


#: Files in ``presets/``, with the fields of a plan for every network, as ``--config`` takes them.
PRESETS = ("short", "published")


@functools.cache
def presets(name: str) -> dict[str, dict[str, Any]]:
    """Read a preset: what each network has instead of the defaults of `TrainingPlan`.

    Parameters
    ----------
    name
        One of `PRESETS`.
    """
    import yaml

    text = (resources.files("recon_core.training") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def preset_plan(method: str, preset: str = "short", **changes: Any) -> TrainingPlan:  # noqa: ANN401 - fields of many types
    """Make the plan of a preset.

    Parameters
    ----------
    method
        Name of the network.
    preset
        One of `PRESETS`.
    **changes
        Fields of `TrainingPlan` that differ from it.

    Raises
    ------
    SettingsError
        If there is no such network, preset or field, or a value is out of bounds.
    """
    if preset not in PRESETS:
        raise SettingsError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if not isinstance(changes.get("network", {}), dict):
        raise SettingsError(f"network must map the fields of the network to values, got {changes['network']!r}")
    values = {"name": f"{method}-small" if preset == "short" else method, **presets(preset).get(method, {})}
    known = {field.name for field in dataclasses.fields(TrainingPlan)}
    for name in changes:
        if name not in known:
            raise SettingsError(f"a training plan has no {name!r}; {choose_from(name, sorted(known))}")
    values = {"method": method, **values, **changes}
    pairs: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return TrainingPlan(**pairs)


def read_plan(path: Path, method: str) -> TrainingPlan:
    """Read a plan from YAML: ``preset`` and the fields of `TrainingPlan` that differ from it.

    Raises
    ------
    SettingsError
        If it cannot be read, or says what a plan cannot have.
    """
    import yaml

    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read the training plan {path}: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SettingsError(f"the training plan {path} must map names to values")
    if document.pop("method", method) != method:
        raise SettingsError(f"the training plan {path} is not for {method}")
    return preset_plan(method, **document)
