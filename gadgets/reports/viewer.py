"""Loops for the viewer of ``templates/viewer.js``, which the report and the monitor page share.

A loop is one PNG with all frames as tiles, in gray values with room above white, so that the window can be opened.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image as Picture

from gadgets.images.pictures import GAP, gray, montage, moving_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

#: Brightest value that a loop keeps over the one that is shown white at first.
HEADROOM = 1.5


@dataclass(frozen=True)
class Panel:
    """One loop of a viewer."""

    picture: bytes
    """PNG with the frames as tiles."""
    facts: dict[str, Any]
    """What the viewer must know of it."""

    @property
    def embedded(self) -> dict[str, Any]:
        """The facts with the picture in them, for a page of one file."""
        return {**self.facts, "source": f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"}


def panel(
    frames: NDArray[np.floating],
    white: float,
    caption: str,
    *,
    tall: float = 1.0,
    shown: tuple[slice, slice] | None = None,
    line: int | None = None,
    fast: bool = False,
) -> Panel:
    """Make a loop for the viewer.

    Parameters
    ----------
    frames
        ``(frame, y, x)`` magnitudes.
    white
        The value that is shown white at first.
    caption
        What is written below it.
    tall
        Height over width of a pixel in mm.
    shown
        Rows and columns that are shown at first; None is all.
    line
        Column of the temporal profile; None is that through the part that moves most.
    fast
        Do not compress: for a loop that is looked at once, while the computer has other work.
    """
    n_frames, n_rows, n_columns = frames.shape
    rows, columns = shown or (slice(0, n_rows), slice(0, n_columns))
    across = max(1, min(n_frames, math.ceil(math.sqrt(n_frames * n_rows / n_columns))))
    return Panel(
        _png(montage(list(gray(frames, white * HEADROOM)), across), fast=fast),
        {
            "frames": n_frames,
            "rows": n_rows,
            "columns": n_columns,
            "across": across,
            "gap": GAP,
            "white": round(255 / HEADROOM),
            "tall": round(tall, 5),
            "line": moving_column(frames)[0] if line is None else line,
            "shown": [columns.start, rows.start, columns.stop, rows.stop],
            "caption": caption,
        },
    )


def loop_of(panels: Sequence[Panel], seconds: float, across: int = 0) -> dict[str, Any]:
    """What a viewer shows: panels in rows of `across`, a frame for so many s, for a page of one file."""
    return {"panels": [one.embedded for one in panels], "seconds": seconds, "across": across}


def _png(pixels: Pixels, *, fast: bool) -> bytes:
    buffer, picture = io.BytesIO(), Picture.fromarray(pixels)
    if fast:  # without a palette filters are tried for every line: 13 times the time
        picture.putpalette([shade for shade in range(256) for _ in "rgb"])
    picture.save(buffer, "PNG", compress_level=0 if fast else 6)
    return buffer.getvalue()
