import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.errors import SettingsError
from recon_core.quality import PATTERNS, Sampling, TrainingRange
from recon_core.simulate.sampling import interleaved_mask, uniform_mask, variable_density_mask


def described(mask, coils=8, samples=96):
    return Sampling.of(np.asarray(mask, bool), coils, samples)


def test_a_constant_pattern_with_reference_lines():
    scan = described(uniform_mask(10, 64, 4, 12))
    assert scan.pattern == "constant"
    assert scan.frames == 10
    assert (scan.coils, scan.lines, scan.samples) == (8, 64, 96)
    assert scan.centre_lines in (12, 13)  # the next regular line may join
    assert scan.acceleration == pytest.approx(64 / uniform_mask(10, 64, 4, 12)[0].sum())
    assert scan.empty_frames == 0


@pytest.mark.parametrize("step", [2, 3, 4, 7])
def test_shifting_lines_are_interleaved(step):
    scan = described(interleaved_mask(12, 60, step))
    assert scan.pattern == "interleaved"
    assert scan.centre_lines == 0
    assert scan.acceleration == pytest.approx(12 * 60 / interleaved_mask(12, 60, step).sum())


def test_shifting_lines_with_a_common_centre_are_interleaved():
    mask = interleaved_mask(12, 60, 4)
    mask[:, 24:36] = True
    scan = described(mask)
    assert scan.pattern == "interleaved"
    assert scan.centre_lines == 12


def test_variable_density_is_random():
    scan = described(variable_density_mask(10, 96, 5, 8))
    assert scan.pattern == "random"
    assert scan.centre_lines >= 8


def test_complete_and_empty():
    full = described(np.ones((5, 32)))
    assert (full.pattern, full.acceleration, full.centre_lines) == ("full", 1.0, 32)
    empty = described(np.zeros((5, 32)))
    assert (empty.empty_frames, empty.centre_lines) == (5, 0)
    assert empty.acceleration == np.inf


def test_empty_frames_do_not_count():
    mask = np.tile(uniform_mask(1, 64, 4, 12), (6, 1))
    mask[1::2] = False
    scan = described(mask)
    assert (scan.pattern, scan.empty_frames) == ("constant", 3)
    assert scan.acceleration == pytest.approx(64 / mask[0].sum())


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_mask_can_be_described(frames, lines, random):
    mask = np.array([[random.random() < 0.4 for _ in range(lines)] for _ in range(frames)])
    scan = described(mask)
    assert scan.pattern in PATTERNS
    assert 0 <= scan.centre_lines <= lines
    assert scan.acceleration >= 1


TRAINED = {"acceleration": [4, 11], "frames": [8, 30], "patterns": ["interleaved", "random"]}


def test_a_range_survives_the_manifest():
    trained = TrainingRange.parse(TRAINED)
    assert trained.mapping() == TRAINED
    assert TrainingRange.parse(trained.mapping()) == trained
    assert trained.describe() == "acceleration 4 to 11, frames 8 to 30, interleaved or random pattern"


def test_what_lies_outside_is_named():
    trained = TrainingRange.parse(TRAINED)
    assert trained.outside(described(interleaved_mask(12, 64, 4))) == []
    assert trained.outside(described(uniform_mask(5, 64, 3, 0))) == [
        "acceleration 3.05, trained for 4 to 11",
        "frames 5, trained for 8 to 30",
        "constant pattern, trained for interleaved or random",
    ]
    assert trained.outside(described(np.zeros((12, 64))))[0] == "acceleration inf, trained for 4 to 11"


def test_nothing_recorded_refuses_nothing():
    assert TrainingRange().outside(described(np.zeros((1, 1)))) == []


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"speed": [1, 2]}, "'speed'"),
        ({"frames": [3]}, "least, most"),
        ({"frames": [5, 3]}, r"\[5, 3\]"),
        ({"frames": "4:5"}, "least, most"),
        ({"frames": [True, 3]}, "least, most"),
        ({"frames": [1, float("nan")]}, "least, most"),
        ({"patterns": ["spiral"]}, "spiral"),
        ({"patterns": "random"}, "patterns"),
    ],
)
def test_a_broken_range_is_refused(mapping, words):
    with pytest.raises(SettingsError, match=words):
        TrainingRange.parse(mapping)
