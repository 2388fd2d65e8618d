"""Between the first step and the second, for a method that chooses: the one that is known to be best for the slice."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from recon_core.errors import ModelError
from recon_core.inference.method import NetworkMethod
from recon_core.inference.start import start_method
from recon_core.methods import find_method
from recon_core.options import apply
from recon_core.weights.manifest import list_weights
from recon_core.words import choose_from

if TYPE_CHECKING:
    from recon_core.options import ReconOptions
    from recon_core.steps.work import Work
    from recon_core.weights.manifest import WeightsEntry

#: Methods that take any scan, the best first; networks stand before them where they are known to add to the first one.
WITHOUT_WEIGHTS = ("kt_sense", "cg_sense", "zero_filled")
_RESERVE = 1.25  # of time: the next slice may take longer than the last one did
_MOST_REASONS = 2  # in a note; ten networks would fill the comment of every image


class Candidate(NamedTuple):
    """A method that may be chosen."""

    options: ReconOptions
    """What it is built from; it is their method, with their weights."""
    gain: float = 0.0
    """What a network is known to add to the first of `WITHOUT_WEIGHTS`, in dB."""
    start: str = ""
    """The method of which a network makes the images on its way; empty where it makes none."""

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.options.method


def known_gain(entry: WeightsEntry) -> float:
    """What weights are known to add to the first of `WITHOUT_WEIGHTS`.

    Parameters
    ----------
    entry
        The weights.

    Returns
    -------
    float
        Median gain in dB on the scans of their survey; 0 where they were not compared with that method.
    """
    survey = entry.metrics.get("survey")
    if entry.reference != WITHOUT_WEIGHTS[0] or not entry.helps or not isinstance(survey, dict):
        return 0.0
    return max(0.0, survey.get("median_gain", 0.0))


def candidates(options: ReconOptions) -> list[Candidate]:
    """The methods that may be chosen, the best first.

    Parameters
    ----------
    options
        Of the slice; weights that they name are the only ones that are considered.

    Returns
    -------
    list of Candidate
        Networks that are known to add something, by how much they add, and `WITHOUT_WEIGHTS`. Each has the next of
        those for fallback where it would be its own.
    """
    named = options.network.weights
    entries = [entry for entry in list_weights().values() if named in ("", entry.name)]
    networks = [
        Candidate(_with(options, entry.method, entry.name), gain, start_method(entry))
        for entry in entries
        if (gain := known_gain(entry))
    ]
    networks.sort(key=lambda one: -one.gain)
    return [*networks, *(Candidate(_with(options, name, named)) for name in WITHOUT_WEIGHTS)]


def _with(options: ReconOptions, name: str, weights: str) -> ReconOptions:
    changes = {"method": name, "weights": weights}
    if options.fallback == name:
        place = WITHOUT_WEIGHTS.index(name)
        changes["fallback"] = (*WITHOUT_WEIGHTS, name)[place + 1]
    return apply(options, changes)


def choose(work: Work) -> Work:
    """Choose the method of a slice.

    Parameters
    ----------
    work
        The slice. Where its time is limited, the best method of which the images can be there in time is taken, or the
        fastest if there is none.

    Returns
    -------
    Work
        The same with another method in its options; a note on the data gives the reason.
    """
    left = work.until - time.monotonic()
    ranked = candidates(work.options)
    passed: list[str] = []
    for chosen in ranked:
        why = _lateness(work, chosen, left) or _obstacle(work, chosen)
        if not why:
            break
        passed.append(f"{chosen.name}: {why}")
    else:
        chosen = min(ranked[-len(WITHOUT_WEIGHTS) :], key=lambda one: _seconds(work, one))
        passed = ["no other is faster"]
    reasons = [f"+{chosen.gain:.1f} dB over {WITHOUT_WEIGHTS[0]} on scans of its survey"] if chosen.gain else []
    if len(ranked) == len(WITHOUT_WEIGHTS):
        reasons.append(_nothing_known(work.options.network.weights))
    if left < math.inf:
        reasons.append(f"about {_about(_seconds(work, chosen))} of the {_about(left)} left")
    reasons += passed[:_MOST_REASONS]
    if len(passed) > _MOST_REASONS:
        reasons.append(f"and {len(passed) - _MOST_REASONS} more")
    work.data.notes.append(f"{work.options.method}: {chosen.name} ({'; '.join(reasons)})")
    return dataclasses.replace(work, options=chosen.options)


def _nothing_known(named: str) -> str:
    """Why no network may be chosen."""
    known = list_weights()
    if named and named not in known:
        return f"there are no weights {named!r}; {choose_from(named, known, 'cinestream methods')}"
    return f"no weights are known to add to {WITHOUT_WEIGHTS[0]}"


def _lateness(work: Work, one: Candidate, left: float) -> str:
    """Why the images of a method would come too late; empty if they would not."""
    needed = _seconds(work, one)
    return "" if needed * _RESERVE <= left else f"would take about {_about(needed)}"


def _obstacle(work: Work, one: Candidate) -> str:
    """Why a method cannot be expected to do its best on this slice; empty if it can."""
    if find_method(one.name).takes_ct and work.data.ct is None:
        return "there is no CT"
    if why := work.why_not(one.name):
        return why
    try:
        method = work.build(one.name, one.options)
    except ModelError as error:
        return str(error)
    if not isinstance(method, NetworkMethod):
        return ""
    return work.why_not_first(method) or method.unlike_training(work.data)


def _seconds(work: Work, one: Candidate) -> float:
    """How long a method will take, with all that is run beside it."""
    extras = one.options.finish.extras
    names = {one.name, *(extras & {"zero_filled"})}
    if find_method(one.name).network:
        names.add(WITHOUT_WEIGHTS[0])  # what its image is compared with
    if extras & {"fallback", "difference"} and one.options.fallback != "none":
        names.add(one.options.fallback)
    theirs = dataclasses.replace(work, options=one.options)
    return sum(work.pace.seconds(theirs.job(name)) for name in names - {one.start})


def _about(seconds: float) -> str:
    return f"{round(max(0.0, seconds), 1 if seconds < 10 else None):g} s"
