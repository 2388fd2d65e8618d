"""The README's settings table is made from the settings, so it cannot grow stale."""

from gadgets.settings.settings import describe_settings
from tests.helpers.paths import REPOSITORY

README = REPOSITORY / "README.md"


def settings_table():
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for name, kind, default, text in describe_settings():
        lines.append(f"| `{name}` | {kind.replace(' | ', ' / ')} | {default} | {text} |")
    return "\n".join(lines)


def test_settings_table_is_what_the_settings_say():
    table = settings_table()
    assert table in README.read_text(encoding="utf-8"), f"paste this into README.md, Settings:\n{table}"


def test_every_command_is_mentioned():
    text = README.read_text(encoding="utf-8")
    commands = (
        "replay",
        "export",
        "serve",
        "send",
        "simulate",
        "convert",
        "evaluate",
        "methods",
        "pipelines",
        "doctor",
    )
    for command in commands:
        assert f"cinestream {command}" in text
