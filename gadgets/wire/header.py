"""The scan header: what of the ISMRMRD XML the reconstruction needs, typed, from any schema version."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from recon_core.errors import HeaderError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_LARGEST_COUNTER = 65535  # counters are uint16
_LARGEST_MATRIX = 4096  # per axis; no 2-D scan of today comes near
_MOST_ELEMENTS = 50_000  # of the XML; an element in memory takes 100 times its text
_EXACT = 0.01  # what a size may be off a whole number by the arithmetic of a converter
_METRES = 2.0  # a field of view below this many mm is one in metres
_THIN = 0.2  # and so is a slice below this
_REFUSED = {"epi"}
_SAME = 0.001  # fields of view that differ by less are one
_CALIBRATION_MODES = ("embedded", "interleaved", "separate", "external", "other")
_SENSIBLE = 1e-3, 1e6  # field of view in mm
_SINGLE = struct.Struct("<f")


#: In single precision, as all numbers that are read.
NOISE_BANDWIDTH: float = _SINGLE.unpack(_SINGLE.pack(0.793))[0]


@dataclass(frozen=True)
class Space:
    """Matrix size and field of view (mm) of an encoded or reconstructed space, both ``(x, y, z)``."""

    matrix: tuple[int, int, int]
    field_of_view: tuple[float, float, float]


class Doubt(NamedTuple):
    """What cannot be believed in a header, and what is taken instead."""

    text: str
    pixels: bool
    """The images would be others if it were meant otherwise."""


@dataclass(frozen=True)
class Limit:
    """Range of an encoding counter."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class Encoding:
    """One ``<encoding>`` of the header."""

    encoded: Space
    recon: Space
    """`encoded`, `recon`: The measured and the wanted space."""
    limits: dict[str, Limit] = field(default_factory=dict)
    """`Limit` by counter name (``kspace_encoding_step_1``, ``slice``, ``phase``, ...); only those the header gives."""
    acceleration: int = 1
    """Parallel imaging factor along ky."""
    calibration_mode: str = ""
    """``embedded``, ``interleaved``, ``separate``, ``external``, ``other`` or empty."""
    refusal: str = ""
    """Why no images can be made of it; empty if they can. Its noise may be of use all the same."""
    trajectory: str = "cartesian"
    """In lower case, as the header says. With any but ``cartesian``, `encoded` is the grid of the image: the measured
    resolution over the field of view of the recon space."""
    spoke: int = 0
    """Samples of a readout from one side of k-space to the other, where it follows no Cartesian grid; else 0."""

    @property
    def off_grid(self) -> bool:
        """Whether the samples follow no Cartesian grid."""
        return self.trajectory != "cartesian"

    @property
    def widths(self) -> tuple[float, float]:
        """Fields of view along the readout, the encoded and the wanted one: in mm, or in columns without such."""
        wide, narrow = self.encoded.field_of_view[0], self.recon.field_of_view[0]
        if wide > 0 and narrow > 0:
            return wide, narrow
        return float(self.encoded.matrix[0]), float(self.recon.matrix[0])

    def width_of(self, columns: int) -> float:
        """Field of view along the readout, as `widths`, of the columns of a slice: with or without the oversampling."""
        return self.widths[0] if columns == self.encoded.matrix[0] else min(self.widths)

    def promised(self, counter: str) -> range:
        """The values of a counter that the header promises; 0 alone where it says nothing."""
        limit = self.limits.get(counter)
        return range(limit.minimum, limit.maximum + 1) if limit else range(1)

    def count(self, counter: str) -> int:
        """How many values of a counter the header promises; 1 where it says nothing."""
        return len(self.promised(counter))


@dataclass(frozen=True)
class ScanHeader:
    """What the reconstruction needs to know of a scan."""

    encodings: tuple[Encoding, ...]
    """At least one."""
    text: str
    """The XML as it came."""
    patient_position: str = ""
    protocol_name: str = ""
    measurement_id: str = ""
    vendor: str = ""
    """`patient_position`, `protocol_name`, `measurement_id`, `vendor`: As the header says, empty where it does not."""
    noise_bandwidth: float = NOISE_BANDWIDTH
    """``relativeReceiverNoiseBandwidth``, 0.793 where the header does not say (Gadgetron's default)."""
    receiver_channels: int = 0
    """Coils, as the header says; 0 where it does not."""
    dependencies: tuple[tuple[str, str], ...] = ()
    """Kind and measurement id of the measurements that this one needs, such as that of its noise."""
    user_parameters: dict[str, str] = field(default_factory=dict)
    """All userParameterLong, -Double and -String values by name."""
    coil_labels: tuple[str, ...] = ()
    """Names of the receive coils in the order of the header, none where it does not say."""
    readout_spacing: float = 0.0
    """Time in ms from one readout to the next; 0 where the header does not say."""
    waveform_types: frozenset[str] = frozenset()
    """Of the waveforms that the header announces, in lower case: ``ecg``, ``pulse``, ..."""
    doubts: tuple[Doubt, ...] = ()
    """What of it cannot be believed."""

    @property
    def refusal(self) -> str:
        """Why no images can be made of any encoding, none being 2-D; empty if they can."""
        usable = any(not encoding.refusal for encoding in self.encodings)
        return "" if usable else self.encodings[0].refusal

    @property
    def patient_name(self) -> str:
        """Name of the patient as the header has it; empty where it does not, read only for who asks."""
        return read_xml(self.text).findtext("subjectInformation/patientName", "").strip()

    @property
    def noise_dependency(self) -> str:
        """Id of the measurement that measured the noise; empty where the header names none."""
        named = (number for kind, number in self.dependencies if kind.lower() == "noise" and number)
        return next(named, "")


def parse_header(text: str) -> ScanHeader:
    """Read an ISMRMRD header of any schema version.

    Parameters
    ----------
    text
        The XML document.

    Raises
    ------
    HeaderError
        If it is no XML, holds entities, or lacks an encoding.
    """
    root = read_xml(text)
    if root.tag != "ismrmrdHeader":
        raise HeaderError(f"expected an ISMRMRD header (<ismrmrdHeader>), got <{root.tag}>")
    read = _Numbers()
    encodings = _of_one_kind([_encoding(node, i, read) for i, node in enumerate(root.findall("encoding"))])
    if not encodings:
        raise HeaderError("the ISMRMRD header has no <encoding>: matrix size and field of view are unknown")
    user = {
        node.findtext("name", ""): node.findtext("value", "")
        for node in root.iterfind("userParameters/*")
        if node.tag.startswith("userParameter")
    }
    return ScanHeader(
        encodings=encodings,
        text=text,
        patient_position=root.findtext("measurementInformation/patientPosition", "").strip(),
        protocol_name=root.findtext("measurementInformation/protocolName", "").strip(),
        measurement_id=root.findtext("measurementInformation/measurementID", "").strip(),
        vendor=root.findtext("acquisitionSystemInformation/systemVendor", "").strip(),
        noise_bandwidth=read.number(
            root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth", NOISE_BANDWIDTH
        ),
        receiver_channels=read.count(root, "acquisitionSystemInformation/receiverChannels", 0),
        dependencies=tuple(
            (node.findtext("dependencyType", "").strip(), node.findtext("measurementID", "").strip())
            for node in root.iterfind("measurementInformation/measurementDependency")
        ),
        user_parameters=user,
        coil_labels=tuple(
            node.findtext("coilName", "").strip() for node in root.iterfind("acquisitionSystemInformation/coilLabel")
        ),
        readout_spacing=_readout_spacing(root, user),
        waveform_types=frozenset(
            node.text.strip().lower() for node in root.iterfind("waveformInformation/waveformType") if node.text
        ),
        doubts=tuple(read.doubts),
    )


def split_measurement_id(text: str) -> dict[str, str]:
    """Read what a measurement id is made of, by the names that a Gadgetron has for it.

    Parameters
    ----------
    text
        The id; of Siemens scans device, patient, study and measurement with ``_`` in between.

    Returns
    -------
    dict
        ``deviceID``, ``patientID``, ``studyID`` and ``measurementNumber``; nothing of an id with fewer parts.
    """
    parts = text.split("_", 3)
    names = ("deviceID", "patientID", "studyID", "measurementNumber")
    return dict(zip(names, parts, strict=True)) if len(parts) == len(names) else {}


def without_version(text: str) -> str:
    """Drop the ``<version>`` element of a header.

    A Gadgetron accepts a header of another schema version, but cannot pass it on to external nodes and hangs; without
    the element it takes any header.
    """
    return re.sub(r"\s*<((?:\w+:)?version)>[^<]*</\1>", "", text, count=1)


def read_xml(text: str) -> Element:
    """Read the XML of an ISMRMRD header into elements without namespaces in their names.

    Raises
    ------
    HeaderError
        If it is no XML, holds entities, or has more elements than any header.
    """
    if text.count("<") > 2 * _MOST_ELEMENTS:
        raise HeaderError(
            f"the ISMRMRD header has {text.count('<')} XML tags, at most {2 * _MOST_ELEMENTS} are read; drop user "
            "parameters that the reconstruction does not need"
        )
    try:
        # A declaration of another encoding is void: the text is decoded already.
        root: Element = SafeTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1), forbid_dtd=True)
    except DefusedXmlException as error:
        raise HeaderError("the ISMRMRD header declares a DTD or entities, which are not read") from error
    except (SafeTree.ParseError, ValueError) as error:
        start = text[:60].replace("\n", " ")
        raise HeaderError(f"the ISMRMRD header is not XML ({error}); it begins with {start!r}") from error
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


class _Numbers:
    """Reads numbers that a header may do without; what is none is noted, and the default taken."""

    def __init__(self) -> None:
        self.doubts: list[Doubt] = []

    def doubt(self, text: str, *, pixels: bool = False) -> None:
        """Note what cannot be believed."""
        self.doubts.append(Doubt(text, pixels))

    def number(self, node: Element, path: str, default: float) -> float:
        """Any number, or `default`."""
        text = node.findtext(path, "").strip()
        value = _float(text) if text else default
        if math.isnan(value):
            self.doubt(f"<{path}> of the header is {text[:40]!r}, which is no number; {default:g} is taken")
            return default
        return value

    def positive(self, node: Element, path: str, default: float, *, pixels: bool = False) -> float:
        """A number above 0, or `default`; 0 means that it is not set."""
        text = node.findtext(path, "").strip()
        value = _float(text) if text else 0.0
        if value > 0:
            return value
        if value != 0:  # below it, or none
            self.doubt(f"<{path}> of the header is {text[:40]!r}, which cannot be; {default:g} is taken", pixels=pixels)
        return default

    def count(self, node: Element, path: str, default: int, *, pixels: bool = False) -> int:
        """A whole number above 0, or `default`; converters leave rounding errors."""
        value = self.positive(node, path, default, pixels=pixels)
        if value > _LARGEST_COUNTER:
            self.doubt(f"<{path}> of the header is {value:g}, which cannot be; {default} is taken", pixels=pixels)
            return default
        if abs(value - round(value)) > _EXACT:
            self.doubt(f"<{path}> of the header is {value:g}; {round(value)} is taken", pixels=pixels)
        return round(value)


def _float(text: str) -> float:
    """The number that a text holds, in single precision; NaN if it is none, not finite, or too small for it.

    Single precision is that of the schema, and of a Gadgetron, which passes 0.793 on as 0.792999983.
    """
    try:
        exact = float(text)
        value: float = _SINGLE.unpack(_SINGLE.pack(exact))[0]
    except (ValueError, OverflowError):
        return math.nan
    return value if math.isfinite(value) and (value != 0 or exact == 0) else math.nan


def _encoding(node: Element, number: int, read: _Numbers) -> Encoding:
    trajectory = _word(node, "trajectory") or "cartesian"
    spaces = [_space(node, name, number, read) for name in ("encodedSpace", "reconSpace")]
    encoded, recon = _filled(spaces[0], spaces[1], number, read)
    limits = {}
    for one in node.iterfind("encodingLimits/*"):
        limit = _limit(one, number, read)
        if limit is not None:
            limits[one.tag] = limit
    lines = limits.get("kspace_encoding_step_1")
    if lines is not None and lines.maximum == 0 and encoded.matrix[1] > 1:
        del limits["kspace_encoding_step_1"]  # left at its default: a scan of one line would be encoded as one
    partitions = limits.get("kspace_encoding_step_2", Limit(0, 0, 0))
    refusal = ""
    if trajectory in _REFUSED:
        refusal = f"encoding {number} has a {trajectory} trajectory, which cannot be reconstructed for now"
    elif encoded.matrix[2] > 1 and (recon.matrix[2] > 1 or partitions.maximum > partitions.minimum):
        refusal = f"encoding {number} has {encoded.matrix[2]} partitions; only 2-D slices can be reconstructed for now"
    elif encoded.matrix[2] > 1:
        text = f"the encoded matrix of encoding {number} has {encoded.matrix[2]} partitions, but no more than one slice"
        read.doubt(f"{text} is counted or wanted; it is taken as 2-D")
    wide, narrow = encoded.field_of_view[1], recon.field_of_view[1]
    if trajectory == "cartesian" and encoded.matrix[1] > recon.matrix[1] and abs(wide - narrow) < _SAME * narrow:
        text = f"the header has {encoded.matrix[1]} lines and {recon.matrix[1]} rows of the image over {narrow:g} mm"
        text += " both: the outermost lines are left out; if they are phase oversampling, the image is squeezed"
        read.doubt(text, pixels=True)
    acceleration = read.count(node, "parallelImaging/accelerationFactor/kspace_encoding_step_1", 1)
    mode = _word(node, "parallelImaging/calibrationMode")
    if mode and mode not in _CALIBRATION_MODES:
        text = f"encoding {number} has the calibration mode {mode[:40]!r}, expected one of"
        text += f" {', '.join(_CALIBRATION_MODES)}; lines with flag 20 alone serve for the coil maps only"
        read.doubt(text, pixels=True)
    spoke = 0
    if trajectory != "cartesian":
        spoke, encoded = encoded.matrix[0], _image_grid(encoded, recon)
    return Encoding(encoded, recon, limits, max(1, acceleration), mode, refusal, trajectory, spoke)


def _word(node: Element, path: str) -> str:
    """A word of a list of the schema; Python writers leave the name of the list before it, with a dot."""
    return node.findtext(path, "").strip().lower().rpartition(".")[2]


def _of_one_kind(encodings: list[Encoding]) -> tuple[Encoding, ...]:
    """Refuse encodings that follow no grid next to some that do, such as a spiral for a map of the field."""
    if not any(not encoding.off_grid and not encoding.refusal for encoding in encodings):
        return tuple(encodings)
    return tuple(
        replace(one, refusal=f"encoding {number} has a {one.trajectory} trajectory, and others are Cartesian")
        if one.off_grid
        else one
        for number, one in enumerate(encodings)
    )


def _image_grid(encoded: Space, recon: Space) -> Space:
    """Pixels of the measured resolution over the field of view of the recon space; no line counts those along y."""
    pixel = encoded.field_of_view[0] / encoded.matrix[0]
    columns, rows = (max(1, round(size / pixel)) for size in recon.field_of_view[:2])
    return Space((columns, rows, encoded.matrix[2]), recon.field_of_view)


def _readout_spacing(root: Element, user: dict[str, str]) -> float:
    """Echo spacing, else TR, which is that of a whole segment; what is no number is no reason to refuse a scan."""
    spacing = _float(root.findtext("sequenceParameters/echo_spacing", ""))
    if not spacing > 0:
        lines = _float(user.get("RetroGatedSegmentSize", ""))
        spacing = _float(root.findtext("sequenceParameters/TR", "")) / (lines if lines > 1 else 1.0)
    return spacing if spacing > 0 else 0.0


def _filled(encoded: Space, recon: Space, number: int, read: _Numbers) -> tuple[Space, Space]:
    """Fill in what a space leaves at 0, which senders use for "not set", from the other one.

    Where both do, pixels of 1 mm are taken.
    """
    matrix = tuple(own or other for own, other in zip(recon.matrix, encoded.matrix, strict=True))
    wide, narrow = list(encoded.field_of_view), list(recon.field_of_view)
    unknown = [axis for axis, one, other in zip("xyz", wide, narrow, strict=True) if not one and not other]
    if unknown:
        text = f"no field of view along {', '.join(unknown)} is known of encoding {number}"
        read.doubt(f"{text}; pixels of 1 mm are taken", pixels=True)
    for axis in range(3):
        if not wide[axis] and not narrow[axis]:
            wide[axis], narrow[axis] = float(encoded.matrix[axis]), float(matrix[axis])
        narrow[axis] = narrow[axis] or wide[axis]
        wide[axis] = wide[axis] or narrow[axis] * encoded.matrix[axis] / matrix[axis]
    return Space(encoded.matrix, tuple(wide)), Space(matrix, tuple(narrow))  # type: ignore[arg-type]


def _space(node: Element, name: str, number: int, read: _Numbers) -> Space:
    space = node.find(name)
    if space is None:
        raise HeaderError(f"encoding {number} of the ISMRMRD header has no <{name}>")
    if name == "encodedSpace":
        matrix = [_needed(space, f"matrixSize/{axis}") for axis in "xy"]
        matrix.append(read.count(space, "matrixSize/z", 1))
    else:
        matrix = [read.count(space, f"matrixSize/{axis}", 0, pixels=axis != "z") for axis in "xyz"]
    if max(matrix) > _LARGEST_MATRIX:
        raise HeaderError(
            f"<{name}> of encoding {number} has a matrix of {tuple(matrix)}; expected 1 to {_LARGEST_MATRIX} per axis"
        )
    x, y, z = (read.positive(space, f"fieldOfView_mm/{axis}", 0.0, pixels=True) for axis in "xyz")
    if 0 < max(x, y) < _METRES:
        text = f"the field of view of <{name}> of encoding {number} is {x:g} x {y:g} mm, as if it were in metres"
        read.doubt(f"{text}; {1000 * x:g} x {1000 * y:g} mm is taken", pixels=True)
        x, y, z = 1000 * x, 1000 * y, 1000 * z if z < _THIN else z
    if not all(_SENSIBLE[0] <= size <= _SENSIBLE[1] for size in (x, y, z) if size):
        text = f"the field of view of <{name}> of encoding {number} is {x:g} x {y:g} x {z:g} mm, which cannot be"
        read.doubt(f"{text}; it is taken as unknown", pixels=True)
        x, y, z = 0.0, 0.0, 0.0
    return Space(tuple(matrix), (x, y, z))  # type: ignore[arg-type]


def _needed(node: Element, path: str) -> int:
    """A size without which there is no image."""
    text = node.findtext(path, "").strip()
    value = _float(text)
    if math.isnan(value):
        raise HeaderError(f"<{path}> of the ISMRMRD header must be a number, got {text[:40]!r}")
    if not 0.5 < value < _LARGEST_MATRIX + 0.5:
        raise HeaderError(f"the encoded matrix has {path} {value:g}; expected 1 to {_LARGEST_MATRIX} per axis")
    return round(value)


def _limit(node: Element, number: int, read: _Numbers) -> Limit | None:
    """The range of a counter; None, which promises nothing, where it cannot be one."""
    texts = [node.findtext(name, "0").strip() or "0" for name in ("minimum", "maximum", "center")]
    values = [_float(text) for text in texts]
    if all(0 <= value <= _LARGEST_COUNTER for value in values) and values[0] <= values[1]:
        return Limit(*map(round, values))
    found = f"{texts[0][:20]} to {texts[1][:20]} around {texts[2][:20]}"
    text = f"the encoding limits of <{node.tag}> of encoding {number} are {found}, which cannot be"
    read.doubt(f"{text}; the readouts alone are asked", pixels=node.tag == "kspace_encoding_step_1")
    return None
