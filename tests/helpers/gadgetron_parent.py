"""A process that treats an external peer as Gadgetron 4.7.2 does.

It starts ``python -m gadgetron PORT MODULE TARGET`` (or connects to a resident server), sends the ``<configuration>``
of the pipeline's external node and the scan header as its own library would write it, then the readouts in several
small writes each, and reads what comes back with the few messages that its default readers know. Written from the wire
format alone, so that an error of `gadgets.wire.messages` cannot cancel out.
"""

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np

from gadgets.wire.containers import ImageArray
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Image,
    Readouts,
    Waveform,
)

CONFIG, HEADER, CLOSE, ERROR, ACQUISITION, IMAGE, IMAGE_ARRAY, WAVEFORM = 2, 3, 4, 8, 1008, 1022, 1024, 1026
NO_INT16 = {number: dtype for number, dtype in IMAGE_DTYPES.items() if number != 2}
PATIENCE = 60.0  # s without anything from the peer; only a hanging peer ever uses it up
EMPTY_CONFIGURATION = '<?xml version="1.0"?>\n'  # what a Gadgetron sends for a node without <configuration>


class Vanish:
    """Among the items of a scan: here the Gadgetron dies, its socket with it."""


@dataclass
class Outcome:
    """What the peer sent and how it ended.

    `errors` are what a client would be told as text; `after_close` counts the bytes behind the peer's CLOSE; `order`
    has the ids as they came; `status` is None without a process.
    """

    images: list = field(default_factory=list)
    arrays: list = field(default_factory=list)
    readouts: list = field(default_factory=list)
    waveforms: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    order: list = field(default_factory=list)
    closed: bool = False
    after_close: int = 0
    status: int | None = None
    stdout: str = ""
    stderr: str = ""


def configuration_of(pipeline):
    """The text of CONFIG for a version-2 pipeline: its external node's <configuration>, tabs, no comments."""
    node = ET.fromstring(pipeline).find("stream/external/configuration")
    if node is None:
        return EMPTY_CONFIGURATION
    ET.indent(node, "\t")
    node.tail = None
    text = ET.tostring(node, encoding="unicode", short_empty_elements=True)
    return f"{EMPTY_CONFIGURATION}{text}\n"


def reserialised(header):
    """The header as the Gadgetron's library writes it again; a foreign schema version makes that fail.

    The library keeps what the schema calls float in single precision, and prints 9 digits of it.
    """
    text = ismrmrd.xsd.ToXML(ismrmrd.xsd.CreateFromDocument(header))
    single = r"(?<!<value>)(?<=>)[-+]?[0-9]+\.[0-9e+-]+(?=<)"  # a <value> is that of a userParameterDouble
    return re.sub(single, lambda found: f"{np.float32(found[0]):.9g}", text)


class Gadgetron:
    """One scan through one external node.

    Parameters
    ----------
    pipeline
        Version-2 pipeline as XML, or the text of CONFIG itself if it is no whole pipeline.
    environment
        Variables for the child besides those that a Gadgetron sets; resident servers are not looked for by default.
    python
        Arguments before ``-m``.
    connect
        Address of a resident server; then nothing is started (``<connect>``).
    folder
        Working directory of the child.
    piecewise
        Send a message in several writes, as the real one does; otherwise in one.
    """

    def __init__(self, pipeline, *, environment=None, python=(), connect=None, folder="/", piecewise=True):
        self.config = configuration_of(pipeline) if "<stream>" in pipeline else pipeline
        self.environment = environment or {}
        self.python = python
        self.connect = connect
        self.folder = folder
        self.piecewise = piecewise
        self.outcome = Outcome()
        self.process = None
        self._changed = threading.Condition()
        self._lock = threading.Lock()  # one message at a time, CLOSE from the reading side included
        self._input_closed = False
        self._gone = False

    def run(self, header, items):
        """Send a scan; items are readouts, waveforms, raw bytes, or `Vanish`. Returns when all is over."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                self._connection = self._reach(out, err)
                with self._connection or contextlib.nullcontext():  # closed only when the process is over
                    if self._connection is not None:
                        self._converse(header, items)
                    if self.process is not None:
                        self.outcome.status = self.process.wait(PATIENCE)
            finally:
                if self.process is not None and self.process.poll() is None:
                    self.process.kill()
                    self.process.wait()
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                setattr(self.outcome, name, file.read().decode())
        return self.outcome

    def wait_for(self, what, count):
        """Block (the sending side, in its items) until so many images or waveforms came; False if the peer ended."""
        came = getattr(self.outcome, what)
        with self._changed:
            self._changed.wait_for(lambda: len(came) >= count or self._gone, PATIENCE)
            return len(came) >= count

    # --- start --------------------------------------------------------------------------------------------------------

    def _reach(self, out, err):
        if self.connect is not None:
            return socket.create_connection(self.connect, PATIENCE)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            environment = {"CINESTREAM_SERVER": "off", **os.environ, **self.environment}
            environment["PYTHONPATH"] = environment.get("PYTHONPATH", "") + ":/opt/gadgetron/share/gadgetron/python"
            environment["GADGETRON_STORAGE_ADDRESS"] = "http://localhost:9112"
            command = [sys.executable, *self.python, "-m", "gadgetron", str(listener.getsockname()[1])]
            command += ["gadgets.external", "reconstruct"]
            # Gadgetron closes every file descriptor but stdout and stderr, stdin too
            closing = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
            self.process = subprocess.Popen(closing, stdout=out, stderr=err, env=environment, cwd=self.folder)
            listener.settimeout(0.1)
            end = time.monotonic() + PATIENCE
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(PATIENCE)
                return connection
        self.outcome.errors.append("Operation canceled")
        return None

    def _converse(self, header, items):
        sender = threading.Thread(target=self._send_scan, args=(header, items), daemon=True)
        sender.start()
        try:
            self._read_peer()
        except OSError as error:
            self.outcome.errors.append(f"connection: {error}")
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        sender.join(PATIENCE)
        if sender.is_alive():
            self.outcome.errors.append("the peer takes no more data")
        self._count_rest()

    # --- input of the peer --------------------------------------------------------------------------------------------

    def _send_scan(self, header, items):
        with contextlib.suppress(OSError):  # the reading side tells
            self._send(CONFIG, *_text(self.config))
            self._send(HEADER, *_text(reserialised(header)))
            for item in items:
                if isinstance(item, Vanish):
                    self._connection.shutdown(socket.SHUT_RDWR)
                    self._connection.close()
                    return
                if not self._send_item(item):
                    return
            self._close_input()

    def _send_item(self, item):
        if isinstance(item, Readouts):
            return all(self._send_readout(item, i) for i in range(len(item)))
        if isinstance(item, Waveform):
            header = np.zeros((), WAVEFORM_HEADER)
            for name in WAVEFORM_HEADER.names:
                header[name] = item.header[name]
            return self._send(WAVEFORM, header.tobytes(), item.data.astype("<u4").tobytes())
        return self._send(None, item)

    def _send_readout(self, readouts, i):
        data = np.ascontiguousarray(readouts.data[i], np.complex64)
        return self._send(ACQUISITION, readouts.headers[i].tobytes(), data.tobytes())

    def _send(self, number, *parts):
        """Send one message; False once the input of the peer was closed."""
        pieces = [*([] if number is None else [struct.pack("<H", number)]), *parts]
        with self._lock:
            if self._input_closed:
                return False
            for piece in pieces if self.piecewise else [b"".join(pieces)]:
                self._connection.sendall(piece)
        return True

    def _close_input(self):
        with self._lock:
            if not self._input_closed:
                self._input_closed = True
                self._connection.sendall(struct.pack("<H", CLOSE))

    # --- output of the peer -------------------------------------------------------------------------------------------

    def _read_peer(self):
        collected = []
        while not self.outcome.closed:
            front = self._exactly(2, or_nothing=True)
            number = struct.unpack("<H", front)[0] if front else 1  # the real one reads an uninitialised value
            self.outcome.order.append(number)
            if number == CLOSE:
                self.outcome.closed = True
            elif number == ERROR:
                collected.append(self._string())
                with contextlib.suppress(OSError):
                    self._close_input()
            elif number == WAVEFORM:
                self._waveform()
            elif number == ACQUISITION:
                self._readout()
            elif number == IMAGE_ARRAY:
                self._image_array()
            elif number == IMAGE:
                if not self._image():
                    return
            else:
                self.outcome.errors.append(f"Received illegal message id from external peer: {number}")
                return
            with self._changed:
                self._changed.notify_all()
        if collected:
            self.outcome.errors.append("Errors received: " + "\n".join(collected))

    def _image(self):
        header = np.frombuffer(self._exactly(IMAGE_HEADER.itemsize), IMAGE_HEADER)[0]
        attributes = self._string()
        dtype = NO_INT16.get(int(header["data_type"]))
        if dtype is None:
            self.outcome.errors.append("map::at")
            return False
        try:
            ET.fromstring(attributes)
        except ET.ParseError:
            self.outcome.errors.append("Unable to load ISMRMRD Meta XML document")
            return False
        shape = (int(header["channels"]), *(int(size) for size in header["matrix_size"][::-1]))
        data = np.frombuffer(self._exactly(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
        self.outcome.images.append(Image(header, data, attributes))
        return True

    def _readout(self):
        header = np.frombuffer(self._exactly(ACQUISITION_HEADER.itemsize), ACQUISITION_HEADER)
        shape = (1, int(header["active_channels"][0]), int(header["number_of_samples"][0]))
        data = np.frombuffer(self._exactly(8 * shape[1] * shape[2]), np.complex64).reshape(shape)
        self.outcome.readouts.append(Readouts(header, data))

    def _image_array(self):
        data, headers = self._array(np.dtype(np.complex64)), self._array(IMAGE_HEADER)
        attributes = tuple(self._string() for _ in range(struct.unpack("<Q", self._exactly(8))[0]))
        for text in attributes:
            ET.fromstring(text)
        if self._exactly(2) != b"\0\0":  # neither waveforms nor acquisition headers
            raise ConnectionError("more than images in an array")
        self.outcome.arrays.append(ImageArray(data, headers, attributes))

    def _array(self, dtype):
        (axes,) = struct.unpack("<Q", self._exactly(8))
        shape = struct.unpack(f"<{axes}Q", self._exactly(8 * axes))
        return np.frombuffer(self._exactly(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape, order="F")

    def _waveform(self):
        header = np.frombuffer(self._exactly(WAVEFORM_HEADER.itemsize), WAVEFORM_HEADER)[0]
        shape = (int(header["channels"]), int(header["number_of_samples"]))
        data = np.frombuffer(self._exactly(4 * shape[0] * shape[1]), "<u4").reshape(shape)
        self.outcome.waveforms.append(Waveform(header, data))

    def _string(self):
        return self._exactly(struct.unpack("<Q", self._exactly(8))[0]).decode()

    def _exactly(self, count, *, or_nothing=False):
        data = bytearray()
        while len(data) < count:
            piece = self._connection.recv(count - len(data))
            if not piece:
                if or_nothing and not data:
                    return b""
                raise ConnectionError("the peer is gone within a message")
            data += piece
        return bytes(data)

    def _count_rest(self):
        """Read to the end of the peer's stream: it must have ended with its CLOSE."""
        with contextlib.suppress(OSError):
            while piece := self._connection.recv(1 << 16):
                self.outcome.after_close += len(piece)


def _text(text):
    data = text.encode()
    return struct.pack("<I", len(data)), data
