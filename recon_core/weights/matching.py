"""Matching the tensors of a checkpoint with those of a network, by the names of either."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from recon_core.errors import CinestreamError, ModelError
from recon_core.methods import network_names
from recon_core.weights.checkpoint import SHOWN
from recon_core.weights.config import network_class

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from recon_core.networks.base import Network

    Tensors = Mapping[str, torch.Tensor]
    Naming = Literal["own", "authors"]


_LONGEST_PREFIX = 8  # parts of a name


class Misshapen(NamedTuple):
    """A tensor of another shape than the network's."""

    key: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} ({_shape(self.found)}, expected {_shape(self.expected)})"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


@dataclass(frozen=True)
class ImportReport:
    """How the tensors of a file fit a network."""

    naming: Naming
    """Whose names the file has: the network's ``own`` ones or the ``authors``'; where they are the same,
    ``authors``."""
    prefix: str
    """What stood before every name; the names below are without it."""
    matched: tuple[str, ...]
    """Names that fit."""
    missing: tuple[str, ...]
    """Names of tensors of the network that the file lacks."""
    unexpected: tuple[str, ...]
    """Names that the network does not know."""
    unused: tuple[str, ...]
    """Names that the authors' networks hold without use, and parts of a trainer in addition to the network."""
    misshapen: tuple[Misshapen, ...]
    """Tensors of another shape."""
    unequal: tuple[str, ...]
    """Names of one shared tensor for which the file has another value than for its first name."""

    @property
    def complete(self) -> bool:
        """Whether the network has all it needs and nothing is left over."""
        return not (self.missing or self.unexpected or self.misshapen or self.unequal)

    def text(self) -> str:
        """Say it to people: counts, and some of the names."""
        names = "the authors' names" if self.naming == "authors" else "cinestream's own names"
        before = f", after the prefix {self.prefix!r}" if self.prefix else ""
        lines = [f"{len(self.matched)} tensors match, by {names}{before}"]
        for what, keys in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", tuple(map(str, self.misshapen))),
            ("unlike the tensor that they share", self.unequal),
            ("not used", self.unused),
        ):
            if keys:
                more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
                lines.append(f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{more}")
        return "\n".join(lines)


def _tables(network: Network) -> dict[Naming, dict[str, torch.Tensor]]:
    """The tensors of a network by either kind of names; a shared one has several."""
    own = network.state_dict(keep_vars=True)
    return {"authors": {network.authors_key(key): tensor for key, tensor in own.items()}, "own": own}


def _find_prefix(wanted: Collection[str], keys: Iterable[str]) -> tuple[str, int]:
    """What stands before most of the names, and before how many of them."""
    votes: Counter[str] = Counter()
    for key in keys:
        rest = key
        for _ in range(_LONGEST_PREFIX):
            if rest in wanted:
                votes[key.removesuffix(rest)] += 1
            _, dot, rest = rest.partition(".")
            if not dot:
                break
    if not votes:
        return "", 0
    best = max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))
    rivals = [p for p in votes if votes[p] == votes[best] and not p.startswith(best)]
    if rivals and 2 * votes[best] >= len(wanted):
        names = ", ".join(repr(prefix) for prefix in (best, *rivals))
        raise ModelError(f"the checkpoint holds the network several times ({names}); save the one to use alone")
    return best, votes[best]


def match(network: Network, tensors: Tensors, *, naming: Naming | None = None) -> ImportReport:
    """Compare the tensors of a file with those of a network.

    Parameters
    ----------
    network
        The network; it is not changed.
    tensors
        By their names in the file.
    naming
        Whose names the file has; None finds out.

    Raises
    ------
    ModelError
        If the file holds the network more than once.
    """
    tables = _tables(network)
    prefixes = {kind: _find_prefix(table, tensors) for kind, table in tables.items()}

    def serves(kind: Naming) -> tuple[int, int]:
        prefix, known = prefixes[kind]
        return known, -len(prefix)

    named = max(prefixes, key=serves) if naming is None else naming
    table, prefix = tables[named], prefixes[named][0]
    misshapen: list[Misshapen] = []
    matched: list[str] = []
    unexpected: list[str] = []
    unused: list[str] = []
    unequal: list[str] = []
    present: dict[int, str] = {}  # the first name of every tensor, by the identity of the tensor
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        target = table.get(name)
        if not key.startswith(prefix):
            unused.append(key)
        elif target is None:
            (unused if re.fullmatch(network.unused_keys, name) else unexpected).append(name)
        elif target.shape != tensor.shape:
            misshapen.append(Misshapen(name, tuple(target.shape), tuple(tensor.shape)))
            present.setdefault(id(target), key)
        else:
            matched.append(name)
            first = tensors[present.setdefault(id(target), key)]
            if first is not tensor and not torch.equal(first, tensor):
                unequal.append(name)
    names = {id(target): name for name, target in reversed(table.items())}
    return ImportReport(
        naming=named,
        prefix=prefix,
        matched=tuple(matched),
        missing=tuple(name for target, name in reversed(names.items()) if target not in present),
        unexpected=tuple(unexpected),
        unused=tuple(unused),
        misshapen=tuple(misshapen),
        unequal=tuple(unequal),
    )


def load_into(network: Network, tensors: Tensors, *, naming: Naming | None = None) -> ImportReport:
    """Copy the tensors of a file into a network; all of them or none.

    Parameters
    ----------
    network
        The network to fill.
    tensors
        By their names in the file; floating-point ones are taken as float32.
    naming
        Whose names the file has; None finds out.

    Raises
    ------
    ModelError
        If a tensor is missing, unknown, of another shape or not finite, or they belong to another variant of the
        network. The message has the report's text.
    """
    report = match(network, tensors, naming=naming)
    if report.missing or report.unexpected or report.misshapen:
        raise _misfit(network, report, tensors)
    table = _tables(network)[report.naming]
    values = {name: _value(name, tensors[report.prefix + name], table[name].dtype) for name in report.matched}
    infinite = [name for name, value in values.items() if not torch.isfinite(value).all()]
    if infinite:
        raise ModelError(
            f"{len(infinite)} tensors of the checkpoint have values that are not finite in float32: "
            f"{', '.join(infinite[:SHOWN])}; its training has diverged, or the file is damaged"
        )
    if report.naming == "own":
        by_authors = {network.authors_key(name): value for name, value in values.items()}
    else:
        inside = [key for key in tensors if key.startswith(report.prefix)]
        by_authors = {key.removeprefix(report.prefix): tensors[key] for key in inside}
    network.check_checkpoint(by_authors)
    if report.unequal:  # after the network's own check, which may know what that means
        raise _misfit(network, report, tensors)
    with torch.no_grad():
        for name, value in values.items():
            table[name].copy_(value)
    return report


def _value(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.is_complex() != dtype.is_complex:
        raise ModelError(f"{name} of the checkpoint has the type {tensor.dtype}, expected {dtype}")
    return tensor.to(dtype)


def _misfit(network: Network, report: ImportReport, tensors: Tensors) -> ModelError:
    hint = _hint(network, report, tensors)
    return ModelError(f"the checkpoint does not fit {type(network).__name__}; {hint}\n{report.text()}")


def _hint(network: Network, report: ImportReport, tensors: Tensors) -> str:
    """The likely reason, for a person who does not read lists of names."""
    fields = ", ".join(field.name for field in dataclasses.fields(network.Config))
    known = len(report.matched) + len(report.misshapen)
    if known < len(report.unexpected):
        other = _resembling(type(network), tensors)
        return f"it looks like one of {other}" if other else "hardly any of its names is known"
    if report.misshapen:
        return f"its network has other sizes: give them with --config NAME=VALUE ({fields})"
    if report.unexpected:
        return f"its network has other parts, or more of them: give them with --config NAME=VALUE ({fields})"
    if report.unequal:
        return "what the network shares has several values there"
    return "it is not complete"


@functools.cache
def _usual_names(method: str) -> tuple[tuple[str, ...], ...]:
    """Names of all tensors of a method's network at its default size, by each naming."""
    kind = network_class(method)
    with torch.device("meta"):  # names need no memory
        return tuple(tuple(table) for table in _tables(kind(kind.Config())).values())


def _resembling(apart_from: type[Network], tensors: Tensors) -> str:
    """The method with the network that has most of the names, if any has half of them."""
    best, most = "", len(tensors) / 2
    for method in network_names():
        try:
            if network_class(method) is apart_from:
                continue
            known = max(_find_prefix(names, tensors)[1] for names in _usual_names(method))
        except (CinestreamError, ImportError, RuntimeError):
            continue  # a hint is not worth another error
        if known > most:
            best, most = method, known
    return best
