"""The errors of cinestream: one hierarchy, from the wire to the network.

A message says what was expected, what came (with slice or scan counter where that is known) and what the user can do.
The same text reaches the log, the shell and the client at the other end of a connection.
"""

from __future__ import annotations


class CinestreamError(Exception):
    """Base of every error raised on purpose by cinestream."""


class ProtocolError(CinestreamError):
    """The peer broke the message protocol: unknown id, forged length, wrong order, early end of stream."""


class HeaderError(CinestreamError):
    """The scan header is missing, unreadable, or asks for something that is not supported."""


class DataError(CinestreamError):
    """Readouts do not fit the scan they belong to."""


class SettingsError(CinestreamError):
    """A pipeline, a setting or a command-line value is unknown or has the wrong type."""


class ModelError(CinestreamError):
    """A reconstruction method is unknown, lacks its weights, or failed."""


class ResourceError(CinestreamError):
    """The machine has not enough of something: disk, memory, ports."""


class ScanStoppedError(CinestreamError):
    """A scan was stopped before its end: its peer is gone, or the server ends."""


class ReconstructionWarning(UserWarning):
    """The images are not what was asked for: another method took over, or they are doubtful."""
