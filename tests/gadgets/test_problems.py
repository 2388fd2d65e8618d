import logging

from gadgets.problems import Problem, Problems


def test_first_case_speaks_for_all(caplog):
    told = []
    problems = Problems(told.append)
    with caplog.at_level(logging.WARNING, "cinestream"):
        problems.add("shape", "readout 7 has 3 coils", damage=True)
        problems.add("flag", "slice 2 came without a last flag", damage=False)
        for number in range(8, 1000):
            problems.add("shape", f"readout {number} has 3 coils", damage=True)
        problems.add("shape", "five more", damage=True, count=5)
    assert [problem.text for problem in told] == ["readout 7 has 3 coils", "slice 2 came without a last flag"]
    assert [str(problem) for problem in problems] == [
        "readout 7 has 3 coils (the first of 998 such cases)",
        "slice 2 came without a last flag",
    ]
    assert [problem.text for problem in problems.damage] == ["readout 7 has 3 coils"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_no_problem():
    assert list(Problems()) == Problems().damage == []


def test_many_cases_at_once():
    problems = Problems()
    problems.add("lines", "lines outside the matrix", damage=False, count=12)
    assert list(problems) == [Problem("lines outside the matrix", damage=False, count=12)]
    assert str(problems.kinds["lines"]) == "lines outside the matrix (the first of 12 such cases)"
