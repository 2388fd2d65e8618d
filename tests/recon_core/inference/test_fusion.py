import math

import pytest
import torch

from recon_core.inference import fusion as module
from recon_core.inference.fusion import fuse, gather, limited, settled, weights
from recon_core.inference.start import with_start
from recon_core.trust.weighing import Weighing
from tests.helpers.slices import noise_slice

PLAIN = Weighing(level=0.0, variance=2.0, change=-1.0)


def noise(*shape, seed):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def error(image, truth):
    return float((image - truth).abs().square().mean().sqrt())


def scene(start_error, network_error):
    """Truth, start and image of a network with independent errors, and what is believed of the start."""
    truth = 10 + noise(6, 40, 30, seed=0)
    start, image = truth + start_error * noise(6, 40, 30, seed=1), truth + network_error * noise(6, 40, 30, seed=2)
    return truth, start, torch.full((6, 40, 30), start_error / 2**0.5), image


def test_with_equal_errors_it_is_better_than_either():
    truth, start, deviation, image = scene(0.3, 0.3)
    fused = fuse(start, deviation, image, 10.0, Weighing(level=0.0))
    assert fused.share == pytest.approx(0.5)
    assert error(fused.image, truth) < 0.8 * min(error(start, truth), error(image, truth))


def test_a_start_that_is_known_stays():
    _, start, _, image = scene(1.0, 1.0)
    fused = fuse(start, torch.zeros(6, 40, 30), image, 10.0, PLAIN)
    torch.testing.assert_close(fused.image, start, atol=1e-4, rtol=0)
    assert fused.share == 0


def test_where_more_is_left_open_the_network_counts_more():
    _, start, _, image = scene(1.0, 1.0)
    deviation = torch.full((6, 40, 30), 0.1)
    deviation[:, 20:] = 1.0
    weight = weights(gather(start, deviation, image, 10.0), PLAIN)
    assert bool((weight[25:] > weight[:15].max()).all())


def test_a_network_that_goes_further_counts_less():
    _, start, deviation, image = scene(0.3, 0.3)
    near, far = (fuse(start, deviation, start + step * (image - start), 10.0, PLAIN).share for step in (1, 10))
    assert 0 < far < 0.3 * near


def test_a_network_that_changes_what_is_settled_counts_less_elsewhere():
    _, start, deviation, image = scene(0.3, 0.3)
    deviation[:, 15:] = 0.01
    settled = image.clone()
    settled[:, 15:] = start[:, 15:]
    weight, other = (weights(gather(start, deviation, one, 10.0), PLAIN) for one in (settled, image))
    assert bool((other[:10] < 0.5 * weight[:10]).all())


def test_the_weight_is_the_logistic_function_of_the_sum():
    _, start, deviation, image = scene(0.3, 0.3)
    evidence = gather(start, deviation, image, 10.0)
    assert float(evidence.variance.mean()) == pytest.approx(0.3**2 / 100, rel=1e-4)
    assert float(evidence.change) == pytest.approx(1, rel=0.05)  # half of both errors, over that of the start
    weight = weights(evidence, Weighing(level=0.5, variance=1.5, change=-0.7))
    total = 0.5 + 1.5 * math.log10(0.3**2 / 100 / 1e-3) - 0.7 * math.log10(float(evidence.change))
    torch.testing.assert_close(weight, torch.full((40, 30), 1 / (1 + math.exp(-total))), rtol=1e-4, atol=0)


def test_the_scale_of_the_images_does_not_matter():
    _, start, deviation, image = scene(0.3, 0.3)
    fused, scaled = (fuse(k * start, k * deviation, k * image, k * 10.0, PLAIN) for k in (1.0, 1e6))
    torch.testing.assert_close(scaled.image / 1e6, fused.image, rtol=1e-4, atol=1e-4)


def test_images_of_nothing_stay_finite():
    nothing = torch.zeros(3, 8, 8, dtype=torch.complex64)
    fused = fuse(nothing, torch.zeros(3, 8, 8), nothing, 0.0, PLAIN)
    assert bool(fused.image.isfinite().all())


# --- how far a network may go -----------------------------------------------------------------------------------------


def test_a_network_goes_no_further_than_the_data_leave_open():
    _, start, deviation, image = scene(0.3, 0.3)
    far = limited(start, deviation, start + 100 * (image - start), repeats=False)
    torch.testing.assert_close((far - start).abs(), torch.full((6, 40, 30), 0.3))
    turned = ((far - start) * (image - start).conj()).angle()
    assert float(turned.abs().max()) < 1e-3
    near = start + 0.1 * (image - start)
    torch.testing.assert_close(limited(start, deviation, near, repeats=False), near)


def test_each_place_has_a_limit_of_its_own():
    _, start, deviation, image = scene(0.3, 0.3)
    deviation[:, 20:] = 0.0
    changed = (limited(start, deviation, image, repeats=False) - start).abs()
    assert not changed[:, 25:].any()
    assert float(changed[:, :15].mean()) > 0.2


def test_what_is_the_same_in_all_frames_is_free_where_they_have_the_same_lines():
    _, start, deviation, image = scene(0.3, 0.3)
    shift = 5 * noise(40, 30, seed=3)
    moving = image - start - (image - start).mean(0)
    free, bound = (limited(start, deviation, start + shift + 100 * moving, repeats=each) for each in (True, False))
    assert float((free - start - shift).abs().max()) < 0.31
    assert float((bound - start).abs().max()) < 0.31


@pytest.mark.parametrize("repeats", [False, True])
def test_of_an_image_that_is_its_start_nothing_is_changed_and_gradients_are_finite(repeats):
    _, start, deviation, _ = scene(0.3, 0.3)
    image = start.clone().requires_grad_()
    made = limited(start, 0 * deviation, image, repeats=repeats)
    torch.testing.assert_close(made.detach(), start)
    made.abs().sum().backward()
    assert bool(image.grad.isfinite().all())


@pytest.mark.parametrize(("snr", "share"), [(50.0, 1.0), (200.0, 1.0), (800.0, 0.25), (None, 1.0)])
def test_of_little_noise_a_network_goes_less_far(monkeypatch, snr, share):
    """As k-t SENSE reckons with more noise than there is."""
    data, seen = with_start(noise_slice(8), "kt_sense"), []
    monkeypatch.setattr(module, "limited", lambda _start, deviation, image, **_: (seen.append(deviation), image)[1])
    monkeypatch.setattr(module, "signal_to_noise", lambda _: snr)
    settled(data, data.start)
    torch.testing.assert_close(seen[0], share * data.start_deviation)
