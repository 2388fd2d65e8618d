"""Is a running server well? What its monitor page says, in words."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from gadgets.inspection.installation import Check
from recon_core.errors import SettingsError
from recon_core.words import many

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANSWER_SECONDS = 10.0
_LONGEST_ANSWER = 32 << 20  # bytes
_GIB = 1 << 30
_LAST = 10  # scans that are told of
_NO_TOKEN = "give the token of the page: --token, or CINESTREAM_WEB_TOKEN"  # noqa: S105 - a sentence


def ask_monitor(url: str, token: str) -> Iterator[Check]:
    """Ask a monitor page about its server.

    Parameters
    ----------
    url
        As ``serve --web`` printed it.
    token
        What the page asks for, where `url` does not have it; empty for none.

    Yields
    ------
    Check
        What was found; the last ones are missing where there is no answer.

    Raises
    ------
    SettingsError
        If this is no address of a page.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or half of an IPv6 address
        is_one = False
    if not is_one:
        raise SettingsError(f"expected an address such as http://127.0.0.1:8080, got {url!r}")
    token = token or parse_qs(parts.query).get("token", [""])[0]
    root = f"{parts.scheme}://{parts.netloc}"
    name = f"server {root}"
    try:
        health = _answer(f"{root}/healthz", token)
        yield _health(name, health)
        facts = _answer(f"{root}/scans.json", token)
        yield from _scans(facts)
        yield from _limits(facts["server"])
        metrics = _ask(f"{root}/metrics", token).count(b"\n")
        yield Check("metrics", f"{many(metrics, 'line')} for Prometheus")
    except urllib.error.HTTPError as error:
        remedy = _NO_TOKEN if error.code in (401, 403) else "look at the log of the server"
        yield Check(name, f"{error.code} {error.reason}: {error.read(500).decode('utf-8', 'replace').strip()}", remedy)
    except OSError as error:
        reason = getattr(error, "reason", error)
        yield Check(name, f"no answer ({reason})", "start one with: cinestream serve --web 8080")
    except (HTTPException, ValueError, KeyError, TypeError, AttributeError):
        yield Check(name, "something answers, but it is no monitor page of this cinestream", "check host and port")


def _health(name: str, health: dict[str, Any]) -> Check:
    found = f"cinestream {health['version']}, {health['health']}"
    if health["fault"]:
        return Check(name, f"{found}: {health['fault']}", "every scan fails; look at its log, then start it again")
    doubts = "; ".join(health["doubts"])
    return Check(name, f"{found}: {doubts}" if doubts else found)


def _scans(facts: dict[str, Any]) -> Iterator[Check]:
    server, running, over = facts["server"], facts["running"], facts["over"][:_LAST]
    done = server["scans"]
    lost = sum(count for verdict, count in done.items() if verdict != "done")
    hours = (server["now"] - server["began"]) / 3600
    total = f"{many(done.get('done', 0) + lost, 'scan')} in {hours:.1f} h, {lost} with losses"
    yield Check("scans", f"{total}; {len(running)} running")
    for scan in running:
        now = f", {scan['running']} for {scan['seconds_running']:.1f} s" if scan["running"] else ""
        text = f"{scan['slices']} of {many(scan['promised'], 'slice')}, latency {scan['latency']:.1f} s{now}"
        limit = f"{text}, the deadline is {scan['deadline']:g} s"
        yield Check(f"running {scan['scan']}", limit if scan["late"] else text)
    bad = [scan for scan in over if scan["verdict"] != "done"]
    if bad:
        damage = [problem["text"] for problem in bad[0]["problems"] if problem["damage"]]
        when = time.strftime("%H:%M", time.localtime(bad[0]["began"]))
        why = damage[0] if damage else "the peer left"
        found = f"{len(bad)} of the last {len(over)} lost data or images, the latest of {when}: {why}"
        yield Check("losses", found, "" if len(bad) < len(over) else "no scan is whole; look at the log of the server")
    replaced = [scan for scan in over if not scan["as_asked"]]
    if replaced:
        notes = [note for note in replaced[0]["notes"] if "instead of" in note] or [*replaced[0]["notes"], ""]
        yield Check("fallback", f"{len(replaced)} of the last {len(over)} by another method than asked for: {notes[0]}")


def _limits(server: dict[str, Any]) -> Iterator[Check]:
    load, memory = server["load"], server["memory"]
    queue = f"{load['queue_bytes'] / _GIB:.2f} of {load['queue_limit'] / _GIB:.2f} GiB"
    scans = f"{load['memory_bytes'] / _GIB:.2f} of {load['memory_limit'] / _GIB:.2f} GiB"
    yield Check("load", f"{many(load['connections'], 'connection')}, queue {queue}, memory of scans {scans}")
    if memory["host"] and memory["host_free"] is not None:
        yield Check("memory", f"{memory['host_free'] / _GIB:.1f} of {memory['host'] / _GIB:.1f} GiB free")
    if memory["gpu"]:
        yield Check("GPU", f"{memory['gpu_free'] / _GIB:.1f} of {memory['gpu'] / _GIB:.1f} GiB free")


def _answer(url: str, token: str) -> dict[str, Any]:
    """What a path says as JSON; a server that is ill says so with an error."""
    try:
        content = _ask(url, token)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        content = error.read(_LONGEST_ANSWER)
    answer = json.loads(content)
    return answer if isinstance(answer, dict) else {}


def _ask(url: str, token: str) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, as checked
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310
        return bytes(answer.read(_LONGEST_ANSWER))
