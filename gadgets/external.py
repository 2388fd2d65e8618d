"""The target of a Gadgetron's ``<execute>``: ``python -m gadgetron PORT gadgets.external reconstruct``.

Gadgetron starts a process for every scan. When a resident server of ours runs on this machine the scan is passed on to
its warm engine; otherwise it is reconstructed here. Only then anything heavy is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gadgets.connection.relay import Relay
from gadgets.connection.resident import resident_server

if TYPE_CHECKING:
    import socket

    from gadgets.connection.session import Session, SessionOptions

logger = logging.getLogger("cinestream")
#: Folders where a Gadgetron's pipelines may name files for CT, separated as in PATH.
CT_VARIABLE = "CINESTREAM_CT_FOLDERS"
#: Folder where noise is kept from scan to scan when no resident server runs; none is kept without it.
NOISE_VARIABLE = "CINESTREAM_NOISE_STORE"


class _Closed:
    """Stands where the gadgetron package keeps its socket: the session closed it already, and properly."""

    def close(self) -> None:
        """Do nothing."""


def reconstruct(connection: Any) -> None:  # noqa: ANN401 - gadgetron.external.Connection has no types
    """Reconstruct the scan that a Gadgetron sends to this process.

    Parameters
    ----------
    connection
        The ``gadgetron.external.Connection`` of the launcher. Only its socket and the configuration and header it has
        read are used: its read loop never ends when the Gadgetron dies.

    Raises
    ------
    SystemExit
        With status 1 if anything went wrong; the Gadgetron has the error message by then.
    """
    configuration, header = _text(connection.raw_bytes.config), _text(connection.raw_bytes.header)
    gadgetron = connection.socket.socket
    connection.socket = _Closed()
    with gadgetron:
        server = resident_server()
        scan = (
            _session(gadgetron, configuration, header)
            if server is None
            else Relay(gadgetron, server, configuration, header)
        )
        _stop_on_signals(scan)
        good = scan.run()
    if not good:
        sys.exit(1)


def _session(gadgetron: socket.socket, configuration: str, header: str) -> Session:
    """The scan reconstructed in this process."""
    from gadgets.connection.server import SharedEngine
    from gadgets.connection.session import Session
    from gadgets.wire.messages import ConfigText, Header
    from recon_core.errors import SettingsError
    from recon_core.own_methods import allow_methods, allowed_by_operator

    try:
        allow_methods(allowed_by_operator())
    except SettingsError as error:  # the scan may ask for another method
        logger.error("%s", error)
    return Session(gadgetron, SharedEngine(), _options(), begun=(ConfigText(configuration), Header(header)))


def _stop_on_signals(scan: Session | Relay) -> None:
    """Tell the Gadgetron of a signal that ends this process; without, it reads that an illegal message came."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        why = f"the cinestream process of this scan was ended by {signal.Signals(number).name}; images are missing"
        # not here: what the signal interrupts may hold a lock
        threading.Thread(target=scan.stop, args=(why,), name="cinestream-stop", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _options() -> SessionOptions:
    from gadgets.connection.session import SessionOptions
    from gadgets.preparation.noise_store import NoiseStore

    folders = tuple(Path(folder) for folder in os.environ.get(CT_VARIABLE, "").split(os.pathsep) if folder)
    noise = os.environ.get(NOISE_VARIABLE, "")
    return SessionOptions(ct_folders=folders, noise_store=NoiseStore(Path(noise)) if noise else None)


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else bytes(raw).rstrip(b"\0").decode("utf-8", "replace")
