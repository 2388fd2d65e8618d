import contextlib
import dataclasses
import json
import logging
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.connection.server import SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.connection.spool import Spool
from gadgets.files.raw import open_scan, write_scan
from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import Settings
from gadgets.wire.header import parse_header
from gadgets.wire.messages import (
    AcquisitionFlag,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Query,
    Readouts,
    Text,
    Waveform,
    flag_mask,
)
from recon_core import turns
from recon_core.stopping import check
from tests.helpers.builders import readouts, waveform
from tests.helpers.networks import write_tiny_weights
from tests.helpers.peers import (
    BARE,
    CONFIGURATIONS,
    DOORS,
    FRAMES,
    SLICES,
    Peer,
    StubEngine,
    assert_whole_scan,
    expected_images,
    images_of,
    one_by_one,
    scan,
    serving,
    talk,
    talk_scan,
    wait_until,
    wire,
)

N_IMAGES = FRAMES * SLICES
FULL = Path("/dev/full")
OPTIONS = SessionOptions(aliases={"openrecon": "zero_filled"})


@pytest.fixture(scope="module")
def server():
    with serving(options=OPTIONS) as running:
        yield running


def bytes_of(images):
    return [wire(image) for image in images]


def assert_good(answer, door="client", images=None):
    assert answer.complaints(door) == []
    assert answer.closed
    assert answer.ended
    assert bytes_of(answer.images) == (expected_images() if images is None else bytes_of(images))


def whole(name):
    return list_pipelines()[name].text


# --- doors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "door"),
    [
        (ConfigFile("openrecon"), "client"),
        (ConfigText("zero_filled"), "client"),
        (ConfigText(whole("zero_filled")), "client"),
        (ConfigText(BARE), "gadgetron"),
    ],
)
def test_configurations_that_lead_to_the_same_images(server, config, door):
    header, items = scan()
    answer = talk(server, config, Header(header), *items, Close())
    assert_good(answer, door)
    n_waveforms = sum(isinstance(item, Waveform) for item in items)
    assert n_waveforms
    assert len(answer.waveforms) == (n_waveforms if door == "gadgetron" else 0)


def test_texts_with_nul(server):
    """FIRE's sender ends texts with a NUL and counts it."""
    header, items = scan()
    texts = ConfigText("zero_filled\0"), Header(header + "\0"), Text('{"parameters": {"series": 7}}\0')
    answer = talk(server, *texts, *items, Close())
    assert_good(answer, images=images_of(header, items, series=7))


def test_configuration_name_fills_its_field(server):
    header, items = scan()
    config = b"\x01\x00" + b"zero_filled".ljust(1024, b"\0")
    with Peer(server.address) as peer:
        peer.send_bytes(config + wire(Header(header), *items, Close()))
        assert_good(peer.collect())


@pytest.mark.parametrize("version", [8])
@pytest.mark.parametrize("door", DOORS)
def test_header_of_any_version(server, door, version):
    header, items = scan()
    root = header.index(">", header.index("<ismrmrdHeader")) + 1
    header = f"{header[:root]}<version>{version}</version>{header[root:]}"
    assert_good(talk(server, CONFIGURATIONS[door], Header(header), *items, Close()), door)


def test_waveforms_reach_a_gadgetron_unchanged(server):
    header, _ = scan()
    waves = [waveform(seed=i, time_stamp=1000 + i) for i in range(3)]
    items = [waves[0], *scan()[1], waves[1], waves[2]]
    answer = talk(server, CONFIGURATIONS["gadgetron"], Header(header), *items, Close())
    assert_good(answer, "gadgetron")
    assert bytes_of(answer.waveforms) == bytes_of(item for item in items if isinstance(item, Waveform))


def test_overrides_of_the_operator_hold():
    options = SessionOptions(overrides={"output": "complex", "series": "9"})
    header, items = scan()
    parameters = Text('{"parameters": {"series": 3, "description": "mine"}}')
    with serving(options=options) as server:
        answer = talk(server, ConfigFile("zero_filled"), Header(header), parameters, *items, Close())
    assert_good(answer, images=images_of(header, items, output="complex", series=9, description="mine"))


@pytest.mark.parametrize("real_time", [True, False])
def test_a_scan_in_real_time_is_urgent(real_time):
    seen = []
    engine = StubEngine(lambda _: seen.append(turns._share.get().urgent))
    engine.coil_maps = lambda source, **_: (np.ones(source.shape, np.complex64), [])
    header, items = scan()
    parameters = Text(json.dumps({"parameters": {"realtime": "fixed" if real_time else "off", "realtime_window": 2}}))
    with serving(engine) as server:
        talk(server, ConfigFile("zero_filled"), Header(header), parameters, *one_by_one(items), Close())
    assert len(seen) >= 2
    assert set(seen) == {real_time}


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
@pytest.mark.parametrize("method", ["zero_filled", "cg_sense"])
def test_file_and_every_door_give_the_same_bytes(method, order, tmp_path):
    engine = SharedEngine()()
    header, items = scan(order)
    write_scan(tmp_path / "scan.h5", header, items)
    with open_scan(tmp_path / "scan.h5") as raw:
        chain = Chain(parse_header(raw.header), Settings.of(method=method), lambda: engine)
        images = [item for item in chain(raw.items) if isinstance(item, Image)]
    assert len(images) == N_IMAGES
    assert not chain.summary.problems.damage
    bare = ConfigText(f"<configuration><method>{method}</method></configuration>")
    doors = [(ConfigFile(method), "client"), (ConfigText(whole(method)), "client"), (bare, "gadgetron")]
    with serving(engine) as server:
        for config, door in doors:
            assert_good(talk(server, config, Header(header), *items, Close()), door, images)


@pytest.mark.parametrize("piece", [1, 333, 4095, 100_001])
def test_images_do_not_depend_on_how_the_stream_is_cut(server, piece):
    header, items = scan()
    items = items if piece > 1 else [item for item in items if isinstance(item, Readouts)][:2]
    stream = wire(CONFIGURATIONS["client"], Header(header), *items, Close())
    if piece == 1:
        stream = stream[:60_000] + wire(Close())  # breaks within a readout; a byte at a time takes its time
    with Peer(server.address) as peer:
        sender = threading.Thread(target=peer.send_bytes, args=(stream, piece))
        sender.start()
        if piece == 1:
            sender.join()
            peer.end()
        answer = peer.collect()
        sender.join()
    if piece > 1:
        assert_good(answer)
    else:
        assert answer.closed
        assert answer.complaints("client")


# --- questions and texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before the configuration", "amid", "last"])
def test_questions_are_answered_anywhere(server, place):
    header, items = scan()
    opening = [ConfigFile("zero_filled"), Header(header)]
    at = {"before the configuration": 0, "amid": 4}.get(place)
    messages = [*opening, *items]
    questions = [Query(2**63, "gadgetron::version"), Query(5, "ismrmrd::version"), Query(6, "no::such")]
    messages[len(messages) if at is None else at : 0] = questions
    if at is None:
        messages = [*opening, *items, *questions]
    answer = talk(server, *messages, Close())
    assert_good(answer)
    assert answer.texts == []
    assert answer.answers[2**63].startswith("cinestream ")
    assert answer.answers[5][0].isdigit()
    assert answer.answers[6] == "Unknown query"


@pytest.mark.parametrize("name", ["cinestream::version", "gadgetron::info"])
def test_only_a_question(server, name):
    answer = talk(server, Query(1, name), Close())
    assert answer.answers.keys() == {1}
    assert answer.closed
    assert answer.ended
    assert answer.texts == []


def test_close_at_once(server):
    answer = talk(server, Close())
    assert answer.messages == [Close()]
    assert answer.ended


def test_json_parameters_change_settings(server):
    header, items = scan()
    parameters = Text(json.dumps({"parameters": {"Output": "complex", "SERIES": "4", "customconfig": ""}}))
    answer = talk(server, ConfigFile("zero_filled"), Header(header), parameters, *items, Close())
    assert_good(answer, images=images_of(header, items, output="complex", series=4))
    assert answer.texts == []


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"Flux": 1, "wibble": "x", "series": 2}, ("Flux", "wibble")),
        ({"series": "many"}, ("series", "whole number", "kept")),
    ],
)
def test_json_parameters_that_do_not_fit_are_named(server, parameters, named):
    header, items = scan()
    text = Text(json.dumps({"parameters": parameters}))
    answer = talk(server, ConfigFile("zero_filled"), Header(header), text, *items, Close())
    assert_good(answer, images=images_of(header, items, series=2 if parameters.get("series") == 2 else 1))
    (warning,) = answer.texts
    assert warning.startswith("WARNING ")
    assert all(word in warning for word in named)


@pytest.mark.parametrize(
    "text", ['{"parameters": {"\\ud800": "\\udfff"}}', '{"parameters": {"series": 3}', '{"parameters": 3}']
)
def test_parameters_that_cannot_be_read_are_told(server, text):
    header, items = scan()
    answer = talk(server, CONFIGURATIONS["client"], Header(header), Text(text), *items, Close())
    assert_good(answer, "client")
    (warning,) = answer.texts
    assert warning.startswith('WARNING the parameters are not used: expected {"parameters": {"name": value}}, got ')


@pytest.mark.parametrize("text", ["hello", '{"other": {}}'])
@pytest.mark.parametrize("door", DOORS)
def test_other_text_changes_nothing(server, door, text):
    header, items = scan()
    said = Text(text.encode("utf-8", "replace").decode())
    messages = [said, CONFIGURATIONS[door], said, Header(header), said, *items[:3], said, *items[3:], said, Close()]
    answer = talk(server, *messages)
    assert_good(answer, door)
    assert answer.texts == []


def test_json_parameters_amid_the_data_change_nothing(server):
    header, items = scan()
    late = Text('{"parameters": {"series": 9}}')
    assert_good(talk(server, ConfigFile("zero_filled"), Header(header), *items[:3], late, *items[3:], Close()))


# --- the queue and the overlap ----------------------------------------------------------------------------------------


def in_background(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["readouts", "images", "texts"])
def test_whatever_waits_is_bounded(kind):
    """While a slice is computed no more than the limit is taken in, whatever kind of message it is."""
    release = threading.Event()
    engine = StubEngine(lambda _: release.wait(20))
    header, items = scan()
    image = images_of(header, items)[0]
    large = dataclasses.replace(image, data=np.zeros((1, 1, 1024, 1024), np.float32))
    flood = {
        "readouts": readouts(250, 4, 128, flags=[AcquisitionFlag.DUMMY]),
        "images": large,
        "texts": Text("x" * 10**6),
    }
    with serving(engine, SessionOptions(queue_bytes=1 << 20)) as server, Peer(server.address) as peer:
        peer.send(CONFIGURATIONS["client"], Header(header), *items)

        def send_flood():
            for _ in range(64):
                peer.send(flood[kind])
            peer.send(Close())

        thread = in_background(send_flood)
        thread.join(1.0)
        assert thread.is_alive()
        release.set()
        answer = peer.collect()
        thread.join(10)
    assert bytes_of(answer.images) == expected_images()
    assert answer.closed


def test_sender_is_never_held_up_by_the_reconstruction():
    everything_sent = threading.Event()
    seen = []
    engine = StubEngine(lambda number: seen.append(everything_sent.wait(20) if number == 1 else True))
    header, items = scan()
    idle = readouts(256, 4, 128, flags=[AcquisitionFlag.DUMMY])
    with serving(engine) as server, Peer(server.address) as peer:
        peer.send(CONFIGURATIONS["client"], Header(header), *items)
        for _ in range(64):  # far more than the buffers of a socket hold
            peer.send(idle)
        peer.send(Close())
        everything_sent.set()
        assert_good(peer.collect())
    assert seen == [True, True]


@pytest.mark.parametrize("door", DOORS)
def test_first_slice_of_interleaved_scan_comes_before_the_last_readout(server, door):
    header, items = scan("interleaved")
    messages = list(one_by_one(items))
    with Peer(server.address) as peer:
        peer.send(CONFIGURATIONS[door], Header(header), *messages[:-1])
        early = peer.collect(Image, FRAMES).images
        assert {int(image.header["slice"]) for image in early} == {0}
        assert len(early) == FRAMES
        peer.send(messages[-1], Close())
        answer = peer.collect()
    assert answer.complaints(door) == []
    assert bytes_of(answer.images) == expected_images("interleaved")
    assert {int(image.header["slice"]) for image in answer.images[FRAMES:]} == {1}


def test_images_go_out_while_the_next_slice_is_computed():
    heard = threading.Event()
    engine = StubEngine(lambda number: number == 1 or heard.wait(20))
    header, items = scan()
    with serving(engine) as server, Peer(server.address) as peer:
        peer.send(CONFIGURATIONS["client"], Header(header), *items, Close())
        assert len(peer.collect(Image, FRAMES).images) == FRAMES
        heard.set()
        assert_good(peer.collect())


# --- the raw stream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_raw_stream_is_what_was_sent(door, tmp_path):
    header, items = scan()
    messages = [CONFIGURATIONS[door], Header(header), Text("hello"), *items, Close()]
    with serving(options=SessionOptions(save_raw=tmp_path / "raw")) as server:
        assert_good(talk(server, *messages), door)
        talk(server, CONFIGURATIONS[door], Header(header), tail=b"\xff\xffrubbish that nobody understands", end=True)
    first, second = sorted((tmp_path / "raw").iterdir(), key=lambda path: -path.stat().st_size)
    assert first.read_bytes() == wire(*messages)
    assert second.read_bytes() == wire(*messages[:2]) + b"\xff\xffrubbish that nobody understands"
    with open_scan(first) as raw:
        assert bytes_of(images_of(raw.header, raw.items)) == expected_images()


def test_a_slice_that_takes_long_is_in_the_log_meanwhile(caplog, monkeypatch):
    monkeypatch.setattr("gadgets.chain.LONG_SECONDS", 0.15)

    def take_long(_):
        for _ in range(3):
            time.sleep(0.11)
            check()

    with caplog.at_level(logging.INFO, "cinestream"), serving(StubEngine(take_long)) as server:
        assert_whole_scan(server)
    lines = [record.getMessage() for record in caplog.records if "still being reconstructed" in record.getMessage()]
    assert {line.split(" with ")[0] for line in lines} == {"slice 0", "slice 1"}


def test_who_only_asks_or_looks_leaves_no_raw_stream_and_no_error(tmp_path, caplog):
    """A health check comes twice a minute for years."""
    with caplog.at_level(logging.INFO, "cinestream"), serving(options=SessionOptions(save_raw=tmp_path)) as server:
        with Peer(server.address):
            pass
        assert talk(server, Query(1, "cinestream::version"), Close()).answers
        wait_until(lambda: not server._sessions)
    assert list(tmp_path.iterdir()) == []
    assert "without a request" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("door", DOORS)
def test_folder_that_cannot_be_written_does_not_stop_the_scan(door, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with serving(options=SessionOptions(save_raw=tmp_path / "file" / "raw")) as server:
        answer = talk_scan(server, door)
    assert bytes_of(answer.images) == expected_images()
    assert answer.closed
    (complaint,) = answer.complaints(door)
    assert "raw" in complaint


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("door", DOORS)
def test_full_disk_does_not_stop_the_scan(door, tmp_path, monkeypatch):
    spools = []
    engine = StubEngine(lambda _: wait_until(lambda: spools[0].problem))

    @contextlib.contextmanager
    def into(folder):
        with FULL.open("wb", buffering=0) as file:
            spool = Spool(file, folder / "scan.mrd")
            spools.append(spool)
            try:
                yield spool
            finally:
                spool.close()

    monkeypatch.setattr(Spool, "into", into)
    with serving(engine, options=SessionOptions(save_raw=tmp_path)) as server:
        answer = talk_scan(server, door)
    assert bytes_of(answer.images) == expected_images()
    (complaint,) = answer.complaints(door)
    assert "scan.mrd is incomplete: No space left on device" in complaint
    assert "free space" in complaint


# --- what reaches the peer --------------------------------------------------------------------------------------------


def test_repeated_problem_is_counted_for_the_client(server):
    header, items = scan()
    broken = list(one_by_one(items))
    for item in [item for item in broken if isinstance(item, Readouts)][-60:-50]:
        item.data[0, 0, 0] = np.nan
    answer = talk(server, ConfigFile("zero_filled"), Header(header), *broken, Close())
    assert len(answer.images) == N_IMAGES
    assert any("first of 10" in text for text in answer.complaints("client"))
    assert answer.closed


def test_gadgetron_gets_errors_behind_the_images(server):
    header, items = scan()
    broken = list(one_by_one(items))
    [item for item in broken if isinstance(item, Readouts)][40].data[0, 0, 0] = np.nan
    answer = talk(server, CONFIGURATIONS["gadgetron"], Header(header), *broken, Close())
    assert len(answer.images) == N_IMAGES
    assert [type(message) for message in answer.messages[-2:]] == [Error, Close]
    assert "not finite" in answer.complaints("gadgetron")[0]


def test_what_is_only_noticed_is_no_error(server):
    """A dead noise channel cannot be whitened; images are made all the same."""
    header, items = scan()
    noise, *rest = items
    assert noise.headers["flags"][0] & flag_mask(AcquisitionFlag.NOISE)
    silent = Readouts(noise.headers, np.zeros_like(noise.data))
    for door in DOORS:
        answer = talk(server, CONFIGURATIONS[door], Header(header), silent, *rest, Close())
        assert answer.complaints(door) == []
        assert len(answer.images) == N_IMAGES
        assert len(answer.texts) == (door == "client")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_missing_weights_without_a_fallback_end_the_scan_at_its_configuration(server, door):
    """Nothing but the configuration is sent: the remedy must come before the patient is scanned."""
    bare = "<configuration><method>crunet_mr</method><fallback>none</fallback></configuration>"
    pipeline = whole("crunet_mr").replace("</method>", "</method><fallback>none</fallback>")
    answer = talk(server, ConfigText(bare if door == "gadgetron" else pipeline))
    (complaint,) = answer.complaints(door)
    assert "cinestream import-weights crunet_mr" in complaint
    assert answer.closed


@pytest.fixture
def ct(tmp_path, monkeypatch):
    """A folder that the operator allows, with a CT in it, beside one that is nobody's business; and weights."""
    write_tiny_weights(tmp_path / "weights", "atlf_net")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    affine = np.diag([100.0, 100.0, 100.0, 1.0])
    affine[:3, 3] = -550
    image = nibabel.Nifti1Image(np.zeros((12, 12, 12), np.float32), affine)
    image.header.set_xyzt_units("mm")
    for name in ("allowed", "private"):
        (tmp_path / name).mkdir()
        nibabel.save(image, tmp_path / name / "ct.nii")
    return tmp_path


def with_ct(door, path):
    settings = f"<method>atlf_net</method><ct_path>{path}</ct_path>"
    pipeline = whole("atlf_net").replace("<method>atlf_net</method>", settings)
    return ConfigText(f"<configuration>{settings}</configuration>" if door == "gadgetron" else pipeline)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_peer_names_a_ct_in_the_folders_of_the_operator_only(door, allowed, ct):
    header, items = scan()
    options = SessionOptions(ct_folders=(ct / "allowed",) if allowed else ())
    with serving(StubEngine(), options) as running:
        answer = talk(running, with_ct(door, "ct.nii"), Header(header), *items, Close())
        if allowed:
            assert_good(answer, door, images_of(header, items, method="atlf_net", ct_path=str(ct / "allowed/ct.nii")))
            assert all("ct_status" in image.attributes for image in answer.images)
        else:
            (complaint,) = answer.complaints(door)
            assert "ct_path: this server takes no files for CT from its peers" in complaint
            assert answer.images == []
        for path in (ct / "private" / "ct.nii", "../private/ct.nii"):
            answer = talk(running, with_ct(door, path))
            (complaint,) = answer.complaints(door)
            assert "ct_path: " in complaint
            assert "--ct-folder" in complaint
            assert answer.images == []


def test_json_parameters_name_a_ct_in_the_folders_of_the_operator_only(ct):
    header, items = scan()
    (ct / "pipelines").mkdir()
    text = with_ct("client", ct / "private" / "ct.nii").text  # the operator's own may lie anywhere
    (ct / "pipelines" / "mine.xml").write_text(text)
    options = SessionOptions(pipelines=(ct / "pipelines",), ct_folders=(ct / "allowed",))
    private, allowed = ct / "private" / "ct.nii", ct / "allowed" / "ct.nii"
    with serving(StubEngine(), options) as running:
        for wanted, used, warned in (
            ({}, private, False),
            ({"series": 1, "ctpath": str(private)}, private, False),  # as it is anyhow
            ({"ctpath": "ct.nii"}, allowed, False),
            ({"ctpath": "/etc/passwd"}, private, True),
            ({"ctpath": "a\0b"}, private, True),
        ):
            parameters = Text(json.dumps({"parameters": wanted}))
            answer = talk(running, ConfigFile("mine"), Header(header), parameters, *items, Close())
            assert_good(answer, images=images_of(header, items, method="atlf_net", ct_path=str(used)))
            assert [("WARNING" in told and "--ct-folder" in told) for told in answer.texts] == [True] * warned


def test_the_ct_of_the_overrides_may_lie_anywhere(ct):
    header, items = scan()
    options = SessionOptions(overrides={"ct_path": str(ct / "private" / "ct.nii")})
    with serving(StubEngine(), options) as running:
        answer = talk(running, ConfigFile("atlf_net"), Header(header), *items, Close())
    expected = images_of(header, items, method="atlf_net", ct_path=str(ct / "private" / "ct.nii"))
    assert_good(answer, images=expected)


@pytest.mark.parametrize("door", DOORS)
def test_a_ct_that_is_missing_ends_the_scan_with_its_remedy(door, ct):
    header, items = scan()
    options = SessionOptions(overrides={"ct_path": str(ct / "absent.nii"), "fallback": "none"})
    with serving(StubEngine(), options) as running:
        answer = talk(running, with_ct(door, ""), Header(header), *items, Close())
    (complaint,) = answer.complaints(door)
    assert "ct_path: " in complaint
    assert "absent.nii: there is no such file or folder" in complaint
    assert answer.images == []
    assert answer.closed


def test_missing_weights_with_a_fallback_are_reported_to_the_client(server):
    header, items = scan()
    answer = talk(server, ConfigFile("crunet_mr"), Header(header), *items, Close())
    assert answer.complaints("client") == []
    (text,) = answer.texts
    assert text.startswith("WARNING kt_sense is used instead of crunet_mr: ")
    assert "cinestream import-weights crunet_mr" in text
    assert len(answer.images) == N_IMAGES


def test_what_the_operator_overrides_counts_for_the_weights():
    header, items = scan()
    pipeline = whole("crunet_mr").replace("</method>", "</method><fallback>none</fallback>")
    with serving(options=SessionOptions(overrides={"fallback": "zero_filled"})) as server:
        answer = talk(server, ConfigText(pipeline), Header(header), *items, Close())
    assert answer.complaints("client") == []
    assert len(answer.images) == N_IMAGES
