"""Measure what an ``<execute>`` node costs before it works: ``python -m tests.bench.start``.

A parent starts ``python -m gadgetron`` as a Gadgetron does, once with a target that does nothing, and once with ours
while a resident server runs that closes at once. Both times end with CLOSE, so that neither reconstructs anything.
Not a test: a loaded machine would fail it without a fault of the code.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from gadgets.connection.resident import SERVER_VARIABLE
from gadgets.wire.framing import U2, Frames, MessageId, text_message
from gadgets.wire.messages import Query, Response
from gadgets.wire.reader import Reader
from gadgets.wire.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 15
EMPTY, OURS = ("builtins", "id"), ("gadgets.external", "reconstruct")  # the package sends CLOSE after the first
HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions><H1resonanceFrequency_Hz>1'
    "</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as resident:
        threading.Thread(target=_serve, args=(resident,), daemon=True).start()
        variable = {SERVER_VARIABLE: f"127.0.0.1:{resident.getsockname()[1]}"}
        times: dict[tuple[str, str], list[float]] = {EMPTY: [], OURS: []}
        for _ in range(ROUNDS):  # in turns, so that a change of the machine's mood meets both alike
            for target, found in times.items():
                found.append(_seconds_to_close(target, variable))
    ratio = statistics.median(ours / empty for empty, ours in zip(times[EMPTY], times[OURS], strict=True))
    empty, ours = (1e3 * statistics.median(times[target]) for target in (EMPTY, OURS))
    text = f"{ours:.0f} ms to its CLOSE; an empty target {empty:.0f} ms; ratio {ratio:.2f} (median of {ROUNDS} pairs)"
    print(f"| start of an `<execute>` node, resident server running | {text} |")


def _seconds_to_close(target: tuple[str, str], variable: dict[str, str]) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "gadgetron", str(listener.getsockname()[1]), *target]
        begin = time.perf_counter()
        environment = {**os.environ, "GADGETRON_EXTERNAL_LOG_LEVEL": "ERROR", **variable}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(text_message(MessageId.CONFIG_TEXT, "<configuration/>"))
                connection.sendall(text_message(MessageId.HEADER, HEADER) + U2.pack(MessageId.CLOSE))
                while not Frames(connection.recv_into).read().closes:
                    pass
                seconds = time.perf_counter() - begin
            process.wait()
    return seconds


def _serve(listener: socket.socket) -> None:
    for connection in _connections(listener):
        with connection, suppress(OSError):
            reader, writer = Reader.of_socket(connection), Writer.of_socket(connection)
            question = reader.read()
            assert isinstance(question, Query)
            writer.send(Response(question.correlation, "0"))
            for _ in reader:  # up to CLOSE
                pass
            connection.sendall(U2.pack(MessageId.CLOSE))


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    with suppress(OSError):
        while True:
            yield listener.accept()[0]


if __name__ == "__main__":
    main()
