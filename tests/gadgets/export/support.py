"""Images to export: headers and pixels with chosen geometry, counters and time stamps."""

import numpy as np

from gadgets.files.images import ImageFile
from gadgets.wire.attributes import meta_entries, serialize_meta
from gadgets.wire.messages import IMAGE_HEADER, Image

NAMESPACE = "http://www.ismrm.org/ISMRMRD"


def image(values=None, *, series=1, meta=None, **fields):
    """One image; without values a ramp, brightest at the end of the last row."""
    if values is None:
        values = np.arange(1.0, 49.0, dtype=np.float32).reshape(6, 8) * 20
    header = np.zeros((), IMAGE_HEADER)
    header["matrix_size"] = (values.shape[-1], values.shape[-2], 1)
    header["field_of_view"] = (80.0, 90.0, 8.0)
    header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
    header["channels"], header["image_type"] = 1, 1
    header["image_series_index"], header["image_index"] = series, 1
    for name, value in fields.items():
        header[name] = value
    data = values.reshape(1, 1, *values.shape) if values.ndim == 2 else values
    return Image(
        header, data, serialize_meta(meta_entries({"SequenceDescriptionAdditional": "cg_sense", **(meta or {})}))
    )


def cine(slices=2, frames=3, *, rr=900.0, gap=10.0, tick=2.5, start=43_200_000.0, **fields):
    """Frames of some axial slices, one heartbeat a slice, stamped in ticks."""
    images = []
    for place in range(slices):
        for phase in range(frames):
            since = (phase + 0.5) * rr / frames
            stamps = {
                "acquisition_time_stamp": round((start + place * rr + since) / tick),
                "physiology_time_stamp": (round(since / tick), 0, 0),
            }
            images.append(
                image(
                    np.full((6, 8), 100.0 + 10 * place + phase, np.float32),
                    slice=place,
                    phase=phase,
                    position=(0, 0, place * gap),
                    image_index=1 + place + phase * slices,
                    **{**stamps, **fields},
                )
            )
    return images


def store(path, images, header=""):
    """Write an image file."""
    with ImageFile(path, header=header) as file:
        for each in images:
            file.append(each)
    return path


HEADER = f"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="{NAMESPACE}">
  <subjectInformation>
    <patientName>Doe^Zoë</patientName><patientWeight_kg>71.5</patientWeight_kg><patientID>P-7</patientID>
    <patientBirthdate>1960-02-29</patientBirthdate><patientGender>F</patientGender>
  </subjectInformation>
  <studyInformation>
    <studyDate>2024-05-06</studyDate><studyTime>11:22:33</studyTime><studyID>S1</studyID>
    <accessionNumber>A9</accessionNumber><studyDescription>Heart</studyDescription>
    <studyInstanceUID>1.2.3.4.5</studyInstanceUID>
  </studyInformation>
  <measurementInformation>
    <measurementID>123_45_6_78</measurementID><patientPosition>HFS</patientPosition>
    <protocolName>cine_sax</protocolName><seriesInstanceUIDRoot>1.2.3.99</seriesInstanceUIDRoot>
    <frameOfReferenceUID>1.2.3.77</frameOfReferenceUID>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>SIEMENS</systemVendor><systemModel>Aera</systemModel>
    <systemFieldStrength_T>1.494</systemFieldStrength_T>
    <coilLabel><coilNumber>0</coilNumber><coilName>Body_18</coilName></coilLabel>
    <coilLabel><coilNumber>1</coilNumber><coilName>Body_18</coilName></coilLabel>
    <institutionName>A hospital whose name is so long that it does not fit into what DICOM allows</institutionName>
  </acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63650000</H1resonanceFrequency_Hz></experimentalConditions>
  <sequenceParameters>
    <TR>40.5</TR><TE>1.3</TE><TE>2.6</TE><flipAngle_deg>55</flipAngle_deg><sequence_type>TrueFISP</sequence_type>
  </sequenceParameters>
</ismrmrdHeader>
"""
