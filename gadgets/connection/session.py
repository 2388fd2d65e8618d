"""One connection: the reconstruction of one scan, its images and its problems sent the way the peer understands them.

`gadgets.connection.handshake` says what each message calls for; a `Session` does it. A `Drain` reads the socket
meanwhile, from the first byte to the last.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from gadgets.chain import Chain
from gadgets.connection.drain import Drain
from gadgets.connection.handshake import (
    GOES_ON,
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
from gadgets.connection.queue import MessageQueue, QueueSpace
from gadgets.connection.records import ScanRecord, ServerRecord
from gadgets.connection.scan_log import CURRENT, log_scan
from gadgets.connection.spool import Spool
from gadgets.ct import confine
from gadgets.preparation.noise import NoiseSources
from gadgets.problems import Kind, Problems
from gadgets.settings.checks import check_weights
from gadgets.settings.pipelines import find_pipeline, parse_configuration
from gadgets.settings.settings import FIELDS, Settings, apply, refuse_costly
from gadgets.wire.framing import EndOfStreamError
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Text
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.budget import Budget
from recon_core.errors import CinestreamError, ProtocolError, ResourceError, ScanStoppedError, SettingsError
from recon_core.printable import label
from recon_core.stopping import stoppable
from recon_core.turns import Share, sharing
from recon_core.words import choose_from

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
_PROBE_SECONDS = 1.0  # between two texts that show whether a peer is still there
_ONE_SIDE_CLOSED = getattr(select, "POLLRDHUP", 0)  # of Linux
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
    """How much of all streams may wait for the reconstruction before the senders are held up; a quarter of the free
    memory at most."""
    memory_bytes: int | None = None
    """How much all scans may take for what they gather and make, and each of them half of it; None takes half of the
    memory that is free."""
    idle_seconds: float = 600.0
    """How long a peer may be silent while it is waited for, or take nothing of what is sent."""
    ct_folders: tuple[Path, ...] = ()
    """Where a peer may name files for CT; pipelines by name and overrides may name them anywhere."""
    noise_store: NoiseStore | None = None
    """Where the noise of a measurement is kept for scans that depend on it, or None."""

    def configure(self, wanted: Configure) -> Settings:
        """Settings of the pipeline that a peer wants.

        Raises
        ------
        CinestreamError
            If there is no such pipeline, it is broken, asks for files or computing times that are not for a peer, or
            its weights are missing and there is no fallback.
        """
        if wanted.name is not None:
            settings = self._by_name(wanted.name)
        else:
            settings = self._of_peer(parse_configuration(wanted.document) or Settings(), Settings())
        check_weights(self.override(settings))
        return settings

    def adjust(self, settings: Settings, parameters: JsonParameters, problems: Problems) -> Settings:
        """Change settings as JSON parameters say; those that do not fit are noted and change nothing.

        Raises
        ------
        SettingsError
            If they name a pipeline that there is not.
        """
        if parameters.fault:
            problems.add(Kind.PARAMETER, f"the parameters are not used: {parameters.fault}", damage=False)
        if parameters.pipeline:
            settings = self._by_name(parameters.pipeline)
        try:
            settings = self._of_peer(apply(settings, parameters.settings), settings)
        except SettingsError as error:
            problems.add(Kind.PARAMETER, f"{error}; the pipeline's own settings are kept", damage=False)
        if parameters.unknown:
            names = ", ".join(parameters.unknown)
            hint = choose_from(parameters.unknown[0], FIELDS, "cinestream pipelines")
            problems.add(
                Kind.UNKNOWN_PARAMETERS, f"parameters that are no settings are not used: {names}; {hint}", damage=False
            )
        return settings

    def override(self, settings: Settings) -> Settings:
        """Put the operator's settings over those of the scan."""
        return apply(settings, self.overrides)

    def _of_peer(self, settings: Settings, trusted: Settings) -> Settings:
        """Keep a peer from files and computing times that are not for it."""
        refuse_costly(settings, trusted)
        return confine(settings, trusted, self.ct_folders)

    def _by_name(self, name: str) -> Settings:
        alias = {**_ALIASES, **self.aliases}.get(name.removesuffix(".xml"), name)
        return find_pipeline(alias, self.pipelines).settings


class Resources:
    """What all sessions of a process share.

    Parameters
    ----------
    options
        The operator's limits.
    scans
        Where sessions report; None keeps what they report for itself.
    """

    def __init__(self, options: SessionOptions, scans: ServerRecord | None = None) -> None:
        self.scans = scans or ServerRecord()
        self.budget = Budget(options.memory_bytes)
        self.queues = QueueSpace.of_memory(options.queue_bytes)


class _PeerGoneError(Exception):
    """Nothing can be sent any more; not an OSError, which anything else may raise too."""


def name_of(connection: socket.socket) -> str:
    """Address and port of the peer, or what kind of connection it is."""
    try:
        peer = connection.getpeername()
    except OSError:
        return "a peer that is gone"
    return f"{peer[0]} port {peer[1]}" if isinstance(peer, tuple) else "the parent process"


def set_up(connection: socket.socket, idle_seconds: float) -> None:
    """Let a peer be silent for so long at most, and get at once what is sent; nothing happens if it is gone already."""
    with contextlib.suppress(OSError):
        connection.settimeout(idle_seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host may lose power
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # last: no other kind of socket has it


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
    resources
        What other sessions share with this one; None shares with none.
    peer
        Name of the peer, where the socket does not lead to it.
    """

    def __init__(
        self,
        connection: socket.socket,
        engine: Callable[[], Engine],
        options: SessionOptions | None = None,
        begun: tuple[ConfigText, Header] | None = None,
        resources: Resources | None = None,
        peer: str = "",
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._options = options or SessionOptions()
        self._begun = begun or ()
        self._handshake = Handshake(Dialect.GADGETRON if begun else Dialect.CLIENT)
        resources = resources or Resources(self._options)
        self._scans = resources.scans
        self._queue = MessageQueue(resources.queues)
        self._budget = Budget(resources.budget.limit // 2, resources.budget)
        self._receiving = 0  # bytes of a message that is not whole yet
        self._stopped = ""
        self.silent = True  # nothing has come from the peer
        self._next_probe = 0.0
        self._record = ScanRecord(peer or name_of(connection))
        self._writer = Writer.of_socket(connection)

    def run(self) -> bool:
        """Serve the connection.

        Returns
        -------
        bool
            True if every image that the scan promised was made and sent. Errors are reported to the peer and logged,
            never raised.
        """
        CURRENT.set(self._record.scan)
        set_up(self._connection, self._options.idle_seconds)
        with Spool.into(self._options.save_raw) as spool:
            drain = Drain(
                self._connection,
                partial(Reader, grows=self._receive_more),
                self._queue.put,
                tee=self._tee(spool),
                is_busy=lambda: not self._queue.awaited,
            )
            if spool is not None:
                for message in self._begun:
                    spool.write_message(message)
            try:
                try:
                    drain.start()
                except RuntimeError as error:  # the machine has no more threads
                    self._queue.put(ProtocolError(f"the connection cannot be read: {error}; try again later"))
                return self._serve(drain, spool)
            finally:
                self._queue.abandon()
                drain.finish()
                self._budget.close()

    def stop(self, why: str) -> None:
        """End the scan between two steps of its reconstruction, and tell the peer why; from any thread."""
        self._stopped = why
        self._queue.interrupt(ScanStoppedError(why))

    def _serve(self, drain: Drain[Message], spool: Spool | None) -> bool:
        problems = self._record.problems = Problems(listener=self._report)
        try:
            return self._attend(drain, spool, problems)
        finally:
            if self._record.pipeline or problems.kinds:  # not for questions
                self._record.door = self._handshake.dialect.name.lower()
                self._record.held_up = self._queue.held_up
                self._scans.end(self._record)
                log_scan(self._record)

    def _attend(self, drain: Drain[Message], spool: Spool | None, problems: Problems) -> bool:
        """Do what the peer asks for, and tell it how that ended."""
        try:
            with stoppable(lambda: self._why_stop(drain)):
                scanned = self._scan(problems)
        except _PeerGoneError as error:
            logger.warning("the peer is gone (%s); nothing more can be sent to it", error)
            self._record.peer_gone = True
            return False
        except CinestreamError as error:
            if (
                self.silent and isinstance(error, EndOfStreamError | ScanStoppedError) and not self._begun
            ):  # as health checks do
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
            self._record.peer_gone = True
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
                self._record.pipeline = action.name or "its own"
                self._record.door = self._handshake.dialect.name.lower()
                self._scans.begin(self._record)
                settings = self._options.configure(action)
            elif isinstance(action, Scan):
                header = parse_header(action.header)
                self._record.protocol = label(header.protocol_name)
                self._warm_up(settings)
            elif isinstance(action, Adjust):
                settings = self._options.adjust(settings, action.parameters, problems)
            elif header is not None:  # the first data, or the end of a scan without any
                self._reconstruct(header, settings, itertools.chain([action], actions), problems)
                break
        return header is not None

    def _reconstruct(
        self, header: ScanHeader, settings: Settings, actions: Iterator[Action], problems: Problems
    ) -> None:
        dialect, settings = self._handshake.dialect, self._options.override(settings)
        chain = Chain(
            header,
            settings,
            self._engine,
            problems,
            self._scans.watch(self._record, header, settings, lambda: self._queue.arrived),
            noise=NoiseSources(store=self._options.noise_store),
            budget=self._budget,
            arrived=lambda: self._queue.arrived,
            to_gadgetron=dialect is Dialect.GADGETRON,
        )
        self._record.summary = chain.summary
        with sharing(Share(urgent=settings.realtime.mode != "off")):
            for item in chain(action.message for action in actions if isinstance(action, Deliver)):
                form = dialect.translate(item)
                if form is not None:
                    self._send(form)

    def _why_stop(self, drain: Drain[Message]) -> str:
        """Why the reconstruction is to be stopped; empty while it is not.

        A peer that has closed one direction may still want its images. That it has closed both shows only when
        something is sent to it.
        """
        if self._stopped:
            return self._stopped
        self._record.summary.log_long()
        poll = select.poll()
        poll.register(self._connection, _ONE_SIDE_CLOSED)
        events = dict(poll.poll(0)).get(self._connection.fileno(), 0)
        gone = drain.lost or bool(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL))
        if events & _ONE_SIDE_CLOSED and not gone and time.monotonic() > self._next_probe:
            self._next_probe = time.monotonic() + _PROBE_SECONDS
            if self._handshake.dialect is Dialect.GADGETRON:
                gone = not drain.closed  # a Gadgetron says CLOSE first, and takes no text
            else:
                try:
                    self._writer.send(Text(GOES_ON))
                except OSError:
                    gone = True
        return "the peer is gone, so that its scan is stopped" if gone else ""

    def _receive_more(self, count: int) -> None:
        """Take memory for the message that is being received."""
        try:
            self._budget.take(count - self._receiving, "the messages that are being received")
        except ResourceError as error:
            raise ProtocolError(f"a message is too large: {error}") from error
        self._receiving = count

    def _warm_up(self, settings: Settings) -> None:
        """Import what is heavy and read weights while readouts come in; if that fails, the first slice will say so."""

        def prepare() -> None:
            with contextlib.suppress(Exception):
                self._engine().prepare(self._options.override(settings))

        with contextlib.suppress(RuntimeError):  # no thread can be started now: the first slice prepares then
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

    def _tee(self, spool: Spool | None) -> Callable[[memoryview], None]:
        """Take note of what comes as it comes."""

        def take(block: memoryview) -> None:
            self.silent &= not block
            if spool is not None:
                spool.write(block)

        return take

    def _messages(self) -> Iterator[Message]:
        yield from self._begun
        while not isinstance(item := self._queue.get(), CinestreamError):
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
