"""``cinestream serve``: run the resident server."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from gadgets import __version__
from gadgets.commands.arguments import (
    add_noise_store,
    add_pipeline_folders,
    add_set,
    address,
    folder,
    noise_store,
    port,
    settings_help,
    within,
)
from gadgets.commands.console import say
from gadgets.connection.passage import Passage
from gadgets.connection.records import ServerRecord
from gadgets.connection.resident import DEFAULT_HOST, DEFAULT_PORT
from gadgets.connection.scan_log import FORMATS, log_as_server
from gadgets.connection.server import CONNECTIONS, Server
from gadgets.connection.session import SessionOptions
from gadgets.connection.spool import make_folder
from gadgets.monitor.opening import TOKEN_VARIABLE, check_monitor, open_monitor
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings, apply, parse_assignments
from recon_core.budget import Budget, share_freed
from recon_core.children import threads_wanted
from recon_core.cluster import AUTO, LOCAL, Cluster
from recon_core.own_methods import ALLOWED, allow_methods, allowed_by_operator

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from gadgets.connection.front import Front
    from gadgets.connection.worker import Worker

logger = logging.getLogger("cinestream")

_GIB = 1 << 30
_RAY = "ray://"

NAME = "serve"
HELP = "run the resident server for Gadgetron or FIRE"
EXAMPLES = "cinestream serve\ncinestream serve --port 9002 --workers 4\ncinestream serve --workers ray://auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "address to bind to (default: %(default)s, this machine only; there are no passwords in the protocol)"
    parser.add_argument("--host", default=DEFAULT_HOST, help=text)
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="default: %(default)s; FIRE expects 9002")
    add_pipeline_folders(parser)
    text = "pipeline for a configuration name that the sender fixes, for instance openrecon=cg_sense; repeatable"
    parser.add_argument("--alias", action="append", default=[], metavar="NAME=PIPELINE", help=text)
    add_set(parser)
    text = f"method of your own that a peer may ask for, besides those that {ALLOWED} lists; repeatable"
    parser.add_argument("--allow-method", action="append", default=[], metavar="NAME", help=text)
    text = (
        "folder where a peer may name files for ct_path and ct_transform, relative to it; repeatable. Without, only "
        "pipelines known by name and --set name such files"
    )
    parser.add_argument("--ct-folder", type=folder, action="append", default=[], metavar="DIR", help=text)
    add_noise_store(parser, "off keeps none (default: cinestream/noise in your cache folder)")
    parser.add_argument("--save-raw", type=Path, metavar="DIR", help="keep the raw stream of every scan in this folder")
    text = (
        "how much of all scans may wait for the reconstruction before the senders are held up; a quarter of the free "
        "memory at most (default: %(default)s)"
    )
    parser.add_argument("--queue-gib", type=within(float, 0, 1e6), default=4.0, metavar="GIB", help=text)
    text = (
        "memory for what all scans gather and make, of each machine; one may take half of it (default: half of what is "
        "free)"
    )
    parser.add_argument("--memory-gib", type=within(float, 0, 1e6), metavar="GIB", help=text)
    text = (
        "reconstruct in N processes, each scan in one; one that dies is replaced and its scans begun again (default: "
        "in this process). ray:// has them on the machines of a Ray cluster: ray://auto of the one that this machine "
        "is a part of, ray://HOST:PORT of another by the port for Ray's clients, ray://local of one started here; as "
        "many as it has cores or GPUs, or N with /N behind (needs the extra [cluster])"
    )
    parser.add_argument("--workers", type=_crew, default=_Crew("", 0), metavar="N|ray://ADDRESS[/N]", help=text)
    text = (
        "with --workers: memory for what running scans have sent, a quarter of the free at most (default: %(default)s)"
    )
    parser.add_argument("--keep-gib", type=within(float, 0, 1e6), default=8.0, metavar="GIB", help=text)
    text = "connections that are served at a time; further ones are turned away (default: %(default)s)"
    parser.add_argument("--connections", type=within(int, 1, 10_000), default=CONNECTIONS, metavar="N", help=text)
    text = "how long a peer may be silent while it is waited for (default: %(default)s s)"
    parser.add_argument("--idle", type=within(float, 0.1, 1e6), default=600.0, metavar="SECONDS", help=text)
    text = "how long running scans may take to finish when the server is stopped (default: %(default)s s)"
    parser.add_argument("--grace", type=within(float, 0, 1e6), default=2.0, metavar="SECONDS", help=text)
    text = "a line for every scan, and warnings, for people or as one JSON object a line (default: %(default)s)"
    parser.add_argument("--log-format", choices=FORMATS, default="text", help=text)
    _add_monitor(parser)
    parser.epilog = settings_help()


def _add_monitor(parser: argparse.ArgumentParser) -> None:
    """Add the options of the monitor page."""
    text = "show the server as a web page: state, scans, images, metrics; on this machine only unless a host is given"
    parser.add_argument("--web", type=_web_address, metavar="[HOST:]PORT", help=text)
    text = (
        f"what one must know to see the page, better given as {TOKEN_VARIABLE}; without, none is needed on this "
        "machine, and one is made and printed where others can reach the page"
    )
    parser.add_argument("--web-token", default=os.environ.get(TOKEN_VARIABLE, ""), metavar="TOKEN", help=text)
    parser.add_argument("--web-names", action="store_true", help="show the names of patients on the page")


class _Crew(NamedTuple):
    """Workers that are wanted."""

    address: str
    """Of a Ray cluster; empty for processes of this machine."""
    size: int
    """How many; 0 is none of this machine, or all that a cluster has."""


def _crew(text: str) -> _Crew:
    """Read ``N`` or ``ray://ADDRESS[/N]``."""
    count = within(int, 1, 1024)
    if not text.startswith(_RAY):
        return _Crew("", int(count(text)))
    address, slash, number = text.removeprefix(_RAY).partition("/")
    return _Crew(address if address in (AUTO, LOCAL) else _RAY + address, int(count(number)) if slash else 0)


def _web_address(text: str) -> tuple[str, int]:
    """Read ``PORT`` or ``HOST:PORT``."""
    return (DEFAULT_HOST, int(port(text))) if ":" not in text else address(text)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes; refuse at once what would fail in every scan."""
    share_freed()
    log_as_server(options.log_format)
    methods = (*options.allow_method, *allowed_by_operator())
    allow_methods(methods)
    session = SessionOptions(
        pipelines=tuple(options.pipelines),
        aliases=parse_assignments(options.alias),
        overrides=parse_assignments(options.set),
        save_raw=options.save_raw,
        queue_bytes=int(options.queue_gib * _GIB),
        memory_bytes=None if options.memory_gib is None else int(options.memory_gib * _GIB),
        idle_seconds=options.idle,
        ct_folders=tuple(options.ct_folder),
        noise_store=noise_store(options),
    )
    for name in session.aliases.values():
        find_pipeline(name, session.pipelines)
    apply(Settings(), session.overrides)
    if session.save_raw is not None and not options.workers.address:  # else it is a folder of other machines
        make_folder(session.save_raw)
    if options.web:
        check_monitor(options.web_token)
    record = ServerRecord(names=options.web_names)
    with _front(options, session, methods, record) as front:
        passage = None if front is None else partial(Passage, front=front)
        server = Server(options.host, options.port, session, options.connections, passage, record)
        with _monitor(options, server, front, record) as page:
            _serve(server, options.grace, page)
    _end()


@contextlib.contextmanager
def _monitor(options: argparse.Namespace, server: Server, front: Front | None, record: ServerRecord) -> Iterator[str]:
    """The monitor page, where it is wanted and can be had; gives its address."""
    load = server.load if front is None else lambda: front.load(server.load())
    shown = None if front is None else front.shown
    monitor = options.web and open_monitor(options.web, options.web_token, record, load, server.address, shown)
    if not monitor:
        yield ""
        return
    with contextlib.closing(monitor):
        yield monitor.url


@contextlib.contextmanager
def _front(
    options: argparse.Namespace, session: SessionOptions, methods: tuple[str, ...], record: ServerRecord
) -> Iterator[Front | None]:
    """The workers that the options ask for, which share the memory of each machine; None without any."""
    address, count = options.workers
    if not address and not count:
        yield None
        return
    from gadgets.connection.front import Front, local_starts
    from gadgets.connection.worker import WorkerOptions
    from gadgets.reports.gallery import BYTES_KEPT, Gallery

    with contextlib.ExitStack() as stack:
        cluster = _cluster(options, address, count) if address else None
        count, sharing = (count, count) if cluster is None else (cluster.count, cluster.most_on_one)
        memory = session.memory_bytes or (Budget().limit if cluster is None else None)
        own = dataclasses.replace(
            session, queue_bytes=session.queue_bytes // sharing, memory_bytes=memory and memory // sharing
        )
        viewer = partial(Gallery, BYTES_KEPT // count) if options.web else None
        worker = WorkerOptions(own, methods, options.log_format, logger.getEffectiveLevel(), options.web_names, viewer)
        starts: list[Callable[[], Worker]]
        if cluster is None:
            starts = local_starts(count, worker)
        else:
            from gadgets.connection.ray_worker import RayCrew

            starts = [stack.enter_context(contextlib.closing(RayCrew(cluster, worker))).start] * count
        front = Front(starts, int(options.keep_gib * _GIB), session.idle_seconds, record)
        yield stack.enter_context(contextlib.closing(front))


def _cluster(options: argparse.Namespace, address: str, count: int) -> Cluster:
    """Connect the cluster that workers are to be on."""
    settings = apply(Settings(), parse_assignments(options.set))
    cluster = Cluster(address, count, threads_wanted(), gpu=settings.compute.device != "cpu")
    logger.info("reconstructing with %s", cluster.description)
    return cluster


def _serve(server: Server, grace: float, page: str) -> None:
    """Serve until a signal comes; say where the monitor page is, if there is one."""
    if not ip_address(server.address[0]).is_loopback:
        logger.warning(
            "%s can be reached from other machines, and the protocol knows no passwords: whoever reaches it can send "
            "scans; let a firewall allow the scanner alone",
            server.address[0],
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(server.serve()), name="cinestream-accept")
    thread.start()
    try:
        say(f"cinestream {__version__} listens on {server.address[0]} port {server.address[1]}")
        if page:
            say(f"monitor page: {page}")
        while thread.is_alive() and not stop.wait(0.2):
            pass
    finally:  # also where nobody reads what is said any more: else it would serve on, deaf to signals
        server.stop(grace)
        thread.join()
    if ended == [False]:
        _end()


def _end() -> NoReturn:
    """End the process at once: taking Python apart takes seconds, and aborts where anything computes."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
