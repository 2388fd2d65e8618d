"""Reading of a connection to its end by a thread of its own, whatever happens to what it carries.

The sender is never held up by the reconstruction, and its CLOSE is always seen. Closing a socket with unread data would
reset the connection and lose what was sent to the peer last.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from gadgets.wire.framing import EndOfStreamError
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("cinestream")

_SILENCE_SECONDS = 10.0  # after our CLOSE: a peer that sends nothing for so long has nothing more to say
_SCRATCH_BYTES = 1 << 20
_UNREAD_RATE = 64 << 20  # bytes in a second that are taken after our CLOSE: more than a scanner sends


class _Closing(Protocol):
    """A message; `closes` tells whether it is the last."""

    @property
    def closes(self) -> bool: ...


Item = TypeVar("Item", bound=_Closing)
Item_co = TypeVar("Item_co", bound=_Closing, covariant=True)


class _Reading(Protocol[Item_co]):
    """What `gadgets.wire.reader.Reader` and `gadgets.wire.framing.Frames` have in common."""

    bytes_read: int

    def read(self) -> Item_co:
        """Read one message."""


class Drain(Generic[Item]):
    """Reads messages from a socket up to CLOSE.

    Parameters
    ----------
    connection
        The connected socket.
    reading
        Makes what reads messages of a function that fills a buffer.
    deliver
        Takes every message and its bytes; also the error that ends the stream, if one does.
    tee
        Takes every block of bytes as it came, before its messages.
    ended
        Called once nothing more will be read.
    is_busy
        Says, once the peer has been silent for as long as the time limit of the socket, whether it is to be waited for;
        without, silence ends the stream.

    Attributes
    ----------
    received : int
        Bytes so far.
    closed : bool
        CLOSE has come.
    lost : bool
        The connection broke.
    """

    def __init__(
        self,
        connection: socket.socket,
        reading: Callable[[Callable[[memoryview], int]], _Reading[Item]],
        deliver: Callable[[Item | ProtocolError, int], None],
        tee: Callable[[memoryview], None] | None = None,
        ended: Callable[[], None] | None = None,
        is_busy: Callable[[], bool] | None = None,
    ) -> None:
        self.received = 0
        self.closed = self.lost = False
        self._finishing = False
        self._reading = reading
        self._is_busy = is_busy
        self._connection = connection
        self._deliver = deliver
        self._tee = tee
        self._ended = ended
        # what it logs is of the scan of whoever makes it
        begin = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=begin, name="cinestream-drain", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def finish(self) -> None:
        """Wait until the peer has sent everything, or nothing for a while; call it when nothing more will be sent."""
        self._finishing = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)  # who waits for the end of our stream need not wait longer
        received = -1
        while self._thread.is_alive() and self.received != received:
            received = self.received
            self._thread.join(_SILENCE_SECONDS)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def _run(self) -> None:
        self._read_messages()
        if self._ended is not None:
            self._ended()

    def _read_messages(self) -> None:
        reader, before = self._reading(self._receive), 0
        try:
            while True:
                message = reader.read()
                self._deliver(message, reader.bytes_read - before)
                before = reader.bytes_read
                if message.closes:
                    self.closed = True
                    return
        except EndOfStreamError as error:
            self._deliver(error, 0)
            return
        except ProtocolError as error:
            self._deliver(error, 0)
        except Exception as error:
            logger.exception("unexpected error")
            self._deliver(ProtocolError(f"unexpected error in reading: {type(error).__name__}: {error}"), 0)
        # Out of step with the peer: nothing can be understood any more, but the peer must be able to finish.
        scratch = memoryview(bytearray(_SCRATCH_BYTES))
        with contextlib.suppress(OSError):
            while self._receive(scratch):
                pass

    def _receive(self, buffer: memoryview) -> int:
        count = None
        while count is None:
            try:
                count = self._connection.recv_into(buffer)
            except TimeoutError:
                if self._is_busy is None or not self._is_busy():
                    logger.warning(
                        "nothing came for %g s; the connection is closed", self._connection.gettimeout() or 0
                    )
                    return 0
            except OSError:
                self.lost = True
                return 0
        if self._finishing:  # a flood that nobody needs must not take a core
            time.sleep(count / _UNREAD_RATE)
        if self._tee is not None:
            self._tee(buffer[:count])
        self.received += count
        return count
