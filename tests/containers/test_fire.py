"""The scripts for FIRE's chroot, run with something in the place of Docker and of the server."""

import os
import shutil
import subprocess
import tarfile

import pytest

from gadgets.commands.main import make_parser
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import wait_until

FIRE = REPOSITORY / "containers" / "fire"


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return folder


def run(script, *arguments, path):
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(FIRE / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_start_leaves_a_server_behind_and_its_log(tmp_path):
    """FIRE waits for the script; both streams of the server go to the log, in a folder that may be new."""
    stub = program(tmp_path / "bin", "python3", 'echo "$@"; echo "and more" >&2; sleep 1; echo later')
    program(stub, "ldconfig", "exit 1")  # as on a file system that cannot be written
    log = tmp_path / "new" / "log" / "cinestream.log"
    outcome = run("start.sh", log, path=stub)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")
    wait_until(lambda: log.exists() and "later" in log.read_text(encoding="utf-8"))
    arguments, *rest = log.read_text(encoding="utf-8").splitlines()
    assert rest == ["and more", "later"]
    options = make_parser().parse_args(arguments.removeprefix("-m gadgets ").split())
    assert (options.host, options.port, options.alias) == ("0.0.0.0", 9002, ["openrecon=cg_sense"])


def test_start_wants_a_log(tmp_path):
    outcome = run("start.sh", path=tmp_path)
    assert outcome.returncode != 0
    assert "path of the log file" in outcome.stderr


@pytest.fixture
def docker(tmp_path):
    """A Docker that knows one image, of two files."""
    tree = tmp_path / "tree"
    (tree / "opt").mkdir(parents=True)
    (tree / "opt" / "start.sh").write_text("#!/bin/bash\n", encoding="utf-8")
    (tree / "weights").write_bytes(os.urandom(3 << 20))
    (tree / "tmp").mkdir()
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(tree, ".")
    text = f"""
        case "$1 $2" in
            "create cinestream-fire:1") echo 1234 ;;
            "export --output") cp {tmp_path}/image.tar "$3"; test "$4" = 1234 ;;
            "rm 1234") echo 1234 ;;
            *) echo "docker: no such image: $2" >&2; exit 1 ;;
        esac
    """
    return program(tmp_path / "bin", "docker", text)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and owners want root")
needs_mke2fs = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "e2fsck", "debugfs"))), reason="the tools of ext3 are not installed"
)


@needs_root
@needs_mke2fs
def test_chroot_holds_the_image_and_what_fire_needs(docker, tmp_path):
    image = tmp_path / "cinestream.img"
    outcome = run("make_chroot.sh", "cinestream-fire:1", image, 8, path=docker)
    if "mknod" in outcome.stderr:
        pytest.skip("device nodes cannot be made here")
    assert outcome.returncode == 0, outcome.stderr
    assert str(image) in outcome.stdout
    assert image.stat().st_size > 11 << 20

    def listed(folder):
        return subprocess.run(
            ["debugfs", "-R", f"ls -p {folder}", str(image)], capture_output=True, text=True, check=False
        ).stdout

    assert "/start.sh/" in listed("/opt")
    assert "/weights/" in listed("/")
    assert all(f"/{name}/" in listed("/dev") for name in ("null", "zero", "random", "urandom"))
    assert all(f"/{name}/" in listed("/tmp/share") for name in ("code", "dependency", "log", "saved_data"))
    again = run("make_chroot.sh", "cinestream-fire:1", image, path=docker)
    assert again.returncode == 1
    assert "choose another file" in again.stderr


@needs_root
def test_chroot_of_no_image_leaves_nothing(docker, tmp_path):
    outcome = run("make_chroot.sh", "other", tmp_path / "other.img", path=docker)
    assert outcome.returncode != 0
    assert "no such image" in outcome.stderr
    assert not (tmp_path / "other.img").exists()


@pytest.mark.parametrize("arguments", [[], ["image"]])
def test_chroot_says_what_it_wants(arguments, tmp_path):
    outcome = run("make_chroot.sh", *arguments, path=tmp_path)
    assert outcome.returncode != 0
    assert "expected" in outcome.stderr
