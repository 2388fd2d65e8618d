"""Scans through the chain in one process, without a server: file to file, and the Python interface for scans."""

from gadgets.replay.arrays import ScanImages, SliceImages, reconstruct_file, reconstruct_stream
from gadgets.replay.to_file import replay

__all__ = ["ScanImages", "SliceImages", "reconstruct_file", "reconstruct_stream", "replay"]
