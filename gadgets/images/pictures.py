"""Images as pixels of a screen: gray values, montages, stills and GIF loops."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from recon_core.metrics.measures import dynamic_region

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


ERROR_GAIN = 5
# s that a frame of a loop is shown: where the time from frame to frame is not known, and bounds that eyes can follow
_USUAL_STEP, _SHORTEST_STEP, _LONGEST_STEP = 0.04, 0.02, 0.2
MOST_LOOP_FRAMES = 240  # a loop of thousands of frames would make a file no browser opens
GAP = 2  # pixels between the panels of one picture
_GAP_GRAY = 30
_STILL = 240  # pixels, height of an image in a still
_SHOWN = 0.62  # part of the field of view around what moves, along each axis
_HEAD = 28  # pixels for a line of text in a still
_GIF_TILE = 256  # pixels along the shorter side of a tile at least
_GIF_HEAD = 26  # pixels for the titles
_GIF_LEVELS = np.uint8(0xFE)  # 7 bits of gray, which no eye misses and saves a third of the file


def white_level(series: Iterable[NDArray[np.number]]) -> float:
    """The brightest value to show: the 99.7th percentile of the magnitudes where each of the series moves.

    Fat near the coils may be several times as bright as the heart, which would be left in the dark. Where nothing moves
    all pixels count; 1 where the percentile is zero.
    """
    shown = [np.abs(frames) for frames in series]
    moving = [frames[:, dynamic_region(frames)].ravel() for frames in shown]
    values = np.concatenate(moving if any(map(np.any, moving)) else [frames.ravel() for frames in shown])
    return float(np.percentile(values, 99.7)) or 1.0


def gray(values: NDArray[np.floating], window: float) -> Pixels:
    """Gray values from black at zero to white at `window`."""
    return np.asarray(np.clip(values * (255 / window) + 0.5, 0, 255), np.uint8)


def moving_column(frames: NDArray[np.floating]) -> tuple[int, int]:
    """Column ``x`` through the part of the image that changes most in time, and the side of that part in pixels.

    Parts are as large as a heart is, about: an edge of the chest wall or noise changes single pixels as much.
    """
    deviation = frames.std(axis=0)
    reach = max(2, min(deviation.shape) // 16)
    side = 2 * reach + 1
    for axis in (0, 1):
        padded = np.pad(deviation, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        deviation = np.lib.stride_tricks.sliding_window_view(padded, side, axis=axis).mean(axis=-1)
    return int(np.argmax(deviation.max(axis=0))), side


def moving_part(frames: NDArray[np.floating]) -> tuple[slice, slice]:
    """Rows and columns around what moves in ``(frame, y, x)``, the `moving_column` among them; all if nothing does."""
    if not dynamic_region(frames).any():
        return slice(0, frames.shape[1]), slice(0, frames.shape[2])
    weight = _motion(frames)
    rows, columns = (weight.sum(axis=1 - axis) for axis in (0, 1))
    return _around(rows, None), _around(columns, moving_column(frames)[0])


def _motion(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Weight ``(y, x)`` of the pixels by how much they move."""
    region = dynamic_region(frames)
    return np.where(region, frames.std(axis=0), 0) if region.any() else np.ones(region.shape)


def _around(weight: NDArray[np.floating], included: int | None) -> slice:
    """The part of an axis that is shown: around the centre of the weight, and with one place that must be in."""
    shown = round(_SHOWN * len(weight))
    first = int(np.average(np.arange(len(weight)), weights=weight)) - shown // 2
    if included is not None:
        first = min(max(first, included - shown + 1), included)
    first = min(max(first, 0), len(weight) - shown)
    return slice(first, first + shown)


def loop_seconds(frame_time: float | None) -> float:
    """Time in s that a loop shows each frame for, of the time from frame to frame in ms; 0 or None if not known."""
    return min(max(frame_time / 1000, _SHORTEST_STEP), _LONGEST_STEP) if frame_time else _USUAL_STEP


def montage(tiles: Sequence[Pixels], across: int) -> Pixels:
    """Lay equally large ``(y, x)`` tiles in rows of `across`."""
    height, width = tiles[0].shape
    down = math.ceil(len(tiles) / across)
    page = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP), _GAP_GRAY, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // across) * (height + GAP), (i % across) * (width + GAP)
        page[y : y + height, x : x + width] = tile
    return page


def columns_of(tiles: int) -> int:
    """Columns of a montage about twice as wide as high that leaves few tiles empty."""
    candidates = range(math.ceil(math.sqrt(tiles)), math.ceil(2 * math.sqrt(tiles)) + 1)
    rows = {columns: math.ceil(tiles / columns) for columns in candidates}
    return min(candidates, key=lambda columns: rows[columns] * columns - tiles + abs(columns / rows[columns] - 2))


def encoded(pictures: Sequence[Picture.Image], kind: str, duration: int = 0) -> bytes:
    """Make an image file; several pictures become a loop with `duration` in ms for each."""
    buffer = io.BytesIO()
    if len(pictures) > 1:
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    else:
        pictures[0].save(buffer, kind)
    return buffer.getvalue()


def loop(tiles: Sequence[Pixels], across: int, frame_seconds: float, titles: Sequence[str] = ()) -> bytes:
    """Make a looped GIF.

    Parameters
    ----------
    tiles, across, titles
        As in `loop_pages`.
    frame_seconds
        Time from frame to frame of the longest.
    """
    pictures = [Picture.fromarray(page & _GIF_LEVELS) for page in loop_pages(tiles, across, titles)]
    return encoded(pictures, "GIF", 10 * round(frame_seconds * 100))  # GIF knows no finer steps


def loop_pages(tiles: Sequence[Pixels], across: int, titles: Sequence[str] = (), tall: float = 1.0) -> Iterator[Pixels]:
    """Lay loops side by side, large enough to be seen.

    Parameters
    ----------
    tiles
        ``(frame, y, x)`` each; sizes and frame counts may differ.
    across
        Tiles of a row.
    titles
        Written above the columns, if there are any.
    tall
        Height over width of a pixel in mm.

    Yields
    ------
    ndarray
        ``(y, x)``, one page for every frame of the longest.
    """
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    factor = max(1.0, _GIF_TILE / min(height, width))
    size = (round(width * factor), round(height * factor * tall))
    n_frames = max(map(len, tiles))
    head = _titles(titles, size[0] + GAP)
    for i in range(n_frames):
        # Those with fewer frames run slower, so that all loops stay in step.
        frames = [
            Picture.fromarray(_padded(tile[i * len(tile) // n_frames], (height, width))).resize(
                size, Picture.Resampling.LANCZOS
            )
            for tile in tiles
        ]
        page = montage([np.asarray(frame) for frame in frames], across)
        if titles:
            page = np.concatenate((head[:, : page.shape[1]], page))
        yield page


def _titles(titles: Sequence[str], width: int) -> Pixels:
    """Write titles in the middle of columns of that width."""
    head = Picture.new("L", (max(1, width * len(titles)), _GIF_HEAD))
    draw, font = ImageDraw.Draw(head), ImageFont.load_default(16)
    for i, title in enumerate(titles):
        draw.text(((i + 0.5) * width - GAP / 2, _GIF_HEAD / 2), title, 220, font, anchor="mm")
    return np.asarray(head)


def _padded(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    before = [(wanted - size) // 2 for wanted, size in zip(shape, pixels.shape, strict=True)]
    after = [wanted - size - b for wanted, size, b in zip(shape, pixels.shape, before, strict=True)]
    return np.pad(pixels, tuple(zip(before, after, strict=True)))


def still(
    truth: NDArray[np.floating], columns: Sequence[tuple[str, NDArray[np.floating], str]], caption: str, aspect: float
) -> Picture.Image:
    """Draw series next to their truth as one picture: the part that moves, at the moment when it is furthest from rest.

    From top to bottom: images, their errors, temporal profiles along the dashed line, their errors.

    Parameters
    ----------
    truth
        ``(frame, y, x)`` magnitudes.
    columns
        For every series its name, ``(frame, y, x)`` magnitudes in the unit of the truth, and what to write below.
    caption
        What to write below the truth.
    aspect
        Width over height of an image in mm.
    """
    window = white_level([truth])
    moment = int((np.abs(truth - truth.mean(axis=0)) * _motion(truth)).sum(axis=(1, 2)).argmax())
    rows, across = moving_part(truth)
    column = moving_column(truth)[0] - across.start
    shown = [(name, frames[:, rows, across], below) for name, frames, below in [("truth", truth, caption), *columns]]

    width = round(_STILL * aspect)
    tops = np.cumsum([_HEAD, *(height + GAP for height in (_STILL, _STILL, _STILL // 2, _STILL // 2))]).tolist()
    size = (len(shown) * (width + GAP) - GAP, tops[-1] + _HEAD - GAP)
    page = Picture.new("L", size, _GAP_GRAY)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for place, (name, frames, below) in enumerate(shown):
        left = place * (width + GAP)
        shades = gray(frames, window)
        errors = gray(np.abs(frames - shown[0][1]), window / ERROR_GAIN)
        panels = (shades[moment], errors[moment], profile(shades, column), profile(errors, column))
        for i, (panel, top, bottom) in enumerate(zip(panels, tops, tops[1:], strict=False)):
            if place or i % 2 == 0:
                tile = Picture.fromarray(panel).resize((width, bottom - GAP - top), Picture.Resampling.BICUBIC)
                page.paste(tile, (left, top))
            else:
                draw.text((left + width / 2, (top + bottom) / 2), f"{ERROR_GAIN} x error", 150, font, anchor="mm")
        draw.text((left + width / 2, _HEAD / 2), name, 220, font, anchor="mm")
        draw.text((left + width / 2, size[1] - _HEAD / 2), below, 220 if place else 150, font, anchor="mm")
    at = round((column + 0.5) / (across.stop - across.start) * width)
    for top in range(tops[0], tops[1] - GAP, 10):
        draw.line((at, top, at, top + 4), 255)
    return page


def profile(frames: Pixels, column: int) -> Pixels:
    """One column ``(y,)`` of gray frames ``(frame, y, x)`` over time, which runs to the right."""
    return frames[:, :, column].T
