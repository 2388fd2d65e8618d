"""Whatever a peer does wrong, it is told, complete slices come out, and the server is as good as new."""

import itertools
import logging
import struct
import threading

import numpy as np
import pytest

from gadgets.connection.session import SessionOptions
from gadgets.wire.messages import (
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Readouts,
    Text,
    Waveform,
)
from recon_core.errors import ModelError
from tests.helpers.builders import encoding_xml, header_xml, readouts, space_xml, waveform
from tests.helpers.peers import (
    CONFIGURATIONS,
    DOORS,
    FRAMES,
    SLICES,
    Peer,
    StubEngine,
    assert_whole_scan,
    expected_images,
    nothing_left,
    one_by_one,
    scan,
    serving,
    talk,
    talk_scan,
    wait_until,
    wire,
)

N_IMAGES = FRAMES * SLICES
NEXT_DOOR = itertools.cycle(DOORS)
HEADER, ITEMS = scan()
SINGLE = [item for item in one_by_one(ITEMS) if isinstance(item, Readouts)]
# all readouts of the first slice, and some of the second
N_FIRST = 1 + max(i for i, item in enumerate(SINGLE) if item.headers["idx"]["slice"][0] == 0)
ONE_SLICE = SINGLE[: N_FIRST + 5]


@pytest.fixture(scope="module")
def shared():
    with serving() as server:
        yield server


@pytest.fixture
def server(shared):
    """A server that serves the next scan and has nothing left over, whatever happened."""
    with nothing_left(shared):
        yield shared
        assert_whole_scan(shared, next(NEXT_DOOR))


def opening(door, header=HEADER):
    return [CONFIGURATIONS[door], Header(header)]


def assert_reported_to(answer, door, *words):
    """The peer was told as it wants it, once, and in words; CLOSE came last and the socket was closed in order."""
    complaints = answer.complaints(door)
    assert complaints
    assert all(word.lower() in " ".join(complaints).lower() for word in words), complaints
    assert "unexpected error" not in " ".join(complaints)
    assert answer.closed
    assert answer.ended


def first_slice(answer):
    """The first slice is as good as without all trouble."""
    return [wire(image) for image in answer.images[:FRAMES]] == expected_images()[:FRAMES]


# --- peers that go ----------------------------------------------------------------------------------------------------

CONFIG = {door: wire(CONFIGURATIONS[door]) for door in DOORS}
CUTS = {
    "before the configuration": lambda door: b"",
    "within an id": lambda door: b"\x01",
    "within the configuration": lambda door: CONFIG[door][:20],
    "between configuration and header": lambda door: CONFIG[door],
    "within the length of the header": lambda door: CONFIG[door] + wire(Header(HEADER))[:4],
    "within the header": lambda door: CONFIG[door] + wire(Header(HEADER))[:500],
    "after the header": lambda door: wire(*opening(door)),
    "within the first readout": lambda door: wire(*opening(door), *ITEMS)[: len(wire(*opening(door))) + 100],
    "within a readout": lambda door: wire(*opening(door), *ONE_SLICE)[:-100],
    "within a readout's header": lambda door: wire(*opening(door), *ONE_SLICE) + wire(SINGLE[0])[:7],
    "between two readouts": lambda door: wire(*opening(door), *ONE_SLICE),
    "before CLOSE": lambda door: wire(*opening(door), *ITEMS),
    "within CLOSE": lambda door: wire(*opening(door), *ITEMS, Close())[:-1],
}


@pytest.mark.parametrize("how", ["reset", "leave"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("door", DOORS)
def test_peer_that_is_gone(server, door, cut, how):
    peer = Peer(server.address)
    peer.send_bytes(CUTS[cut](door))
    if how == "reset":
        peer.reset()
    else:
        peer.socket.close()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("door", DOORS)
def test_half_closed_without_close(server, door, cut):
    """Who stops sending without CLOSE still gets the images of what came, and is told."""
    with Peer(server.address) as peer:
        peer.send_bytes(CUTS[cut](door))
        peer.end()
        answer = peer.collect()
    if not CUTS[cut](door):
        assert answer.messages == []  # it only looked if somebody listens
        return
    known = door if cut not in list(CUTS)[:3] else "client"  # who has not said what it is, is taken for a client
    assert_reported_to(answer, known, "no CLOSE")
    n_images = {"before CLOSE": N_IMAGES, "within CLOSE": N_IMAGES}
    partial = ("within a readout", "within a readout's header", "between two readouts")
    if cut in partial:
        assert len(answer.images) >= FRAMES
        assert first_slice(answer)
    else:
        assert len(answer.images) == n_images.get(cut, 0)


@pytest.mark.parametrize("how", ["reset", "leave"])
def test_peer_that_is_gone_while_its_slice_is_computed(how):
    peer_is_gone = threading.Event()
    engine = StubEngine(lambda number: number > 1 or peer_is_gone.wait(20))
    with serving(engine) as server:
        with nothing_left(server):
            peer = Peer(server.address)
            peer.send(*opening("client"), *ITEMS, Close())
            if how == "reset":
                peer.reset()
            else:
                peer.socket.close()
            peer_is_gone.set()
        assert_whole_scan(server)


# --- nonsense on the wire ---------------------------------------------------------------------------------------------


def readout_claiming(samples, coils, dimensions=0, flags=0):
    head = bytearray(wire(readouts(1, 1, 1)))[:342]
    struct.pack_into("<Q", head, 2 + 2, flags)
    struct.pack_into("<HHH", head, 2 + 34, samples, coils, coils)
    struct.pack_into("<H", head, 2 + 176, dimensions)
    return bytes(head)


GARBAGE = {
    "text of 4 GiB": (struct.pack("<HI", 5, 0xFFFFFFFF), ["4294967295", "believed"]),
    "question of 2**63": (struct.pack("<HQQQ", 6, 0, 1, 2**63), ["believed"]),
    "answer of 32 GiB": (struct.pack("<HQQ", 7, 1, 32 << 30), ["believed"]),
    "error of 2**64-1": (struct.pack("<HQ", 8, 2**64 - 1), ["believed"]),
    "configuration of 4 GiB": (struct.pack("<HI", 2, 0xFFFFFFFF), ["believed"]),
    "header of 4 GiB": (struct.pack("<HI", 3, 0xFFFFFFFF), ["believed"]),
    "readout of 32 GiB": (readout_claiming(65535, 65535), ["believed"]),
    "trajectory of 16 GiB": (readout_claiming(65535, 1, 65535), ["believed"]),
    "compressed readout": (readout_claiming(0, 0, flags=int(AcquisitionFlag.COMPRESSION_NHLBI.bit)), ["compress"]),
    "recon data of 2**63": (struct.pack("<HQ", 1023, 2**63), ["believed"]),
    "images of 2**63": (struct.pack("<HQQQ", 1024, 2, 2**62, 2), ["believed"]),
    "bucket of 32 GiB": (struct.pack("<H13Q", 1050, *[32 << 30] * 13), ["believed"]),
    "unknown id 0": (b"\0\0", ["unknown message id 0"]),
    "unknown id 65535": (b"\xff\xff", ["unknown message id 65535"]),
    "unknown id 1018": (struct.pack("<H", 1018) + b"x" * 100, ["unknown message id 1018"]),
    "array of 2**66": (struct.pack("<4H2Q", 1030, 8, 0, 2, 2**31, 2**31), ["believed"]),
    "array of 9 axes": (struct.pack("<4H9Q", 1030, 5, 0, 9, *[1] * 9), ["believed"]),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ["unknown message id"]),
    "TLS": (bytes.fromhex("16030100f8010000f40303") + bytes(200), ["unknown message id"]),
}
STAGES = {"first": 0, "after the configuration": 1, "after the header": 2}


# Every kind of nonsense comes first and amid the data; in between, where the same reader meets it, one of each sort.
IN_BETWEEN = {"text of 4 GiB", "readout of 32 GiB", "compressed readout", "unknown id 65535"}


@pytest.mark.parametrize(
    ("garbage", "stage"),
    [
        (garbage, stage)
        for garbage in GARBAGE
        for stage in ("first", *(list(STAGES)[1:] if garbage in IN_BETWEEN else []), "amid the data")
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_garbage(server, door, garbage, stage):
    stream, words = GARBAGE[garbage]
    amid = stage == "amid the data"
    before = [*opening(door), *ONE_SLICE] if amid else opening(door)[: STAGES[stage]]
    answer = talk(server, *before, tail=stream + wire(*ITEMS))
    assert_reported_to(answer, "client" if stage == "first" else door, *words)
    if amid:
        assert len(answer.images) >= FRAMES
        assert first_slice(answer)


def test_random_bytes(server):
    generator = np.random.default_rng(0)
    for _ in range(20):
        answer = talk(server, tail=generator.bytes(3000), end=True)
        assert answer.complaints("client")
        assert answer.closed


def test_random_bytes_after_the_header(server):
    generator = np.random.default_rng(1)
    for door in DOORS * 10:
        answer = talk(server, *opening(door), *ONE_SLICE, tail=generator.bytes(3000), end=True)
        assert answer.complaints(door)
        assert first_slice(answer)
        assert answer.closed


def test_flipped_bits(server):
    """A stream with a few wrong bytes anywhere ends with CLOSE."""
    generator = np.random.default_rng(2)
    for door in DOORS * 10:
        stream = bytearray(wire(*opening(door), *ITEMS, Close()))
        for place in generator.integers(0, len(stream), 5):
            stream[place] = generator.integers(0, 256)
        answer = talk(server, tail=bytes(stream), end=True)
        assert answer.closed


# --- messages in the wrong place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [Header(HEADER), SINGLE[0], Image(np.zeros((), "V0"), None)][:2], ids=type)
def test_before_the_configuration(server, message):
    answer = talk(server, message, *ITEMS, Close())
    assert_reported_to(answer, "client", "expected a configuration", type(message).__name__)


@pytest.mark.parametrize("second", [ConfigFile("cg_sense"), ConfigText("<configuration/>"), SINGLE[0]], ids=type)
@pytest.mark.parametrize("door", DOORS)
def test_after_the_configuration(server, door, second):
    answer = talk(server, CONFIGURATIONS[door], second, Header(HEADER), *ITEMS, Close())
    assert_reported_to(answer, door, "expected the scan header", type(second).__name__)


@pytest.mark.parametrize("door", DOORS)
def test_close_instead_of_the_header(server, door):
    answer = talk(server, CONFIGURATIONS[door], Close())
    assert answer.messages == [Close()]
    assert answer.ended


@pytest.mark.parametrize(
    "stray", [ConfigFile("cg_sense"), Header(HEADER), Text('{"parameters": {"series": 3}}')], ids=type
)
@pytest.mark.parametrize("door", DOORS)
def test_strays_amid_the_data_change_nothing(server, door, stray):
    answer = talk(server, *opening(door), *ITEMS[:4], stray, *ITEMS[4:], stray, Close())
    assert answer.complaints(door) == []
    assert [wire(image) for image in answer.images] == expected_images()
    if not isinstance(stray, Text) and door == "client":
        assert any(type(stray).__name__ in text for text in answer.texts)


# --- headers ----------------------------------------------------------------------------------------------------------

HEADERS = {
    "empty": ("", ["header"]),
    "no XML": ("matrix: 64", ["XML"]),
    "another document": ("<html/>", ["ismrmrdHeader"]),
    "no encoding": (header_xml("<!-- -->"), ["encoding"]),
    "EPI": (header_xml(trajectory="epi"), ["epi trajectory"]),
    "3-D": (header_xml(encoded=(64, 48, 8), recon=(64, 48, 8)), ["partitions", "2-D"]),
    "DTD": ('<!DOCTYPE x [<!ENTITY a "b">]>' + header_xml().split("?>")[1], ["DTD"]),
    "billion laughs": (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><ismrmrdHeader>&b;</ismrmrdHeader>',
        ["DTD"],
    ),
    "huge matrix": (header_xml(encoded=(10**9, 10**9, 1)), ["4096"]),
    "matrix of nothing": (header_xml(encoded=(0, 0, 1)), ["1 to 4096"]),
    "matrix in words": (header_xml().replace("<x>32</x>", "<x>wide</x>"), ["number", "wide"]),
    "no encoded space": (header_xml(encoding_xml().replace("encodedSpace", "oddSpace")), ["encodedSpace"]),
    "not UTF-8": ("\udcff", ["XML"]),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("door", DOORS)
def test_headers_that_cannot_be_used(server, door, name):
    text, words = HEADERS[name]
    raw = text.encode("utf-8", "surrogateescape")
    stream = wire(CONFIGURATIONS[door]) + struct.pack("<HI", 3, len(raw)) + raw
    assert_reported_to(talk(server, tail=stream + wire(*ITEMS, Close())), door, *words)


def test_space_builder_is_what_the_reader_takes():
    assert "<x>32</x>" in space_xml("encodedSpace", (32, 16, 1), (1, 1, 1))


# --- readouts ---------------------------------------------------------------------------------------------------------


def spoiled(spoil, which=slice(N_FIRST + 3, N_FIRST + 4)):
    """The scan with some readouts of the second slice spoiled."""
    items = list(one_by_one([item for item in ITEMS if isinstance(item, Readouts)]))
    items[which] = [spoil(item) for item in items[which]]
    return items


def with_value(value):
    def spoil(item):
        item.data[0, 1, 2] = value
        return item

    return spoil


def with_counter(**counters):
    def spoil(item):
        for name, value in counters.items():
            item.headers["idx"][name] = value
        return item

    return spoil


def with_field(**values):
    def spoil(item):
        for name, value in values.items():
            item.headers[name] = value
        return item

    return spoil


BAD_READOUTS = {
    "NaN": (with_value(np.nan), ["not finite"]),
    "infinite": (with_value(np.inf), ["not finite"]),
    "fewer coils": (lambda item: Readouts(item.headers, item.data[:, :3]), ["3 coils", "expected 4"]),
    "no coils": (lambda item: Readouts(item.headers, item.data[:, :0]), ["no samples"]),
    "more coils": (lambda item: Readouts(item.headers, np.tile(item.data, (1, 3, 1))), ["12 coils", "expected 4"]),
    "fewer samples": (lambda item: Readouts(item.headers, item.data[:, :, :9]), ["9 samples", "expected 128"]),
    "more samples": (lambda item: Readouts(item.headers, np.tile(item.data, 2)), ["256 samples", "expected 128"]),
    "no samples": (lambda item: Readouts(item.headers, item.data[:, :, :0]), ["no samples"]),
    "all discarded": (with_field(discard_pre=65535, discard_post=65535), ["no samples"]),
    "line": (with_counter(kspace_encode_step_1=60000), ["line 60000"]),
    "slice": (with_counter(slice=60000), ["slice 60000"]),
    "frame": (with_counter(phase=60000), ["60000"]),
    "repetition": (with_counter(repetition=60000), ["repetition 60000"]),
    "encoding": (with_field(encoding_space_ref=7), ["encoding 7"]),
}


@pytest.mark.parametrize("kind", BAD_READOUTS)
@pytest.mark.parametrize("door", DOORS)
def test_a_bad_readout(server, door, kind):
    spoil, words = BAD_READOUTS[kind]
    answer = talk(server, *opening(door), *spoiled(spoil), Close())
    assert_reported_to(answer, door, *words)
    assert first_slice(answer)
    assert len(answer.images) >= N_IMAGES - 1
    assert all(np.isfinite(image.data).all() for image in answer.images)


@pytest.mark.parametrize("kind", BAD_READOUTS)
def test_all_readouts_of_a_slice_bad(server, kind):
    spoil, words = BAD_READOUTS[kind]
    answer = talk(server, *opening("client"), *spoiled(spoil, slice(N_FIRST, None)), Close())
    believed = kind in {
        "slice",
        "repetition",
    }  # that the header forgot, when all of it comes; so images are numbered anew
    assert_reported_to(answer, "client", *(["never came"] if believed else words))
    if believed:
        own = [image for image in answer.images if not image.header["slice"] and not image.header["repetition"]]
        for image, expected in zip(own, expected_images()[:FRAMES], strict=True):
            pixels = np.frombuffer(expected[-image.data.nbytes :], image.data.dtype)
            np.testing.assert_allclose(image.data.ravel(), pixels, atol=2e-3 * pixels.max())  # scaled by another slice
    else:
        assert first_slice(answer)
    assert all(np.isfinite(image.data).all() for image in answer.images)


@pytest.mark.parametrize("door", DOORS)
def test_tenth_of_the_readouts_bad(server, door):
    items = list(one_by_one([item for item in ITEMS if isinstance(item, Readouts)]))
    for item in items[40::10]:
        item.data[:] = np.nan
    answer = talk(server, *opening(door), *items, Close())
    assert_reported_to(answer, door, "not finite", "such cases")
    assert len(answer.images) == N_IMAGES


@pytest.mark.parametrize("items", [[], [Text("hello")]], ids=["nothing", "text"])
@pytest.mark.parametrize("door", DOORS)
def test_no_image_readouts(server, door, items):
    assert_reported_to(talk(server, *opening(door), *items, Close()), door, "no image")


@pytest.mark.parametrize("door", DOORS)
def test_noise_alone_is_no_error(server, door):
    answer = talk(server, *opening(door), ITEMS[0], Close())
    assert answer.complaints(door) == answer.images == []
    assert answer.closed


@pytest.mark.parametrize("door", DOORS)
def test_noise_of_a_stream_that_broke_is_one(server, door):
    answer = talk(server, *opening(door), ITEMS[0], end=True)
    assert_reported_to(answer, door, "no image")


@pytest.mark.parametrize("door", DOORS)
def test_scan_that_ends_early(server, door):
    answer = talk(server, *opening(door), *SINGLE[: N_FIRST - 9], Close())
    assert_reported_to(answer, door, "1 of the slices", "ended early")
    assert len(answer.images) == FRAMES


@pytest.mark.parametrize("door", DOORS)
def test_scan_that_ends_between_slices(server, door):
    """As far as the stream shows the limits of the header are too large, and nothing is lost."""
    answer = talk(server, *opening(door), *SINGLE[:N_FIRST], Close())
    assert answer.complaints(door) == []
    assert any("1 of the slices" in text for text in answer.texts) is (door == "client")
    assert len(answer.images) == FRAMES
    assert first_slice(answer)


@pytest.mark.parametrize("door", DOORS)
def test_readouts_in_any_order(server, door):
    """All slices, frames and lines mixed: nothing is lost but what cannot be known is told, if anything."""
    mixed = [SINGLE[i] for i in np.random.default_rng(0).permutation(len(SINGLE))]
    answer = talk(server, *opening(door), *mixed, Close())
    answer.complaints(door)
    assert answer.closed
    assert len(answer.images) >= N_IMAGES


# --- configurations ---------------------------------------------------------------------------------------------------


def external(execute='<execute name="gadgets.external" target="reconstruct" type="python"/>', inside=""):
    return f"<configuration><version>2</version><stream><external>{execute}{inside}</external></stream></configuration>"


BAD_CONFIGURATIONS = {
    "unknown name": (ConfigFile("no_such"), ["no_such", "cinestream pipelines lists all"]),
    "no name": (ConfigFile(""), ["name"]),
    "path": (ConfigFile("../pipelines/cg_sense.xml"), ["path parts"]),
    "absolute path": (ConfigFile("/etc/passwd"), ["path parts"]),
    "backslashes": (ConfigFile("..\\cg_sense"), ["path parts"]),
    "dots": (ConfigFile(".."), ["path parts"]),
    "module of Python": (ConfigText("os"), ["no pipeline 'os'"]),
    "another module": (ConfigText(external('<execute name="os" target="system"/>')), ["os", "system"]),
    "another target": (ConfigText(external('<execute name="gadgets.external" target="exit"/>')), ["exit"]),
    "neither": (ConfigText(external("")), ["execute", "connect"]),
    "C++ gadgets": (
        ConfigText("<configuration><stream><gadget><classname>Fft</classname></gadget></stream></configuration>"),
        ["Fft"],
    ),
    "legacy": (ConfigText("<gadgetronStreamConfiguration/>"), ["version-2"]),
    "unknown setting": (ConfigText(external(inside="<configuration><spin>1</spin></configuration>")), ["spin"]),
    "no XML": (ConfigText("<configuration"), ["XML"]),
    "entities": (ConfigText('<!DOCTYPE x [<!ENTITY a "b">]><configuration>&a;</configuration>'), ["entities"]),
    "external entity": (
        ConfigText('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><configuration>&a;</configuration>'),
        ["entities"],
    ),
}
BAD_NODES = {
    "unknown setting": ("<configuration><spin>1</spin></configuration>", ["spin"]),
    "ill-typed": ("<configuration><iterations>many</iterations></configuration>", ["iterations", "whole number"]),
    "too small": ('<configuration iterations="-1"/>', ["iterations", "from 1 to 1000"]),
    "unknown method": ("<configuration><method>magic</method></configuration>", ["magic"]),
    "nested": ("<configuration><a><b/></a></configuration>", ["setting"]),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_configurations_that_cannot_be_used(server, name):
    config, words = BAD_CONFIGURATIONS[name]
    assert_reported_to(talk(server, config, Header(HEADER), *ITEMS, Close()), "client", *words)


@pytest.mark.parametrize("name", BAD_NODES)
def test_nodes_of_a_gadgetron_that_cannot_be_used(server, name):
    text, words = BAD_NODES[name]
    assert_reported_to(talk(server, ConfigText(text), Header(HEADER), *ITEMS, Close()), "gadgetron", *words)


def test_name_that_is_no_text(server):
    stream = b"\x01\x00" + bytes(range(1, 256)).ljust(1024, b"\xff")
    assert_reported_to(talk(server, tail=stream + wire(Header(HEADER), *ITEMS, Close())), "client", "name")


@pytest.mark.parametrize("parameters", ['{"config": "no_such"}', '{"customconfig": "../x"}', '{"config": ["a"]}'])
def test_json_parameters_that_name_no_pipeline(server, parameters):
    text = Text(f'{{"parameters": {parameters}}}')
    assert_reported_to(talk(server, *opening("client"), text, *ITEMS, Close()), "client", "pipeline")


def test_pipeline_file_of_the_operator_that_cannot_be_read(tmp_path):
    (tmp_path / "mine.xml").mkdir()
    with serving(options=SessionOptions(pipelines=(tmp_path,))) as server:
        answer = talk_scan(server)
    assert answer.closed
    assert answer.complaints("client")


# --- the engine -------------------------------------------------------------------------------------------------------

FAILURES = [ModelError("weights lost"), MemoryError("too large"), OSError(5, "disk lost"), ZeroDivisionError("oh")]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("door", DOORS)
def test_slice_that_fails(door, failure, failing):
    def fail(number):
        if number == failing:
            raise failure

    with serving(StubEngine(fail)) as server, nothing_left(server):
        answer = talk_scan(server, door)
        assert answer.closed
        assert answer.ended
        (complaint,) = answer.complaints(door)
        assert f"slice {failing - 1}" in complaint
        assert str(failure.args[-1]) in complaint
        assert {int(image.header["slice"]) for image in answer.images} == {2 - failing}
        assert len(answer.images) == FRAMES
        assert_whole_scan(server, door)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("door", DOORS)
def test_engine_that_cannot_be_made(door, failure):
    def no_engine():
        raise failure

    with serving() as server:
        good, server._engine = server._engine, no_engine
        answer = talk_scan(server, door)
        assert answer.closed
        assert answer.images == []
        complaints = answer.complaints(door)
        assert str(failure.args[-1]) in complaints[0]
        assert any("no image" in complaint for complaint in complaints)
        server._engine = good
        assert_whole_scan(server, door)


def test_reconstruction_of_the_wrong_shape():
    class Odd(StubEngine):
        def reconstruct(self, cine, options):
            made = super().reconstruct(cine, options)
            return type(made)(made.image[:, :3, :3].repeat(2, axis=0), made.maps, made.method)

    with serving(Odd()) as server:
        answer = talk_scan(server)
    assert answer.closed
    assert answer.complaints("client")


# --- peers that are slow, or do not listen ----------------------------------------------------------------------------

MUCH = 50 << 20


@pytest.mark.parametrize("what", ["readouts", "bytes"])
@pytest.mark.parametrize("door", DOORS)
def test_peer_that_goes_on_sending_gets_the_error(server, door, what):
    """No reset takes away what the peer was told, however much it has still to send."""
    bad = ConfigFile("no_such") if door == "client" else ConfigText("<configuration><spin>1</spin></configuration>")
    block = wire(readouts(256, 4, 128))
    much = block * (MUCH // len(block)) + wire(Close())
    if what == "bytes":
        much = b"\xff\xff" + much
    with Peer(server.address) as peer:
        peer.send(bad)
        peer.send_bytes(much)  # reads nothing meanwhile; an error here is a reset
        peer.end()
        answer = peer.collect()
    assert_reported_to(answer, door, "no_such" if door == "client" else "spin")


def test_broken_stream_of_a_peer_that_goes_on_sending(server):
    with Peer(server.address) as peer:
        peer.send(*opening("client"), *ONE_SLICE)
        peer.send_bytes(b"\xff\xff" + bytes(MUCH))
        answer = peer.collect()
    assert_reported_to(answer, "client", "unknown message id")
    assert first_slice(answer)


def test_peer_that_waits_for_the_end_of_our_stream(server):
    """Out of step, the server cannot see a CLOSE any more; its own end shows at once all the same."""
    with Peer(server.address) as peer:
        peer.send_bytes(b"\xff\xff")
        peer.socket.settimeout(5.0)  # shorter than the server waits for silence
        assert_reported_to(peer.collect(), "client", "unknown message id")


def test_peer_that_never_reads_holds_up_nobody_else():
    """What it is sent does not fit into the buffers of its socket: its session stands still, the others go on."""
    waves = [waveform(4, 2500, seed=i) for i in range(10)] * 50  # 20 MB, handed through
    with serving() as server, Peer(server.address, receive_buffer=4096) as deaf:
        deaf.send(*opening("gadgetron"), *waves, *ITEMS, Close())
        for door in DOORS:
            assert_whole_scan(server, door)
        assert server._sessions
        server.stop(0.1)
        wait_until(lambda: not server._sessions)


def test_peer_that_reads_late_gets_everything(server):
    waves = [waveform(4, 2500, seed=i) for i in range(10)] * 50
    with Peer(server.address, receive_buffer=4096) as late:
        late.send(*opening("gadgetron"), *waves, *ITEMS, Close())
        assert_whole_scan(server)
        answer = late.collect()
    assert answer.complaints("gadgetron") == []
    assert len(answer.waveforms) == len(waves) + sum(isinstance(item, Waveform) for item in ITEMS)
    assert [wire(image) for image in answer.images] == expected_images()
    assert answer.ended


def test_byte_by_byte(server):
    """Slow, but not wrong."""
    answer = None
    with Peer(server.address) as peer:
        peer.send_bytes(wire(*opening("client"), Text("hello")), 1)
        for item in SINGLE[:3]:
            peer.send_bytes(wire(item), 1)
        peer.send(*SINGLE[3:], Close())
        answer = peer.collect()
    assert answer.complaints("client") == []
    assert [wire(image) for image in answer.images] == expected_images()


def test_bytes_after_close(server):
    answer = talk(server, *opening("client"), *ITEMS, Close(), tail=b"more" * 1000)
    assert answer.complaints("client") == []
    assert len(answer.images) == N_IMAGES
    assert answer.closed


# --- texts of peers ---------------------------------------------------------------------------------------------------

_EVIL = "\x1b[2J\nERROR forged\r\u202e"


@pytest.mark.parametrize(
    "said",
    [
        [Text(_EVIL)],
        [ConfigFile(_EVIL)],
        [ConfigText(f"<{_EVIL}")],
        [CONFIGURATIONS["client"], Header(_EVIL)],
        [CONFIGURATIONS["client"], Header(HEADER), Text(f'{{"parameters": {{"{"a" * 5}\\u001b[2J\\nERROR": 1}}}}')],
        [
            ConfigText(
                "<configuration><stream><gadget><classname>&#10;ERROR forged</classname></gadget></stream>"
                "</configuration>"
            )
        ],
        [CONFIGURATIONS["client"], Header(header_xml(trajectory="&#10;ERROR forged&#133;")), readouts(4)],
        [CONFIGURATIONS["client"], Header(HEADER), Text(_EVIL), *ITEMS[:3], Text(_EVIL)],
    ],
    ids=range(8),
)
def test_texts_of_a_peer_forge_no_lines_of_the_log(server, said, caplog):
    with caplog.at_level(logging.DEBUG, "cinestream"):
        talk(server, *said, Close())
    assert caplog.records
    for record in caplog.records:
        shown = logging.Formatter("%(message)s").format(record)
        assert shown.isprintable(), shown


# --- values that make no image ----------------------------------------------------------------------------------------


def values(**changes):
    """The scan with its readouts changed by kind: those of noise, and the others."""
    for item in ITEMS:
        if isinstance(item, Readouts):
            data, is_noise = item.data.copy(), item.flagged(AcquisitionFlag.NOISE)
            for name, which in (("noise", is_noise), ("image", ~is_noise)):
                data[which] = changes.get(name, lambda found: found)(data[which])
            yield Readouts(item.headers.copy(), data)
        else:
            yield item


@pytest.mark.parametrize(
    ("changes", "words", "images"),
    [
        ({"image": lambda data: 0 * data}, "are black: its readouts hold nothing but zeros", N_IMAGES),
        ({"noise": lambda data: data * np.nan}, "noise readouts hold values that are not finite", N_IMAGES),
        ({"image": lambda data: data * np.float32(1e20)}, "that no receiver gives", 0),
        ({"image": lambda data: data * np.float32(1e-36)}, "that no receiver gives", 0),
        ({"noise": lambda data: data * np.float32(1e-18)}, "weaker than the image readouts", N_IMAGES),
    ],
    ids=["zeros", "NaN noise", "huge", "tiny", "noise of nothing"],
)
def test_values_that_make_no_image_are_said(server, changes, words, images):
    answer = talk_scan(server, items=list(values(**changes)))
    assert any(words in text for text in answer.texts), answer.texts
    assert len(answer.images) == images
    assert all(np.isfinite(image.data).all() for image in answer.images)
