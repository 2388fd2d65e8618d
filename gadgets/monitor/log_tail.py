"""The last lines of the log."""

from __future__ import annotations

import logging
from collections import deque

from gadgets.connection.scan_log import ServerFormatter

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
        self._count += 1
        self._lines.append((self._count, record.levelname, self.format(record)))

    def lines(self, after: int = 0) -> list[tuple[int, str, str]]:
        """Number, level and text of the lines after one."""
        return [line for line in list(self._lines) if line[0] > after]
