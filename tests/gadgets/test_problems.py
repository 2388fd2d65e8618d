import logging

import pytest

from gadgets.problems import Problem, Problems


def test_cases_of_a_kind_are_counted_and_the_first_one_speaks():
    problems = Problems()
    problems.add("values", "readout 7 is broken", damage=True)
    for number in range(8, 108):
        problems.add("values", f"readout {number} is broken", damage=True)
    problems.add("values", "five at once", damage=True, count=5)
    (problem,) = problems
    assert (problem.text, problem.damage, problem.count) == ("readout 7 is broken", True, 106)
    assert "readout 7 is broken" in str(problem)
    assert "106" in str(problem)


def test_one_case_is_its_text():
    assert str(Problem("a slice is missing", damage=True)) == "a slice is missing"


def test_several_at_once_are_counted_from_the_start():
    problems = Problems()
    problems.add("coils", "readout 3 has 2 coils", damage=True, count=4)
    assert problems.kinds["coils"].count == 4
    assert "4" in str(problems.kinds["coils"])


def test_damage_is_told_from_what_was_handled():
    problems = Problems()
    problems.add("noise", "no whitening", damage=False)
    problems.add("late", "a late readout", damage=True)
    problems.add("centre", "centre differs", damage=False)
    assert [problem.text for problem in problems] == ["no whitening", "a late readout", "centre differs"]
    assert [problem.text for problem in problems.damage] == ["a late readout"]


def test_listener_hears_the_first_case_of_every_kind_at_once():
    heard = []
    problems = Problems(heard.append)
    problems.add("a", "first a", damage=True)
    assert [problem.text for problem in heard] == ["first a"]
    problems.add("a", "second a", damage=True)
    problems.add("b", "first b", damage=False, count=3)
    assert [problem.text for problem in heard] == ["first a", "first b"]


@pytest.mark.parametrize(("damage", "level"), [(True, logging.ERROR), (False, logging.WARNING)])
def test_log_holds_one_line_of_the_right_level(caplog, damage, level):
    problems = Problems()
    with caplog.at_level(logging.DEBUG, "cinestream"):
        for _ in range(50):
            problems.add("kind", "100 % of it is 'broken'", damage=damage)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (level, "100 % of it is 'broken'")


def test_a_scan_without_problems_has_none():
    problems = Problems()
    assert list(problems) == []
    assert problems.damage == []
