"""The course of a batch, with workers that do as they are told: tries, the table, the time left, one at a time."""

import csv
import io
import logging
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from gadgets.files.images import ImageFile
from gadgets.replay import batch as module
from gadgets.replay import table
from gadgets.replay.batch import TRIES, Batch, BatchProgress, in_words, only_one
from gadgets.replay.job import Outcome, as_record
from gadgets.replay.plan import make_plan
from gadgets.replay.table import TABLE, Table
from gadgets.replay.workers import Event
from gadgets.settings.settings import Settings
from recon_core.errors import ResourceError


class Scripted:
    """Workers that end jobs in turn, as `script` says: an outcome, or how the worker dies."""

    def __init__(self, script, count=2, held=""):
        self.count, self.description = count, "a script"
        self._script = script
        self._held = held  # ends when no other runs
        self.begun = []
        self.helpers = []
        self.together = []
        self._running = []
        self.closed = 0

    def submit(self, job, helpers=0):
        assert len(self._running) < self.count
        self.helpers.append(helpers)
        self.begun.append(Path(job.source).name)
        self._running.append(job)

    def wait(self, seconds):
        self.together.append(sorted(Path(job.source).name for job in self._running))
        self._running.sort(key=lambda job: Path(job.source).name == self._held)
        job = self._running.pop(0)
        end = self._script(Path(job.source).name, self.begun.count(Path(job.source).name))
        if isinstance(end, BaseException):
            raise end
        if isinstance(end, str):
            return [Event(job, death=end)]
        return [Event(job, end, log=[(logging.WARNING, "noise readouts are missing")] if end.damaged else [])]

    def close(self):
        self.closed += 1


@pytest.fixture
def entries(tmp_path):
    """Of six raw files of 1000 bytes; the last is missing."""
    for number in range(5):
        (tmp_path / f"{number}.h5").write_bytes(bytes(1000))
    sources = [(tmp_path / f"{number}.h5", tmp_path / "out" / f"{number}.h5") for number in range(6)]
    (tmp_path / "out").mkdir()
    return make_plan(sources, Settings(), "dataset")


def run(entries, script, held="", count=2):
    workers = Scripted(script, count, held)
    batch = Batch(entries, Table(entries[0].output.parent / TABLE), workers)
    lines = []
    with BatchProgress(entries, lines.append, seconds=0) as progress:
        batch.run(progress)
    assert workers.closed == 1
    return batch, workers, lines


def rows_of(folder):
    return list(csv.DictReader(io.StringIO((folder / "outcomes.csv").read_text())))


def test_every_file_has_its_outcome_in_the_table(entries, tmp_path, caplog):
    ends = {
        "0.h5": Outcome(readouts=9, slices=2, images=6, methods={"cg_sense": 2}, seconds=1.5, worker="here:1"),
        "1.h5": Outcome(["some readouts are broken", "noise"], damaged=True, images=3),
        "2.h5": Outcome.failure("no image readouts"),
    }
    batch, workers, _ = run(entries, lambda name, _: ends.get(name, Outcome(images=1)))
    assert sorted(workers.begun) == [f"{number}.h5" for number in range(5)]
    assert batch.table_is_written
    rows = rows_of(tmp_path / "out")
    assert [Path(row["input"]).name for row in rows] == [f"{number}.h5" for number in range(6)]
    assert [row["outcome"] for row in rows] == ["done", "damaged", "failed", "done", "done", "failed"]
    assert [row["status"] for row in rows] == ["0", "1", "1", "0", "0", "1"]
    assert [row["made"] for row in rows] == ["now", "now", "no", "now", "now", "no"]
    assert [row["tries"] for row in rows] == ["1", "1", "1", "1", "1", "0"]
    assert rows[0] | {"methods": "cg_sense:2", "images": "6", "seconds": "1.5", "worker": "here:1"} == rows[0]
    assert rows[1]["problems"] == "some readouts are broken; noise"
    assert "No such file" in rows[5]["problems"]
    said = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/1.h5: noise readouts are missing" in said
    assert f"{tmp_path}/2.h5: no image readouts" in said
    assert any(str(entries[5].source) in line for line in said)


def test_a_scan_of_which_the_worker_dies_is_begun_again(entries, caplog):
    script = lambda name, tries: "it was killed" if name == "1.h5" and tries < 3 else Outcome(images=tries)  # noqa: E731
    batch, workers, _ = run(entries, script)
    assert Counter(workers.begun) == {"0.h5": 1, "1.h5": 3, "2.h5": 1, "3.h5": 1, "4.h5": 1}
    assert [row.outcome.images for row in batch.rows[:5]] == [1, 3, 1, 1, 1]
    assert sum("is begun again" in record.getMessage() for record in caplog.records) == 2


def test_one_that_kills_every_worker_is_given_up_and_hurts_no_other_at_last(entries):
    script = lambda name, _: "it was killed" if name == "0.h5" else Outcome(images=1)  # noqa: E731
    batch, workers, _ = run(entries, script, held="4.h5")
    assert ["0.h5", "4.h5"] in workers.together  # the tries before
    assert workers.begun.count("0.h5") == TRIES
    assert workers.together[-1] == ["0.h5"]  # alone
    assert batch.rows[0].outcome.failed
    assert "may need more memory" in batch.rows[0].outcome.problems[0]
    assert [row.outcome.word for row in batch.rows[1:5]] == ["done"] * 4


@pytest.mark.parametrize(
    ("count", "helpers"),
    [(2, [0] * 5), (5, [0] * 5), (8, [0, 0, 1, 1, 1]), (10, [1] * 5), (13, [1, 1, 2, 2, 2])],
)
def test_workers_that_would_be_idle_help(count, helpers, entries):
    _, workers, _ = run(entries, lambda *_: Outcome(), count=count)
    assert workers.helpers == helpers


def test_places_of_helpers_are_free_again_after_their_scan(entries):
    _, workers, _ = run(entries[:1], lambda _, tries: "it was killed" if tries == 1 else Outcome(), count=4)
    assert workers.helpers == [3, 0], "less is taken after a death"
    _, workers, _ = run(entries[1:4], lambda *_: Outcome(), count=3)
    assert workers.helpers == [0, 0, 0]


def test_two_that_kill_every_worker_do_not_hold_each_other_up(entries):
    batch, workers, _ = run(entries, lambda name, _: "it was killed" if name in ("0.h5", "1.h5") else Outcome())
    assert [row.outcome.word for row in batch.rows] == ["failed"] * 2 + ["done"] * 3 + ["failed"]
    assert workers.together[-2:] == [["0.h5"], ["1.h5"]]


def test_what_is_there_although_the_worker_died_is_not_made_again(entries):
    def script(name, tries):
        if name == "3.h5":
            with ImageFile(entries[3].output) as images:
                images.keep_record(as_record(entries[3].job.origin, Outcome(images=7)))
            return "it was killed"
        return Outcome()

    batch, workers, _ = run(entries, script)
    assert workers.begun.count("3.h5") == 1
    assert batch.rows[3].outcome.images == 7


def part_of(path, number="0123abcd"):
    part = path.with_name(f".{path.name}.{number}.part")
    part.write_text("half of it")
    return part


def test_parts_of_dead_workers_are_removed_and_no_others(entries, tmp_path):
    old = part_of(entries[0].output)
    mine = part_of(tmp_path / "out" / "mine.h5")
    made = []
    script = lambda name, _: made.append(part_of(entries[2].output)) or Outcome()  # noqa: E731
    run(entries, script)
    assert made
    assert not old.exists()
    assert not made[0].exists()
    assert mine.exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt(), ResourceError("no worker can be started")])
def test_an_end_in_between_leaves_no_part_and_a_table(end, entries, tmp_path):
    def script(name, _):
        if name == "1.h5":
            part_of(entries[1].output)
            return end
        return Outcome(images=2)

    workers = Scripted(script)
    with BatchProgress(entries, print) as progress, pytest.raises(type(end)):
        Batch(entries, Table(tmp_path / "out" / TABLE), workers).run(progress)
    assert workers.closed == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["outcomes.csv"]
    assert [row["outcome"] for row in rows_of(tmp_path / "out")] == ["done", "", "", "", "", "failed"]


def test_a_batch_asks_now_and_then_whether_it_is_to_end(entries, tmp_path):
    def check():
        if len(workers.begun) >= 2:
            raise KeyboardInterrupt

    workers = Scripted(lambda *_: Outcome(images=2))
    with BatchProgress(entries, print) as progress, pytest.raises(KeyboardInterrupt):
        Batch(entries, Table(tmp_path / "out" / TABLE), workers).run(progress, check)
    assert (len(workers.begun), workers.closed) == (2, 1)


def test_a_table_that_cannot_be_written_stops_nothing(entries, tmp_path, monkeypatch, caplog):
    def write(path, content):
        raise ResourceError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(table, "write_file", write)
    batch, workers, _ = run(entries, lambda *_: Outcome())
    assert len(workers.begun) == 5
    assert not batch.table_is_written
    assert "No space left on device" in caplog.text


# --- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_time_left_goes_by_bytes(clock, tmp_path):
    (tmp_path / "small.h5").write_bytes(bytes(1000))
    (tmp_path / "large.h5").write_bytes(bytes(9000))
    sources = [(tmp_path / name, tmp_path / "out" / name) for name in ("small.h5", "large.h5")]
    entries, lines = make_plan(sources, Settings(), "dataset"), []
    with BatchProgress(entries, lines.append, seconds=30) as progress:
        clock.now = 129.0
        progress.show(2)
        assert lines == []
        clock.now = 130.0
        progress.show(2)
        progress.add(1000, Outcome(damaged=True))
        assert progress.left() == pytest.approx(30 * 9)
        clock.now = 160.0
        progress.show(1)
    assert lines == [
        "0 of 2 scans: 2 running, time left not known yet",
        "1 of 2 scans: 1 damaged, 1 running, about 9 min left",
    ]


def test_a_person_sees_a_bar(entries, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    _, _, lines = run(entries, lambda *_: Outcome())
    assert lines == []
    assert "5/5 scans" in sys.stderr.getvalue()
    assert "left" in sys.stderr.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(5.4, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


# --- the folder -------------------------------------------------------------------------------------------------------


def test_one_batch_at_a_time_writes_into_a_folder(tmp_path):
    with only_one(tmp_path / "new" / "out"):
        with pytest.raises(ResourceError, match="another batch writes into"), only_one(tmp_path / "new" / "out"):
            pass
        assert list((tmp_path / "new" / "out").iterdir()) == []
    with only_one(tmp_path / "new" / "out"):
        pass


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="another folder"), only_one(tmp_path / "file"):
        pass
    with pytest.raises(ResourceError, match="another folder"), only_one(tmp_path / "file" / "below"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="Permission denied"), only_one(tmp_path):
        pass
