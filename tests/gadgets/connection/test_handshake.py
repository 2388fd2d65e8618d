"""The handshake alone: no socket, no thread, no scan."""

import json

import numpy as np
import pytest

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
    State,
)
from gadgets.connection.questions import answer
from gadgets.connection.resident import UNKNOWN_QUERY
from gadgets.connection.session import SessionOptions
from gadgets.problems import Kind, Problems
from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import Settings, apply
from gadgets.wire.containers import Bucket, ImageArray, ReconData
from gadgets.wire.messages import (
    IMAGE_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Query,
    Response,
    Text,
)
from recon_core.errors import SettingsError
from tests.helpers.builders import readouts, waveform

BARE = '<?xml version="1.0"?>\n<configuration><method>zero_filled</method></configuration>\n'
DATA = [
    readouts(2, 2, 8),
    waveform(),
    Image(np.zeros((), IMAGE_HEADER), np.zeros((1, 1, 2, 2), np.float32)),
    ReconData(()),
    ImageArray(np.empty(0, np.complex64), np.empty(0, IMAGE_HEADER)),
    Bucket((), (), (), (), ()),
    Error("odd"),
    Response(1, "odd"),
]
CONFIGURATION, HEADER, TEXT, QUERY, CLOSE = ConfigFile("x"), Header("<h/>"), Text("hi"), Query(3, "what"), Close()
OPTIONS = SessionOptions(aliases={"openrecon": "zero_filled"})


def at(state):
    handshake = Handshake()
    for message in {
        State.IDLE: [],
        State.CONFIGURED: [CONFIGURATION],
        State.PREPARED: [CONFIGURATION, HEADER],
        State.SCANNING: [CONFIGURATION, HEADER, DATA[0]],
        State.CLOSED: [CLOSE],
    }[state]:
        handshake.receive(message)
    assert handshake.state is state
    return handshake


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message", "following", "action"),
    [
        (State.IDLE, CONFIGURATION, State.CONFIGURED, Configure(name="x")),
        (State.IDLE, TEXT, State.IDLE, Note("hi")),
        (State.IDLE, QUERY, State.IDLE, Answer(QUERY)),
        (State.IDLE, CLOSE, State.CLOSED, Finish()),
        (State.CONFIGURED, HEADER, State.PREPARED, Scan("<h/>")),
        (State.CONFIGURED, TEXT, State.CONFIGURED, Note("hi")),
        (State.CONFIGURED, QUERY, State.CONFIGURED, Answer(QUERY)),
        (State.CONFIGURED, CLOSE, State.CLOSED, Finish()),
        (State.PREPARED, TEXT, State.PREPARED, Note("hi")),
        (State.PREPARED, QUERY, State.PREPARED, Answer(QUERY)),
        (State.PREPARED, CLOSE, State.CLOSED, Finish()),
        (State.SCANNING, QUERY, State.SCANNING, Answer(QUERY)),
        (State.SCANNING, CLOSE, State.CLOSED, Finish()),
        *(
            (state, message, State.SCANNING, Deliver(message))
            for state in (State.PREPARED, State.SCANNING)
            for message in [*DATA, CONFIGURATION, HEADER, ConfigText("")]
        ),
        (State.SCANNING, TEXT, State.SCANNING, Deliver(TEXT)),
    ],
)
def test_what_a_message_calls_for(state, message, following, action):
    handshake = at(state)
    assert handshake.receive(message) == action
    assert handshake.state is following


@pytest.mark.parametrize(
    ("state", "messages", "expected"),
    [
        (State.IDLE, [*DATA, HEADER], "a configuration"),
        (State.CONFIGURED, [*DATA, CONFIGURATION, ConfigText("")], "the scan header"),
        (State.CLOSED, [*DATA, CONFIGURATION, HEADER, TEXT, QUERY, CLOSE], "nothing"),
    ],
)
def test_what_must_not_come_is_refused_and_changes_nothing(state, messages, expected):
    for message in messages:
        handshake = at(state)
        refusal = handshake.receive(message)
        assert refusal == Refuse(f"expected {expected} next, got {type(message).__name__}")
        assert handshake.state is state


# --- configurations ---------------------------------------------------------------------------------------------------


def whole(name):
    return list_pipelines()[name].text


@pytest.mark.parametrize(
    ("config", "dialect"),
    [
        (ConfigFile("zero_filled"), Dialect.CLIENT),
        (ConfigFile("zero_filled.xml"), Dialect.CLIENT),
        (ConfigFile("zero_filled-connect"), Dialect.CLIENT),
        (ConfigFile("zero_filled-connect.xml"), Dialect.CLIENT),
        (ConfigFile("openrecon"), Dialect.CLIENT),
        (ConfigFile("openrecon.xml"), Dialect.CLIENT),
        (ConfigText("zero_filled"), Dialect.CLIENT),
        (ConfigText("openrecon\n"), Dialect.CLIENT),
        (ConfigText(whole("zero_filled")), Dialect.CLIENT),
        (ConfigText(list_pipelines()["zero_filled"].through_server("127.0.0.1", 9012).text), Dialect.CLIENT),
        (ConfigText(BARE), Dialect.GADGETRON),
        (ConfigText('<configuration method="zero_filled"/>'), Dialect.GADGETRON),
    ],
)
def test_configurations_that_mean_the_same(config, dialect):
    handshake = Handshake()
    assert OPTIONS.configure(handshake.receive(config)) == Settings(method="zero_filled")
    assert handshake.dialect is dialect


@pytest.mark.parametrize("text", ["", '<?xml version="1.0"?>\n', '<?xml version="1.0"?>\n<configuration />\n'])
def test_gadgetron_node_without_configuration(text):
    handshake = Handshake()
    assert OPTIONS.configure(handshake.receive(ConfigText(text))) == Settings()
    assert handshake.dialect is Dialect.GADGETRON


def test_a_gadgetron_that_started_the_process_sends_no_names():
    handshake = Handshake(Dialect.GADGETRON)
    assert handshake.receive(ConfigText("zero_filled")) == Configure(document="zero_filled")
    with pytest.raises(SettingsError, match="not XML"):
        OPTIONS.configure(Configure(document="zero_filled"))
    handshake = Handshake(Dialect.GADGETRON)
    handshake.receive(ConfigText(whole("zero_filled")))
    assert handshake.dialect is Dialect.GADGETRON


def test_a_name_may_not_be_empty():
    with pytest.raises(SettingsError, match="bare name"):
        OPTIONS.configure(Handshake().receive(ConfigFile("")))


def test_a_configuration_that_is_no_xml_is_an_error_for_a_client():
    handshake = Handshake()
    with pytest.raises(SettingsError, match="not XML"):
        handshake.receive(ConfigText("<configuration"))
    assert handshake.dialect is Dialect.CLIENT


# --- texts and questions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[1]",
        '{"other": {}}',
        "\ufffd\x00é",
    ],
)
@pytest.mark.parametrize("state", [State.IDLE, State.CONFIGURED, State.PREPARED])
def test_other_text_is_only_noted(state, text):
    handshake = at(state)
    assert handshake.receive(Text(text)) == Note(text)
    assert handshake.state is state


@pytest.mark.parametrize("text", ['{"parameters": 3}', "{" * 5000, '{"parameters": {"\\ud800": "\\udfff"}}'])
def test_broken_parameters_change_nothing_but_are_told(text):
    action = at(State.PREPARED).receive(Text(text))
    assert isinstance(action, Adjust)
    assert action.parameters.fault
    assert not action.parameters.settings


@pytest.mark.parametrize("state", [State.IDLE, State.CONFIGURED])
def test_json_parameters_before_the_header_are_only_noted(state):
    text = '{"parameters": {"series": 9}}'
    assert at(state).receive(Text(text)) == Note(text)


def adjusted(parameters, settings=None):
    """Settings after JSON parameters, and the problems with them."""
    action, problems = at(State.PREPARED).receive(Text(json.dumps({"parameters": parameters}))), Problems()
    assert isinstance(action, Adjust)
    return OPTIONS.adjust(settings or Settings(method="zero_filled"), action.parameters, problems), list(problems)


@pytest.mark.parametrize(
    ("parameters", "settings"),
    [
        ({"Output": "complex", "SERIES": "4", "customconfig": ""}, {"output": "complex", "series": 4}),
        ({"config": "cg_sense"}, {"method": "cg_sense"}),
        ({"customconfig": "cg_sense"}, {"method": "cg_sense"}),
        ({"config": "cg_sense", "customconfig": "openrecon"}, {}),
        ({"config": "openrecon"}, {}),
        ({"config": "cg_sense", "method": "zero_filled"}, {}),
    ],
)
def test_json_parameters_change_settings_and_pipeline(parameters, settings):
    assert adjusted(parameters) == (apply(Settings(method="zero_filled"), settings), [])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"Flux": 1, "wibble": "x", "series": 2}, ("Flux", "wibble")),
        ({"series": "many"}, ("series", "whole number", "kept")),
        ({"series": 0}, ("series", "1 to")),
        ({"iterations": None}, ("iterations",)),
        ({"iterations": {"a": [1]}}, ("iterations",)),
    ],
)
def test_json_parameters_that_do_not_fit_are_named(parameters, named):
    settings, (problem,) = adjusted(parameters)
    assert settings == apply(Settings(method="zero_filled"), {"series": 2 if parameters.get("series") == 2 else 1})
    assert not problem.damage
    assert all(word in problem.text for word in named)


def test_json_parameters_with_an_unknown_pipeline_are_refused():
    with pytest.raises(SettingsError, match="no pipeline 'nonsense'"):
        adjusted({"config": "nonsense"})


@pytest.mark.parametrize("name", ["cinestream::version", "gadgetron::version", "gadgetron::info", "ismrmrd::version"])
def test_questions_with_an_answer(name):
    response = answer(Query(2**63, name))
    assert response.correlation == 2**63
    assert response.text.removeprefix("cinestream ")[0].isdigit()


def test_questions_without_one():
    assert answer(Query(6, "no::such")) == Response(6, UNKNOWN_QUERY)


# --- dialects ---------------------------------------------------------------------------------------------------------


def test_what_peers_take():
    image, text, wave = DATA[2], Text("odd"), waveform()
    assert Dialect.CLIENT.translate(image) is image
    assert Dialect.CLIENT.translate(text) is text
    assert Dialect.CLIENT.translate(wave) is None
    assert Dialect.GADGETRON.translate(image) is image
    assert Dialect.GADGETRON.translate(wave) is wave
    assert Dialect.GADGETRON.translate(text) == Error("odd")


def test_a_client_gets_problems_at_once_and_their_numbers_at_the_end():
    sent = []
    problems = Problems(listener=lambda problem: sent.extend(Dialect.CLIENT.report(problem)))
    problems.add(Kind.VALUES, "lost", damage=True)
    problems.add(Kind.NOISE, "seen", damage=False)
    problems.add(Kind.VALUES, "lost again", damage=True, count=2)
    assert sent == [Text("ERROR   lost"), Text("WARNING seen")]
    assert Dialect.CLIENT.conclude(problems) == [Text("ERROR   lost (the first of 3 such cases)"), Close()]


def test_a_gadgetron_gets_one_error_at_the_end():
    sent = []
    problems = Problems(listener=lambda problem: sent.extend(Dialect.GADGETRON.report(problem)))
    problems.add(Kind.NOISE, "seen", damage=False)
    assert Dialect.GADGETRON.conclude(problems) == [Close()]
    problems.add(Kind.VALUES, "lost", damage=True)
    problems.add(Kind.STREAM, "broken", damage=True)
    assert sent == []
    assert Dialect.GADGETRON.conclude(problems) == [Error("lost\nbroken"), Close()]
