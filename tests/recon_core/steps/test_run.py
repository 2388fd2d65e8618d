import dataclasses

import numpy as np
import pytest

from recon_core.classical.kt_sense import KtSense
from recon_core.data import CineSlice, Receiver
from recon_core.engine import Engine
from recon_core.errors import ModelError
from recon_core.inference import start
from recon_core.options import ReconOptions
from recon_core.steps.pace import Pace
from recon_core.trust.ranges import TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights.manifest import find_weights, write_entry
from tests.helpers.networks import write_tiny_chain, write_tiny_weights

FACTS = {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0), "range": TrainingRange()}


@pytest.fixture
def calls(monkeypatch):
    """Samples of each run of kt_sense."""
    seen = []
    original = KtSense.__call__

    def counted(self, data):
        seen.append(self._options.samples)
        return original(self, data)

    monkeypatch.setattr(KtSense, "__call__", counted)
    return seen


@pytest.fixture
def reconstruct(tmp_path, monkeypatch):
    """A function that reconstructs noise with a tiny network that starts from kt_sense and is compared with it."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))

    def reconstruct(facts=(), times=1.0, empty=(), **options):
        write_tiny_weights(tmp_path, "crunet_mr")
        write_entry(tmp_path, dataclasses.replace(find_weights("crunet_mr", ""), **{**FACTS, **dict(facts)}))
        kspace = np.random.default_rng(0).standard_normal((6, 3, 24, 16, 2), np.float32).view(np.complex64)[..., 0]
        mask = np.zeros((6, 24), bool)
        mask[:, ::2] = True
        mask[list(empty)] = False
        cine = CineSlice(np.float32(times) * kspace * mask[:, None, :, None], mask, receiver=Receiver(whitened=True))
        return Engine("cpu").reconstruct(cine, ReconOptions.of(**{"method": "crunet_mr", **options}))

    return reconstruct


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"extra_series": "fallback"},
        {"outside_range": "note", "extra_series": "difference"},
        {"outside_range": "beside"},
    ],
)
def test_kt_sense_runs_once(reconstruct, calls, monkeypatch, options):
    """As start, for comparison, as fallback and beside; the images are those of separate runs."""
    alone = {"weighing": None}
    once = reconstruct(alone, **options)
    assert len(calls) == 1
    monkeypatch.setattr(start, "METHODS_AS_START", ())
    apart = reconstruct(alone, **options)
    assert len(calls) > 2
    for ours, theirs in ((once, apart), (once.beside, apart.beside)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours.image, theirs.image)
            assert (ours.notes, ours.doubts, ours.method) == (theirs.notes, theirs.doubts, theirs.method)
            assert sorted(ours.extra) == sorted(theirs.extra)


@pytest.mark.parametrize("as_start", [True, False])
def test_what_is_noted_of_the_data_is_said_with_the_image_of_a_network(reconstruct, monkeypatch, as_start):
    """Although it is k-t SENSE, which the network starts from, that sees it."""
    if not as_start:
        monkeypatch.setattr(start, "METHODS_AS_START", ())
    result = reconstruct(times=100.0, empty=[2], outside_range="note")
    assert result.method == "crunet_mr"
    for text in ("what is in the corners of k-space has", "frames without a line are predicted from the others: 2"):
        assert sum(text in note for note in result.notes) == 1, text


def test_the_uncertainty_of_a_weighed_image_is_that_of_what_it_is_weighed_against(reconstruct, calls):
    weighed = reconstruct(extra_series="uncertainty", outside_range="note")
    assert weighed.method == "crunet_mr"
    assert calls == [8]
    alone = reconstruct(extra_series="uncertainty", method="kt_sense")
    np.testing.assert_array_equal(weighed.extra["uncertainty"], alone.extra["uncertainty"])
    apart = reconstruct({"weighing": None}, extra_series="uncertainty", outside_range="note")
    assert "uncertainty" not in apart.extra
    assert any(note.startswith("no uncertainty: the image of crunet_mr is not weighed") for note in apart.notes)


def test_samples_are_for_what_was_asked(reconstruct, calls):
    """Those that tell how well the start is known are nobody's series; the user's are at least as many."""
    result = reconstruct()
    assert calls == [1]
    assert not result.extra
    reconstruct(kt_samples=3)
    assert calls == [1, 3]
    assert not reconstruct({"weighing": None}).extra  # how far its image may be from that of kt_sense
    assert calls == [1, 3, 1]


def test_what_an_image_is_weighed_against_runs_once_too(reconstruct, calls):
    """Whatever the network starts from; its own start is not weighed against."""
    result = reconstruct({"start": "zero_filled"}, outside_range="note", extra_series="difference")
    assert calls == [1]
    assert any("weighed against kt_sense" in note for note in result.notes)


def test_where_the_network_does_not_run_nothing_is_sampled(reconstruct, calls):
    result = reconstruct({"weighing": None, "range": TrainingRange.parse({"acceleration": [8, 12]})})
    assert (result.method, calls) == ("kt_sense", [0])


def test_rounds_that_are_asked_for_are_those_of_the_start(reconstruct):
    few, many = (reconstruct(outside_range="note", kt_rounds=rounds).image for rounds in (1, 7))
    assert not np.allclose(few, many)


def test_where_the_start_fails_the_fallback_takes_over(reconstruct, monkeypatch):
    def fail(*_):
        raise ModelError("no start")

    monkeypatch.setattr(KtSense, "__call__", fail)
    result = reconstruct(fallback="cg_sense")
    assert result.method == "cg_sense"
    assert "cg_sense instead of crunet_mr: no start" in result.notes


def test_where_weights_that_are_started_from_cannot_take_the_scan_the_fallback_takes_over(tmp_path, monkeypatch):
    """As where the method itself cannot, whatever is to be done with doubtful images."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "promptmr", "unet3d_mr")
    rng = np.random.default_rng(0)
    points = rng.random((6, 24, 16)) < 0.5
    kspace = rng.standard_normal((6, 3, 24, 16, 2), np.float32).view(np.complex64)[..., 0] * points[:, None]
    cine = CineSlice(kspace, points.any(-1), receiver=Receiver(whitened=True), points=points)
    result = Engine("cpu").reconstruct(cine, ReconOptions.of(method="unet3d_mr", outside_range="note"))
    assert result.method == "kt_sense"
    why = "it starts from the image of promptmr, and promptmr needs whole lines"
    assert any(note.startswith(f"kt_sense instead of unet3d_mr: {why}") for note in result.notes)


def test_the_pace_of_a_network_has_that_of_its_start(reconstruct, monkeypatch):
    """A start with samples takes longer than the method of its name does by itself."""
    learnt = []
    monkeypatch.setattr(Pace, "learn", lambda _, job, seconds: learnt.append((job.method, seconds > 0)))
    alone = {"weighing": None}
    reconstruct({**alone, "range": TrainingRange.parse({"acceleration": [8, 12]})})
    assert learnt == [("kt_sense", True)]
    reconstruct(alone)
    assert learnt[1:] == [("crunet_mr", True)]
    reconstruct({**alone, "start": "cg_sense"})
    assert learnt[2:] == [("crunet_mr", True), ("kt_sense", True)]
