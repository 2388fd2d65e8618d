"""One raw file of a batch, and the reconstruction of such files one after the other in a process that stays warm."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets import __version__
from gadgets.settings.settings import Settings, apply
from recon_core import cluster
from recon_core.api import shared_engine
from recon_core.budget import return_freed, share_freed
from recon_core.errors import CinestreamError
from recon_core.own_methods import allow_methods
from recon_core.spread import HelperProcess, Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gadgets.chain import ScanSummary
    from gadgets.images.maker import CineImage
    from gadgets.slices.complete import CompleteSlice
    from recon_core.data import Reconstruction
    from recon_core.spread import Helper

logger = logging.getLogger("cinestream")

_MOST_TEXT = (
    8000  # characters of all problems in a record: HDF5 has 64 KiB for an attribute, JSON up to 6 bytes for one
)
_MOST_LINES = 200  # of the log of a scan


@dataclass(frozen=True)
class Job:
    """What is to be done with one raw file."""

    source: str
    """The raw file."""
    output: str
    """The file of images; one that is there is replaced."""
    group: str
    """HDF5 group of both."""
    settings: Mapping[str, str]
    """Settings that differ from their defaults."""
    origin: Mapping[str, Any]
    """What the images depend on, kept with them: `gadgets.replay.plan.origin_of`."""


@dataclass
class Outcome:
    """Result of a job."""

    problems: list[str] = field(default_factory=list)
    """What went wrong or was noticed."""
    damaged: bool = False
    """Data were lost, or an image is missing or wrong."""
    failed: bool = False
    """There is no file of images."""
    readouts: int = 0
    """How many came."""
    slices: int = 0
    """How many were reconstructed."""
    images: int = 0
    """How many were made."""
    methods: dict[str, int] = field(default_factory=dict)
    """Slices by the method that made them."""
    seconds: float = 0.0
    """For all of it."""
    slice_seconds: float = 0.0
    """For the slices alone; the rest went to reading and sorting."""
    worker: str = ""
    """Which process did it."""

    @property
    def status(self) -> int:
        """As the exit status of ``cinestream replay``."""
        return 1 if self.failed or self.damaged else 0

    @property
    def word(self) -> str:
        """How it ended."""
        return "failed" if self.failed else "damaged" if self.damaged else "done"

    @classmethod
    def failure(cls, why: str) -> Outcome:
        """Of a job that gave no images."""
        return cls([why], failed=True)


class JobRunner:
    """Does jobs one after the other; what is imported and loaded for one is there for the next.

    Parameters
    ----------
    level
        Of the lines of the log that are returned.
    """

    def __init__(self, level: int) -> None:
        share_freed()
        self._lines = _Lines()
        logger.handlers[:] = [self._lines]
        logger.propagate = False
        logger.setLevel(level)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        allow_methods()
        shared_engine()

    def versions(self) -> dict[str, str]:
        """What must be the same everywhere."""
        return versions()

    def run(self, job: Mapping[str, Any], helpers: Sequence[Any] = ()) -> dict[str, Any]:
        """Do a job.

        Parameters
        ----------
        job
            Fields of a `Job`.
        helpers
            Who else reconstructs slices of it, as `helper` takes them.

        Returns
        -------
        dict
            Fields of an `Outcome`, and lines of the log as ``log``.
        """
        outcome, lines = self._run(Job(**job), helpers), self.take_lines()
        return_freed()
        return {**asdict(outcome), "log": lines}

    def take_lines(self) -> list[tuple[int, str]]:
        """Levels and lines that were logged since the last call."""
        return self._lines.taken()

    def helper(self, which: Any) -> Helper:  # noqa: ANN401 - of a cluster, something else
        """Give who reconstructs slices elsewhere: a process of this machine, of its environment.

        Raises
        ------
        ResourceError
            If it cannot be started.
        """
        return HelperProcess(which)

    def _run(self, job: Job, helpers: Sequence[Any]) -> Outcome:
        from gadgets.replay.to_file import replay

        methods, begin = _Methods(), time.perf_counter()
        outcome = Outcome()

        def record(summary: ScanSummary) -> str:
            nonlocal outcome
            outcome = Outcome(
                problems=_cut([str(problem) for problem in summary.problems]),
                damaged=bool(summary.problems.damage),
                readouts=summary.readouts,
                slices=summary.slices,
                images=summary.images,
                methods=dict(methods.count),
                seconds=round(time.perf_counter() - begin, 3),
                slice_seconds=round(summary.seconds.get("slice", 0.0), 3),
                worker=self.name,
            )
            return as_record(job.origin, outcome)

        try:
            Path(job.output).parent.mkdir(parents=True, exist_ok=True)
            with self._spread(helpers) as spread:
                replay(
                    Path(job.source),
                    Path(job.output),
                    apply(Settings(), job.settings),
                    shared_engine,
                    group=job.group,
                    overwrite=True,
                    collector=methods,
                    record=record,
                    progress=False,
                    spread=spread,
                )
            return outcome
        except CinestreamError as error:
            failure = Outcome.failure(str(error))
        except OSError as error:
            failure = Outcome.failure(f"cannot write {job.output}: {error.strerror or error}")
        except Exception as error:
            logger.exception("unexpected error")
            failure = Outcome.failure(f"unexpected error: {type(error).__name__}: {error}")
        failure.seconds, failure.worker = round(time.perf_counter() - begin, 3), self.name
        return failure

    @contextlib.contextmanager
    def _spread(self, helpers: Sequence[Any]) -> Iterator[Spread | None]:
        """Who reconstructs the slices of a scan where others help; None without any."""
        if not helpers:
            yield None
            return
        with contextlib.closing(Spread(shared_engine, [self.helper(which) for which in helpers])) as spread:
            yield spread


def versions() -> dict[str, str]:
    """Of this process, as `recon_core.cluster.check_same` compares them."""
    return cluster.versions(__version__)


def as_record(origin: Mapping[str, Any], outcome: Outcome) -> str:
    """What is kept in a file of images."""
    return json.dumps({"origin": origin, "outcome": asdict(outcome)})


def read_outcome(record: str) -> tuple[dict[str, Any], Outcome] | None:
    """Read what `as_record` wrote; None of anything else."""
    try:
        found = json.loads(record)
        return dict(found["origin"]), Outcome(**found["outcome"])
    except (ValueError, TypeError, KeyError):
        return None


def work(connection: socket.socket, level: int) -> None:
    """Say that all is ready, then do the jobs that come as lines of JSON; in a `recon_core.children.Child`."""
    runner = JobRunner(level)
    with connection.makefile("rw", encoding="utf-8") as lines:
        lines.write(json.dumps(runner.versions()) + "\n")
        lines.flush()
        for line in lines:
            lines.write(json.dumps(runner.run(*json.loads(line))) + "\n")
            lines.flush()


class _Methods:
    """Counts the methods that made slices."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def watch(self, _: CompleteSlice, reconstruction: Reconstruction) -> None:
        self.count[reconstruction.method] += 1

    def add_image(self, _: CineImage) -> None:
        pass


class _Lines(logging.Handler):
    """Keeps what is logged, for the process that shows it."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._kept) < _MOST_LINES:
            text = record.getMessage()
            self._kept.append((record.levelno, f"{text}\n{record.exc_text}" if record.exc_text else text))

    def taken(self) -> list[tuple[int, str]]:
        taken, self._kept = self._kept, []
        return taken


def _cut(problems: list[str]) -> list[str]:
    """As many problems as a record has room for."""
    kept: list[str] = []
    left = _MOST_TEXT
    for number, text in enumerate(problems):
        if len(text) > left:
            return [*kept, f"and {len(problems) - number} more"]
        kept.append(text)
        left -= len(text)
    return kept
