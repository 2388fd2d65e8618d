"""Nothing that a peer sends is an unexpected error, makes an infinite image, or leaves anything behind."""

import contextlib
import io
import logging
import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.connection.server import SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.problems import Problems
from gadgets.settings.settings import Settings
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image
from recon_core.budget import share_freed
from recon_core.errors import CinestreamError
from tests.helpers.hostile import METHODS, SETTINGS, attack, header, items
from tests.helpers.peers import StubEngine, assert_whole_scan, serving

#: What some earlier state of the code stumbled over.
FOUND = (4, 47, 73, 123, 154, 159, 173, 220, 359, 1743, 2066)


@pytest.fixture(scope="module")
def engine():
    return SharedEngine()


def reconstruct(seed, engine):
    """A drawn scan through a drawn method: what went wrong, in words."""
    generator = np.random.default_rng(seed)
    text, messages = header(generator), items(generator)
    method, settings = str(generator.choice(METHODS)), SETTINGS[int(generator.integers(len(SETTINGS)))]
    problems, told = Problems(), []
    with contextlib.suppress(CinestreamError), np.errstate(all="ignore"):
        chain = Chain(parse_header(text), Settings.of(**{"method": method, **settings}), engine, problems)
        images = (message for message in chain(iter(messages)) if isinstance(message, Image))
        told += ["an image is not finite" for image in images if not np.isfinite(image.data).all()]
    told += [problem.text for problem in problems]
    return [
        text
        for text in told
        if "unexpected error" in text or " failed on a slice" in text or text == "an image is not finite"
    ]


def assert_no_surprise(seed, engine):
    assert reconstruct(seed, engine) == [], f"seed {seed}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", FOUND)
def test_scans_that_once_were_a_surprise(seed, engine):
    assert_no_surprise(seed, engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_drawn_scans_are_no_surprise(engine):
    for seed in range(10_000, 11_000):
        assert_no_surprise(seed, engine)


def attack_all(seeds, at_once=4):
    """Attack a server by several peers at once: the memory of this process in MiB at the end."""
    silenced = np.errstate(all="ignore")
    share_freed()

    def work(some):
        for seed in some:
            attack(server.address, np.random.default_rng(seed))

    with silenced, serving(StubEngine(), SessionOptions(memory_bytes=256 << 20, idle_seconds=5.0)) as server:
        threads = [threading.Thread(target=work, args=(seeds[i::at_once],)) for i in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_whole_scan(server)
        budget, queues = server._resources.budget, server._resources.queues
    assert (budget.used, queues.used) == (0, 0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def _two_attacks():
    """Memory after either, and what was logged."""
    log = io.StringIO()
    logging.getLogger("cinestream").addHandler(logging.StreamHandler(log))
    before, after = (attack_all(range(first, first + 2_000)) for first in (100_000, 102_000))
    return before, after, log.getvalue()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_drawn_sessions_are_no_surprise(caplog):
    with caplog.at_level(logging.ERROR, "cinestream"):
        attack_all(range(60))
    assert "unexpected error" not in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_many_drawn_sessions_leave_nothing():
    """Also no memory: after what libraries and allocators take at first it stays where it is."""
    with multiprocessing.get_context("spawn").Pool(1) as process:  # without what other tests have left
        before, after, log = process.apply(_two_attacks)
    assert "unexpected error" not in log
    assert after < before + 20
