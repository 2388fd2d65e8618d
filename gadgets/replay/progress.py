"""A progress bar of readouts that became images; it says what is running, so that it moves while a slice takes long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from gadgets.chain import ScanSummary
    from gadgets.wire.messages import Message

_REFRESH_SECONDS = 0.1


class Progress:
    """Shown when a person is watching; a slice that takes long is logged too.

    Parameters
    ----------
    readouts
        How many the scan has; None where that is not known.
    summary
        What the chain did so far.
    shown
        Show the bar to a person who is watching.
    """

    def __init__(self, readouts: int | None, summary: ScanSummary, *, shown: bool = True) -> None:
        self._summary = summary
        self._next = 0.0
        self._bar = tqdm(
            total=readouts, unit=" readouts", desc="reconstructing", disable=None if shown else True, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def watching(self, items: Iterable[Message]) -> Iterator[Message]:
        """Hand items through while they are read."""
        for item in items:
            self.tick()
            yield item

    def tick(self) -> str:
        """Bring the bar up to date; for `recon_core.stopping.stoppable`, which never stops for it."""
        summary, bar = self._summary, self._bar
        summary.log_long()
        if bar.disable or time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + _REFRESH_SECONDS
        bar.n = min(summary.reconstructed, bar.total or summary.reconstructed)
        bar.set_postfix_str(f"{summary.running}, {summary.seconds_running:.0f} s" if summary.running else "reading")
        return ""
