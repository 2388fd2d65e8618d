"""The pages of docs/ that are made from code: ``python -m tests.pages`` writes them anew."""

from gadgets.settings.settings import grouped_settings
from tests.helpers.paths import REPOSITORY

SETTINGS = REPOSITORY / "docs" / "settings.md"
_INTRODUCTION = """\
# Settings

<!-- Written by `python -m tests.pages` from the declarations of the settings; do not edit. -->

In the `<configuration>` of a pipeline (as elements or as Gadgetron properties), with `--set name=value`, or as FIRE
parameters (underscores may be left out). XML and `--set` also take group and field, such as `gating.frames`. Unknown
names and wrong types are refused with a list of what there is.
`cinestream pipelines` prints the same list.
"""


def settings_page() -> str:
    """Text of docs/settings.md."""
    lines = []
    for heading, settings in grouped_settings():
        lines += ["", f"## {heading}", "", "| setting | in its group | type | default | |", "|---|---|---|---|---|"]
        for one in settings:
            kind = one.kind.replace(" | ", " / ")
            lines.append(f"| `{one.name}` | `{one.path}` | {kind} | {one.default_text} | {one.help} |")
    return _INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
