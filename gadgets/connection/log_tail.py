"""The last lines of the log."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

from gadgets.connection.scan_log import ServerFormatter

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINES = 200


class LogTail(logging.Handler):
    """Keeps them as the server writes them for people."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(ServerFormatter("text"))
        self._lines: deque[tuple[int, str, str]] = deque(maxlen=_LINES)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.add([(record.levelname, self.format(record))])

    def add(self, lines: Iterable[tuple[str, str]]) -> None:
        """Keep lines that another process has written: level and text of each."""
        with self.lock or contextlib.nullcontext():
            for level, text in lines:
                self._count += 1
                self._lines.append((self._count, level, text))

    def lines(self, after: int = 0) -> list[tuple[int, str, str]]:
        """Number, level and text of the lines after one."""
        return [line for line in list(self._lines) if line[0] > after]
