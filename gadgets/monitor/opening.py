"""Opening the monitor of a server: what it needs is imported only where a page is wanted."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from recon_core.errors import ResourceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.connection.elsewhere import Elsewhere
    from gadgets.connection.records import Load, ServerRecord
    from gadgets.monitor.service import Monitor

logger = logging.getLogger("cinestream")

#: Environment variable with the token of the page, for who does not want it in the list of processes.
TOKEN_VARIABLE = "CINESTREAM_WEB_TOKEN"  # noqa: S105 - a name
_TOKEN = re.compile(r"[\w.~-]{8,200}", re.ASCII)


def check_monitor(token: str) -> None:
    """Refuse at once what cannot work.

    Raises
    ------
    ResourceError
        If a package is missing.
    SettingsError
        If the token cannot be one.
    """
    if token and not _TOKEN.fullmatch(token):
        raise SettingsError("the token of the monitor page must have 8 to 200 letters, digits, dots, - or _")
    try:
        import gadgets.monitor.service  # noqa: F401
    except ModuleNotFoundError as error:
        text = f"the monitor page needs the package {error.name}, which is not installed: pip install 'cinestream[web]'"
        raise ResourceError(text) from error


def open_monitor(
    address: tuple[str, int],
    token: str,
    record: ServerRecord,
    load: Callable[[], Load],
    listens: tuple[str, int],
    elsewhere: Elsewhere | None = None,
) -> Monitor | None:
    """Show a server that is about to begin, after `check_monitor`.

    Parameters
    ----------
    address
        Host and port of the page.
    token
        What one must know to see it; empty for none, or for one that is made.
    record, load
        Facts of the server, and what tells its load.
    listens
        Where the server takes scans.
    elsewhere
        Images and log of workers; None shows those of this process.

    Returns
    -------
    Monitor or None
        None if the page cannot be had, which is logged: scans are served all the same.
    """
    from gadgets.connection.log_tail import LogTail
    from gadgets.monitor.service import Monitor
    from gadgets.monitor.state import Sources
    from gadgets.reports.gallery import Gallery

    place, viewer = "{} port {}".format(*listens), None
    if elsewhere is not None:
        sources = Sources(record, load, elsewhere, elsewhere.log, place, elsewhere.workers)
    else:
        viewer = Gallery()
        sources = Sources(record, load, viewer, LogTail(), place)
    try:
        monitor = Monitor(address, token, sources)
    except ResourceError as error:
        logger.error("%s. Scans are served without the page", error)
        return None
    record.viewer = viewer
    logging.getLogger().addHandler(sources.log)
    monitor.start()
    return monitor
