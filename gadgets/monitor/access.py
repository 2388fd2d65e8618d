"""Who may see the monitor page: whoever has the token, or, where none is set, whoever is on this machine."""

from __future__ import annotations

import secrets
from html import escape
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Path that anyone may ask, as health checks of containers do.
OPEN = "/healthz"
_LOGIN = "/login"
_LONGEST_FORM = 4096  # bytes
_SECURE = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_FORM = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>cinestream</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/static/style.css">
</head><body><main><header><h1>cinestream monitor</h1></header><section><p>{why}</p>
<form method="post" action="/login">
<label>Token <input name="token" type="password" autofocus autocomplete="off"></label>
<button>Enter</button></form></section></main></body></html>"""
_WITHOUT = (
    "The server printed an address with the token when it was started; or enter the token of <code>--web-token</code>."
)


class Access:
    """Lets through who may see the page, and adds headers that keep the page to itself.

    Parameters
    ----------
    app
        The page.
    token
        What one must know; empty lets in everyone who asks this machine by a name of its own: other names are those
        of pages elsewhere that want to read this one.
    host
        The address that is listened on.
    port
        The port, which the cookie is named after.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        self._host = host
        self._cookie = f"cinestream-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURE)
            await send(message)

        if scope["type"] == "http":
            refusal = await self._answer(scope, receive)
            await (refusal or self._app)(scope, receive, send_secured)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What is said instead of the page; None lets the request through."""
        headers, path = Headers(scope=scope), scope["path"]
        if path == OPEN or (self._token and path == "/static/style.css"):
            return None
        if not self._token:
            if _is_own(headers.get("host", ""), self._host):
                return None
            return PlainTextResponse("this page is shown under the name localhost or 127.0.0.1 only\n", 403)
        if path == _LOGIN and scope["method"] == "POST":
            return await self._log_in(Request(scope, receive))
        asked = QueryParams(scope["query_string"]).get("token")
        if asked is not None and self._is_right(asked):
            return self._let_in() if path == "/" else None
        if self._is_right(headers.get("authorization", "").removeprefix("Bearer ")) or self._has_cookie(headers):
            return None
        is_given = asked is not None or "authorization" in headers
        return self._refuse(headers, "The token is wrong." if is_given else "A token is needed.")

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                break
        given = parse_qs(body[:_LONGEST_FORM].decode("utf-8", "replace")).get("token", [""])[0]
        return self._let_in() if self._is_right(given) else self._refuse(request.headers, "The token is wrong.")

    def _let_in(self) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token.decode(), httponly=True, samesite="strict", path="/")
        return answer

    @staticmethod
    def _refuse(headers: Headers, why: str) -> Response:
        if "text/html" in headers.get("accept", ""):
            return HTMLResponse(_FORM.format(why=f"{escape(why)} {_WITHOUT}"), 401)
        text = f"{why} Send it as: Authorization: Bearer TOKEN\n"
        return PlainTextResponse(text, 401, {"www-authenticate": "Bearer"})

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return found is not None and self._is_right(found.value)

    def _is_right(self, token: str) -> bool:
        return secrets.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)


def _is_own(host: str, listens: str) -> bool:
    """Whether a Host header names this machine as seen from itself."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in ("localhost", listens):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
