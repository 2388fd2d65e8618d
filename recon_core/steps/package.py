"""Last step: images in their units, as arrays, with what was noted on the way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from recon_core.data import Reconstruction
from recon_core.steps.work import Outcome, check_finite

if TYPE_CHECKING:
    import torch

    from recon_core.steps.units import Units
    from recon_core.steps.work import Outcomes, Work


def package(work: Work, outcomes: Outcomes, units: Units) -> Reconstruction:
    """Make the result of the engine, without `Reconstruction.seconds`.

    Parameters
    ----------
    work
        The slice.
    outcomes
        Images of the frames after the context.
    units
        What to multiply them by.

    Raises
    ------
    ModelError
        If an image has values that are not finite.
    """
    maps = work.data.maps.cpu().numpy()

    def result(one: Outcome, factor: torch.Tensor) -> Reconstruction:
        image = check_finite(one.method, one.image * factor, work.cine).contiguous().cpu().numpy()
        return Reconstruction(image, maps, one.method, notes=(*work.data.notes, *one.notes), doubts=one.doubts)

    main = outcomes.main
    extra = dict(main.extra)
    if "uncertainty" in extra:
        extra["uncertainty"] = extra["uncertainty"] * units.intensity
    beside, zero_filled = (
        None if one is None else result(one, units.intensity) for one in (outcomes.beside, outcomes.zero_filled)
    )
    return dataclasses.replace(
        result(main, units.intensity if units.per_noise is None else units.per_noise),
        g_factor=units.g_factor,
        extra={name: image.float().cpu().numpy() for name, image in extra.items()},
        beside=beside,
        zero_filled=zero_filled,
        units="relative" if units.per_noise is None else "snr",
    )
