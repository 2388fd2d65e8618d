import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon_core.inference.windows import over_windows

CPU = torch.device("cpu")


def series(n_frames):
    return torch.randn(n_frames, 3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(n_frames))


@given(st.integers(1, 40), st.integers(1, 20))
def test_what_every_window_gets_right_comes_out_right(n_frames, window):
    truth = series(n_frames)
    torch.testing.assert_close(over_windows(lambda frames: truth[frames], n_frames, window, CPU), truth)


@given(st.integers(1, 40), st.integers(1, 20))
def test_windows_are_runs_of_the_cycle(n_frames, window):
    seen = []

    def note(frames):
        seen.append(frames.tolist())
        return torch.zeros(window, 1, 1)

    over_windows(note, n_frames, window, CPU)
    for frames in seen:
        assert frames == [(frames[0] + slot) % n_frames for slot in range(window)]
    assert len(seen) == (1 if n_frames <= window else math.ceil(n_frames / max(1, window // 2)))


def test_one_window_is_taken_as_it_is():
    result = torch.full((4, 1, 1), 3.0)
    assert over_windows(lambda _: result, 4, 4, CPU) is result


def test_a_short_series_is_the_mean_of_its_repetitions():
    places = torch.arange(16.0)[:, None, None]
    result = over_windows(lambda _: places, 10, 16, CPU)
    assert result.flatten().tolist() == [5, 6, 7, 8, 9, 10, 6, 7, 8, 9]


def test_windows_are_blended_by_the_square_of_the_sine():
    """25 frames in windows of 16: starts 0, 6, 12, 18; frame 7 lies at 7 in the first, 1 in the second and 14 in the
    last, which goes around the end."""
    calls = iter(range(4))

    def constant(_):
        return torch.full((16, 1, 1), float(next(calls)))

    result = over_windows(constant, 25, 16, CPU)
    weight = {place: math.sin(math.pi * (place + 0.5) / 16) ** 2 for place in (7, 1, 14)}
    expected = (0 * weight[7] + 1 * weight[1] + 3 * weight[14]) / sum(weight.values())
    assert result[7].item() == pytest.approx(expected, rel=1e-5)


# --- series without a period ------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 20))
def test_without_a_period_no_window_joins_the_ends(n_frames, window):
    truth, seen = series(n_frames), []

    def reconstruct(frames):
        seen.append(frames.tolist())
        return truth[frames]

    torch.testing.assert_close(over_windows(reconstruct, n_frames, window, CPU, periodic=False), truth)
    for frames in seen:
        steps = {abs(after - before) for before, after in itertools.pairwise(frames)}
        assert steps <= ({1} if n_frames > 1 else {0})
    if n_frames >= window:
        assert (seen[0][0], seen[-1][-1]) == (0, n_frames - 1)
        starts = [frames[0] for frames in seen]
        assert max(np.diff(starts), default=0) <= max(1, window // 2)
