"""The rules of docs/architecture.md hold, and every room is in its tables."""

import re

import pytest

from tests.architecture import PACKAGES, circles, imports, main, modules, room_imports, rooms
from tests.helpers.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def graph():
    return imports()


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_no_module_imports_itself_through_others(graph):
    assert circles(graph) == []


def test_core_does_not_know_the_stream(graph):
    arrows = [(module, target) for module, targets in graph.items() for target in targets]
    assert not [(one, other) for one, other in arrows if one.startswith("recon_core") and other.startswith("gadgets")]


def test_the_stream_has_few_rooms_and_few_imports_between_them(graph):
    assert len(rooms("gadgets")) <= 20
    assert len(room_imports("gadgets", graph)) <= 90


@pytest.mark.parametrize("package", PACKAGES)
def test_page_has_every_room_and_no_other(package):
    part = PAGE.partition(f"\n## Rooms of {package}\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) == rooms(package)


def test_files_that_the_page_names_exist():
    for name in re.findall(r"\b(?:recon_core|gadgets|tests)/[\w./]+\w", PAGE):
        assert (REPOSITORY / name).exists(), name


def test_modules_of_the_drawings_exist(graph):
    known = {module.partition(".")[2]: path for module, path in modules().items()}
    for drawing in re.findall(r"\n```\n(.*?)```", PAGE, re.DOTALL):
        for name in re.findall(r"(?<![\w./])[a-z]\w+\.[a-z]\w+", drawing):
            room, _, inner = name.partition(".")
            if room in known and name not in known:
                assert f"def {inner}(" in known[room].read_text(encoding="utf-8"), name


def test_imports_are_found_in_all_their_forms(tmp_path):
    files = {
        "gadgets/__init__.py": "",
        "gadgets/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gadgets.b.inner import x\n",
        "gadgets/b/__init__.py": "from .inner import x\n",
        "gadgets/b/inner.py": "def late():\n    import gadgets.c\n",
        "gadgets/c.py": "from gadgets import a\n",
        "recon_core/__init__.py": "import numpy\n",
    }
    graph = imports(write(tmp_path, files))
    assert graph == {
        "gadgets": set(),
        "gadgets.a": {"gadgets.b.inner"},
        "gadgets.b": {"gadgets.b.inner"},
        "gadgets.b.inner": {"gadgets.c"},
        "gadgets.c": {"gadgets.a"},
        "recon_core": set(),
    }
    assert circles(graph) == [["gadgets.a", "gadgets.b.inner", "gadgets.c"]]
    assert rooms("gadgets", tmp_path) == ["a", "b", "c"]
    assert room_imports("gadgets", graph) == {("a", "b"), ("b", "c"), ("c", "a")}


def test_two_circles_are_two():
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}, "e": {"a"}}
    assert sorted(circles(graph)) == [["a", "b"], ["c", "d"]]


def test_the_script_prints_counts(capsys):
    main()
    out = capsys.readouterr().out
    assert re.search(r"^gadgets: \d+ rooms, \d+ imports between them$", out, re.MULTILINE)
    assert re.search(r"^\d+ modules, \d+ import circles$", out, re.MULTILINE)
