"""The attributes of an image, in the XML that ISMRMRD has for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

if TYPE_CHECKING:
    from collections.abc import Iterable

#: All values of every attribute, by its name.
Meta = Mapping[str, tuple[str, ...]]

# XML 1.0 allows these neither as they are nor escaped; lone surrogates (from JSON) have no bytes at all.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def meta_entries(meta: Mapping[str, object]) -> dict[str, str]:
    """The XML of every attribute, by its name; a list or tuple becomes several values of one name."""
    entries = {}
    for name, value in meta.items():
        values: Iterable[object] = value if isinstance(value, list | tuple) else (value,)
        text = "".join(f"<value>{_value(item)}</value>" for item in values)
        entries[name] = f"<meta><name>{escape(name)}</name>{text}</meta>"
    return entries


def serialize_meta(entries: Mapping[str, str]) -> str:
    """The text that goes with an image, of the XML of its attributes."""
    return f'<?xml version="1.0" encoding="UTF-8"?><ismrmrdMeta>{"".join(entries.values())}</ismrmrdMeta>'


def read_meta(text: str) -> Meta:
    """Read attributes; nothing from text that is no such XML."""
    try:
        root = SafeTree.fromstring(text.rstrip("\0 \n"), forbid_dtd=True)
    except (SafeTree.ParseError, DefusedXmlException, ValueError):
        return {}
    return {
        (node.findtext("name") or "").strip(): tuple((value.text or "").strip() for value in node.findall("value"))
        for node in root.iter("meta")
    }


def is_derived(meta: Meta) -> bool:
    """Whether an image is made from those of the scan, by its role: a g-factor, an uncertainty, a fused image."""
    return meta.get("GADGETRON_DataRole", ("Image",)) != ("Image",)


def _value(item: object) -> str:
    return f"{item:.9g}" if isinstance(item, float) else escape(_FORBIDDEN.sub("", str(item)))
