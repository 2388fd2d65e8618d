"""A progress bar for reading and sending many readouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from gadgets.wire.messages import Readouts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gadgets.wire.messages import Message


def with_progress(items: Iterable[Message], readouts: int | None, what: str) -> Iterator[Message]:
    """Hand items through under a progress bar of readouts, when a person is watching."""
    with tqdm(total=readouts, unit=" readouts", desc=what, disable=None, leave=False) as bar:
        for item in items:
            yield item
            if isinstance(item, Readouts):
                bar.update(len(item))
