"""Between the first step and the second, for a method that chooses: the one that is known to be best for the slice."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from recon_core.errors import ModelError
from recon_core.inference.method import NetworkMethod
from recon_core.methods import find_method
from recon_core.options import apply
from recon_core.weights.manifest import list_weights

if TYPE_CHECKING:
    from recon_core.options import ReconOptions
    from recon_core.steps.work import Work
    from recon_core.weights.manifest import WeightsEntry

#: Methods that take any scan, the best first; networks stand before them where they are known to add to the first one.
WITHOUT_WEIGHTS = ("kt_sense", "cg_sense", "zero_filled")
_MOST_REASONS = 2  # in a note; ten networks would fill the comment of every image


class Candidate(NamedTuple):
    """A method that may be chosen."""

    options: ReconOptions
    """What it is built from; it is their method, with their weights."""
    gain: float = 0.0
    """What a network is known to add to the first of `WITHOUT_WEIGHTS`, in dB."""

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
    if entry.reference != WITHOUT_WEIGHTS[0] or not isinstance(survey, dict):
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
        Candidate(_with(options, entry.method, entry.name), gain) for entry in entries if (gain := known_gain(entry))
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
        The slice.

    Returns
    -------
    Work
        The same with another method in its options; a note on the data gives the reason.
    """
    passed: list[str] = []
    for one in candidates(work.options):
        why = _obstacle(work, one)
        if not why:
            break
        passed.append(f"{one.name}: {why}")
    work.data.notes.append(_reason(work.options.method, one, passed))
    return dataclasses.replace(work, options=one.options)


def _obstacle(work: Work, one: Candidate) -> str:
    """Why a method cannot be expected to do its best on this slice; empty if it can."""
    if find_method(one.name).takes_ct and work.data.ct is None:
        return "there is no CT"
    try:
        method = work.build(one.name, one.options)
    except ModelError as error:
        return str(error)
    return method.unlike_training(work.data) if isinstance(method, NetworkMethod) else ""


def _reason(asked: str, chosen: Candidate, passed: list[str]) -> str:
    """Say what was chosen, and why nothing better."""
    best = WITHOUT_WEIGHTS[0]
    parts = [f"+{chosen.gain:.1f} dB over {best} on scans of its survey"] if chosen.gain else []
    if not passed and not chosen.gain:
        parts.append(f"no weights are known to add to {best}")
    parts += passed[:_MOST_REASONS]
    if len(passed) > _MOST_REASONS:
        parts.append(f"and {len(passed) - _MOST_REASONS} others")
    return f"{asked}: {chosen.name} ({'; '.join(parts)})"
