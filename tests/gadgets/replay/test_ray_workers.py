"""Workers of a Ray cluster: a stand-in that does as it is told, and a real Ray on this machine."""

import contextlib
import csv
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gadgets.commands.main import INTERRUPTED
from gadgets.replay import ray_workers, replay
from gadgets.replay.batch import Batch, BatchProgress
from gadgets.replay.job import Outcome, versions
from gadgets.replay.plan import make_plan
from gadgets.replay.ray_workers import RayWorkers
from gadgets.replay.table import TABLE, Table
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, write_simulation
from recon_core.api import shared_engine
from recon_core.errors import ResourceError, SettingsError
from recon_core.own_methods import allow_methods
from tests.gadgets.commands.conftest import program
from tests.helpers.image_files import contents
from tests.helpers.peers import wait_until
from tests.recon_core.test_children import is_running

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install ".[cluster]"')
ADDRESS = "127.0.0.1:1"


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class Answer:
    """What a call of an actor gives at once."""

    def __init__(self, actor, call, arguments):
        self.actor, self.call, self.arguments = actor, call, arguments


class StandIn(types.ModuleType):
    """What of Ray is used; actors do jobs at once, or end as `deaths` says, in turn."""

    def __init__(self, cpus=2, gpus=0, most=100, deaths=(), theirs=None, refuse=None):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayError=RayError)
        self._free, self._resources = most, {"CPU": cpus, "GPU": gpus}
        self._deaths, self._theirs, self._refuse = list(deaths), theirs or versions(), refuse
        self.options, self.killed, self.shut, self.started, self.jobs = {}, 0, 0, 0, []

    def init(self, **options):
        if self._refuse is not None:
            raise self._refuse

    def cluster_resources(self):
        return self._resources

    available_resources = cluster_resources

    def remote(self, kind):
        def options(**chosen):
            self.options = chosen
            return types.SimpleNamespace(remote=self._actor)

        return types.SimpleNamespace(options=options)

    def _actor(self, level):
        self.started += 1
        number = self.started

        def method(call):
            return types.SimpleNamespace(remote=lambda *arguments: Answer(number, call, arguments))

        return types.SimpleNamespace(versions=method("versions"), run=method("run"))

    def wait(self, answers, num_returns, timeout):
        assert len(answers) >= num_returns
        return [one for one in answers if one.actor <= self._free][:num_returns], []

    def get(self, answer):
        if answer.call == "versions":
            if isinstance(self._theirs, Exception):
                raise self._theirs
            return self._theirs
        self.jobs.append(Path(answer.arguments[0]["source"]).name)
        if self._deaths and (death := self._deaths.pop(0)):
            raise death
        return {**vars(Outcome(images=2)), "log": [[logging.WARNING, "a line"]]}

    def kill(self, actor):
        self.killed += 1

    def shutdown(self):
        self.shut += 1


@pytest.fixture
def stand_in(monkeypatch):
    """Put a stand-in in the place of Ray."""

    def make(**options):
        ray = StandIn(**options)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(ray_workers, "_reach", lambda _: None)
        monkeypatch.setattr(ray_workers, "_START_SECONDS", 0.05)
        return ray

    return make


def run_batch(workers, folder, count=4):
    for number in range(count):
        (folder / f"{number}.h5").write_bytes(bytes(10))
    (folder / "out").mkdir()
    entries = make_plan([(folder / f"{i}.h5", folder / "out" / f"{i}.h5") for i in range(count)], Settings(), "dataset")
    batch = Batch(entries, Table(folder / "out" / TABLE), workers)
    with BatchProgress(entries, print) as progress:
        batch.run(progress)
    return batch


def test_jobs_go_to_actors_and_their_log_comes_back(stand_in, tmp_path, caplog):
    ray = stand_in()
    workers = RayWorkers(ADDRESS, 0, 1, logging.INFO)
    assert workers.count == 2
    batch = run_batch(workers, tmp_path)
    assert [row.outcome.images for row in batch.rows] == [2] * 4
    assert sorted(ray.jobs) == ["0.h5", "1.h5", "2.h5", "3.h5"]
    assert caplog.text.count("a line") == 4
    assert (ray.killed, ray.shut) == (2, 1)
    assert ray.options["num_cpus"] == 1
    assert ray.options["num_gpus"] == 0
    assert ray.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "threads", "gpu", "wanted"),
    [
        (8, 0, 0, 1, True, 8),
        (8, 0, 0, 3, True, 2),
        (8, 3, 0, 2, True, 3),
        (8, 3, 0, 2, False, 4),
        (8, 3, 5, 1, True, 5),
        (1, 0, 0, 4, True, 1),
    ],
)
def test_there_is_one_worker_for_each_gpu_or_for_its_threads(cpus, gpus, count, threads, gpu, wanted, stand_in):
    ray = stand_in(cpus=cpus, gpus=gpus)
    RayWorkers(ADDRESS, count, threads, logging.INFO, gpu=gpu)
    assert ray.started == wanted
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (threads, int(gpu and gpus > 0))


def test_an_actor_that_dies_is_replaced_and_its_job_done_again(stand_in, tmp_path, caplog):
    ray = stand_in(deaths=[None, ActorDiedError("The actor died unexpectedly.\n  Worker exit type: SYSTEM_ERROR")])
    batch = run_batch(RayWorkers(ADDRESS, 2, 1, logging.INFO), tmp_path)
    assert [row.outcome.word for row in batch.rows] == ["done"] * 4
    assert sorted(row.tries for row in batch.rows) == [1, 1, 1, 2]
    assert ray.started == 3
    assert "Worker exit type: SYSTEM_ERROR; the scan is begun again" in caplog.text


def test_workers_that_the_cluster_does_not_give_hold_up_nobody(stand_in, tmp_path):
    ray = stand_in(most=1)
    workers = RayWorkers(ADDRESS, 3, 1, logging.INFO)
    assert workers.count == 1
    batch = run_batch(workers, tmp_path)
    assert [row.outcome.word for row in batch.rows] == ["done"] * 4
    assert ray.killed == 3


def test_a_cluster_that_gives_no_worker_at_all_is_said(stand_in):
    ray = stand_in(most=0)
    with pytest.raises(ResourceError, match="2 CPUs and 0 GPUs are free"):
        RayWorkers(ADDRESS, 1, 1, logging.INFO)
    assert ray.shut == 1


def test_workers_of_another_version_are_refused(stand_in):
    stand_in(theirs={**versions(), "cinestream": "0.0.1"})
    with pytest.raises(ResourceError, match=r"a Ray worker has cinestream 0\.0\.1, and here it is"):
        RayWorkers(ADDRESS, 1, 1, logging.INFO)
    stand_in(theirs={**versions(), "Python": "3.9"})
    with pytest.raises(ResourceError, match=r"a Ray worker has Python 3\.9"):
        RayWorkers(ADDRESS, 1, 1, logging.INFO)


def test_workers_without_cinestream_are_said_and_not_started_for_ever(stand_in, monkeypatch):
    ray = stand_in(theirs=ActorDiedError("The actor died.\nModuleNotFoundError: No module named 'gadgets'"))
    monkeypatch.setattr(ray_workers, "_START_SECONDS", 30)
    with pytest.raises(ResourceError, match="No module named 'gadgets'; cinestream must be installed on all machines"):
        RayWorkers(ADDRESS, 1, 1, logging.INFO)
    assert ray.started < 10


@pytest.mark.parametrize(
    ("refuse", "texts"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.1"),
            ["Version mismatch", "same versions"],
        ),
        (ConnectionError("Could not find any running Ray instance."), ["no Ray cluster at", "ray start --head"]),
    ],
)
def test_a_cluster_that_refuses_is_said(refuse, texts, stand_in):
    stand_in(refuse=refuse)
    with pytest.raises(ResourceError) as caught:
        RayWorkers(ADDRESS, 1, 1, logging.INFO)
    assert all(text in str(caught.value) for text in texts)


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ResourceError, match=re.escape('pip install "cinestream[cluster]"')):
        RayWorkers("local", 1, 1, logging.INFO)


@pytest.mark.parametrize(
    ("address", "error"), [("nowhere", SettingsError), (":1", SettingsError), ("h:x", SettingsError)]
)
def test_what_is_no_address_is_refused(address, error, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with pytest.raises(error, match="HOST:PORT"):
        RayWorkers(address, 1, 1, logging.INFO)


def test_an_address_where_nobody_answers_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        RayWorkers(f"127.0.0.1:{port}", 1, 1, logging.INFO)


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
        time.sleep(60)
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
@pytest.mark.slow
def test_that_no_cluster_runs_is_said(archive, tmp_path):
    ran = program("batch", archive, "-o", tmp_path / "out", "--ray", "auto", env={**os.environ, "RAY_ADDRESS": ""})
    assert ran.returncode == 1
    assert re.fullmatch(r"cinestream: no Ray cluster at auto: .*ray start --head.*\n", ran.stderr)
