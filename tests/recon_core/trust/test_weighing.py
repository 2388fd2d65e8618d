import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon_core.errors import SettingsError
from recon_core.trust.ranges import Sampling
from recon_core.trust.weighing import LEAST_SHARE, Beyond, Weighing, objections

numbers = st.floats(-100, 100)


@given(st.fixed_dictionaries({field.name: numbers for field in dataclasses.fields(Weighing)}))
def test_it_is_read_as_it_is_written(values):
    weighing = Weighing(**values)
    assert Weighing.parse(weighing.mapping()) == weighing


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"variance": 1}, "needs level, got variance"),
        ({"level": "high"}, "level of weighing must be a number up to 100 in size, got 'high'"),
        ({"level": True}, "level of weighing must be a number"),
        ({"level": float("nan")}, "level of weighing must be a number"),
        ({"level": 1e9}, "level of weighing must be a number up to 100"),
        ({"level": 0, "error": 0.1}, "weighing has no 'error'; there are level, variance, change"),
    ],
)
def test_what_is_no_weighing_is_refused(mapping, text):
    with pytest.raises(SettingsError, match=text):
        Weighing.parse(mapping)


def test_an_image_that_hardly_counts_is_not_sent():
    assert objections(LEAST_SHARE, "kt_sense") == []
    (reason,) = objections(0.012, "kt_sense")
    assert reason == "counts 1 % of what the data leave open beside that of kt_sense: nothing is gained by it"


@pytest.mark.parametrize(
    ("snr", "every", "level"),
    [(100.0, 4, 0.5), (None, 4, 0.5), (2000.0, 4, -1.5), (100.0, 100, -2.5), (20_000.0, 100, -6.5)],
)
@pytest.mark.parametrize("repeats", [True, False])
def test_scans_beyond_usual_ones_have_a_level_of_their_own(snr, every, level, repeats):
    """Those of little noise, of few lines, and of the same lines in all frames."""
    mask = np.zeros((2, 200), bool)
    mask[0, ::every] = True
    mask[1, every // 2 * (not repeats) :: every] = True
    weighing = Weighing(level=0.5, variance=0.1, snr=-2.0, acceleration=-3.0, repeats=4.0)
    of_scan = weighing.of_scan(Beyond.of(Sampling.of(mask, 4, 64, snr)))
    assert of_scan.level == pytest.approx(level + 4.0 * repeats)
    assert of_scan == Weighing(level=of_scan.level, variance=0.1)


@pytest.mark.parametrize(
    ("snr", "every", "level"),
    [(200.0, 3, 0.5), (20.0, 3, -1.5), (None, 1, 0.5 - 4 * 0.477), (20.0, 2, -1.5 - 4 * 0.176)],
)
def test_scans_of_more_noise_and_of_more_lines_than_usual_have_a_level_of_their_own(snr, every, level):
    mask = np.zeros((2, 300), bool)
    mask[:, ::every] = True
    of_scan = Weighing(level=0.5, noise=-2.0, density=-4.0).of_scan(Beyond.of(Sampling.of(mask, 4, 64, snr)))
    assert of_scan.level == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize(
    ("snr", "complete", "level"), [(20.0, False, 0.5), (2.0, False, -5.5), (None, True, -3.5), (2.0, True, -3.5)]
)
def test_scans_that_are_faint_or_complete_have_a_level_of_their_own(snr, complete, level):
    mask = np.ones((2, 30), bool)
    mask[1, 3] = complete
    of_scan = Weighing(level=0.5, faint=-6.0, complete=-4.0).of_scan(Beyond.of(Sampling.of(mask, 4, 64, snr)))
    assert of_scan.level == pytest.approx(level)


def test_a_scan_without_a_line_is_described():
    beyond = Beyond.of(Sampling.of(np.zeros((2, 30), bool), 4, 64))
    assert (beyond.density, beyond.acceleration) == (0.0, np.inf)


@pytest.mark.parametrize("points", [True, False])
def test_scans_of_points_have_a_level_of_their_own(points):
    mask = np.zeros((2, 16, 12), bool)
    mask[:, :, 3:6] = True
    beyond = Beyond.of(Sampling.of(mask if points else mask.any(2), 4, 12, 100.0))
    assert beyond.points == points
    assert Weighing(level=0.5, points=-4.0).of_scan(beyond).level == 0.5 - 4.0 * points
