import contextlib
import socket
import threading
import time

from gadgets.connection.drain import Drain
from gadgets.connection.scan_log import CURRENT
from gadgets.wire.reader import Reader


def test_what_it_does_is_of_the_scan_of_whoever_made_it():
    seen = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        token = CURRENT.set("0123abcd")
        try:
            drain = Drain(ours, Reader, lambda item, size: seen.append(CURRENT.get()))
        finally:
            CURRENT.reset(token)
        drain.start()
        theirs.shutdown(socket.SHUT_WR)
        drain.finish()
    assert seen == ["0123abcd"]


def test_a_flood_after_the_end_is_taken_no_faster_than_a_scanner_sends(monkeypatch):
    monkeypatch.setattr("gadgets.connection.drain._UNREAD_RATE", 1 << 20)
    ours, theirs = socket.socketpair()
    sent, over = [0], threading.Event()

    def flood():
        with contextlib.suppress(OSError):
            while not over.is_set():
                sent[0] += theirs.send(bytes(1 << 16))

    sender = threading.Thread(target=flood, daemon=True)
    with ours, theirs:
        drain = Drain(ours, Reader, lambda item, size: None)
        drain.start()
        finish = threading.Thread(target=drain.finish, daemon=True)
        finish.start()
        sender.start()
        time.sleep(0.5)
        over.set()
        ours.shutdown(socket.SHUT_RDWR)
        sender.join(10)
        finish.join(10)
    assert not finish.is_alive()
    assert sent[0] < 8 << 20  # hundreds of MiB without; what sockets hold is taken off at once
