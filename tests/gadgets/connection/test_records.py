"""What a server knows of its scans: those that run, the last ones, and totals."""

import threading

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.connection.handshake import Configure
from gadgets.connection.records import BOUNDS, Histogram, ScanRecord, ServerRecord
from gadgets.connection.session import Resources, SessionOptions
from gadgets.problems import Kind
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Close, ConfigFile, Header
from recon_core.data import Reconstruction
from tests.helpers.peers import FRAMES, SLICES, Peer, StubEngine, scan, serving, talk, talk_scan, wait_until

HEADER, ITEMS = scan()


def record_of(server):
    return server._resources.scans


@pytest.fixture
def server():
    with serving() as running:
        yield running


def test_a_scan_is_seen_while_it_runs_and_after():
    started, go_on = threading.Event(), threading.Event()

    def hold(number):
        if number == SLICES:
            started.set()
            go_on.wait(30)

    with serving(StubEngine(hold)) as server, Peer(server.address) as peer:
        peer.send(ConfigFile("zero_filled"), Header(HEADER), *ITEMS, Close())
        assert started.wait(30)
        (running,) = record_of(server).running
        facts = running.facts()
        assert (facts["verdict"], facts["slices"], facts["promised"]) == ("running", SLICES - 1, SLICES)
        assert facts["running"] == f"slice {SLICES - 1} with zero_filled"
        assert facts["methods"] == {"zero_filled": SLICES - 1}
        assert record_of(server).totals().images == FRAMES * (SLICES - 1), "those of the scan that runs count"
        go_on.set()
        peer.collect()
        wait_until(lambda: record_of(server).over)
        assert record_of(server).running == []
        over = record_of(server).over[0]
        assert (over.scan, over.verdict, over.as_asked) == (running.scan, "done", True)
        totals = record_of(server).totals()
    assert (totals.scans, totals.failures, totals.images) == ({"done": 1}, {}, FRAMES * SLICES)
    assert totals.readouts == sum(len(item.headers) for item in ITEMS if hasattr(item, "headers"))
    assert sum(totals.seconds["latency"][0]) == SLICES
    assert sum(totals.seconds["scan"][0]) == 1


def test_questions_and_silence_are_no_scans(server):
    talk(server, Close())
    talk_scan(server)
    wait_until(lambda: record_of(server).over)
    assert len(record_of(server).over) == 1


def test_failures_are_counted_by_kind(server):
    talk(server, ConfigFile("no_such"), Close())
    wait_until(lambda: record_of(server).over)
    totals = record_of(server).totals()
    assert (totals.scans, totals.failures) == ({"damaged": 1}, {Kind.FAILURE.value: 1})


def test_failures_of_one_kind_add_up():
    server, record = ServerRecord(), ScanRecord("a peer")
    for series in ("1", "2"):
        record.problems.add(Kind.IMAGE_SHAPE, "of another shape", damage=True, count=2, of=series)
    server.end(record)
    assert server.totals().failures == {"shape": 4}


def test_what_differs_from_what_was_asked_is_kept_once():
    server, record = ServerRecord(), ScanRecord("a peer")
    server.begin(record)
    image = np.ones((1, 2, 2), np.complex64)
    take = server.watch(record, parse_header(HEADER), SessionOptions().configure(_wanted("cg_sense")), lambda: 0.0)
    for _ in range(3):
        take(None, Reconstruction(image, image, "zero_filled", {"maps": 2.0}, ("no noise",), doubts=("outside",)))
    assert not record.as_asked
    assert record.facts()["notes"] == {"outside": 3, "no noise": 3}
    for number in range(1000):
        take(None, Reconstruction(image, image, "cg_sense", notes=(f"note {number}",)))
    assert len(record.notes) < 100
    counts, total = server.totals().seconds["maps"]
    assert (sum(counts), total) == (3, 6.0)
    assert server.totals().slices == {"zero_filled": 3, "cg_sense": 1000}


def _wanted(name):
    return Configure(name=name, document="")


@pytest.mark.parametrize("names", [False, True])
def test_the_name_of_a_patient_is_kept_only_where_it_is_asked_for(names):
    text = HEADER.replace("</ismrmrdHeader>", "")
    text += "<subjectInformation><patientName>Doe^Jane</patientName></subjectInformation></ismrmrdHeader>"
    server, record = ServerRecord(names=names), ScanRecord("a peer")
    server.watch(record, parse_header(text), SessionOptions().configure(_wanted("cg_sense")), lambda: 0.0)
    assert record.facts()["patient"] == ("Doe^Jane" if names else "")
    assert ("Doe" in str(vars(record))) is names


def test_a_viewer_gets_every_slice():
    class Viewer:
        def __init__(self):
            self.seen = []

        def begin(self, scan, header):
            return lambda complete, made: self.seen.append((scan, complete.key.slice, made.image.shape[0]))

    viewer = Viewer()
    server = Resources(SessionOptions(), ServerRecord())
    server.scans.viewer = viewer
    assert server.scans is not Resources(SessionOptions()).scans
    record = ScanRecord("a peer")
    settings = SessionOptions().configure(_wanted("zero_filled"))
    header, engine = parse_header(HEADER), StubEngine()
    chain = Chain(header, settings, lambda: engine, watch=server.scans.watch(record, header, settings, lambda: 0.0))
    list(chain(iter(ITEMS)))
    assert viewer.seen == [(record.scan, number, FRAMES) for number in range(SLICES)]


def test_only_the_last_scans_are_kept():
    server = ServerRecord()
    records = [ScanRecord(f"peer {number}") for number in range(1000)]
    for record in records:
        server.begin(record)
        server.end(record)
    assert server.over[0] is records[-1]
    assert len(server.over) < 100
    assert server.totals().scans == {"done": 1000}


def test_times_are_counted_by_their_class():
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1] * 2):
        histogram.add(seconds)
    assert histogram.counts[:2] == [2, 1], "an upper end belongs to its class"
    assert histogram.counts[-1] == 1
    assert sum(histogram.counts) == 4
