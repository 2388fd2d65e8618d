"""The monitor page and what it asks for, as a web application."""

from __future__ import annotations

import asyncio
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gadgets import __version__
from gadgets.monitor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from importlib.resources.abc import Traversable

    from starlette.requests import Request

    from gadgets.monitor.state import Sources

_STATIC = {
    "monitor.js": ("gadgets.monitor", "static", "text/javascript"),
    "monitor.css": ("gadgets.monitor", "static", "text/css"),
    "viewer.js": ("gadgets.reports", "templates", "text/javascript"),
    "viewer.css": ("gadgets.reports", "templates", "text/css"),
    "style.css": ("gadgets.reports", "templates", "text/css"),
}
_NUMBER = re.compile(r"[0-9]{1,6}")  # of a loop; int takes no number of thousands of digits
_NEWS_SECONDS = 1.0  # from one look at the facts to the next
_CLOSE_SECONDS = 0.2  # until it is noticed that the server ends
_MOST_WATCHERS = 16  # pages that are kept up to date at a time


class Pages:
    """Answers to requests.

    Parameters
    ----------
    sources
        Where the facts are.
    is_closing
        Says that no more is to be sent.
    """

    def __init__(self, sources: Sources, is_closing: Callable[[], bool]) -> None:
        self._sources = sources
        self._is_closing = is_closing
        self._metrics = Metrics(sources.record, sources.load)
        self._watchers = 0

    def routes(self) -> list[Route]:
        """All paths."""
        return [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/events", self.events),
            Route("/scans.json", self.scans),
            Route("/loops/{scan}/{number}", self.loop),
            Route("/maps/{scan}/{number}", self.maps),
            Route("/metrics", self.metrics),
            Route("/healthz", self.health),
        ]

    def page(self, _: Request) -> Response:
        """The page itself."""
        return Response(_file("gadgets.monitor", "static", "monitor.html").read_bytes(), media_type="text/html")

    def static(self, request: Request) -> Response:
        """Scripts and styles."""
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404)
        package, folder, kind = _STATIC[name]
        return Response(_file(package, folder, name).read_bytes(), media_type=kind)

    def scans(self, _: Request) -> Response:
        """All facts."""
        sources = self._sources
        return JSONResponse({"server": sources.server(), "running": sources.running(), "over": sources.over()})

    def loop(self, request: Request) -> Response:
        """One loop with its picture."""
        return _found(request, self._sources.images.loop, "application/json")

    def maps(self, request: Request) -> Response:
        """The coil maps of a slice as PNG."""
        return _found(request, self._sources.images.maps, "image/png")

    def metrics(self, _: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def health(self, _: Request) -> Response:
        """Whether the server is well; 503 if no scan can be reconstructed."""
        health = self._sources.health()
        view = {"health": health.word, "fault": health.fault, "doubts": health.doubts, "version": __version__}
        return JSONResponse(view, 503 if health.fault else 200)

    async def events(self, _: Request) -> Response:
        """What changes, as server-sent events."""
        if self._watchers >= _MOST_WATCHERS:
            raise HTTPException(503, f"{_MOST_WATCHERS} pages are open already; close one")
        return StreamingResponse(self._news(), media_type="text/event-stream")

    async def _news(self) -> AsyncIterator[str]:
        sources, sent, line = self._sources, None, 0
        self._watchers += 1
        try:
            while not self._is_closing():
                yield _event("state", json.dumps({"server": sources.server(), "running": sources.running()}))
                if sent != (sent := sources.version):
                    yield _event("over", json.dumps(sources.over()))
                lines = sources.log.lines(line)
                if lines:
                    line = lines[-1][0]
                    yield _event("log", json.dumps(lines))
                for _ in range(round(_NEWS_SECONDS / _CLOSE_SECONDS)):
                    await asyncio.sleep(_CLOSE_SECONDS)
                    if self._is_closing():
                        return
        finally:
            self._watchers -= 1


def make_app(pages: Pages) -> Starlette:
    """Make the application."""
    return Starlette(routes=pages.routes())


def _found(request: Request, look: Callable[[str, int], bytes], kind: str) -> Response:
    number = request.path_params["number"]
    content = look(request.path_params["scan"], int(number)) if _NUMBER.fullmatch(number) else b""
    if not content:
        raise HTTPException(404, "the images of this scan are not kept any more")
    return Response(content, media_type=kind)


def _file(package: str, folder: str, name: str) -> Traversable:
    return files(package).joinpath(folder, name)


def _event(name: str, text: str) -> str:
    return f"event: {name}\ndata: {text}\n\n"
