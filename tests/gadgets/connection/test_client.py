import contextlib
import logging
import socket
import threading

import numpy as np
import pytest

import gadgets.connection.client
from gadgets.connection.client import SendResult, send
from gadgets.connection.session import SessionOptions
from gadgets.files.images import read_images, read_incomplete
from gadgets.files.raw import write_scan
from gadgets.wire.messages import Close, ConfigFile, ConfigText, Error, Image, Readouts, Text, Waveform
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer
from recon_core.errors import CinestreamError, DataError, ResourceError
from tests.helpers.peers import (
    BARE,
    FRAMES,
    PATIENCE,
    SLICES,
    StubEngine,
    expected_images,
    images_of,
    nothing_left,
    one_by_one,
    scan,
    serving,
    wire,
)

NAME = ConfigFile("zero_filled")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_scan(path, *scan())
    return path


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture
def output(tmp_path):
    return tmp_path / "images.h5"


def stored(path, group="dataset"):
    return [wire(image) for images in read_images(path, group).values() for image in images]


def test_images_are_stored_as_they_came(server, raw, output):
    with nothing_left(server):
        result = send(raw, output, NAME, server.address)
    assert result.good
    assert result == SendResult(images=FRAMES * SLICES, closed=True)
    assert stored(output) == expected_images()


def test_stream_file_is_sent_too(server, tmp_path, output):
    header, items = scan()
    with serving(options=SessionOptions(save_raw=tmp_path / "raw")) as saving:
        write_scan(tmp_path / "scan.h5", header, items)
        assert send(tmp_path / "scan.h5", tmp_path / "first.h5", NAME, saving.address).good
    (stream,) = (tmp_path / "raw").iterdir()
    assert send(stream, output, NAME, server.address).good
    assert stored(output) == stored(tmp_path / "first.h5") == expected_images()


def test_parameters_are_sent_after_the_header(server, raw, output):
    header, items = scan()
    result = send(raw, output, NAME, server.address, parameters='{"parameters": {"series": 12, "flux": 1}}')
    assert result.good
    assert [text.split()[0] for text in result.texts] == ["WARNING"]
    assert list(read_images(output)) == [12]
    assert stored(output) == [wire(image) for image in images_of(header, items, series=12)]


def test_header_of_another_schema_version(server, tmp_path, output):
    header, items = scan()
    root = header.index(">", header.index("<ismrmrdHeader")) + 1
    write_scan(tmp_path / "old.h5", f"{header[:root]}<version>8</version>{header[root:]}", items)
    assert send(tmp_path / "old.h5", output, NAME, server.address).good


def test_server_that_complains(server, raw, output, caplog):
    result = send(raw, output, ConfigFile("no_such"), server.address)
    assert not result.good
    assert result.closed
    assert result.images == 0
    assert "no_such" in caplog.text


def test_scan_with_a_bad_readout_is_not_good(server, tmp_path, output):
    header, items = scan()
    items = list(one_by_one(items))
    [item for item in items if isinstance(item, Readouts)][40].data[0, 0, 0] = np.nan
    write_scan(tmp_path / "bad.h5", header, items)
    result = send(tmp_path / "bad.h5", output, NAME, server.address)
    assert result.images == FRAMES * SLICES
    assert result.closed
    assert not result.good


@pytest.mark.parametrize(
    ("result", "good"),
    [
        (SendResult(1, [], closed=True), True),
        (SendResult(1, ["WARNING something", "all went well", "no ERROR here"], closed=True), True),
        (SendResult(0, [], closed=True), False),
        (SendResult(1, [], closed=False), False),
        (SendResult(1, ["ERROR   slice 3"], closed=True), False),
        (SendResult(1, ["fine", "  ERROR slice 3"], closed=True), False),
        (SendResult(1, ["[gadget(3)] ERROR: map::at"], closed=True), False),
        (SendResult(1, [], closed=True, problem="the file broke"), False),
    ],
)
def test_good(result, good):
    assert result.good is good


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_no_server(raw, output, monkeypatch):
    monkeypatch.setattr(gadgets.connection.client, "_CONNECT_SECONDS", 0.3)
    with pytest.raises(ResourceError, match="start one with: cinestream serve"):
        send(raw, output, NAME, ("127.0.0.1", free_port()))


def test_host_that_does_not_exist(raw, output):
    with pytest.raises(ResourceError, match="no server answers at no-such-host"):
        send(raw, output, NAME, ("no-such-host.invalid", 9012))


def test_server_that_starts_late(raw, output):
    port = free_port()
    results = []
    thread = threading.Thread(target=lambda: results.append(send(raw, output, NAME, ("127.0.0.1", port))))
    thread.start()
    thread.join(0.3)
    assert not results
    with scripted(lambda reader, writer, _: answer_scan(reader, writer), port):
        thread.join(PATIENCE)
    assert results[0].good


def test_file_that_is_not_there(server, tmp_path, output):
    with pytest.raises(ResourceError):
        send(tmp_path / "none.h5", output, NAME, server.address)


def test_group_that_is_not_there(server, raw, output):
    with pytest.raises(DataError):
        send(raw, output, NAME, server.address, group="other")


def test_output_that_exists(server, raw, output):
    output.write_text("mine", encoding="utf-8")
    with nothing_left(server), pytest.raises(CinestreamError, match="exists"):
        send(raw, output, NAME, server.address)
    assert output.read_text(encoding="utf-8") == "mine"
    assert send(raw, output, NAME, server.address, overwrite=True).good


# --- servers that do not do as they should ----------------------------------------------------------------------------


@contextlib.contextmanager
def scripted(behave, port=0):
    """A server that does with its first connection what a test wants."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(PATIENCE)
    over = threading.Event()

    def serve():
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE)
        with connection, contextlib.suppress(OSError):
            behave(Reader.of_socket(connection), Writer.of_socket(connection), over)

    thread = threading.Thread(target=serve, name="scripted")
    with listener:
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            over.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def answer_scan(reader, writer):
    for _ in reader:
        pass
    writer.send(images_of(*scan())[0])
    writer.send(Close())


def gone_at_once(reader, writer, over):
    reader.read()


def gone_within_an_image(reader, writer, over):
    for _ in reader:
        pass
    image = images_of(*scan())[0]
    writer.send(image)
    writer.send_buffers([wire(image)[:1000]])


def gone_without_close(reader, writer, over):
    for _ in reader:
        pass
    writer.send(images_of(*scan())[0])


def rubbish(reader, writer, over):
    writer.send_buffers([b"\xff\xff and more"])
    over.wait(PATIENCE)


@pytest.mark.parametrize(
    ("behave", "n_images"), [(gone_at_once, 0), (gone_within_an_image, 1), (gone_without_close, 1), (rubbish, 0)]
)
def test_server_that_breaks_off(raw, output, behave, n_images, caplog):
    with nothing_left(), scripted(behave) as address:
        result = send(raw, output, NAME, address)
        assert not result.good
        assert result.images == n_images
        assert "broke" in result.problem or "no more data" in result.problem
        assert not result.closed
    assert caplog.text
    assert len(stored(output) if n_images else []) == n_images


def test_an_image_of_another_size_costs_none_of_the_others(raw, output, caplog):
    def behave(reader, writer, over):
        for _ in reader:
            pass
        first, second, third = images_of(*scan())[:3]
        writer.send(first)
        header = second.header.copy()
        header["matrix_size"] = (7, 5, 1)
        writer.send(Image(header, second.data[:, :, :5, :7].copy(), second.attributes))
        writer.send(third)
        writer.send(Close())

    with nothing_left(), scripted(behave) as address:
        result = send(raw, output, NAME, address)
    assert (result.images, result.closed, result.good) == (2, True, False)
    assert "must have one size" in caplog.text
    assert "must have one size" in read_incomplete(output)
    assert stored(output) == [wire(image) for image in (images_of(*scan())[0], images_of(*scan())[2])]


def large_scan(path):
    """More than the buffers of two sockets hold."""
    header, items = scan()
    write_scan(path, header, [*items, *[item for item in items if isinstance(item, Readouts)][1:] * 16])
    return path


def test_server_that_talks_rubbish_and_takes_nothing(tmp_path, output):
    """The client does not wait for ever to be rid of its data."""
    done = []
    source = large_scan(tmp_path / "large.h5")
    with nothing_left(), scripted(rubbish) as address:
        thread = threading.Thread(target=lambda: done.append(send(source, output, NAME, address)))
        thread.start()
        thread.join(PATIENCE / 2)
        assert done, "the client hangs"
        assert not done[0].good
        assert "unknown message id" in done[0].problem


def test_output_that_fails_amid_the_scan(tmp_path, output, monkeypatch):
    """Its error reaches the caller, and the sender is gone by then."""

    def fail(*_):
        raise ResourceError("disk full")

    source = large_scan(tmp_path / "large.h5")
    monkeypatch.setattr(gadgets.connection.client.ImageFile, "append", fail)
    with serving() as server, nothing_left(server), pytest.raises(ResourceError, match="disk full"):
        send(source, output, NAME, server.address)


def test_messages_that_are_no_images_are_passed_over(raw, output):
    header, items = scan()

    def behave(reader, writer, over):
        for _ in reader:
            pass
        for message in (Text("hello"), next(item for item in items if isinstance(item, Waveform)), Error("odd")):
            writer.send(message)
        writer.send(images_of(header, items)[0])
        writer.send(Close())

    with scripted(behave) as address:
        result = send(raw, output, NAME, address)
    assert result.images == 1
    assert result.texts == ["hello"]


def test_whole_pipeline_as_configuration(server, raw, output):
    config = ConfigText(
        '<configuration><stream><external><connect port="1"/><configuration method="zero_filled" series="2"/>'
        "</external></stream></configuration>"
    )
    assert send(raw, output, config, server.address).good
    assert list(read_images(output)) == [2]


def test_file_that_breaks_off(server, tmp_path, output, caplog):
    """A stream file that a crash left: what it holds is sent, and the result says that it is not all."""
    header, items = scan()
    stream = tmp_path / "scan.mrd"
    with serving(options=SessionOptions(save_raw=tmp_path / "raw")) as saving:
        write_scan(tmp_path / "scan.h5", header, items)
        send(tmp_path / "scan.h5", tmp_path / "first.h5", NAME, saving.address)
    (whole,) = (tmp_path / "raw").iterdir()
    stream.write_bytes(whole.read_bytes()[:-1000])
    with caplog.at_level(logging.ERROR, "cinestream"):
        result = send(stream, output, NAME, server.address)
    assert not result.good
    assert "the file broke" in result.problem
    assert result.closed
    assert result.images >= FRAMES


def test_bare_configuration_is_a_gadgetrons_door(server, raw, output):
    """With it the server takes the client for a Gadgetron; images come all the same."""
    assert send(raw, output, ConfigText(BARE), server.address).good
    assert stored(output) == expected_images()


def test_images_are_in_the_file_when_the_server_dies(raw, output):
    engine = StubEngine()
    image = images_of(*scan(), engine)[0]

    def behave(reader, writer, over):
        writer.send(image)

    with scripted(behave) as address:
        result = send(raw, output, NAME, address)
    assert result.images <= 1
    assert not result.good
    if result.images:
        assert stored(output) == [wire(image)]


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("ERROR   no images", "ERROR", "server: no images"),
        ("WARNING one line is missing", "WARNING", "server: one line is missing"),
        ("INFO    hello", "INFO", "server: hello"),
        ("[gadget] ERROR: broken", "WARNING", "server: [gadget] ERROR: broken"),
    ],
)
def test_the_servers_lines_are_logged_at_their_level(caplog, text, level, said):
    with caplog.at_level("DEBUG", logger="cinestream"):
        gadgets.connection.client._log(text)
    assert [(record.levelname, record.message) for record in caplog.records] == [(level, said)]
