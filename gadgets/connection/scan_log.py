"""What a server logs: one line for every scan, and every line with the time and the scan, for people or machines."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

from recon_core.printable import make_log_printable
from recon_core.words import many

if TYPE_CHECKING:
    from gadgets.connection.records import ScanRecord

#: Id of the scan that the current thread is at; empty where it is at none.
CURRENT: ContextVar[str] = ContextVar("scan", default="")
#: Forms of a line.
FORMATS = ("text", "json")

_RECORD = "scan_record"  # attribute of a log record
_SHOWN = 300  # characters of a problem in the line for people

logger = logging.getLogger("cinestream.scans")
logger.setLevel(logging.INFO)  # whatever else is logged
make_log_printable(logger.name)


def log_scan(record: ScanRecord) -> None:
    """Log the one line of a scan that is over, which may have ended before it began."""
    problems, summary = record.problems, record.summary
    told = "; ".join(str(problem)[:_SHOWN] for problem in problems) or "none"
    level = logging.ERROR if problems.damage or record.peer_gone else logging.INFO
    logger.log(
        level,
        "%s %s, pipeline %s, protocol %s: %s of %s from %s in %.1f s%s; problems: %s",
        record.door,
        record.peer,
        record.pipeline or "none",
        record.protocol or "not said",
        many(summary.images, "image"),
        many(summary.slices, "slice"),
        many(summary.readouts, "readout"),
        record.seconds,
        ", the peer was gone before the end" if record.peer_gone else "",
        told,
        extra={_RECORD: record.outcome()},
    )


class ServerFormatter(logging.Formatter):
    """Puts time, level and scan before every line.

    Parameters
    ----------
    form
        One of `FORMATS`; ``json`` writes an object a line, of a scan with all of its `ScanRecord.outcome`.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Write a line, and behind it what a traceback has."""
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        record.message = message = record.getMessage()  # as formatters do, for handlers that look at it
        scan = CURRENT.get()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if self._form == "json":
            line: dict[str, Any] = {"time": when, "level": record.levelname, "scan": scan}
            line |= getattr(record, _RECORD, None) or {"message": message}
            if record.exc_text:
                line["traceback"] = record.exc_text
            return json.dumps(line)
        text = " ".join(filter(None, (when, record.levelname, scan and f"[{scan}]", message)))
        return f"{text}\n{record.exc_text}" if record.exc_text else text


def log_as_server(form: str) -> None:
    """Let all that is logged have time, level and scan.

    Parameters
    ----------
    form
        One of `FORMATS`.
    """
    for handler in logging.getLogger().handlers:
        handler.setFormatter(ServerFormatter(form))
