"""Cine loops as MP4; needs the package av."""

from __future__ import annotations

import io
import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.images.pictures import gray, loop_pages, white_level
from recon_core.errors import ResourceError
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.images.collection import Series

    Pixels = NDArray[np.uint8]

_LEAST_SECONDS = 5.0  # of a film; one heartbeat would be too short to see
_USUAL_STEP = 40.0  # ms from frame to frame where the images do not have it
_SHORTEST_STEP, _LONGEST_STEP = 5.0, 1000.0  # ms that a film is shown at
# The first that the package was built with; H.264 plays everywhere.
_CODECS = {"libx264": {"crf": "16"}, "libopenh264": {}, "mpeg4": {"qscale": "2"}}


def check_movies() -> None:
    """Refuse where no MP4 can be made.

    Raises
    ------
    ResourceError
        If the package av is not installed.
    """
    try:
        import av  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ResourceError("MP4 needs the package av; install it with: pip install av") from error


def write_mp4(path: Path, series: Series) -> None:
    """Write the slices of a series side by side as one film, in real time, repeated for at least 5 s.

    Parameters
    ----------
    path
        Where to write.
    series
        Slices with fewer frames run slower, so that all stay in step.

    Raises
    ------
    ResourceError
        If the package av is missing or the file cannot be written.
    """
    check_movies()
    step = min(max(series.frame_time or _USUAL_STEP, _SHORTEST_STEP), _LONGEST_STEP)
    frames = [np.abs(loop.values) for loop in series.loops]
    window = white_level(frames)
    width, height = series.loops[0].planes[0].pixel
    tiles = [gray(values, window) for values in frames]
    pages = [_even(page) for page in loop_pages(tiles, math.ceil(math.sqrt(len(tiles))), tall=height / width)]
    repeats = math.ceil(_LEAST_SECONDS * 1000 / (step * len(pages)))
    write_file(path, _film(pages, repeats, step))


def _even(page: Pixels) -> Pixels:
    """Pad to even sizes, which the colour format of films requires."""
    return np.pad(page, [(0, size % 2) for size in page.shape])


def _film(pages: Sequence[Pixels], repeats: int, step: float) -> bytes:
    import av

    codec = next(name for name in _CODECS if name in av.codecs_available)
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(1000 / step).limit_denominator(1000))
            stream.height, stream.width = pages[0].shape
            stream.pix_fmt = "yuv420p"
            stream.options = dict(_CODECS[codec])
            for page in itertools.chain.from_iterable(itertools.repeat(pages, repeats)):
                frame = av.VideoFrame.from_ndarray(page, format="gray")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ResourceError(f"the MP4 cannot be encoded ({error}); try another version of the package av") from error
    return buffer.getvalue()
