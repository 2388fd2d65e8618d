"""The JSON parameters that FIRE and OpenRecon send as a text after the header."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gadgets.settings.settings import FIELDS
from recon_core.errors import ModelError
from recon_core.methods import OWN_METHODS, find_method
from recon_core.options import own_options


def _plain(name: str) -> str:
    """Without underscores and case: OpenRecon allows letters and digits only in the names of its parameters."""
    return name.lower().replace("_", "")


_BY_PLAIN_NAME = {_plain(name): name for name in FIELDS}


@dataclass(frozen=True)
class JsonParameters:
    """What a FIRE or OpenRecon client set in its TEXT message."""

    settings: dict[str, object]
    """Values by setting name, not yet checked."""
    pipeline: str
    """Name of the pipeline to use instead of the configured one, or empty."""
    unknown: tuple[str, ...]
    """Names that are no settings."""
    fault: str = ""
    """Why none of it can be read."""


def json_fault(text: str) -> str:
    """Say why a text is not ``{"parameters": {...}}``; empty where it is."""
    wanted = 'expected {"parameters": {"name": value}}'
    try:
        document = json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()  # escapes can spell what no text can hold
    except json.JSONDecodeError as error:
        return f"{wanted}, got broken JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return f"{wanted}, got JSON that cannot be read: {error}"
    if not isinstance(document, dict) or not isinstance(document.get("parameters"), dict):
        return f"{wanted}, got {text.strip()[:60]}"
    return ""


def parse_json_parameters(text: str) -> JsonParameters | None:
    """Read FIRE's ``{"parameters": {...}}``; None when the text is something else, such as a line of log.

    Names are compared without underscores and case, because OpenRecon's parameter names may hold neither. Options of
    methods of the user's own are ``method.option``; the method is imported then.
    """
    if not text.lstrip().startswith("{"):
        return None
    if fault := json_fault(text):
        return JsonParameters({}, "", (), fault) if '"parameters"' in text or "broken" in fault else None
    parameters = json.loads(text)["parameters"]
    settings: dict[str, object] = {}
    unknown = []
    pipeline = ""
    for key, value in parameters.items():
        plain = _plain(str(key))
        if plain in ("config", "customconfig"):
            # customconfig, free text of the protocol, wins over the choice in config when it is filled in
            chosen = str(value or "").strip()
            if chosen and (plain == "customconfig" or not pipeline):
                pipeline = chosen
        elif name := _BY_PLAIN_NAME.get(plain) or _own_option(plain):
            settings[name] = value
        else:
            unknown.append(str(key))
    return JsonParameters(settings, pipeline, tuple(unknown))


def _own_option(plain: str) -> str:
    """Name of an option of a method of the user's own; empty where there is none."""
    method = next((name for name in OWN_METHODS if _plain(name) == plain.partition(".")[0]), "")
    try:
        kind = find_method(method).options if method else None
    except ModelError:  # reported when the method is used
        return ""
    return next((one.path for one in own_options(kind, method) if _plain(one.path) == plain), "") if kind else ""
