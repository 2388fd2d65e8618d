"""How many threads torch works with: one where there is little to do, as threads that wait for each other cost more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Samples of all coils that are worked on together, as of 14 frames of 96 x 96 and 8 coils. On two free cores a second
# thread saves a tenth of the time of a window with half as many; next to other work it can wait for a core each time.
_FEW = 1 << 20


def threads_for(samples: int, most: int) -> int:
    """How many threads so many samples are worth.

    Parameters
    ----------
    samples
        Complex numbers that are worked on together.
    most
        As many as there may be.
    """
    return 1 if samples < _FEW else most


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch work with so many threads; those that follow its number, as finufft does here, do so, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
