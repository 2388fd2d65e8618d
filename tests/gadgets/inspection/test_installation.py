"""The doctor's findings, above all about the Python that a Gadgetron would start."""

import os
import re
import socket
import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gadgets import __version__
from gadgets.commands import methods
from gadgets.commands.main import main
from gadgets.connection.server import Server
from gadgets.inspection import installation as doctor
from gadgets.inspection.installation import Check, examine
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import serving

HERE = Path(sys.executable).parent


def test_broken_weights_are_found(tmp_path, monkeypatch):
    (tmp_path / "manifest.yaml").write_text("crunet_mr: {method: crunet_mr}", encoding="utf-8")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    check = doctor._weights()
    assert str(tmp_path / "manifest.yaml") in check.remedy
    assert "'crunet_mr': file is missing" in check.remedy
    monkeypatch.setenv("CINESTREAM_WEIGHTS", "")
    assert doctor._weights().remedy == ""


@pytest.fixture
def finding(monkeypatch):
    """The finding about Gadgetron's Python when PATH holds these folders, and there is a Gadgetron."""
    monkeypatch.setenv("GADGETRON_HOME", "/opt/gadgetron")

    def find(*folders):
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
        return doctor._gadgetron_python()

    return find


def script(folder, text, name="python"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)
    return folder


def test_all_findings_are_printed(monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{HERE}{os.pathsep}{os.environ['PATH']}")
    status = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    names = [
        "cinestream",
        "gadgetron",
        "ismrmrd",
        "numpy",
        "h5py",
        "torch",
        "GPU",
        "pipelines",
        "weights",
        "port 9012",
        "Python of",
    ]
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"ok   {name}")
    assert status == 0
    assert "cg_sense" in lines[7]
    assert str(HERE / "python") in lines[-1]


@pytest.mark.parametrize(
    ("cuda", "usable", "torch_line", "gpu_line"),
    [
        (None, False, r"\S+, CPU build", r"none usable; reconstructing on \d+ CPU threads"),
        ("12.8", False, r"\S+, build for CUDA 12\.8", r"none usable; .*; the CPU build .* smaller: pip install .*/cpu"),
        ("12.8", True, r"\S+, build for CUDA 12\.8", "Model of a GPU"),
    ],
)
def test_the_build_of_torch_is_named_and_the_smaller_one_where_it_would_do(
    cuda, usable, torch_line, gpu_line, monkeypatch
):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Model of a GPU")
    checks = {check.name: check for check in doctor._torch()}
    assert re.fullmatch(torch_line, checks["torch"].found)
    assert re.fullmatch(gpu_line, checks["GPU"].found)
    assert not any(check.remedy for check in checks.values())


def test_a_package_that_is_missing_is_bad(monkeypatch, capsys):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor._package("h5py") == Check("h5py", "not installed", "pip install h5py")
    (check,) = doctor._torch()
    assert "https://download.pytorch.org/whl/cpu" in check.remedy


def test_a_command_that_needs_torch_says_so(monkeypatch, capsys):
    def run(_):
        import torch  # noqa: F401

    monkeypatch.setattr(methods, "run", run)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["methods"]) == 1
    assert doctor.TORCH_REMEDY in capsys.readouterr().err


def test_one_bad_finding_is_a_bad_end(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda: iter([Check("sun", "shines"), Check("rain", "falls", "take a coat")])
    )
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok   sun: shines\nbad  rain: falls\n      take a coat\n"


def test_this_environment_is_found_when_it_is_first_on_the_path(finding):
    check = finding(HERE, "/usr/bin", "/bin")
    assert not check.remedy
    assert "external.py" in check.found


def test_another_python_is_no_trouble_without_a_gadgetron(finding, tmp_path, monkeypatch):
    monkeypatch.delenv("GADGETRON_HOME")
    check = finding(script(tmp_path / "bare", f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n'), "/usr/bin", "/bin")
    assert not check.remedy
    assert "there is no Gadgetron here" in check.found
    assert "does not find cinestream" in check.found


def test_a_python_without_cinestream_is_bad_and_says_what_to_do(finding, tmp_path):
    bare = script(tmp_path / "bare", f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    check = finding(bare, HERE, "/usr/bin", "/bin")
    assert str(bare / "python") in check.found
    assert "No module named" in check.found
    assert str(HERE) in check.remedy
    assert str(check).startswith("bad  Python of a Gadgetron")


def test_a_checkout_on_the_pythonpath_does_not_hide_it(finding, tmp_path, monkeypatch):
    """The shell's PYTHONPATH is not the Gadgetron's."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    bare = script(tmp_path / "bare", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    assert finding(bare, "/usr/bin", "/bin").remedy


@pytest.mark.parametrize(
    ("text", "reason"),
    [("#!/bin/sh\necho broken >&2\nexit 3\n", "broken"), ("#!/bin/sh\nexit 3\n", "failed"), ("\0\0\0", "xec format")],
)
def test_a_python_that_does_not_start(text, reason, finding, tmp_path):
    check = finding(script(tmp_path / "broken", text))
    assert reason in check.found
    assert check.remedy


def test_python3_will_do_and_none_is_bad(finding, tmp_path):
    only = tmp_path / "only"
    only.mkdir()
    check = finding(only)
    assert "no python" in check.found
    assert check.remedy
    script(only, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "python3")
    assert not finding(only).remedy


def test_the_port(monkeypatch):
    server = Server(port=0)
    monkeypatch.setattr(doctor, "DEFAULT_PORT", server.address[1])
    try:
        assert "listens" in doctor._port().found
    finally:
        server.stop()
    assert doctor._port().found == "free"


def test_a_check_is_good_without_a_remedy():
    assert str(Check("sun", "shines")) == "ok   sun: shines"
    assert next(iter(examine())).name == "cinestream"


def test_a_server_is_asked(capsys):
    with serving() as server:
        host, port = server.address
        assert main(["doctor", "--server", f"{host}:{port}"]) == 0
        assert capsys.readouterr().out == f"ok   server {host} port {port}: cinestream {__version__}\n"
    assert main(["doctor", "--server", f"{host}:{port}"]) == 1
    assert "start one with: cinestream serve" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x04\x00"], ids=repr)
def test_what_answers_otherwise_is_no_server(answer, monkeypatch):
    monkeypatch.setattr(doctor, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def be_another():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
                connection.recv(1 << 16)

        other = threading.Thread(target=be_another)
        other.start()
        check = doctor.ask(listener.getsockname())
        other.join()
    assert "answer" in check.found
    assert check.remedy


def test_a_server_that_hangs_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert "timed out" in doctor.ask(listener.getsockname()).found


@pytest.mark.parametrize("address", ["9002", ":9002", "localhost", "localhost:port", "localhost:70000"])
def test_addresses_that_are_none(address, capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--server", address])
    assert "--server" in capsys.readouterr().err
