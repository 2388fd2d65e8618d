"""The ISMRMRD header of a simulated scan."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadgets.simulation.plan import ScanPlan

NOISE_BANDWIDTH = 0.793  # what the header says as relativeReceiverNoiseBandwidth
MEASUREMENT_UID = 57
NOISE_UID = 56  # of the noise, where it is a measurement of its own


def header_xml(plan: ScanPlan, segments: int, trigger_channel: int, frame_lines: int, *, noise: bool = False) -> str:
    """ISMRMRD header as XML, of the scan or of its measurement of noise.

    TR is the time that the lines of a frame take, as in cine scans of Siemens.
    """
    fov_y, fov_x = plan.encoded_fov
    image_y, image_x = plan.image_matrix
    lines = plan.measured_lines
    center = plan.encoded_y // 2 - (plan.dropped_lines if plan.header_center == "true" else 0)
    parameters = {"PilotTone": 1} if plan.pilot_tone else {}
    if plan.gating == "retrospective":
        parameters |= {"RetroGatedImages": plan.frames, "RetroGatedSegmentSize": plan.segments}
    user = ""
    if parameters:
        user = "".join(
            f"\n    <userParameterLong><name>{name}</name><value>{value}</value></userParameterLong>"
            for name, value in parameters.items()
        )
        user = f"\n  <userParameters>{user}\n  </userParameters>"
    frames: dict[str, int] = {"phase": 1, "repetition": 1}
    frames[plan.frame_counter] = 1 if plan.continuous else plan.frames
    limits = {
        "kspace_encoding_step_1": (lines - 1, center),
        "kspace_encoding_step_2": (0, 0),
        "average": (plan.averages - 1, 0),
        "slice": (plan.slices - 1, 0),
        "contrast": (0, 0),
        "phase": (frames["phase"] - 1, 0),
        "repetition": (frames["repetition"] - 1, 0),
        "set": (0, 0),
        "segment": (segments - 1, 0),
    }
    acceleration = 1 if plan.sampling == "full" else plan.acceleration
    mode = "other"
    if plan.sampling == "interleaved":
        mode = "interleaved"
    elif plan.sampling != "full" and plan.acs_lines:
        mode = "embedded"
    interleaving = (
        f"\n      <interleavingDimension>{plan.frame_counter}</interleavingDimension>" if mode == "interleaved" else ""
    )
    waveform = ""
    if plan.waveforms:
        waveform = f"""
  <waveformInformation>
    <waveformName>ECG</waveformName>
    <waveformType>ecg</waveformType>
    <userParameters>
      <userParameterLong><name>TriggerChannel</name><value>{trigger_channel}</value></userParameterLong>
    </userParameters>
  </waveformInformation>"""
    prefix = f"00000_{plan.seed}_1"
    dependency = ""
    if plan.has_noise_file and not noise:
        dependency = f"""
    <measurementDependency>
      <dependencyType>Noise</dependencyType>
      <measurementID>{prefix}_{NOISE_UID}</measurementID>
    </measurementDependency>"""
    limit_lines = "\n".join(
        f"      <{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center></{name}>"
        for name, (maximum, centre) in limits.items()
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <measurementID>{prefix}_{NOISE_UID if noise else MEASUREMENT_UID}</measurementID>
    <patientPosition>HFS</patientPosition>
    <protocolName>{"noise" if noise else "cine"}_simulation</protocolName>{dependency}
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>{html.escape(plan.vendor)}</systemVendor>
    <systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>{NOISE_BANDWIDTH}</relativeReceiverNoiseBandwidth>
    <receiverChannels>{plan.coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>
      {_space(plan.encoded_x, plan.encoded_y, fov_x, fov_y, plan.slice_thickness)}
    </encodedSpace>
    <reconSpace>
      {_space(image_x, image_y, plan.field_of_view_x, plan.field_of_view_y, plan.slice_thickness)}
    </reconSpace>
    <encodingLimits>
{limit_lines}
    </encodingLimits>
    <trajectory>cartesian</trajectory>
    <parallelImaging>
      <accelerationFactor>
        <kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>
        <kspace_encoding_step_2>1</kspace_encoding_step_2>
      </accelerationFactor>
      <calibrationMode>{mode}</calibrationMode>{interleaving}
    </parallelImaging>
  </encoding>
  <sequenceParameters>
    <TR>{plan.repetition_time * (plan.segments or frame_lines):g}</TR>
    <TE>{plan.repetition_time / 2:g}</TE>
    <flipAngle_deg>60</flipAngle_deg>
    <sequence_type>SSFP</sequence_type>
    <echo_spacing>{plan.repetition_time:g}</echo_spacing>
  </sequenceParameters>{user}{waveform}
</ismrmrdHeader>
"""


def _space(nx: int, ny: int, fov_x: float, fov_y: float, thickness: float) -> str:
    size = f"<matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>"
    return f"{size}<fieldOfView_mm><x>{fov_x:g}</x><y>{fov_y:g}</y><z>{thickness:g}</z></fieldOfView_mm>"
