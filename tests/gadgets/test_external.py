"""The ``<execute>`` door: a Gadgetron starts us, for better or worse."""

import dataclasses
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from gadgets.connection.resident import SERVER_VARIABLE
from gadgets.connection.resident import resident_server as _resident_server
from gadgets.connection.server import Server, SharedEngine
from gadgets.external import CT_VARIABLE, _options
from gadgets.files.images import read_images
from gadgets.files.raw import write_scan
from gadgets.replay import replay
from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.containers import ImageArray
from gadgets.wire.messages import Query, Readouts, Response
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer, encode
from tests.helpers.builders import readouts as random_readouts
from tests.helpers.gadgetron_parent import EMPTY_CONFIGURATION, Gadgetron, Vanish
from tests.helpers.networks import NETWORKS, write_tiny_weights
from tests.helpers.stock import Stock, recon_data_bytes

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=3, coils=3, acceleration=2, acs_lines=10, seed=3)
FAST = "<configuration><method>zero_filled</method></configuration>"
ERROR = 8
CLOSE = 4
STOCK = ("cg_sense-stock-behind", "cg_sense-stock-front", "crunet_mr-stock-behind", "crunet_mr-stock-front")


# Which method it is makes no difference to the process; the resident server runs these in the quick tests.
OTHER_METHODS = ["cg_sense", "grappa", "low_rank_sparse", "kt_sense"]


def packaged(name):
    return list_pipelines()[name].text


@pytest.fixture(scope="module")
def scan():
    simulated = simulate(PLAN)
    return simulated.header, list(simulated.items())


@pytest.fixture(scope="module")
def replayed(scan, tmp_path_factory):
    """Images of the same scan through the file door, by the settings."""
    folder = tmp_path_factory.mktemp("replayed")
    write_scan(folder / "scan.h5", *scan)
    engine, made = SharedEngine(), {}

    def images(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            output = folder / f"{len(made)}.h5"
            replay(folder / "scan.h5", output, apply(Settings(), settings), engine)
            made[key] = read_images(output)[settings.get("series", 1)]
        return made[key]

    return images


@pytest.fixture
def server():
    running = Server(port=0)
    thread = threading.Thread(target=running.serve)
    thread.start()
    yield running
    running.stop(grace_seconds=0.0)
    thread.join(30)
    assert not thread.is_alive()


def message_bytes(message):
    return b"".join(bytes(memoryview(part).cast("B")) for part in encode(message))


def up_to(cut, items):
    whole = message_bytes(items[-1])
    return {
        "after the configuration": [Vanish()],
        "within a readout": [*items[:-1], whole[: len(whole) // 2 + 1], Vanish()],
        "before CLOSE": [*items, Vanish()],
    }[cut]


CUTS = ["after the configuration", "within a readout", "before CLOSE"]


def variable(address):
    return {SERVER_VARIABLE: f"{address[0]}:{address[1]}"}


def assert_same(images, expected):
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        assert image.attributes == wanted.attributes
        assert image.header.tobytes() == wanted.header.tobytes()
        assert image.data.dtype == wanted.data.dtype
        assert image.data.tobytes() == wanted.data.tobytes()


def assert_well(outcome):
    assert outcome.errors == []
    assert outcome.status in (0, None)
    assert outcome.closed
    assert outcome.after_close == 0
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr


def assert_reported(outcome, *texts, status=1):
    """One ERROR, then one CLOSE, at the very end; the exit status tells of it too."""
    assert outcome.order[-2:] == [ERROR, CLOSE]
    assert outcome.order.count(ERROR) == 1
    assert outcome.after_close == 0
    assert outcome.status == status
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert len(outcome.errors) == 1
    for text in texts:
        assert text in outcome.errors[0]


# --- happy paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zero_filled", *(pytest.param(one, marks=pytest.mark.slow) for one in OTHER_METHODS)])
def test_a_scan_gives_the_images_of_a_replay_and_its_waveforms(name, scan, replayed):
    header, items = scan
    sent = [item for item in items if not hasattr(item, "headers")]
    outcome = Gadgetron(packaged(name)).run(header, items)
    assert_well(outcome)
    assert_same(outcome.images, replayed(method=name))
    assert len(outcome.waveforms) == len(sent) > 0
    for came, wanted in zip(outcome.waveforms, sent, strict=True):
        assert came.header["scan_counter"] == wanted.header["scan_counter"]
        np.testing.assert_array_equal(came.data, wanted.data)


def test_a_network_without_weights_leaves_the_scan_to_its_fallback(scan, replayed, server):
    """With weights, the end-to-end cases run them."""
    header, items = scan
    text = packaged("crunet_mr").replace("</method>", "</method><weights>mine</weights>")
    outcome = Gadgetron(text, connect=server.address).run(header, items)
    assert_well(outcome)
    for image, other in zip(outcome.images, replayed(method="kt_sense"), strict=True):
        np.testing.assert_array_equal(image.data, other.data)
        assert "import-weights crunet_mr" in image.attributes


def test_the_environment_names_the_folders_of_a_ct(monkeypatch):
    monkeypatch.setenv(CT_VARIABLE, f"/first{os.pathsep}/second")
    assert _options().ct_folders == (Path("/first"), Path("/second"))
    monkeypatch.delenv(CT_VARIABLE)
    assert _options().ct_folders == ()


@pytest.mark.parametrize("allowed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_ct_comes_from_the_folders_of_the_environment_only(allowed, scan, replayed, tmp_path, monkeypatch):
    write_tiny_weights(tmp_path / "weights", "atlf_net")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    affine = np.diag([100.0, 100.0, 100.0, 1.0])
    affine[:3, 3] = -550
    ct = nibabel.Nifti1Image(np.zeros((12, 12, 12), np.float32), affine)
    ct.header.set_xyzt_units("mm")
    (tmp_path / "ct").mkdir()
    nibabel.save(ct, tmp_path / "ct" / "ct.nii")

    header, items = scan
    settings = "<ct_path>ct.nii</ct_path><device>cpu</device><outside_range>note</outside_range>"  # nothing was learned
    text = packaged("atlf_net").replace("</method>", f"</method>{settings}")
    folders = f"{tmp_path / 'none'}{os.pathsep}{tmp_path / 'ct'}" if allowed else ""
    outcome = Gadgetron(text, environment={CT_VARIABLE: folders}).run(header, items)
    if allowed:
        assert_well(outcome)
        path = str(tmp_path / "ct" / "ct.nii")
        assert_same(outcome.images, replayed(method="atlf_net", ct_path=path, device="cpu", outside_range="note"))
        assert all("ct_status" in image.attributes for image in outcome.images)
    else:
        assert_reported(outcome, "ct_path: this server takes no files for CT from its peers")
        assert outcome.images == []


def test_the_packaged_pipelines_are_all_known_to_these_tests():
    names = {"zero_filled", "cg_sense", "grappa", "low_rank_sparse", "kt_sense", "auto", *NETWORKS}
    names |= {"realtime_cg_sense", "realtime_kt_sense"}
    known = list_pipelines()
    among_gadgets = {name for name in known if known[name].needs_gadgetron}
    assert among_gadgets == set(STOCK)
    assert set(known) - among_gadgets == names


def stock_buffers(header, items):
    """RECON_DATA messages as the gadgets of the packaged pipelines send them."""
    stock = Stock(header)
    gathered = stock.accumulate(stock.prepared(items), "repetition", "slice")
    return [recon_data_bytes(message) for message in stock.to_buffers(gathered)]


@pytest.mark.parametrize("door", ["connect", pytest.param("execute", marks=pytest.mark.slow)])
def test_stock_gadgets_in_front(door, scan, replayed, server):
    header, items = scan
    text = packaged("cg_sense-stock-front").replace("<whitened>true</whitened>", "")
    address = server.address if door == "connect" else None
    still = [item for item in items if not isinstance(item, Readouts) or item.data.shape[2] == 96]  # no noise readouts
    outcome = Gadgetron(text, connect=address).run(header, stock_buffers(header, still))
    assert_well(outcome)
    expected = replayed(method="cg_sense", whiten=False)
    assert len(outcome.images) == len(expected)
    for image, wanted in zip(outcome.images, expected, strict=True):
        assert np.abs(image.data - wanted.data).max() < 1e-5 * wanted.data.max()


def test_stock_gadgets_in_front_with_noise(scan, server):
    header, items = scan
    gadgetron = Gadgetron(packaged("cg_sense-stock-front"), connect=server.address)
    outcome = gadgetron.run(header, stock_buffers(header, items))
    assert_well(outcome)
    assert len(outcome.images) == PLAN.frames


@pytest.mark.parametrize("door", ["connect", pytest.param("execute", marks=pytest.mark.slow)])
def test_stock_gadgets_behind(door, scan, replayed, server):
    header, items = scan
    address = server.address if door == "connect" else None
    outcome = Gadgetron(packaged("cg_sense-stock-behind"), connect=address).run(header, items)
    assert_well(outcome)
    assert outcome.images == []
    finished = list(Stock(header).finished(outcome.arrays))
    expected = replayed(method="cg_sense")
    values, wanted = (np.stack(list(images)) for images in ([v for _, v in finished], [i.data[0, 0] for i in expected]))
    assert np.abs(values / values.max() - wanted / wanted.max()).max() < 1e-5
    assert 64 < values.max() <= 4095


def test_acquisitions_are_handed_on(scan, server):
    header, items = scan
    text = FAST.replace("</configuration>", "<forward>acquisitions</forward></configuration>")
    outcome = Gadgetron(text, connect=server.address).run(header, items)
    assert_well(outcome)
    assert len(outcome.images) == PLAN.frames
    sent = [item for item in items if isinstance(item, Readouts)]
    came = b"".join(message_bytes(item) for item in outcome.readouts)
    assert came == b"".join(message_bytes(item) for item in sent)


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "grappa", "low_rank_sparse"])
def test_a_gadgetron_connects_to_the_resident_server(method, scan, replayed, server):
    header, items = scan
    text = list_pipelines()[method].through_server(*server.address).text
    outcome = Gadgetron(text, connect=server.address).run(header, items)
    assert_well(outcome)
    assert_same(outcome.images, replayed(method=method))


@pytest.mark.parametrize(
    ("configuration", "settings"),
    [
        (EMPTY_CONFIGURATION, {}),
        ('<?xml version="1.0"?>\n<configuration />\n', {}),
        (
            """<?xml version="1.0"?>
<configuration>
\t<property name="method" value="zero_filled" />
\t<property>
\t\t<name>series</name>
\t\t<value>7</value>
\t</property>
</configuration>
""",
            {"method": "zero_filled", "series": 7},
        ),
        ('<configuration method="zero_filled" output="complex"/>', {"method": "zero_filled", "output": "complex"}),
    ],
    ids=["absent", "empty", "properties", "attributes"],
)
def test_every_way_to_write_the_configuration(configuration, settings, scan, replayed, server):
    """Passed on by a process where there is none, which is the text that no other test sends."""
    header, items = scan
    door = {"environment": variable(server.address)} if configuration == EMPTY_CONFIGURATION else {}
    outcome = Gadgetron(configuration, connect=None if door else server.address, **door).run(header, items)
    assert_well(outcome)
    assert_same(outcome.images, replayed(**settings))


def test_messages_that_are_of_no_use_do_not_break_the_scan(scan, replayed, server, caplog):
    header, items = scan
    image = replayed(method="zero_filled")[0]
    array = ImageArray(np.ones((4, 3, 1, 1, 1, 1, 1), np.complex64), np.zeros((1, 1, 1), image.header.dtype))
    odd, last = message_bytes(image), message_bytes(array)
    outcome = Gadgetron(FAST, connect=server.address).run(header, [items[0], odd, *items[1:-1], last, items[-1]])
    assert_well(outcome)
    assert_same(outcome.images, replayed(method="zero_filled"))
    assert "Image messages are not used" in caplog.text


def test_a_slow_gadgetron_with_one_write_per_message(scan, replayed, server):
    header, items = scan

    def dripping():
        for item in items:
            data = message_bytes(item)
            third = len(data) // 3
            yield from (data[:1], data[1:third], data[third:])

    outcome = Gadgetron(FAST, connect=server.address, piecewise=False).run(header, dripping())
    assert_well(outcome)
    assert_same(outcome.images, replayed(method="zero_filled"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "texts"),
    [
        ("<configuration><method>magic</method></configuration>", ["'method'", "zero_filled, cg_sense", "magic"]),
        ("<configuration><iterations>many</iterations></configuration>", ["'iterations'", "many"]),
        (
            '<configuration><property name="speed" value="1"/></configuration>',
            ["unknown setting 'speed'", "did you mean"],
        ),
        ("<pipeline/>", ["<pipeline>"]),
    ],
)
def test_a_bad_setting_is_reported_to_the_gadgetron(configuration, texts, scan, server):
    """The process of its own says what the server does: one of the settings shows it."""
    header, items = scan
    alone = not texts[0].endswith(("'iterations'", "'speed'"))
    outcome = Gadgetron(configuration, connect=None if alone else server.address).run(header, items)
    assert outcome.images == []
    assert_reported(outcome, *texts, status=1 if alone else None)


def test_a_header_without_encoding_is_reported(scan):
    _, items = scan
    header = '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions><H1resonanceFrequency_Hz>1'
    header += "</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
    outcome = Gadgetron(FAST).run(header, items)
    assert outcome.images == []
    assert_reported(outcome, "encoding")


@pytest.mark.slow
def test_broken_readouts_give_images_and_an_error_at_the_end(scan, replayed):
    header, items = scan
    foreign = random_readouts(2, coils=5, samples=96)
    outcome = Gadgetron(FAST).run(header, [*items[:-1], foreign, items[-1]])
    expected = replayed(method="zero_filled")
    for image, wanted in zip(outcome.images, expected, strict=True):
        assert image.data.tobytes() == wanted.data.tobytes()
    assert any("2 broken readouts left out" in image.attributes for image in outcome.images)
    assert_reported(outcome, "5 coils", "expected 3", "first of 2")


def test_a_scan_without_readouts_is_an_error(scan):
    header, _ = scan
    outcome = Gadgetron(FAST).run(header, [])
    assert outcome.images == []
    assert_reported(outcome, "no image readouts")


@pytest.mark.slow  # a lost stream has no CLOSE that could be recognised; 10 s of silence end it
@pytest.mark.parametrize("resident", [False, True])
def test_an_unknown_message_gives_what_came_before_and_an_error(resident, scan, replayed, server):
    """The rest is taken in all the same: unread data would reset the connection and lose what we said."""
    header, items = scan
    environment = variable(server.address) if resident else {}
    items = [*items, struct.pack("<H", 1051), bytes(8 << 20)]
    outcome = Gadgetron(FAST, environment=environment).run(header, items)
    assert_same(outcome.images, replayed(method="zero_filled"))
    assert_reported(outcome, "1051")


@pytest.mark.parametrize("cut", CUTS)
def test_the_child_ends_by_itself_when_the_gadgetron_dies(cut, scan):
    header, items = scan
    items = up_to(cut, items)
    outcome = Gadgetron(FAST).run(header, items)  # waits for the end of the process
    assert outcome.status == 1
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


# --- through the resident server --------------------------------------------------------------------------------------


@pytest.fixture
def no_torch(tmp_path):
    """A torch that cannot be imported, first on the child's PYTHONPATH."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n", encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path)}


def test_without_torch_nothing_is_reconstructed_in_process(scan, no_torch):
    """So that the next test means something."""
    header, items = scan
    outcome = Gadgetron(FAST, environment=no_torch).run(header, items)
    assert outcome.order[-2:] == [ERROR, CLOSE]
    assert outcome.status == 1
    assert "torch was imported" in outcome.errors[0]


def test_a_resident_server_takes_the_scan(scan, replayed, server, no_torch):
    header, items = scan
    outcome = Gadgetron(packaged("cg_sense"), environment={**variable(server.address), **no_torch}).run(header, items)
    assert_well(outcome)
    assert_same(outcome.images, replayed(method="cg_sense"))
    assert len(outcome.waveforms) == sum(not hasattr(item, "headers") for item in items)
    assert "passing the scan on" in outcome.stderr


def test_errors_of_the_resident_server_reach_the_gadgetron(scan, replayed, server, no_torch):
    header, items = scan
    environment = {**variable(server.address), **no_torch}
    outcome = Gadgetron(FAST, environment=environment).run(header, [*items, random_readouts(2, coils=5, samples=96)])
    assert_same(outcome.images, replayed(method="zero_filled"))
    assert_reported(outcome, "5 coils")
    outcome = Gadgetron("<configuration speed='1'/>", environment=environment).run(header, items)
    assert outcome.images == []
    assert_reported(outcome, "unknown setting 'speed'")


@pytest.mark.parametrize("cut", [CUTS[0], pytest.param(CUTS[1], marks=pytest.mark.slow), CUTS[2]])
def test_the_relay_ends_by_itself_when_the_gadgetron_dies(cut, scan, server, no_torch):
    header, items = scan
    items = up_to(cut, items)
    outcome = Gadgetron(FAST, environment={**variable(server.address), **no_torch}).run(header, items)
    assert outcome.status == 1
    assert "Traceback" not in outcome.stderr


@contextmanager
def listening(answer):
    """A server that handles every connection with `answer(connection)` in a thread, up to the end of the block."""
    connections = []

    def accept(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=attend, args=(connection,), daemon=True).start()

    def attend(connection):
        with suppress(OSError):
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def silent(connection):
    pass


def http(connection):
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def gadgetron(connection):
    """A real Gadgetron knows no such query."""
    question = Reader.of_socket(connection).read()
    Writer.of_socket(connection).send(Response(question.correlation, "Unknown query"))


def hanging_up(connection):
    connection.close()


def endless(connection):
    connection.recv(100)
    connection.sendall(struct.pack("<HQQ", 7, 1, 1 << 62))


@pytest.mark.parametrize("answer", [silent, gadgetron, hanging_up, endless])
def test_what_else_listens_on_the_port_is_no_resident_server(answer, monkeypatch):
    with listening(answer) as address:
        monkeypatch.setenv(*variable(address).popitem())
        assert _resident_server() is None


@pytest.mark.slow  # the quick tests show that none of these is taken for a resident server
def test_what_else_listens_on_the_port_is_left_alone(scan, replayed):
    header, items = scan
    with listening(http) as address:
        outcome = Gadgetron(FAST, environment=variable(address)).run(header, items)
    assert_well(outcome)
    assert_same(outcome.images, replayed(method="zero_filled"))
    assert "passing the scan on" not in outcome.stderr


@pytest.mark.parametrize("value", ["", "off", "nonsense", "localhost:", "localhost:99999", "..:80", "localhost:²"])
def test_a_variable_that_names_no_server_is_no_trouble(value, monkeypatch):
    monkeypatch.setenv(SERVER_VARIABLE, value)
    assert _resident_server() is None


@pytest.mark.parametrize("images", [0, 1])
def test_a_resident_server_that_dies_within_the_scan_is_reported(images, scan, replayed):
    header, items = scan

    def dying(connection):
        reader, writer = Reader.of_socket(connection), Writer.of_socket(connection)
        question = reader.read()
        assert isinstance(question, Query)
        writer.send(Response(question.correlation, "0"))
        for _ in range(4):
            reader.read()
        for image in replayed(method="zero_filled")[:images]:
            writer.send(image)
        connection.sendall(struct.pack("<H", 1022) + b"half an image")
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    with listening(dying) as address:
        outcome = Gadgetron(FAST, environment=variable(address)).run(header, items)
    assert len(outcome.images) == images
    assert_reported(outcome, "the resident cinestream server ended within the scan")


def test_a_resident_server_that_is_stopped_within_the_scan_is_reported(scan):
    header, items = scan
    server = Server(port=0)
    serving = threading.Thread(target=server.serve)
    serving.start()

    def stopping():
        yield from items[:-1]
        yield items[-1][:5]
        assert gadgetron.wait_for("waveforms", 1)  # the server has the scan
        server.stop(grace_seconds=0.0)
        serving.join(30)
        yield items[-1][5:]

    gadgetron = Gadgetron(FAST, environment=variable(server.address))
    outcome = gadgetron.run(header, stopping())
    assert len(outcome.images) in {0, 3}  # what came before may still be reconstructed
    assert_reported(outcome)


def test_the_relay_hands_on_images_while_the_scan_goes_on(server):
    simulated = simulate(ScanPlan(matrix_x=48, matrix_y=40, frames=2, slices=2, coils=2, acs_lines=8))
    gadgetron = Gadgetron(FAST, environment=variable(server.address))
    early = []

    def items():
        *front, last = simulated.items()
        yield from front
        yield last[:-1]
        early.append(gadgetron.wait_for("images", 2))
        yield last[-1:]

    outcome = gadgetron.run(simulated.header, items())
    assert early == [True]
    assert_well(outcome)
    assert len(outcome.images) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("resident", [False, True])
def test_a_signal_that_ends_the_process_is_reported(resident, number, scan, server):
    """An own process would die, and the Gadgetron read an illegal message."""
    header, items = scan
    gadgetron = Gadgetron(FAST, environment=variable(server.address) if resident else {})

    def stopping():
        yield from items[:-1]
        yield items[-1][:5]
        assert gadgetron.wait_for("waveforms", 1)  # the scan has begun
        gadgetron.process.send_signal(number)
        assert gadgetron.wait_for("errors", 1)

    outcome = gadgetron.run(header, stopping())
    assert outcome.images == []
    assert_reported(outcome, f"ended by {number.name}")


# --- the parent itself ------------------------------------------------------------------------------------------------


def speaking(*messages):
    """A peer that says this whatever it hears, and is gone when the Gadgetron has closed its input."""

    def answer(connection):
        connection.sendall(b"".join(messages))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    return answer


@pytest.mark.parametrize(
    ("said", "errors"),
    [
        ([struct.pack("<HI", 5, 2), b"hi"], ["Received illegal message id from external peer: 5"]),
        ([struct.pack("<H", 1051)], ["Received illegal message id from external peer: 1051"]),
        ([], ["Received illegal message id from external peer: 1"]),
        ([struct.pack("<H", 1022), b"half"], ["connection: the peer is gone within a message"]),
        ([struct.pack("<HQ", ERROR, 4), b"ouch", struct.pack("<H", CLOSE)], ["Errors received: ouch"]),
        (["int16", struct.pack("<H", CLOSE)], ["map::at"]),
        (["no meta", struct.pack("<H", CLOSE)], ["Unable to load ISMRMRD Meta XML document"]),
    ],
)
def test_the_parent_notices_what_a_gadgetron_refuses(said, errors, scan, replayed):
    image = replayed(method="zero_filled")[0]
    images = {
        "int16": dataclasses.replace(image, data=image.data.astype("<i2")),
        "no meta": dataclasses.replace(image, attributes="plain text"),
    }
    said = [message_bytes(images[part]) if isinstance(part, str) else part for part in said]
    with listening(speaking(*said)) as address:
        outcome = Gadgetron(FAST, connect=address).run(*scan)
    assert outcome.errors == errors


def test_the_parent_notices_what_follows_close(scan):
    with listening(speaking(struct.pack("<HH", CLOSE, CLOSE))) as address:
        outcome = Gadgetron(FAST, connect=address).run(*scan)
    assert (outcome.closed, outcome.after_close) == (True, 2)


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "import gadgetron.external"])
def test_the_import_is_light(before):
    program = (
        f"import sys\n{before}\nheld = set(sys.modules)\nimport gadgets.external\nprint(*(set(sys.modules) - held))"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"torch", "numpy", "h5py", "defusedxml", "yaml", "PIL", "ismrmrd", "scipy", "matplotlib"}
    assert not heavy & {name.partition(".")[0] for name in outcome.stdout.split()}
