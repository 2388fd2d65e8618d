"""DICOM files that a PACS takes: identity, attributes, pixel values, both kinds."""

import errno
import logging
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from gadgets.export.dicom import FROM_HEADER, write_dicom
from gadgets.export.scan_facts import ScanFacts
from gadgets.export.series import exportable_series
from gadgets.problems import Problems
from recon_core.errors import ResourceError
from tests.gadgets.export.support import HEADER, cine, image

MADE = datetime(2024, 5, 6, 12, 0, 0)


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """Values that break the standard are errors, on writing and on reading."""
    settings = pydicom.config.settings
    monkeypatch.setattr(settings, "reading_validation_mode", pydicom.config.RAISE)
    monkeypatch.setattr(settings, "writing_validation_mode", pydicom.config.RAISE)


def export(folder, images, header="", kind="classic", problems=None):
    """Write images and read the files back."""
    problems = Problems() if problems is None else problems
    by_series = {}
    for each in images:
        by_series.setdefault(int(each.header["image_series_index"]), []).append(each)
    series = exportable_series(by_series, 2.5, problems)
    paths = write_dicom(folder, series, ScanFacts(header), problems, kind=kind, made=MADE)
    assert all(path.parent == folder for path in paths)
    return [pydicom.dcmread(path) for path in paths]


def test_what_a_viewer_needs(tmp_path):
    files = export(tmp_path, cine(slices=2, frames=3, rr=900), HEADER)
    assert len(files) == 6
    assert [int(each.InstanceNumber) for each in files] == [1, 2, 3, 4, 5, 6]
    for number, each in enumerate(files):
        frame, place = divmod(number, 2)  # dcm2niix takes the numbers for that order
        assert each.SOPClassUID == each.file_meta.MediaStorageSOPClassUID == MRImageStorage
        assert each.file_meta.MediaStorageSOPInstanceUID == each.SOPInstanceUID
        assert each.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert each.ImageType == ["ORIGINAL", "PRIMARY", "M"]
        assert each.PixelSpacing == [15, 10]  # rows first
        assert each.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        assert each.ImagePositionPatient == [-40, -45, 10 * place]
        assert (each.SliceThickness, each.SpacingBetweenSlices, each.SliceLocation) == (8, 10, 10 * place)
        assert each.TriggerTime == pytest.approx(300 * frame + 150, abs=1.3)
        assert (each.NominalInterval, each.HeartRate, each.CardiacNumberOfImages) == (900, 67, 3)
        assert (each.TemporalPositionIdentifier, each.NumberOfTemporalPositions) == (frame + 1, 3)
        assert each.TemporalResolution == pytest.approx(300, abs=2.5)
        assert (each.pixel_array == 100 + 10 * place + frame).all()
        assert (each.Rows, each.Columns) == (6, 8)
        assert (each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation) == (16, 12, 11, 0)
    assert len({each.SOPInstanceUID for each in files}) == 6
    assert len({each.SeriesInstanceUID for each in files}) == 1
    assert files[0].AcquisitionTime == "120000.150000"
    assert files[1].AcquisitionTime == "120001.050000"


def test_numbers_go_on_where_a_slice_has_fewer_frames(tmp_path):
    files = export(tmp_path, [each for each in cine(slices=2, frames=3) if each.header["image_index"] != 3])
    assert [(int(each.InstanceNumber), each.pixel_array[0, 0]) for each in files] == [
        *((1, 100), (2, 110), (3, 102), (4, 111), (5, 112)),
    ]


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@pytest.mark.parametrize("counter", ["set", "repetition", "contrast"])
def test_sets_repetitions_and_contrasts_are_series_of_their_own(counter, kind, tmp_path):
    """A viewer has one run of frames, temporal positions and trigger times for a series."""
    images = [each for number in range(2) for each in cine(slices=2, frames=3, **{counter: number})]
    files = export(tmp_path, images, HEADER, kind)
    series = {}
    for each in files:
        series.setdefault((int(each.SeriesNumber), each.SeriesDescription, each.SeriesInstanceUID), []).append(each)
    assert [(number, text) for number, text, _ in series] == [
        (1, "cine_sax cg_sense"),
        (100_001, f"cine_sax cg_sense {counter} 1"),
    ]
    assert len({uid for *_, uid in series}) == 2
    for members in series.values():
        if kind == "enhanced":
            (one,) = members
            assert {groups.FrameContentSequence[0].StackID for groups in one.PerFrameFunctionalGroupsSequence} == {"1"}
            continue
        places = [(each.SliceLocation, int(each.TemporalPositionIdentifier)) for each in members]
        assert sorted(places) == [(place, frame) for place in (0, 10) for frame in (1, 2, 3)]
        assert {int(each.NumberOfTemporalPositions) for each in members} == {3}
        assert [int(each.InstanceNumber) for each in members] == [1, 2, 3, 4, 5, 6]


def test_positions_in_the_stack_are_those_of_the_places(tmp_path):
    images = cine(slices=3, frames=1)
    for each in images:
        each.header["position"] = (0, 0, (0, 20, 10)[int(each.header["slice"])])
    (each,) = export(tmp_path, images, kind="enhanced")
    places = [
        groups.PlanePositionSequence[0].ImagePositionPatient[2] for groups in each.PerFrameFunctionalGroupsSequence
    ]
    numbers = [groups.FrameContentSequence[0].InStackPositionNumber for groups in each.PerFrameFunctionalGroupsSequence]
    assert (places, numbers) == ([0, 10, 20], [1, 2, 3])
    assert each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 10


def test_what_the_scan_header_says(tmp_path):
    (each,) = export(tmp_path, [image(contrast=1)], HEADER)
    assert str(each.PatientName) == "Doe^Zoë"
    assert (each.PatientID, each.PatientSex, each.PatientBirthDate) == ("P-7", "F", "19600229")
    assert each.PatientWeight == 71.5
    assert "PatientComments" not in each
    assert (each.StudyDate, each.StudyTime, each.StudyID, each.AccessionNumber) == ("20240506", "112233", "S1", "A9")
    assert (each.StudyInstanceUID, each.FrameOfReferenceUID) == ("1.2.3.4.5", "1.2.3.77")
    assert each.SeriesInstanceUID.startswith("1.2.3.99.")
    assert (each.Manufacturer, each.ManufacturerModelName) == ("SIEMENS", "Aera")
    assert len(each.InstitutionName) <= 64
    assert (each.MagneticFieldStrength, each.ImagingFrequency) == (1.494, 63.65)
    assert (each.RepetitionTime, each.EchoTime, each.FlipAngle) == (40.5, 2.6, 55)
    assert (each.ReceiveCoilName, each.PatientPosition) == ("Body_18", "HFS")
    assert (each.ProtocolName, each.SeriesDescription) == ("cine_sax", "cine_sax cg_sense")
    assert (each.ScanningSequence, each.MRAcquisitionType) == ("GR", "2D")


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@pytest.mark.parametrize("contrast", [0, 1, 2])
def test_the_echo_time_is_that_of_the_contrast(contrast, kind, tmp_path):
    """In an enhanced file too, which holds one contrast."""
    images = [image(contrast=number) for number in range(contrast + 1)]
    each = export(tmp_path, images, HEADER, kind)[-1]
    if kind == "enhanced":
        found = each.SharedFunctionalGroupsSequence[0].MREchoSequence[0].EffectiveEchoTime
    else:
        found = each.EchoTime
    assert found == (1.3, 2.6, 2.6)[contrast]


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "-1", "short"])
def test_an_echo_time_that_is_none_is_left_out(text, kind, tmp_path):
    (each,) = export(tmp_path, [image()], HEADER.replace("<TE>1.3<", f"<TE>{text}<"), kind)
    assert "MREchoSequence" not in each.get("SharedFunctionalGroupsSequence", [[]])[0]
    assert not each.get("EchoTime")


@pytest.mark.parametrize("text", ["0000-00-00", "1900-00-00", "2024-13-01", "2023-02-29", "12345678901"])
def test_a_day_that_is_none_is_left_out(text, tmp_path):
    """Anonymisers leave such; a PACS may refuse the file, and pydicom warns."""
    header = HEADER.replace("2024-05-06", text).replace("1960-02-29", text)
    (each,) = export(tmp_path, [image(acquisition_time_stamp=1)], header)
    assert not each.PatientBirthDate
    assert not each.StudyDate
    assert "AcquisitionDate" not in each


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_a_series_that_goes_on_after_midnight(kind, tmp_path):
    """Its date is that of its begin; by the time of day alone it would end a day before it begins."""
    images = cine(slices=2, frames=2, rr=900, start=86_399_000.0)
    for each in images:
        each.header["acquisition_time_stamp"] %= 34_560_000  # ticks of a day
    found = export(tmp_path, images, HEADER.replace("2024-05-06", "2024-12-31"), kind)
    if kind == "enhanced":
        assert found[0].AcquisitionDateTime == "20241231235959.225000"
        return
    moments = sorted(each.AcquisitionDate + each.AcquisitionTime for each in found)
    days = ["20241231235959.225000", "20241231235959.675000", "20250101000000.125000", "20250101000000.575000"]
    assert moments == days


def test_a_name_in_more_forms_than_there_are(tmp_path):
    (each,) = export(tmp_path, [image()], HEADER.replace("Doe^Zoë", "Doe^Zoë=b=c=d=e"))
    assert str(each.PatientName) == "Doe^Zoë=b=c"


def test_every_attribute_of_the_table_has_its_value(tmp_path):
    texts = {"DA": "2020-01-02", "TM": "03:04:05", "DS": "12.5", "PatientSex": "O", "UI": "1.2.3"}
    tree = {}
    for keyword, path in FROM_HEADER.items():
        parent, leaf = path.split("/")
        text = texts.get(keyword, texts.get(pydicom.datadict.dictionary_VR(keyword), "SOME"))
        tree.setdefault(parent, []).append(f"<{leaf}>{text}</{leaf}>")
    header = "".join(f"<{parent}>{''.join(leaves)}</{parent}>" for parent, leaves in tree.items())
    (each,) = export(tmp_path, [image()], f"<ismrmrdHeader>{header}</ismrmrdHeader>")
    assert all(each.get(keyword) not in (None, "") for keyword in FROM_HEADER)


def test_without_a_patient_the_files_say_so(tmp_path):
    (each,) = export(tmp_path, [image()])
    assert str(each.PatientName).startswith("Anonymous")
    assert each.PatientID == "ANONYMOUS"
    assert "no patient data" in each.PatientComments
    assert each.StudyDate == ""
    assert "AcquisitionTime" not in each
    assert "TriggerTime" not in each
    assert "NominalInterval" not in each


def test_the_same_images_give_the_same_files_and_others_another_series(tmp_path):
    first = export(tmp_path / "a", cine(), HEADER)
    export(tmp_path / "b", cine(), HEADER)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    other = export(tmp_path / "c", cine(meta={"SequenceDescriptionAdditional": "grappa"}), HEADER)
    enhanced = export(tmp_path / "d", cine(), HEADER, kind="enhanced")
    for one in (*other, *enhanced):
        assert one.StudyInstanceUID == first[0].StudyInstanceUID
        assert one.FrameOfReferenceUID == first[0].FrameOfReferenceUID
        assert one.SeriesInstanceUID != first[0].SeriesInstanceUID
        assert one.SOPInstanceUID not in {each.SOPInstanceUID for each in first}


def test_series_of_one_exam_share_the_study_also_without_its_uid(tmp_path):
    def header(measurement):
        text = f"<measurementInformation><measurementID>{measurement}</measurementID></measurementInformation>"
        return f"<ismrmrdHeader>{text}</ismrmrdHeader>"

    one, two, other = (
        export(tmp_path / name, [image()], header(name))[0] for name in ("1_2_3_40", "1_2_3_41", "1_2_4_40")
    )
    assert one.StudyInstanceUID == two.StudyInstanceUID != other.StudyInstanceUID
    assert one.SeriesInstanceUID != two.SeriesInstanceUID
    assert all(UID(each.StudyInstanceUID).is_valid for each in (one, two, other))


def test_a_uid_that_is_none_is_replaced_and_reported(tmp_path):
    problems = Problems()
    (each,) = export(tmp_path, [image()], HEADER.replace("1.2.3.4.5", "1.02.a"), problems=problems)
    assert UID(each.StudyInstanceUID).is_valid
    assert "1.02.a" in str(next(iter(problems)))


@pytest.mark.parametrize("peak", [1e-7, 0.5, 57.3, 1000.0, 5000.0, 3e9])
def test_values_come_back_within_half_a_step_of_12_bits(peak, tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (6, 8)).astype(np.float32) * peak
    files = export(tmp_path, [image(values, phase=0), image(values / 3, phase=1)])
    slopes = {float(each.RescaleSlope) for each in files}
    assert len(slopes) == 1
    for each, wanted in zip(files, (values, values / 3), strict=True):
        assert each.pixel_array.max() <= 4095
        found = each.pixel_array * float(each.RescaleSlope) + float(each.RescaleIntercept)
        assert np.abs(found - wanted).max() <= max(slopes) * 0.51


def test_values_that_fit_are_stored_as_they_are(tmp_path):
    (each,) = export(tmp_path, [image()])
    assert (each.RescaleSlope, each.RescaleIntercept) == (1, 0)
    assert each.pixel_array[5, 7] == 960


def test_phase_images_keep_their_sign(tmp_path):
    values = np.linspace(-3, 3, 48, dtype=np.float32).reshape(6, 8)
    (each,) = export(tmp_path, [image(values, image_type=2)])
    assert each.ImageType[2] == "P"
    assert each.pixel_array * float(each.RescaleSlope) + float(each.RescaleIntercept) == pytest.approx(values, abs=1e-3)


def test_window_comment_and_maps(tmp_path):
    meta = {"WindowCenter": 500, "WindowWidth": 1001, "ImageComments": "made by\ncg_sense"}
    role = {"GADGETRON_DataRole": "Gfactor"}
    image_file, map_file = export(tmp_path, [image(meta=meta), image(series=21, meta=role)])
    assert (image_file.WindowCenter, image_file.WindowWidth) == (500, 1001)
    assert image_file.ImageComments == "made by cg_sense"
    assert map_file.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    assert map_file.StudyInstanceUID == image_file.StudyInstanceUID
    assert map_file.SeriesInstanceUID != image_file.SeriesInstanceUID
    assert (image_file.SeriesNumber, map_file.SeriesNumber) == (1, 21)


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_images_without_geometry_say_so(kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        files = export(tmp_path, cine(slices=1, frames=2, read_dir=0, phase_dir=0, slice_dir=0), kind=kind)
    assert all(each.ImageComments.startswith("PLACE IN THE PATIENT UNKNOWN") for each in files)
    assert "do not lie at their place" in caplog.text


def test_enhanced_holds_all_frames(tmp_path):
    problems = Problems()
    (each,) = export(tmp_path, cine(slices=2, frames=3, rr=900), HEADER, "enhanced", problems)
    assert not list(problems)
    assert each.SOPClassUID == each.file_meta.MediaStorageSOPClassUID == EnhancedMRImageStorage
    assert each.NumberOfFrames == len(each.PerFrameFunctionalGroupsSequence) == 6
    assert each.pixel_array[:, 0, 0].tolist() == [100, 101, 102, 110, 111, 112]
    for number, groups in enumerate(each.PerFrameFunctionalGroupsSequence):
        place, frame = divmod(number, 3)
        assert groups.PlanePositionSequence[0].ImagePositionPatient == [-40, -45, 10 * place]
        assert groups.FrameContentSequence[0].DimensionIndexValues == [1, place + 1, frame + 1]
        heart = groups.CardiacSynchronizationSequence[0]
        assert heart.NominalCardiacTriggerDelayTime == pytest.approx(300 * frame + 150, abs=1.3)
        assert heart.RRIntervalTimeNominal == pytest.approx(900, abs=2.5)
    shared = each.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [15, 10]
    assert shared.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == "Heart"
    assert shared.MREchoSequence[0].EffectiveEchoTime == 1.3
    assert (each.RepetitionTime, each.FlipAngle) == (40.5, 55)
    assert each.DimensionIndexSequence[1].DimensionIndexPointer == 0x00209057
    assert each.AcquisitionDateTime.startswith("20240506120000")


@pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental")
def test_another_reader_finds_slices_and_time_in_the_enhanced_file(tmp_path):
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    export(tmp_path, cine(slices=2, frames=3), HEADER, "enhanced")
    wrapped = wrapper_from_file(tmp_path / "series001.dcm")
    assert wrapped.image_shape == (6, 8, 2, 3)
    assert sorted(wrapped.get_data()[0, 0].tolist()) == [[100, 101, 102], [110, 111, 112]]


def test_enhanced_slices_of_unequal_length(tmp_path):
    (each,) = export(tmp_path, cine(slices=2, frames=3)[:-1], kind="enhanced")
    assert each.NumberOfFrames == 5
    assert each.pixel_array[:, 0, 0].tolist() == [100, 101, 102, 110, 111]


def test_enhanced_slices_that_are_not_parallel(tmp_path):
    images = [
        image(slice=0),
        image(slice=1, read_dir=(0, 1, 0), phase_dir=(0, 0, 1), slice_dir=(1, 0, 0), position=(5, 0, 0)),
    ]
    (each,) = export(tmp_path, images, kind="enhanced")
    assert "PlaneOrientationSequence" not in each.SharedFunctionalGroupsSequence[0]
    second = each.PerFrameFunctionalGroupsSequence[1]
    assert second.PlaneOrientationSequence[0].ImageOrientationPatient == [0, 1, 0, 0, 0, 1]


def test_files_of_an_earlier_export_go_and_others_stay(tmp_path):
    export(tmp_path, cine(slices=2, frames=4))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "series.dcm").write_text("mine")
    export(tmp_path, cine(slices=1, frames=2), kind="enhanced")
    assert {path.name for path in tmp_path.iterdir()} == {"series001.dcm", "notes.txt", "series.dcm"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another folder"):
        export(tmp_path / "file" / "folder", [image()])


def test_a_full_disk(tmp_path, monkeypatch):
    """Leaves the earlier export as it was, and no part of the new one."""
    export(tmp_path, cine(slices=1, frames=4))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written, write_bytes = [], Path.write_bytes

    def write(self, content):
        written.append(self)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ResourceError, match="No space left"):
        export(tmp_path, cine(slices=2, frames=4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
