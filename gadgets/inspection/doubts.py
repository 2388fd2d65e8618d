"""What a physicist would stumble over in a raw file although a replay goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gadgets.inspection.facts import frame_axis
from gadgets.wire.vendor import tick_doubt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gadgets.inspection.statistics import Tally
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import Encoding, ScanHeader
    from recon_core.trust.ranges import Sampling

_UNANNOUNCED = 1.5  # times the acceleration of the header


def doubts_of_scan(header: ScanHeader, settings: Settings, tally: Tally, records: NDArray[np.void]) -> list[str]:
    """Doubts about header, readouts and time stamps."""
    doubts = []
    coils = {shape.coils for shape in tally.shapes if shape.kind == "image"}
    if header.receiver_channels and coils and coils != {header.receiver_channels}:
        came = " and ".join(map(str, sorted(coils)))
        doubts.append(
            f"the header says {header.receiver_channels} coils, the readouts have {came}; these count (coils were "
            "compressed or selected)"
        )
    kinds = {shape.kind for shape in tally.shapes}
    if kinds == {"noise"}:
        doubts.append("this is a measurement of noise, without images; scans that depend on it take it with --noise")
    elif settings.whitening.enabled and "noise" not in kinds:
        named = header.noise_dependency
        where = f"; they are in measurement {named}, give its file with --noise" if named else ""
        doubts.append(f"there are no noise readouts, so the coils are not decorrelated{where}")
    if tally.zero:
        doubts.append(
            f"{tally.zero} readouts hold zeros only; if they stand for lines that were not measured, remove them"
        )
    if tally.gaps:
        doubts.append(
            f"{tally.gaps} scan counters between the first and the last readout did not come; sync data and the end of "
            "the scan count too, so this need not be a loss"
        )
    if len(records) and tally.first_scan_counter > 1:
        doubts.append(
            f"the scan counter begins at {tally.first_scan_counter}: readouts before may be missing, or belong to "
            "another measurement"
        )
    doubts += [
        text for number, encoding in enumerate(header.encodings) for text in _doubts_of_encoding(number, encoding)
    ]
    if any(name.lower() == "pilottone" and value not in ("", "0") for name, value in header.user_parameters.items()):
        doubts.append("a pilot tone was on: it may show as a stripe at the edge along the readout")
    if len(records):
        stamps = records["physiology_time_stamp"][:, 0]
        axis = frame_axis(header, settings, records)
        if stamps.min() == stamps.max() and records[axis].max() == 0:
            doubts.append(
                f"neither the counter {axis} nor the time stamps distinguish frames, so each slice is one image"
                + ("; data of a GE need idx.phase, which its converter does not set" if _is_ge(header) else "")
            )
        elif stamps.min() != stamps.max() and (doubt := tick_doubt(header.vendor, settings.readouts.stamp_tick)):
            doubts.append(doubt)
    return doubts


def unannounced_acceleration(header: ScanHeader, slices: list[CompleteSlice], samplings: list[Sampling]) -> list[str]:
    """An acceleration that the header does not announce: no slice looks complete before the scan is over."""
    doubts = []
    for number, encoding in enumerate(header.encodings):
        found = [one.acceleration for it, one in zip(slices, samplings, strict=True) if it.key.encoding == number]
        if found and not encoding.off_grid and min(found) > _UNANNOUNCED * encoding.acceleration:
            doubts.append(
                f"the header announces an acceleration of {encoding.acceleration}, frames of encoding {number} have "
                f"1 of {min(found):.3g} lines: images are the same, but slices may wait for the end of the scan"
            )
    return doubts


def _is_ge(header: ScanHeader) -> bool:
    return header.vendor.upper().startswith("GE")


def _doubts_of_encoding(number: int, encoding: Encoding) -> list[str]:
    doubts = []
    (nx, ny, _), (fov_x, fov_y, _) = encoding.encoded.matrix, encoding.encoded.field_of_view
    if fov_x > 0 and fov_y > 0 and round((fov_x / fov_y) / (nx / ny)) == 2:
        doubts.append(
            f"encoding {number} has {ny} lines over {fov_y:g} mm, half as far apart in the image as the samples: the "
            "encoded matrix is probably twice too large along y, and images come out stretched; halve it in the header"
        )
    limit = encoding.limits.get("kspace_encoding_step_1")
    if limit and limit.maximum - limit.minimum + 1 > ny:
        doubts.append(
            f"encoding {number} has lines {limit.minimum} to {limit.maximum}, more than its matrix of {ny}; the outer "
            "ones are left out"
        )
    return doubts
