"""The examples in docstrings and documentation pages do what they say."""

import doctest
import importlib
import os

import pytest

from tests.helpers.paths import REPOSITORY

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for package in ("gadgets", "recon_core")
    for path in (REPOSITORY / package).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
PAGES = sorted(path.name for path in (REPOSITORY / "docs").glob("*.md") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    """Examples write files into the working directory, and make methods known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CINESTREAM_METHODS", str(REPOSITORY / "docs" / "examples"))


def test_the_interfaces_have_examples():
    assert {"gadgets", "gadgets.replay.arrays", "recon_core", "recon_core.api", "recon_core.own_methods"} <= set(
        MODULES
    )
    assert {"own_method.md", "python.md"} <= set(PAGES)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert tried
    assert not failed


@pytest.mark.parametrize("name", PAGES)
def test_pages(name):
    path = os.fspath(REPOSITORY / "docs" / name)
    failed, tried = doctest.testfile(path, module_relative=False, optionflags=OPTIONS)
    assert tried
    assert not failed
