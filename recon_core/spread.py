"""Several slices of a scan at a time: one by the engine of this process, the others by processes that help it."""

from __future__ import annotations

import contextvars
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol, cast

from recon_core.children import Child, death_in_words
from recon_core.errors import CinestreamError, ScanStoppedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from recon_core.data import CineSlice, Reconstruction
    from recon_core.options import ReconOptions

logger = logging.getLogger("cinestream")

#: Of pickles: arrays are not copied for it.
PROTOCOL = 5


class HelperGoneError(Exception):
    """Who helped has died; its slice can be reconstructed elsewhere."""


class OneSlice(Protocol):
    """Who reconstructs a slice: an engine, or a helper."""

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions, /) -> Reconstruction:
        """Reconstruct a slice as `recon_core.engine.Engine.reconstruct` does.

        Raises
        ------
        HelperGoneError
            If this is a helper, and it has died.
        """


class Helper(OneSlice, Protocol):
    """Reconstructs slices elsewhere, one at a time."""

    def close(self) -> None:
        """Give up whatever it is at."""


class HelperProcess:
    """A process of this machine.

    Parameters
    ----------
    environment
        Variables that differ from those of this process.

    Raises
    ------
    ResourceError
        If it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._child = Child("recon_core.spread:help_reconstruct", {}, environment)
        self._stream = self._child.socket.makefile("rwb")
        self.pid = self._child.pid

    def reconstruct(self, cine_slice: CineSlice, options: ReconOptions, /) -> Reconstruction:
        """Have a slice reconstructed."""
        try:
            pickle.dump((cine_slice, options), self._stream, PROTOCOL)
            self._stream.flush()
            made = pickle.load(self._stream)  # noqa: S301 - of our own child
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise HelperGoneError(death_in_words(self._child.end())) from error
        return result_of(made)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.end()


def help_reconstruct(connection: socket.socket) -> None:
    """Reconstruct the slices that come; in a `recon_core.children.Child`."""
    from recon_core.api import shared_engine
    from recon_core.own_methods import allow_methods

    logger.handlers[:], logger.propagate = [logging.NullHandler()], False  # who is helped logs the same
    allow_methods()
    engine = shared_engine()
    with connection.makefile("rwb") as stream:
        while True:
            cine, options = pickle.load(stream)  # noqa: S301 - of our own parent
            pickle.dump(tried(engine, cine, options), stream, PROTOCOL)
            stream.flush()


def tried(engine: OneSlice, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction | CinestreamError:
    """Reconstruct a slice for who is helped; gives the error that there was in place of it."""
    try:
        return engine.reconstruct(cine_slice, options)
    except CinestreamError as error:
        return error


def result_of(made: object) -> Reconstruction:
    """Give the reconstruction of what `tried` gave elsewhere, or raise its error."""
    if isinstance(made, CinestreamError):
        raise made
    return cast("Reconstruction", made)


class Spread:
    """Reconstructs slices at a time; those of a helper that dies are done here.

    Parameters
    ----------
    engine
        Gives the engine of this process.
    helpers
        Who else reconstructs; closed with this.

    Attributes
    ----------
    count : int
        How many slices are reconstructed at a time.
    """

    def __init__(self, engine: Callable[[], OneSlice], helpers: Sequence[Helper]) -> None:
        self.count = 1 + len(helpers)
        self._engine = engine
        self._helpers = helpers
        self._free: SimpleQueue[Helper | None] = SimpleQueue()  # None is the engine
        for one in (None, *helpers):
            self._free.put(one)
        self._pool = ThreadPoolExecutor(self.count, "cinestream-slice")
        self._closed = False

    def begin(self, cine_slice: CineSlice, options: ReconOptions) -> Callable[[], Reconstruction]:
        """Begin to reconstruct a slice, once anyone is free; gives what waits for the result, or raises its error."""
        context = contextvars.copy_context()  # by which it can be stopped
        return self._pool.submit(context.run, self._reconstruct, cine_slice, options).result

    def close(self) -> None:
        """Give up what nobody waits for any more, and end the helpers."""
        self._closed = True
        for helper in self._helpers:
            helper.close()
        self._pool.shutdown(cancel_futures=True)

    def _reconstruct(self, cine_slice: CineSlice, options: ReconOptions) -> Reconstruction:
        one = self._free.get()
        try:
            if one is not None:
                try:
                    return one.reconstruct(cine_slice, options)
                except HelperGoneError as error:
                    one = None
                    if self._closed:
                        raise ScanStoppedError("nobody waits for the slice any more") from error
                    logger.warning("a process that helped died: %s; its slice is reconstructed again", error)
            return self._engine().reconstruct(cine_slice, options)
        finally:
            self._free.put(one)
