"""Named plans of scans as scanners and data sets have them; any field may still be changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gadgets.simulation.plan import ScanPlan
from recon_core.errors import SettingsError
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Preset:
    """A kind of scan."""

    about: str
    """What it is like, in a sentence."""
    fields: Mapping[str, object]
    """Fields of `ScanPlan` that differ from their defaults."""


_SIEMENS = {"vendor": "SIEMENS", "noise_readouts": 0, "coils": 16}
_REAL_TIME = {
    **_SIEMENS,
    "time_axis": "repetition",
    "phase_counter": True,
    "repetition_time": 2.74,
    "acs_lines": 0,
}
_RETROSPECTIVE = {
    **_SIEMENS,
    "gating": "retrospective",
    "frames": 25,
    "segments": 5,
    "repetition_time": 3.0,
    "acceleration": 2,
    "heart_rate": 63.0,
    "rr_variability": 0.05,
}

PRESETS = {
    "ocmr": Preset(
        "OCMR, fully sampled: prospectively triggered segments, two averages, 352 of 512 samples, no noise readouts",
        {
            **_SIEMENS,
            "coils": 15,
            "matrix_x": 256,
            "matrix_y": 208,
            "field_of_view_x": 380.0,
            "field_of_view_y": 308.75,
            "frames": 19,
            "sampling": "full",
            "asymmetric_echo": 0.3125,
            "averages": 2,
            "segments": 16,
            "repetition_time": 2.9,
            "heart_rate": 62.0,
            "waveforms": False,
        },
    ),
    "ocmr-rt": Preset(
        "OCMR, prospectively undersampled: real time, golden-ratio offset lines (GRO) in alternating order, 126 of "
        "134 lines, pilot tone",
        {
            **_REAL_TIME,
            "coils": 24,
            "matrix_x": 176,
            "matrix_y": 132,
            "field_of_view_x": 400.0,
            "field_of_view_y": 300.0,
            "phase_oversampling": 0.0152,
            "phase_resolution": 0.94,
            "frames": 30,
            "slices": 3,
            "sampling": "gro",
            "acceleration": 7,
            "alternating_order": True,
            "pilot_tone": True,
            "waveforms": False,
        },
    ),
    "siemens-partial-fourier": Preset(
        "partial Fourier lines with the k-space centre wrong in the header and right in the readouts",
        {**_SIEMENS, "segments": 12, "partial_fourier": 0.75, "header_center": "middle"},
    ),
    "siemens-phase-resolution": Preset(
        "fewer lines than the encoded matrix, and phase oversampling",
        {**_SIEMENS, "segments": 12, "phase_resolution": 0.8, "phase_oversampling": 0.25},
    ),
    "siemens-retro": Preset(
        "retrospective gating: phases run on to the next R wave, 25 are announced, beats of about 850 to 1050 ms",
        _RETROSPECTIVE,
    ),
    "siemens-retro-ectopic": Preset(
        "the same with an ectopic beat and its pause, measured again with equal counters",
        {**_RETROSPECTIVE, "ectopic_beat": True, "remeasure": True},
    ),
    "siemens-tgrappa": Preset(
        "real time, every 4th line moving from frame to frame, 64 frames, no reference lines",
        {**_REAL_TIME, "sampling": "interleaved", "acceleration": 4, "frames": 64},
    ),
    "siemens-ungated": Preset(
        "real time without a gating signal: the time since the trigger is huge and only rises",
        {**_REAL_TIME, "sampling": "interleaved", "acceleration": 4, "frames": 24, "ungated": True, "waveforms": False},
    ),
    "midnight": Preset("the clock of the time stamps passes midnight", {**_RETROSPECTIVE, "start_time": 86396.0}),
    "lost-start": Preset(
        "the first readouts of the images never arrived", {**_SIEMENS, "segments": 12, "lost_readouts": 7}
    ),
}


def plan_like(name: str, changes: Mapping[str, object]) -> ScanPlan:
    """Plan a scan like a known kind.

    Parameters
    ----------
    name
        One of `PRESETS`; empty for a plan of the defaults.
    changes
        Fields of `ScanPlan` that are to differ; they win over those of the preset.

    Raises
    ------
    SettingsError
        If there is no such kind, or the fields contradict each other.
    """
    if name and name not in PRESETS:
        raise SettingsError(f"there is no kind of scan {name!r}; {choose_from(name, PRESETS)}")
    fields = {**PRESETS[name].fields, **changes} if name else dict(changes)
    return ScanPlan(**fields)  # type: ignore[arg-type]
