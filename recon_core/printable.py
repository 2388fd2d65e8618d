"""Text of others, made fit for a log and a terminal: one line, and nothing that moves the cursor or hides."""

from __future__ import annotations

import logging
import re
import traceback

_MOST = 4000  # characters of a message
_MOST_OF_NAME = 200
# Control characters, separators of lines and directions of writing: what forges lines, colours or their order.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_KEPT = "\n\t"


def printable(text: str, *, lines: bool = False) -> str:
    r"""Write what must not reach a terminal as escapes such as ``\x1b``.

    Parameters
    ----------
    text
        Any text.
    lines
        Keep line breaks and tabulators, for a text of our own.
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] in _KEPT else found[0].encode("unicode_escape").decode("ascii")

    return _CONTROLS.sub(escaped, text)


def shortened(text: str) -> str:
    """Cut what is too long to be read."""
    return text if len(text) <= _MOST else f"{text[:_MOST]} ... (cut from {len(text)} characters)"


def label(name: str) -> str:
    """Write a name that others gave so that it fits into a line of a table."""
    name = printable(name)
    return name if len(name) <= _MOST_OF_NAME else f"{name[:_MOST_OF_NAME]}..."


class _PrintableRecords(logging.Filter):
    """Makes every record of a logger one line of printable text, whatever handlers there are."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shortened(printable(record.getMessage())), ()
        if record.exc_info:
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)).rstrip(), lines=True)
        return True


def make_log_printable(name: str) -> None:
    """Let a logger write printable lines only."""
    logger = logging.getLogger(name)
    if not any(isinstance(one, _PrintableRecords) for one in logger.filters):
        logger.addFilter(_PrintableRecords())
