"""What workers tell of their scans: all that the page shows."""

import socket
import time
from collections import Counter
from dataclasses import fields

import pytest

from gadgets.chain import ScanSummary
from gadgets.connection.news import Room, ToldRecord, news_of
from gadgets.connection.records import Histogram, ScanRecord
from gadgets.problems import Kind, Problems


def filled(kind, **more):
    """An object of a dataclass of which no field has its default: numbers, texts and counts by their kind."""
    made = kind(**more)
    for number, one in enumerate(fields(kind)):
        value = getattr(made, one.name)
        if one.name in more:
            continue
        if isinstance(value, dict):  # or Counter
            value[f"of {one.name}"] = number + 2
        elif isinstance(value, bool | str | int | float):
            setattr(made, one.name, type(value)(f"{one.name}" if isinstance(value, str) else number + 2))
    return made


@pytest.mark.parametrize("ended", [None, 1005.0])
def test_every_fact_of_a_scan_is_told(ended, monkeypatch):
    """A fact that is added is told too, or this fails: the page of a server with workers has them from there."""
    monkeypatch.setattr(time, "monotonic", lambda: 1010.0)
    problems = Problems()
    problems.add(Kind.COILS, "a coil is missing", damage=True, count=3)
    known = {"peer": "a peer", "method": "cg_sense", "methods": Counter({"kt_sense": 2}), "began": 1e3, "ended": ended}
    times = {"maps": Histogram(total=0.5)}
    record = filled(ScanRecord, summary=filled(ScanSummary), problems=problems, times=times, **known)
    plain = ScanRecord("a peer", scan="another").facts()
    same = [name for name, value in record.facts().items() if value == plain[name]]
    assert set(same) <= {"peer", "verdict"}
    ours, theirs = socket.socketpair()
    with ours:
        scans = ToldRecord(theirs, Room, names=True)
        scans.begin(record)
        with theirs:
            scans.end(record) if ended else scans._tell([])
        (news,) = news_of(ours)
    (told,) = news.ended if ended else news.running
    assert told.facts() == record.facts()
    assert told.times == record.times
