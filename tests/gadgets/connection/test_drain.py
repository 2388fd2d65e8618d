import socket

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
