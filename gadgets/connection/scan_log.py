"""What a server logs: one line for every scan, and every line with the time and the scan, for people or machines."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gadgets.chain import ScanSummary
from recon_core.printable import make_log_printable
from recon_core.words import many

if TYPE_CHECKING:
    from gadgets.problems import Problems

#: Id of the scan that the current thread is at; empty where it is at none.
CURRENT: ContextVar[str] = ContextVar("scan", default="")
#: Forms of a line.
FORMATS = ("text", "json")

_RECORD = "scan_record"  # attribute of a log record
_SHOWN = 300  # characters of a problem in the line for people

logger = logging.getLogger("cinestream.scans")
logger.setLevel(logging.INFO)  # whatever else is logged
make_log_printable(logger.name)


@dataclass
class ScanRecord:
    """What is known of a scan when it is over."""

    peer: str
    """Address and port."""
    scan: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """Id of the scan in all lines of the log."""
    door: str = ""
    """``client``, or ``gadgetron`` for its external node."""
    pipeline: str = ""
    """Name of the pipeline that was asked for; ``its own`` where the peer sent one whole, empty where none came."""
    protocol: str = ""
    """Name of the protocol in the header of the scan."""
    peer_gone: bool = False
    """The peer closed the connection before the end."""
    began: float = field(default_factory=time.monotonic)
    """As `time.monotonic` has it."""

    def log(self, problems: Problems, summary: ScanSummary | None) -> None:
        """Log the one line of the scan, which may have ended before it began."""
        summary = summary or ScanSummary()
        facts = {name: value for name, value in asdict(self).items() if name != "began"}
        facts |= {"readouts": summary.readouts, "images": summary.images, "slices": summary.slices}
        facts["seconds"] = round(time.monotonic() - self.began, 3)
        facts["problems"] = [
            {"kind": name, "text": one.text, "count": one.count, "damage": one.damage}
            for name, one in problems.kinds.items()
        ]
        told = "; ".join(str(problem)[:_SHOWN] for problem in problems) or "none"
        level = logging.ERROR if problems.damage or self.peer_gone else logging.INFO
        logger.log(
            level,
            "%s %s, pipeline %s, protocol %s: %s of %s from %s in %.1f s%s; problems: %s",
            self.door,
            self.peer,
            self.pipeline or "none",
            self.protocol or "not said",
            many(summary.images, "image"),
            many(summary.slices, "slice"),
            many(summary.readouts, "readout"),
            facts["seconds"],
            ", the peer was gone before the end" if self.peer_gone else "",
            told,
            extra={_RECORD: facts},
        )


class ServerFormatter(logging.Formatter):
    """Puts time, level and scan before every line.

    Parameters
    ----------
    form
        One of `FORMATS`; ``json`` writes an object a line, of a scan with all that `ScanRecord` has.
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
