"""The settings of a scan: one typed class, from which XML, ``--set``, FIRE's JSON, help and documentation are made."""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gadgets.wire.vendor import check_center_choice
from recon_core.errors import SettingsError
from recon_core.options import ReconOptions, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, kw_only=True)
class Settings(ReconOptions):
    """Everything a pipeline can set: the options of the reconstruction, and what the stream does around it."""

    whiten: bool = option(
        True, "decorrelate the coils with noise readouts: of a file, of the stream, or of the measurement it depends on"
    )
    whitened: bool = option(
        False,
        "gadgets in front have whitened already (Gadgetron's NoiseAdjust): the noise has unit deviation, and noise "
        "readouts are not used",
    )
    time_axis: str = option(
        "auto",
        "counter that numbers the frames; auto takes phase, or repetition when only that one counts",
        choices=("auto", "phase", "repetition"),
    )
    gating: str = option(
        "auto",
        "how lines come into frames: counter by the counter of time_axis, retrospective by their time since the R "
        "wave; auto is retrospective where the header announces it or the phases run on unevenly from beat to beat",
        choices=("auto", "counter", "retrospective"),
    )
    gated_frames: int = option(
        0,
        "retrospective gating: frames of the cycle; 0 takes RetroGatedImages of the header, else as many as a beat has "
        "readouts of a line",
        minimum=0,
        maximum=4096,
    )
    arrhythmia_tolerance: float = option(
        0.25,
        "retrospective gating: beats whose RR interval differs by more than this share from the typical one are "
        "rejected",
        minimum=0.01,
        maximum=1.0,
    )
    rr_stretch: str = option(
        "diastole",
        "retrospective gating: how beats of different length become one cycle; diastole keeps the length of systole, "
        "cycle stretches all",
        choices=("diastole", "cycle"),
    )
    trigger_source: str = option(
        "auto",
        "retrospective gating: where R waves come from: the time stamps of the readouts, the ECG of the stream, or the "
        "motion in the k-space centre (self); auto takes the first of these that shows beats",
        choices=("auto", "stamps", "ecg", "self"),
    )
    gated_output: str = option(
        "mean",
        "retrospective gating: frames of the mean beat, or of every beat on its own (repetition) where each has all "
        "lines",
        choices=("mean", "beats"),
    )
    stamp_tick: float = option(
        0.0,
        "tick of the time stamps in ms; 0 takes 2.5 for Siemens and simulations, 1 for others",
        minimum=0.0,
        maximum=1000.0,
    )
    center_line: str = option(
        "auto",
        "line of the k-space centre: auto asks the readouts of Siemens (idx.user[5]) and else the header; header or "
        "readouts (those of any vendor), or the number of the line",
    )
    oversampling: str = option(
        "auto",
        "readout oversampling that the header tells of: present is removed here, removed was removed by the sender; "
        "auto sees it from the length of the readouts",
        choices=("auto", "present", "removed"),
    )
    realtime: str = option(
        "off",
        "send frames while the scan runs: sliding every frame when it is complete, reconstructed with those before it, "
        "fixed so many at a time; off waits for the whole slice",
        choices=("off", "sliding", "fixed"),
    )
    realtime_window: int = option(
        0,
        "realtime: frames that are reconstructed together; 0 takes the acceleration of the header, 8 at least",
        minimum=0,
        maximum=4096,
    )
    lines_per_frame: int = option(
        0,
        "realtime: so many readouts of a slice, one after the other, make a frame; 0 goes by the counter of time_axis",
        minimum=0,
        maximum=65535,
    )
    virtual_coils: int = option(
        0, "virtual coils that coil compression keeps; 0 keeps as many as coil_energy asks for", minimum=0
    )
    coil_energy: float = option(
        1.0, "share of the signal energy that coil compression keeps; 1 keeps all coils", minimum=0.01, maximum=1.0
    )
    output: str = option("magnitude", "float32 magnitude or complex64 images", choices=("magnitude", "complex"))
    scale: float = option(
        0.0,
        "factor on all images; 0 sets it once per scan so that the bright tissue of the first slice is near 1000",
        minimum=0.0,
    )
    emit: str = option(
        "images",
        "what a Gadgetron gets: images ready to be shown, or for every slice an array of complex ones for its own "
        "gadgets, over the encoded field of view and not scaled unless scale says so",
        choices=("images", "image_array"),
    )
    forward: str = option(
        "none",
        "what else a Gadgetron gets back as it came: acquisitions (buffered ones too), images of other gadgets, all, "
        "or none of it; waveforms always",
        choices=("none", "acquisitions", "images", "all"),
    )
    window_center: float = option(
        0.0,
        "middle of the display window of the images, in values as they are sent; 0 takes half of the width",
        minimum=0.0,
    )
    window_width: float = option(
        0.0,
        "width of the display window of the images, in values as they are sent; 0 takes twice the centre, or from "
        "black to the bright tissue of each series",
        minimum=0.0,
    )
    orientation: str = option(
        "acquired",
        "acquired leaves the rows along the readout as they were measured; flipped turns the images by 180 degrees, "
        "pixels and directions together, so that every pixel stays where it is in the patient",
        choices=("acquired", "flipped"),
    )
    # 16 bits, with room for the series of other images, up to 26 further on
    series: int = option(1, "image_series_index of the images", minimum=1, maximum=65509)
    series_by: str = option(
        "scan",
        "scan has one series for all slices; slice has a series for each, 100 further on from slice to slice",
        choices=("scan", "slice"),
    )
    description: str = option("", "text for the series description; empty takes the method's name")
    preview: str = option(
        "none",
        "method whose images go out ahead of those of a method that takes longer, in a series of their own",
        choices=("none", "zero_filled", "cg_sense", "low_rank_sparse"),
    )
    ct_path: str = option(
        "", "atlf_net: CT of the patient: NIfTI file, folder with one DICOM series, or ISMRMRD HDF5 file or group"
    )
    ct_transform: str = option(
        "", "atlf_net: text file of 4 x 4 numbers, from MR to CT in mm; empty where they share the patient frame"
    )
    ct_transform_space: str = option(
        "lps", "atlf_net: axes of ct_transform; lps as in ITK, ras as in ITK-SNAP and greedy", choices=("lps", "ras")
    )
    ct_frame: str = option(
        "patient",
        "atlf_net: frame in which the MR is brought to the CT; table takes off the position of the table",
        choices=("patient", "table"),
    )
    ct_window_low: float = option(-200.0, "atlf_net: HU that become 0", minimum=-10000.0, maximum=100000.0)
    ct_window_high: float = option(800.0, "atlf_net: HU that become 1", minimum=-10000.0, maximum=100000.0)
    ct_slab_samples: int = option(
        5, "atlf_net: planes of CT that are averaged across the thickness of a slice", minimum=1, maximum=100
    )
    ct_min_coverage: float = option(
        0.9, "atlf_net: share of the pixels of a slice that must lie inside the CT", minimum=0.0, maximum=1.0
    )
    ct_policy: str = option(
        "error",
        "atlf_net: what a CT that is missing or does not fit means; fallback goes without, if the weights can",
        choices=("error", "fallback"),
    )
    emit_fused: bool = option(False, "atlf_net: send the fused image of CT and MR too, in a series of its own")

    def __post_init__(self) -> None:
        """Refuse what neither type nor choices can.

        Raises
        ------
        SettingsError
            If `center_line` is no choice and no line.
        """
        check_center_choice(self.center_line)


_TYPES: dict[str, type] = typing.get_type_hints(Settings)
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def convert(name: str, value: object) -> bool | int | float | str:
    """Turn a value as it comes from XML, JSON or the command line into the type of its setting.

    Raises
    ------
    SettingsError
        If there is no such setting, or the value has the wrong type or lies outside what is allowed.
    """
    if name not in FIELDS:
        raise SettingsError(f"unknown setting {name!r}; the settings are {', '.join(FIELDS)}")
    kind, metadata = _TYPES[name], FIELDS[name].metadata
    converted = _cast(kind, value)
    if converted is None:
        raise SettingsError(f"setting {name!r} must be {_WANTED[kind]}, got {value!r}")
    if metadata["choices"]:
        return _chosen(name, str(converted))
    for bound, beyond in (("minimum", operator.lt), ("maximum", operator.gt)):
        if metadata[bound] is not None and beyond(converted, metadata[bound]):
            raise SettingsError(f"setting {name!r} has a {bound} of {metadata[bound]:g}, got {value!r}")
    return converted


def _chosen(name: str, text: str) -> str:
    """One of the choices, or where several are allowed some of them, in their order and without repetition.

    Raises
    ------
    SettingsError
        If it is none of them, or none and something else.
    """
    metadata = FIELDS[name].metadata
    choices: tuple[str, ...] = metadata["choices"]
    wanted = {part.strip() for part in text.split(",")} if metadata["several"] else {text}
    if not wanted <= set(choices):
        some = "one of, or with commas some of," if metadata["several"] else "one of"
        raise SettingsError(f"setting {name!r} must be {some} {', '.join(choices)}; got {text!r}")
    if "none" in wanted and len(wanted) > 1:
        raise SettingsError(f"setting {name!r} is none or something, not both; got {text!r}")
    return ",".join(choice for choice in choices if choice in wanted)


_WANTED: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _cast(kind: type, value: object) -> bool | int | float | str | None:
    if not isinstance(value, bool | int | float | str):
        return None  # JSON's null, lists and objects are no settings
    text = str(value).strip()
    if kind is bool:
        return _BOOLEANS.get(text.lower())
    if kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return int(number) if kind is int else number


def apply(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Return the settings with some of them replaced.

    Raises
    ------
    SettingsError
        If a name is unknown or a value is not allowed.
    """
    return dataclasses.replace(settings, **{name: convert(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Read ``key=value`` texts of the command line.

    Raises
    ------
    SettingsError
        If a text has no ``=``.
    """
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"expected key=value, got {text!r}; for instance iterations=20")
        values[name.strip()] = value
    return values


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Rows of the documentation table: name, type or choices, default, help."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in FIELDS.items():
        choices: tuple[str, ...] = field.metadata["choices"]
        kind = " | ".join(choices) if choices else _TYPES[name].__name__
        rows.append((name, kind, _text(field.default), field.metadata["help"]))
    return rows


def _text(value: Any) -> str:  # noqa: ANN401 - the default of a dataclass field
    return str(value).lower() if isinstance(value, bool) else str(value)
