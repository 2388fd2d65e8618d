"""Sends a raw file to a server, ours or a Gadgetron, and keeps the images that come back."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gadgets.files.images import ImageFile
from gadgets.files.progress import with_progress
from gadgets.files.raw import open_scan
from gadgets.wire.header import without_version
from gadgets.wire.messages import AcquisitionFlag, Close, Header, Image, Readouts, Text, Waveform
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, DataError, ProtocolError, ResourceError
from recon_core.storage import refuse_same_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from gadgets.wire.messages import ConfigFile, ConfigText, Message

logger = logging.getLogger("cinestream")

_CONNECT_SECONDS = 10.0
_REFUSAL_SECONDS = 0.1  # within which a server on a near network refuses a pipeline that it does not know


@dataclass
class SendResult:
    """What came back: how many images, the server's lines of text, and whether it said CLOSE.

    When noise readouts were all that was sent (`noise_only`), no image is to come back.
    """

    images: int = 0
    texts: list[str] = field(default_factory=list)
    closed: bool = False
    problem: str = ""
    noise_only: bool = False
    kept: bool = True
    """There is a file of images; not so where none came although some were to come."""

    @property
    def good(self) -> bool:
        """Images came where there were to be some, the server closed properly and reported no error."""
        errors = any(text.lstrip().startswith("ERROR") or "] ERROR:" in text for text in self.texts)
        answered = self.images > 0 or self.noise_only
        return answered and self.closed and not errors and not self.problem

    def fail(self, problem: str) -> None:
        """Note what broke; the first breakage counts, what follows from it does not."""
        if not self.problem:
            logger.error("%s", problem)
            self.problem = problem


def send(
    source: Path,
    output: Path,
    config: ConfigFile | ConfigText,
    address: tuple[str, int],
    *,
    group: str = "dataset",
    overwrite: bool = False,
    parameters: str = "",
) -> SendResult:
    """Send a raw file and store the images.

    Parameters
    ----------
    source
        ISMRMRD HDF5 file or stream file.
    output
        HDF5 file for the images.
    config
        Name of a pipeline the server knows, or a whole one.
    address
        Host and port; connecting is tried again for a while, for a server that is just starting.
    group
        HDF5 group of the raw data and of the images.
    overwrite
        Replace an existing output.
    parameters
        Text sent after the header, for instance FIRE's JSON parameters.

    Returns
    -------
    SendResult
        What came back.

    Raises
    ------
    CinestreamError
        If the file cannot be read, the server cannot be reached, or the output cannot be written.
    """
    refuse_same_file(source, output)
    with open_scan(source, group) as scan, _connect(address) as connection:
        # Gadgetron's external nodes hang on a header of another schema version
        opening: list[Message] = [config, Header(without_version(scan.header))]
        if parameters:
            opening.append(Text(parameters))
        result = SendResult()
        answered, ended = threading.Event(), threading.Event()
        items = with_progress(_while_wanted(scan.items, answered, ended), scan.readouts, "sending")
        sender = threading.Thread(
            target=_send_all,
            args=(connection, opening, items, result),
            name="cinestream-send",
            daemon=True,
        )
        with ImageFile(output, group, header=scan.header, overwrite=overwrite) as images:
            sender.start()
            try:
                for message in Reader.of_socket(connection):
                    answered.set()
                    if isinstance(message, Image):
                        _keep(message, images, result)
                    elif isinstance(message, Text):
                        _log(message.text)
                        result.texts.append(message.text)
                result.closed = True
                ended.set()
            except (OSError, ProtocolError) as error:
                result.fail(f"the server's stream broke: {error}")
            except KeyboardInterrupt:
                result.problem = "stopped"
                raise
            finally:
                if not result.closed:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)  # wakes a sender that nobody listens to
                sender.join()
            if result.problem:
                images.mark_incomplete(result.problem)
            if not (result.images or result.noise_only):
                images.discard()
                result.kept = False
    return result


def _keep(image: Image, images: ImageFile, result: SendResult) -> None:
    """Add an image to the file; one that it cannot hold costs none of the others."""
    try:
        images.append(image)
    except DataError as error:
        result.fail(f"an image could not be kept: {error}")
    else:
        result.images += 1


def _while_wanted(items: Iterable[Message], answered: threading.Event, ended: threading.Event) -> Iterator[Message]:
    """The items until the server says CLOSE: it refuses a wrong pipeline before it has seen any data."""
    answered.wait(_REFUSAL_SECONDS)
    for item in items:
        if ended.is_set():
            raise ConnectionAbortedError("it ended the scan before")
        yield item


def _log(text: str) -> None:
    """Log what the server says at the level that its first word gives, as FIRE's lines have it."""
    word, _, rest = text.strip().partition(" ")
    known = {"ERROR": logging.ERROR, "CRITICAL": logging.ERROR, "INFO": logging.INFO, "DEBUG": logging.DEBUG}
    level = known.get(word, logging.WARNING)
    logger.log(level, "server: %s", rest.strip() if word in (*known, "WARNING") else text)


def _send_all(
    connection: socket.socket, opening: Iterable[Message], items: Iterable[Message], result: SendResult
) -> None:
    writer = Writer.of_socket(connection)
    kinds: set[bool] = set()  # of readouts: noise or not
    try:
        for message in opening:
            writer.send(message)
        for message in items:
            if isinstance(message, Readouts):
                kinds.update(message.flagged(AcquisitionFlag.NOISE).tolist())
            if isinstance(message, Readouts | Waveform):
                writer.send(message)
    except CinestreamError as error:
        result.fail(f"the file broke: {error}")
    except OSError as error:
        result.fail(f"the server took no more data: {error}")
        return
    result.noise_only = kinds == {True}
    try:
        writer.send(Close())
    except OSError as error:
        result.fail(f"the server took no more data: {error}")


def _connect(address: tuple[str, int]) -> socket.socket:
    begin = time.monotonic()
    while True:
        try:
            connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
            if time.monotonic() - begin > _CONNECT_SECONDS or isinstance(error, socket.gaierror | UnicodeError):
                text = f"no server answers at {address[0]} port {address[1]} ({error})"
                raise ResourceError(f"{text}; start one with: cinestream serve") from error
            time.sleep(0.2)
            continue
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
