"""Noise readouts of a raw file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gadgets.files.raw import open_scan
from gadgets.preparation.noise_statistics import KnownNoise, NoiseStatistics
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Readouts
from recon_core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def read_noise(path: Path, group: str = "dataset") -> KnownNoise:
    """Read the noise readouts of a raw file.

    Raises
    ------
    DataError
        If it holds none that can be used.
    CinestreamError
        If it cannot be read.
    """
    with open_scan(path, group) as scan:
        statistics = NoiseStatistics(parse_header(scan.header).coil_labels)
        for item in scan.items:
            if isinstance(item, Readouts):
                statistics.add(item[item.flagged(AcquisitionFlag.NOISE)])
    if not statistics.samples:
        raise DataError(f"{path}, group {group!r}, has no noise readouts (flag NOISE) with samples; name another file")
    return KnownNoise(statistics, f"file {path.name}, group {group}")
