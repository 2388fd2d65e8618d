"""Images as DICOM for a PACS: MR images of one file per frame, or enhanced MR images of one file per series.

docs/export.md lists the origin of every attribute. The same images give the same files, UIDs included, so that sending
them twice stores them once; other images of the same scan are another series of the same study.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
from datetime import MAXYEAR, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydicom import dcmwrite
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    PYDICOM_ROOT_UID,
    UID,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from gadgets import __version__
from gadgets.export.places import replace_files
from gadgets.images.collection import number_of
from gadgets.problems import Kind
from gadgets.wire.attributes import is_derived
from gadgets.wire.header import split_measurement_id
from gadgets.wire.vendor import DAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.export.scan_facts import ScanFacts
    from gadgets.images.collection import Loop, Series
    from gadgets.images.geometry import Plane
    from gadgets.problems import Problems

KINDS = ("classic", "enhanced")
_MOST = 4095  # 12 bits
_FEWEST = 100.0  # smaller maxima are stored with a slope, to avoid visible steps
_OURS = re.compile(r"series\d+(_image\d+)?\.dcm")
_LONGEST_ROOT = 44  # characters of a UID root that leave room for what must be unique

#: Attribute, and the path in the ISMRMRD header that it comes from.
FROM_HEADER = {
    "PatientName": "subjectInformation/patientName",
    "PatientID": "subjectInformation/patientID",
    "PatientBirthDate": "subjectInformation/patientBirthdate",
    "PatientSex": "subjectInformation/patientGender",
    "PatientWeight": "subjectInformation/patientWeight_kg",
    "PatientSize": "subjectInformation/patientHeight_m",
    "StudyDate": "studyInformation/studyDate",
    "StudyTime": "studyInformation/studyTime",
    "StudyID": "studyInformation/studyID",
    "StudyDescription": "studyInformation/studyDescription",
    "AccessionNumber": "studyInformation/accessionNumber",
    "ReferringPhysicianName": "studyInformation/referringPhysicianName",
    "BodyPartExamined": "studyInformation/bodyPartExamined",
    "SeriesDate": "measurementInformation/seriesDate",
    "SeriesTime": "measurementInformation/seriesTime",
    "SequenceName": "measurementInformation/sequenceName",
    "Manufacturer": "acquisitionSystemInformation/systemVendor",
    "ManufacturerModelName": "acquisitionSystemInformation/systemModel",
    "InstitutionName": "acquisitionSystemInformation/institutionName",
    "StationName": "acquisitionSystemInformation/stationName",
    "DeviceSerialNumber": "acquisitionSystemInformation/deviceSerialNumber",
    "MagneticFieldStrength": "acquisitionSystemInformation/systemFieldStrength_T",
    "RepetitionTime": "sequenceParameters/TR",
    "InversionTime": "sequenceParameters/TI",
    "FlipAngle": "sequenceParameters/flipAngle_deg",
}
# Required by DICOM, possibly without a value.
_NEVER_ABSENT = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("Manufacturer", "PositionReferenceIndicator"),
)
_POSITIONS = {head + turn for head in ("HF", "FF") for turn in ("S", "P", "DR", "DL")}
# SNOMED codes of body parts
_REGIONS = {"HEART": ("80891009", "Heart"), "CHEST": ("51185008", "Chest")}
_ANY_REGION = ("38266002", "Entire body")
_NAME_FORMS = 3  # of a person's name: alphabetic, ideographic, phonetic
_LENGTHS = {"CS": 16, "SH": 16, "LO": 64, "PN": 64, "LT": 10240}


class _Exam(NamedTuple):
    """What identifies the series of a scan."""

    study: str
    frame_of_reference: str
    """`study`, `frame_of_reference`: UIDs."""
    scan: str
    """Name of the scan."""
    root: str
    """That new UIDs begin with."""


class _Values(NamedTuple):
    """How pixel values are stored: value = slope x stored + intercept."""

    slope: float
    intercept: float

    def stored(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Values as 12-bit numbers."""
        return np.asarray(np.clip(np.rint((values - self.intercept) / self.slope), 0, _MOST), "<u2")


def write_dicom(
    folder: Path,
    series: Sequence[Series],
    facts: ScanFacts,
    problems: Problems,
    *,
    kind: str = "classic",
    made: datetime,
) -> list[Path]:
    """Write series as DICOM.

    Parameters
    ----------
    folder
        Target; made if there is none. DICOM files of an earlier export in it are removed, other files stay.
    series
        What to write.
    facts
        The header of the scan.
    problems
        Where to note what is wrong.
    kind
        One of `KINDS`: a file per frame (MR Image Storage), or a file per series (Enhanced MR Image Storage).
    made
        When the images were reconstructed.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ResourceError
        If a file cannot be written.
    """
    exam = _identify(series, facts, problems)

    def files() -> Iterator[tuple[str, bytes]]:
        for one in (part for whole in series for part in whole.apart):
            datasets = _enhanced(one, facts, exam, made) if kind == "enhanced" else _classic(one, facts, exam, made)
            for dataset in datasets:
                number = "" if kind == "enhanced" else f"_image{int(dataset.InstanceNumber):05d}"
                yield f"series{one.number:03d}{number}.dcm", _file(dataset)

    return replace_files(folder, files(), lambda path: bool(_OURS.fullmatch(path.name)))


def _file(dataset: Dataset) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


# --- identity ---------------------------------------------------------------------------------------------------------


def _identify(series: Sequence[Series], facts: ScanFacts, problems: Problems) -> _Exam:
    measurement = facts.text("measurementInformation/measurementID")
    measurement = measurement or " ".join(series[0].meta.get("measurementID", ())) or _digest(series[0])
    exam = "_".join([*split_measurement_id(measurement).values()][:3]) or measurement
    given = {
        name: _given_uid(facts, path, problems)
        for name, path in (
            ("study", "studyInformation/studyInstanceUID"),
            ("frame", "measurementInformation/frameOfReferenceUID"),
            ("root", "measurementInformation/seriesInstanceUIDRoot"),
        )
    }
    root = f"{given['root']}." if 0 < len(given["root"]) <= _LONGEST_ROOT else PYDICOM_ROOT_UID
    return _Exam(
        study=given["study"] or _uid(PYDICOM_ROOT_UID, "study", exam),
        frame_of_reference=given["frame"] or _uid(PYDICOM_ROOT_UID, "frame of reference", measurement),
        scan=measurement,
        root=root,
    )


def _given_uid(facts: ScanFacts, path: str, problems: Problems) -> str:
    text = facts.text(path).rstrip(".")
    if text and not UID(text, IGNORE).is_valid:
        why = f"{path} of the header is no DICOM UID ({text!r}); a new one is made"
        problems.add(Kind.UID, why, damage=False, of=path)
        return ""
    return text


def _uid(root: str, *parts: str) -> str:
    return str(generate_uid(prefix=root, entropy_srcs=["cinestream", *parts]))


def _digest(series: Series) -> str:
    """Distinguishes images from other images of the same scan."""
    content = hashlib.sha256(series.name.encode())
    for loop in series.loops:
        content.update(repr(loop.key).encode() + loop.values.tobytes())
        content.update(np.stack([plane.first_pixel for plane in loop.planes]).tobytes())
    return content.hexdigest()


# --- common to both kinds ---------------------------------------------------------------------------------------------


def _common(series: Series, facts: ScanFacts, exam: _Exam, made: datetime, kind: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _NEVER_ABSENT:
        setattr(dataset, keyword, None)
    for keyword, path in FROM_HEADER.items():
        kind_of_value = dictionary_VR(keyword)
        read = {"DA": facts.date, "TM": facts.time, "DS": facts.number}.get(kind_of_value, facts.text)
        _put(dataset, keyword, read(path))
    if dataset.PatientSex not in ("M", "F", "O"):
        dataset.PatientSex = None
    if not (dataset.PatientName or dataset.PatientID):
        dataset.PatientName, dataset.PatientID = "Anonymous^No patient data", "ANONYMOUS"
        dataset.PatientComments = "The header of the scan has no patient data"

    if "BodyPartExamined" not in dataset:
        dataset.BodyPartExamined = "HEART"
    if dataset.BodyPartExamined not in _REGIONS:  # of which there are not two
        dataset.Laterality = None

    dataset.StudyInstanceUID = exam.study
    dataset.SeriesInstanceUID = _uid(exam.root, "series", exam.scan, str(series.number), kind, _digest(series))
    dataset.FrameOfReferenceUID = exam.frame_of_reference
    dataset.Modality = "MR"
    dataset.SeriesNumber = series.number
    protocol = facts.text("measurementInformation/protocolName") or " ".join(series.meta.get("protocolName", ()))
    _put(dataset, "ProtocolName", protocol)
    described = facts.text("measurementInformation/seriesDescription") or protocol
    _put(dataset, "SeriesDescription", f"{described} {series.name}".strip())
    position = facts.text("measurementInformation/patientPosition") or " ".join(series.meta.get("patient_position", ()))
    dataset.PatientPosition = position.upper() if position.upper() in _POSITIONS else None
    dataset.SoftwareVersions = f"cinestream {__version__}"
    dataset.ContentDate, dataset.ContentTime = made.strftime("%Y%m%d"), made.strftime("%H%M%S")

    resonance = facts.number("experimentalConditions/H1resonanceFrequency_Hz")
    _put(dataset, "ImagingFrequency", resonance and resonance / 1e6)
    coils = dict.fromkeys(facts.texts("acquisitionSystemInformation/coilLabel/coilName"))
    _put(dataset, "ReceiveCoilName", " ".join(coils))

    columns, rows = series.loops[0].planes[0].matrix
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    return dataset


def _put(dataset: Dataset, keyword: str, value: float | str | Sequence[float] | None) -> None:
    """Set an attribute in the form of its value representation; nothing is set where there is no value."""
    if value is None or value == "":
        return
    kind = dictionary_VR(keyword)
    if isinstance(value, str):
        text = re.sub(r"[\x00-\x1f\x7f]+", " ", value).replace("\\", "/").strip()
        if kind == "PN":
            text = "=".join(text.split("=")[:_NAME_FORMS])
        if kind == "CS":
            text = re.sub(r"[^A-Z0-9 _]", "_", text.upper())
        setattr(dataset, keyword, text[: _LENGTHS.get(kind)].strip())
    elif kind == "IS":
        setattr(dataset, keyword, round(float(np.asarray(value))))
    elif kind == "DS":
        decimals = [DSfloat(float(each), auto_format=True) for each in np.ravel(value)]
        setattr(dataset, keyword, decimals if np.ndim(value) else decimals[0])
    else:
        setattr(dataset, keyword, np.ravel(value).tolist() if np.ndim(value) else value)


def _values(series: Series) -> _Values:
    """One slope for a series, so that frames keep their relative brightness; 1 where the values fit as they are."""
    low = min(0.0, *(float(loop.values.min()) for loop in series.loops))
    high = max(float(loop.values.max()) for loop in series.loops)
    if low == 0 and (_FEWEST <= high <= _MOST or high == 0):
        return _Values(1.0, 0.0)
    slope, intercept = (float(DSfloat(each, auto_format=True)) for each in ((high - low) / _MOST, low))
    return _Values(slope, intercept)


def _window(series: Series) -> tuple[float, float]:
    center = number_of(series.meta, ("WindowCenter", "GADGETRON_WindowCenter"))
    width = number_of(series.meta, ("WindowWidth", "GADGETRON_WindowWidth"))
    if center is not None and width is not None and width >= 1:
        return center, width
    values = np.concatenate([loop.values.ravel() for loop in series.loops])
    low, high = min(0.0, float(values.min())), float(np.percentile(values, 99))
    return (low + high) / 2, max(high - low, 1.0)


def _comment(loop: Loop, frame: int) -> str:
    comment = " ".join(loop.meta[frame].get("ImageComments", loop.meta[frame].get("GADGETRON_ImageComment", ())))
    doubt = loop.planes[frame].doubt
    warning = f"PLACE IN THE PATIENT UNKNOWN: {doubt}" if doubt else ""
    return "; ".join(filter(None, (warning, comment)))


def _echo_time(facts: ScanFacts, contrast: int) -> float | None:
    times = facts.numbers("sequenceParameters/TE")
    return times[min(contrast, len(times) - 1)] if times else None


def _set_place(dataset: Dataset, plane: Plane) -> None:
    _put(dataset, "ImagePositionPatient", plane.first_pixel.tolist())


def _set_turn(dataset: Dataset, plane: Plane) -> None:
    _put(dataset, "ImageOrientationPatient", [*plane.row.tolist(), *plane.column.tolist()])


def _set_pixels(dataset: Dataset, plane: Plane, spacing: float | None) -> None:
    """Distance of rows, then of columns, as in DICOM."""
    _put(dataset, "PixelSpacing", [plane.pixel[1], plane.pixel[0]])
    _put(dataset, "SliceThickness", plane.thickness)
    _put(dataset, "SpacingBetweenSlices", spacing)


def _set_values(dataset: Dataset, values: _Values) -> None:
    _put(dataset, "RescaleIntercept", values.intercept)
    _put(dataset, "RescaleSlope", values.slope)
    dataset.RescaleType = "US"


def _set_window(dataset: Dataset, window: tuple[float, float]) -> None:
    _put(dataset, "WindowCenter", window[0])
    _put(dataset, "WindowWidth", window[1])


# --- classic ----------------------------------------------------------------------------------------------------------

_COMPONENT = {1: "M", 2: "P", 3: "R", 4: "I"}


def _classic(series: Series, facts: ScanFacts, exam: _Exam, made: datetime) -> Iterator[Dataset]:
    values, window, spacing = _values(series), _window(series), series.slice_spacing
    rr, step = series.rr, series.frame_time
    acquired = _acquired(series, facts)
    common = _common(series, facts, exam, made, "classic")
    for number, (loop, frame) in enumerate(_slices_first(series), 1):
        frames = len(loop.values)
        plane = loop.planes[frame]
        dataset = copy.deepcopy(common)
        dataset.SOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = _uid(exam.root, "image", dataset.SeriesInstanceUID, str(number))
        kind = ["DERIVED", "SECONDARY"] if is_derived(series.meta) else ["ORIGINAL", "PRIMARY"]
        dataset.ImageType = [*kind, "OTHER" if is_derived(series.meta) else _COMPONENT[series.image_type]]
        dataset.InstanceNumber = number
        dataset.ScanningSequence = _scanning_sequence(facts)
        dataset.SequenceVariant = "SS" if "SSFP" in facts.text("sequenceParameters/sequence_type").upper() else "NONE"
        dataset.ScanOptions = None if loop.since_trigger is None or series.real_time else "CG"
        dataset.MRAcquisitionType = "2D"
        dataset.EchoTime, dataset.EchoTrainLength = None, None
        _put(dataset, "EchoTime", _echo_time(facts, loop.key.contrast))
        if "RepetitionTime" not in dataset:
            dataset.RepetitionTime = None
        if loop.clock is not None:
            date, dataset.AcquisitionTime = acquired(float(loop.clock[frame]))
            _put(dataset, "AcquisitionDate", date)
        _set_place(dataset, plane)
        _set_turn(dataset, plane)
        _set_pixels(dataset, plane, spacing)
        if "SliceThickness" not in dataset:
            dataset.SliceThickness = None
        _put(dataset, "SliceLocation", plane.location)
        _put(dataset, "TemporalPositionIdentifier", frame + 1)
        _put(dataset, "NumberOfTemporalPositions", frames)
        _put(dataset, "TemporalResolution", step)
        if loop.since_trigger is not None:
            _put(dataset, "TriggerTime", float(loop.since_trigger[frame]))
        if not series.real_time:
            _put(dataset, "CardiacNumberOfImages", frames)
        _put(dataset, "NominalInterval", rr)
        _put(dataset, "HeartRate", rr and 60000 / rr)
        _put(dataset, "ImageComments", _comment(loop, frame))
        _set_values(dataset, values)
        _set_window(dataset, window)
        dataset.PixelData = values.stored(loop.values[frame]).tobytes()
        yield dataset


def _slices_first(series: Series) -> Iterator[tuple[Loop, int]]:
    """Slices and frames in the order of their instance numbers, slices fastest.

    Readers that do not go by time and place, as dcm2niix for some vendors, take the numbers for that order.
    """
    for stack in series.stacks:
        for frame in range(max(len(loop.values) for loop in stack)):
            yield from ((loop, frame) for loop in stack if frame < len(loop.values))


def _scanning_sequence(facts: ScanFacts) -> str:
    """Gradient echo where the header names it in one of the usual ways; else RM, a research mode."""
    name = facts.text("sequenceParameters/sequence_type").upper()
    return "GR" if any(word in name for word in ("SSFP", "FISP", "FFE", "FIESTA", "FLASH", "GRE", "SPGR")) else "RM"


def _acquired(series: Series, facts: ScanFacts) -> Callable[[float], tuple[str, str]]:
    """Gives date, empty where the header has none, and time of day of a time on the scanner's clock in ms.

    A series that began before midnight goes on into the next day.
    """
    text = facts.date("measurementInformation/seriesDate") or facts.date("studyInformation/studyDate")
    day = datetime.strptime(text or "20000101", "%Y%m%d")
    clocks = np.concatenate([np.empty(0), *(loop.clock for loop in series.loops if loop.clock is not None)])
    wraps = len(clocks) > 0 and float(np.ptp(clocks)) > DAY / 2 and day.year < MAXYEAR

    def moment(clock: float) -> tuple[str, str]:
        then = day + timedelta(days=int(wraps and clock < DAY / 2), milliseconds=clock)
        return then.date().isoformat().replace("-", "") if text else "", f"{then:%H%M%S.%f}"

    return moment


# --- enhanced ---------------------------------------------------------------------------------------------------------

_COMPLEX_COMPONENT = {1: "MAGNITUDE", 2: "PHASE", 3: "REAL", 4: "IMAGINARY"}


def _enhanced(series: Series, facts: ScanFacts, exam: _Exam, made: datetime) -> Iterator[Dataset]:
    """One dataset; being DERIVED, it may lack the sequence details that no ISMRMRD header has."""
    dataset = _common(series, facts, exam, made, "enhanced")
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = _uid(exam.root, "image", dataset.SeriesInstanceUID)
    dataset.InstanceNumber = 1
    for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"):
        setattr(dataset, keyword, dataset.get(keyword) or "unknown")
    dataset.ImageType = ["DERIVED", "PRIMARY", "REALTIME" if series.real_time else "CINE", "NONE"]
    _set_nature(dataset, series)
    dataset.ContentQualification = "RESEARCH"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.AcquisitionContextSequence = []
    _put(dataset, "ImageComments", _comment(series.loops[0], 0))
    acquired = _acquired(series, facts)
    moments = [acquired(clock) for loop in series.loops if loop.clock is not None for clock in loop.clock.tolist()]
    if moments and moments[0][0]:
        dataset.AcquisitionDateTime = "".join(min(moments))

    values = _values(series)
    first = series.loops[0].planes[0]
    turned = any(not first.parallel(plane) for loop in series.loops for plane in loop.planes)
    dataset.SharedFunctionalGroupsSequence = [
        _shared_groups(series, facts, values, None if turned else first, dataset.BodyPartExamined)
    ]
    # Loop after loop, so that viewers that show frames in stored order show beating hearts.
    order = [
        (loop, (stack, place, frame + 1))
        for stack, loops in enumerate(series.stacks, 1)
        for place, loop in enumerate(loops, 1)
        for frame in range(len(loop.values))
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame_groups(series, loop, index, turned=turned) for loop, index in order
    ]
    dataset.NumberOfFrames = len(order)
    _set_dimensions(dataset, _uid(exam.root, "dimensions", dataset.SeriesInstanceUID))
    dataset.PixelData = b"".join(values.stored(loop.values[index[2] - 1]).tobytes() for loop, index in order)
    yield dataset


def _set_nature(dataset: Dataset, series: Series) -> None:
    dataset.PixelPresentation = "MONOCHROME"
    dataset.VolumetricProperties = "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.ComplexImageComponent = _COMPLEX_COMPONENT[series.image_type]
    dataset.AcquisitionContrast = "UNKNOWN"


def _shared_groups(series: Series, facts: ScanFacts, values: _Values, plane: Plane | None, part: str) -> Dataset:
    """Functional groups of all frames; `plane` where they are parallel, `part` of the body as DICOM term."""
    groups = Dataset()
    pixels, kind, window, transform = Dataset(), Dataset(), Dataset(), Dataset()
    _set_pixels(pixels, series.loops[0].planes[0], series.slice_spacing)
    groups.PixelMeasuresSequence = [pixels]
    if plane is not None:
        turn = Dataset()
        _set_turn(turn, plane)
        groups.PlaneOrientationSequence = [turn]
    kind.FrameType = ["DERIVED", "PRIMARY", "REALTIME" if series.real_time else "CINE", "NONE"]
    _set_nature(kind, series)
    groups.MRImageFrameTypeSequence = [kind]
    _set_window(window, _window(series))
    groups.FrameVOILUTSequence = [window]
    _set_values(transform, values)
    groups.PixelValueTransformationSequence = [transform]
    groups.FrameAnatomySequence = [_anatomy(part)]
    echo = Dataset()
    _put(echo, "EffectiveEchoTime", _echo_time(facts, series.loops[0].key.contrast))
    if echo:
        groups.MREchoSequence = [echo]
    return groups


def _frame_groups(series: Series, loop: Loop, index: tuple[int, int, int], *, turned: bool) -> Dataset:
    """Functional groups of one frame; `index` is its stack, position in the stack and time, from 1."""
    frame = index[2] - 1
    groups, content, place = Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = list(index)
    content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = str(index[0]), index[1], index[2]
    _put(content, "FrameComments", _comment(loop, frame))
    groups.FrameContentSequence = [content]
    _set_place(place, loop.planes[frame])
    groups.PlanePositionSequence = [place]
    if turned:
        turn = Dataset()
        _set_turn(turn, loop.planes[frame])
        groups.PlaneOrientationSequence = [turn]
    if loop.since_trigger is not None:
        heart = Dataset()
        heart.NominalCardiacTriggerDelayTime = float(loop.since_trigger[frame])
        _put(heart, "RRIntervalTimeNominal", series.rr)
        groups.CardiacSynchronizationSequence = [heart]
    return groups


def _anatomy(part: str) -> Dataset:
    anatomy, region = Dataset(), Dataset()
    region.CodeValue, region.CodeMeaning = _REGIONS.get(part, _ANY_REGION)
    region.CodingSchemeDesignator = "SCT"
    anatomy.AnatomicRegionSequence = [region]
    anatomy.FrameLaterality = "U"
    return anatomy


def _set_dimensions(dataset: Dataset, uid: str) -> None:
    """Dimension attributes: frames are sorted by stack, position in the stack, and time."""
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    indices = []
    for keyword in ("StackID", "InStackPositionNumber", "TemporalPositionIndex"):
        index = Dataset()
        index.DimensionOrganizationUID = uid
        index.DimensionIndexPointer = tag_for_keyword(keyword)
        index.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
        indices.append(index)
    dataset.DimensionIndexSequence = indices
