import logging

import numpy as np
import pytest

from gadgets.problems import Kind, LeftOut, Problem, Problems
from gadgets.wire.messages import ACQUISITION_HEADER


def test_first_case_speaks_for_all(caplog):
    told = []
    problems = Problems(told.append)
    with caplog.at_level(logging.WARNING, "cinestream"):
        problems.add(Kind.SAMPLES, "readout 7 has 3 coils", damage=True)
        problems.add(Kind.FRAME_NUMBER, "slice 2 came without a last flag", damage=False)
        for number in range(8, 1000):
            problems.add(Kind.SAMPLES, f"readout {number} has 3 coils", damage=True)
        problems.add(Kind.SAMPLES, "five more", damage=True, count=5)
    assert [problem.text for problem in told] == ["readout 7 has 3 coils", "slice 2 came without a last flag"]
    assert [str(problem) for problem in problems] == [
        "readout 7 has 3 coils (the first of 998 such cases)",
        "slice 2 came without a last flag",
    ]
    assert [problem.text for problem in problems.damage] == ["readout 7 has 3 coils"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_nobody_is_sent_a_text_without_end():
    told = []
    Problems(told.append).add(Kind.UNKNOWN_PARAMETERS, "name, " * 100_000, damage=False)
    assert len(str(told[0])) < 5000
    assert "600000 characters" in str(told[0])


def test_no_problem():
    assert list(Problems()) == Problems().damage == []


def test_many_cases_at_once():
    problems = Problems()
    problems.add(Kind.STRAY_LINE, "lines outside the matrix", damage=False, count=12)
    assert list(problems) == [Problem(Kind.STRAY_LINE, "lines outside the matrix", damage=False, count=12, first=12)]
    assert str(problems.kinds["stray line"]) == "lines outside the matrix (the first of 12 such cases)"


def test_like_things_are_counted_apart():
    problems = Problems()
    for number in ("1", "2", "1"):
        problems.add(Kind.IMAGE_SHAPE, f"series {number}", damage=True, of=number)
    assert [str(problem) for problem in problems] == ["series 1 (the first of 2 such cases)", "series 2"]


def test_damage_is_not_hidden_by_what_was_only_noticed():
    problems = Problems()
    for text, damage in (("noticed", False), ("lost", True), ("lost again", True), ("noticed again", False)):
        problems.add(Kind.GATED_SLICE, text, damage=damage)
    assert [str(problem) for problem in problems.damage] == ["lost (the first of 2 such cases)"]
    assert [problem.count for problem in problems] == [2, 2]


def test_totals_are_logged_at_the_end_where_more_came(caplog):
    problems = Problems()
    problems.add(Kind.SAMPLES, "readout 7 is broken", damage=True, count=9)
    problems.add(Kind.STRAY_LINE, "line 300", damage=False, count=2)
    for _ in range(7):
        problems.add(Kind.SAMPLES, "another", damage=True, count=9)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "cinestream"):
        problems.log_totals()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "readout 7 is broken (the first of 72 such cases)")
    ]


# --- what images lack ------------------------------------------------------------------------------------------------


def headers(*places):
    """Headers of readouts of these slices, sets, phases and repetitions."""
    made = np.zeros(len(places), ACQUISITION_HEADER)
    for header, values in zip(made, places, strict=True):
        for name, value in zip(("slice", "set", "phase", "repetition"), values, strict=True):
            header["idx"][name] = value
    return made


def frames(slice_=0, set_=0, repetition=0, count=4):
    return headers(*((slice_, set_, phase, repetition) for phase in range(count)))


BROKEN = ((0, 0, 1, 0), (0, 0, 1, 0), (0, 0, 3, 0), (0, 1, 2, 0), (2, 0, 0, 0), (0, 0, 0, 1))


@pytest.fixture
def left_out():
    made = LeftOut()
    for part in (BROKEN[:1], BROKEN[1:]):
        made.add(headers(*part))
    return made


def test_a_slice_names_its_own_frames(left_out):
    assert left_out.notes(frames(), gated=False) == ("3 broken readouts left out, of 2 of 4 frames",)
    assert left_out.notes(frames(set_=1), gated=False) == ("1 broken readout left out, of 1 of 4 frames",)
    assert left_out.notes(frames(repetition=1), gated=False) == ("1 broken readout left out, of 1 of 4 frames",)
    assert left_out.notes(frames(slice_=1), gated=False) == ()
    assert left_out.notes(frames(count=1), gated=False) == ()  # of a window of frames in real time


def test_repetitions_may_be_the_frames(left_out):
    own = headers(*((0, 0, 0, repetition) for repetition in range(3)))
    assert left_out.notes(own, gated=False) == ("1 broken readout left out, of 1 of 3 frames",)


def test_frames_of_many_beats_are_touched_by_all(left_out):
    assert left_out.notes(frames(), gated=True) == ("4 broken readouts left out",)


def test_nothing_left_out_says_nothing():
    assert LeftOut().notes(frames(), gated=False) == ()


def test_counters_that_may_be_anything_take_no_memory_without_end(monkeypatch):
    monkeypatch.setattr("gadgets.problems._MOST_FRAMES", 3)
    made = LeftOut()
    for places in (BROKEN, [(0, 0, phase, 7) for phase in range(500)]):
        made.add(headers(*places))
    assert sum(map(len, made._slices.values())) == 3
