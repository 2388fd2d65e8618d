"""What values a field may have, and how texts become such values: one place for settings, plans and manifests."""

from __future__ import annotations

import math
import numbers
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recon_core.errors import SettingsError
from recon_core.words import meant

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_MOST_ALIASES = 20
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Allowed:
    """The values that a field may have."""

    kind: Any
    """Annotation of the field: ``bool``, ``int``, ``float``, ``str``, a ``Literal`` of texts, ``X | None``, or a tuple
    of these."""
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    """Texts to choose from, or what gives them where they are not known beforehand; those of a ``Literal`` need not be
    repeated."""
    several: bool = False
    """The value is one of the choices, or some of them with commas in between."""
    or_line: bool = False
    """A whole number from zero is allowed as well as one of the choices; it stays a text."""
    minimum: float | None = None
    maximum: float | None = None
    """`minimum`, `maximum`: Limits of a number, or of each number of a tuple; None where there is none."""
    finite: bool = True
    """Whether an infinite number is refused."""

    @property
    def names(self) -> tuple[str, ...]:
        """The texts to choose from; empty for anything else."""
        if typing.get_origin(self.kind) is Literal:
            return tuple(map(str, typing.get_args(self.kind)))
        return self.choices() if callable(self.choices) else self.choices

    def describe(self) -> str:
        """What is wanted, to follow "must be"."""
        if self.names:
            some = "one of, or with commas some of," if self.several else "one of"
            return f"{some} {', '.join(self.names)}" + (" or the number of a line" if self.or_line else "")
        return _described(self.kind) + _limits(self.minimum, self.maximum)

    def read(self, what: str, value: object) -> Any:  # noqa: ANN401 - of the kind that the annotation says
        """Turn a value as it comes from XML, JSON, YAML or the command line into the kind that is wanted.

        Parameters
        ----------
        what
            Name of the field in messages, such as ``setting 'iterations'``.
        value
            A text, or a value that has the kind already.

        Raises
        ------
        SettingsError
            If it has another kind, is none of the choices or lies outside of the limits.
        """
        return self._accept(what, value, from_text=True)

    def check(self, what: str, value: object) -> None:
        """Refuse a value that does not have the kind that is wanted already; texts are no numbers here.

        Raises
        ------
        SettingsError
            As `read`.
        """
        self._accept(what, value, from_text=False)

    def _accept(self, what: str, value: object, *, from_text: bool) -> Any:  # noqa: ANN401 - as `read`
        try:
            converted = _convert(self.kind, value, from_text=from_text)
            within = self._within(converted)
        except (ValueError, OverflowError) as error:
            got = self._got(value) + _hint(value, from_text)
            raise SettingsError(f"{what} must be {self.describe()}{got}") from error
        if not within:
            raise SettingsError(f"{what} must be {self.describe()}{self._got(value)}")
        if self.several:
            return self._chosen(what, str(converted))
        return converted

    def _got(self, value: object) -> str:
        """What came instead, and which choice it may have been meant for."""
        if not self.names:
            return f", got {value!r}"
        given = [part.strip() for part in str(value).split(",")] if self.several else [str(value).strip()]
        asked = [question for one in given if one not in self.names and (question := meant(one, self.names))]
        return f"; got {value!r}" + "".join(f", {question}" for question in asked[:1])

    def _within(self, value: object) -> bool:
        """Whether a value of the right kind is one of the choices, or within the limits."""
        if self.choices:
            text = str(value)
            wanted = {part.strip() for part in text.split(",")} if self.several else {text}
            return wanted <= set(self.names) or (self.or_line and text.isdecimal())
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        found = value if isinstance(value, tuple) else (value,)
        return all(
            low <= one <= high and (isinstance(one, int) or math.isfinite(one) or not self.finite)
            for one in found
            if isinstance(one, int | float) and not isinstance(one, bool)
        )

    def _chosen(self, what: str, text: str) -> str:
        """Some of the choices in their order and without repetition."""
        wanted = {part.strip() for part in text.split(",")}
        if "none" in wanted and len(wanted) > 1:
            raise SettingsError(f"{what} is none or something, not both; got {text!r}")
        return ",".join(choice for choice in self.names if choice in wanted)


def read_yaml(text: str) -> Any:  # noqa: ANN401 - whatever a document holds
    """Read a YAML document of plain values.

    Raises
    ------
    yaml.YAMLError
        If it is none; or if it refers to parts of itself so often that a few lines could become gigabytes.
    """
    import yaml

    # of libyaml where PyYAML has it: a tenth of the time, which for the manifest of all weights was half a second
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader))
    if aliases > _MOST_ALIASES:
        raise yaml.YAMLError(f"{aliases} aliases; at most {_MOST_ALIASES} are read, so write the values out")
    return yaml.load(text, loader)  # noqa: S506 - either one is safe


def _limits(minimum: float | None, maximum: float | None) -> str:
    low = "" if minimum is None else f" from {minimum:g}"
    return low + ("" if maximum is None else f" to {maximum:g}")


def _hint(value: object, from_text: bool) -> str:
    """YAML's trap, for values that must not be texts."""
    return "; YAML takes 1e-3 for a text, and 1.0e-3 for a number" if not from_text and isinstance(value, str) else ""


def _described(kind: Any) -> str:  # noqa: ANN401 - whatever annotates a field
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"numbers with commas between them ({kind})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if each is type(None) else _described(each) for each in inner)
    return _PLAIN.get(kind, str(kind))


def _convert(kind: Any, value: object, *, from_text: bool) -> Any:  # noqa: ANN401 - whatever annotates a field
    """Turn a value into the kind of its field; ValueError where it is none."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple(inner, value, from_text=from_text)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and (value is None or (from_text and str(value).strip().lower() == "none")):
            return None
        return _convert(next(each for each in inner if each is not type(None)), value, from_text=from_text)
    if origin is Literal:
        choices = {str(choice): choice for choice in inner}
        text = str(value).strip() if from_text else value
        if text not in choices:
            raise ValueError("no such choice")
        return choices[str(text)]
    if kind not in _PLAIN:
        return value
    return _scalar(kind, value) if from_text else _as_it_is(kind, value)


def _tuple(kinds: tuple[Any, ...], value: object, *, from_text: bool) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        parts = list(value)
    elif from_text:
        parts = str(value).strip("()[] ,").split(",")
    else:
        raise ValueError("no list")
    each = kinds[:1] * len(parts) if kinds[-1:] == (...,) else kinds
    return tuple(_convert(kind, part, from_text=from_text) for kind, part in zip(each, parts, strict=True))


def _scalar(kind: Any, value: object) -> bool | int | float | str:  # noqa: ANN401 - one of _PLAIN
    if not isinstance(value, bool | int | float | str):
        raise ValueError("no text and no number")  # JSON's null, lists and objects
    text = str(value).strip()
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("no truth value")
        return _BOOLEANS[text.lower()]
    return text if kind is str else _number(kind, text)


def _as_it_is(kind: Any, value: object) -> Any:  # noqa: ANN401 - one of _PLAIN
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise ValueError("another kind")
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise ValueError("no number")
    return _number(kind, value)


def _number(kind: Any, value: Any) -> int | float:  # noqa: ANN401 - int or float, of a text or a number
    if kind is float:
        return float(value)
    if isinstance(value, str):
        try:
            return int(value)  # beyond 2**53 a float would not hold it
        except ValueError:
            value = float(value)  # such as 2e3
    whole = int(value)
    if whole != value:
        raise ValueError("no whole number")
    return whole
