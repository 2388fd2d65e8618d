"""Messages of other programs that nothing here uses, but of which the length is known: they are passed over.

Any other unknown id makes the rest of a stream unreadable, because only a body says how long it is.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from gadgets.wire.messages import IMAGE_DTYPES, IMAGE_HEADER
from gadgets.wire.source import U2, U8
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.wire.source import Source

logger = logging.getLogger("cinestream")

_MOST_DIMENSIONS = 7  # ISMRMRD_NDARRAY_MAXDIM


def pass_over(source: Source, number: int) -> bool:
    """Take the body of a message that is not used from the stream, without keeping it.

    Parameters
    ----------
    source
        The stream, behind the id.
    number
        The id.

    Returns
    -------
    bool
        False, and nothing is taken, if it is not known how long such a message is.

    Raises
    ------
    ProtocolError
        If a claimed length is beyond the limits, or the stream ends within.
    """
    known = _UNUSED.get(number)
    if known is None:
        return False
    what, body = known
    source.within = f"within a message of id {number} ({what})"
    count = body(source)
    source.check(count, source.limits.message_bytes, "bytes")
    source.skip(count)
    logger.info("a message of id %d (%s, %d bytes) is not used here and was passed over", number, what, count)
    return True


def _array(source: Source) -> int:
    """Bytes of an array of ISMRMRD 1.14: type, version and number of dimensions, then the extents."""
    kind, _, dimensions = (U2.unpack(source.take(2).data)[0] for _ in range(3))
    source.check(dimensions, _MOST_DIMENSIONS, "array dimensions")
    extents = [source.u8() for _ in range(dimensions)]
    dtype = IMAGE_DTYPES.get(kind)
    if dtype is None:
        raise ProtocolError(f"an array has data type {kind}, expected 1 to 8")
    return math.prod(extents) * dtype.itemsize


def _text(source: Source) -> int:
    return source.u8()


def _image(pixel_bytes: int, *, attributes: bool) -> Callable[[Source], int]:
    """Bytes of an image of a Gadgetron before version 3.9: the id says the type of its pixels."""

    def body(source: Source) -> int:
        header = source.take(IMAGE_HEADER.itemsize).view(IMAGE_HEADER)[0].copy()
        if attributes:
            source.text(U8)
        return math.prod(map(int, header["matrix_size"])) * int(header["channels"]) * pixel_bytes

    return body


_UNUSED: dict[int, tuple[str, Callable[[Source], int]]] = {
    1009: ("complex image of old", _image(8, attributes=False)),
    1010: ("float image of old", _image(4, attributes=False)),
    1011: ("ushort image of old", _image(2, attributes=False)),
    1015: ("complex image of old, with attributes", _image(8, attributes=True)),
    1016: ("float image of old, with attributes", _image(4, attributes=True)),
    1017: ("ushort image of old, with attributes", _image(2, attributes=True)),
    1019: ("measurement dependency", _text),
    1020: ("short image of old", _image(2, attributes=False)),
    1021: ("short image of old, with attributes", _image(2, attributes=True)),
    1030: ("array", _array),
}
#: Ids of the messages that are passed over.
UNUSED_IDS = tuple(_UNUSED)
