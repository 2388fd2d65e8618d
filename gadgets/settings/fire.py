"""The JSON parameters that FIRE and OpenRecon send as a text after the header."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gadgets.settings.settings import FIELDS

# OpenRecon allows letters and digits only in the names of its parameters.
_BY_PLAIN_NAME = {name.replace("_", ""): name for name in FIELDS}


@dataclass(frozen=True)
class JsonParameters:
    """What a FIRE or OpenRecon client set in its TEXT message."""

    settings: dict[str, object]
    """Values by setting name, not yet checked."""
    pipeline: str
    """Name of the pipeline to use instead of the configured one, or empty."""
    unknown: tuple[str, ...]
    """Names that are no settings."""


def parse_json_parameters(text: str) -> JsonParameters | None:
    """Read FIRE's ``{"parameters": {...}}``; None when the text is anything else.

    Names are compared without underscores and case, because OpenRecon's parameter names may hold neither.
    """
    try:
        document = json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()  # escapes can spell what no text can hold
    except (ValueError, RecursionError):
        return None
    parameters = document.get("parameters") if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        return None
    settings: dict[str, object] = {}
    unknown = []
    pipeline = ""
    for key, value in parameters.items():
        plain = str(key).lower().replace("_", "")
        if plain in ("config", "customconfig"):
            # customconfig, free text of the protocol, wins over the choice in config when it is filled in
            chosen = str(value or "").strip()
            if chosen and (plain == "customconfig" or not pipeline):
                pipeline = chosen
        elif plain in _BY_PLAIN_NAME:
            settings[_BY_PLAIN_NAME[plain]] = value
        else:
            unknown.append(str(key))
    return JsonParameters(settings, pipeline, tuple(unknown))
