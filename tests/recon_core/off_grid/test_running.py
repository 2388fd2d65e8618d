"""What windows leave to those that follow: an average of all frames, each taken once, and the last images."""

import torch

from recon_core.off_grid.running import RunningSeries


def test_every_window_is_taken_into_the_average_once():
    series = RunningSeries()
    assert not series.goes_on
    first = torch.full((2, 3, 3), 4.0 + 0j)
    assert series.begin(first) is first
    assert series.goes_on
    assert series.begin(torch.zeros_like(first)) is not first
    window, other = object(), object()
    new = torch.full((2, 3, 3), 8.0 + 0j)
    torch.testing.assert_close(series.average(window, 0.25, lambda: new), first + 1)
    torch.testing.assert_close(series.average(window, 0.25, lambda: new), first + 1)  # a second method
    torch.testing.assert_close(series.average(other, 0.25, lambda: new), first + 1.75)


def test_every_method_has_its_own_last_image():
    series = RunningSeries()
    one, two = torch.ones(3, 3), torch.zeros(3, 3)
    series.keep("cg_sense", one)
    series.keep("zero_filled", two)
    assert series.last("cg_sense") is one
    assert series.last("kt_sense") is None
