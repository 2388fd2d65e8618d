"""The pages of docs/ that are made from code: ``python -m tests.pages`` writes them anew."""

from gadgets.settings.settings import describe_settings
from tests.helpers.paths import REPOSITORY

SETTINGS = REPOSITORY / "docs" / "settings.md"
_INTRODUCTION = """\
# Settings

<!-- Written by `python -m tests.pages` from the declarations of the settings; do not edit. -->

In the `<configuration>` of a pipeline (as elements or as Gadgetron properties), with `--set name=value`, or as FIRE
parameters (underscores may be left out). Unknown names and wrong types are refused with a list of what there is.
`cinestream pipelines --settings` prints the same list.
"""


def settings_page() -> str:
    """Text of docs/settings.md."""
    lines = ["", "| setting | type | default | |", "|---|---|---|---|"]
    for name, kind, default, text in describe_settings():
        lines.append(f"| `{name}` | {kind.replace(' | ', ' / ')} | {default} | {text} |")
    return _INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
