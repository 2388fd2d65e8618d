"""The log of a server: one line for a scan, with time and scan in every line, for people or machines."""

import json
import logging
import re
import sys

import pytest

from gadgets.connection.scan_log import CURRENT, FORMATS, ServerFormatter, log_as_server
from gadgets.wire.messages import Close, ConfigFile, ConfigText, Header, Query, Readouts
from tests.helpers.builders import readouts
from tests.helpers.peers import Peer, scan, serving, talk, talk_scan, wait_until

HEADER, ITEMS = scan()


@pytest.fixture
def server():
    with serving() as running:
        yield running


def lines_of(caplog):
    """What a server logs when it is not told to log more, in JSON."""
    formatter = ServerFormatter("json")
    return [
        json.loads(formatter.format(one))
        for one in caplog.records
        if one.levelno >= logging.WARNING or one.name == "cinestream.scans"
    ]


def logged(caplog, count=1):
    wait_until(lambda: len(lines_of(caplog)) >= count)
    return lines_of(caplog)


@pytest.mark.parametrize("door", ["client", "gadgetron"])
def test_a_good_scan_is_one_line(door, server, caplog):
    talk_scan(server, door)
    (line,) = logged(caplog)
    assert re.fullmatch(r"127\.0\.0\.1 port \d+", line["peer"])
    assert re.fullmatch(r"[0-9a-f]{8}", line["scan"])
    assert line["level"] == "INFO"
    assert line["door"] == door
    assert line["images"] == sum(1 for _ in talk_scan(server, door).images)
    assert line["readouts"] == sum(len(item) for item in ITEMS if isinstance(item, Readouts))
    assert line["slices"] > 0
    assert 0 < line["seconds"] < 60
    assert line["problems"] == []


def test_every_scan_has_its_own_id(server, caplog):
    for _ in range(2):
        talk_scan(server)
    assert len({line["scan"] for line in logged(caplog, 2)}) == 2


def test_problems_are_in_the_line_with_their_counts(server, caplog):
    bad = readouts(3, coils=7, samples=8)
    talk_scan(server, items=[*ITEMS[:-1], bad, ITEMS[-1]])
    *_, line = logged(caplog, 2)
    assert line["level"] == "ERROR"
    (problem,) = [one for one in line["problems"] if one["kind"] == "coils"]
    assert (problem["count"], problem["damage"]) == (3, True)
    assert "7 coils" in problem["text"]


def test_a_refused_pipeline_is_in_the_line(server, caplog):
    talk(server, ConfigFile("no\x1b_such"), Close())
    *_, line = logged(caplog, 2)
    assert (line["pipeline"], line["images"], line["level"]) == ("no\x1b_such", 0, "ERROR")
    assert "bare name" in line["problems"][0]["text"]
    assert "\x1b" not in caplog.records[-1].getMessage()


def test_a_whole_pipeline_has_no_name(server, caplog):
    talk(server, ConfigText("<configuration><method>grappa</method></configuration>"), Header(HEADER), *ITEMS, Close())
    assert logged(caplog)[-1]["pipeline"] == "its own"


def test_a_peer_that_leaves_is_in_the_line(server, caplog):
    with Peer(server.address) as peer:
        peer.send(ConfigFile("cg_sense"), Header(HEADER), *ITEMS[:2])
        peer.reset()
    wait_until(lambda: any("images" in line for line in lines_of(caplog)))
    line = lines_of(caplog)[-1]
    assert line["level"] == "ERROR"
    assert line["peer_gone"] or line["problems"]


def test_questions_and_health_checks_are_no_scans(server, caplog):
    talk(server, Query(1, "cinestream::version"), Close())
    with Peer(server.address) as peer:
        peer.end()
        peer.collect()
    talk_scan(server)
    assert len(logged(caplog)) == 1


def record(message, *arguments, level=logging.WARNING, error=None):
    return logging.LogRecord("cinestream", level, __file__, 1, message, arguments, error)


def test_lines_for_people():
    token = CURRENT.set("0123abcd")
    try:
        text = ServerFormatter("text").format(record("%d images", 3))
    finally:
        CURRENT.reset(token)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d WARNING \[0123abcd\] 3 images", text)
    assert ServerFormatter("text").format(record("hello")).endswith("WARNING hello")


def test_tracebacks_stay_in_a_line_of_json():
    try:
        raise ValueError("of a bug")
    except ValueError:
        failed = record("failed", error=sys.exc_info())
    line = ServerFormatter("json").format(failed)
    assert "\n" not in line
    assert "ValueError: of a bug" in json.loads(line)["traceback"]
    assert "ValueError: of a bug" in ServerFormatter("text").format(failed)


@pytest.mark.parametrize("form", FORMATS)
def test_all_handlers_write_so(form, monkeypatch):
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    log_as_server(form)
    assert isinstance(handler.formatter, ServerFormatter)


@pytest.mark.parametrize("form", FORMATS)
def test_other_handlers_find_the_message_in_a_record(form):
    one = record("%d images", 3)
    ServerFormatter(form).format(one)
    assert one.message == "3 images"
