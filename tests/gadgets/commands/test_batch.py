"""``cinestream batch``: what it says and leaves, and how it ends."""

import csv
import os
import shutil
import signal
import subprocess
import sys

import pytest

from gadgets.commands.batch import _interruptible
from gadgets.commands.main import INTERRUPTED
from tests.helpers.image_files import contents
from tests.helpers.peers import wait_until
from tests.recon_core.test_children import is_running


@pytest.fixture
def archive(scan, damaged, tmp_path):
    """Two files of one name in two folders, a damaged one, one that is none."""
    folder = tmp_path / "archive"
    (folder / "other").mkdir(parents=True)
    shutil.copy(scan, folder / "scan.h5")
    shutil.copy(scan, folder / "other" / "scan.h5")
    shutil.copy(damaged, folder / "damaged.h5")
    (folder / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n and nothing more")
    return folder


def outcomes(folder):
    with (folder / "outcomes.csv").open(encoding="utf-8") as file:
        return {os.path.relpath(row["output"], folder): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_an_archive_is_reconstructed_and_then_only_what_is_missing(archive, scan, tmp_path, run, caplog):
    out = tmp_path / "out"
    line = ["batch", archive, "-p", "zero_filled", "-o", out, "--processes", 2]
    status, said, _ = run(*line)
    assert status == 1
    assert "4 scans" in said
    assert f"2 done, 1 damaged, 1 failed; table in {out / 'outcomes.csv'}" in said
    assert f"{archive / 'broken.h5'}: cannot read" in caplog.text
    assert f"{archive / 'damaged.h5'}: readout" in caplog.text
    assert run("replay", scan, "-p", "zero_filled", "-o", tmp_path / "replayed.h5")[0] == 0
    for name in ("scan.h5", "other/scan.h5"):
        assert contents(out / name) == contents(tmp_path / "replayed.h5")
    rows = outcomes(out)
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "broken.h5": "failed",
        "damaged.h5": "damaged",
        "scan.h5": "done",
        "other/scan.h5": "done",
    }
    assert "coils" in rows["damaged.h5"]["problems"]
    before = {name: (out / name).stat().st_mtime_ns for name in ("scan.h5", "other/scan.h5", "damaged.h5")}
    (out / "other" / "scan.h5").unlink()
    status, said, _ = run(*line)
    assert status == 1
    assert "2 scans" in said
    assert "2 there already" in said
    assert {name: row["made"] for name, row in outcomes(out).items()} == {
        "broken.h5": "no",
        "damaged.h5": "before",
        "scan.h5": "before",
        "other/scan.h5": "now",
    }
    assert (out / "scan.h5").stat().st_mtime_ns == before["scan.h5"]
    assert (out / "damaged.h5").stat().st_mtime_ns == before["damaged.h5"]
    assert outcomes(out)["damaged.h5"]["problems"] == rows["damaged.h5"]["problems"]
    (archive / "broken.h5").unlink()
    (archive / "damaged.h5").unlink()
    status, said, _ = run(*line, "--table", "again.csv")
    assert (status, "0 scans" in said, "2 done, 0 damaged, 0 failed" in said) == (0, True, True)
    assert (out / "again.csv").read_text(encoding="utf-8").count(",done,0,before,") == 2


def test_a_dry_run_says_what_would_be_done_and_does_nothing(archive, tmp_path, run):
    (archive / "list.txt").write_text("scan.h5\nscan.h5\nother/scan.h5\nabsent.h5\n")
    out = tmp_path / "out"
    status, said, _ = run("batch", archive / "list.txt", "-o", out, "--dry-run")
    assert status == 1
    assert f"{archive}/scan.h5 -> {out}/scan.h5: there are no images yet" in said
    assert f"{archive}/other/scan.h5 -> {out}/other/scan.h5: there are no images yet" in said
    assert f"{archive}/absent.h5: not possible: cannot read {archive}/absent.h5: No such file or directory" in said
    assert said.splitlines()[-1].startswith("2 scans (")
    assert said.splitlines()[-1].endswith("0 there already, 1 that cannot be")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["empty"], 2, "ends in .h5"),
        (["absent.txt"], 1, "cannot read absent.txt"),
        (["scan.h5"], 2, "cinestream replay"),
        (["archive", "-p", "grapa"], 2, "did you mean grappa"),
        (["archive", "--set", "units=snr", "--set", "partial_fourier=pocs"], 2, "units"),
        (["archive", "-o", "archive"], 2, "another folder"),
        (["archive", "-o", "scan.h5"], 1, "cannot write into scan.h5"),
        (["archive", "--processes", "0"], 2, "from 1 to"),
        (["archive", "--table", "table.xlsx"], 2, "ends in .csv or .parquet"),
        (["archive", "--table", "folder/table.csv"], 2, "ends in .csv or .parquet"),
    ],
)
def test_a_wrong_call_is_said_at_once(arguments, status, text, archive, scan, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copy(scan, tmp_path / "scan.h5")
    found, _, err = run("batch", "-o", "out", *arguments)
    assert (found, text in err) == (status, True), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_end_is_not_lost_where_python_drops_what_is_raised(number):
    class Deleted:
        def __del__(self):
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with _interruptible() as check:
        check()
        one = Deleted()
        del one
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(number) == before


def test_an_end_that_is_ignored_stays_ignored():
    """As that of Ctrl-C in what a shell runs behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interruptible() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_without_parts_and_children(archive, tmp_path):
    """In the middle of a reconstruction, as a terminal sends it: to all processes of the group."""
    methods, out = tmp_path / "methods", tmp_path / "out"
    methods.mkdir()
    text = """\
import os, pathlib, time
def METHOD(_):
    pathlib.Path(__file__).with_name(f"begun{os.getpid()}").touch()
    time.sleep(60)
"""
    (methods / "sleepy.py").write_text(text, encoding="utf-8")
    (archive / "broken.h5").unlink()
    line = [sys.executable, "-m", "gadgets", "batch", str(archive), "-o", str(out), "--processes", "2"]
    options = ["--set", "method=sleepy", "--set", "fallback=none"]
    environment = {**os.environ, "CINESTREAM_METHODS": str(methods)}
    with subprocess.Popen(
        [*line, *options], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        wait_until(lambda: len(list(methods.glob("begun*"))) == 2)
        assert len(list(out.rglob("*.part"))) == 2
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err.splitlines() == ["cinestream: stopped; nothing that was not whole is left"]
    assert process.returncode == INTERRUPTED
    assert [path.name for path in out.rglob("*.*")] == ["outcomes.csv"]
    workers = [int(path.name.removeprefix("begun")) for path in methods.glob("begun*")]
    assert not [pid for pid in workers if is_running(pid)]


@pytest.mark.slow
def test_a_full_disk_is_said_for_each_file_and_the_rest_goes_on(archive, tmp_path):
    limit = shutil.which("prlimit") or pytest.skip("there is no prlimit here")
    (archive / "broken.h5").unlink()
    out = tmp_path / "out"
    line = [limit, "--fsize=8000", sys.executable, "-m", "gadgets", "batch", str(archive), "-o", str(out)]
    ran = subprocess.run([*line, "--processes", "1"], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    assert "0 done, 0 damaged, 3 failed" in ran.stdout
    assert ran.stderr.count("cannot write") == 3
    assert all("File too large" in row["problems"] for row in outcomes(out).values())
    assert "Traceback" not in ran.stderr
    assert [path.name for path in out.rglob("*.*")] == ["outcomes.csv"]


def test_who_plans_a_batch_needs_no_torch(archive, tmp_path):
    code = "import sys; from gadgets.commands.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    line = [sys.executable, "-c", code, "batch", str(archive), "-o", str(tmp_path / "out"), "--dry-run"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines()[-1] == "0 False"


def test_help_teaches(run):
    _, said, _ = run("batch", "--help")
    assert "outcomes.csv" in said
    assert "again" in said
