import numpy as np
import pytest

from gadgets.images.pictures import moving_part, white_level


@pytest.fixture
def beating():
    """A heart that beats at (40, 20) with fat around that is three times as bright."""
    y, x = np.mgrid[:64, :50]
    radii = 5 + 2 * np.sin(np.arange(8) * np.pi / 4)[:, None, None]
    frames = (np.hypot(y - 40, x - 20) < radii).astype(np.float32)
    frames[:, :4] = frames[:, -4:] = 3
    return frames


def test_the_window_is_that_of_what_moves(beating):
    assert white_level([beating]) == 1
    assert white_level([0.5 * beating, beating]) == 1
    assert white_level([1j * beating]) == 1
    assert white_level([beating[:1]]) == 3  # nothing moves
    assert white_level([0 * beating]) == 1


@pytest.mark.parametrize("place", [(0, 0), (-20, 5), (15, 20)])
def test_the_part_that_moves_is_shown_wherever_it_is(beating, place):
    heart = np.roll(beating % 3, place, (1, 2))
    rows, columns = moving_part(heart)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (40, 31)
    assert heart[:, rows, columns].sum() == heart.sum()


def test_all_is_shown_of_what_stands_still():
    assert moving_part(np.ones((4, 20, 30))) == (slice(0, 20), slice(0, 30))
