"""What the tests of the methods share."""

import gc

from torch.autograd.profiler import profile

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice


def run(method, hybrid, maps, mask, reference=None, **more):
    """Run a method on a slice; parameters as of `slice_of`."""
    return method(slice_of(hybrid, maps, mask, reference, **more))


def slice_of(hybrid, maps, mask, reference=None, **more):
    """A slice; its reference is the average of its frames, or (lines, where they are measured)."""
    lines, measured = reference or time_average(hybrid, mask)
    return HybridSlice(hybrid, mask, maps, lines, measured, **more)


def peak_bytes(function):
    """The highest sum of what torch allocated and not yet freed while `function` ran."""
    gc.disable()  # what others left is not to be freed meanwhile
    try:
        with profile(profile_memory=True) as recorder:
            function()
    finally:
        gc.enable()
    events = recorder.kineto_results.events()
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
