"""What went wrong or was noticed during a scan, counted by kind, so that a thousand bad readouts make one sentence."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("cinestream")


@dataclass
class Problem:
    """One kind of trouble: its first case in words, and how often it came.

    Parameters
    ----------
    text
        What was expected, what came, what to do; of the first case.
    damage
        True if data were lost or an image is missing or wrong; False for what was noticed and handled.
    count
        How many cases.
    """

    text: str
    damage: bool
    count: int = 1

    def __str__(self) -> str:
        """The sentence for the log, the shell and the client."""
        return self.text if self.count == 1 else f"{self.text} (the first of {self.count} such cases)"


@dataclass
class Problems:
    """All problems of one scan, by kind in the order they first came.

    Parameters
    ----------
    listener
        Told of the first case of every kind, at once.
    """

    listener: Callable[[Problem], None] | None = None
    kinds: dict[str, Problem] = field(default_factory=dict)

    def add(self, kind: str, text: str, *, damage: bool, count: int = 1) -> None:
        """Note `count` cases of a kind; the first is logged at once."""
        known = self.kinds.get(kind)
        if known is not None:
            known.count += count
            return
        self.kinds[kind] = problem = Problem(text, damage, count)
        logger.log(logging.ERROR if damage else logging.WARNING, "%s", str(problem))
        if self.listener is not None:
            self.listener(problem)

    def __iter__(self) -> Iterator[Problem]:
        """All kinds in the order they came."""
        return iter(self.kinds.values())

    @property
    def damage(self) -> list[Problem]:
        """Those that lost data or images."""
        return [problem for problem in self if problem.damage]
