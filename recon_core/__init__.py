"""The physics and the networks of cinestream: arrays in, arrays out, nothing known of streams or files.

>>> from recon_core import reconstruct
>>> from recon_core.simulate.kspace import simulate_cine
>>> scan = simulate_cine(frames=8, matrix=(64, 72), coils=4)
>>> result = reconstruct(scan.kspace, method="cg_sense", noise_covariance=scan.noise_covariance)
>>> result.image.shape, result.method
((8, 64, 72), 'cg_sense')
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from recon_core.printable import make_log_printable

if TYPE_CHECKING:
    from recon_core.api import reconstruct as reconstruct
    from recon_core.data import Reconstruction as Reconstruction
    from recon_core.errors import ReconstructionWarning as ReconstructionWarning
    from recon_core.own_methods import register_method as register_method

# OpenMP threads that wait spin, unless this is set before torch is imported. On a machine that does anything else at
# the same time (a Gadgetron, another scan) they then fight for the cores: measured 8 times slower with two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

make_log_printable("cinestream")  # texts of peers and of files are in it

# Imported when they are first used, so that `import recon_core.errors` stays light.
_LAZY = {
    "Reconstruction": "data",
    "ReconstructionWarning": "errors",
    "reconstruct": "api",
    "register_method": "own_methods",
}
__all__ = ["Reconstruction", "ReconstructionWarning", "reconstruct", "register_method"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
