"""The stream side of cinestream: ISMRMRD in, ISMRMRD out.

>>> from pathlib import Path
>>> from gadgets import reconstruct_file
>>> from gadgets.simulation import ScanPlan, write_simulation
>>> plan = ScanPlan(matrix_x=64, matrix_y=48, frames=6, slices=2, coils=4, acceleration=2)
>>> truth = write_simulation(plan, Path("scan.h5"))
>>> for cine in reconstruct_file("scan.h5", pipeline="cg_sense"):
...     print(cine.slice, cine.image.shape, cine.method)
0 (6, 48, 64) cg_sense
1 (6, 48, 64) cg_sense
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gadgets.replay import ScanImages as ScanImages
    from gadgets.replay import SliceImages as SliceImages
    from gadgets.replay import reconstruct_file as reconstruct_file
    from gadgets.replay import reconstruct_stream as reconstruct_stream

__version__ = "0.1.0"
__all__ = ["ScanImages", "SliceImages", "__version__", "reconstruct_file", "reconstruct_stream"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("gadgets.replay"), name)
