import numpy as np
import pytest

from recon_core.coils.running_maps import RunningMaps

COILS, LINES, COLUMNS = 3, 8, 5


class Estimator:
    """Gives maps that say how often it was asked, and keeps what it was given."""

    def __init__(self):
        self.sources = []
        self.near = []

    def __call__(self, source, near):
        self.sources.append(source.copy())
        self.near.append(near)
        return np.full(source.shape, len(self.sources), np.complex64), (f"estimate {len(self.sources)}",)


def frames(count, step=2, seed=0):
    generator = np.random.default_rng(seed)
    for number in range(count):
        mask = np.arange(LINES) % step == number % step
        kspace = generator.standard_normal((COILS, LINES, COLUMNS, 2)).astype(np.float32).view(np.complex64)[..., 0]
        yield kspace * mask[:, None], mask


def test_the_average_is_that_of_the_frames_that_measured_a_line():
    running, estimate = RunningMaps(), Estimator()
    taken = list(frames(7, step=3))
    lines = [(running.add(*frame), running.lines)[1] for frame in taken]
    running.maps(estimate)
    kspace, mask = (np.stack(part) for part in zip(*taken, strict=True))
    expected = kspace.sum(0) / mask.sum(0)[:, None]
    np.testing.assert_allclose(estimate.sources[0], expected, atol=1e-6)
    assert lines == [3, 6, 8, 8, 8, 8, 8]


def test_maps_are_made_with_every_doubling_and_later_seldom():
    running, estimate, made = RunningMaps(), Estimator(), []
    for number, frame in enumerate(frames(1100), 1):
        running.add(*frame)
        maps = running.maps(estimate)
        if len(estimate.sources) > len(made):
            made.append(number)
        assert (maps == len(made)).all()
    assert made == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    assert running.notes == ("estimate 12",)
    assert estimate.near[0] is None
    assert [int(near.real[0, 0, 0]) for near in estimate.near[1:]] == [*range(1, 12)]  # each from those before


def test_the_average_follows_what_changes():
    running, estimate = RunningMaps(), Estimator()
    kspace, mask = np.ones((COILS, LINES, COLUMNS), np.complex64), np.ones(LINES, bool)
    for number in range(600):
        running.add(kspace * (number >= 256), mask)
    running.maps(estimate)
    assert estimate.sources[0].real.min() > 0.99


def test_a_reference_is_taken_instead():
    running, estimate = RunningMaps(), Estimator()
    running.add(*next(frames(1)))
    reference = np.full((COILS, LINES, COLUMNS), 5, np.complex64)
    running.maps(estimate, reference)
    np.testing.assert_array_equal(estimate.sources[0], reference)


@pytest.mark.parametrize("count", [0, 1])
def test_maps_begin_with_the_first_frame(count):
    running = RunningMaps()
    for frame in frames(count):
        running.add(*frame)
    assert (running.maps(Estimator()) is not None) == bool(count)
