"""Single images joined to the arrays that the generic gadgets of a Gadgetron work on."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.containers import ImageArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gadgets.wire.messages import Image

_COMPLEX64 = 7


def join_series(images: Iterable[Image]) -> Iterator[ImageArray]:
    """Join the images of a slice, one array for every series of them.

    Parameters
    ----------
    images
        Of one channel ``(1, 1, y, x)``, all images of a series after one another and of one size.

    Yields
    ------
    ImageArray
        ``[X, Y, 1, 1, N, 1, 1]`` complex64 with a header and a meta text for each of the N images. The generic gadgets
        read the meta text of the first without looking whether there is one.
    """
    for _, series in itertools.groupby(images, key=lambda image: int(image.header["image_series_index"])):
        same = list(series)
        frames = np.stack([image.data[0, 0] for image in same]).astype(np.complex64)
        headers = np.stack([image.header for image in same])
        headers["data_type"] = _COMPLEX64
        yield ImageArray(
            frames.transpose(2, 1, 0)[:, :, None, None, :, None, None],
            headers[:, None, None],
            tuple(image.attributes for image in same),
        )
