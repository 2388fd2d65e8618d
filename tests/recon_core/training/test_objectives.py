from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recon_core.simulate.sampling import interleaved_mask
from recon_core.training import objectives
from recon_core.training.images import reconstruct_series, settle_series
from recon_core.training.library import Library
from recon_core.training.losses import LOSSES
from recon_core.training.measurements import measure
from recon_core.training.objectives import assisted_objective, denoising_objective, image_objective, misplaced
from recon_core.training.series import draw_series
from tests.helpers.networks import tiny


def scan(frames=4):
    series = draw_series((3,), Library(), kind="cine", frames=frames, matrix=(32, 32))
    return measure((3,), series, mask=interleaved_mask(frames, 32, 2), n_coils=4, snr=50)


def started(frames=4):
    return scan(frames).started("kt_sense")


def test_an_image_is_compared_with_its_target():
    one, network = scan(), tiny("crunet_mr")
    expected = LOSSES["squared"](network.reconstruct(one.slice()), one.target)
    assert torch.equal(image_objective(network, one, "squared", np.random.default_rng(0)), expected)
    assert image_objective(network, one.started("cg_sense"), "squared", np.random.default_rng(0)) != expected


@pytest.mark.parametrize("method", ["crunet_mr", "unrolled_resnet3d"])
def test_of_a_start_of_known_error_the_settled_image_is_compared(method):
    one, network = started(6), tiny(method).train()
    loss = image_objective(network, one, "squared", np.random.default_rng(0))
    loss.backward()
    with torch.no_grad():
        image = reconstruct_series(network, one)
        torch.testing.assert_close(loss, LOSSES["squared"](settle_series(one, image), one.target), rtol=1e-3, atol=0)
        assert loss < 0.9 * LOSSES["squared"](image, one.target)
    gradients = [parameter.grad for parameter in network.parameters()]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(gradients) / 2


def test_steps_down_the_gradient_better_the_settled_image():
    one = started(6)
    image = torch.view_as_real(one.start).clone().requires_grad_()
    losses = []
    for _ in range(4):
        loss = LOSSES["squared"](settle_series(one, torch.view_as_complex(image)), one.target)
        (gradient,) = torch.autograd.grad(loss, image)
        losses.append(loss.item())
        image = (image.detach() - losses[-1] / 2 * gradient / gradient.square().sum()).requires_grad_()
    assert losses[0] > losses[1] > losses[2] > losses[3]


def test_a_ct_is_moved_a_little():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 40), indexing="ij")
    anatomy = 0.2 + 0.6 * torch.exp(-4 * (y.square() + x.square()))
    moved = [misplaced(anatomy, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    for image in moved:
        assert image.shape == anatomy.shape
        assert 0 <= image.min() <= image.max() <= 1
        assert 0.001 < (image - anatomy).abs().mean() < 0.1
    far = misplaced(anatomy, np.random.default_rng(0), shift=20)
    assert (far - anatomy).abs().mean() > (moved[0] - anatomy).abs().mean()


def test_a_ct_is_there_now_and_then(monkeypatch):
    one, network, seen = scan(), tiny("atlf_net").train(), []
    run = network.run

    def watched(image, consistency, ct, *rest):
        seen.append(ct is not None)
        return run(image, consistency, ct, *rest)

    monkeypatch.setattr(network, "run", watched)
    for seed in range(8):
        loss = assisted_objective(network, one.started("cg_sense"), "decibel", np.random.default_rng(seed))
        assert bool(loss.isfinite())
    assert set(seen) == {False, True}


def test_a_prior_learns_to_better_the_image_before_each_of_its_steps(monkeypatch):
    monkeypatch.setattr(objectives, "_PURE_NOISE", 0.0)
    one, network, places = started(), tiny("dstdm").train(), []
    step = network.step

    def watched(data, place):
        places.append(int(4 * place))
        return step(data, place)

    monkeypatch.setattr(network, "step", watched)
    losses = [denoising_objective(network, one, "decibel", np.random.default_rng(seed)) for seed in range(8)]
    assert set(places) == {0, 1, 2, 3}
    for place, loss in zip(places, losses, strict=True):
        assert torch.equal(loss, LOSSES["decibel"](step(one.slice(), place / 4), one.target))
    losses[0].backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.score.parameters())
    assert any(bool(parameter.grad.any()) for parameter in network.score.parameters())


@pytest.mark.parametrize(("loss", "share", "least"), [("denoising", 0.0, 0.4), ("decibel", 1.0, 0.0)])
def test_noise_of_all_levels_as_published_or_of_low_ones(monkeypatch, loss, share, least):
    monkeypatch.setattr(objectives, "_PURE_NOISE", share)
    levels = []

    def watched(network, clean, times, noise):
        process = SimpleNamespace(
            low=network.config.sigma_min, ratio=network.config.sigma_max / network.config.sigma_min
        )
        levels.extend((process.low * process.ratio**times).tolist())
        return (clean + noise).mean()

    monkeypatch.setattr(objectives, "denoising_loss", watched)
    one, network = started(), tiny("dstdm")
    for seed in range(20):
        assert bool(denoising_objective(network, one, loss, np.random.default_rng(seed)).isfinite())
    assert least <= np.mean(np.array(levels) > 0.5) <= least + 0.35


def test_an_image_too_narrow_for_planes_of_x_has_those_of_y():
    one = scan().crop(4, 3)
    for seed in range(4):
        assert bool(denoising_objective(tiny("dstdm"), one, "denoising", np.random.default_rng(seed)).isfinite())
