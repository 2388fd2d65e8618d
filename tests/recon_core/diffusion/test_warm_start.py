from dataclasses import replace

import pytest
import torch

from recon_core.diffusion.warm_start import START_NOISE_RANGE, KnownStart, start_noise, temporal_sense
from recon_core.physics.consistency import DataConsistency
from tests.recon_core.diffusion.support import moving_lines, scan, truth


def consistency_of(data):
    return DataConsistency(data.maps, data.mask, data.hybrid)


def root_mean_square(image):
    return float(image.abs().square().mean().sqrt())


def test_it_is_the_minimum():
    consistency = consistency_of(scan(moving_lines(6, 16, 2)))
    image = temporal_sense(consistency)
    neighbours = image.roll(1, 0) + image.roll(-1, 0)
    gradient = consistency.residual(image) + 0.3 * (2 * image - neighbours) + 0.003 * image
    assert gradient.norm() < 2e-3 * consistency.zero_filled.norm()


def test_it_beats_what_does_not_use_time():
    data = scan(moving_lines(8, 24, 4))
    consistency = consistency_of(data)
    reference = truth(8, 24, 12)
    error = root_mean_square(temporal_sense(consistency) - reference)
    alone = consistency.solve(torch.zeros_like(reference), 0.003, 30)
    assert error < 0.6 * root_mean_square(alone - reference)
    assert error < 0.3 * root_mean_square(consistency.zero_filled - reference)


def test_frames_without_data_are_filled_from_their_neighbours():
    mask = moving_lines(8, 24, 2)
    mask[3] = False
    image = temporal_sense(consistency_of(scan(mask)))
    reference = truth(8, 24, 12)
    assert root_mean_square(image[3] - reference[3]) < 0.15 * root_mean_square(reference[3])


def test_one_frame():
    image = temporal_sense(consistency_of(scan(moving_lines(1, 24, 2))))
    assert root_mean_square(image - truth(1, 24, 12)) < 0.1


@pytest.mark.parametrize(("acceleration", "noise"), [(2, 0.02), (4, 0.01), (4, 0.05), (6, 0.02)])
def test_start_noise_is_a_few_times_the_error(acceleration, noise):
    consistency = consistency_of(scan(moving_lines(12, 48, acceleration), n_x=32, n_coils=6, noise=noise))
    first = temporal_sense(consistency)
    level = start_noise(consistency, first)
    assert 2 < level / root_mean_square(first - truth(12, 48, 32)) < 8


def test_start_noise_stays_within_its_range():
    complete = consistency_of(scan(torch.ones(4, 16, dtype=torch.bool), noise=0.0))
    assert start_noise(complete, temporal_sense(complete)) == START_NOISE_RANGE[0]
    data = scan(moving_lines(4, 16, 2))
    data.hybrid.mul_(100)
    hopeless = consistency_of(data)
    assert start_noise(hopeless, temporal_sense(hopeless)) == START_NOISE_RANGE[1]


def test_a_known_start_needs_image_and_error():
    data = scan(moving_lines(4, 16, 2))
    image = truth(4, 16, 12)
    assert KnownStart.of(data) is None
    assert KnownStart.of(replace(data, start=image)) is None
    known = KnownStart.of(replace(data, start=image, start_deviation=torch.full((4, 16, 12), 0.1), noise_variance=2e-4))
    assert known is not None
    assert known.levels == pytest.approx((0.3, 0.05))
    assert known.weight == pytest.approx(0.01)
