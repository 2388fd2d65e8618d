import contextlib
import json
import logging
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from gadgets.connection.records import ServerRecord
from gadgets.monitor.opening import open_monitor
from tests.helpers.peers import serving, wait_until


class Site:
    """What a browser or a script asks a monitor page."""

    def __init__(self, monitor):
        self.url, _, self.query = monitor.url.partition("?")

    def ask(self, path="", token="", **headers):
        """Status, headers and body; redirections are not followed."""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=names)
        opener = urllib.request.build_opener(_Stay)
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def json(self, path, **headers):
        return json.loads(self.ask(path, **headers)[2])


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@contextlib.contextmanager
def watched(engine=None, options=None, token="", names=False, address=("127.0.0.1", 0)):
    """A server with its monitor page."""
    record = ServerRecord(names=names)
    before = list(logging.getLogger().handlers)
    with serving(engine, options, scans=record) as server:
        # which says at its end whether the server is well
        wait_until(lambda: not any(thread.name == "cinestream-warm-up" for thread in threading.enumerate()))
        monitor = open_monitor(address, token, record, server.load, server.address)
        try:
            yield SimpleNamespace(server=server, record=record, site=monitor and Site(monitor))
        finally:
            if monitor:
                monitor.close()
            for handler in set(logging.getLogger().handlers) - set(before):
                logging.getLogger().removeHandler(handler)


@pytest.fixture
def site():
    with watched() as one:
        yield one
