import logging

from gadgets.problems import Kind, Problem, Problems


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


def test_no_problem():
    assert list(Problems()) == Problems().damage == []


def test_many_cases_at_once():
    problems = Problems()
    problems.add(Kind.STRAY_LINE, "lines outside the matrix", damage=False, count=12)
    assert list(problems) == [Problem("lines outside the matrix", damage=False, count=12)]
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
