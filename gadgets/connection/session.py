"""One connection: the reconstruction of one scan, its images and its problems sent the way the peer understands them.

`gadgets.connection.handshake` says what each message calls for; a `Session` does it. A `Drain` reads the socket
meanwhile, from the first byte to the last.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gadgets.chain import Chain
from gadgets.connection.drain import Drain
from gadgets.connection.handshake import (
    Adjust,
    Answer,
    Configure,
    Deliver,
    Dialect,
    Finish,
    Handshake,
    Note,
    Refuse,
    Scan,
)
from gadgets.connection.questions import answer
from gadgets.connection.queue import MessageQueue
from gadgets.connection.spool import Spool
from gadgets.ct import confine
from gadgets.preparation.noise import NoiseSources
from gadgets.problems import Kind, Problems
from gadgets.settings.checks import check_weights
from gadgets.settings.pipelines import find_pipeline, parse_configuration
from gadgets.settings.settings import Settings, apply
from gadgets.wire.header import parse_header
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, ProtocolError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gadgets.connection.handshake import Action
    from gadgets.preparation.noise_store import NoiseStore
    from gadgets.problems import Problem
    from gadgets.settings.fire import JsonParameters
    from gadgets.wire.header import ScanHeader
    from gadgets.wire.messages import ConfigText, Header, Message
    from recon_core.engine import Engine


logger = logging.getLogger("cinestream")

_GIB = 1 << 30
# What stock clients send a noise measurement with: any pipeline keeps its noise, and makes no images of it.
_ALIASES = {"default_measurement_dependencies": "cg_sense"}


@dataclass(frozen=True)
class SessionOptions:
    """What the operator decides for every session, and the settings that follow from it."""

    pipelines: tuple[Path, ...] = ()
    """Folders with further pipelines."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Pipeline by configuration name, for names that the sender fixes (OpenRecon's ``openrecon``)."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Settings that hold whatever the pipeline says."""
    save_raw: Path | None = None
    """Folder for the raw stream of every scan, or None."""
    queue_bytes: int = 4 * _GIB
    """How much of the stream may wait for the reconstruction before the sender is held up."""
    ct_folders: tuple[Path, ...] = ()
    """Where a peer may name files for CT; pipelines by name and overrides may name them anywhere."""
    noise_store: NoiseStore | None = None
    """Where the noise of a measurement is kept for scans that depend on it, or None."""

    def configure(self, wanted: Configure) -> Settings:
        """Settings of the pipeline that a peer wants.

        Raises
        ------
        CinestreamError
            If there is no such pipeline, it is broken, names files that a peer may not name, or its weights are missing
            and there is no fallback.
        """
        if wanted.name is not None:
            settings = self._by_name(wanted.name)
        else:
            settings = confine(parse_configuration(wanted.document) or Settings(), Settings(), self.ct_folders)
        check_weights(self.override(settings))
        return settings

    def adjust(self, settings: Settings, parameters: JsonParameters, problems: Problems) -> Settings:
        """Change settings as JSON parameters say; those that do not fit are noted and change nothing.

        Raises
        ------
        SettingsError
            If they name a pipeline that there is not.
        """
        if parameters.pipeline:
            settings = self._by_name(parameters.pipeline)
        try:
            settings = confine(apply(settings, parameters.settings), settings, self.ct_folders)
        except SettingsError as error:
            problems.add(Kind.PARAMETER, f"{error}; the pipeline's own settings are kept", damage=False)
        if parameters.unknown:
            names = ", ".join(parameters.unknown)
            problems.add(
                Kind.UNKNOWN_PARAMETERS, f"parameters that are no settings are not used: {names}", damage=False
            )
        return settings

    def override(self, settings: Settings) -> Settings:
        """Put the operator's settings over those of the scan."""
        return apply(settings, self.overrides)

    def _by_name(self, name: str) -> Settings:
        alias = {**_ALIASES, **self.aliases}.get(name.removesuffix(".xml"), name)
        return find_pipeline(alias, self.pipelines).settings


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
        self._begun = begun or ()
        self._handshake = Handshake(Dialect.GADGETRON if begun else Dialect.CLIENT)
        self._queue = MessageQueue(self._options.queue_bytes)
        self._writer = Writer.of_socket(connection)

    def run(self) -> bool:
        """Serve the connection.

        Returns
        -------
        bool
            True if every image that the scan promised was made and sent. Errors are reported to the peer and logged,
            never raised.
        """
        with contextlib.suppress(OSError):
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host may lose power
        with Spool.into(self._options.save_raw) as spool:
            drain = Drain(self._connection, self._queue.put, tee=spool.write if spool else None)
            if spool is not None:
                for message in self._begun:
                    spool.write_message(message)
            drain.start()
            try:
                return self._serve(drain, spool)
            finally:
                self._queue.abandon()
                drain.finish()

    def _serve(self, drain: Drain, spool: Spool | None) -> bool:
        problems = Problems(listener=self._report)
        try:
            scanned = self._scan(problems)
        except _PeerGoneError as error:
            logger.warning("the peer is gone (%s); nothing more can be sent to it", error)
            return False
        except CinestreamError as error:
            if not drain.received and not self._begun:  # as health checks do
                logger.info("the peer closed the connection without a request")
                if spool is not None:
                    spool.discard()
                return True
            problems.add(Kind.FAILURE, str(error), damage=True)
        except Exception as error:
            logger.exception("unexpected error")
            problems.add(Kind.FAILURE, f"unexpected error: {type(error).__name__}: {error}", damage=True)
        else:
            if spool is not None and not scanned:
                spool.discard()
        self._check_spool(spool, problems)
        try:
            for message in self._handshake.dialect.conclude(problems):
                self._send(message)
        except _PeerGoneError as error:
            logger.warning("the peer is gone (%s) and did not get the end", error)
            return False
        return not problems.damage

    def _check_spool(self, spool: Spool | None, problems: Problems) -> None:
        folder = self._options.save_raw
        if folder is not None and spool is None:
            text = f"the raw stream could not be saved: no file can be made in {folder}; free space or choose another"
            problems.add(Kind.RAW_STREAM, text, damage=True)
        elif spool is not None and spool.problem:
            problems.add(Kind.RAW_STREAM, spool.problem, damage=True)

    def _scan(self, problems: Problems) -> bool:
        """Do what the peer asks for; gives whether that was a scan, rather than questions only."""
        settings, header = Settings(), None
        actions = self._actions()
        for action in actions:
            if isinstance(action, Configure):
                settings = self._options.configure(action)
            elif isinstance(action, Scan):
                header = parse_header(action.header)
                self._warm_up(settings)
            elif isinstance(action, Adjust):
                settings = self._options.adjust(settings, action.parameters, problems)
            elif header is not None:  # the first data, or the end of a scan without any
                items = (step.message for step in itertools.chain([action], actions) if isinstance(step, Deliver))
                self._reconstruct(header, settings, items, problems)
                break
        return header is not None

    def _reconstruct(
        self, header: ScanHeader, settings: Settings, items: Iterator[Message], problems: Problems
    ) -> None:
        dialect = self._handshake.dialect
        chain = Chain(
            header,
            self._options.override(settings),
            self._engine,
            problems,
            noise=NoiseSources(store=self._options.noise_store),
            to_gadgetron=dialect is Dialect.GADGETRON,
        )
        for item in chain(items):
            form = dialect.translate(item)
            if form is not None:
                self._send(form)

    def _warm_up(self, settings: Settings) -> None:
        """Import what is heavy and read weights while readouts come in; if that fails, the first slice will say so."""

        def prepare() -> None:
            with contextlib.suppress(Exception):
                self._engine().prepare(self._options.override(settings))

        threading.Thread(target=prepare, name="cinestream-warm-up", daemon=True).start()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _actions(self) -> Iterator[Action]:
        """What the messages of the peer call for, up to its CLOSE; questions are answered and texts logged on the way.

        Raises
        ------
        ProtocolError
            If the stream broke, or a message came that must not.
        """
        for message in self._messages():
            action = self._handshake.receive(message)
            if isinstance(action, Answer):
                self._send(answer(action.query))
            elif isinstance(action, Note):
                logger.info("text from the peer: %s", action.text)
            elif isinstance(action, Refuse):
                raise ProtocolError(action.reason)
            else:
                yield action
                if isinstance(action, Finish):
                    return

    def _messages(self) -> Iterator[Message]:
        yield from self._begun
        while not isinstance(item := self._queue.get(), ProtocolError):
            yield item
        raise item

    def _report(self, problem: Problem) -> None:
        with contextlib.suppress(_PeerGoneError):
            for message in self._handshake.dialect.report(problem):
                self._send(message)

    def _send(self, message: Message) -> None:
        try:
            self._writer.send(message)
        except OSError as error:
            raise _PeerGoneError(str(error)) from error
