import numpy as np
import pytest

from recon_core.inference.signal import signal_to_noise
from recon_core.training.coverage import covered
from recon_core.training.library import Library
from recon_core.training.measurements import COILS, draw_mask, measure
from recon_core.training.plan import preset_plan
from recon_core.training.series import draw_series
from recon_core.trust.ranges import PATTERNS, Sampling, TrainingRange


def test_masks_drawn_afresh_are_inside():
    plan = preset_plan("crunet_mr")
    trained = covered(plan)
    rng = np.random.default_rng(99)
    reasons = []
    for _ in range(300):
        lines = 2 * int(rng.integers(48, 85))
        mask, _ = draw_mask(rng, int(rng.choice((8, 10, 12, 16))), lines)
        reasons.append(trained.outside(Sampling.of(mask, int(rng.choice(COILS)), lines, 50.0)))
    assert np.mean([not reason for reason in reasons]) >= 0.95


def test_the_noise_of_scans_is_inside():
    low, high = covered(preset_plan("crunet_mr")).snr
    drawn = (draw_series((seed,), Library(), frames=2, matrix=(48, 48)) for seed in range(20))
    found = [signal_to_noise(measure((seed,), series).slice()) for seed, series in enumerate(drawn)]
    assert np.mean([low <= value <= high for value in found]) >= 0.95
    assert min(found) < 2.5 * low  # and the range is no wider than they are
    assert max(found) > high / 3.5


def test_the_bounds_are_those_of_the_plan():
    plan = preset_plan("crunet_mr", frames=[5, 9], lines=[64, 80])
    trained = covered(plan)
    assert (trained.lines, trained.coils) == ((64, 80), (COILS[0], COILS[-1]))
    assert trained.frames[0] == 5
    assert trained.frames[1] > 100  # in windows
    assert trained.empty_frames == (0, 2)
    assert trained.centre_lines[0] == 0
    low, high = trained.acceleration
    assert 1 <= low < 3
    assert 8 < high < 30
    assert covered(plan, 16).frames[0] == 16
    assert TrainingRange.parse(trained.mapping()) == trained


def test_the_patterns_are_named():
    trained = covered(preset_plan("crunet_mr"))
    assert {"constant", "interleaved", "random"} <= set(trained.patterns) <= set(PATTERNS)
    assert list(trained.patterns) == [name for name in PATTERNS if name in trained.patterns]


def test_points_are_covered_where_a_plan_draws_them():
    trained = covered(preset_plan("crunet_mr", points=0.5))
    without = covered(preset_plan("crunet_mr", points=0.0))
    assert set(trained.patterns) == {*without.patterns, "points"}
    assert "points" not in without.patterns


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_plan_covers_the_same(seed):
    plan = preset_plan("crunet_mr", seed=seed)
    assert covered(plan) == covered(plan)
