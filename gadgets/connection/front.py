"""The front of a server with several processes: it takes connections and passes their bytes on, without numerics.

One scan goes to one worker, since its windows, maps and noise belong together.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from gadgets.connection.elsewhere import Elsewhere
from gadgets.connection.news import Room
from gadgets.connection.place import Place
from gadgets.connection.queue import QueueSpace
from gadgets.connection.records import ServerRecord
from gadgets.connection.worker import LocalWorker, look_at, session_for, stop_of
from recon_core.children import environments_of, usable_cores, usable_gpus
from recon_core.errors import ResourceError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from gadgets.connection.records import Load
    from gadgets.connection.worker import Worker, WorkerOptions

logger = logging.getLogger("cinestream")

_PAUSE_SECONDS = 1.0  # from the death of a worker to the next, if no connection asks for it before; twice as long
_LONGEST_PAUSE_SECONDS = 60.0  # after each that ended before it told anything
_LOOK_SECONDS = 10.0  # that a worker may take for a part of a picture
_BLOCK_BYTES = 1 << 22  # of a picture at a time


class Front:
    """The workers of a server.

    Parameters
    ----------
    starts
        What starts each of them, and another one in its place when it has died.
    kept_bytes
        Memory for what is kept of the scans that run; a quarter of the free memory at most.
    idle_seconds
        How long a peer may take nothing of what is sent.
    scans
        Where the workers report; None keeps what they report for itself.

    Attributes
    ----------
    shown : Elsewhere
        Images and log of the workers.

    Raises
    ------
    ResourceError
        If a worker cannot be started.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[], Worker]],
        kept_bytes: int,
        idle_seconds: float,
        scans: ServerRecord | None = None,
    ) -> None:
        self.scans = scans or ServerRecord()
        self.shown = Elsewhere(len(starts))
        self.space = QueueSpace.of_memory(kept_bytes)
        self.idle_seconds = idle_seconds
        self._starts = starts
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._numbers = itertools.count(1)
        with self._lock:
            self._places = [self._start(start) for start in starts]

    def load(self, load: Load) -> Load:
        """Put what all workers have to do in place of that of the server, which has nothing."""
        rooms = [place.room for place in [*self._places]]  # without the lock: a cluster may take long to give a worker
        return load._replace(**{name: sum(getattr(room, name) for room in rooms) for name in Room._fields})

    def _start(self, start: Callable[[], Worker], false_starts: int = 0, why: str = "") -> Place:
        place = Place(start(), next(self._numbers), false_starts, why)
        threading.Thread(target=self._listen, args=(place,), name="cinestream-news", daemon=True).start()
        return place

    def _listen(self, place: Place) -> None:
        """Note what a worker tells; when it is gone, another one follows a moment later."""
        place.listen(self.scans, self.shown, partial(self._look, place.worker), self._note_faults)
        self._note_faults()
        is_replaced = False
        pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** min(place.false_starts, 10))
        while not (is_replaced or self._closing.wait(pause)):
            with self._lock:
                self._replace_dead()
                is_replaced = place not in self._places
            self._note_faults()

    @staticmethod
    def _look(worker: Worker, name: str, scan: str, number: int) -> bytes:
        """Have a worker make a picture; nothing comes of one that is gone, or does not answer in time."""
        picture = bytearray()
        with contextlib.suppress(OSError, ResourceError), worker.connect(look_at(name, scan, number)) as connection:
            connection.settimeout(_LOOK_SECONDS)
            while block := connection.recv(_BLOCK_BYTES):
                picture += block
            return bytes(picture)
        return b""

    def _note_faults(self) -> None:
        """No scan can be reconstructed if no worker can; that only some can is to be looked at."""
        with self._lock:
            faults, places = [place.fault for place in self._places if place.fault], len(self._places)
        some, none = faults and len(faults) < places, len(faults) == places
        self.scans.fault = faults[0] if none else ""
        self.scans.doubt = f"{len(faults)} of {places} workers cannot reconstruct: {faults[0]}" if some else ""

    def take_place(self) -> Place:
        """Give the worker with the fewest scans to one more; those that have died are replaced.

        Raises
        ------
        ResourceError
            If there is none, and none can be started.
        """
        with self._lock:
            self._replace_dead()
            alive = [place for place in self._places if not place.worker.has_ended]
            if not alive:
                raise ResourceError(self._places[0].fault or "the process that reconstructs died; send the scan again")
            place = min(alive, key=lambda one: (not one.worker.is_ready, one.scans))
            place.scans += 1
            return place

    def _replace_dead(self) -> None:
        """Start others for the workers that have died, as far as this is possible; with the lock held."""
        for at, place in enumerate(self._places):
            if not place.worker.has_ended or self._closing.is_set():
                continue
            why, is_new = place.worker.end(), not place.death_is_said
            why, place.death_is_said = place.misread or why, True
            if is_new:
                logger.error("worker %s died: %s", place.worker.name, why)
            false_starts = 0 if place.has_told else place.false_starts + 1
            try:
                self._places[at] = self._start(self._starts[at], false_starts, why)
            except ResourceError as error:
                place.fault = str(error)
                if is_new:
                    logger.error("no other one can be started, which is tried again: %s", error)

    def give_back(self, place: Place) -> None:
        """A scan is over, or has left a worker that died."""
        with self._lock:
            place.scans -= 1

    def begin(self, place: Place, peer: str) -> tuple[int, socket.socket]:
        """Let a worker serve a peer; gives the number of the session, and our end of its connection.

        Raises
        ------
        OSError
            If the worker is gone.
        ResourceError
            If it cannot be had.
        """
        number = next(self._numbers)
        return number, place.worker.connect(session_for(number, peer))

    def stop(self, place: Place, number: int, why: str) -> None:
        """End a session, whose peer the worker tells why."""
        with contextlib.suppress(OSError):
            place.worker.tell(stop_of(number, why))

    def close(self) -> None:
        """End all workers at once."""
        self._closing.set()
        with self._lock:
            for place in self._places:
                place.worker.end()


def local_starts(count: int, options: WorkerOptions) -> list[Callable[[], Worker]]:
    """Give what starts so many workers on this machine, which share its cores and GPUs."""
    threads = os.environ.get("OMP_NUM_THREADS", "") or max(1, usable_cores() // count)
    environments = environments_of(count, threads, usable_gpus())
    return [partial(LocalWorker, options, environment) for environment in environments]
