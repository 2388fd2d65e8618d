"""The entries of the methods are complete, and the only place that knows one method from another."""

import ast
from pathlib import Path

import pytest

from recon_core.errors import ModelError
from recon_core.methods import METHODS, find_method, is_asked_for, load_target, method_names, network_names
from recon_core.training.losses import LOSSES

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("recon_core", "gadgets") for path in (ROOT / folder).rglob("*.py"))


def words(node):
    """The texts in a constant, or in a tuple, list or set of constants."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant)}


def named(node):
    """The names in an expression."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def compared(tree):
    """Comparisons with the name of a method, and checks for the class of a network, as code."""
    chooses = set(method_names(lambda info: info.chooses))
    classes = {info.network.partition(":")[2] for info in METHODS.values() if info.network}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            known = set().union(*map(words, (node.left, *node.comparators))) & set(METHODS)
        elif isinstance(node, ast.MatchValue):
            known = words(node.value) & set(METHODS)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            known = named(node.args[1]) & classes
        else:
            continue
        # options of other kinds have a value of that name too
        if known - chooses or (known and "method" in ast.unparse(node)):
            yield ast.unparse(node)


def test_no_other_module_knows_one_method_from_another():
    found = {
        (path.relative_to(ROOT).as_posix(), code)
        for path in SOURCES
        for code in compared(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize("code", [
    "method == 'dstdm'", "'grappa' != name", "name in ('cg_sense', 'other')", "settings.method == 'auto'",
    "isinstance(network, DSTDM)", "isinstance(network, (int, ATLFNet))",
    "match name:\n    case 'cinenet':\n        pass",
])  # fmt: skip
def test_the_search_finds(code):
    assert list(compared(ast.parse(code)))


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_is_complete(name):
    info = find_method(name)
    assert info.label
    assert info.summary
    assert info.reference
    assert callable(load_target(info.target))
    assert callable(load_target(info.training.objective))
    assert not info.training.loss or info.training.loss not in LOSSES
    if info.network:
        assert load_target(info.network).Config


def test_lists_of_names_follow_the_entries():
    assert method_names() == tuple(METHODS)
    assert method_names(lambda info: info.linear) == ("zero_filled", "cg_sense", "grappa")
    assert method_names(lambda info: info.g_factor) == ("cg_sense", "grappa")
    assert method_names(lambda info: info.chooses) == ("auto",)
    assert not set(network_names()) & {"zero_filled", "cg_sense", "grappa", "low_rank_sparse", "kt_sense", "auto"}
    with pytest.raises(ModelError, match=r"no method 'magic'; there are atlf_net, auto, cg_sense"):
        find_method("magic")


def test_a_method_that_chooses_may_make_images_of_any():
    assert is_asked_for("auto", "cg_sense")
    assert is_asked_for("grappa", "grappa")
    assert not is_asked_for("grappa", "cg_sense")
    assert not is_asked_for("crunet_mr", "kt_sense")
