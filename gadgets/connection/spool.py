"""The raw stream of a scan on disk, byte for byte as it came, before anything else happens to it.

A plain file of messages needs no closing record: whatever kills the process, what was written can be replayed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import queue
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gadgets.wire.writer import Writer
from recon_core.errors import ResourceError
from recon_core.storage import open_private

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from gadgets.wire.messages import Message

logger = logging.getLogger("cinestream")

_QUEUE_BYTES = 1 << 30
_numbers = itertools.count(1)


def make_folder(folder: Path) -> None:
    """Make the folder for raw streams, for the owner alone.

    Raises
    ------
    ResourceError
        If it cannot be made, or nothing can be written there; a full disk is left to the scans, which go on without.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise ResourceError(f"raw streams cannot be saved in {folder}: {error.strerror}; choose another one") from error


class Spool:
    """Writes a stream to a file from a thread of its own, so that a slow disk does not hold up the socket.

    Parameters
    ----------
    file
        Where to write; unbuffered.
    path
        Its name, for messages.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.problem = ""
        self.discarded = False
        self._file = file
        self._blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="cinestream-spool", daemon=True)
        self._thread.start()

    @classmethod
    @contextmanager
    def into(cls, folder: Path | None) -> Iterator[Spool | None]:
        """Spool into a new file of the folder; without a folder, or if no file can be made there, there is no spool."""
        if folder is None:
            yield None
            return
        name = f"{time.strftime('%Y%m%d-%H%M%S')}_{os.getpid()}_{next(_numbers)}.mrd"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = open_private(folder / name)
        except OSError as error:
            logger.error("cannot save the raw stream in %s: %s; the scan goes on without", folder, error)
            yield None
            return
        with file:
            spool = cls(file, folder / name)
            try:
                yield spool
            finally:
                spool.close()
        if spool.discarded:
            with contextlib.suppress(OSError):
                spool.path.unlink()

    def write(self, block: memoryview) -> None:
        """Take a copy of a block; returns at once."""
        with self._lock:
            self._waiting += len(block)
            waiting = self._waiting
        if waiting > _QUEUE_BYTES:
            self._fail(f"the disk is slower than the scan: {waiting} bytes wait")
        if not self.problem:
            self._blocks.put(bytes(block))

    def write_message(self, message: Message) -> None:
        """Write a message that did not come as a block of bytes."""
        Writer(self._gather).send(message)

    def discard(self) -> None:
        """Leave no file behind: it turned out that this is no scan."""
        self.discarded = True

    def close(self) -> None:
        """Write what waits."""
        self._blocks.put(None)
        self._thread.join()

    def _gather(self, buffers: Sequence[Any]) -> int:
        for buffer in buffers:
            self.write(memoryview(buffer))
        return sum(len(buffer) for buffer in buffers)

    def _work(self) -> None:
        while (block := self._blocks.get()) is not None:
            view = memoryview(block)
            try:
                while view and not self.problem:
                    view = view[self._file.write(view) :]
            except OSError as error:
                self._fail(f"{error.strerror}")
            with self._lock:
                self._waiting -= len(block)

    def _fail(self, why: str) -> None:
        if not self.problem:
            self.problem = f"the raw stream in {self.path} is incomplete: {why}; free space for the next scan"
            logger.error("%s", self.problem)
