"""Scans through the chain without a server: file to file, many files, and the Python interface for scans."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gadgets.replay.arrays import ScanImages as ScanImages
    from gadgets.replay.arrays import SliceImages as SliceImages
    from gadgets.replay.arrays import reconstruct_file as reconstruct_file
    from gadgets.replay.arrays import reconstruct_stream as reconstruct_stream
    from gadgets.replay.to_file import replay as replay

# Imported when they are first used: the process that plans a batch reconstructs nothing, and needs no torch.
_LAZY = {
    "ScanImages": "arrays",
    "SliceImages": "arrays",
    "reconstruct_file": "arrays",
    "reconstruct_stream": "arrays",
    "replay": "to_file",
}
__all__ = ["ScanImages", "SliceImages", "reconstruct_file", "reconstruct_stream", "replay"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
