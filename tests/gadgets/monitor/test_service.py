"""The monitor page over HTTP: what it shows, who may see it, and what happens where it cannot be had."""

import base64
import contextlib
import http.client
import io
import json
import socket
import sys
import time
import urllib.parse
import urllib.request

import pytest
from PIL import Image as Picture
from prometheus_client.parser import text_string_to_metric_families

from gadgets import __version__
from gadgets.commands.main import main
from gadgets.connection.records import ScanRecord
from gadgets.monitor import service
from gadgets.monitor.opening import check_monitor
from gadgets.problems import Kind
from gadgets.wire.messages import Close, ConfigFile, Header, Readouts
from recon_core.errors import ResourceError, SettingsError
from tests.gadgets.monitor.conftest import watched
from tests.helpers.peers import FRAMES, SLICES, assert_whole_scan, scan, talk, talk_scan, wait_until

HEADER, ITEMS = scan()
TOKEN = "a-token_of.some~length"


def scanned(one, *messages):
    """Let a scan run, and wait until it is over."""
    before = len(one.record.over)
    talk_scan(one.server) if not messages else talk(one.server, *messages)
    wait_until(lambda: len(one.record.over) > before)


def metrics(one, **headers):
    text = one.site.ask("metrics", **headers)[2].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(site):
    status, headers, page = site.site.ask()
    assert status == 200
    assert "text/html" in headers["content-type"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    for name in ("monitor.js", "monitor.css", "viewer.js", "viewer.css", "style.css"):
        assert f"/static/{name}".encode() in page
        status, headers, content = site.site.ask(f"static/{name}")
        assert status == 200
        assert ("javascript" if name.endswith("js") else "css") in headers["content-type"]
        assert b"://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
    assert site.site.ask("static/../app.py")[0] == 404
    assert site.site.ask("static/monitor.html")[0] == 404


@pytest.mark.parametrize("number", ["-1", "x", "1.0", "", "%00", "\u0663", "9" * 5000])
def test_what_is_no_number_of_a_loop_is_not_found(number, site, caplog):
    scanned(site)
    scan = site.record.over[0].scan
    for kind in ("loops", "maps"):
        assert site.site.ask(f"{kind}/{scan}/{urllib.parse.quote(number, safe='%')}")[0] == 404
    assert site.site.ask(f"loops/{scan}/0")[0] == 200
    assert "Traceback" not in caplog.text


def test_connections_that_ask_for_nothing_give_way(monkeypatch):
    """As those of a scan for open ports; health checks that get no answer end a server that is well."""
    monkeypatch.setattr(service, "_REQUEST_SECONDS", 0.2)
    with watched() as one, contextlib.ExitStack() as stack:
        address = urllib.parse.urlsplit(one.site.url)
        silent = [
            stack.enter_context(socket.create_connection((address.hostname, address.port)))
            for _ in range(service._MOST_REQUESTS + 1)
        ]
        silent[0].sendall(b"GET / HTTP/1.1\r\nHost: ")
        wait_until(lambda: one.site.ask("healthz")[0] == 200)
        assert silent[0].recv(1) == b""


def test_a_websocket_is_no_error_of_the_server(site, caplog):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(site.site.url).netloc)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz", headers=upgrade)
        assert connection.getresponse().status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_scans_are_shown_with_their_images(site):
    scanned(site)
    facts = site.site.json("scans.json")
    assert (facts["server"]["version"], facts["server"]["health"], facts["running"]) == (__version__, "well", [])
    (over,) = facts["over"]
    assert (over["verdict"], over["images"], over["slices"], over["promised"]) == (
        "done",
        FRAMES * SLICES,
        SLICES,
        SLICES,
    )
    assert [loop["name"] for loop in over["loops"]] == [f"slice {number}" for number in range(SLICES)]
    loop = site.site.json(f"loops/{over['scan']}/1")
    content = base64.b64decode(loop["source"].removeprefix("data:image/png;base64,"))
    with Picture.open(io.BytesIO(content)) as picture:
        across, gap = loop["across"], loop["gap"]
        assert picture.convert("L").getextrema()[1] > 100
        assert picture.width == across * (loop["columns"] + gap) - gap
        down = -(-loop["frames"] // across)
        assert picture.height == down * (loop["rows"] + gap) - gap
    with Picture.open(io.BytesIO(site.site.ask(f"maps/{over['scan']}/0")[2])) as picture:
        assert picture.width > 0
    for path in (f"loops/{over['scan']}/{SLICES}", "loops/none/0", f"maps/{over['scan']}/{SLICES}", "no/such"):
        assert site.site.ask(path)[0] == 404


def test_metrics_agree_with_the_scans(site):
    scanned(site)
    scanned(site, ConfigFile("no_such"), Close())
    found = metrics(site)
    assert found["cinestream_scans_total", "done"] == 1
    assert found["cinestream_scans_total", "damaged"] == 1
    assert found["cinestream_failures_total", Kind.FAILURE.value] == 1
    assert found["cinestream_images_total",] == FRAMES * SLICES
    assert found["cinestream_readouts_total",] == sum(len(item) for item in ITEMS if isinstance(item, Readouts))
    assert found["cinestream_slices_total", "zero_filled"] == SLICES
    assert found["cinestream_seconds_count", "latency"] == SLICES
    assert found["cinestream_seconds_bucket", "+Inf", "scan"] == found["cinestream_seconds_count", "scan"] == 2
    assert found["cinestream_seconds_bucket", "100.0", "scan"] == 2, "classes are summed up"
    assert found["cinestream_queue_limit_bytes",] > 0
    assert found["cinestream_process_memory_bytes",] > 1 << 20
    assert found["cinestream_fault",] == 0
    assert found["cinestream_info", __version__] == 1


def test_a_server_that_cannot_reconstruct_is_ill(site):
    assert site.site.ask("healthz")[0] == 200
    site.record.fault = "no engine"
    status, _, body = site.site.ask("healthz")
    assert (status, json.loads(body)["fault"]) == (503, "no engine")
    assert metrics(site)["cinestream_fault",] == 1


def test_losses_in_a_row_are_doubtful(site):
    for _ in range(5):
        record = ScanRecord("a peer")
        record.problems.add(Kind.STREAM, "it broke", damage=True)
        site.record.end(record)
    assert site.site.json("healthz")["health"] == "doubtful"
    site.record.end(ScanRecord("a peer"))
    assert site.site.json("healthz")["health"] == "well"


@pytest.mark.parametrize(("running", "latency", "is_late"), [("", 0.0, False), ("slice 0", 0.0, True), ("", 3.0, True)])
def test_a_deadline_that_is_not_kept_is_doubtful(running, latency, is_late, site, capsys):
    """Also while the slice that takes too long is being made: it may be the only one of its scan."""
    record = ScanRecord("a peer", deadline=2.0, latency=latency)
    record.summary.running = running
    record.summary._began = time.monotonic() - 5.0
    site.record.begin(record)
    health = site.site.json("healthz")
    assert ("longer for a slice than the deadline" in str(health["doubts"])) is is_late
    assert site.site.json("scans.json")["running"][0]["late"] is is_late
    main(["doctor", "--server", site.site.url])
    text = capsys.readouterr().out
    assert ("the deadline is 2 s" in text) is is_late
    assert ("slice 0 for 5." in text) is bool(running)
    site.record.end(record)


def test_news_come_as_events(site):
    with urllib.request.urlopen(site.site.url + "events", timeout=30) as stream:
        kinds = {}
        scanned(site)
        while not kinds.get("over") or not kinds["over"][-1]:
            name = stream.readline().decode().removeprefix("event: ").strip()
            kinds.setdefault(name, []).append(json.loads(stream.readline().decode().removeprefix("data: ")))
            assert stream.readline() == b"\n"
    assert set(kinds) <= {"state", "over", "log"}
    assert kinds["over"][-1][0]["verdict"] == "done"
    assert kinds["over"][0] == []


def test_names_of_patients_are_shown_only_where_they_are_asked_for():
    text = "<subjectInformation><patientName>Doe^Jane</patientName></subjectInformation></ismrmrdHeader>"
    header = HEADER.replace("</ismrmrdHeader>", text)
    for names in (False, True):
        with watched(names=names) as one:
            scanned(one, ConfigFile("zero_filled"), Header(header), *ITEMS, Close())
            assert (b"Doe" in one.site.ask("scans.json")[2]) is names


@pytest.mark.parametrize(
    ("name", "shown"),
    [("x" * 100_000, "x" * 200 + "..."), ("a&#10;b", "a\\nb"), ("to the \u202eleft", "to the \\u202eleft")],
)
def test_names_of_others_are_short_and_in_order(name, shown):
    """A page as long as a name of 100,000 characters shows nothing else, and turned text reads as another."""
    text = f"<subjectInformation><patientName>{name}</patientName></subjectInformation></ismrmrdHeader>"
    header = HEADER.replace("cine_simulation", name).replace("</ismrmrdHeader>", text)
    with watched(names=True) as one:
        scanned(one, ConfigFile("zero_filled"), Header(header), *ITEMS, Close())
        (over,) = one.site.json("scans.json")["over"]
    assert (over["protocol"], over["patient"]) == (shown, shown)


def test_without_a_token_only_this_machine_by_its_own_name_is_answered(site):
    for host, wanted in (
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("", 403),
    ):
        assert site.site.ask("scans.json", Host=host)[0] == wanted, host


def test_a_token_is_asked_for():
    with watched(token=TOKEN) as one:
        site = one.site
        for path in ("", "scans.json", "metrics", "events", "static/monitor.js", "loops/a/0"):
            status, headers, body = site.ask(path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert b"token is needed" in body
            status, _, body = site.ask(path, "another-token")
            assert (status, b"token is wrong" in body) == (401, True)
        assert site.ask("healthz")[0] == 200, "health checks have none"
        for wrong in ("wrong", TOKEN[:-1], TOKEN + "x", "\u00e9"):
            assert site.ask("scans.json?token=" + urllib.parse.quote(wrong))[0] == 401
        assert b"token is wrong" in site.ask("?token=wrong", Accept="text/html")[2]
        assert site.ask("scans.json", token=TOKEN)[0] == 200
        status, headers, _ = site.ask("?token=" + TOKEN)
        assert (status, headers["location"]) == (303, "/"), "the token is not left in the address"
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert site.ask("scans.json", Cookie=cookie.partition(";")[0])[0] == 200
        assert site.ask("scans.json", Cookie=cookie.partition("=")[0] + "=wrong")[0] == 401
        assert site.ask("scans.json", Cookie="a=b; ;;=,\x01")[0] == 401


def test_a_token_can_be_typed_in():
    with watched(token=TOKEN) as one:
        for typed, wanted in ((TOKEN, 303), ("wrong", 401), ("x" * 10_000, 401)):
            body = urllib.parse.urlencode({"token": typed}).encode()
            request = urllib.request.Request(one.site.url + "login", body, {"Accept": "text/html"})
            connection = urllib.request.build_opener(
                type("Stay", (urllib.request.HTTPRedirectHandler,), {"redirect_request": lambda *_: None})
            )
            try:
                with connection.open(request, timeout=30) as answer:
                    status = answer.status
            except urllib.error.HTTPError as error:
                with error:
                    status = error.code
            assert status == wanted


def test_beyond_this_machine_a_token_is_made():
    with watched(address=("0.0.0.0", 0)) as one:
        assert one.site.query.startswith("token=")
        assert len(one.site.query) > 20
        one.site.url = "http://127.0.0.1:" + one.site.url.rpartition(":")[2]
        assert one.site.ask("scans.json")[0] == 401
        assert one.site.ask("scans.json?" + one.site.query)[0] == 200


def test_a_port_that_is_taken_leaves_the_server_to_its_work(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken, watched(address=taken.getsockname()[:2]) as one:
        assert one.site is None
        assert f"the monitor page cannot listen on 127.0.0.1 port {taken.getsockname()[1]}" in caplog.text
        assert "choose another one with --web" in caplog.text
        assert_whole_scan(one.server)


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "prometheus_client"])
def test_a_missing_package_is_named(package, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("gadgets.monitor", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=f"{package}.*cinestream\\[web\\]"):
        check_monitor("")


@pytest.mark.parametrize("token", ["short", "with a space in it", "ünicode-token", "x" * 500, "semicolon;semicolon"])
def test_what_cannot_be_a_token_is_refused(token):
    with pytest.raises(SettingsError, match="8 to 200"):
        check_monitor(token)
