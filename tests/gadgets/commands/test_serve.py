"""``cinestream serve``, in one process and with ``send`` as two."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from gadgets.commands.main import main, make_parser
from gadgets.connection.server import Server
from gadgets.files.images import read_images
from gadgets.files.raw import open_scan, write_scan
from gadgets.wire.messages import Readouts
from recon_core.methods import METHODS
from tests.gadgets.commands.conftest import program


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--alias", "openrecon=magic"], ["magic", "cinestream pipelines lists all"]),
        (["--alias", "openrecon"], ["openrecon", "key=value"]),
        (["--set", "speed=1"], ["speed", "cinestream pipelines lists all"]),
        (["--set", "method=magic"], ["magic", *METHODS]),
        (["--port", "65536"], ["65535"]),
        (["--port", "-1"], ["65535"]),
        (["--queue-gib", "nan"], ["nan"]),
        (["--queue-gib", "inf"], ["inf"]),
        (["--queue-gib", "-1"], ["-1"]),
        (["--grace", "-1"], ["-1"]),
        (["--pipelines", "/no/such/folder"], ["/no/such/folder"]),
        (["--ct-folder", "/no/such/folder"], ["/no/such/folder"]),
        (["--workers", "0"], ["1 to 1024"]),
        (["--workers", "ray://auto/x"], ["1 to 1024"]),
        (["--workers", "ray://nowhere"], ["HOST:PORT", "ray://nowhere"]),
        (["--web", "65536"], ["65535"]),
        (["--web", "127.0.0.1:x"], ["65535"]),
        (["--web", "0", "--web-token", "short"], ["8 to 200"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_serve_refuses_what_would_fail_in_every_scan(options, texts, run):
    status, _, err = run("serve", "--port", "0", *options)
    assert status == 2
    assert all(text in err for text in texts)


def test_serve_says_when_there_is_no_cluster(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address_of_nobody = f"127.0.0.1:{server.getsockname()[1]}"
    status, _, err = run("serve", "--port", "0", "--workers", f"ray://{address_of_nobody}/2")
    assert status == 1
    assert f"no Ray cluster answers at ray://{address_of_nobody}" in err


@pytest.mark.parametrize(
    ("text", "address", "count"),
    [("3", "", 3), ("ray://auto", "auto", 0), ("ray://local/2", "local", 2), ("ray://[::1]:9/4", "ray://[::1]:9", 4)],
)
def test_workers_are_of_this_machine_or_of_a_cluster(text, address, count):
    assert make_parser().parse_args(["serve", "--workers", text]).workers == (address, count)


def test_serve_says_when_the_address_is_not_to_be_had(run):
    server = Server(port=0)
    status, _, err = run("serve", "--port", server.address[1])
    server.stop()
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {server.address[1]}" in err
    status, _, err = run("serve", "--host", "..")
    assert status == 1
    assert "cannot listen on .." in err


@pytest.mark.parametrize("folder", ["a_file", "a_file/below", "/proc/nowhere"])
def test_serve_says_at_once_that_raw_streams_cannot_be_saved(folder, tmp_path, run):
    (tmp_path / "a_file").touch()
    status, _, err = run("serve", "--port", "0", "--save-raw", tmp_path / folder)
    assert status == 1
    assert f"raw streams cannot be saved in {tmp_path / folder}: " in err


def test_serve_and_send_as_processes(scan, tmp_path, run):
    raw, store = tmp_path / "raw", tmp_path / "store"
    command = ["serve", "--port", "0", "--save-raw", str(raw), "--alias", "openrecon=zero_filled", "--set", "series=4"]
    command += ["--noise-store", str(store), "--log-format", "json", "--web", "0"]
    # unbuffered pipes would hide a missing flush
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "gadgets", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        watchdog = threading.Timer(60, server.kill)
        watchdog.start()
        try:
            port = re.fullmatch(r"cinestream \S+ listens on 127\.0\.0\.1 port (\d+)\n", server.stdout.readline()).group(
                1
            )
            page = re.fullmatch(r"monitor page: (http://127\.0\.0\.1:\d+/)\n", server.stdout.readline()).group(1)
            output = tmp_path / "images.h5"
            sent = program("send", scan, "-o", output, "--port", port, "-c", "openrecon")
            assert (sent.returncode, sent.stderr) == (0, "")
            assert f"3 images in {output}" in sent.stdout
            noise = tmp_path / "noise.h5"
            with open_scan(scan) as opened:
                write_scan(noise, opened.header, [next(item for item in opened.items if isinstance(item, Readouts))])
            status, _, err = run("send", noise, "-o", tmp_path / "no.h5", "--port", port, "-c", "openrecon")
            assert (status, err) == (0, "")
            assert [path.suffix for path in store.iterdir()] == [".npz"]
            bad = program("send", scan, "-o", tmp_path / "none.h5", "--port", port, "-c", "magic")
            assert bad.returncode == 1
            assert "magic" in bad.stderr
            assert "cinestream pipelines lists all" in bad.stderr
            with urllib.request.urlopen(page + "scans.json", timeout=30) as answer:
                over = json.load(answer)["over"]
            assert [(one["pipeline"], one["images"], len(one["loops"])) for one in over] == [
                ("magic", 0, 0),
                ("openrecon", 0, 0),
                ("openrecon", 3, 1),
            ]
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            lines = [json.loads(line) for line in server.stderr.read().splitlines()]
        finally:
            watchdog.cancel()
            server.kill()
    scans = [line for line in lines if "images" in line]
    assert [(line["pipeline"], line["images"]) for line in scans] == [("openrecon", 3), ("openrecon", 0), ("magic", 0)]
    assert [line for line in lines if line["scan"] == scans[0]["scan"]] == scans[:1], "one line for a good scan"
    images = read_images(output)
    assert list(images) == [4]
    assert "zero_filled" in images[4][0].attributes
    saved = min(raw.iterdir())
    assert main(["replay", str(saved), "-o", str(tmp_path / "again.h5"), "-p", "zero_filled", "--set", "series=4"]) == 0
    again = read_images(tmp_path / "again.h5")[4]
    assert [image.data.tobytes() for image in again] == [image.data.tobytes() for image in images[4]]


def test_a_server_whose_output_nobody_reads_ends():
    """Whoever started it has died; it would be left behind, and not end on a signal."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "gadgets", "serve", "--port", "0", "--noise-store", "off"]
    with subprocess.Popen(command, stdout=writing) as process:
        os.close(writing)
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
