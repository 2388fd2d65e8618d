"""HTML pages from the templates of this folder, and the pictures that they show.

A page needs no network and no other file: images and the viewer of loops are embedded, plots are SVG.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as Picture

from gadgets import __version__
from gadgets.images.pictures import (
    ERROR_GAIN,
    MOST_LOOP_FRAMES,
    encoded,
    gray,
    montage,
    moving_column,
    moving_part,
    profile,
)
from gadgets.reports.viewer import loop_of, panel
from recon_core.metrics.measures import dynamic_region
from recon_core.metrics.scores import SCORES, score_text
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Named = tuple[str, NDArray[np.floating]]  # a series and its name


_MOST_ACROSS = 4  # outputs at most next to the truth in one picture
_PROFILE_ASPECT = 1.8  # width over height


# --- templates --------------------------------------------------------------------------------------------------------


def render(template: str, **view: object) -> bytes:
    """Fill in a template; every text of the view is escaped, so that it is shown as it is."""
    now = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    return _environment().get_template(template).render(now=now, **view).encode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gadgets.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(many=many, score_columns=score_columns, span=span, upper_first=_upper_first)
    environment.globals.update(
        ERROR_GAIN=ERROR_GAIN,
        MOST_LOOP_FRAMES=MOST_LOOP_FRAMES,
        as_it_is=_as_it_is,
        score_text=score_text,
        version=__version__,
    )
    return environment


def _as_it_is(name: str) -> Markup:
    """A style or script of our own, which is no template."""
    return Markup(files("gadgets.reports").joinpath("templates", name).read_text(encoding="utf-8"))  # noqa: S704


def span(values: Iterable[float], digits: int = 0) -> str:
    """The one value, or the smallest and the largest."""
    found = sorted({f"{value:.{digits}f}": value for value in values}.items(), key=lambda item: item[1])
    return found[0][0] if len(found) == 1 else f"{found[0][0]} to {found[-1][0]}"


class Column(NamedTuple):
    """Of a table of scores: which one, its heading, and the best value."""

    key: str
    title: str
    best: float


def score_columns(rows: Sequence[tuple[str, Mapping[str, float]]]) -> list[Column]:
    """Columns of a table with a name and scores in every row: those that a row has, in the order of `SCORES`."""
    found = {key: [values[key] for _, values in rows if key in values] for key in SCORES}
    return [Column(key, SCORES[key].title, SCORES[key].best(values)) for key, values in found.items() if values]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A picture to show."""

    uri: str  # with the image in it
    aspect: float  # width over height
    captions: tuple[str, ...]  # side by side below it
    line: float | None = None  # where a dashed line from top to bottom stands, in percent of the width


def embedded(pixels: Pixels) -> str:
    """Embed a gray picture as PNG."""
    content = encoded([Picture.fromarray(pixels)], "PNG")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


class Comparison(NamedTuple):
    """Series next to their truth, in groups of not more columns than fit on a page."""

    groups: list[tuple[dict[str, Any], Figure]]  # loops over errors for the viewer, profiles over theirs
    most: int  # columns of a group
    aspect: float  # width over height of an image
    column: int  # where the profiles were taken
    side: int  # pixels of the part that moves most
    n_frames: int  # of the series; loops may have fewer


def comparison(
    images: Sequence[Named], truth: NDArray[np.floating], window: float, aspect: float, seconds: float
) -> Comparison:
    """Compare series with their truth where it moves: cine loops, errors, profiles through the part that moves most.

    Parameters
    ----------
    images
        Name and ``(frame, y, x)`` magnitudes of every series, in the unit of the truth.
    truth
        ``(frame, y, x)`` magnitudes.
    window
        The brightest value to show.
    aspect
        Width over height of an image in mm.
    seconds
        Time from frame to frame for the loops.
    """
    column, side = moving_column(truth)
    rows, columns = moving_part(truth)
    region = np.where(dynamic_region(truth), truth, truth / 4)[:, rows, columns]
    tall = truth.shape[2] / (truth.shape[1] * aspect)
    truth, place = truth[:, rows, columns], column - columns.start
    n_frames, n_rows, _ = truth.shape
    most = math.ceil(len(images) / math.ceil(len(images) / _MOST_ACROSS))
    groups = []
    for begin in range(0, len(images), most):
        names, series = zip(("Truth", truth), *images[begin : begin + most], strict=True)
        series = (truth, *(frames[:, rows, columns] for frames in series[1:]))
        errors = [np.abs(frames - truth) for frames in series[1:]]
        pictures = [(frames, window, name) for frames, name in zip(series, names, strict=True)]
        pictures.append((region, window, "what moves"))
        pictures += [
            (frames, window / ERROR_GAIN, f"error of {name} × {ERROR_GAIN}")
            for frames, name in zip(errors, names[1:], strict=True)
        ]
        panels = [
            panel(frames[:MOST_LOOP_FRAMES], white, caption, tall=tall, line=place)
            for frames, white, caption in pictures
        ]
        lines = [profile(gray(frames, white), place) for frames, white, _ in pictures]
        lines[len(names)][:] = 0  # of the region
        lines = [line.repeat(math.ceil(n_rows / n_frames), axis=1) for line in lines]
        profiles = Figure(embedded(montage(lines, len(names))), len(names) * _PROFILE_ASPECT / 2, names)
        groups.append((loop_of(panels, seconds, len(names)), profiles))
    return Comparison(groups, most + 1, aspect, column, side, n_frames)
