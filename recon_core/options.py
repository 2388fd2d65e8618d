"""Options of the reconstruction in groups, each option declared once with type, default, help and limits.

A method receives its own group alone. The stream side adds groups of its own (`gadgets.settings.settings`). The XML
parser, ``--set``, ``--help`` and the table in the documentation are all made from the fields declared here.

Users know an option by a flat name (``gated_frames``) or by group and field (``gating.frames``); `option` declares the
flat name where it is not that of the field, and nothing else has to know it.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from recon_core.errors import SettingsError
from recon_core.methods import METHODS, OWN_METHODS, find_method, method_names
from recon_core.values import Allowed
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def option(
    default: bool | float | str,
    text: str,
    *,
    name: str = "",
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    several: bool = False,
    or_line: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    peer: float | None = None,
) -> Any:  # noqa: ANN401 - dataclasses.field is typed as its default for the reader of the class
    """Declare one option.

    Parameters
    ----------
    default
        Its default value.
    text
        One sentence of help.
    name
        What users call it, where that is not the name of the field.
    choices, several, or_line, minimum, maximum
        As for `recon_core.values.Allowed`; the kind is the annotation of the field.
    peer
        Largest value that a peer may ask a server for, where more takes long; None where there is no such limit.
    """
    limits = {"choices": choices, "several": several, "or_line": or_line, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={"help": text, "name": name, "limits": limits, "peer": peer})


def group(kind: type[Options], heading: str) -> Any:  # noqa: ANN401 - as `option`
    """Declare a group of options, with its heading in help and documentation."""
    return field(default=kind(), metadata={"heading": heading})


@dataclass(frozen=True)
class Option:
    """What is known of one option."""

    name: str
    """What users call it; unique among all options."""
    group: str
    field: str
    """`group`, `field`: Where it is: a field of the group, or of the options themselves where the group is empty."""
    heading: str
    """Heading of the group."""
    default: bool | int | float | str
    """Its default value."""
    help: str
    """One sentence."""
    allowed: Allowed
    """The values that it may have."""
    peer: float | None = None
    """Largest value that a peer may ask a server for; None where there is no such limit."""

    @property
    def path(self) -> str:
        """Group and field with a dot between them."""
        return f"{self.group}.{self.field}" if self.group else self.field

    @property
    def kind(self) -> str:
        """The choices, or the type."""
        return " | ".join(self.allowed.names) or self.allowed.kind.__name__

    @property
    def default_text(self) -> str:
        """The default as it is written in XML."""
        return as_text(self.default)

    def read(self, value: object) -> Any:  # noqa: ANN401 - of the kind of the option
        """Turn a value as it comes from XML, JSON or the command line into the kind of the option.

        Raises
        ------
        SettingsError
            If it has another kind or lies outside of what is allowed.
        """
        return self.allowed.read(f"setting {self.name!r}", value)

    def of(self, options: Options) -> bool | int | float | str:
        """The value in a set of options."""
        owner = getattr(options, self.group) if self.group else options
        value: bool | int | float | str = getattr(owner, self.field)
        return value


def as_text(value: bool | float | str) -> str:
    """Write a value as XML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_Some = TypeVar("_Some", bound="Options")
OptionsClass = Any  # type[Options]; mypy does not take a class of dataclasses for hashable


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options with their defaults; values that are not allowed are refused when an object is made."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises
        ------
        SettingsError
            If a value has the wrong type or lies outside of what is allowed.
        """
        kind: OptionsClass = type(self)
        for one in own_options(kind):
            one.allowed.check(f"setting {one.name!r}", getattr(self, one.field))

    @classmethod
    def of(cls: type[_Some], **values: object) -> _Some:  # noqa: PYI019 - typing.Self needs Python 3.11
        """Make options from values by the names that users know.

        Parameters
        ----------
        **values
            Such as ``method="grappa", iterations=20``; the others have their defaults.

        Raises
        ------
        SettingsError
            If there is no such option, or a value is not allowed.
        """
        return apply(cls(), values)


@functools.cache
def own_options(kind: OptionsClass, group_name: str = "", heading: str = "") -> tuple[Option, ...]:
    """The options that are fields of a class themselves, without those of its groups."""
    hints = typing.get_type_hints(kind)
    return tuple(
        Option(
            item.metadata["name"] or item.name,
            group_name,
            item.name,
            heading,
            cast("bool | int | float | str", item.default),
            item.metadata["help"],
            Allowed(hints[item.name], **item.metadata["limits"]),
            item.metadata["peer"],
        )
        for item in dataclasses.fields(kind)
        if "help" in item.metadata
    )


@functools.cache
def options_of(kind: OptionsClass) -> dict[str, Option]:
    """All options of a class and of its groups, by the names that users know, in order of declaration."""
    found = list(own_options(kind))
    for item in dataclasses.fields(kind):
        if "heading" in item.metadata:
            own: OptionsClass = type(item.default)
            found += own_options(own, item.name, item.metadata["heading"])
    return {one.name: one for one in found}


def find_option(kind: OptionsClass, name: str) -> Option:
    """Find an option by the name that users know, or by group and field with a dot between them.

    Raises
    ------
    SettingsError
        If there is none.
    """
    known = options_of(kind)
    found = known.get(name) or next((one for one in known.values() if one.path == name), None)
    if found is None and issubclass(kind, ReconOptions) and name.partition(".")[0] in OWN_METHODS:
        return _own_option(name)
    if found is None:
        raise SettingsError(f"unknown setting {name!r}; {choose_from(name, known, 'cinestream pipelines')}")
    return found


def _own_option(name: str) -> Option:
    """Find an option of a method of the user's own, ``method.field``."""
    method, _, field_name = name.partition(".")
    group_kind: OptionsClass = find_method(method).options
    own = () if group_kind is None else own_options(group_kind, method, method)
    found = next((one for one in own if one.field == field_name), None)
    if found is None:
        there = choose_from(name, (one.path for one in own)) if own else f"{method} has no options"
        raise SettingsError(f"unknown setting {name!r}; {there}")
    return found


def apply(options: _Some, values: Mapping[str, object]) -> _Some:
    """Return the options with some of them replaced.

    Parameters
    ----------
    options
        The options.
    values
        By flat name or by group and field; texts are converted.

    Raises
    ------
    SettingsError
        If a name is unknown or a value is not allowed.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        found = find_option(type(options), name)
        changes.setdefault(found.group, {})[found.field] = found.read(value)
    fields: dict[str, Any] = changes.pop("", {})
    for name, changed in changes.items():
        if isinstance(options, ReconOptions) and name in OWN_METHODS:
            own = dataclasses.replace(cast("Options", options.of_method(name)), **changed)
            fields["own"] = tuple({**dict(fields.get("own", options.own)), name: own}.items())
        else:
            fields[name] = dataclasses.replace(getattr(options, name), **changed)
    return dataclasses.replace(options, **fields)


# --- the groups -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """Options of all networks."""

    weights: str = option(
        "", "name of the trained weights, as cinestream methods lists them; empty takes the first of the method"
    )
    window: int = option(
        0,
        "frames that are reconstructed together, in windows around the cycle, all of them at most; 0 takes what the "
        "weights were trained with, else all frames",
        minimum=0,
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = option(
        "float32",
        "precision of the convolutions; everything else stays in float32; auto takes bfloat16 where the processor or "
        "GPU has units for it, else float32",
    )


@dataclass(frozen=True, kw_only=True)
class DSTDMOptions(Options):
    """How the diffusion model dSTDM samples an image."""

    sampler: Literal["fast", "fastest", "paper"] = option(
        "fast",
        "fast takes 4 steps from a start whose error is known, as the packaged weights have it, or 20 from one of its "
        "own, fastest 2 or 10; paper takes 100 of both orientations from noise",
    )
    steps: int = option(
        0, "steps, two or more; 0 takes those of the sampler", name="sampler_steps", minimum=0, maximum=10000, peer=200
    )
    seed: int = option(0, "seed of the noise; the same seed gives the same image", minimum=0, maximum=2**31)
    samples: int = option(
        1,
        "images that are drawn and averaged, with two or more their standard deviation becomes a series; none is drawn "
        "from a start whose error is known, where one without noise is better",
        minimum=1,
        maximum=1000,
        peer=16,
    )
    consistency_repetitions: int = option(
        0,
        "how often measured samples are put back after a step; 0 takes one, or three from a poor first image",
        minimum=0,
        maximum=100,
        peer=10,
    )
    consistency_iterations: int = option(
        0,
        "conjugate gradient steps instead of putting measured samples back; 0 puts back, from a start whose error is "
        "known it takes 6",
        minimum=0,
        maximum=100,
        peer=20,
    )
    start_noise: float = option(
        0.0,
        "noise added to the first image, relative to its peak; 0 takes it from the data",
        minimum=0.0,
        maximum=100.0,
    )

    def __post_init__(self) -> None:
        """Refuse a single step, which is no schedule.

        Raises
        ------
        SettingsError
            If there is one step.
        """
        super().__post_init__()
        if self.steps == 1:
            raise SettingsError("setting 'sampler_steps' must be 2 or more, or 0 for those of the sampler; got 1")


@dataclass(frozen=True, kw_only=True)
class CGSenseOptions(Options):
    """Options of iterative SENSE."""

    iterations: int = option(30, "iterations at most", minimum=1, maximum=1000, peer=200)
    signal_prior: bool = option(
        True, "regularise by the noise level over the expected signal of each pixel, where noise was measured"
    )
    regularization: float = option(
        1e-3,
        "fixed Tikhonov weight lambda of (A^H A + lambda) x = A^H y, where signal_prior is not used",
        minimum=0.0,
    )
    tolerance: float = option(1e-4, "residual, relative to that of a zero image, at which it stops early", minimum=0.0)
    warm_start: bool = option(
        True,
        "start every frame from the image of the time average, to which the regularisation then draws; false starts "
        "from zero and draws to it, every frame on its own",
    )


@dataclass(frozen=True, kw_only=True)
class GrappaOptions(Options):
    """Options of GRAPPA."""

    calibration: Literal["average", "frame"] = option(
        "average",
        "learn the weights once, from the separate reference or the time average, or in every frame from its own "
        "reference lines",
        name="grappa_calibration",
    )


@dataclass(frozen=True, kw_only=True)
class LowRankSparseOptions(Options):
    """Options of low rank plus sparse (L+S)."""

    low_rank_weight: float = option(
        0.01, "threshold of singular values, relative to the largest", minimum=0.0, maximum=1.0
    )
    sparse_weight: float = option(
        0.01, "threshold of the temporal spectrum, relative to the largest pixel", minimum=0.0, maximum=1.0
    )
    iterations: int = option(50, "passes at most", name="low_rank_sparse_iterations", minimum=1, maximum=1000, peer=200)
    momentum: bool = option(
        True,
        "converge with momentum; false runs the published iteration with its stopping rule",
        name="low_rank_sparse_momentum",
    )


@dataclass(frozen=True, kw_only=True)
class KtSenseOptions(Options):
    """Options of k-t SENSE."""

    rounds: int = option(
        20,
        "how often the series is improved and the prior read off it anew, at most; it ends after 7 where one changes "
        "little, or more where few lines were measured; 3 take half the time, also where a network starts from it",
        name="kt_rounds",
        minimum=1,
        maximum=100,
        peer=20,
    )
    samples: int = option(
        0,
        "samples of what the data leave open; their spread is the uncertainty, for which extra_series=uncertainty "
        "takes some by itself; each takes the time of 3 rounds",
        name="kt_samples",
        minimum=0,
        maximum=256,
        peer=32,
    )


@dataclass(frozen=True, kw_only=True)
class OffGridOptions(Options):
    """Options of samples that follow no grid."""

    delay_correction: Literal["auto", "off"] = option(
        "auto",
        "radial scans: find the gradient delays where spokes cross, and correct the trajectory where they matter; the "
        "comment of the images has them",
    )


@dataclass(frozen=True, kw_only=True)
class MapOptions(Options):
    """How coil maps are estimated."""

    kind: Literal["auto", "walsh", "espirit", "inati"] = option(
        "auto",
        "how coil maps are estimated: auto fits smooth maps and one image to all lines together, walsh sees each "
        "neighbourhood on its own, espirit needs 12 or more central lines, inati is fast with a complete average",
        name="maps",
    )
    neighbourhood: int = option(
        7,
        "walsh, inati: side of the square, in pixels, over which maps are taken as constant",
        name="map_neighbourhood",
        minimum=1,
        maximum=101,
        peer=31,
    )
    refinements: int = option(
        4,
        "walsh: how often maps from a short calibration centre are improved with the outer lines",
        name="map_refinements",
        minimum=0,
        maximum=100,
        peer=16,
    )
    kernel: int = option(6, "espirit: side of the k-space patch, in samples", name="map_kernel", minimum=2, maximum=12)
    calibration: int = option(
        24,
        "espirit: side of the calibration block, in samples, at most",
        name="map_calibration",
        minimum=6,
        maximum=64,
    )
    threshold: float = option(
        0.001,
        "espirit: squared singular value, relative to the largest, above which a vector counts as signal",
        name="map_threshold",
        minimum=1e-6,
        maximum=0.5,
    )
    crop: float = option(
        0.8, "espirit: eigenvalue above which a pixel has coil maps", name="map_crop", minimum=0.0, maximum=0.99
    )
    soft: bool = option(
        False, "espirit: let coil maps fade out around map_crop instead of ending sharply", name="map_soft"
    )


@dataclass(frozen=True, kw_only=True)
class FinishOptions(Options):
    """What is done with the images of a method, and what is sent with them."""

    partial_fourier: Literal["off", "pocs", "homodyne"] = option(
        "off",
        "classical methods: completes a k-space of which one side was not measured (partial Fourier, asymmetric echo) "
        "from the other, given a phase that varies slowly; pocs leaves less error, homodyne is a single pass",
    )
    kspace_filter: float = option(
        0.0,
        "Tukey window on the k-space of the images: share of it, from its edge, that fades out; 1 is a Hann window, 0 "
        "no filter",
        minimum=0.0,
        maximum=1.0,
    )
    g_factor: bool = option(
        False, "cg_sense, grappa: send the noise amplification of each slice as a series of its own"
    )
    units: Literal["relative", "snr"] = option(
        "relative",
        "zero_filled, cg_sense, grappa: snr gives images in units of the standard deviation of the noise in a pixel, "
        "where noise was measured",
    )
    extra_series: str = option(
        "none",
        "further series: zero_filled shows what the sampling leaves, fallback the image of the fallback, difference "
        "how far the method is from it, times 5, uncertainty (kt_sense, networks) the standard deviation that the data "
        "leave each pixel, of a network that of the kt_sense that it is weighed against; some of them with commas in "
        "between",
        choices=("none", "zero_filled", "fallback", "difference", "uncertainty"),
        several=True,
    )

    @property
    def extras(self) -> frozenset[str]:
        """The further series that `extra_series` asks for."""
        return frozenset(name.strip() for name in self.extra_series.split(",")) - {"none"}


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(Options):
    """Where and with what the reconstruction computes."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute: auto takes the GPU when there is one")
    implementation: Literal["auto", "torch", "cupy"] = option(
        "auto", "kernels of the data consistency: auto takes cupy on a GPU where it is installed"
    )
    deadline: float = option(
        0.0,
        "seconds from the last readout to the last image: on a server the slice goes before those without a deadline, "
        "and method=auto takes the best method that fits; other methods take the time that they need; 0 sets no limit",
        minimum=0.0,
        maximum=1e6,
    )


@dataclass(frozen=True, kw_only=True)
class ReconOptions(Options):
    """The options of the reconstruction; every field has a default that works."""

    method: str = option("cg_sense", "reconstruction method", choices=method_names)
    fallback: Literal["kt_sense", "cg_sense", "zero_filled", "none"] = option(
        "kt_sense", "method that takes over when the chosen one cannot do the scan; none makes that an error"
    )
    outside_range: Literal["fallback", "beside", "note"] = option(
        "fallback",
        "networks: action when the scan is outside the training range, or the image contradicts the data, is far from "
        "that of the method without weights that they were compared with, or adds nothing to it: fallback sends the "
        "fallback's image instead, beside sends both, the fallback's in a series of its own, note only says so",
    )
    network: NetworkOptions = group(NetworkOptions, "Networks")
    dstdm: DSTDMOptions = group(DSTDMOptions, "Diffusion model (dstdm)")
    cg_sense: CGSenseOptions = group(CGSenseOptions, "Iterative SENSE (cg_sense)")
    grappa: GrappaOptions = group(GrappaOptions, "GRAPPA (grappa)")
    low_rank_sparse: LowRankSparseOptions = group(LowRankSparseOptions, "Low rank plus sparse (low_rank_sparse)")
    kt_sense: KtSenseOptions = group(KtSenseOptions, "k-t SENSE (kt_sense)")
    off_grid: OffGridOptions = group(OffGridOptions, "Radial scans")
    maps: MapOptions = group(MapOptions, "Coil maps")
    finish: FinishOptions = group(FinishOptions, "Finishing the images")
    compute: ComputeOptions = group(ComputeOptions, "Computing")
    #: Options of methods of the user's own, by the name of the method; of others than these the defaults hold.
    own: tuple[tuple[str, Options], ...] = ()

    def of_method(self, name: str) -> Options | None:
        """The group of a method, which has its name; None for one that has no options of its own."""
        if name in OWN_METHODS:
            kind = find_method(name).options
            return dict(self.own).get(name) or (kind() if kind else None)
        return cast("Options | None", getattr(self, name, None)) if name in METHODS else None
