import math

import pytest
import torch

from recon_core.diffusion.sde import SHORTEST_TIME, Schedule, VarianceExploding


def test_noise_grows_geometrically_between_its_ends():
    process = VarianceExploding(0.02, 8.0)
    sigma = process.sigma(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(sigma, torch.tensor([0.02, 0.4, 8.0]))


def test_diffusion_is_the_rate_at_which_the_variance_grows():
    process = VarianceExploding(0.02, 8.0)
    time = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    (rate,) = torch.autograd.grad(process.sigma(time).square().sum(), time)
    torch.testing.assert_close(process.diffusion(time).square(), rate)


def test_perturbation_keeps_the_image_and_adds_the_noise_of_its_time():
    process = VarianceExploding()
    clean, noise = torch.rand(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    time = torch.tensor([0.0, 1.0])
    noisy = process.perturb(clean, time, noise)
    torch.testing.assert_close(noisy, torch.stack((clean[0] + 0.01 * noise[0], clean[1] + 50 * noise[1])))


@pytest.mark.parametrize("make", [Schedule.published, Schedule.of_levels])
@pytest.mark.parametrize("n_steps", [2, 10, 100])
def test_the_gains_take_all_the_variance_away(make, n_steps):
    schedule = make(VarianceExploding(0.01, 2.0), n_steps)
    assert len(schedule.labels) == len(schedule.gains) == n_steps
    assert math.isclose(float(schedule.gains.double().square().sum()), 4.0, rel_tol=1e-5)
    assert (schedule.labels.diff() < 0).all()
    assert math.isclose(float(schedule.labels[0]), 2.0, rel_tol=1e-5)


def test_published_labels_end_a_little_above_the_least_level():
    process = VarianceExploding()
    published, exact = (make(process, 100).labels for make in (Schedule.published, Schedule.of_levels))
    torch.testing.assert_close(published[-1], process.sigma(torch.tensor(SHORTEST_TIME)))
    torch.testing.assert_close(published, exact, rtol=2e-4, atol=0)
    assert not torch.equal(published, exact)
