"""What the converters of the vendors mean by fields that ISMRMRD leaves open: one table, and settings that overrule it.

Whether a sender removed the readout oversampling depends on the sender rather than on the scanner, and the length of
the readouts shows it (`gadgets.preparation.readouts.ReadoutGrid`), unless its converter is known never to do so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gadgets.problems import Kind
from recon_core.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.wire.header import Encoding, ScanHeader

#: Time in ms after which the clock of the time stamps begins again.
DAY = 86_400_000.0

_PLAIN_TICK = 1.0  # ms, where nothing is known


@dataclass(frozen=True)
class Vendor:
    """How the raw data of a vendor are to be read."""

    name: str
    """How ``systemVendor`` begins, in capitals."""
    tick: float | None
    """Tick of the time stamps in ms; None if it is not known."""
    center_in_readouts: bool = False
    """``idx.user[5]`` of a readout is the line of the k-space centre."""
    sorts_phases: bool = False
    """The scanner sorts the cardiac phases itself, and says the RR interval in the second physiology time stamp."""
    keeps_oversampling: bool = False
    """The converter never removes the readout oversampling; the encoded matrix is that of the interpolated image."""


_VENDORS = (
    Vendor("SIEMENS", 2.5, center_in_readouts=True),
    Vendor("PHILIPS", 1.0, sorts_phases=True, keeps_oversampling=True),
    Vendor("CINESTREAM", 2.5),
)
_UNKNOWN = Vendor("", None)


def find_vendor(name: str) -> Vendor:
    """The row of the table for ``systemVendor`` of a header; an empty one where there is none."""
    return next((vendor for vendor in _VENDORS if name.upper().startswith(vendor.name)), _UNKNOWN)


def tick_length(vendor: str, wanted: float = 0.0) -> float:
    """Length of a tick of the time stamps in ms.

    Parameters
    ----------
    vendor
        As the header has it.
    wanted
        What the settings say; 0 goes by the vendor.
    """
    return wanted or find_vendor(vendor).tick or _PLAIN_TICK


def tick_doubt(vendor: str, wanted: float = 0.0) -> str:
    """Say what `tick_length` assumed; empty where it is known."""
    if wanted or find_vendor(vendor).tick:
        return ""
    name = f"of the vendor {vendor!r}" if vendor else "without a vendor in the header"
    return f"the ticks of time stamps {name} are not known; {_PLAIN_TICK:g} ms is taken, stamp_tick says otherwise"


def center_line(
    header: ScanHeader, encoding: Encoding, first: NDArray[np.void], problems: Problems, choice: str = "auto"
) -> int:
    """The line of the k-space centre.

    Siemens data carry it in every readout (``idx.user[5]``), and only there rightly for partial Fourier scans.

    Parameters
    ----------
    header
        The scan's header.
    encoding
        The one of the readouts.
    first
        Acquisition header of its first readout.
    problems
        Where to note a header that cannot be believed.
    choice
        ``auto`` believes the readouts of vendors that say it there, ``header`` the encoding limits, ``readouts`` the
        readouts of any vendor; or the number of the line.

    Raises
    ------
    SettingsError
        If the number lies outside of the matrix.
    """
    limit = encoding.limits.get("kspace_encoding_step_1")
    rows = encoding.encoded.matrix[1]
    center = limit.center if limit else rows // 2
    if choice.isdecimal():
        if int(choice) >= rows:
            raise SettingsError(f"center_line is {choice}, but the encoded matrix has lines 0 to {rows - 1}")
        return int(choice)
    if choice == "header":
        return center
    own = int(first["idx"]["user"][5])
    low, high = (limit.minimum, limit.maximum) if limit else (0, rows - 1)
    believed = choice == "readouts" or (limit is not None and find_vendor(header.vendor).center_in_readouts)
    if believed and low < own <= high:
        if own != center:
            text = (
                f"the header puts the k-space centre at line {center}, the readouts at {own}; the readouts are believed"
            )
            problems.add(Kind.CENTER_LINE, text, damage=False, pixels=True)
        return own
    if choice == "readouts":
        text = f"center_line=readouts, but idx.user[5] of the readouts is {own}, expected {low + 1} to {high}"
        problems.add(Kind.CENTER_LINE, f"{text}; line {center} of the header is taken", damage=False, pixels=True)
        return center
    if limit and center == 0 and limit.maximum > 1:
        center = rows // 2
        text = f"the header puts the k-space centre at line 0, which no scan measures first; line {center} is taken"
        problems.add(Kind.CENTER_LINE, text, damage=False, pixels=True)
    return center
