"""One connection: handshake, the reconstruction of one scan, and errors told the way the peer understands them.

Three doors lead here. A client (the stock Gadgetron client, FIRE and OpenRecon, `cinestream send`) names a pipeline or
sends one whole. A Gadgetron's ``<connect>`` sends the bare ``<configuration>`` of its external node. A Gadgetron's
``<execute>`` starts a process of ours that took configuration and header already. The first message tells them apart.

A thread of its own drains the socket from the first byte to the last, whatever the reconstruction is doing, so that the
sender is never held up and its CLOSE is always seen.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.chain import Chain
from gadgets.connection.queue import MessageQueue
from gadgets.connection.spool import Spool
from gadgets.ct import confine
from gadgets.preparation.noise import NoiseSources
from gadgets.problems import Problems
from gadgets.settings.checks import check_weights
from gadgets.settings.fire import parse_json_parameters
from gadgets.settings.pipelines import find_pipeline, is_pipeline, list_pipelines, parse_configuration
from gadgets.settings.settings import Settings, apply
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Close, ConfigFile, ConfigText, Error, Header, Query, Response, Text, Waveform
from gadgets.wire.reader import Reader
from gadgets.wire.source import EndOfStreamError
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, ProtocolError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gadgets.preparation.noise_store import NoiseStore
    from gadgets.problems import Problem
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import Message
    from recon_core.engine import Engine


logger = logging.getLogger("cinestream")

_GIB = 1 << 30
# What stock clients send a noise measurement with: any pipeline keeps its noise, and makes no images of it.
_ALIASES = {"default_measurement_dependencies": "cg_sense"}
_SILENCE_SECONDS = 10.0  # after our CLOSE: a peer that sends nothing for so long has nothing more to say


@dataclass(frozen=True)
class SessionOptions:
    """What the operator decides for every session.

    Parameters
    ----------
    pipelines
        Folders with further pipelines.
    aliases
        Pipeline by configuration name, for names that the sender fixes (OpenRecon's ``openrecon``).
    overrides
        Settings that hold whatever the pipeline says.
    save_raw
        Folder for the raw stream of every scan, or None.
    queue_bytes
        How much of the stream may wait for the reconstruction before the sender is held up.
    ct_folders
        Where a peer may name files for CT; pipelines by name and overrides may name them anywhere.
    noise_store
        Where the noise of a measurement is kept for scans that depend on it, or None.
    """

    pipelines: tuple[Path, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)
    save_raw: Path | None = None
    queue_bytes: int = 4 * _GIB
    ct_folders: tuple[Path, ...] = ()
    noise_store: NoiseStore | None = None


class _PeerGoneError(Exception):
    """Nothing can be sent any more; not an OSError, which anything else may raise too."""


class Session:
    """One connection, from its first message to its CLOSE.

    Parameters
    ----------
    connection
        The connected socket; closed by the owner.
    engine
        Gives the engine when it is needed.
    options
        The operator's choices.
    begun
        Configuration and header, when they were taken from the socket already; then this is Gadgetron's ``<execute>``.
    """

    def __init__(
        self,
        connection: socket.socket,
        engine: Callable[[], Engine],
        options: SessionOptions | None = None,
        begun: tuple[ConfigText, Header] | None = None,
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._options = options or SessionOptions()
        self._pushed_back: deque[Message] = deque(begun or ())
        self._to_gadgetron = begun is not None
        self._queue = MessageQueue(self._options.queue_bytes)
        self._writer = Writer.of_socket(connection)
        self._received = 0
        self._spool: Spool | None = None

    def run(self) -> bool:
        """Serve the connection.

        Returns
        -------
        bool
            True if every image that the scan promised was made and sent. Errors are told to the peer and logged, never
            raised.
        """
        with contextlib.suppress(OSError):
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host may lose power
        drain = threading.Thread(target=self._drain, name="cinestream-drain", daemon=True)
        with Spool.into(self._options.save_raw) as self._spool:
            if self._spool is not None:
                for message in self._pushed_back:
                    self._spool.write_message(message)
            drain.start()
            try:
                return self._serve()
            finally:
                self._queue.abandon()
                self._wait_for(drain)

    def _wait_for(self, drain: threading.Thread) -> None:
        """Let the peer finish sending: unread data would reset the connection and lose what we told it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)  # who waits for the end of our stream need not wait longer
        received = -1
        while drain.is_alive() and self._received != received:
            received = self._received
            drain.join(_SILENCE_SECONDS)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        drain.join()

    def _drain(self) -> None:
        """Take everything from the socket, as fast as it comes, to the very end."""
        reader, before = Reader(self._receive), 0
        try:
            while True:
                message = reader.read()
                self._queue.put(message, reader.bytes_read - before)
                before = reader.bytes_read
                if isinstance(message, Close):
                    return
        except EndOfStreamError as error:
            self._queue.put(error)
            return
        except ProtocolError as error:
            self._queue.put(error)
        except Exception as error:
            logger.exception("unexpected error")
            self._queue.put(ProtocolError(f"unexpected error in reading: {type(error).__name__}: {error}"))
        with contextlib.suppress(OSError):
            # Out of step with the peer: nothing can be understood any more, but the peer must be able to finish.
            scratch = memoryview(bytearray(1 << 20))
            while self._receive(scratch):
                pass

    def _receive(self, buffer: memoryview) -> int:
        try:
            count = self._connection.recv_into(buffer)
        except OSError:
            return 0
        if self._spool is not None:
            self._spool.write(buffer[:count])
        self._received += count
        return count

    def _serve(self) -> bool:
        problems = Problems(listener=self._tell)
        try:
            handshake = self._handshake()
            if handshake is not None:
                self._reconstruct(*handshake, problems)
            elif self._spool is not None:
                self._spool.discard()
        except _PeerGoneError as error:
            logger.warning("the peer is gone (%s); nothing more can be sent to it", error)
            return False
        except CinestreamError as error:
            if self._left_without_a_word():
                return True
            problems.add("failure", str(error), damage=True)
        except Exception as error:
            logger.exception("unexpected error")
            problems.add("failure", f"unexpected error: {type(error).__name__}: {error}", damage=True)
        self._check_spool(problems)
        try:
            self._finish(problems)
        except _PeerGoneError as error:
            logger.warning("the peer is gone (%s) and did not hear the end", error)
            return False
        return not problems.damage

    def _left_without_a_word(self) -> bool:
        """Whether the peer only looked if somebody listens, as health checks do; that is no scan and no error."""
        if self._received or self._to_gadgetron:
            return False
        logger.info("the peer left without a word")
        if self._spool is not None:
            self._spool.discard()
        return True

    def _check_spool(self, problems: Problems) -> None:
        folder = self._options.save_raw
        if folder is not None and self._spool is None:
            text = f"the raw stream could not be saved: no file can be made in {folder}; free space or choose another"
            problems.add("raw", text, damage=True)
        elif self._spool is not None and self._spool.problem:
            problems.add("raw", self._spool.problem, damage=True)

    def _reconstruct(self, settings: Settings, header: ScanHeader, problems: Problems) -> None:
        warm_up = threading.Thread(target=self._warm_up, args=[settings], name="cinestream-warm-up", daemon=True)
        warm_up.start()
        settings = self._adjust(settings, problems)
        settings = apply(settings, self._options.overrides)
        noise = NoiseSources(store=self._options.noise_store)
        chain = Chain(header, settings, self._engine, problems, noise=noise, to_gadgetron=self._to_gadgetron)
        for item in chain(self._items()):
            # the stock client dies of anything but images and text
            if self._to_gadgetron or not isinstance(item, Waveform):
                self._send(item)

    def _warm_up(self, settings: Settings) -> None:
        """Import what is heavy and read weights while readouts come in; if that fails, the first slice will say so."""
        with contextlib.suppress(Exception):
            self._engine().prepare(apply(settings, self._options.overrides))

    # --- handshake ----------------------------------------------------------------------------------------------------

    def _handshake(self) -> tuple[Settings, ScanHeader] | None:
        """Take configuration and header; None if the peer only asked something and left again."""
        settings: Settings | None = None
        while True:
            message = self._next()
            if isinstance(message, Text):
                logger.info("text from the peer: %s", message.text)
            elif isinstance(message, ConfigFile | ConfigText) and settings is None:
                settings = self._configure(message)
                check_weights(apply(settings, self._options.overrides))
            elif isinstance(message, Header) and settings is not None:
                return settings, parse_header(message.text)
            elif isinstance(message, Close):
                return None
            else:
                wanted = "a configuration" if settings is None else "the scan header"
                raise ProtocolError(f"expected {wanted} next, got {type(message).__name__}")

    def _configure(self, message: ConfigFile | ConfigText) -> Settings:
        if isinstance(message, ConfigFile):
            return self._by_name(message.name)
        text = message.text.strip()
        if text and not text.startswith("<") and not self._to_gadgetron:
            return self._by_name(text)  # FIRE may send the bare name as text
        self._to_gadgetron = self._to_gadgetron or not is_pipeline(text)
        return confine(parse_configuration(text) or Settings(), Settings(), self._options.ct_folders)

    def _by_name(self, name: str) -> Settings:
        alias = {**_ALIASES, **self._options.aliases}.get(name.removesuffix(".xml"), name)
        return find_pipeline(alias, self._options.pipelines).settings

    def _adjust(self, settings: Settings, problems: Problems) -> Settings:
        """Apply FIRE's JSON parameters, which come as text between header and data. Other text changes nothing."""
        while isinstance(message := self._next(), Text):
            parameters = parse_json_parameters(message.text)
            if parameters is None:
                logger.info("text from the peer: %s", message.text)
                continue
            if parameters.pipeline:
                settings = self._by_name(parameters.pipeline)
            try:
                settings = confine(apply(settings, parameters.settings), settings, self._options.ct_folders)
            except SettingsError as error:
                problems.add("parameter", f"{error}; the pipeline's own settings are kept", damage=False)
            if parameters.unknown:
                names = ", ".join(parameters.unknown)
                problems.add("parameters", f"parameters that are no settings are not used: {names}", damage=False)
        self._pushed_back.append(message)
        return settings

    # --- messages -----------------------------------------------------------------------------------------------------

    def _next(self) -> Message:
        """The next message of the peer; its questions are answered on the way, wherever they come.

        Raises
        ------
        ProtocolError
            If the stream broke.
        """
        while True:
            item = self._pushed_back.popleft() if self._pushed_back else self._queue.get()
            if isinstance(item, ProtocolError):
                raise item
            if not isinstance(item, Query):
                return item
            self._send(Response(item.correlation, _answer(item.text)))

    def _items(self) -> Iterator[Message]:
        while not isinstance(message := self._next(), Close):
            yield message

    def _tell(self, problem: Problem) -> None:
        """Tell a client of a problem at once; a Gadgetron takes an error for the end, so it hears of it last."""
        if not self._to_gadgetron:
            with contextlib.suppress(_PeerGoneError):
                self._send(Text(_line(problem)))

    def _finish(self, problems: Problems) -> None:
        """Say how the scan went, and close."""
        if self._to_gadgetron:
            if problems.damage:
                self._send(Error("\n".join(str(problem) for problem in problems.damage)))
        else:
            for problem in problems:
                if problem.count > 1:
                    self._send(Text(_line(problem)))
        self._send(Close())

    def _send(self, message: Message) -> None:
        try:
            self._writer.send(message)
        except OSError as error:
            raise _PeerGoneError(str(error)) from error


def _line(problem: Problem) -> str:
    """FIRE's form of a log line: the level, padded to eight characters, and the text."""
    return f"{'ERROR' if problem.damage else 'WARNING':<8}{problem}"


_ANSWERS: dict[str, Callable[[], str]] = {
    "cinestream::version": lambda: __version__,
    "gadgetron::version": lambda: f"cinestream {__version__}",
    "gadgetron::info": lambda: f"cinestream {__version__}; pipelines: {', '.join(list_pipelines())}",
    "ismrmrd::version": lambda: metadata.version("ismrmrd"),
}


def _answer(question: str) -> str:
    answer = _ANSWERS.get(question)
    return answer() if answer else "Unknown query"
