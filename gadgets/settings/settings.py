"""The settings of a scan: the options of the reconstruction, and groups for what the stream does around it.

XML, ``--set``, FIRE's JSON, help and documentation are made from the fields; see `recon_core.options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from recon_core.ct.settings import CtSettings
from recon_core.errors import SettingsError
from recon_core.off_grid.settings import TrajectorySettings
from recon_core.options import Option, Options, ReconOptions, apply, as_text, find_option, group, option, options_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FIELDS",
    "Settings",
    "apply",
    "changed_settings",
    "find_setting",
    "grouped_settings",
    "parse_assignments",
    "refuse_costly",
]


@dataclass(frozen=True, kw_only=True)
class ReadoutSettings(Options):
    """What the counters and stamps of readouts mean, where senders differ."""

    time_axis: Literal["auto", "phase", "repetition"] = option(
        "auto", "counter that numbers the frames; auto takes phase, or repetition when only that one runs"
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
        choices=("auto", "header", "readouts"),
        or_line=True,
    )
    oversampling: Literal["auto", "present", "removed", "kept"] = option(
        "auto",
        "readout oversampling that the header declares: present is removed here, removed was removed by the sender, "
        "kept stays until the image; auto sees it from the length of the readouts, but of Philips, whose converter "
        "removes none, and keeps that of readouts with gaps",
    )


@dataclass(frozen=True, kw_only=True)
class WhiteningSettings(Options):
    """Whether the coils are decorrelated."""

    enabled: bool = option(
        True,
        "decorrelate the coils with noise readouts: of a file, of the stream, or of the measurement it depends on",
        name="whiten",
    )
    done: bool = option(
        False,
        "gadgets in front have whitened already (Gadgetron's NoiseAdjust): the noise has unit deviation, and noise "
        "readouts are not used",
        name="whitened",
    )


@dataclass(frozen=True, kw_only=True)
class GatingSettings(Options):
    """How lines come into frames."""

    mode: Literal["auto", "counter", "retrospective"] = option(
        "auto",
        "how lines come into frames: counter by the counter of time_axis, retrospective by their time since the R "
        "wave; auto is retrospective where the header announces it or the phases run on unevenly from beat to beat",
        name="gating",
    )
    frames: int = option(
        0,
        "frames of the cycle; 0 takes RetroGatedImages or the limit of the phases, else as many as a beat has readouts "
        "of a line",
        name="gated_frames",
        minimum=0,
        maximum=4096,
        peer=256,
    )
    arrhythmia_tolerance: float = option(
        0.25,
        "reject beats with an RR interval that differs by more than this share from the typical one",
        minimum=0.01,
        maximum=1.0,
    )
    rr_stretch: Literal["diastole", "cycle"] = option(
        "diastole",
        "how beats of different length become one cycle; diastole keeps the length of systole, cycle stretches all",
    )
    trigger_source: Literal["auto", "stamps", "ecg", "self"] = option(
        "auto",
        "where R waves come from: the time stamps of the readouts, the ECG of the stream, or the motion in the k-space "
        "centre (self); auto takes the first of these that shows beats",
    )
    output: Literal["mean", "beats"] = option(
        "mean",
        "frames of the mean beat, or of every beat on its own (repetition) where each has all lines",
        name="gated_output",
    )


@dataclass(frozen=True, kw_only=True)
class RealtimeSettings(Options):
    """Whether frames leave while the scan runs."""

    mode: Literal["off", "sliding", "fixed"] = option(
        "off",
        "send frames while the scan runs: sliding every frame when it is complete, reconstructed with those before it, "
        "fixed so many at a time; off waits for the whole slice",
        name="realtime",
    )
    window: int = option(
        0,
        "frames that are reconstructed together; 0 takes the acceleration of the header, 8 at least",
        name="realtime_window",
        minimum=0,
        maximum=4096,
        peer=256,
    )
    lines_per_frame: int = option(
        0,
        "so many readouts of a slice, one after the other, make a frame; 0 goes by the counter of time_axis; of radial "
        "scans also where realtime is off",
        minimum=0,
        maximum=65535,
    )


@dataclass(frozen=True, kw_only=True)
class CoilSettings(Options):
    """Coil compression."""

    virtual: int = option(
        0,
        "virtual coils that coil compression keeps; 0 keeps as many as coil_energy asks for",
        name="virtual_coils",
        minimum=0,
    )
    energy: float = option(
        1.0,
        "share of the signal energy that coil compression keeps; 1 keeps all coils",
        name="coil_energy",
        minimum=0.01,
        maximum=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Options):
    """The form of the images, and what else a Gadgetron gets."""

    output: Literal["magnitude", "complex"] = option("magnitude", "float32 magnitude or complex64 images")
    scale: float = option(
        0.0,
        "factor on all images; 0 sets it once per scan so that the bright tissue of the first slice is near 1000",
        minimum=0.0,
        maximum=1e12,
    )
    emit: Literal["images", "image_array"] = option(
        "images",
        "what a Gadgetron gets: images ready to be shown, or for every slice an array of complex ones for its own "
        "gadgets, over the encoded field of view and not scaled unless scale says so",
    )
    forward: Literal["none", "acquisitions", "images", "all"] = option(
        "none",
        "what else a Gadgetron gets back as it came: acquisitions (buffered ones too), images of other gadgets, all, "
        "or none of it; waveforms always",
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
    orientation: Literal["acquired", "flipped"] = option(
        "acquired",
        "acquired leaves the rows along the readout as they were measured; flipped turns the images by 180 degrees, "
        "pixels and directions together, so that every pixel stays where it is in the patient",
    )


@dataclass(frozen=True, kw_only=True)
class SeriesSettings(Options):
    """Which series the images form."""

    # 16 bits, with room for the series of other images, up to 26 further on
    index: int = option(1, "image_series_index of the images", name="series", minimum=1, maximum=65509)
    by: Literal["scan", "slice"] = option(
        "scan",
        "scan has one series for all slices; slice has a series for each, 100 further on from slice to slice",
        name="series_by",
    )
    description: str = option("", "text for the series description; empty takes the method's name")
    preview: Literal["none", "zero_filled", "cg_sense", "low_rank_sparse", "kt_sense"] = option(
        "none",
        "method that sends its images ahead of those of a method that takes longer, in a series of their own",
    )
    fused: bool = option(
        False, "atlf_net: send the fused image of CT and MR too, in a series of its own", name="emit_fused"
    )


@dataclass(frozen=True, kw_only=True)
class Settings(ReconOptions):
    """Everything a pipeline can set: the options of the reconstruction, and what the stream does around it."""

    readouts: ReadoutSettings = group(ReadoutSettings, "Readouts")
    trajectory: TrajectorySettings = group(TrajectorySettings, "Trajectory (radial scans)")
    whitening: WhiteningSettings = group(WhiteningSettings, "Whitening")
    gating: GatingSettings = group(GatingSettings, "Retrospective gating")
    realtime: RealtimeSettings = group(RealtimeSettings, "Real time")
    coils: CoilSettings = group(CoilSettings, "Coil compression")
    images: ImageSettings = group(ImageSettings, "Images")
    series: SeriesSettings = group(SeriesSettings, "Series")
    ct: CtSettings = group(CtSettings, "CT (atlf_net)")


#: All settings by the names that users know.
FIELDS: dict[str, Option] = options_of(Settings)


def find_setting(name: str) -> Option:
    """Find a setting by the name that users know, or by group and field with a dot between them.

    Raises
    ------
    SettingsError
        If there is none.
    """
    return find_option(Settings, name)


def grouped_settings() -> list[tuple[str, list[Option]]]:
    """The settings by heading, for help and documentation."""
    groups = groupby(FIELDS.values(), key=lambda setting: setting.heading)
    return [(heading or "Method", list(settings)) for heading, settings in groups]


def changed_settings(settings: Settings) -> dict[str, str]:
    """Settings that differ from their defaults, by name, as they are written in XML."""
    values = {}
    for name, one in FIELDS.items():
        value = getattr(getattr(settings, one.group) if one.group else settings, one.field)
        if value != one.default:
            values[name] = as_text(value)
    return values


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


def refuse_costly(settings: Settings, trusted: Settings) -> None:
    """Refuse numbers of a peer that would keep a server busy for long.

    Parameters
    ----------
    settings
        As the peer wants them.
    trusted
        What the operator said; that may be any number.

    Raises
    ------
    SettingsError
        If a number is larger than a peer may ask for.
    """
    for name, one in FIELDS.items():
        wanted = one.of(settings)
        if one.peer is not None and wanted != one.of(trusted) and float(wanted) > one.peer:
            raise SettingsError(
                f"setting {name!r} is {wanted}; a peer may ask for {one.peer:g} at most, and only the operator of the "
                "server for more, in a pipeline of --pipelines or with --set"
            )
