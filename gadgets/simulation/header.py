"""The ISMRMRD header of a simulated scan."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadgets.simulation.plan import ScanPlan

NOISE_BANDWIDTH = 0.793  # relativeReceiverNoiseBandwidth of the header
MEASUREMENT_UID = 57
NOISE_UID = 56  # of the noise, where it is a separate measurement


_TRAJECTORIES = {
    "cartesian": "cartesian",
    "uniform": "radial",
    "golden": "goldenangle",
    "tiny_golden": "radial",
}


def header_xml(plan: ScanPlan, segments: int, trigger_channel: int, frame_lines: int, *, noise: bool = False) -> str:
    """ISMRMRD header as XML, of the scan or of its measurement of noise.

    TR is the time that the lines of a frame take, as in cine scans of Siemens.
    """
    fov_y, fov_x = plan.encoded_fov
    rows = plan.encoded_y
    if plan.is_radial:
        rows, fov_y = plan.encoded_x, fov_x
    image_y, image_x = plan.image_matrix
    prefix = f"00000_{plan.seed}_1"
    acceleration = 1 if plan.sampling == "full" or plan.is_radial else plan.acceleration
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation>
    <measurementID>{prefix}_{NOISE_UID if noise else MEASUREMENT_UID}</measurementID>
    <patientPosition>HFS</patientPosition>
    <protocolName>{"noise" if noise else "cine"}_simulation</protocolName>{"" if noise else _dependency(plan, prefix)}
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>{html.escape(plan.vendor)}</systemVendor>
    <systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>{NOISE_BANDWIDTH}</relativeReceiverNoiseBandwidth>
    <receiverChannels>{plan.coils}</receiverChannels>{_coil_labels(plan)}
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>
      {_space(plan.encoded_x, rows, fov_x, fov_y, plan.slice_thickness)}
    </encodedSpace>
    <reconSpace>
      {_space(image_x, image_y, plan.field_of_view_x, plan.field_of_view_y, plan.slice_thickness)}
    </reconSpace>
    <encodingLimits>
{_limits(plan, segments)}
    </encodingLimits>
    <trajectory>{_TRAJECTORIES[plan.trajectory]}</trajectory>
    <parallelImaging>
      <accelerationFactor>
        <kspace_encoding_step_1>{acceleration}</kspace_encoding_step_1>
        <kspace_encoding_step_2>1</kspace_encoding_step_2>
      </accelerationFactor>
      {_calibration(plan)}
    </parallelImaging>
  </encoding>
  <sequenceParameters>
    <TR>{plan.repetition_time * (plan.segments or frame_lines):g}</TR>
    <TE>{plan.repetition_time / 2:g}</TE>
    <flipAngle_deg>60</flipAngle_deg>
    <sequence_type>SSFP</sequence_type>
    <echo_spacing>{plan.repetition_time:g}</echo_spacing>
  </sequenceParameters>{_user_parameters(plan)}{_waveforms(plan, trigger_channel)}
</ismrmrdHeader>
"""


def _limits(plan: ScanPlan, segments: int) -> str:
    center = plan.encoded_y // 2 - (plan.dropped_lines if plan.header_center == "true" else 0)
    frames: dict[str, int] = {"phase": 1, "repetition": 1}
    frames[plan.frame_counter] = 1 if plan.continuous else plan.frames
    limits = {
        "kspace_encoding_step_1": (plan.measured_lines - 1, center),
        "kspace_encoding_step_2": (0, 0),
        "average": (plan.averages - 1, 0),
        "slice": (plan.slices - 1, 0),
        "contrast": (0, 0),
        "phase": (frames["phase"] - 1, 0),
        "repetition": (frames["repetition"] - 1, 0),
        "set": (0, 0),
        "segment": (segments - 1, 0),
    }
    return "\n".join(
        f"      <{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center></{name}>"
        for name, (maximum, centre) in limits.items()
    )


def _calibration(plan: ScanPlan) -> str:
    """Mode of calibration, and for lines that shift from frame to frame the counter that they shift with."""
    if plan.sampling == "interleaved" and not plan.is_radial:
        dimension = f"\n      <interleavingDimension>{plan.frame_counter}</interleavingDimension>"
        return f"<calibrationMode>interleaved</calibrationMode>{dimension}"
    if plan.is_radial:
        return "<calibrationMode>other</calibrationMode>"
    embedded = plan.sampling != "full" and plan.acs_lines
    return f"<calibrationMode>{'embedded' if embedded else 'other'}</calibrationMode>"


def _dependency(plan: ScanPlan, prefix: str) -> str:
    if not plan.has_noise_file:
        return ""
    return f"""
    <measurementDependency>
      <dependencyType>Noise</dependencyType>
      <measurementID>{prefix}_{NOISE_UID}</measurementID>
    </measurementDependency>"""


def _coil_labels(plan: ScanPlan) -> str:
    """Names of the coils where the noise is another measurement, by which a Gadgetron brings its coils into order."""
    if not plan.has_noise_file:
        return ""
    return "".join(
        f"\n    <coilLabel><coilNumber>{coil}</coilNumber><coilName>coil_{coil}</coilName></coilLabel>"
        for coil in range(plan.coils)
    )


def _user_parameters(plan: ScanPlan) -> str:
    parameters = {"PilotTone": 1} if plan.pilot_tone else {}
    if plan.gating == "retrospective":
        parameters |= {"RetroGatedImages": plan.frames, "RetroGatedSegmentSize": plan.segments}
    if not parameters:
        return ""
    items = "".join(
        f"\n    <userParameterLong><name>{name}</name><value>{value}</value></userParameterLong>"
        for name, value in parameters.items()
    )
    return f"\n  <userParameters>{items}\n  </userParameters>"


def _waveforms(plan: ScanPlan, trigger_channel: int) -> str:
    if not plan.waveforms:
        return ""
    return f"""
  <waveformInformation>
    <waveformName>ECG</waveformName>
    <waveformType>ecg</waveformType>
    <userParameters>
      <userParameterLong><name>TriggerChannel</name><value>{trigger_channel}</value></userParameterLong>
    </userParameters>
  </waveformInformation>"""


def _space(nx: int, ny: int, fov_x: float, fov_y: float, thickness: float) -> str:
    size = f"<matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>"
    return f"{size}<fieldOfView_mm><x>{fov_x:g}</x><y>{fov_y:g}</y><z>{thickness:g}</z></fieldOfView_mm>"
