import threading
import time

import numpy as np
import pytest
import torch

from recon_core.data import CineSlice
from recon_core.engine import Engine
from recon_core.errors import ScanStoppedError
from recon_core.options import ReconOptions
from recon_core.stopping import can_stop, check, checked_networks, stoppable


def cine(frames=12, coils=4, size=48):
    generator = np.random.default_rng(0)
    mask = np.zeros((frames, size), np.bool_)
    mask[:, ::2] = mask[:, size // 2 - 4 : size // 2 + 4] = True
    shape = (frames, coils, size, size, 2)
    kspace = generator.standard_normal(shape, dtype=np.float32).view(np.complex64)[..., 0]
    return CineSlice(kspace * mask[:, None, :, None], mask)


class Countdown:
    """Says stop from some question on."""

    def __init__(self, after):
        self.after = after
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return "enough" if self.asked > self.after else ""


@pytest.fixture(autouse=True)
def ask_always(monkeypatch):
    monkeypatch.setattr("recon_core.stopping._ASK_SECONDS", 0.0)


def test_nothing_stops_by_itself():
    assert not can_stop()
    check()


def test_once_stopped_it_stays_so():
    why = Countdown(1)
    with stoppable(why):
        assert can_stop()
        check()
        for _ in range(3):
            with pytest.raises(ScanStoppedError, match="enough"):
                check()
    assert why.asked == 2
    check()


def test_it_is_not_asked_more_often_than_it_needs(monkeypatch):
    monkeypatch.setattr("recon_core.stopping._ASK_SECONDS", 3600.0)
    why = Countdown(5)
    with stoppable(why):
        for _ in range(100):
            check()
    assert why.asked == 1


def test_other_threads_go_on():
    with stoppable(lambda: "enough"):
        thread = threading.Thread(target=check)
        thread.start()
        thread.join()
        with pytest.raises(ScanStoppedError):
            check()


def test_layers_of_networks_are_asked():
    network = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
    why = Countdown(2)
    with stoppable(why), checked_networks(), pytest.raises(ScanStoppedError):
        network(torch.zeros(2))
    assert why.asked == 3
    network(torch.zeros(2))


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense", "grappa", "low_rank_sparse", "kt_sense"])
def test_every_method_stops_at_any_step(method):
    """Nothing takes over for a method that was stopped, and the engine is free for the next slice."""
    engine, options = Engine("cpu"), ReconOptions.of(method=method)
    steps = Countdown(10**9)
    with stoppable(steps):
        whole = engine.reconstruct(cine(), options)
    for after in {0, steps.asked // 2, steps.asked - 1}:
        why = Countdown(after)
        with stoppable(why), pytest.raises(ScanStoppedError, match="enough"):
            engine.reconstruct(cine(), options)
        assert why.asked == after + 1
    again = engine.reconstruct(cine(), options)
    assert again.method == whole.method == method
    np.testing.assert_array_equal(again.image, whole.image)


def test_waiting_for_a_turn_stops():
    engine = Engine("cpu")
    begin = time.monotonic()
    with engine._turns.turn(), stoppable(Countdown(1)), pytest.raises(ScanStoppedError):
        engine.reconstruct(cine(), ReconOptions())
    assert time.monotonic() - begin < 5
    engine.reconstruct(cine(), ReconOptions())
