"""What the tests of the methods share."""

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice


def run(method, hybrid, maps, mask, reference=None, **more):
    """Run a method on a slice; parameters as of `slice_of`."""
    return method(slice_of(hybrid, maps, mask, reference, **more))


def slice_of(hybrid, maps, mask, reference=None, **more):
    """A slice; its reference is the average of its frames, or (lines, where they are measured)."""
    lines, measured = reference or time_average(hybrid, mask)
    return HybridSlice(hybrid, mask, maps, lines, measured, **more)
