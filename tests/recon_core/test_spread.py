"""Slices at a time: by an engine and those who help it, whoever of them dies."""

import os
import signal
import threading

import numpy as np
import pytest

from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import ModelError, ScanStoppedError
from recon_core.options import ReconOptions
from recon_core.spread import HelperGoneError, HelperProcess, Spread
from recon_core.stopping import check, stoppable
from tests.helpers.peers import PATIENCE, wait_until
from tests.recon_core.test_children import is_running

OPTIONS = ReconOptions.of(method="cg_sense", device="cpu")


class Reconstructs:
    """Gives its name, after what a test does first."""

    def __init__(self, name, before=lambda: None):
        self.name, self.before, self.closed = name, before, False

    def reconstruct(self, cine, options):
        self.before()
        return self.name, cine

    def close(self):
        self.closed = True


def test_as_many_as_there_are_work_at_a_time():
    together = threading.Barrier(3, timeout=PATIENCE)
    helpers = [Reconstructs(name, together.wait) for name in "ab"]
    spread = Spread(lambda: Reconstructs("engine", together.wait), helpers)
    assert spread.count == 3
    made = [result() for result in [spread.begin(number, None) for number in range(6)]]
    assert [cine for _, cine in made] == [*range(6)]
    assert sorted(name for name, _ in made[:3]) == ["a", "b", "engine"]
    spread.close()
    assert all(helper.closed for helper in helpers)


def test_errors_are_those_of_who_reconstructs():
    def fail():
        raise ModelError("the method failed")

    spread = Spread(lambda: Reconstructs("engine", fail), [])
    with pytest.raises(ModelError, match="the method failed"):
        spread.begin(0, None)()
    spread.close()


def test_the_slice_of_a_helper_that_dies_is_made_here(caplog):
    gate = threading.Event()

    def die():
        gate.set()
        raise HelperGoneError("it was killed")

    spread = Spread(lambda: Reconstructs("engine", lambda: gate.wait(PATIENCE)), [Reconstructs("a", die)])
    made = [result() for result in [spread.begin(number, None) for number in range(5)]]
    assert made == [("engine", number) for number in range(5)]
    assert caplog.text.count("a process that helped died: it was killed") == 1
    spread.close()


def test_a_slice_can_be_stopped_as_one_of_this_thread():
    spread = Spread(lambda: Reconstructs("engine", check), [])
    with stoppable(lambda: "the peer is gone"), pytest.raises(ScanStoppedError, match="the peer is gone"):
        spread.begin(0, None)()
    spread.close()


def heart(seed=0):
    generator = np.random.default_rng(seed)
    kspace = generator.standard_normal((4, 3, 32, 24, 2), np.float32).view(np.complex64)[..., 0]
    mask = np.zeros((4, 32), bool)
    mask[:, ::2] = mask[:, 12:20] = True
    return CineSlice(kspace * mask[:, None, :, None], mask)


@pytest.mark.slow
def test_a_process_helps_until_it_dies():
    engine, helper = Engine("cpu"), HelperProcess({})
    spread = Spread(lambda: Reconstructs("engine"), [helper])
    slices = [heart(seed) for seed in range(3)]
    try:
        for cine in slices:
            made, expected = helper.reconstruct(cine, OPTIONS), engine.reconstruct(cine, OPTIONS)
            for name in ("image", "maps"):
                np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
            assert (made.method, made.notes, made.units) == (expected.method, expected.notes, expected.units)
        with pytest.raises(ModelError, match="GPU"):
            helper.reconstruct(slices[0], ReconOptions.of(method="cg_sense", device="cuda"))
        os.kill(helper.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(helper.pid))
        with pytest.raises(HelperGoneError, match="SIGKILL"):
            helper.reconstruct(slices[0], OPTIONS)
    finally:
        spread.close()


@pytest.mark.slow
def test_who_is_closed_gives_up_what_it_is_at():
    helper = HelperProcess({})
    gate = threading.Event()
    spread = Spread(lambda: Reconstructs("engine", lambda: gate.wait(PATIENCE)), [helper])
    results = [spread.begin(heart(), OPTIONS) for _ in range(2)]
    gate.set()
    spread.close()
    assert results[0]()[0] == "engine"
    with pytest.raises(ScanStoppedError):
        results[1]()
    wait_until(lambda: not is_running(helper.pid))
