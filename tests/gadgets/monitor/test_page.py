"""The monitor page and the report in a real browser."""

import threading

import numpy as np
import pytest

from gadgets.connection.records import ScanRecord
from gadgets.problems import Kind
from gadgets.wire.messages import Close, ConfigFile, Header
from tests.gadgets.monitor.conftest import watched
from tests.gadgets.reports.test_scan import beating, collected, make
from tests.helpers.browser import browser
from tests.helpers.peers import SLICES, Peer, StubEngine, scan, talk, talk_scan, wait_until

pytestmark = pytest.mark.slow
HEADER, ITEMS = scan()
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
NARROW = 360


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def shown():
    """A monitor page with a scan."""
    with watched() as one:
        talk_scan(one.server)
        wait_until(lambda: one.record.over)
        yield one


def overflow(chromium, width):
    """Pixels that stand out at the side; `innerWidth` of a phone grows with them."""
    return chromium.ask("document.documentElement.scrollWidth") - width


def pixels(chromium, selector):
    """Shades of a canvas as it is shown."""
    script = (
        f"(() => {{ const c = document.querySelector({selector!r});"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0); })()"
    )
    return np.array(chromium.ask(script))


def frame(chromium):
    return int(chromium.ask("Number(document.querySelector('.viewer').dataset.frame)"))


def test_the_page_shows_a_scan_whose_loop_plays(chromium, shown):
    chromium.open(shown.site.url)
    wait_until(lambda: chromium.ask("document.querySelectorAll('.viewer canvas').length") >= SLICES)
    wait_until(lambda: chromium.ask("document.querySelector('.viewer').dataset.frame"))
    seen = set()
    wait_until(lambda: seen.add(frame(chromium)) or len(seen) > 2)
    text = chromium.text()
    for word in ("well, idle", "cine_simulation", "zero_filled", "slice 0", "slice 1", "No scan is running."):
        assert word in text
    assert chromium.log() == []
    chromium.keep("monitor")


def test_a_loop_plays_that_a_busy_browser_saw_too_late(chromium, shown):
    """The browser tells at once that the loop, still empty, was out of sight, and that it came into it."""
    late = "IntersectionObserver = class { constructor(act) { this.act = act; } observe() { setTimeout(() => "
    late += "this.act([{isIntersecting: false}, {isIntersecting: true}]), 200); } }"
    with chromium.before_pages(late):
        chromium.open(shown.site.url)
        wait_until(lambda: chromium.ask("document.querySelectorAll('.viewer canvas').length") >= SLICES)
        wait_until(lambda: chromium.ask("document.querySelector('.viewer').dataset.frame"))
        first = frame(chromium)
        wait_until(lambda: frame(chromium) != first)


def test_a_loop_is_paused_windowed_and_enlarged(chromium, shown):
    chromium.open(shown.site.url)
    wait_until(lambda: chromium.ask("document.querySelector('.viewer').dataset.frame"))
    chromium.click(".viewer .bar button")  # pause
    before, at = pixels(chromium, ".viewer canvas"), frame(chromium)
    assert before.max() > 200
    assert before.min() < 20
    chromium.ask("(() => { const s = document.querySelector('[aria-label=Level]'); s.value = 1; s.oninput(); })()")
    wait_until(lambda: pixels(chromium, ".viewer canvas").mean() < 0.8 * before.mean())
    assert frame(chromium) == at, "it stands still"
    chromium.ask("document.querySelector('.viewer').focus()")
    key = "(() => document.querySelector('.viewer').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'})))()"
    chromium.ask(key)
    wait_until(lambda: frame(chromium) != at)
    canvas = chromium.driver.find_element("css selector", ".viewer .grid canvas")
    canvas.click()
    wait_until(lambda: chromium.ask("document.querySelectorAll('.viewer .stage canvas').length") == 2)
    wait_until(lambda: pixels(chromium, ".viewer .profile canvas").std() > 10)
    line = pixels(chromium, ".viewer .profile canvas")
    image = chromium.driver.find_element("css selector", ".viewer .stage canvas")
    image.click()  # in its middle
    wait_until(lambda: (pixels(chromium, ".viewer .profile canvas") != line).any())
    chromium.click("#maps")
    wait_until(lambda: chromium.ask("document.querySelector('#mapspicture').naturalWidth") > 0)
    assert chromium.log() == []
    chromium.keep("monitor enlarged")


def test_a_scan_appears_while_it_runs(chromium):
    go_on = threading.Event()
    with watched(StubEngine(lambda number: number < SLICES or go_on.wait(60))) as one, Peer(one.server.address) as peer:
        chromium.open(one.site.url)
        wait_until(lambda: "well, idle" in chromium.text())
        peer.send(ConfigFile("zero_filled"), Header(HEADER), *ITEMS, Close())
        wait_until(lambda: f"{SLICES - 1} of {SLICES} slices" in chromium.text("#running"))
        wait_until(lambda: "slice 0" in chromium.text("#images"))
        assert "1 scan running" in chromium.text("#state")
        assert "Now slice 1 with zero_filled" in chromium.text("#running")
        chromium.keep("monitor running")
        go_on.set()
        peer.collect()
        wait_until(lambda: "No scan is running." in chromium.text("#running") and "slice 1" in chromium.text("#images"))
        assert "zero_filled" in chromium.text("#over")
        assert chromium.log() == []


def test_what_a_sender_writes_is_shown_as_text(chromium):
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    header = HEADER.replace("cine_simulation", escaped)
    with watched(names=True) as one:
        talk(one.server, ConfigFile("zero_filled"), Header(header), *ITEMS, Close())
        record = ScanRecord(HOSTILE, pipeline=HOSTILE, protocol=HOSTILE, patient=HOSTILE, method="cg_sense")
        record.problems.add(Kind.FAILURE, HOSTILE, damage=True)
        record.notes[HOSTILE] = record.methods[HOSTILE] = 2
        one.record.end(record)
        wait_until(lambda: len(one.record.over) == 2)
        for width in (1200, NARROW):
            chromium.open(one.site.url, width)
            wait_until(lambda: chromium.text("#over").count(HOSTILE) > 3)
            wait_until(lambda: HOSTILE in chromium.text("#images"))
            chromium.click(".scans tr[tabindex]")
            wait_until(lambda: chromium.text("#over").count(HOSTILE) > 8)
            assert chromium.ask("document.title") != "taken"
            assert chromium.ask("document.querySelectorAll('main script, main img[src=x]').length") == 0
            assert overflow(chromium, width) <= 0
        assert chromium.log() == []
        chromium.keep("monitor hostile", NARROW)


def test_a_phone_needs_no_sideways_scrolling(chromium, shown):
    chromium.open(shown.site.url, NARROW, 740, "light")
    wait_until(lambda: chromium.ask("document.querySelector('.viewer').dataset.frame"))
    chromium.click(".scans tr[tabindex]")
    chromium.click("#maps")
    wait_until(lambda: chromium.ask("document.querySelector('#mapspicture').naturalWidth") > 0)
    assert overflow(chromium, NARROW) <= 0
    chromium.keep("monitor phone", NARROW)


@pytest.mark.parametrize(("scheme", "is_dark"), [("dark", True), ("light", False)])
def test_the_page_follows_the_scheme_of_the_browser(chromium, shown, scheme, is_dark):
    chromium.open(shown.site.url, scheme=scheme)
    wait_until(lambda: "well" in chromium.text())
    colour = chromium.ask("getComputedStyle(document.body).backgroundColor")
    text = chromium.ask("getComputedStyle(document.body).color")
    shade = [sum(int(part) for part in one[one.index("(") + 1 : -1].split(",")[:3]) / 3 for one in (colour, text)]
    assert (shade[0] < 60 < 160 < shade[1]) if is_dark else (shade[1] < 60 < 200 < shade[0])


def test_the_page_says_when_the_server_is_gone(chromium):
    with watched() as one:
        chromium.open(one.site.url)
        wait_until(lambda: "well" in chromium.text())
    wait_until(lambda: "no news since" in chromium.text("#state"))


def test_the_token_is_typed_in_once(chromium):
    with watched(token="only-for-tests") as one:
        chromium.open(one.site.url)
        assert "A token is needed." in chromium.text()
        field = chromium.driver.find_element("css selector", "input[name=token]")
        field.send_keys("wrong")
        field.submit()
        wait_until(lambda: "The token is wrong." in chromium.text())
        field = chromium.driver.find_element("css selector", "input[name=token]")
        field.send_keys("only-for-tests")
        field.submit()
        wait_until(lambda: "well, idle" in chromium.text())
        assert chromium.ask("location.search") == ""
        chromium.log()  # the refusals are in it


def test_the_loops_of_a_report_play_from_a_file(chromium, tmp_path):
    truth = np.stack([beating(9, (96, 128), seed) for seed in range(2)])
    make(tmp_path, collected(truth), truth=truth)
    chromium.open((tmp_path / "report.html").as_uri(), scheme="light")
    wait_until(lambda: chromium.ask("document.querySelector('.viewer').dataset.frame"))
    seen = set()
    wait_until(lambda: seen.add(frame(chromium)) or len(seen) > 2)
    assert chromium.ask("document.querySelectorAll('.viewer canvas').length") == 2 + 2 * 3
    assert chromium.log() == []
    chromium.keep("report")
    chromium.size(NARROW)
    wait_until(lambda: overflow(chromium, NARROW) <= 0)
