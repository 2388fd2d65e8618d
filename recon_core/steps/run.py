"""Second step: the chosen method, the fallback where it is needed or asked for, and the zero-filled image."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import torch

from recon_core.errors import CinestreamError, DataError, ModelError, ResourceError
from recon_core.inference.method import NetworkMethod
from recon_core.inference.start import SAMPLES
from recon_core.own_methods import checked_image, guarded
from recon_core.physics.memory import MORE_GPU_MEMORY
from recon_core.steps.work import Outcome, Outcomes, check_finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from recon_core.data import HybridSlice
    from recon_core.options import ReconOptions
    from recon_core.steps.work import Method, Work


def run(work: Work) -> Outcomes:
    """Make the images of a slice, and the further ones that the options ask for.

    Parameters
    ----------
    work
        The slice.

    Returns
    -------
    Outcomes
        Images of all frames of `Work.data`.

    Raises
    ------
    CinestreamError
        If the method fails and there is no fallback, or that fails too.
    """
    main, beside = _with_fallback(work)
    name, zero_filled = "zero_filled", None
    if name in work.options.finish.extras and main.method != name:
        zero_filled = _unless_it_fails(main, name, lambda: _Attempts(work)(name))
    return Outcomes(main, beside, zero_filled)


def _with_fallback(work: Work) -> tuple[Outcome, Outcome | None]:
    """Run the method; where it cannot do the scan or its image is doubtful, the fallback as well or instead.

    Returns
    -------
    tuple
        The images to send, and those of the fallback to send too or to compare them with, or None.
    """
    options = work.options
    has_fallback = options.fallback not in ("none", options.method)

    attempt = _Attempts(work)

    def fallback() -> Outcome:
        return attempt(options.fallback)

    try:
        main = _judged(work, attempt)
    except CinestreamError as error:
        if not has_fallback:
            raise
        note = f"{options.fallback} instead of {options.method}: {error}"
        return fallback()._replace(notes=[note, *fallback().notes]), None
    if not has_fallback:
        return main, None
    if main.doubts and options.outside_range == "beside":
        main.notes.append(f"the image of {options.fallback} is in a series of its own")
        note = f"{options.fallback} in addition to {options.method}: {'; '.join(main.doubts)}"
        return main, fallback()._replace(notes=[note, *fallback().notes])
    if not options.finish.extras & {"fallback", "difference"}:
        return main, None
    return main, _unless_it_fails(main, options.fallback, fallback)


def _judged(work: Work, attempt: _Attempts) -> Outcome:
    """Run the method, and note what speaks against the images of a network, whether or not a fallback may take over.

    Raises
    ------
    CinestreamError
        If something does and such a scan is to go to the fallback, if the slice is unfit, or if the method fails.
    """
    options = work.options
    why = work.cine.unfit or work.why_not(options.method)
    if why:
        raise DataError(why)
    method = work.build(options.method, options)
    if not isinstance(method, NetworkMethod):
        return attempt(options.method)
    if why := work.why_not_first(method):
        raise DataError(why)
    before = _accept(method.unlike_training(work.data), options)
    outcome = attempt(options.method)
    against = method.doubts(work.data, outcome.image, *attempt.compared(method))
    after = _accept("; ".join(filter(None, (*outcome.doubts, against))), options)
    doubts = tuple(reason for reason in (before, after) if reason)
    outcome.notes.extend(doubts)
    return outcome._replace(doubts=doubts)


def _accept(reason: str, options: ReconOptions) -> str:
    """Hand a reason for doubt on, unless it is to send the scan to the fallback.

    Raises
    ------
    ModelError
        If it is.
    """
    if reason and options.outside_range == "fallback":
        raise ModelError(f"{reason}; outside_range=note sends the image all the same")
    return reason


class _Attempts:
    """Images of a slice by method, made once: a network starts from what it is compared with, and what may be sent."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._made: dict[str, Outcome] = {}
        self._deviations: dict[str, torch.Tensor | None] = {}

    def __call__(self, name: str) -> Outcome:
        """Run a method, apart from whatever another one noted."""
        if name not in self._made:
            if why := self._work.why_not(name):
                raise DataError(why)
            method = self._work.build(name, self._work.options)
            with self._work.pace.measured(self._work.job(name)):
                self._made[name] = self._make(name, method)
        return self._made[name]

    def _make(self, name: str, method: Method) -> Outcome:
        own = dataclasses.replace(self._work.data, notes=[], doubts=[], extra={})
        deviation = None
        if isinstance(method, NetworkMethod) and method.start_method:
            start, deviation = self._known(method.start_method)  # its time is the network's
            said = list(self._made[method.start_method].notes)  # of the data, as much as of that image
            own = dataclasses.replace(own, start=start, start_deviation=deviation, notes=said)
        image = check_finite(name, _fitting(name, method, own), self._work.cine)
        if isinstance(method, NetworkMethod) and "uncertainty" in self._work.options.finish.extras:
            if deviation is not None and method.is_weighed:
                own.extra["uncertainty"] = deviation
            elif "uncertainty" not in own.extra:
                own.notes.append(f"no uncertainty: the image of {name} is not weighed against one that has it")
        return Outcome(name, image, own.notes, own.extra, tuple(own.doubts))

    def compared(self, network: NetworkMethod) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Give what the image of a network is compared with, and the deviation that it is left with if it is known."""
        name = network.reference
        if name in self._made:
            return self._known(name)
        with self._work.pace.measured(self._work.job(name)):
            return self._known(name)

    def _known(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The image of a method, and its deviation if the method tells it by samples and was not run before."""
        options = self._work.options
        asked = options.kt_sense.samples
        if name not in self._made:
            sampled = dataclasses.replace(options.kt_sense, samples=max(asked, SAMPLES))
            method = self._work.build(name, dataclasses.replace(options, kt_sense=sampled))
            made = self._made[name] = self._make(name, method)
            self._deviations[name] = made.extra.get("uncertainty")
            if asked < SAMPLES and "uncertainty" not in options.finish.extras:
                made.extra.pop("uncertainty", None)
        return self._made[name].image, self._deviations.get(name)


def _fitting(name: str, method: Method, data: HybridSlice) -> torch.Tensor:
    """The image of a method.

    Raises
    ------
    ResourceError
        If a GPU runs out of memory; all that the method took is free then, for another method.
    ModelError
        If a method of one's own fails.
    """
    full = torch.cuda.OutOfMemoryError
    # The error keeps what was computed; it is gone where the next method begins.
    with contextlib.suppress(full), guarded(name, full):
        return checked_image(name, method(data), data)
    torch.cuda.empty_cache()
    raise ResourceError(f"{name} does not fit into the memory of the GPU; {MORE_GPU_MEMORY}")


def _unless_it_fails(main: Outcome, name: str, make: Callable[[], Outcome]) -> Outcome | None:
    """Make another image of a slice; a failure is noted and does not discard the main one."""
    try:
        return make()
    except CinestreamError as error:
        main.notes.append(f"no further images of {name}: {error}")
        return None
