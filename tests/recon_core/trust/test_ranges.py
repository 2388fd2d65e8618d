import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.errors import SettingsError
from recon_core.simulate.sampling import interleaved_mask, uniform_mask, variable_density_mask
from recon_core.trust.ranges import DEFAULT_CHANGE, PATTERNS, ImageFigures, Limits, Sampling, TrainingRange


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
        ({"patterns": ["zigzag"]}, "zigzag"),
        ({"patterns": "random"}, "patterns"),
    ],
)
def test_a_broken_range_is_refused(mapping, words):
    with pytest.raises(SettingsError, match=words):
        TrainingRange.parse(mapping)


def test_the_snr_is_checked_where_it_is_known():
    trained = TrainingRange.parse({"snr": [10, 80]})
    assert trained.mapping() == {"snr": [10, 80]}
    assert trained.describe() == "SNR 10 to 80"
    mask = np.ones((1, 4), bool)
    assert trained.outside(Sampling.of(mask, 1, 4)) == []
    assert trained.outside(Sampling.of(mask, 1, 4, 40.0)) == []
    assert trained.outside(Sampling.of(mask, 1, 4, 5.25)) == ["SNR 5.25, trained for 10 to 80"]


LIMITS = {"residual": 0.1, "change": 0.35}


def test_limits_survive_the_manifest():
    assert Limits.parse(LIMITS).mapping() == LIMITS
    assert Limits.parse({"change": 1}) == Limits(change=1.0)
    assert Limits.parse(LIMITS).describe() == "residual up to 10 %, change up to 35 %"
    assert Limits.parse({**LIMITS, "least_change": 0.1}).mapping() == {**LIMITS, "least_change": 0.1}
    assert Limits(least_change=0.1).describe() == "change from 10 % up to 80 %"
    assert Limits().mapping() == {}
    assert Limits().describe() == ""


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"speed": 1}, "limits of an image have no 'speed'"),
        ({"residual": 0}, "residual of limits must be a positive number, got 0"),
        ({"residual": True}, "must be a positive number"),
        ({"change": "0.3"}, "change of limits must be a positive number, got '0.3'"),
        ({"change": float("inf")}, "must be a positive number"),
        ({"change": float("nan")}, "must be a positive number"),
        ({"change": 0.3, "least_change": 0.4}, "least_change of limits must be below the change of 0.3, got 0.4"),
        ({"least_change": 0.9}, "must be below the change of 0.8, got 0.9"),
    ],
)
def test_other_limits_are_refused(mapping, message):
    with pytest.raises(SettingsError, match=message):
        Limits.parse(mapping)


def test_what_exceeds_its_limit_is_said():
    limits = Limits.parse(LIMITS)
    assert limits.objections(ImageFigures(residual=0.1, change=0.35, motion=1.0), "cg_sense") == []
    assert limits.objections(ImageFigures(), "cg_sense") == []
    assert limits.objections(ImageFigures(residual=0.2, change=0.61, motion=0.0), "cg_sense") == [
        "leaves 20 % of the signal in the data unexplained, at most 10 % on scans of its training",
        "differs by 61 % from that of cg_sense, at most 35 % on scans of its training",
    ]
    assert limits.objections(ImageFigures(residual=0.1, change=0.2, motion=0.0), "cg_sense") == [
        "stands still while the data move"
    ]


def test_an_image_with_nothing_to_gain_is_left_to_cg_sense():
    limits = Limits(least_change=0.1)
    assert limits.objections(ImageFigures(change=0.1), "cg_sense") == []
    assert limits.objections(ImageFigures(residual=0.1), "cg_sense") == []  # not known
    assert limits.objections(ImageFigures(change=0.0999), "cg_sense") == [
        "differs by 9.99 % from that of cg_sense, and below 10 % there was nothing to gain on scans of its training"
    ]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_what_is_too_large_to_be_measured_exceeds_every_limit(value):
    assert (
        len(Limits(residual=1e20, change=1e20).objections(ImageFigures(residual=value, change=value), "cg_sense")) == 2
    )


def test_without_recorded_limits_those_by_default_hold():
    assert Limits(residual=0.1).objections(ImageFigures(change=DEFAULT_CHANGE), "cg_sense") == []
    (reason,) = Limits(residual=0.1).objections(ImageFigures(change=2 * DEFAULT_CHANGE), "cg_sense")
    assert reason == "differs by 160 % from that of cg_sense, at most 80 % by default"


def test_frames_repeat_each_other_where_most_that_have_any_samples_have_the_same():
    lines = np.zeros((4, 12), bool)
    lines[:, ::3] = True
    points = np.zeros((4, 12, 8), bool)
    points[:, ::3, 2:5] = True
    for mask in (lines, points):
        assert described(mask).repeats
        gap = mask.copy()
        gap[1] = False
        assert described(gap).repeats
        lost = mask.copy()
        lost[1, 3] = False
        assert described(lost).repeats
        other = mask.copy()
        other[2] = np.roll(mask[2], 1, axis=0)
        assert not described(other).repeats
        assert not described(np.ones_like(mask)).repeats, "nothing is left open"
