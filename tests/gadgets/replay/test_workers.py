"""Processes that reconstruct: images of replay, whoever is killed; and what a process that cannot begin says."""

import csv
import logging
import os
import random
import signal
import time

import pytest

from gadgets.replay import replay
from gadgets.replay.batch import Batch, BatchProgress
from gadgets.replay.job import Job, JobRunner, read_outcome
from gadgets.replay.plan import make_plan
from gadgets.replay.table import TABLE, Table
from gadgets.replay.workers import ProcessWorkers
from gadgets.settings.settings import Settings, apply, changed_settings
from gadgets.simulation import ScanPlan, write_simulation
from recon_core.api import shared_engine
from recon_core.errors import ResourceError
from tests.gadgets.connection.test_front import children_of
from tests.helpers.image_files import contents
from tests.helpers.peers import wait_until
from tests.recon_core.test_children import is_running

SETTINGS = Settings.of(method="cg_sense", iterations=4, series=3, extra_series="zero_filled")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Raw files of several sizes, and the images that replay makes of them."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "replayed").mkdir()
    for number in range(6):
        plan = ScanPlan(matrix_x=48, matrix_y=40 + 8 * (number % 2), frames=4, slices=2, coils=3, seed=number)
        write_simulation(plan, folder / f"{number}.h5")
        replay(folder / f"{number}.h5", folder / "replayed" / f"{number}.h5", SETTINGS, shared_engine)
    return folder


@pytest.fixture(autouse=True)
def _logger_as_before():
    """A runner takes the log of its process."""
    logger = logging.getLogger("cinestream")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def plan_of(archive, output, settings=SETTINGS):
    output.mkdir(exist_ok=True)
    return make_plan([(path, output / path.name) for path in sorted(archive.glob("*.h5"))], settings, "dataset")


def test_settings_reach_a_worker_as_they_are():
    for settings in (SETTINGS, Settings(), Settings.of(method="auto", deadline=0.1, kspace_filter=1 / 3)):
        assert apply(Settings(), changed_settings(settings)) == settings


def test_a_runner_makes_the_images_of_replay_and_keeps_how(archive, tmp_path):
    entry = plan_of(archive, tmp_path)[0]
    runner = JobRunner(logging.INFO)
    found = runner.run(vars(entry.job))
    log = found.pop("log")
    assert contents(entry.output) == contents(archive / "replayed" / "0.h5")
    assert (found["slices"], found["images"], found["methods"]) == (2, 16, {"cg_sense": 2})
    assert found["seconds"] >= found["slice_seconds"] > 0
    assert found["worker"].endswith(f":{os.getpid()}")
    assert any("slice 0: 8 images with cg_sense" in line for _, line in log)
    again = make_plan([(entry.source, entry.output)], SETTINGS, "dataset")[0]
    assert again.job is None
    assert vars(again.before) == found


def test_a_file_that_fails_leaves_nothing_but_its_reason(archive, tmp_path):
    bad = tmp_path / "bad.h5"
    bad.write_bytes((archive / "0.h5").read_bytes()[:5000])
    job = Job(str(bad), str(tmp_path / "out" / "bad.h5"), "dataset", {}, {})
    found = JobRunner(logging.WARNING).run(vars(job))
    assert found["failed"]
    assert "bad.h5" in found["problems"][0]
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    job = Job(str(archive / "0.h5"), str(tmp_path / "file" / "0.h5"), "dataset", {}, {})
    assert "cannot write" in JobRunner(logging.WARNING).run(vars(job))["problems"][0]


def test_an_unexpected_error_is_one_of_the_file_too(archive, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("surprise")

    monkeypatch.setattr("gadgets.replay.to_file.replay", fail)
    job = Job(str(archive / "0.h5"), str(tmp_path / "0.h5"), "dataset", {}, {})
    found = JobRunner(logging.WARNING).run(vars(job))
    assert found["problems"] == ["unexpected error: RuntimeError: surprise"]
    assert "Traceback" in found["log"][0][1]


def test_a_worker_that_cannot_begin_is_said_and_not_tried_for_ever(archive, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("gadgets.replay.workers._TARGET", "tests.recon_core.test_children:absent")
    entries = plan_of(archive, tmp_path / "out")
    workers = ProcessWorkers(1, 1, logging.WARNING)
    with (
        BatchProgress(entries, print) as progress,
        pytest.raises(ResourceError, match=r"no worker can be started.*doc"),
    ):
        Batch(entries, Table(tmp_path / "out" / TABLE), workers).run(progress)
    assert "absent" in capfd.readouterr().err


def test_by_default_the_cores_suffice_for_all_processes(monkeypatch):
    monkeypatch.setattr("gadgets.replay.workers.usable_cores", lambda: 12)
    monkeypatch.setattr("gadgets.replay.workers.usable_gpus", list)
    assert [ProcessWorkers(0, threads, 0).count for threads in (1, 2, 5, 16)] == [12, 6, 2, 1]
    assert ProcessWorkers(3, 2, 0).description == "3 processes of 2 threads"
    monkeypatch.setattr("gadgets.replay.workers.usable_gpus", lambda: ["2", "5"])
    workers = ProcessWorkers(0, 4, 0)
    assert workers.count == 2
    assert workers.description == "2 processes of 4 threads on 2 GPUs"
    assert [one["CUDA_VISIBLE_DEVICES"] for one in ProcessWorkers(3, 4, 0)._environments] == ["2", "5", "2"]
    assert ProcessWorkers(0, 4, 0, gpu=False).count == 3


@pytest.mark.slow
def test_whoever_is_killed_at_any_time_all_images_are_those_of_replay(archive, tmp_path):
    """Workers are killed while they start, read, compute and write; once while they are idle."""
    output = tmp_path / "out"
    entries = plan_of(archive, output)
    workers = ProcessWorkers(2, 1, logging.WARNING)
    chance, kills, pids = random.Random(5), [], set()
    wait = workers.wait

    def killing(seconds):
        pids.update(workers.pids)
        if len(kills) < 5 and time.monotonic() > killing.next:
            kills.append(chance.choice(workers.pids))
            os.kill(kills[-1], signal.SIGKILL)
            killing.next = time.monotonic() + chance.uniform(0.5, 2.5)
        return wait(min(seconds, 0.1))

    killing.next = time.monotonic() + 0.5
    workers.wait = killing
    batch = Batch(entries, Table(output / TABLE), workers)
    with BatchProgress(entries, print) as progress:
        batch.run(progress)
    assert kills
    assert [row.outcome.word for row in batch.rows] == ["done"] * 6
    assert sum(row.tries for row in batch.rows) > 6
    for entry in entries:
        assert contents(entry.output) == contents(archive / "replayed" / entry.source.name)
        assert read_outcome_of(entry.output).images == 16
    assert sorted(path.name for path in output.iterdir()) == [*(f"{number}.h5" for number in range(6)), "outcomes.csv"]
    with (output / "outcomes.csv").open(encoding="utf-8") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["done"] * 6
    assert not [pid for pid in pids if is_running(pid)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A raw file of many slices, and the images that replay makes of it."""
    folder = tmp_path_factory.mktemp("large")
    write_simulation(ScanPlan(matrix_x=48, matrix_y=40, frames=4, slices=12, coils=3), folder / "0.h5")
    replay(folder / "0.h5", folder / "replayed.h5", SETTINGS, shared_engine)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["nobody", "helper", "worker"])
def test_slices_of_one_scan_are_those_of_replay_whoever_makes_them(large, killed, tmp_path):
    (tmp_path / "out").mkdir()
    entries = make_plan([(large / "0.h5", tmp_path / "out" / "0.h5")], SETTINGS, "dataset")
    workers, pids, at_work = ProcessWorkers(3, 1, logging.INFO), set(), set()
    wait = workers.wait

    def watching(seconds):
        mine = workers.pids
        helpers = [pid for parent in mine for pid in children_of(parent)]
        pids.update(mine, helpers)
        at_work.update(mine)
        if killed != "nobody" and len(helpers) == 2 and not watching.done:
            time.sleep(1.0 if killed == "worker" else 0.0)
            os.kill((helpers if killed == "helper" else mine)[0], signal.SIGKILL)
            watching.done = True
        return wait(min(seconds, 0.05))

    watching.done = False
    workers.wait = watching
    batch = Batch(entries, Table(tmp_path / "out" / TABLE), workers)
    with BatchProgress(entries, print) as progress:
        batch.run(progress)
    (row,) = batch.rows
    assert (row.outcome.word, row.outcome.slices, row.outcome.problems) == ("done", 12, [])
    assert contents(entries[0].output) == contents(large / "replayed.h5")
    assert len(at_work) == (2 if killed == "worker" else 1)
    assert len(pids) >= len(at_work) + 2  # with the helpers, and what a process starts for a moment
    assert row.tries == (2 if killed == "worker" else 1)
    wait_until(lambda: not [pid for pid in pids if is_running(pid)])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.h5", "outcomes.csv"]


def read_outcome_of(path):
    from gadgets.files.images import read_record

    return read_outcome(read_record(path))[1]
