"""The attributes of images as text, and back."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gadgets.wire.attributes import meta_entries, read_meta, serialize_meta

ANYTHING = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@hypothesis_settings(max_examples=100)
@given(ANYTHING, st.lists(ANYTHING, min_size=2, max_size=3), st.floats(allow_nan=False, width=32), st.integers())
def test_every_text_and_number_comes_through(text, values, number, count):
    meta = {"one text": text, "a <list>": values, "number": number, "count": count}
    root = ET.fromstring(serialize_meta(meta_entries(meta)).encode())
    allowed = str.maketrans("", "", "".join(map(chr, [*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF])))
    found = {node.findtext("name"): [value.text or "" for value in node.findall("value")] for node in root}
    assert found["one text"] == [text.translate(allowed)]
    assert found["a <list>"] == [value.translate(allowed) for value in values]
    assert np.float32(found["number"][0]) == np.float32(number)
    assert found["count"] == [str(count)]


@pytest.mark.parametrize("text", ["", "no xml", "<a>", '<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdMeta>&b;</ismrmrdMeta>'])
def test_meta_that_cannot_be_read_is_none(text):
    assert read_meta(text) == {}


def test_meta_of_a_gadgetron_ends_with_a_nul():
    text = "<ismrmrdMeta><meta><name>a</name><value>1</value><value>x y</value></meta></ismrmrdMeta>\0"
    assert read_meta(text) == {"a": ("1", "x y")}
