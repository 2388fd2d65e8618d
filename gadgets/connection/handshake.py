"""The handshake of a connection: a table of states and messages, without a socket.

Three doors lead to a reconstruction::

    client                        Gadgetron <connect>              Gadgetron <execute>
    stock client, FIRE,           opens a connection for           starts a process that has read
    OpenRecon, cinestream send    its external node                configuration and header already
         |                             |                                |
         | pipeline, by name           | the bare <configuration>       | `Handshake(Dialect.GADGETRON)`,
         | or whole                    | of the external node           | fed with both
         v                             v                                v
       IDLE ------ configuration --> CONFIGURED ------ header --> PREPARED --- data --> SCANNING
         |                             |                            |                      |
         +---------- CLOSE ------------+---------- CLOSE -----------+------- CLOSE --------+--> CLOSED

The first configuration distinguishes the doors: whoever sends the bare ``<configuration>`` of an external node is a
Gadgetron, everybody else is a client. What a peer understands differs, so every connection has a `Dialect`.

`Handshake.receive` takes one message and returns the one action that it calls for; whoever owns the socket performs it.
Questions are answered in every state. Text is logged, except for FIRE's JSON parameters between header and data. In
SCANNING everything but questions and CLOSE is delivered to the reconstruction, which judges it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from gadgets.settings.fire import JsonParameters, parse_json_parameters
from gadgets.settings.pipelines import is_pipeline
from gadgets.wire.messages import Close, ConfigFile, ConfigText, Error, Header, Message, Query, Text, Waveform

if TYPE_CHECKING:
    from gadgets.problems import Problem, Problems

#: Shows a client that its scan goes on, and nothing else.
GOES_ON = "INFO    the images are still being made"


class State(Enum):
    """What came so far."""

    IDLE = auto()
    CONFIGURED = auto()
    PREPARED = auto()
    SCANNING = auto()
    CLOSED = auto()


class Dialect(Enum):
    """What a peer understands.

    A client is sent images and text; the stock client fails on everything else. A Gadgetron takes what its pipeline
    has readers for, and no text; an error ends its stream, so it is sent one, last.
    """

    CLIENT = auto()
    GADGETRON = auto()

    def translate(self, message: Message) -> Message | None:
        """Give a message the form that the peer takes; None if it takes it in no form."""
        if self is Dialect.GADGETRON:
            return Error(message.text) if isinstance(message, Text) else message
        return None if isinstance(message, Waveform) else message

    def report(self, problem: Problem) -> list[Message]:
        """What to send when a problem comes up for the first time."""
        return [] if self is Dialect.GADGETRON else [_line(problem)]

    def conclude(self, problems: Problems) -> list[Message]:
        """What to send at the end of the scan, CLOSE included."""
        if self is Dialect.CLIENT:
            return [*(_line(problem) for problem in problems if problem.grew), Close()]
        errors = "\n".join(str(problem) for problem in problems.damage)
        return [Error(errors), Close()] if errors else [Close()]


# --- actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configure:
    """Take the pipeline of this name; or, without a name, the configuration in `document`."""

    name: str | None = None
    document: str = ""


@dataclass(frozen=True)
class Scan:
    """Prepare for the scan with this header."""

    header: str


@dataclass(frozen=True)
class Adjust:
    """Change settings as the peer's JSON parameters say."""

    parameters: JsonParameters


@dataclass(frozen=True)
class Deliver:
    """Hand a message to the reconstruction; the first one begins it."""

    message: Message


@dataclass(frozen=True)
class Answer:
    """Answer a question."""

    query: Query


@dataclass(frozen=True)
class Note:
    """Log a text."""

    text: str


@dataclass(frozen=True)
class Finish:
    """Finish the scan, if one was prepared, and close."""


@dataclass(frozen=True)
class Refuse:
    """Give up: the message must not come in this state."""

    reason: str


Action = Configure | Scan | Adjust | Deliver | Answer | Note | Finish | Refuse


class Handshake:
    """State of one connection.

    Parameters
    ----------
    dialect
        Of the peer, as far as it is known; the configuration decides.

    Attributes
    ----------
    state : State
    dialect : Dialect
    """

    def __init__(self, dialect: Dialect = Dialect.CLIENT) -> None:
        self.state = State.IDLE
        self.dialect = dialect

    def receive(self, message: Message) -> Action:
        """Take the next message of the peer.

        Returns
        -------
        Action
            What is to be done.

        Raises
        ------
        SettingsError
            If a configuration is no XML.
        """
        row = _TABLE[self.state]
        for kind in type(message).__mro__:
            if kind in row:
                self.state, act = row[kind]
                return act(self, message)
        return Refuse(f"expected {_EXPECTED[self.state]} next, got {type(message).__name__}")

    def _configure(self, message: ConfigFile | ConfigText) -> Action:
        if isinstance(message, ConfigFile):
            return Configure(name=message.name)
        text = message.text.strip()
        if self.dialect is Dialect.CLIENT:
            if text and not text.startswith("<"):
                return Configure(name=text)  # FIRE may send the bare name as text
            if not is_pipeline(text):
                self.dialect = Dialect.GADGETRON
        return Configure(document=text)

    def _adjust(self, message: Text) -> Action:
        parameters = parse_json_parameters(message.text)
        return Note(message.text) if parameters is None else Adjust(parameters)


# --- the table --------------------------------------------------------------------------------------------------------

_Act = Callable[[Handshake, Any], Action]


def _answer(_: Handshake, query: Query) -> Action:
    return Answer(query)


def _note(_: Handshake, text: Text) -> Action:
    return Note(text.text)


def _scan(_: Handshake, header: Header) -> Action:
    return Scan(header.text)


def _deliver(_: Handshake, message: Message) -> Action:
    return Deliver(message)


def _finish(_: Handshake, __: Close) -> Action:
    return Finish()


# By state and kind of message: the next state, and what makes the action. `Message` is every kind that is not named.
_TABLE: dict[State, dict[type[Message], tuple[State, _Act]]] = {
    State.IDLE: {
        ConfigFile: (State.CONFIGURED, Handshake._configure),
        ConfigText: (State.CONFIGURED, Handshake._configure),
        Text: (State.IDLE, _note),
        Query: (State.IDLE, _answer),
        Close: (State.CLOSED, _finish),
    },
    State.CONFIGURED: {
        Header: (State.PREPARED, _scan),
        Text: (State.CONFIGURED, _note),
        Query: (State.CONFIGURED, _answer),
        Close: (State.CLOSED, _finish),
    },
    State.PREPARED: {
        Text: (State.PREPARED, Handshake._adjust),
        Query: (State.PREPARED, _answer),
        Close: (State.CLOSED, _finish),
        Message: (State.SCANNING, _deliver),
    },
    State.SCANNING: {
        Query: (State.SCANNING, _answer),
        Close: (State.CLOSED, _finish),
        Message: (State.SCANNING, _deliver),
    },
    State.CLOSED: {},
}
_EXPECTED = {State.IDLE: "a configuration", State.CONFIGURED: "the scan header", State.CLOSED: "nothing"}


def _line(problem: Problem) -> Text:
    """FIRE's form of a log line: the level, padded to eight characters, and the text."""
    return Text(f"{'ERROR' if problem.damage else 'WARNING':<8}{problem}")
