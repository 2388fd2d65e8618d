"""A process at the other end of a socket, and that it ends with its parent, whatever it is at."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from recon_core import children
from recon_core.children import Child, death_in_words, usable_cores, usable_gpus
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import wait_until


def echo(connection, word):
    """What the children of these tests do."""
    connection.sendall(f"{word} {os.environ.get('OWN', '')} {os.getpgrp() == os.getpid()}\n".encode())
    while block := connection.recv(100):
        connection.sendall(block)


def busy(connection):
    connection.sendall(b"busy\n")
    while True:
        sum(range(100_000))


def broken(connection):
    sys.exit(7)


def read(child):
    child.socket.settimeout(30)
    return child.socket.recv(100)


def is_running(pid):
    """A process that has ended and that nobody waits for does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def child():
    child = Child(f"{__name__}:echo", {"word": "hello"}, {"OWN": "value"})
    yield child
    child.end()


def test_a_child_gets_arguments_and_variables_and_answers(child):
    assert read(child) == b"hello value True\n"  # of a process group of its own, which no Ctrl-C reaches
    child.socket.sendall(b"again")
    assert read(child) == b"again"
    assert not child.has_ended
    assert child.end() is None
    assert not is_running(child.pid)


def test_how_it_ended_is_known(child):
    read(child)
    os.kill(child.pid, signal.SIGKILL)
    assert child.socket.recv(1) == b""
    assert child.has_ended
    assert child.end() == -signal.SIGKILL
    other = Child(f"{__name__}:broken", {})
    assert other.socket.recv(1) == b""
    assert other.end() == 7


@pytest.mark.parametrize(
    ("status", "words"),
    [(-9, "memory runs out"), (-15, "ended by SIGTERM"), (7, "with status 7"), (None, "closed its connection")],
)
def test_a_death_in_words(status, words):
    assert words in death_in_words(status)


def test_no_child_outlives_its_parent_however_busy():
    code = f"""
        import os, signal, sys
        from recon_core.children import Child
        child = Child("{__name__}:busy", {{}})
        assert child.socket.recv(100) == b"busy\\n"
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    pid = int(ran.stdout)
    wait_until(lambda: not is_running(pid))


def test_a_child_does_not_hold_the_sockets_of_its_brothers(child):
    read(child)
    with_two = Child(f"{__name__}:echo", {"word": "two"})
    read(with_two)
    os.kill(child.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(child.socket, select.POLLIN)
    assert poll.poll(10_000), "its death shows although another child runs"
    with_two.end()


def test_packages_of_ours_are_found_whatever_the_working_directory_holds(tmp_path, monkeypatch):
    (tmp_path / "recon_core").mkdir()
    (tmp_path / "recon_core" / "__init__.py").write_text("raise RuntimeError('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    child = Child(f"{__name__}:echo", {"word": "hello"})
    assert read(child).startswith(b"hello")
    child.end()


@pytest.mark.parametrize(
    ("text", "most"),
    [("150000 100000\n", 1), ("max 100000\n", 64), ("50000 100000\n", 1), ("800000 100000", 8), (None, 64)],
)
def test_a_limit_of_a_container_counts_as_cores(text, most, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    path = tmp_path / "cpu.max"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(children, "_CPU_LIMIT", path)
    assert usable_cores() == most


@pytest.mark.parametrize(
    ("visible", "count", "found"), [("", 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("GPU-a", 1, ["GPU-a"]), ("", 0, [])]
)
def test_gpus_go_by_the_names_that_the_operator_gives(visible, count, found, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_GPUS", tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == found


def test_without_a_driver_torch_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_GPUS", tmp_path / "none")
    monkeypatch.setattr("torch.cuda.device_count", lambda: pytest.fail("asked"))
    assert usable_gpus() == []
