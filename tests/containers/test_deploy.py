"""docs/deploy.md: its commands are those of this version, its snippets can be read, its table is the label's."""

import argparse
import configparser
import json
import re
import shlex

import pytest

from gadgets import __version__
from gadgets.commands.main import make_parser
from gadgets.settings.fire import parse_json_parameters
from gadgets.settings.openrecon import make_label, package_name
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import Settings, apply, parse_assignments
from tests.helpers.pages import blocks, cinestream_arguments, command_lines
from tests.helpers.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = blocks(PAGE)
COMMANDS = [(line, arguments) for line in command_lines(PAGE) if (arguments := cinestream_arguments(line)) is not None]


def test_there_are_commands():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(("line", "arguments"), COMMANDS, ids=[line[:60] for line, _ in COMMANDS])
def test_command_is_one_of_this_version(line, arguments, capsys):
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")
    assert isinstance(options, argparse.Namespace)
    for name in parse_assignments(getattr(options, "alias", [])).values():
        find_pipeline(name)


def test_commands_of_the_text_are_of_this_version():
    for text in re.findall(r"`cinestream ([^`]+)`", PAGE):
        make_parser().parse_args([*shlex.split(text), *({"replay": ["x.h5", "-o", "y.h5"]}.get(text, []))])


def test_ini_files_can_be_read():
    found = [block for language, block in BLOCKS if language == "ini"]
    assert len(found) == 2
    for block in found:
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string(re.sub(r"^ +", "", block, flags=re.MULTILINE))
        assert ini["OpenRecon"]["port"] == "9002"
        assert ini["chroot"].getboolean("start_chroot") != ini.has_section("tunnel")


def test_parameters_of_fire_are_settings():
    (block,) = [block for language, block in BLOCKS if language == "json"]
    found = parse_json_parameters(block)
    assert json.loads(block)["version"] == "1.1.0"
    assert found.unknown == ()
    apply(Settings(), found.settings)


def test_the_table_is_the_label():
    rows = dict(re.findall(r"^   \| ([^|]+?) \| ([^|]+?) \|", PAGE, re.MULTILINE))
    for parameter in make_label()["parameters"]:
        allowed = rows[parameter["label"]["en"]]
        if parameter["type"] == "choice" and parameter["id"] != "config":
            assert re.findall(r"`(\w+)`", allowed) == [value["id"] for value in parameter["values"]]
        elif "minimum" in parameter:
            assert allowed == f"{parameter['minimum']} to {parameter['maximum']}"


def test_names_follow_the_version():
    assert f"dist/{package_name(make_label())}.zip" in PAGE
    assert set(re.findall(r"cinestream(?:-fire)?:(\d[\w.]*)", PAGE)) == {__version__}


def test_files_are_there():
    for path in re.findall(r"(?:tests/)?(?:containers|gadgets)/[\w./-]+\w", PAGE):
        assert (REPOSITORY / path).exists(), path
