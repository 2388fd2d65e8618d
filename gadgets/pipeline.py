"""Settings and the pipelines that carry them: one typed dataclass, from which everything else is made.

The XML parser, ``--set``, ``--help``, FIRE's JSON parameters and the documentation table all read the fields of
`Settings`, so a setting is declared once and is known everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import operator
import re
import typing
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from gadgets.vendor import check_center_choice
from recon_core.errors import ModelError, ResourceError, SettingsError
from recon_core.manifest import find_weights
from recon_core.methods import LINEAR, METHODS
from recon_core.options import ReconOptions, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from xml.etree.ElementTree import Element

MODULE, TARGET = "gadgets.external", "reconstruct"


@dataclass(frozen=True, kw_only=True)
class Settings(ReconOptions):
    """Everything a pipeline can set: the options of the reconstruction, and what the stream does around it."""

    whiten: bool = option(
        True, "decorrelate the coils with noise readouts: of a file, of the stream, or of the measurement it depends on"
    )
    whitened: bool = option(
        False,
        "gadgets in front have whitened already (Gadgetron's NoiseAdjust): the noise has unit deviation, and noise "
        "readouts are not used",
    )
    time_axis: str = option(
        "auto",
        "counter that numbers the frames; auto takes phase, or repetition when only that one counts",
        choices=("auto", "phase", "repetition"),
    )
    gating: str = option(
        "auto",
        "how lines come into frames: counter by the counter of time_axis, retrospective by their time since the R "
        "wave; auto is retrospective where the header announces it or the phases run on unevenly from beat to beat",
        choices=("auto", "counter", "retrospective"),
    )
    gated_frames: int = option(
        0,
        "retrospective gating: frames of the cycle; 0 takes RetroGatedImages of the header, else as many as a beat has "
        "readouts of a line",
        minimum=0,
        maximum=4096,
    )
    arrhythmia_tolerance: float = option(
        0.25,
        "retrospective gating: beats whose RR interval differs by more than this share from the typical one are "
        "rejected",
        minimum=0.01,
        maximum=1.0,
    )
    rr_stretch: str = option(
        "diastole",
        "retrospective gating: how beats of different length become one cycle; diastole keeps the length of systole, "
        "cycle stretches all",
        choices=("diastole", "cycle"),
    )
    trigger_source: str = option(
        "auto",
        "retrospective gating: where R waves come from: the time stamps of the readouts, the ECG of the stream, or the "
        "motion in the k-space centre (self); auto takes the first of these that shows beats",
        choices=("auto", "stamps", "ecg", "self"),
    )
    gated_output: str = option(
        "mean",
        "retrospective gating: frames of the mean beat, or of every beat on its own (repetition) where each has all "
        "lines",
        choices=("mean", "beats"),
    )
    stamp_tick: float = option(
        0.0,
        "tick of the time stamps in ms; 0 takes 2.5 for Siemens and simulations, 1 for others",
        minimum=0.0,
        maximum=1000.0,
    )
    center_line: str = option(
        "auto",
        "line of the k-space centre: auto asks the readouts of Siemens (idx.user[5]) and else the header; header or "
        "readouts (those of any vendor), or the number of the line",
    )
    oversampling: str = option(
        "auto",
        "readout oversampling that the header tells of: present is removed here, removed was removed by the sender; "
        "auto sees it from the length of the readouts",
        choices=("auto", "present", "removed"),
    )
    realtime: str = option(
        "off",
        "send frames while the scan runs: sliding every frame when it is complete, reconstructed with those before it, "
        "fixed so many at a time; off waits for the whole slice",
        choices=("off", "sliding", "fixed"),
    )
    realtime_window: int = option(
        0,
        "realtime: frames that are reconstructed together; 0 takes the acceleration of the header, 8 at least",
        minimum=0,
        maximum=4096,
    )
    lines_per_frame: int = option(
        0,
        "realtime: so many readouts of a slice, one after the other, make a frame; 0 goes by the counter of time_axis",
        minimum=0,
        maximum=65535,
    )
    virtual_coils: int = option(
        0, "virtual coils that coil compression keeps; 0 keeps as many as coil_energy asks for", minimum=0
    )
    coil_energy: float = option(
        1.0, "share of the signal energy that coil compression keeps; 1 keeps all coils", minimum=0.01, maximum=1.0
    )
    output: str = option("magnitude", "float32 magnitude or complex64 images", choices=("magnitude", "complex"))
    scale: float = option(
        0.0,
        "factor on all images; 0 sets it once per scan so that the bright tissue of the first slice is near 1000",
        minimum=0.0,
    )
    emit: str = option(
        "images",
        "what a Gadgetron gets: images ready to be shown, or for every slice an array of complex ones for its own "
        "gadgets, over the encoded field of view and not scaled unless scale says so",
        choices=("images", "image_array"),
    )
    forward: str = option(
        "none",
        "what else a Gadgetron gets back as it came: acquisitions (buffered ones too), images of other gadgets, all, "
        "or none of it; waveforms always",
        choices=("none", "acquisitions", "images", "all"),
    )
    window_center: float = option(
        0.0,
        "middle of the display window of the images, in values as they are sent; 0 takes half of the width",
        minimum=0.0,
    )
    window_width: float = option(
        0.0,
        "width of the display window of the images, in values as they are sent; 0 takes twice the centre, or from "
        "black to the bright tissue of each series",
        minimum=0.0,
    )
    orientation: str = option(
        "acquired",
        "acquired leaves the rows along the readout as they were measured; flipped turns the images by 180 degrees, "
        "pixels and directions together, so that every pixel stays where it is in the patient",
        choices=("acquired", "flipped"),
    )
    # 16 bits, with room for the series of other images, up to 26 further on
    series: int = option(1, "image_series_index of the images", minimum=1, maximum=65509)
    series_by: str = option(
        "scan",
        "scan has one series for all slices; slice has a series for each, 100 further on from slice to slice",
        choices=("scan", "slice"),
    )
    description: str = option("", "text for the series description; empty takes the method's name")
    preview: str = option(
        "none",
        "method whose images go out ahead of those of a method that takes longer, in a series of their own",
        choices=("none", "zero_filled", "cg_sense", "low_rank_sparse"),
    )
    ct_path: str = option(
        "", "atlf_net: CT of the patient: NIfTI file, folder with one DICOM series, or ISMRMRD HDF5 file or group"
    )
    ct_transform: str = option(
        "", "atlf_net: text file of 4 x 4 numbers, from MR to CT in mm; empty where they share the patient frame"
    )
    ct_transform_space: str = option(
        "lps", "atlf_net: axes of ct_transform; lps as in ITK, ras as in ITK-SNAP and greedy", choices=("lps", "ras")
    )
    ct_frame: str = option(
        "patient",
        "atlf_net: frame in which the MR is brought to the CT; table takes off the position of the table",
        choices=("patient", "table"),
    )
    ct_window_low: float = option(-200.0, "atlf_net: HU that become 0", minimum=-10000.0, maximum=100000.0)
    ct_window_high: float = option(800.0, "atlf_net: HU that become 1", minimum=-10000.0, maximum=100000.0)
    ct_slab_samples: int = option(
        5, "atlf_net: planes of CT that are averaged across the thickness of a slice", minimum=1, maximum=100
    )
    ct_min_coverage: float = option(
        0.9, "atlf_net: share of the pixels of a slice that must lie inside the CT", minimum=0.0, maximum=1.0
    )
    ct_policy: str = option(
        "error",
        "atlf_net: what a CT that is missing or does not fit means; fallback goes without, if the weights can",
        choices=("error", "fallback"),
    )
    emit_fused: bool = option(False, "atlf_net: send the fused image of CT and MR too, in a series of its own")

    def __post_init__(self) -> None:
        """Refuse what neither type nor choices can.

        Raises
        ------
        SettingsError
            If `center_line` is no choice and no line.
        """
        check_center_choice(self.center_line)


_TYPES: dict[str, type] = typing.get_type_hints(Settings)
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
# OpenRecon allows letters and digits only in the names of its parameters.
_BY_PLAIN_NAME = {name.replace("_", ""): name for name in FIELDS}


def convert(name: str, value: object) -> bool | int | float | str:
    """Turn a value as it comes from XML, JSON or the command line into the type of its setting.

    Raises
    ------
    SettingsError
        If there is no such setting, or the value has the wrong type or lies outside what is allowed.
    """
    if name not in FIELDS:
        raise SettingsError(f"unknown setting {name!r}; the settings are {', '.join(FIELDS)}")
    kind, metadata = _TYPES[name], FIELDS[name].metadata
    converted = _cast(kind, value)
    if converted is None:
        raise SettingsError(f"setting {name!r} must be {_WANTED[kind]}, got {value!r}")
    if metadata["choices"]:
        return _chosen(name, str(converted))
    for bound, beyond in (("minimum", operator.lt), ("maximum", operator.gt)):
        if metadata[bound] is not None and beyond(converted, metadata[bound]):
            raise SettingsError(f"setting {name!r} has a {bound} of {metadata[bound]:g}, got {value!r}")
    return converted


def _chosen(name: str, text: str) -> str:
    """One of the choices, or where several are allowed some of them, in their order and without repetition.

    Raises
    ------
    SettingsError
        If it is none of them, or none and something else.
    """
    metadata = FIELDS[name].metadata
    choices: tuple[str, ...] = metadata["choices"]
    wanted = {part.strip() for part in text.split(",")} if metadata["several"] else {text}
    if not wanted <= set(choices):
        some = "one of, or with commas some of," if metadata["several"] else "one of"
        raise SettingsError(f"setting {name!r} must be {some} {', '.join(choices)}; got {text!r}")
    if "none" in wanted and len(wanted) > 1:
        raise SettingsError(f"setting {name!r} is none or something, not both; got {text!r}")
    return ",".join(choice for choice in choices if choice in wanted)


_WANTED: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _cast(kind: type, value: object) -> bool | int | float | str | None:
    if not isinstance(value, bool | int | float | str):
        return None  # JSON's null, lists and objects are no settings
    text = str(value).strip()
    if kind is bool:
        return _BOOLEANS.get(text.lower())
    if kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return int(number) if kind is int else number


def apply(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Return the settings with some of them replaced.

    Raises
    ------
    SettingsError
        If a name is unknown or a value is not allowed.
    """
    return dataclasses.replace(settings, **{name: convert(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Read ``key=value`` texts of the command line.

    Raises
    ------
    SettingsError
        If a text has no ``=``.
    """
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"expected key=value, got {text!r}; for instance iterations=20")
        values[name.strip()] = value
    return values


@dataclass(frozen=True)
class JsonParameters:
    """What a FIRE or OpenRecon client set in its TEXT message.

    Parameters
    ----------
    settings
        Values by setting name, not yet checked.
    pipeline
        Name of the pipeline to use instead of the configured one, or empty.
    unknown
        Names that are no settings.
    """

    settings: dict[str, object]
    pipeline: str
    unknown: tuple[str, ...]


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


def check_weights(settings: Settings) -> str:
    """See whether the weights that the method needs are there, before the scan rather than after it.

    Parameters
    ----------
    settings
        Settings of the scan.

    Returns
    -------
    str
        Empty if they are, or if the method needs none; else what is missing, and which method is used instead.

    Raises
    ------
    ModelError
        If they are missing and there is no fallback.
    """
    if not METHODS[settings.method].network:
        return ""
    try:
        find_weights(settings.method, settings.weights)
    except ModelError as error:
        if settings.fallback == "none":
            raise
        return f"{settings.fallback} is used instead of {settings.method}: {error}"
    return ""


def unmet_extras(settings: Settings) -> str:
    """See whether the settings allow the further series that they ask for.

    Returns
    -------
    str
        Empty if they do; else which will not come, and why.
    """
    beside, reasons = sorted(settings.extras & {"fallback", "difference"}), []
    if beside and settings.fallback == "none":
        reasons.append(f"{' and '.join(beside)} (there is no fallback)")
    elif beside and settings.fallback == settings.method:
        reasons.append(f"{' and '.join(beside)} (the fallback is {settings.method} itself)")
    if "zero_filled" in settings.extras and settings.method == "zero_filled":
        reasons.append("zero_filled (the images are zero-filled themselves)")
    return f"extra_series asks for what cannot be: {', '.join(reasons)}" if reasons else ""


def check_units(settings: Settings) -> None:
    """Refuse units that the method, or what is done to its images afterwards, cannot give.

    Raises
    ------
    SettingsError
        If the noise in the images is not known.
    """
    if settings.units != "snr":
        return
    changed = [name for name in ("partial_fourier", "kspace_filter") if getattr(settings, name) not in ("off", 0.0)]
    if "difference" in settings.extras:
        changed.append("extra_series=difference")  # of images in different units
    if settings.method not in LINEAR or changed:
        asked = " with ".join([settings.method, *changed])
        raise SettingsError(
            f"units=snr needs images whose noise is known, those of {', '.join(LINEAR)} without partial_fourier, "
            f"kspace_filter and differences; not so of {asked}"
        )


# --- XML --------------------------------------------------------------------------------------------------------------


def parse_configuration(text: str) -> Settings | None:
    """Read a configuration document, whichever of the two kinds it is.

    Parameters
    ----------
    text
        A whole version-2 pipeline, or the ``<configuration>`` element that a Gadgetron hands to its external peer, or
        (from a Gadgetron whose pipeline has none) nothing.

    Returns
    -------
    Settings or None
        The settings of a whole pipeline's external node, or of the element; None if the document holds none.

    Raises
    ------
    SettingsError
        If it is no XML, holds entities, asks for other code than cinestream, or has an unknown or ill-typed setting.
    """
    root = _parse(text)
    if root is None:
        return None
    if is_pipeline(text):
        return _settings_of_pipeline(root)
    if root.tag != "configuration":
        raise SettingsError(f"expected <configuration>, got <{root.tag}>; pipelines are version-2 Gadgetron documents")
    return apply(Settings(), _values(root))


def is_pipeline(text: str) -> bool:
    """Tell a whole pipeline from the bare ``<configuration>`` of a Gadgetron's external node."""
    root = _parse(text)
    return root is not None and (root.find("stream") is not None or root.tag != "configuration")


def _parse(text: str) -> Element | None:
    body = re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1).strip()
    if not body:
        return None
    try:
        root: Element = SafeTree.fromstring(body, forbid_dtd=True)
    except DefusedXmlException as error:
        raise SettingsError("the configuration declares a DTD or entities, which are not read") from error
    except (SafeTree.ParseError, ValueError) as error:
        raise SettingsError(f"the configuration is not XML ({error}); it begins with {body[:60]!r}") from error
    for node in root.iter():
        node.tag = str(node.tag).rpartition("}")[2]
    return root


def _settings_of_pipeline(root: Element) -> Settings:
    if root.tag != "configuration":
        raise SettingsError(f"expected a version-2 pipeline (<configuration>), got <{root.tag}>")
    nodes = list(root.findall("stream/*"))
    if [node.tag for node in nodes] != ["external"]:
        names = ", ".join(f"<{node.tag}> {node.findtext('classname', '')}".strip() for node in nodes) or "nothing"
        raise SettingsError(
            f"outside a Gadgetron a pipeline must hold one <external> node and nothing else; this one holds {names}"
            f"{_alternative(nodes)}"
        )
    return _settings_of_external(nodes[0])


def _alternative(nodes: list[Element]) -> str:
    """Name the pipeline that does here what this one does among the gadgets of a Gadgetron."""
    for node in nodes:
        if node.tag == "external":
            with contextlib.suppress(SettingsError):
                method = _settings_of_external(node).method
                return f". It needs a Gadgetron to run its gadgets; here take {method}, which does without them"
    return ""


def _settings_of_external(external: Element) -> Settings:
    execute, connect = external.find("execute"), external.find("connect")
    if execute is None and connect is None:
        raise SettingsError("the <external> node says neither <execute> nor <connect>")
    if execute is not None:
        module, target = execute.get("name", ""), execute.get("target", "")
        if (module, target) != (MODULE, TARGET):
            raise SettingsError(
                f"the pipeline wants to execute {module!r} {target!r}; only {MODULE!r} {TARGET!r} is run here"
            )
    configuration = external.find("configuration")
    return Settings() if configuration is None else apply(Settings(), _values(configuration))


def _values(configuration: Element) -> dict[str, object]:
    """Settings as attributes, as elements named after them, or as ``<property name= value=>`` in both spellings."""
    values: dict[str, object] = dict(configuration.attrib)
    for node in configuration:
        if node.tag == "property":
            name = node.get("name") or node.findtext("name") or ""
            value = node.get("value") or node.findtext("value") or ""
        else:
            name, value = node.tag, node.text or ""
        values[name.strip()] = value
    return values


# --- pipelines by name ------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file: its name, its text and what its header comment says of it."""

    name: str
    text: str

    @property
    def comment(self) -> str:
        """The header comment: what data, what it needs, what comes out."""
        found = re.search(r"<!--(.*?)-->", self.text, re.DOTALL)
        return re.sub(r"\n[ \t]+", "\n", found.group(1)).strip() if found else ""

    @property
    def settings(self) -> Settings:
        """The settings it carries.

        Raises
        ------
        SettingsError
            If the file is broken.
        """
        return parse_configuration(self.text) or Settings()

    @property
    def needs_gadgetron(self) -> bool:
        """Whether gadgets of a Gadgetron stand before or behind cinestream; then `settings` is refused."""
        root = _parse(self.text)
        return root is not None and len(root.findall("stream/*")) > 1

    @property
    def node_settings(self) -> Settings:
        """The settings of its one external node, whatever gadgets stand around it.

        Raises
        ------
        SettingsError
            If the file is broken.
        """
        if not self.needs_gadgetron:
            return self.settings
        root = _parse(self.text)
        externals = [] if root is None else root.findall("stream/external")
        if len(externals) != 1:
            raise SettingsError(f"{self.name} holds {len(externals)} <external> nodes, expected one")
        return _settings_of_external(externals[0])


def list_pipelines(folders: Iterable[Path] = ()) -> dict[str, Pipeline]:
    """All pipelines by name: those of the given folders first, then the ones that come with cinestream."""
    found: dict[str, Pipeline] = {}
    packaged = (entry for entry in resources.files("pipelines").iterdir() if entry.name.endswith(".xml"))
    for entry in [*(path for folder in folders for path in sorted(folder.glob("*.xml"))), *packaged]:
        name = entry.name.removesuffix(".xml")
        if name not in found:
            found[name] = Pipeline(name, entry.read_bytes().decode("utf-8", "replace"))
    return dict(sorted(found.items()))


def find_pipeline(name: str, folders: Iterable[Path] = ()) -> Pipeline:
    """Find a pipeline by name, in the allowed folders only.

    Parameters
    ----------
    name
        Name with or without ``.xml``; path parts are refused.
    folders
        Folders that the operator allows besides the packaged pipelines.

    Raises
    ------
    SettingsError
        If the name has path parts or no pipeline is called so.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"a pipeline is chosen by its bare name, without path parts; got {name[:60]!r}")
    known = list_pipelines(folders)
    pipeline = known.get(name.removesuffix(".xml"))
    if pipeline is None:
        raise SettingsError(f"there is no pipeline {name!r}; known are {', '.join(known)}")
    return pipeline


def install_pipelines(folder: Path) -> list[Path]:
    """Copy the packaged pipelines to where a Gadgetron looks for configurations.

    Parameters
    ----------
    folder
        A Gadgetron's home (then its ``share/gadgetron/config`` is used) or the folder itself.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    SettingsError
        If a file of that name exists and is not one of ours.
    ResourceError
        If a file cannot be written.
    """
    inside = folder / "share" / "gadgetron" / "config"
    target = inside if inside.is_dir() else folder
    written = []
    for pipeline in list_pipelines().values():
        path = target / f"{pipeline.name}.xml"
        if path.exists() and "cinestream" not in path.read_text(encoding="utf-8", errors="replace"):
            raise SettingsError(f"{path} exists and is not a cinestream pipeline; move it away first")
        try:
            target.mkdir(parents=True, exist_ok=True)
            path.write_text(pipeline.text, encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Rows of the documentation table: name, type or choices, default, help."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in FIELDS.items():
        choices: tuple[str, ...] = field.metadata["choices"]
        kind = " | ".join(choices) if choices else _TYPES[name].__name__
        rows.append((name, kind, _text(field.default), field.metadata["help"]))
    return rows


def _text(value: Any) -> str:  # noqa: ANN401 - the default of a dataclass field
    return str(value).lower() if isinstance(value, bool) else str(value)
