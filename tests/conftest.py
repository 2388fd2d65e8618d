"""What all tests share."""

import logging
import shutil
import signal
from collections import Counter

import pytest
from hypothesis import settings

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it
from recon_core.methods import OWN_METHODS
from tests.helpers.paths import ABSENT, REPOSITORY
from tests.helpers.stand_in_ray import stand_in  # noqa: F401 - a fixture

# Where the shell started the tests in the background, this is ignored, by all processes that they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that does other things.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

PACKAGED = REPOSITORY / "weights"
#: How many of the other tests take as long as one with the marker, roughly.
SLOW = 50


@pytest.fixture(scope="session", autouse=True)
def _no_weights(tmp_path_factory):
    """The weights and noise of whoever runs the tests must not change them, nor the weights that come along."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(PACKAGED / "known.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("CINESTREAM_WEIGHTS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # where serve keeps noise
        patch.setattr("recon_core.weights.manifest._packaged", lambda: folder)
        yield


@pytest.fixture(scope="module")
def _coil_maps_once():
    """Where many tests have the same lines, their coil maps of the usual kind are computed once."""
    from recon_core.coils import estimate

    known = {}
    compute = estimate.joint_maps

    def joint_maps(hybrid, measured, near):
        if near is not None:
            return compute(hybrid, measured, near)
        lines = [array.resolve_conj().cpu().contiguous().numpy() for array in (hybrid, measured)]
        key = (hybrid.device, *((array.shape, array.tobytes()) for array in lines))
        if key not in known:
            known[key] = compute(hybrid, measured)
        maps, notes = known[key]
        return maps.clone(), notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "joint_maps", joint_maps)
        yield


@pytest.fixture(autouse=True)
def _only_own_methods_of_this_test():
    """Methods that a test, or what it calls, makes known are unknown afterwards."""
    before = dict(OWN_METHODS)
    yield
    OWN_METHODS.clear()
    OWN_METHODS.update(before)


@pytest.fixture(autouse=True)
def _handlers_format_as_before():
    """A server sets the form of all handlers of its process."""
    handlers = logging.getLogger().handlers
    before = [(handler, handler.formatter) for handler in handlers]
    yield
    for handler, formatter in before:
        handler.setFormatter(formatter)


@pytest.hookimpl(trylast=True)  # after those that are not asked for were taken out
def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that processes which take a file at a time end together."""
    cost = Counter()
    for item in items:
        cost[item.path] += SLOW if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: (-cost[item.path], item.path))


def pytest_terminal_summary(terminalreporter):
    """Say what was not checked for want of data, and where such data would be looked for."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    absent = Counter(reason.partition(ABSENT)[2] for reason in reasons if ABSENT in reason)
    if absent:
        terminalreporter.section("not checked here")
        terminalreporter.line(
            f"{absent.total()} tests need golden vectors or real scans, which are no part of the repository and are "
            "looked for in ../shared:"
        )
        for name, count in sorted(absent.items()):
            terminalreporter.line(f"  {count:3d}  {name}")
