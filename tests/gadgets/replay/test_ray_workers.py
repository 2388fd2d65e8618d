"""Workers of a Ray cluster: a stand-in that does as it is told, and a real Ray on this machine."""

import contextlib
import csv
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gadgets.commands.main import INTERRUPTED
from gadgets.replay import replay
from gadgets.replay.batch import Batch, BatchProgress
from gadgets.replay.job import Job, Outcome, versions
from gadgets.replay.plan import make_plan
from gadgets.replay.ray_workers import RayWorkers
from gadgets.replay.table import TABLE, Table
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, write_simulation
from recon_core import cluster
from recon_core.api import shared_engine
from recon_core.errors import ResourceError
from recon_core.own_methods import allow_methods
from tests.gadgets.commands.conftest import program
from tests.helpers.image_files import contents
from tests.helpers.peers import wait_until
from tests.helpers.stand_in_ray import ADDRESS, ActorDiedError
from tests.recon_core.test_children import is_running

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install ".[cluster]"')
patient = pytest.mark.timeout(900)  # a Ray on a busy machine takes minutes to start


class Runner:
    """An actor that does jobs at once, or ends as `deaths` says, in turn."""

    def __init__(self, jobs, deaths, theirs):
        self._jobs, self._deaths, self._theirs = jobs, deaths, theirs

    def versions(self):
        if isinstance(self._theirs, Exception):
            raise self._theirs
        return self._theirs

    def run(self, job, helpers):
        self._jobs.append((Path(job["source"]).name, len(helpers)))
        for death in self._deaths.pop(0) if self._deaths else ():
            raise death
        return {**vars(Outcome(images=2)), "log": [[logging.WARNING, "a line"]]}


def run_batch(workers, folder, count=4):
    for number in range(count):
        (folder / f"{number}.h5").write_bytes(bytes(10))
    (folder / "out").mkdir()
    entries = make_plan([(folder / f"{i}.h5", folder / "out" / f"{i}.h5") for i in range(count)], Settings(), "dataset")
    batch = Batch(entries, Table(folder / "out" / TABLE), workers)
    with BatchProgress(entries, print) as progress:
        batch.run(progress)
    return batch


@pytest.fixture
def runners(stand_in):
    """Make workers whose actors do jobs at once."""

    def make(count=2, deaths=(), theirs=None, **options):
        jobs, deaths = [], [*deaths]
        ray = stand_in(make=lambda *_: Runner(jobs, deaths, theirs or versions()), **options)
        ray.jobs = jobs
        return ray, RayWorkers(ADDRESS, count, 1, logging.INFO)

    return make


DIED = ActorDiedError("The actor died unexpectedly.\n  Worker exit type: SYSTEM_ERROR")


def test_jobs_go_to_actors_and_their_log_comes_back(runners, tmp_path, caplog):
    ray, workers = runners(count=0)
    assert workers.count == 2
    batch = run_batch(workers, tmp_path)
    assert [row.outcome.images for row in batch.rows] == [2] * 4
    assert sorted(ray.jobs) == [(f"{number}.h5", 0) for number in range(4)]
    assert caplog.text.count("a line") == 4
    assert (ray.killed, ray.shut) == (2, 1)


def test_an_actor_that_dies_is_replaced_and_its_job_done_again(runners, tmp_path, caplog):
    ray, workers = runners(deaths=[[], [DIED]])
    batch = run_batch(workers, tmp_path)
    assert [row.outcome.word for row in batch.rows] == ["done"] * 4
    assert sorted(row.tries for row in batch.rows) == [1, 1, 1, 2]
    assert ray.started == 3
    assert "Worker exit type: SYSTEM_ERROR; the scan is begun again" in caplog.text


def lost_at(call):
    """Let a call of the stand-in find the connection broken, and all after it."""

    def set_up(ray, monkeypatch):
        def broken(*_, **__):
            ray.lose()
            raise RuntimeError("<a class of errors of its own>\nwith more")

        monkeypatch.setattr(ray, call, broken)

    return set_up


@pytest.mark.parametrize("call", ["get", "wait"])
def test_a_cluster_that_is_lost_is_said_and_the_table_written(call, runners, tmp_path, monkeypatch):
    """As when the port for Ray's clients breaks."""
    ray, workers = runners()
    lost_at(call)(ray, monkeypatch)
    text = f"^the connection to the Ray cluster at {re.escape(ADDRESS)} broke: <a class of errors of its own>$"
    with pytest.raises(ResourceError, match=text):
        run_batch(workers, tmp_path)
    assert (tmp_path / "out" / TABLE).is_file()
    assert ray.shut == 1


def test_actors_without_a_job_help_with_those_of_others(runners, tmp_path):
    ray, workers = runners(count=5, cpus=8)
    batch = run_batch(workers, tmp_path, 2)
    assert [row.outcome.word for row in batch.rows] == ["done"] * 2
    assert ray.jobs == [("0.h5", 1), ("1.h5", 2)]
    assert (ray.started, ray.killed) == (5, 5)


def test_after_a_job_its_helpers_do_others(runners, tmp_path):
    _, workers = runners(count=3, cpus=8)
    workers.submit(job_of(tmp_path), 2)
    assert workers.count == 3
    assert [event.outcome.images for event in workers.wait(1)] == [2]
    assert workers.wait(1) == [], "they show first that they are there"
    assert workers.count == 3
    for _ in range(3):
        workers.submit(job_of(tmp_path))
    assert len(workers.wait(1)) == 3
    workers.close()


def test_helpers_that_have_died_are_replaced_however_many(runners, tmp_path):
    ray, workers = runners(count=6, cpus=8)
    workers.submit(job_of(tmp_path), 5)
    for actor in ray.actors[:5]:  # the last one has the job
        actor.dead = True
    while workers.count < 6 or ray.started < 11:
        workers.wait(1)
    assert ray.started == 11
    workers.close()


def job_of(folder):
    return Job(str(folder / "0.h5"), str(folder / "out.h5"), "dataset", {}, {})


def test_workers_that_the_cluster_does_not_give_hold_up_nobody(runners, tmp_path):
    ray, workers = runners(count=3, most=1)
    assert workers.count == 1
    batch = run_batch(workers, tmp_path)
    assert [row.outcome.word for row in batch.rows] == ["done"] * 4
    assert ray.killed == 3


def test_workers_are_waited_for_where_there_is_room(runners, monkeypatch):
    waited = []
    monkeypatch.setattr(RayWorkers, "wait", lambda workers, _: waited.append(workers.count) or workers._idle.append(0))
    assert runners(count=4, cpus=3)[1].count == 3
    assert waited == [0, 1, 2]


def test_a_cluster_that_gives_no_worker_at_all_is_said(runners):
    with pytest.raises(ResourceError, match="2 CPUs and 0 GPUs are free"):
        runners(count=1, most=0)
    assert sys.modules["ray"].shut == 1


def test_workers_of_another_version_are_refused(runners):
    with pytest.raises(ResourceError, match=r"a Ray worker has cinestream 0\.0\.1, and here it is"):
        runners(theirs={**versions(), "cinestream": "0.0.1"})
    with pytest.raises(ResourceError, match=r"a Ray worker has Python 3\.9"):
        runners(theirs={**versions(), "Python": "3.9"})


def test_workers_without_cinestream_are_said_and_not_started_for_ever(runners, monkeypatch):
    monkeypatch.setattr(cluster, "START_SECONDS", 30)
    missing = ActorDiedError("The actor died.\nModuleNotFoundError: No module named 'gadgets'")
    with pytest.raises(ResourceError, match="No module named 'gadgets'; cinestream must be installed on all machines"):
        runners(theirs=missing)
    assert sys.modules["ray"].started < 10


# --- a real one -------------------------------------------------------------------------------------------------------

# The first to run waits to be killed; all others give the time average.
METHOD = """\
import os, pathlib, time
from recon_core.physics.fourier import ifft

def METHOD(data):
    here = pathlib.Path(__file__)
    try:
        here.with_name("first").touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        here.with_name(f"pid{os.getpid()}").touch()
        time.sleep(600)
    images = ifft(data.reference, (-2,))
    return (data.maps.conj() * images).sum(0).expand(len(data.hybrid), -1, -1)
"""


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Raw files, and a method of our own."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "patient.py").write_text(METHOD)
    monkeypatch.setenv("CINESTREAM_METHODS", str(tmp_path / "methods"))
    for number in range(3):
        plan = ScanPlan(matrix_x=48, matrix_y=40, frames=4, coils=3, seed=number)
        write_simulation(plan, tmp_path / "archive" / f"{number}.h5")
    return tmp_path / "archive"


def rays():
    """Processes of any Ray on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"ray" in path.read_bytes().split(b"\0")[0]:
                found.append(int(path.parent.name))
    return found


OPTIONS = ["--set", "method=patient", "--set", "fallback=none", "--ray", "local", "--processes", "2"]


@needs_ray
@patient
@pytest.mark.slow
def test_with_a_local_ray_images_are_those_of_replay_though_a_worker_is_killed(archive, tmp_path):
    before = set(rays())
    line = [sys.executable, "-m", "gadgets", "batch", str(archive), "-o", str(tmp_path / "out"), *OPTIONS]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list((tmp_path / "methods").glob("pid*")))
        os.kill(int(next((tmp_path / "methods").glob("pid*")).name.removeprefix("pid")), signal.SIGKILL)
        said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "3 done, 0 damaged, 0 failed" in said
    assert err.count("is begun again") == 1
    with (tmp_path / "out" / "outcomes.csv").open(encoding="utf-8") as file:
        assert sorted(row["tries"] for row in csv.DictReader(file)) == ["1", "1", "2"]
    assert len(list((tmp_path / "out").iterdir())) == 4
    allow_methods(["patient"])
    settings = Settings.of(method="patient", fallback="none")
    for number in range(3):
        replay(archive / f"{number}.h5", tmp_path / f"{number}.h5", settings, shared_engine)
        assert contents(tmp_path / "out" / f"{number}.h5") == contents(tmp_path / f"{number}.h5")
    wait_until(lambda: not set(rays()) - before)


@needs_ray
@patient
@pytest.mark.slow
def test_a_batch_that_is_terminated_ends_a_local_ray_too(archive, tmp_path):
    before = set(rays())
    line = [sys.executable, "-m", "gadgets", "batch", str(archive), "-o", str(tmp_path / "out"), *OPTIONS]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list((tmp_path / "methods").glob("pid*")))
        worker = int(next((tmp_path / "methods").glob("pid*")).name.removeprefix("pid"))
        process.terminate()  # as Slurm and Kubernetes do
        _, err = process.communicate(timeout=60)
    assert err.splitlines() == ["cinestream: stopped; nothing that was not whole is left"]
    assert process.returncode == INTERRUPTED
    wait_until(lambda: not set(rays()) - before and not is_running(worker))
    assert not list((tmp_path / "out").rglob("*.part"))


@needs_ray
@patient
@pytest.mark.slow
def test_that_no_cluster_runs_is_said(archive, tmp_path):
    ran = program("batch", archive, "-o", tmp_path / "out", "--ray", "auto", env={**os.environ, "RAY_ADDRESS": ""})
    assert ran.returncode == 1
    assert re.fullmatch(r"cinestream: no Ray cluster at auto: .*ray start --head.*\n", ran.stderr)


# As that of above, of a scan that two make; who is to be killed waits for that.
SHARED = """\
import os, pathlib, threading, time
from recon_core.physics.fourier import ifft

def METHOD(data):
    here = pathlib.Path(__file__)
    role = "worker" if threading.current_thread().name.startswith("cinestream-slice") else "helper"
    mine, helps, victim = (here.with_name(name) for name in (f"{role}{os.getpid()}", "helps", "victim"))
    mine.touch()
    if role == "helper":
        helps.touch()
    while role == "worker" and not helps.exists():
        time.sleep(0.05)
    try:
        here.with_name(f"wait_{role}").unlink()
    except FileNotFoundError:
        pass
    else:
        victim.with_suffix(".part").write_text(str(os.getpid()))
        victim.with_suffix(".part").rename(victim)
        time.sleep(600)
    images = ifft(data.reference, (-2,))
    return (data.maps.conj() * images).sum(0).expand(len(data.hybrid), -1, -1)
"""


@needs_ray
@patient
@pytest.mark.slow
@pytest.mark.parametrize("killed", ["nobody", "helper", "worker"])
def test_slices_of_one_scan_are_those_of_replay_whichever_actor_makes_them(killed, tmp_path, monkeypatch):
    methods, raw = tmp_path / "methods", tmp_path / "archive" / "0.h5"
    for folder in (methods, raw.parent):
        folder.mkdir()
    (methods / "shared.py").write_text(SHARED)
    (methods / f"wait_{killed}").touch()
    monkeypatch.setenv("CINESTREAM_METHODS", str(methods))
    write_simulation(ScanPlan(matrix_x=48, matrix_y=40, frames=4, slices=8, coils=3), raw)
    line = [sys.executable, "-m", "gadgets", "batch", str(raw.parent), "-o", str(tmp_path / "out")]
    line += [option.replace("patient", "shared") for option in OPTIONS]
    before = set(rays())
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if killed != "nobody":
            while not (methods / "victim").exists():  # a Ray on a busy machine may take long to start
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            os.kill(int((methods / "victim").read_text()), signal.SIGKILL)
        said, err = process.communicate()
    assert "1 done, 0 damaged, 0 failed" in said, err
    with (tmp_path / "out" / "outcomes.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["slices"], row["tries"], row["problems"]) == ("8", "2" if killed == "worker" else "1", ""), err
    assert err.count("is begun again") == (killed == "worker")
    assert err.count("a process that helped died") == (killed == "helper")
    assert {"helper", "worker"} < {path.name.rstrip("0123456789") for path in methods.iterdir()}
    allow_methods(["shared"])
    replay(raw, tmp_path / "0.h5", Settings.of(method="shared", fallback="none"), shared_engine)
    assert contents(tmp_path / "out" / "0.h5") == contents(tmp_path / "0.h5")
    wait_until(lambda: not set(rays()) - before)
