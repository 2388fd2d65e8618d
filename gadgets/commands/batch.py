"""``cinestream batch``: reconstruct many raw files with several processes, or on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import add_pipeline, chosen_settings, settings_help, within
from gadgets.commands.console import say
from gadgets.replay.table import FORMS, TABLE, Table
from recon_core.children import threads_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gadgets.replay.plan import Entry
    from gadgets.replay.workers import Workers
    from gadgets.settings.settings import Settings

logger = logging.getLogger("cinestream")

NAME = "batch"
HELP = "reconstruct many raw files with several processes; run again, it goes on where it ended"
EXAMPLES = """\
cinestream batch folder -p cg_sense -o images
cinestream batch list.txt -p kt_sense -o images --dry-run
cinestream batch folder -p cg_sense -o images --ray auto"""
_TEACHING = """\
what it does:
  Each raw file becomes a file of images as `cinestream replay` makes it, with the path that it has below the folder (or
  below that of the list). A table in the folder of the images has a row for each raw file.
  Run the same command again after anything: what is there is kept, unless version, settings, weights or raw file differ
  from those that made it. A file that fails does not stop the others; a worker that dies is replaced and its scan begun
  again. Status 0: all images are there, of undamaged data; 1: the table says of which not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "folder that is searched through for raw files, or a text file with the path of one in each line"
    parser.add_argument("input", type=Path, metavar="FOLDER|LIST", help=text)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the images")
    add_pipeline(parser)
    parser.add_argument("--group", default="dataset", help="HDF5 group (default: %(default)s)")
    text = "replace all images, also those that no batch has made"
    parser.add_argument("--overwrite", action="store_true", help=text)
    text = (
        "how many scans are reconstructed at a time, or slices where there are fewer scans (default: one for each GPU, "
        "else cores over --threads)"
    )
    parser.add_argument("--processes", type=within(int, 1, 10_000), default=0, metavar="N", help=text)
    text = (
        "threads of each process (default: 1, or OMP_NUM_THREADS); a slice gains little from a second one, and the "
        "images of another number of threads differ in their last bits"
    )
    parser.add_argument("--threads", type=within(int, 1, 1024), default=0, metavar="N", help=text)
    text = (
        "use a Ray cluster: its HOST:PORT, or ray://HOST:PORT by the port for Ray's clients, auto for the one that "
        "this machine is a part of, local to start one here; this and all its machines must see the files under the "
        "same paths (needs the extra [cluster])"
    )
    parser.add_argument("--ray", default="", metavar="auto|local|[ray://]HOST:PORT", help=text)
    text = "name of the table of outcomes; one that ends in .parquet needs the extra [parquet] (default: %(default)s)"
    parser.add_argument("--table", type=_table_name, default=TABLE, metavar="NAME", help=text)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.epilog = f"{_TEACHING}\n\n{settings_help()}"


def _table_name(text: str) -> str:
    """Read the name of a table."""
    if Path(text).name != text or Path(text).suffix not in FORMS:
        raise argparse.ArgumentTypeError(
            f"expected a name of a file in the folder of the images that ends in {' or '.join(FORMS)}, got {text!r}"
        )
    return text


def run(options: argparse.Namespace) -> int:
    """Reconstruct what is not there yet."""
    from gadgets.replay.batch import Batch, BatchProgress, only_one
    from gadgets.replay.plan import find_sources, make_plan, summary_of
    from gadgets.settings.checks import check_units, check_weights

    settings = chosen_settings(options)
    check_units(settings)
    check_weights(settings)
    path = options.output / options.table
    table = Table(path)
    sources, again = find_sources(options.input, options.output)
    if again:
        logger.warning(
            "%s named more than once; each is reconstructed once", "1 file is" if again == 1 else f"{again} files are"
        )
    if options.dry_run:
        entries = make_plan(sources, settings, options.group, overwrite=options.overwrite)
        _say_plan(entries)
        say(summary_of(entries))
        return 1 if any(entry.before is not None and entry.before.failed for entry in entries) else 0
    with only_one(options.output):
        entries = make_plan(sources, settings, options.group, overwrite=options.overwrite)
        say(summary_of(entries))
        batch = Batch(entries, table, _workers(options, settings))
        with _interruptible() as check, BatchProgress(entries, say) as progress:
            batch.run(progress, check)
    count = {word: sum(1 for row in batch.rows if row.outcome and row.outcome.word == word) for word in _WORDS}
    say(f"{', '.join(f'{number} {word}' for word, number in count.items())}; table in {path}")
    return 1 if count["damaged"] or count["failed"] or not batch.table_is_written else 0


_WORDS = ("done", "damaged", "failed")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """End as after Ctrl-C when Slurm, Kubernetes or a shell ends the batch, too.

    Yields
    ------
    callable
        Raises it once more, to be called now and then: Python drops what is raised where an object is just deleted.
    """
    asked: list[int] = []

    def interrupt(number: int, _: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_plan(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.job is not None:
            say(f"{entry.source} -> {entry.output}: {entry.why}")
        elif entry.before is not None and entry.before.failed:
            say(f"{entry.source}: not possible: {entry.why}")


def _workers(options: argparse.Namespace, settings: Settings) -> Workers:
    threads = options.threads or threads_wanted()
    level, gpu = logger.getEffectiveLevel(), settings.compute.device != "cpu"
    workers: Workers
    if options.ray:
        from gadgets.replay.ray_workers import RayWorkers

        workers = RayWorkers(options.ray, options.processes, threads, level, gpu=gpu)
    else:
        from gadgets.replay.workers import ProcessWorkers

        workers = ProcessWorkers(options.processes, threads, level, gpu=gpu)
    logger.info("reconstructing with %s", workers.description)
    return workers
