"""A server in this process, and the peers that talk to it: polite ones, and those that are not."""

import contextlib
import functools
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gadgets.chain import Chain
from gadgets.connection.server import CONNECTIONS, Server
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Readouts,
    Response,
    Text,
    Waveform,
)
from gadgets.wire.reader import Reader
from gadgets.wire.writer import encode
from recon_core.data import Reconstruction
from recon_core.errors import ProtocolError

FILES = Path("/proc/self/fd")
PATIENCE = 60.0  # seconds until a peer that hears nothing gives up; no good run waits that long
BARE = '<?xml version="1.0"?>\n<configuration><method>zero_filled</method></configuration>\n'
CONFIGURATIONS = {"client": ConfigFile("zero_filled"), "gadgetron": ConfigText(BARE)}
DOORS = tuple(CONFIGURATIONS)
FRAMES, SLICES = 4, 2


def wire(*messages):
    """The bytes of messages."""
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


@functools.cache
def scan(slice_order="sequential"):
    """Header and messages of a small scan of two slices and four frames, with noise readouts and ECG."""
    sizes = {"matrix_x": 64, "matrix_y": 48, "frames": FRAMES, "slices": SLICES, "coils": 4, "acs_lines": 8}
    made = simulate(ScanPlan(**sizes, slice_order=slice_order))
    return made.header, tuple(made.items())


def one_by_one(items):
    """The same messages, every readout for itself and free to be changed."""
    for item in items:
        if isinstance(item, Readouts):
            yield from (Readouts(item.headers[i : i + 1].copy(), item.data[i : i + 1].copy()) for i in range(len(item)))
        else:
            yield item


class StubEngine:
    """Combines the coils by root sum of squares, and does what a test wants before each slice."""

    def __init__(self, before=None):
        self.before = before
        self.slices = 0

    def reconstruct(self, cine, options):
        self.slices += 1
        if self.before is not None:
            self.before(self.slices)
        kspace = np.fft.ifftshift(cine.kspace, axes=(2, 3))
        coils = np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"), axes=(2, 3))
        image = np.sqrt((np.abs(coils) ** 2).sum(axis=1)).astype(np.complex64)
        return Reconstruction(image, np.zeros(coils.shape[1:], np.complex64), options.method)


def images_of(header, items, engine=None, **settings):
    """The images that the chain makes without any server."""
    engine = engine or StubEngine()
    chain = Chain(parse_header(header), Settings.of(**{"method": "zero_filled", **settings}), lambda: engine)
    return [item for item in chain(iter(items)) if isinstance(item, Image)]


@dataclass
class Answer:
    """Everything that a peer received, up to the end of the stream."""

    messages: list = field(default_factory=list)
    ended: bool = False  # the socket was closed in order, and nothing came after CLOSE

    def _of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def images(self):
        return self._of(Image)

    @property
    def waveforms(self):
        return self._of(Waveform)

    @property
    def texts(self):
        return [message.text for message in self._of(Text)]

    @property
    def errors(self):
        return [message.text for message in self._of(Error)]

    @property
    def answers(self):
        return {message.correlation: message.text for message in self._of(Response)}

    @property
    def closed(self):
        """CLOSE came once, as the last message."""
        return [isinstance(message, Close) for message in self.messages][-1:] == [True] and len(self._of(Close)) == 1

    def complaints(self, door):
        """What went wrong, as told through this door; checks that it was told as the door wants it."""
        if door == "gadgetron":
            assert not self.texts, "a Gadgetron takes no text from its external peer"
            assert len(self.errors) <= 1
            assert all(isinstance(message, Close) for message in self.messages[-1:])
            return self.errors
        assert not self.errors, "a client does not know message 8"
        assert not self.waveforms, "the stock client dies of waveforms"
        assert all(re.match(r"(ERROR  |WARNING) \S", text) for text in self.texts), self.texts
        return [text[8:] for text in self.texts if text.split()[0] == "ERROR"]


class Peer:
    """A socket to a server."""

    def __init__(self, address, receive_buffer=0):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(address)
        self._reader = Reader(self._receive, chunk_bytes=1 << 16)
        self.answer = Answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _receive(self, buffer):
        try:
            return self.socket.recv_into(buffer)
        except TimeoutError as error:
            kinds = [type(message).__name__ for message in self.answer.messages]
            raise AssertionError(f"nothing more comes from the server; so far {kinds}, {self.answer.texts}") from error

    def send(self, *messages):
        self.send_bytes(wire(*messages))

    def send_bytes(self, stream, piece=0):
        for begin in range(0, len(stream), piece or len(stream) or 1):
            self.socket.sendall(stream[begin : begin + (piece or len(stream))])

    def end(self):
        """No more will be sent; the other direction stays open."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Be gone at once, without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def collect(self, kind=Close, count=1):
        """Take messages until so many of a kind came; after CLOSE nothing but the end of the stream is right."""
        while count:
            try:
                message = self._reader.read()
            except ProtocolError:
                return self.answer
            self.answer.messages.append(message)
            count -= isinstance(message, kind)
            if isinstance(message, Close):
                with contextlib.suppress(ConnectionResetError):
                    self.answer.ended = self._reader.bytes_read > 0 and self.socket.recv(1) == b""
                return self.answer
        return self.answer


def talk(server, *messages, tail=b"", end=False):
    """Say all this and collect the answer."""
    with Peer(server.address) as peer:
        sender = threading.Thread(target=_say, args=(peer, wire(*messages) + tail, end), name="peer-sender")
        sender.start()
        answer = peer.collect()
        sender.join(PATIENCE)
        assert not sender.is_alive()
    return answer


def _say(peer, stream, end):
    with contextlib.suppress(OSError):
        peer.send_bytes(stream)
        if end:
            peer.end()


def talk_scan(server, door="client", slice_order="sequential", items=None):
    """Send a whole scan in the right order."""
    header, usual = scan(slice_order)
    return talk(server, CONFIGURATIONS[door], Header(header), *(usual if items is None else items), Close())


def assert_whole_scan(server, door="client"):
    """The server does for the next scan what it should."""
    answer = talk_scan(server, door)
    assert answer.complaints(door) == []
    assert answer.closed
    assert answer.ended
    assert [wire(image) for image in answer.images] == expected_images()


@functools.cache
def expected_images(slice_order="sequential"):
    return [wire(image) for image in images_of(*scan(slice_order))]


def wait_until(condition, describe=str):
    """Wait for what will be so soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {describe()}"
        time.sleep(0.005)


def _open_files():
    found = {}
    for path in list(FILES.iterdir()) if FILES.is_dir() else []:
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            found[path.name] = str(path.readlink())
    return set(found.items())


def _session_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("cinestream-") and t.name != "cinestream-accept"]


@contextlib.contextmanager
def nothing_left(server=None):
    """Check that afterwards no thread, no file descriptor and no session is left of what happened within."""
    before = _open_files()

    def left():
        return _session_threads(), _open_files() - before, list(server._sessions) if server else []

    yield
    wait_until(lambda: not any(left()), left)


@contextlib.contextmanager
def serving(engine=None, options=None, host="127.0.0.1", grace=5.0, connections=CONNECTIONS, scans=None):
    """A server on a free port, with a stub for an engine; everything must be gone when it was stopped."""
    engine = engine or StubEngine()
    with nothing_left():
        server = Server(host, 0, options, connections, scans=scans)
        server._engine = lambda: engine
        thread = threading.Thread(target=server.serve, name="cinestream-accept")
        thread.start()
        try:
            yield server
        finally:
            server.stop(grace)
            thread.join(PATIENCE)
        assert not thread.is_alive()
        assert not server._sessions
