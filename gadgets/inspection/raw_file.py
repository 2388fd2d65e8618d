"""What is in a raw file, what a pipeline would do with it, and what looks wrong.

The file runs through the very chain that `replay` uses; only the engine looks at the slices instead of reconstructing
them. So the report cannot disagree with what a replay does.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from gadgets.chain import Chain
from gadgets.files.progress import with_progress
from gadgets.files.raw import open_scan
from gadgets.inspection.doubts import doubts_of_scan, unannounced_acceleration
from gadgets.inspection.facts import Spokes, header_facts, plan_facts, readout_facts, slice_facts, time_facts
from gadgets.inspection.recording import RecordingEngine
from gadgets.inspection.report import Finding, Inspection
from gadgets.inspection.statistics import Tally
from gadgets.problems import Problems
from gadgets.settings.settings import Settings, apply
from gadgets.wire.header import parse_header
from recon_core.data import CineSlice, Reconstruction
from recon_core.errors import CinestreamError

if TYPE_CHECKING:
    from pathlib import Path

    from gadgets.slices.complete import CompleteSlice


def inspect(source: Path, settings: Settings, group: str = "dataset") -> Inspection:
    """Look through a raw file once, block by block.

    Parameters
    ----------
    source
        ISMRMRD HDF5 file, or a stream as ``--save-raw`` leaves it.
    settings
        Of the pipeline that would reconstruct it.
    group
        HDF5 group of the raw data.

    Raises
    ------
    CinestreamError
        If the file cannot be opened, or its header cannot be used.
    """
    report = Inspection(f"{source}, group {group}")
    problems, engine, tally = Problems(), RecordingEngine(), Tally()
    slices: list[CompleteSlice] = []
    spokes: list[Spokes | None] = []
    # windows in real time are parts of the same slices
    settings = apply(settings, {"preview": "none", "g_factor": False, "realtime": "off"})

    def watch(complete: CompleteSlice, _: Reconstruction) -> None:
        # only what is small, so that slices do not pile up
        mask = complete.cine.mask
        spokes.append(Spokes.of(complete.cine))
        nothing = CineSlice(np.empty((len(mask), 0, mask.shape[1], 0), np.complex64), mask)
        slices.append(dataclasses.replace(complete, cine=nothing))

    with open_scan(source, group) as scan:
        header = parse_header(scan.header)
        failures = []
        try:
            chain = Chain(header, settings, lambda: engine, problems, watch)
            for _ in chain(with_progress(tally.watching(scan.items), scan.readouts, "looking")):
                pass
        except CinestreamError as error:
            failures.append(str(error))
    records = tally.records()
    report.sections["Header"] = header_facts(header)
    report.sections["Readouts"] = readout_facts(header, tally)
    if len(records):
        report.sections["Time"] = time_facts(header, settings, records, slices, problems)
        report.sections["Slices"] = slice_facts(records, slices, engine.samplings, spokes)
        report.sections[f"Reconstruction with {settings.method}"] = plan_facts(settings, tally, engine, slices)
    found = [Finding(failure, damage=True) for failure in failures]
    # the error that ends a scan without images repeats what led to it
    found += [Finding(str(one), one.damage) for one in problems if not any(str(one) in text for text in failures)]
    doubts = doubts_of_scan(header, settings, tally, records) + unannounced_acceleration(
        header, slices, engine.samplings
    )
    found += [Finding(text, damage=False) for text in doubts]
    report.findings = sorted(found, key=lambda finding: not finding.damage)
    return report
