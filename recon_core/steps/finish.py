"""Third step: images of the wanted frames, with k-space completed and filtered where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.classical.partial_fourier import complete, measured_span, partial_extents
from recon_core.methods import find_method
from recon_core.physics.kspace_filter import filter_image
from recon_core.steps.device import to_device
from recon_core.steps.work import Outcome, Outcomes

if TYPE_CHECKING:
    import torch

    from recon_core.options import FinishOptions
    from recon_core.steps.work import Work


def finish(work: Work, outcomes: Outcomes) -> Outcomes:
    """Leave out the context, complete the k-space of one side, and filter.

    Parameters
    ----------
    work
        The slice.
    outcomes
        Images of all frames of `Work.data`.

    Returns
    -------
    Outcomes
        Images of the frames after the context.
    """
    context = len(work.data.mask) - len(work.cine.mask) + work.cine.context

    def finished(outcome: Outcome) -> Outcome:
        return _completed(work, _without_context(_as_measured(outcome, work.data.factors), context))

    main, *others = outcomes
    return Outcomes(finished(main), *(None if one is None else finished(one) for one in others))


def _as_measured(outcome: Outcome, factors: torch.Tensor | None) -> Outcome:
    """Give frames the phase and the brightness with which they came."""
    if factors is None:
        return outcome
    by_frame, extra = factors[:, None, None], dict(outcome.extra)
    if "uncertainty" in extra:
        extra["uncertainty"] = extra["uncertainty"] / by_frame.abs()
    return outcome._replace(image=outcome.image / by_frame, extra=extra)


def _without_context(outcome: Outcome, context: int) -> Outcome:
    """Leave out the first frames, which only helped, also of the further images that have frames."""
    if not context:
        return outcome
    frames = outcome.image.shape
    extra = {name: image[context:] if image.shape == frames else image for name, image in outcome.extra.items()}
    return outcome._replace(image=outcome.image[context:], extra=extra)


def _completed(work: Work, outcome: Outcome) -> Outcome:
    """Complete the k-space of the images of a classical method, and filter that of any."""
    image, options, device = outcome.image, work.options.finish, outcome.image.device
    if work.cine.trajectory is not None:
        return _filtered_off_grid(outcome, options)
    mask = to_device(work.cine.mask, device)
    columns = None if work.cine.receiver.columns is None else to_device(work.cine.receiver.columns, device)
    if options.partial_fourier != "off":
        frames = slice(len(mask) - len(image), None)  # those of the context have no image any more
        extents = {axis: extent.part(frames) for axis, extent in partial_extents(mask, columns).items()}
        if not find_method(outcome.method).network:
            image, notes = complete(image, extents, options.partial_fourier)
            outcome.notes.extend(notes)
        elif extents:
            asked = f"partial_fourier={options.partial_fourier}"
            outcome.notes.append(f"{asked} is for classical methods, not {outcome.method}")
    if options.kspace_filter:
        readout = (0, image.shape[-1] - 1) if columns is None else measured_span(columns)
        image = filter_image(image, options.kspace_filter, measured_span(mask.any(0)), readout)
    return outcome._replace(image=image)


def _filtered_off_grid(outcome: Outcome, options: FinishOptions) -> Outcome:
    """Filter the whole k-space of images of samples that follow no grid."""
    image = outcome.image
    if options.partial_fourier != "off":
        outcome.notes.append(f"partial_fourier={options.partial_fourier} is for samples on a Cartesian grid")
    if options.kspace_filter:
        rows, columns = image.shape[-2:]
        image = filter_image(image, options.kspace_filter, (0, rows - 1), (0, columns - 1))
    return outcome._replace(image=image)
