"""Exam, patient and scanner in an ISMRMRD header; not needed by the reconstruction."""

from __future__ import annotations

import contextlib
import math
import re
from datetime import date
from typing import TYPE_CHECKING

from gadgets.wire.header import read_xml

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


class ScanFacts:
    """A header to look things up in.

    Parameters
    ----------
    text
        The ISMRMRD header as XML; empty where there is none, and then nothing is found.

    Raises
    ------
    HeaderError
        If the text is no XML.
    """

    def __init__(self, text: str = "") -> None:
        self._root: Element | None = read_xml(text) if text.strip() else None

    def __bool__(self) -> bool:
        """Whether there is a header."""
        return self._root is not None

    def texts(self, path: str) -> list[str]:
        """Every value at a path such as ``studyInformation/studyDate``, without empty ones."""
        nodes = [] if self._root is None else self._root.iterfind(path)
        return [text for text in ((node.text or "").strip() for node in nodes) if text]

    def text(self, path: str) -> str:
        """The first value at a path, or nothing."""
        return next(iter(self.texts(path)), "")

    def number(self, path: str) -> float | None:
        """The first value at a path where it is a finite number above zero."""
        return next(iter(self.numbers(path)), None)

    def numbers(self, path: str) -> list[float | None]:
        """Every value at a path; None where it is no finite number above zero."""
        return [_positive(text) for text in self.texts(path)]

    def date(self, path: str) -> str:
        """A date as DICOM writes it (YYYYMMDD), or nothing where there is no such day, as some anonymisers leave it."""
        match = re.match(r"(\d{4})-?(\d\d)-?(\d\d)", self.text(path))
        if match:
            with contextlib.suppress(ValueError):
                date(*map(int, match.groups()))
                return "".join(match.groups())
        return ""

    def time(self, path: str) -> str:
        """A time of day as DICOM writes it (HHMMSS), or nothing."""
        match = re.match(r"([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)", self.text(path))
        return "".join(match.groups()) if match else ""


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
