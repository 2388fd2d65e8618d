"""Passing a scan on to the resident server, which has a warm engine; light to import, as it is for every scan."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from gadgets.connection.drain import Drain
from gadgets.wire.framing import U2, Frame, Frames, MessageId, error_message, text_message
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("cinestream")

_ENDED = "the resident cinestream server ended within the scan; see its log, and replay the raw data"


class Relay:
    """A scan on its way to the resident server, and its images on the way back, unread.

    Parameters
    ----------
    gadgetron
        Connection of the external node; its bytes are passed on as they come.
    server
        From `gadgets.connection.resident.resident_server`; it is closed at the end.
    configuration, header
        Texts that were read from the Gadgetron already.
    """

    def __init__(self, gadgetron: socket.socket, server: socket.socket, configuration: str, header: str) -> None:
        self._gadgetron = gadgetron
        self._server = server
        self._begun = ((MessageId.CONFIG_TEXT, configuration), (MessageId.HEADER, header))
        self._ended = _ENDED

    def run(self) -> bool:
        """Pass everything on.

        Returns
        -------
        bool
            True if the server sent no error and the Gadgetron took everything.
        """
        drain = Drain(self._gadgetron, Frames, deliver=lambda *_: None, tee=self._pass_on, ended=self._end_scan)
        with self._server:
            with contextlib.suppress(OSError):
                for number, text in self._begun:
                    self._server.sendall(text_message(number, text))
            drain.start()
            try:
                return self._pass_back()
            except OSError as error:
                logger.warning("the Gadgetron is gone (%s); nothing more can be sent to it", error)
                return False
            finally:
                drain.finish()

    def stop(self, why: str) -> None:
        """End the scan and tell the Gadgetron why; from any thread."""
        self._ended = why
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, block: memoryview) -> None:
        with contextlib.suppress(OSError):  # the answers show that the server is gone
            self._server.sendall(block)

    def _end_scan(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)  # a Gadgetron that is gone must not leave the server waiting

    def _pass_back(self) -> bool:
        """Send the server's messages to the Gadgetron, whole, and CLOSE; gives whether all was well."""
        good = True
        for answer in self._answers():
            self._gadgetron.sendall(answer.data)
            good = good and answer.number != MessageId.ERROR
        self._gadgetron.sendall(U2.pack(MessageId.CLOSE))
        return good

    def _answers(self) -> Iterator[Frame]:
        """Messages of the server up to its CLOSE; an error, if its stream ends before."""
        frames = Frames(self._server.recv_into, keep=True)
        try:
            while not (frame := frames.read()).closes:
                # a text would end the stream of a Gadgetron
                yield _error(frame.text) if frame.number == MessageId.TEXT else frame
        except (OSError, ProtocolError):
            yield _error(self._ended)


def _error(text: str) -> Frame:
    return Frame(MessageId.ERROR, error_message(text))
