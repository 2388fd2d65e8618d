"""The scan header: what of the ISMRMRD XML the reconstruction needs, typed, from any schema version."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from recon_core.errors import HeaderError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_LARGEST_COUNTER = 65535  # counters are uint16


@dataclass(frozen=True)
class Space:
    """Matrix size and field of view (mm) of an encoded or reconstructed space, both ``(x, y, z)``."""

    matrix: tuple[int, int, int]
    field_of_view: tuple[float, float, float]


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

    def count(self, counter: str) -> int:
        """How many values of a counter the header promises; 1 where it says nothing."""
        limit = self.limits.get(counter)
        return limit.maximum + 1 if limit else 1


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
    noise_bandwidth: float = 0.793
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

    @property
    def refusal(self) -> str:
        """Why no images can be made of the scan, which is not 2-D Cartesian; empty if they can."""
        return next((encoding.refusal for encoding in self.encodings if encoding.refusal), "")

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
    encodings = tuple(_encoding(node, i) for i, node in enumerate(root.findall("encoding")))
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
        noise_bandwidth=_number(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth", 0.793),
        receiver_channels=int(_number(root, "acquisitionSystemInformation/receiverChannels", 0)),
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
    )


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
        If it is no XML or holds entities.
    """
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


def _encoding(node: Element, number: int) -> Encoding:
    trajectory = node.findtext("trajectory", "cartesian").strip().lower()
    encoded, recon = _space(node, "encodedSpace", number), _space(node, "reconSpace", number)
    refusal = ""
    if trajectory != "cartesian":
        refusal = f"encoding {number} has a {trajectory} trajectory; only Cartesian scans can be reconstructed for now"
    elif encoded.matrix[2] > 1:
        refusal = f"encoding {number} has {encoded.matrix[2]} partitions; only 2-D slices can be reconstructed for now"
    limits = {limit.tag: _limit(limit) for limit in node.iterfind("encodingLimits/*")}
    lines = limits.get("kspace_encoding_step_1")
    if lines is not None and lines.maximum == 0 and encoded.matrix[1] > 1:
        del limits["kspace_encoding_step_1"]  # left at its default: a scan of one line would be encoded as one
    acceleration = int(_number(node, "parallelImaging/accelerationFactor/kspace_encoding_step_1", 1))
    mode = node.findtext("parallelImaging/calibrationMode", "").strip()
    return Encoding(encoded, _filled(recon, encoded), limits, max(1, acceleration), mode, refusal)


def _readout_spacing(root: Element, user: dict[str, str]) -> float:
    """Echo spacing, else TR, which is that of a whole segment; what is no number is no reason to refuse a scan."""

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return 0.0

    spacing = number(root.findtext("sequenceParameters/echo_spacing", ""))
    if not spacing > 0:
        lines = number(user.get("RetroGatedSegmentSize", ""))
        spacing = number(root.findtext("sequenceParameters/TR", "")) / max(1.0, lines)
    return spacing if 0 < spacing < math.inf else 0.0


def _filled(recon: Space, encoded: Space) -> Space:
    """Take from the encoded space what the recon space leaves at 0, which senders use for "not set"."""
    field_of_view = tuple(own or other for own, other in zip(recon.field_of_view, encoded.field_of_view, strict=True))
    matrix = tuple(own or other for own, other in zip(recon.matrix, encoded.matrix, strict=True))
    return Space(matrix, field_of_view)  # type: ignore[arg-type]


def _space(node: Element, name: str, number: int) -> Space:
    space = node.find(name)
    if space is None:
        raise HeaderError(f"encoding {number} of the ISMRMRD header has no <{name}>")
    matrix = tuple(int(_number(space, f"matrixSize/{axis}", 0 if axis != "z" else 1)) for axis in "xyz")
    field_of_view = tuple(_number(space, f"fieldOfView_mm/{axis}", 0.0) for axis in "xyz")
    lowest = 1 if name == "encodedSpace" else 0
    if not all(lowest <= size <= 16384 for size in matrix) or min(field_of_view) < 0:
        raise HeaderError(
            f"<{name}> of encoding {number} has a matrix of {matrix} over {field_of_view} mm; expected "
            f"{lowest} to 16384 per axis"
        )
    return Space(matrix, field_of_view)  # type: ignore[arg-type]


def _limit(node: Element) -> Limit:
    minimum, maximum, center = (int(_number(node, name, 0)) for name in ("minimum", "maximum", "center"))
    if min(minimum, maximum, center) < 0 or max(minimum, maximum, center) > _LARGEST_COUNTER:
        raise HeaderError(
            f"the encoding limits of <{node.tag}> are {minimum} to {maximum} around {center}; expected 0 to "
            f"{_LARGEST_COUNTER}"
        )
    return Limit(minimum, maximum, center)


def _number(node: Element, path: str, default: float) -> float:
    text = node.findtext(path)
    if text is None or not text.strip():
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HeaderError(f"<{path}> of the ISMRMRD header must be a number, got {text.strip()!r}")
    return value
