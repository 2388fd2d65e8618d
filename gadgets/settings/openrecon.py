"""The label of an OpenRecon image: what the scanner must know of it, and the parameters that its user may set.

It is made from the settings, so that name, type, default, limits and help of a parameter stand in one place. What a
scanner rejects without saying why is looked for by `check_label`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from gadgets import __version__
from gadgets.settings.pipelines import list_pipelines
from gadgets.settings.settings import FIELDS
from recon_core.errors import SettingsError
from recon_core.methods import find_method, method_names

LABEL_KEY = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
#: Name, vendor and id hold letters and digits only: the names of the package's files are made of them.
NAME = VENDOR = "Cinestream"
PORT = 9002
MOST_PARAMETERS = 14

_LARGEST = 1e300  # that any arithmetic holds; neither infinity nor NaN, which JSON of Python may have
_PLAIN = re.compile(r"[A-Za-z0-9]+")
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_PEP440 = re.compile(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?(?:\+([a-z0-9.]+))?")


@dataclass(frozen=True)
class _Offer:
    """A setting that the user at the scanner may change."""

    setting: str
    """Its name."""
    label: str
    """What the scanner's window calls it."""
    minimum: int | None = None
    maximum: int | None = None
    """`minimum`, `maximum`: Limits at the scanner, where those of the setting are wider than a slider should be, or
    missing."""


_OFFERS = (
    _Offer("deadline", "Deadline in s", maximum=600),
    _Offer("outside_range", "Doubtful network images"),
    _Offer("preview", "Preview images"),
    _Offer("gating", "Gating"),
    _Offer("gated_frames", "Frames of the cycle", maximum=100),
    _Offer("iterations", "SENSE iterations", maximum=200),
    _Offer("maps", "Coil maps"),
    _Offer("virtual_coils", "Virtual coils", maximum=128),
    _Offer("partial_fourier", "Partial Fourier"),
    _Offer("kspace_filter", "K-space filter"),
    _Offer("g_factor", "Send g-factor maps"),
)


def make_label(*, gpu: bool = False) -> dict[str, Any]:
    """Make the label.

    Parameters
    ----------
    gpu
        Whether the image can use a GPU. It never needs one.

    Returns
    -------
    dict
        The application spec, schema 1.1.0, as JSON holds it.
    """
    version = semantic_version(__version__)
    return {
        "general": {
            "name": {"en": NAME},
            "version": version,
            "vendor": VENDOR,
            "information": {"en": "Reconstruction of cine cardiac MRI: iterative, low-rank and learned methods."},
            "id": NAME,
            "regulatory_information": {
                "device_trade_name": NAME,
                "production_identifier": version,
                "manufacturer_address": "",
                "made_in": "",
                "manufacture_date": "",
                "material_number": f"{NAME}_{version}",
                "gtin": "",
                "udi": "",
                "safety_advices": "Not a medical device; for research only.",
                "special_operating_instructions": "2-D Cartesian cine; Prio Recon off.",
                "additional_relevant_information": "",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": PORT,
            "emitter": "raw",
            "injector": "image",
            # ICE whitens before it sends; noise readouts would make us do it again
            "can_process_adjustment_data": False,
            "can_use_gpu": gpu,
            # megabytes: the queue of `serve`, the buffers of the slices and 4 GB for the largest network
            "min_required_memory": 16384,
            "min_count_required_cpu_cores": 4,
            **({"min_count_required_gpus": 0, "min_required_gpu_memory": 8192} if gpu else {}),
            "content_qualification_type": "RESEARCH",
            "require_readout_filter_off": True,
        },
        "parameters": [_pipeline_parameter(), *map(_parameter, _OFFERS)],
    }


def label_text(label: dict[str, Any]) -> str:
    """The label as JSON for people to read."""
    return json.dumps(label, indent=2) + "\n"


def encode_label(label: dict[str, Any]) -> str:
    """The label as the image carries it: JSON without spaces, base64, one line."""
    return base64.b64encode(json.dumps(label, separators=(",", ":")).encode()).decode()


def read_label(text: str) -> Any:  # noqa: ANN401 - whatever the JSON holds; check_label looks
    """Read a label, as JSON or as base64 of it.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    try:
        raw = text.encode() if text.lstrip().startswith("{") else base64.b64decode(text.strip(), validate=True)
        return json.loads(raw)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise SettingsError(f"a label is JSON or base64 of JSON; this is neither ({error})") from error


def package_name(label: dict[str, Any]) -> str:
    """The name that the zip, the image and the manual of a package share, without ending."""
    general = label["general"]
    return f"OpenRecon_{general['vendor']}_{general['name']['en']}_V{general['version']}"


def semantic_version(version: str) -> str:
    """Write a Python version as the semantic version that the scanner takes.

    Raises
    ------
    SettingsError
        If it is no Python version.
    """
    found = _PEP440.fullmatch(version)
    if not found:
        raise SettingsError(f"expected a version such as 1.2.0 or 1.2.0rc1.dev3, got {version!r}")
    release, stage, number, post, dev, local = found.groups()
    numbers = [str(int(part)) for part in release.split(".")]
    if len(numbers) > 3:
        raise SettingsError(f"a version at the scanner has three numbers, got {version!r}")
    before = ([stage, number] if stage else []) + (["dev", dev] if dev else [])
    after = (["post", post] if post else []) + ([local] if local else [])
    core = ".".join([*numbers, "0", "0"][:3])
    return core + ("-" + ".".join(before) if before else "") + ("+" + ".".join(after) if after else "")


def _pipeline_parameter() -> dict[str, Any]:
    default, fallback = FIELDS["method"].default, find_method(str(FIELDS["fallback"].default)).label
    # not a method with a CT, which would have to lie on the server; the default stands first
    offered = sorted(method_names(lambda info: not info.takes_ct), key=lambda name: name != default)
    values = [{"id": name, "name": {"en": find_method(name).label}} for name in offered if name in list_pipelines()]
    return {
        "id": "config",
        "label": {"en": "Method"},
        "type": "choice",
        "values": values,
        "default": default,
        "information": {"en": f"Method of reconstruction. What a network was not trained for goes to {fallback}."},
    }


def _parameter(offer: _Offer) -> dict[str, Any]:
    field = FIELDS[offer.setting]
    parameter: dict[str, Any] = {
        "id": offer.setting.replace("_", ""),
        "label": {"en": offer.label},
        "information": {"en": field.help},
        "default": field.default,
    }
    choices = field.allowed.names
    if choices:
        values = [{"id": choice, "name": {"en": choice.replace("_", " ")}} for choice in choices]
        return {**parameter, "type": "choice", "values": values}
    if isinstance(field.default, bool):
        return {**parameter, "type": "boolean"}
    limits = {
        "minimum": field.read(field.allowed.minimum if offer.minimum is None else offer.minimum),
        "maximum": field.read(field.allowed.maximum if offer.maximum is None else offer.maximum),
    }
    return {**parameter, "type": "int" if isinstance(field.default, int) else "double", **limits}


# --- what a scanner rejects -------------------------------------------------------------------------------------------


def check_label(label: Any) -> list[str]:  # noqa: ANN401 - this is where it is found out what it is
    """Look for what makes a scanner reject an image, or hide it, without a word.

    Parameters
    ----------
    label
        What the JSON holds.

    Returns
    -------
    list of str
        What is wrong; empty if nothing is.
    """
    parts = ("general", "reconstruction", "parameters")
    if not isinstance(label, dict) or set(label) != set(parts):
        return [f"expected exactly the parts {', '.join(parts)}"]
    try:
        return [
            *_check_general(label["general"]),
            *_check_reconstruction(label["reconstruction"]),
            *_check_parameters(label["parameters"]),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        return [f"a field is missing or of another type than expected: {type(error).__name__}: {error}"]


def _check_general(general: dict[str, Any]) -> list[str]:
    found = []
    names = {"vendor": general["vendor"], "name": general["name"]["en"], "id": general["id"]}
    for field, text in names.items():
        if not _PLAIN.fullmatch(text):
            found.append(f"{field} is {text!r}; only letters and digits make the same file names everywhere")
    if names["name"] != names["id"]:
        found.append(f"name {names['name']!r} and id {names['id']!r} differ; packages are named by either")
    if not _SEMVER.fullmatch(general["version"]):
        found.append(f"version {general['version']!r} is not semantic; write for instance 0.1.0 or 0.1.0-rc.1")
    return found


def _check_reconstruction(reconstruction: dict[str, Any]) -> list[str]:
    found = []
    protocol = reconstruction["transfer_protocol"]
    if protocol != {"protocol": "ISMRMRD", "version": "1.4.1"}:
        found.append(f"transfer_protocol must be ISMRMRD 1.4.1, got {protocol}")
    pair = reconstruction["emitter"], reconstruction["injector"]
    if pair not in {("raw", "image"), ("raw", "compleximage"), ("image", "image")}:
        found.append(
            f"emitter and injector {' to '.join(pair)}: supported are raw or image to image, and raw to compleximage"
        )
    for field, least in (("port", 1), ("min_required_memory", 1), ("min_count_required_cpu_cores", 1)):
        if not _whole(reconstruction[field]) or reconstruction[field] < least:
            found.append(f"{field} must be a whole number from {least}, got {reconstruction[field]!r}")
    if reconstruction.get("min_count_required_gpus", 0) > 0 and not reconstruction["can_use_gpu"]:
        found.append("min_count_required_gpus asks for a GPU, and can_use_gpu is false")
    return found


def _check_parameters(parameters: list[dict[str, Any]]) -> list[str]:
    found = []
    if len(parameters) > MOST_PARAMETERS:
        found.append(f"{len(parameters)} parameters; {MOST_PARAMETERS} at most")
    names = [parameter["id"] for parameter in parameters]
    found += [f"two parameters are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if [parameter["type"] for parameter in parameters if parameter["id"] == "config"] != ["choice"]:
        found.append("expected one parameter config of type choice, by which the server knows what to run")
    for parameter in parameters:
        found += [f"parameter {parameter['id']!r}: {text}" for text in _check_parameter(parameter)]
    return found


def _check_parameter(parameter: dict[str, Any]) -> list[str]:
    found = []
    kind = parameter["type"]
    if not _PLAIN.fullmatch(parameter["id"]):
        found.append("its id may hold letters and digits only")
    unit = parameter.get("unit", {"en": "ok"})["en"]
    if not 1 <= len(unit) <= 3:
        found.append(f"a unit has one to three characters, got {unit!r}")
    if kind == "choice":
        found += _check_choice(parameter)
    elif kind in ("int", "double"):
        found += _check_number(parameter)
    elif kind not in ("boolean", "string"):
        found.append(f"there is no type {kind!r}")
    elif kind == "boolean" and not isinstance(parameter["default"], bool):
        found.append(f"the default must be true or false, got {parameter['default']!r}")
    return found


def _check_choice(parameter: dict[str, Any]) -> list[str]:
    found = []
    values = [value["id"] for value in parameter["values"]]
    if not values or "" in values or len(set(values)) < len(values):
        found.append("the values need ids, each another one")
    if parameter["default"] not in values:
        found.append(f"the default {parameter['default']!r} is none of the values")
    return found


def _check_number(parameter: dict[str, Any]) -> list[str]:
    found = []
    least, usual, most = (parameter[name] for name in ("minimum", "default", "maximum"))
    if not all(map(_number, (least, usual, most))):
        return [f"minimum, default and maximum must be numbers, got {least!r}, {usual!r}, {most!r}"]
    if not least <= usual <= most:
        found.append(f"the default {usual} does not lie within {least} and {most}")
    for value in (least, usual, most):
        if parameter["type"] == "int" and (value != int(value) or not -(2**31) <= value < 2**31):
            found.append(f"{value} is no whole number of 32 bits")
        elif parameter["type"] == "double" and value / 0.1 != int(value / 0.1):
            found.append(f"{value} is no multiple of 0.1 to a validator that computes in floating point; use an int")
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
