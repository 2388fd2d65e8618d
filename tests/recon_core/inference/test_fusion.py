import pytest
import torch

from recon_core.inference.fusion import fuse


def noise(*shape, seed):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def error(image, truth):
    return float((image - truth).abs().square().mean().sqrt())


def scene(start_error, network_error):
    """Truth, start and image of a network with independent errors, and what is believed of the start."""
    truth = 10 + noise(6, 40, 30, seed=0)
    start, image = truth + start_error * noise(6, 40, 30, seed=1), truth + network_error * noise(6, 40, 30, seed=2)
    return truth, start, torch.full((6, 40, 30), start_error / 2**0.5), image


@pytest.mark.parametrize(("start_error", "network_error"), [(0.1, 1.0), (1.0, 1.0), (1.0, 0.1)])
def test_it_is_better_than_either(start_error, network_error):
    truth, start, deviation, image = scene(start_error, network_error)
    fused = fuse(start, deviation, image, network_error)
    assert error(fused, truth) < min(error(start, truth), error(image, truth))


def test_a_start_that_is_known_stays():
    _, start, _, image = scene(1.0, 1.0)
    torch.testing.assert_close(fuse(start, torch.zeros(6, 40, 30), image, 1.0), start)


def test_where_nothing_is_known_the_network_counts():
    _, start, _, image = scene(1.0, 1.0)
    torch.testing.assert_close(fuse(start, torch.full((6, 40, 30), 1e4), image, 1.0), image, atol=1e-4, rtol=0)


def test_magnitudes_get_the_phase_of_the_start():
    truth, start, deviation, image = scene(0.5, 0.5)
    turned = torch.polar(torch.ones(1), torch.tensor(2.0))
    fused = fuse(turned * start, deviation, image.abs().to(torch.complex64), 0.5)
    assert error(fused, turned * truth) < error(start, truth)
