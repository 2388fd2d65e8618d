"""What there is to look at of scans, whoever keeps it: this process, or workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gadgets.chain import Watch
    from gadgets.wire.header import ScanHeader


class Images(Protocol):
    """What there is to see of scans; made only for who looks."""

    @property
    def changes(self) -> int:
        """Grows with whatever is new."""

    def facts(self, scan: str) -> dict[str, Any]:
        """Which loops there are of a scan, and its SNR, as JSON has them; nothing of a scan without images."""

    def loop(self, scan: str, number: int) -> bytes:
        """One of these loops with its picture, as JSON; empty if it is not kept any more."""

    def maps(self, scan: str, number: int) -> bytes:
        """The coil maps of its slice as PNG; empty if they are not kept any more."""


class Viewer(Images, Protocol):
    """Somebody who looks at the slices of running scans; what fails there must not reach them."""

    def begin(self, scan: str, header: ScanHeader) -> Watch:
        """Give what is to be called with every slice of a scan and its reconstruction."""

    def scans(self) -> list[str]:
        """Scans that have images."""
