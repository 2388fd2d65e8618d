import numpy as np
import pytest

from recon_core.errors import SettingsError
from recon_core.simulate.sampling import (
    SAMPLINGS,
    acs_rows,
    full_mask,
    golden_mask,
    gro_mask,
    interleaved_mask,
    partial_fourier_mask,
    sampling_mask,
    uniform_mask,
    variable_density_mask,
)
from tests.helpers.paths import SHARED, needs
from tests.helpers.published_masks import kt_focuss_mask, quadratic_density_mask
from tests.parity_cases.dual_unet_resnet3d import run_mask

PUBLISHED_MASKS = SHARED / "parity" / "dual_unet_resnet3d" / "case_masks.npz"


@pytest.mark.parametrize("lines", [15, 16, 45])
def test_uniform_is_fixed_and_goes_through_the_centre(lines):
    mask = uniform_mask(5, lines, 4)
    assert mask.dtype == np.bool_
    assert (mask == mask[0]).all()
    assert mask[0, lines // 2]
    assert set(np.diff(np.flatnonzero(mask[0]))) == {4}


@pytest.mark.parametrize("acs", [0, 1, 6, 7])
def test_acs_block_is_complete_and_centred(acs):
    rows = np.flatnonzero(acs_rows(32, acs))
    assert len(rows) == acs
    if acs:
        assert rows[0] == 16 - acs // 2
        assert np.all(np.diff(rows) == 1)
    for name in SAMPLINGS[1:]:
        assert sampling_mask(name, 4, 32, acceleration=4, acs_lines=acs)[:, rows].all()


@pytest.mark.parametrize("acceleration", [2, 3, 5])
def test_interleaved_frames_complete_each_other(acceleration):
    mask = interleaved_mask(3 * acceleration, 40, acceleration)
    for first in range(2 * acceleration):
        np.testing.assert_array_equal(mask[first : first + acceleration].sum(0), np.ones(40))
    np.testing.assert_array_equal(mask[0], mask[acceleration])


def test_variable_density_has_constant_rate_changes_over_time_and_prefers_the_centre():
    mask = variable_density_mask(400, 120, 6, 8)
    assert (mask.sum(1) == 20).all()
    assert len({row.tobytes() for row in mask}) > 300
    rate = mask.mean(0)
    assert rate[40:56].mean() > 2.0 * rate[:16].mean() > 0.0
    np.testing.assert_array_equal(mask, variable_density_mask(400, 120, 6, 8))
    assert (mask != variable_density_mask(400, 120, 6, 8, seed=1)).any()


def test_acs_larger_than_the_rate_still_leaves_the_block():
    assert (variable_density_mask(3, 32, 8, 10).sum(1) == 10).all()


@needs(PUBLISHED_MASKS)
def test_published_masks_are_the_same_bit_by_bit():
    cases = dict(np.load(PUBLISHED_MASKS))
    assert {name[:2] for name in cases} == {"vd", "cm"}
    for name, expected in cases.items():
        np.testing.assert_array_equal(run_mask(name), expected, err_msg=name)


@pytest.mark.parametrize("make", [quadratic_density_mask, kt_focuss_mask])
def test_published_densities(make):
    mask = make(400, 120, 6, 8)
    assert mask.dtype == np.bool_
    assert (mask.sum(1) == 20).all()
    assert mask[:, acs_rows(120, 8)].all()
    rate = mask.mean(0)
    assert rate[40:56].mean() > 1.5 * rate[:16].mean()
    assert (rate[0] == 0) == (make is quadratic_density_mask)
    np.testing.assert_array_equal(mask, make(400, 120, 6, 8))
    assert (mask != make(400, 120, 6, 8, seed=1)).any()


def test_published_masks_with_more_acs_lines_than_the_rate_or_one_line():
    for make in (quadratic_density_mask, kt_focuss_mask):
        assert (make(3, 32, 8, 10).sum(1) == 10).all()
        assert make(2, 1, 1, 0).all()
    assert (kt_focuss_mask(5, 192, 5, 11).sum(1) == 37).all()  # as published, a line less


def test_full_measures_everything():
    assert full_mask(3, 7).all()
    assert sampling_mask("full", 3, 7, acceleration=4, acs_lines=2).all()


@pytest.mark.parametrize(("lines", "fraction", "dropped"), [(32, 0.75, 8), (31, 0.8, 6), (32, 1.0, 0)])
def test_partial_fourier_drops_the_first_lines(lines, fraction, dropped):
    mask = full_mask(2, lines)
    kept = partial_fourier_mask(mask, fraction)
    assert not kept[:, :dropped].any()
    assert kept[:, dropped:].all()
    assert mask.all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: uniform_mask(2, 16, 0),
        lambda: uniform_mask(2, 16, 17),
        lambda: uniform_mask(0, 16, 2),
        lambda: acs_rows(16, 17),
        lambda: partial_fourier_mask(full_mask(1, 4), 0.5),
        lambda: sampling_mask("spiral", 2, 16),
        lambda: quadratic_density_mask(2, 16, 1, 4),
        lambda: quadratic_density_mask(2, 16, 0, 4),
        lambda: kt_focuss_mask(2, 16, 2, 18),
    ],
)
def test_refuses_impossible_masks(make):
    with pytest.raises(SettingsError):
        make()


@pytest.mark.parametrize(("acceleration", "acs"), [(4, 0), (6, 8), (12, 3), (20, 6), (40, 6)])
def test_golden_has_constant_rate_and_the_block(acceleration, acs):
    mask = golden_mask(30, 120, acceleration, acs)
    assert (mask.sum(1) == max(round(120 / acceleration), acs)).all()
    assert mask[:, acs_rows(120, acs)].all()
    assert mask.dtype == np.bool_


def test_golden_is_the_same_for_a_seed_and_changes_over_time():
    mask = golden_mask(40, 120, 6, 8, seed=3)
    np.testing.assert_array_equal(mask, golden_mask(40, 120, 6, 8, seed=3))
    assert (mask != golden_mask(40, 120, 6, 8, seed=4)).any()
    assert len({row.tobytes() for row in mask}) > 35


def test_golden_covers_k_space_in_any_run_of_frames_and_prefers_the_centre():
    mask = golden_mask(400, 120, 6, 8)
    rate = mask.mean(0)
    assert rate[40:56].mean() > 2.0 * rate[:16].mean() > 0.0
    random = variable_density_mask(400, 120, 6, 8)
    # in runs of 12 frames: hardly a line of the middle is left out, and fewer than by chance
    left_out = {
        name: np.mean([~each[first : first + 12, 30:90].any(0) for first in range(0, 400, 12)])
        for name, each in (("golden", mask), ("random", random))
    }
    assert left_out["golden"] < 0.02 < left_out["random"]
    # and every run takes a line about as often as any other
    counts = [mask[first : first + 40].sum(0) for first in range(0, 400, 40)]
    others = [random[first : first + 40].sum(0) for first in range(0, 400, 40)]
    assert np.std(counts, axis=0).mean() < 0.6 * np.std(others, axis=0).mean()


def test_golden_takes_all_lines_where_they_are_asked_for():
    assert golden_mask(3, 17, 1).all()
    assert golden_mask(2, 1, 1).all()


@pytest.mark.parametrize(("lines", "acceleration"), [(160, 9), (126, 7), (61, 4), (40, 2)])
def test_gro_moves_is_denser_in_the_middle_and_covers_all(lines, acceleration):
    mask = gro_mask(64, lines, acceleration)
    counts = mask.sum(axis=1)
    assert counts.max() == round(lines / acceleration)
    assert counts.min() >= counts.max() - 2  # where two places fall on one line
    middle, outer = mask[:, lines // 2 - lines // 8 : lines // 2 + lines // 8], mask[:, : lines // 4]
    assert middle.mean() > 1.3 * outer.mean()
    assert mask.any(axis=0).mean() > 0.95
    assert (mask[1:] != mask[:-1]).any(axis=1).all()
