"""The settings of scans that follow no Cartesian grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recon_core.options import Options, option


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(Options):
    """Where the samples of a scan lie that follows no Cartesian grid."""

    source: Literal["auto", "traj", "uniform", "golden", "tiny_golden"] = option(
        "auto",
        "radial scans: traj takes the positions that the readouts carry, the others set straight spokes at such "
        "angles; auto takes those of the readouts, and golden where the header says goldenangle and there are none",
        name="trajectory",
    )
    increment: float = option(
        0.0,
        "angle from spoke to spoke in degrees; 0 takes that of trajectory",
        name="angle_increment",
        minimum=-360.0,
        maximum=360.0,
    )
    counter: Literal["auto", "line", "arrival"] = option(
        "auto",
        "number of a spoke that its angle goes by: line is the counter kspace_encode_step_1, arrival the number of the "
        "readout in its slice; auto takes line for uniform angles, else arrival",
        name="angle_counter",
    )
    first: float = option(0.0, "angle of the first spoke in degrees", name="first_angle", minimum=-360.0, maximum=360.0)
    rotation: Literal["counterclockwise", "clockwise"] = option(
        "counterclockwise", "direction in which the spokes turn: counterclockwise goes from x (the readout) to y"
    )
    tiny: int = option(
        7,
        "which tiny golden angle tiny_golden means; 1 is the golden angle",
        name="tiny_golden",
        minimum=1,
        maximum=100,
    )
    unit: Literal["auto", "pixel", "fov", "metre", "radian"] = option(
        "auto",
        "unit of the positions that readouts carry: cycles per pixel, per field of view or per metre, or radians per "
        "metre; auto sees it from the largest",
        name="trajectory_unit",
    )
