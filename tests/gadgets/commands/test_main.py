"""The command line as a whole: help, examples, and ends that are no fault of a command."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gadgets.commands as commands_package
from gadgets.commands.main import COMMANDS, INTERRUPTED, make_parser
from gadgets.settings.settings import FIELDS
from tests.helpers.paths import REPOSITORY
from tests.helpers.peers import wait_until

NAMES = [command.NAME for command in COMMANDS]


def parsers():
    (commands,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return commands.choices


def test_every_module_of_the_package_is_a_command_or_serves_them_all():
    folder = Path(commands_package.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "main", "arguments", "console", "parser"}
    assert modules == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert {name.replace("-", "_") for name in NAMES} == modules
    assert set(parsers()) == set(NAMES)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_examples_are_calls_that_the_parser_takes(command):
    for line in command.EXAMPLES.splitlines():
        words = line.split()
        assert words[:2] == ["cinestream", command.NAME]
        assert make_parser().parse_args(words[1:]).run is command.run
        assert f"  {line}\n" in make_parser().format_help()
        assert f"  {line}\n" in parsers()[command.NAME].format_help()


@pytest.mark.parametrize("command", NAMES)
def test_help_mentions_every_option(command, run):
    status, out, _ = run(command, "--help")
    assert status == 0
    for action in parsers()[command]._actions:
        assert all(option in out for option in action.option_strings)
        assert not action.option_strings or action.help
    if command in {"replay", "serve"}:
        assert all(f"  {name}  (" in out for name in FIELDS)


def test_help_and_version(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in NAMES)
    status, out, _ = run("--version")
    assert status == 0
    assert re.fullmatch(r"cinestream \d+\.\d+\.\d+\S*\n", out)
    assert run()[0] == 2
    status, _, err = run("reply")
    assert (status, "did you mean replay" in err) == (2, True)


def test_help_comes_without_heavy_imports():
    code = "import sys; from gadgets.commands.main import make_parser; make_parser().format_help(); print(*sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"torch", "h5py", "PIL", "ismrmrd", "jinja2", "nibabel", "scipy", "matplotlib"}
    assert not heavy & set(outcome.stdout.split())


@pytest.mark.parametrize("command", [pytest.param("replay", marks=pytest.mark.slow), "simulate"])
def test_a_full_disk_is_said_in_words(command, scan, tmp_path):
    output = tmp_path / "out.h5"
    arguments = [scan, "-o", output] if command == "replay" else [output, "--frames", "2", "--matrix-y", "48"]
    limit = ["prlimit", "--fsize=8000"] if shutil.which("prlimit") else pytest.skip("there is no prlimit here")
    line = [*limit, sys.executable, "-m", "gadgets", command, *map(str, arguments)]
    outcome = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 1
    assert f"cinestream: cannot write {output}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_reader_that_leaves_is_no_trouble():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "gadgets", "pipelines"]
        outcome = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (1, "")


def test_ctrl_c_leaves_one_line_and_no_file(scan, tmp_path):
    """In the middle of a reconstruction."""
    methods, made = tmp_path / "methods", tmp_path / "made"
    methods.mkdir()
    made.mkdir()
    text = """\
import pathlib, time
def METHOD(_):
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(60)
"""
    (methods / "sleepy.py").write_text(text, encoding="utf-8")
    line = [sys.executable, "-m", "gadgets", "replay", str(scan), "-o", str(made / "images.h5")]
    options = ["--set", "method=sleepy", "--set", "fallback=none", "--gif", str(made / "loop.gif")]
    environment = {**os.environ, "CINESTREAM_METHODS": str(methods)}
    with subprocess.Popen([*line, *options], stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until((methods / "begun").exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    lines = [one for one in err.splitlines() if not one.startswith("WARNING")]
    assert lines == ["cinestream: stopped; nothing that was not whole is left"]
    assert process.returncode == INTERRUPTED
    assert list(made.iterdir()) == []


def test_ctrl_c_while_modules_are_imported_is_one_line_too():
    code = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "gadgets.commands.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from gadgets.__main__ import run
run()
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (INTERRUPTED, "cinestream: stopped\n")


def exit_table():
    """Rows of the table of exit codes in the docs: status and meaning."""
    text = (REPOSITORY / "docs" / "use.md").read_text(encoding="utf-8")
    section = text[text.index("## Exit codes") :]
    return dict(re.findall(r"^\| (\d+) \| (.+?) \|", section, re.MULTILINE))


def test_exit_codes_are_those_of_the_docs(scan, damaged, tmp_path, run):
    calls = {
        0: [("replay", scan, "-o", tmp_path / "0.h5"), ("methods",), ("doctor", scan)],
        1: [
            ("replay", damaged, "-o", tmp_path / "1.h5"),
            ("replay", tmp_path / "absent.h5", "-o", tmp_path / "2.h5"),
            ("doctor", damaged),
            ("export", scan, "--dicom", tmp_path / "dicom"),
            ("send", scan, "-o", tmp_path / "3.h5", "--host", ".."),
        ],
        2: [("replay", scan), ("replay", scan, "-o", tmp_path / "0.h5"), ("methods", "grapa"), ("pipelines", "grapa")],
    }
    for status, lines in calls.items():
        for line in lines:
            assert run(*line)[0] == status, line
    assert set(exit_table()) == {*map(str, calls), str(INTERRUPTED)}
