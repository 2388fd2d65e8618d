"""How the CT of a scan is used; light to import, because it is part of the settings of every scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recon_core.errors import SettingsError
from recon_core.options import Options, option


@dataclass(frozen=True, kw_only=True)
class CtSettings(Options):
    """Where the CT of the patient is, and how it is used."""

    path: str = option(
        "", "CT of the patient: NIfTI file, folder with one DICOM series, or ISMRMRD HDF5 file or group", name="ct_path"
    )
    transform: str = option(
        "",
        "text file of 4 x 4 numbers, from MR to CT in mm; empty where they share the patient frame",
        name="ct_transform",
    )
    transform_space: Literal["lps", "ras"] = option(
        "lps", "axes of ct_transform; lps as in ITK, ras as in ITK-SNAP and greedy", name="ct_transform_space"
    )
    frame: Literal["patient", "table"] = option(
        "patient",
        "frame in which the MR is brought to the CT; table takes off the position of the table",
        name="ct_frame",
    )
    window_low: float = option(-200.0, "HU that become 0", name="ct_window_low", minimum=-10000.0, maximum=100000.0)
    window_high: float = option(800.0, "HU that become 1", name="ct_window_high", minimum=-10000.0, maximum=100000.0)
    slab_samples: int = option(
        5,
        "planes of CT that are averaged across the thickness of a slice",
        name="ct_slab_samples",
        minimum=1,
        maximum=100,
    )
    min_coverage: float = option(
        0.9,
        "share of the pixels of a slice that must lie inside the CT",
        name="ct_min_coverage",
        minimum=0.0,
        maximum=1.0,
    )
    policy: Literal["error", "fallback"] = option(
        "error",
        "action when the CT is missing or does not fit; error leaves it to the fallback method and refuses the scan or "
        "slice where that is none, fallback goes without CT, if the weights can",
        name="ct_policy",
    )

    def __post_init__(self) -> None:
        """Refuse a window without width.

        Raises
        ------
        SettingsError
            If the window ends where it begins, or before; or as `Options` says.
        """
        super().__post_init__()
        if not self.window_low < self.window_high:
            raise SettingsError(
                f"ct_window_low must be below ct_window_high, got {self.window_low:g} and {self.window_high:g}"
            )

    @property
    def window(self) -> tuple[float, float]:
        """HU that become 0 and 1."""
        return self.window_low, self.window_high
