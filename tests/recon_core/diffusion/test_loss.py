import math

import pytest
import torch

from recon_core.diffusion.loss import ExponentialAverage, denoising_loss, draw_low_times, draw_times
from recon_core.diffusion.sde import SHORTEST_TIME, VarianceExploding
from tests.recon_core.diffusion.support import filled


class Exact(torch.nn.Module):
    """Knows the image, and therefore the score."""

    def __init__(self, config, clean):
        super().__init__()
        self.config, self.clean = config, clean

    def forward(self, slices, sigma):
        return (self.clean - slices) / sigma[:, None, None, None].square()


def batch():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(3, 2, 4, 8, generator=generator), torch.randn(3, 2, 4, 8, generator=generator)
    return clean, torch.tensor([0.2, 0.5, 0.9]), noise


@pytest.mark.parametrize("parametrisation", ["score", "edm"])
def test_who_knows_the_image_has_no_loss(parametrisation):
    clean, times, noise = batch()
    network = Exact(filled(parametrisation=parametrisation).config, clean)
    assert denoising_loss(network, clean, times, noise) < 1e-5
    network.clean = clean + 0.1
    assert denoising_loss(network, clean, times, noise) > 1e-5


def test_loss_of_the_preconditioned_network_is_that_of_its_own_output():
    """Karras et al.: weighted so, the loss is the mean square of what F should have said and what it said."""
    network = filled(parametrisation="edm", data_deviation=0.3)
    clean, times, noise = batch()
    process = VarianceExploding()
    sigma = process.sigma(times)[:, None, None, None]
    total = (sigma.square() + 0.3**2).sqrt()
    noisy = clean + sigma * noise
    target = (clean - 0.3**2 / total.square() * noisy) * total / (0.3 * sigma)
    with torch.no_grad():
        said = network._features((noisy / total + 1) / 2, 10 * process.sigma(times).log())
        loss = denoising_loss(network, clean, times, noise)
    torch.testing.assert_close(loss, (said - target).square().mean(), rtol=1e-4, atol=0)


def test_times_cover_the_process_but_its_start():
    times = draw_times(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(times, torch.tensor([SHORTEST_TIME, 0.5 + SHORTEST_TIME / 2, 1.0]))


def test_average_follows_its_definition():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialAverage(layer, decay=0.35)
    expected = layer.weight.item()
    for n, decay in enumerate((2 / 11, 3 / 12, 4 / 13, 0.35, 0.35), 1):
        with torch.no_grad():
            layer.weight.fill_(float(n))
        average.update()
        expected = decay * expected + (1 - decay) * n
        assert math.isclose(average.decay, decay)
        assert math.isclose(float(average.tensors["weight"]), expected, rel_tol=1e-5)
    assert layer.weight.item() == 5.0


def test_average_goes_on_where_it_was():
    layer = torch.nn.Linear(2, 2)
    average = ExponentialAverage(layer)
    for _ in range(3):
        average.update()
    other = ExponentialAverage(torch.nn.Linear(2, 2))
    other.load_state_dict(average.state_dict())
    assert other.decay == average.decay
    torch.testing.assert_close(other.tensors, average.tensors)
    with pytest.raises(TypeError, match="no state"):
        other.load_state_dict({"n_updates": 3, "tensors": None})


def test_training_makes_the_loss_smaller():
    network = filled(parametrisation="edm")
    clean, times, noise = batch()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = denoising_loss(network, clean, times, noise)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_most_noise_is_as_large_as_the_error_of_an_image():
    process = VarianceExploding(0.01, 50.0)
    uniform, rarely = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0))
    levels = process.sigma(draw_low_times(uniform, rarely, process))
    assert 0.01 <= float(levels.min()) < 0.0101
    assert float(levels.max()) > 40
    assert 0.9 < float((levels <= 0.4).float().mean()) < 0.95
    quiet = VarianceExploding(0.01, 0.1)
    assert float(quiet.sigma(draw_low_times(uniform, rarely, quiet)).max()) <= 0.1
