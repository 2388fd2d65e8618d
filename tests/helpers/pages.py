"""README and the pages of docs/ as text, and the command lines in them."""

import re
import shlex

from tests.helpers.paths import REPOSITORY

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
}


def blocks(page):
    """Language and text of every fenced block."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)


def command_lines(page):
    """Lines of the blocks without a language: continued ones joined, without prompts and brackets of optional parts."""
    return [
        re.sub(r"\[(.*?)\]", r"\1", line.strip().removeprefix("$ "))
        for language, block in blocks(page)
        if not language
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def cinestream_arguments(line):
    """What a command line hands to cinestream, directly or in a container of the plain image; None if nothing."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose or output, with an apostrophe
        return None
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words:
        return None
    if words[0] == "cinestream":
        return words[1:]
    if words[:2] == ["docker", "exec"]:
        return words[4:] if words[3] == "cinestream" else None
    if words[:2] == ["docker", "run"]:
        (at,) = [number for number, word in enumerate(words) if re.match(r"(gadgetron-)?cinestream:", word)]
        return words[at + 1 :] or None
    return None


def anchors(page):
    """Anchors of the headings of a page, as GitHub and the site make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
