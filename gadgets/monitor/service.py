"""The monitor page of a server, in a thread of its own."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gadgets.monitor.access import Access
from gadgets.monitor.app import Pages, make_app
from recon_core.errors import ResourceError
from recon_core.printable import make_log_printable

if TYPE_CHECKING:
    import asyncio

    from gadgets.monitor.state import Sources

logger = logging.getLogger("cinestream")
make_log_printable("uvicorn.error")

_STOP_SECONDS = 3.0
_MOST_REQUESTS = 64  # at a time
_REQUEST_SECONDS = 10.0  # for a connection to ask for something


class _Connection(H11Protocol):
    """One that is closed where nothing is asked for: many such would keep health checks from being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for so long."""
        super().connection_made(transport)
        self.loop.call_later(_REQUEST_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


class Monitor:
    """Serves the page of one server.

    Parameters
    ----------
    address
        Host and port to bind to; port 0 takes a free one.
    token
        What one must know to see the page; where it is empty and other machines can reach the page, one is made.
    sources
        Where the facts are.

    Raises
    ------
    ResourceError
        If the address cannot be bound.
    """

    def __init__(self, address: tuple[str, int], token: str, sources: Sources) -> None:
        self._socket = _bound(*address)
        host, port = self._socket.getsockname()[:2]
        if not token and not ip_address(host).is_loopback:
            token = secrets.token_urlsafe(16)
        name = f"[{host}]" if ":" in host else socket.gethostname() if ip_address(host).is_unspecified else host
        self.url = f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")
        pages = Pages(sources, lambda: self._server.should_exit)
        app = Access(make_app(pages), token, host, port)
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=_MOST_REQUESTS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="cinestream-monitor", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """End, whoever looks."""
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        try:
            with self._socket:
                self._server.run(sockets=[self._socket])
        except Exception:
            logger.exception("the monitor page is not served any more; scans are")


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=64)
    except (OSError, UnicodeError) as error:  # the latter for a host that is no name
        why = getattr(error, "strerror", "") or error
        raise ResourceError(
            f"the monitor page cannot listen on {host} port {port}: {why}; choose another one with --web"
        ) from error
