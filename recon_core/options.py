"""Options of the reconstruction, each declared once with type, default, help and limits.

The stream side extends this dataclass with its own settings; the XML parser, ``--set``, ``--help`` and the table in
the documentation are all made from the field metadata written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recon_core.methods import METHODS


def option(
    default: bool | float | str,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:  # noqa: ANN401 - dataclasses.field is typed as its default for the reader of the class
    """Declare one option: its default value, one sentence of help, and what values are allowed."""
    return field(
        default=default,
        metadata={"help": text, "choices": choices, "minimum": minimum, "maximum": maximum},
    )


@dataclass(frozen=True, kw_only=True)
class ReconOptions:
    """What the reconstruction core can be asked for; every field has a default that works."""

    method: str = option("cg_sense", "reconstruction method", choices=tuple(METHODS))
    iterations: int = option(20, "iterations of an iterative method at most", minimum=1, maximum=1000)
    regularization: float = option(
        1e-3, "Tikhonov weight lambda of (A^H A + lambda) x = A^H y, for coil maps of unit norm", minimum=0.0
    )
    tolerance: float = option(
        1e-4, "residual, relative to that of a zero image, at which an iterative method stops early", minimum=0.0
    )
    map_neighbourhood: int = option(
        7, "side of the square, in pixels, over which coil maps are taken as constant", minimum=1, maximum=101
    )
    map_refinements: int = option(
        4,
        "how often coil maps from a short calibration centre are improved with the outer lines",
        minimum=0,
        maximum=100,
    )
    device: str = option(
        "auto", "where to compute: auto takes the GPU when there is one", choices=("auto", "cpu", "cuda")
    )
