import math
from typing import Literal

import numpy as np
import pytest
import yaml

from recon_core.errors import SettingsError
from recon_core.values import Allowed, read_yaml


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (bool, "Yes", True),
        (int, " 12 ", 12),
        (float, "2.5e-3", 2.5e-3),
        (str, " text ", "text"),
        (Literal["a", "b"], "b", "b"),
        (int | None, "none", None),
        (int | None, "3", 3),
        (tuple[int, ...], "72, 96,120", (72, 96, 120)),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[float, ...], "(1, 2.5)", (1.0, 2.5)),
    ],
)
def test_texts_become_values(kind, value, expected):
    found = Allowed(kind).read("x", value)
    assert (found, type(found)) == (expected, type(expected))
    Allowed(kind).check("x", found)


@pytest.mark.parametrize(
    ("allowed", "value", "message"),
    [
        (Allowed(bool), "maybe", "x must be true or false, got 'maybe'"),
        (Allowed(int, minimum=1, maximum=9), "0", "x must be a whole number from 1 to 9, got '0'"),
        (Allowed(float, minimum=0), -1, "x must be a number from 0, got -1"),
        (Allowed(float), math.nan, "x must be a number, got nan"),
        (Allowed(str, choices=("a", "b")), "c", "x must be one of a, b; got 'c'"),
        (Allowed(str, choices=lambda: ("a", "b")), "c", "x must be one of a, b; got 'c'"),
        (Allowed(str, choices=("none", "a"), several=True), "none,a", "x is none or something, not both"),
        (Allowed(str, choices=("auto",), or_line=True), "-3", "one of auto or the number of a line; got '-3'"),
        (Allowed(Literal["a", "b"]), "c", "x must be one of a, b; got 'c'"),
        (Allowed(tuple[int, int]), "1,2,3", "x must be numbers with commas between them"),
        (Allowed(tuple[int, ...], minimum=1), "1,0", "x must be numbers with commas"),
    ],
)
def test_values_that_are_refused(allowed, value, message):
    with pytest.raises(SettingsError, match=message):
        allowed.read("x", value)


@pytest.mark.parametrize(("kind", "value"), [(int, "3"), (float, "1e-3"), (bool, 1), (int, True), (str, 3)])
def test_values_of_python_and_yaml_are_not_guessed(kind, value):
    with pytest.raises(SettingsError, match="x must be"):
        Allowed(kind).check("x", value)


def test_a_number_that_yaml_takes_for_a_text_is_pointed_out():
    with pytest.raises(SettingsError, match="got '1e-3'; YAML takes 1e-3 for a text"):
        Allowed(float).check("x", "1e-3")


def test_numbers_of_numpy_are_numbers():
    Allowed(int).check("x", np.int64(3))
    Allowed(float).check("x", np.float32(0.5))


def test_yaml_that_refers_to_itself_is_read_within_limits():
    assert read_yaml("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(yaml.YAMLError, match="99 aliases; at most 20"):
        read_yaml(bomb)
    for text in ("a: [", "\x00", "- *nothing"):
        with pytest.raises(yaml.YAMLError):
            read_yaml(text)
