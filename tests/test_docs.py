"""README and docs/: generated pages are up to date, commands are those of this version, links and paths resolve."""

import argparse
import importlib.util
import re
import subprocess
import sys

import pytest

from gadgets.commands.main import make_parser
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings, apply, parse_assignments
from recon_core.methods import METHODS
from tests.helpers.pages import PAGES, anchors, blocks, cinestream_arguments, command_lines
from tests.helpers.paths import REPOSITORY
from tests.pages import SETTINGS, settings_page

README = PAGES["README.md"]
EXAMPLES = [path.stem for path in (REPOSITORY / "docs" / "examples").glob("*.py")]  # methods of one's own
COMMANDS = [
    (name, line, arguments)
    for name, page in PAGES.items()
    for line in command_lines(page)
    if (arguments := cinestream_arguments(line)) is not None
]


def test_page_of_settings_is_made_of_the_settings():
    assert SETTINGS.read_text(encoding="utf-8") == settings_page(), "run python -m tests.pages"


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("name", ["README.md", "docs/methods.md"])
def test_every_method_is_in_the_tables(name):
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGES[name], re.MULTILINE)) == sorted(METHODS)


def commands():
    """Parsers of the commands by name."""
    actions = make_parser()._actions
    (found,) = [action.choices for action in actions if isinstance(action, argparse._SubParsersAction)]
    return found


def test_every_command_is_in_the_readme_or_the_pages():
    for command in commands():
        assert any(f"cinestream {command}" in page for page in PAGES.values()), command


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_options_of_the_text_exist(name):
    known = commands()
    for text in re.findall(r"`cinestream\s+([^`]+)`", PAGES[name]):
        command, *words = text.split()
        if command in ("--verbose", "..."):
            continue
        assert command in known, text
        options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert set(options) <= set(known[command]._option_string_actions), text


def test_there_are_commands():
    assert len(COMMANDS) >= 60


@pytest.mark.parametrize(
    ("name", "line", "arguments"), COMMANDS, ids=[f"{name}: {line[:60]}" for name, line, _ in COMMANDS]
)
def test_command_is_one_of_this_version(name, line, arguments, capsys, tmp_path, monkeypatch):
    (tmp_path / "DIR").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CINESTREAM_METHODS", str(REPOSITORY / "docs" / "examples"))
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")
    values = parse_assignments(getattr(options, "set", None) or [])
    if values.get("method") in EXAMPLES:
        values.pop("method")
    apply(Settings(), values)
    if getattr(options, "pipeline", None):
        find_pipeline(options.pipeline)


@pytest.mark.parametrize("name", PAGES)
def test_modules_and_tests_of_commands_exist(name):
    for line in PAGES[name].replace("`", "\n").splitlines():
        for module in re.findall(r"python -m (tests[\w.]*)", line):
            assert importlib.util.find_spec(module), module
    # also those of the text; a star stands for several
    for path in re.findall(r"(?<![\w./-])(?:tests|gadgets|recon_core|containers)/[\w./*-]*\w", PAGES[name]):
        assert list(REPOSITORY.glob(path)), path


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name):
    folder = (REPOSITORY / name).parent
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else REPOSITORY / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for page in PAGES.values():
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_of_the_readme_can_be_parsed():
    for language, block in blocks(README):
        if language == "python":
            compile(block, "README.md", "exec")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason='the site needs pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return folder


def test_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) >= len(list((REPOSITORY / "docs").glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*\shref=\"?([^\s\">]+)", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page.name
