"""Series as they can be exported: what cannot be, or not as it should, is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gadgets.images.collection import sort_images
from gadgets.problems import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gadgets.images.collection import Loop, Series
    from gadgets.problems import Problems
    from gadgets.wire.messages import Image


def exportable_series(images: Mapping[int, Sequence[Image]], tick: float, problems: Problems) -> list[Series]:
    """Sort images into series; those that are not two-dimensional are left out.

    Parameters
    ----------
    images, tick
        As `sort_images` takes them.
    problems
        Where to report what is left out, not finite, or without its place in the patient.

    Returns
    -------
    list of Series
        By index, with finite values; those without any two-dimensional image are left out.
    """
    flat: dict[int, list[Image]] = {}
    for number, members in images.items():
        flat[number] = [image for image in members if image.is_plane]
        others = [image.data.shape for image in members if not image.is_plane]
        if others:
            text = (
                f"{len(others)} images of series {number} are not single 2-D images (channel, z, y, x: {others[0]}) "
                "and are left out; combine coils and send slices one by one"
            )
            problems.add(Kind.IMAGE_SHAPE, text, damage=True, of=str(number))
    found = sort_images({number: members for number, members in flat.items() if members}, tick)
    for series in found:
        for loop in series.loops:
            _say_repeated(series.number, loop, problems)
    return [replace(series, loops=tuple(_checked(loop, problems) for loop in series.loops)) for series in found]


def _say_repeated(number: int, loop: Loop, problems: Problems) -> None:
    """Clients that add to a file which is there leave the images of several reconstructions in one series."""
    frames = len(set(loop.frames))
    if frames < len(loop.frames):
        text = f"series {number} has {len(loop.frames)} images of the {frames} frames of slice {loop.key.slice}"
        text += ": several reconstructions in one file? All are exported, those of a frame one after the other"
        problems.add(Kind.IMAGES_AGAIN, text, damage=False, of=str(number))


def _checked(loop: Loop, problems: Problems) -> Loop:
    for plane in loop.planes:
        if plane.doubt:
            text = f"{plane.doubt}: the exported images do not lie at their place in the patient, and say so"
            problems.add(Kind.GEOMETRY, text, damage=False)
    if np.isfinite(loop.values).all():
        return loop
    problems.add(Kind.IMAGE_VALUES, "images hold values that are not finite; they are exported as 0", damage=True)
    return replace(loop, values=np.where(np.isfinite(loop.values), loop.values, 0))
