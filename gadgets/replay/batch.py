"""Many raw files: jobs for workers, and another try where a worker died."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from tqdm import tqdm

from gadgets.replay.job import Outcome
from gadgets.replay.plan import made_by
from gadgets.replay.table import Row
from recon_core.errors import ResourceError
from recon_core.storage import PART, whole_of
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gadgets.replay.job import Job
    from gadgets.replay.plan import Entry
    from gadgets.replay.table import Table
    from gadgets.replay.workers import Event, Workers

logger = logging.getLogger("cinestream")

#: How often a scan is begun of which the worker dies; the last try is made while no other scan runs.
TRIES = 4

_WAIT_SECONDS = 0.5
_TABLE_SECONDS = 30.0  # from one writing of the table to the next


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other batches away from it meanwhile.

    Raises
    ------
    ResourceError
        If it cannot be made or written to, or another batch writes into it.
    """
    probe = folder / f".writable.{os.getpid()}{PART}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ResourceError(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            text = f"another batch writes into {folder}: wait for it, or choose another folder"
            raise ResourceError(text) from error
        logger.info("%s cannot be locked (%s); see that one batch at a time uses it", folder, error.strerror)
    try:
        yield
    finally:
        os.close(handle)


class Batch:
    """Reconstructs what a plan holds.

    Parameters
    ----------
    entries
        The plan; files that nothing is to be done with are in the table too.
    table
        Of the outcomes.
    workers
        Who does it.
    """

    def __init__(self, entries: Sequence[Entry], table: Table, workers: Workers) -> None:
        self.rows = [Row(entry, entry.before, _made_before(entry)) for entry in entries]
        self._table = table
        self._workers = workers
        self._queue = deque(row for row in self.rows if row.entry.job is not None)
        self._running: dict[str, Row] = {}  # by output
        self._helpers: Counter[str] = Counter()  # of those that run: how many further workers each has
        self._next_table = 0.0
        self.table_is_written = False
        for row in self.rows:
            if row.outcome is not None and row.outcome.failed:
                logger.error("%s: %s", row.entry.source, row.outcome.problems[0])

    def run(self, progress: BatchProgress, check: Callable[[], None] = lambda: None) -> None:
        """Do it; the table is written now and then, and at the end whatever happens.

        Parameters
        ----------
        progress
            Is told what is done.
        check
            Called now and then; what it raises ends the batch.

        Raises
        ------
        ResourceError
            If no worker can be started any more.
        """
        self._remove_parts()
        try:
            while self._queue or self._running:
                check()
                self._submit()
                for event in self._workers.wait(_WAIT_SECONDS):
                    self._take(event, progress)
                progress.show(len(self._running))
                if time.monotonic() >= self._next_table:
                    self.write_table()
        finally:
            self._workers.close()
            self._remove_parts()
            self.write_table()

    def write_table(self) -> None:
        """Write what is known so far; that it cannot be written stops no scan."""
        self._next_table = time.monotonic() + _TABLE_SECONDS
        try:
            self._table.write(self.rows)
        except ResourceError as error:
            self.table_is_written = False
            logger.error("%s", error)
        else:
            self.table_is_written = True

    def _submit(self) -> None:
        while self._queue and (free := self._workers.count - len(self._running) - self._helpers.total()) > 0:
            row = self._queue[0]
            alone = row.tries == TRIES - 1
            if self._running and (alone or any(one.tries == TRIES for one in self._running.values())):
                return
            self._queue.popleft()
            row.tries += 1
            job = _job_of(row)
            self._running[job.output] = row
            # after a death less is taken, which may have been for want of memory
            self._helpers[job.output] = max(0, free // (1 + len(self._queue)) - 1) if row.tries == 1 else 0
            self._workers.submit(job, self._helpers[job.output])

    def _take(self, event: Event, progress: BatchProgress) -> None:
        row = self._running.pop(event.job.output)
        del self._helpers[event.job.output]
        for level, line in event.log:
            logger.log(level, "%s: %s", row.entry.source, line)
        outcome = event.outcome or made_by(event.job)  # it may have died just behind its last step
        if outcome is None:
            text = f"the worker of {row.entry.source} died: {event.death}"
            if row.tries < TRIES:
                logger.warning("%s; the scan is begun again", text)
                self._queue.append(row)
                return
            outcome = Outcome.failure(
                f"its worker died {many(row.tries, 'time')}, at last while no other scan ran: "
                f"{event.death}; the scan may need more memory than there is"
            )
        if outcome.failed:
            logger.error("%s: %s", row.entry.source, outcome.problems[0])
        row.outcome, row.made = outcome, "no" if outcome.failed else "now"
        progress.add(row.entry.size, outcome)

    def _remove_parts(self) -> None:
        """Remove what workers that died have left of images; nobody else writes here."""
        ours = {row.entry.output for row in self.rows if row.entry.job is not None}
        for folder in {output.parent for output in ours}:
            for part in folder.glob(f".*{PART}"):
                if whole_of(part) in ours:
                    with contextlib.suppress(OSError):
                        part.unlink()


def _job_of(row: Row) -> Job:
    assert row.entry.job is not None  # noqa: S101 - it is in the queue
    return row.entry.job


def _made_before(entry: Entry) -> str:
    if entry.before is None:
        return ""
    return "no" if entry.before.failed else "before"


class BatchProgress:
    """How far a batch is and how long it will take: a bar where a person watches, else a line now and then.

    Parameters
    ----------
    entries
        The plan.
    say
        Prints a line.
    seconds
        From line to line.
    """

    def __init__(self, entries: Sequence[Entry], say: Callable[[str], None], seconds: float = 30.0) -> None:
        sizes = [entry.size for entry in entries if entry.job is not None]
        self.words: Counter[str] = Counter()
        self._scans, self._bytes = len(sizes), sum(sizes)
        self._done_bytes = 0
        self._say, self._seconds = say, seconds
        self._begin = time.monotonic()
        self._next = self._begin + seconds
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} scans [{elapsed}, {postfix}]"
        self._bar = tqdm(total=self._scans, desc="batch", disable=None, leave=False, bar_format=form)

    def __enter__(self) -> BatchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, size: int, outcome: Outcome) -> None:
        """Count a scan."""
        self.words[outcome.word] += 1
        self._done_bytes += size
        self._bar.update()

    def left(self) -> float | None:
        """Seconds that the rest will take, by its bytes; None while nothing is known."""
        if not self._done_bytes:
            return None
        return (time.monotonic() - self._begin) * (self._bytes - self._done_bytes) / self._done_bytes

    def show(self, running: int) -> None:
        """Bring the bar up to date, or say where it stands if that is due."""
        left = self.left()
        state = [f"{count} {word}" for word, count in self.words.items() if word != "done"]
        state += [f"{running} running", "time left not known yet" if left is None else f"about {in_words(left)} left"]
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(state))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._say(f"{self.words.total()} of {many(self._scans, 'scan')}: {', '.join(state)}")


def in_words(seconds: float) -> str:
    """A time that is not known well."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
