"""``cinestream doctor --server URL`` says in words whether a server is well."""

import http.server
import threading

import pytest

from gadgets.commands.main import main
from gadgets.wire.messages import Close, ConfigFile
from tests.gadgets.monitor.conftest import watched
from tests.helpers.peers import FRAMES, SLICES, talk, talk_scan, wait_until

TOKEN = "only-for-tests"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("CINESTREAM_WEB_TOKEN", raising=False)


def doctor(capsys, url, *options):
    status = main(["doctor", "--server", url, *options])
    return status, capsys.readouterr().out


def test_a_server_that_is_well(capsys):
    with watched() as one:
        talk_scan(one.server)
        wait_until(lambda: one.record.over)
        status, text = doctor(capsys, one.site.url)
    assert status == 0
    assert "well" in text
    assert "1 scan in 0.0 h, 0 with losses; 0 running" in text
    assert "queue 0.00 of" in text
    assert "for Prometheus" in text
    assert "bad" not in text


def test_losses_and_another_method_are_told(capsys):
    with watched() as one:
        talk(one.server, ConfigFile("no_such"), Close())
        wait_until(lambda: one.record.over)
        one.record.over[0].method, one.record.over[0].methods["kt_sense"] = "crunet_mr", SLICES
        one.record.over[0].notes["kt_sense instead of crunet_mr: too few lines"] = FRAMES
        status, text = doctor(capsys, one.site.url)
    assert status == 1
    assert "1 of the last 1 lost data or images" in text
    assert "no_such" in text
    assert "1 of the last 1 by another method than asked for: kt_sense instead of crunet_mr: too few lines" in text


def test_a_server_that_is_ill(capsys):
    with watched() as one:
        one.record.fault = "no engine"
        status, text = doctor(capsys, one.site.url)
    assert status == 1
    assert "ill: no engine" in text


def test_a_token_is_needed_and_taken_from_wherever_it_is(capsys, monkeypatch):
    with watched(token=TOKEN) as one:
        status, text = doctor(capsys, one.site.url)
        assert (status, "--token" in text) == (1, True)
        assert doctor(capsys, one.site.url, "--token", "wrong-token")[0] == 1
        assert doctor(capsys, one.site.url, "--token", TOKEN)[0] == 0
        assert doctor(capsys, f"{one.site.url}?token={TOKEN}")[0] == 0
        monkeypatch.setenv("CINESTREAM_WEB_TOKEN", TOKEN)
        assert doctor(capsys, one.site.url)[0] == 0


def test_nobody_there(capsys):
    with watched() as one:
        url = one.site.url
    status, text = doctor(capsys, url)
    assert status == 1
    assert "no answer" in text
    assert "serve --web" in text


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"version": 1}', b'{"version": 1, "health": 2, "fault": "", "doubts": 3}']
)
def test_another_page_is_told_from_a_monitor(body, capsys):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        status, text = doctor(capsys, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert status == 1
    assert "no monitor page" in text


def test_the_port_for_scans_is_told_from_that_of_the_page(capsys):
    with watched() as one:
        status, text = doctor(capsys, "http://{}:{}".format(*one.server.address))
    assert status == 1
    assert "no monitor page" in text


NO_ADDRESS = ["ftp://host/", "http://", "file:///etc/passwd", "http://[::1", "http://host:99999", "http://host:x"]


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_refused(url, capsys):
    assert main(["doctor", "--server", url]) == 2
    assert "http://127.0.0.1:8080" in capsys.readouterr().err
