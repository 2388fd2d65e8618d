"""Coil maps by the method that the options choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.coils.espirit import espirit_maps
from recon_core.coils.inati import inati_maps
from recon_core.coils.joint import joint_maps
from recon_core.coils.walsh import walsh_maps
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from recon_core.options import MapOptions

    Estimate = tuple[torch.Tensor, tuple[str, ...]]
    Near = torch.Tensor | None


def _walsh(reference: torch.Tensor, measured: torch.Tensor, options: MapOptions, _near: Near) -> Estimate:
    return walsh_maps(reference, measured, neighbourhood=options.neighbourhood, refinements=options.refinements)


def _espirit(reference: torch.Tensor, measured: torch.Tensor, options: MapOptions, _near: Near) -> Estimate:
    maps, _, notes = espirit_maps(
        reference,
        measured,
        kernel=options.kernel,
        calibration=options.calibration,
        threshold=options.threshold,
        crop=options.crop,
        soft=options.soft,
    )
    return maps[0], notes


def _inati(reference: torch.Tensor, measured: torch.Tensor, options: MapOptions, _near: Near) -> Estimate:
    return inati_maps(reference, measured, neighbourhood=options.neighbourhood), ()


def _auto(reference: torch.Tensor, measured: torch.Tensor, _options: MapOptions, near: Near) -> Estimate:
    return joint_maps(reference, measured, near)


#: How maps of each kind are estimated.
ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor, MapOptions, Near], Estimate]] = {
    "auto": _auto,
    "walsh": _walsh,
    "espirit": _espirit,
    "inati": _inati,
}


def estimate_maps(reference: torch.Tensor, measured: torch.Tensor, options: MapOptions, near: Near = None) -> Estimate:
    """Estimate coil maps of the chosen kind; where the data do not allow it, Walsh's, which any data allow.

    Parameters
    ----------
    reference
        ``(coil, ky, x)`` complex64, transformed along the readout.
    measured
        ``(ky,)`` bool, True where `reference` holds a line.
    options
        Which kind, and its parameters.
    near
        Maps ``(coil, y, x)`` complex64 of the same coils that were found before, for a kind that can go on from them.

    Returns
    -------
    tuple
        Maps ``(coil, y, x)`` complex64, and notes on what had to be done differently.
    """
    try:
        maps, notes = ESTIMATORS[options.kind](reference, measured, options, near)
        if are_usable(maps):
            return maps, notes
        why = "those are zero or not finite"
    except DataError as error:
        why = str(error)
    maps, notes = _walsh(reference, measured, options, None)
    return maps, (f"walsh coil maps instead of {options.kind}: {why}", *notes)


def are_usable(maps: torch.Tensor) -> bool:
    """Whether maps are finite, and not zero everywhere."""
    return bool(maps.isfinite().all() & maps.any())
