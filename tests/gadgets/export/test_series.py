"""Which images can be exported, and what is reported of the others."""

import numpy as np
import pytest

from gadgets.export.series import exportable_series
from gadgets.problems import Problems
from tests.gadgets.export.support import cine, image


def test_what_is_not_2d_is_left_out_and_reported():
    problems = Problems()
    images = [image(), image(np.ones((2, 1, 6, 8), np.float32))]
    (series,) = exportable_series({1: images}, 2.5, problems)
    assert len(series.loops[0].values) == 1
    assert "(2, 1, 6, 8)" in str(problems.damage[0])
    assert exportable_series({1: images[1:]}, 2.5, problems) == []


def test_values_that_are_not_finite_are_reported():
    values = np.ones((6, 8), np.float32)
    values[2, 3] = np.nan
    problems = Problems()
    (series,) = exportable_series({1: [image(values)]}, 2.5, problems)
    assert series.loops[0].values[0, 2, 3] == 0
    assert problems.damage


def test_images_without_geometry_are_reported_once():
    problems = Problems()
    images = cine(read_dir=0, phase_dir=0, slice_dir=0)
    exportable_series({1: images}, 2.5, problems)
    (problem,) = problems
    assert problem.count == len(images)
    assert "do not lie at their place" in problem.text


@pytest.mark.parametrize(("times", "said"), [(1, 0), (3, 1)])
def test_images_of_several_reconstructions_in_one_series_are_said(times, said):
    problems = Problems()
    (series,) = exportable_series({1: times * cine()}, 2.5, problems)
    assert sum(len(loop.values) for loop in series.loops) == times * len(cine())
    found = [problem for problem in problems if "several reconstructions" in problem.text]
    assert len(found) == said
    assert not problems.damage
