"""What the tests of the methods share."""

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice


def run(method, hybrid, maps, mask, reference=None, **more):
    """Run a method on a slice; its reference is the average of its frames, or (lines, where they are measured)."""
    lines, measured = reference or time_average(hybrid, mask)
    return method(HybridSlice(hybrid, mask, maps, lines, measured, **more))
