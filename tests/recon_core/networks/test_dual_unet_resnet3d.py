import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.errors import DataError, ModelError
from recon_core.networks.dual_unet_resnet3d import (
    DualUNetResNet3D,
    DualUNetResNet3DConfig,
    FusionResNet,
    UNet,
    normalised_convolution,
    smooth_phase,
)
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from recon_core.weights.matching import load_into
from tests.bench.published import dual_unet_resnet3d as published
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, needs
from tests.parity_cases.dual_unet_resnet3d import fill, fully_sampled, value
from tests.recon_core.physics.test_memory import peak_bytes

GOLDEN = SHARED / "parity" / "dual_unet_resnet3d"
needs_golden = needs(GOLDEN)
VARIANTS = [{}, {"fusion": "resnet"}, {"unets": 1}]


def small(**config):
    network = DualUNetResNet3D(DualUNetResNet3DConfig(**{"frames": 3, "features": 4, "planes": 4, **config})).eval()
    fill(network)
    return network


def images(*shape, seed=0):
    return 0.3 * torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def improve(network, image):
    """The network on an image without or with a batch axis."""
    with torch.inference_mode():
        return network(image, fully_sampled(image.reshape(-1, *image.shape[-3:])))


def scan(n_frames=3, n_coils=3, n_y=40, n_x=36, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n_frames, n_y, generator=generator) < 0.4
    mask[:, n_y // 2 - 5 : n_y // 2 + 6] = True
    hybrid = torch.randn(n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    hybrid = hybrid * mask[:, None, :, None]
    maps = torch.full((n_coils, n_y, n_x), n_coils**-0.5, dtype=torch.complex64)
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask))


def relative(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


# --- published --------------------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("name", ["base_default", "base_reduced", "one_unet_reduced"])
def test_golden(name):
    config = json.loads((GOLDEN / "keys.json").read_text())[name]["config"]
    arrays = dict(np.load(GOLDEN / f"case_{name}.npz"))
    results = run_case("dual_unet_resnet3d", {"x": arrays["x"]}, config)
    names = set(arrays) - {"x", "mask", "label"}
    assert set(results) == names
    for key in names:
        assert results[key].shape == arrays[key].shape
        assert results[key].dtype == arrays[key].dtype
        assert np.linalg.norm(results[key] - arrays[key]) < 5e-6 * np.linalg.norm(arrays[key])


@needs_golden
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("base_default", {"fusion": "resnet"}),
        ("base_reduced", {"fusion": "resnet", "features": 8}),
        ("one_unet_reduced", {"fusion": "resnet", "features": 8, "unets": 1}),
    ],
)
def test_parameters_are_as_published(name, variant):
    listed = json.loads((GOLDEN / "keys.json").read_text())[name]
    with torch.device("meta"):
        network = DualUNetResNet3D(DualUNetResNet3DConfig(**variant))
    assert sum(parameter.numel() for parameter in network.parameters()) == listed["param_count"]
    if "state_dict" in listed:
        shapes = {network.authors_key(key): list(tensor.shape) for key, tensor in network.state_dict().items()}
        assert shapes == {key: facts[0] for key, facts in listed["state_dict"].items()}


@pytest.mark.parametrize(("variant", "count"), [({"fusion": "resnet"}, 63_370_180), ({}, 63_219_952)])
def test_parameter_count(variant, count):
    with torch.device("meta"):
        network = DualUNetResNet3D(DualUNetResNet3DConfig(**variant))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("fusion", ["none", "resnet"])
@pytest.mark.parametrize("size", [(32, 48), (50, 44), (39, 33)])
def test_the_transcription_gives_the_same(fusion, size):
    network, image = small(fusion=fusion), images(2, 3, *size)
    with torch.inference_mode():
        expected = published.forward(network, torch.stack((image.real, image.imag), 2))[..., : size[0], : size[1]]
    result = improve(network, image)
    assert not result.imag.any()
    assert relative(result.real, expected) < 2e-6


def test_the_transcription_has_the_published_order_in_memory():
    network = small()
    network.requires_grad_(False)
    copy = published.in_published_order(network)
    assert copy.unet_real.encoder2.conv1.weight.is_contiguous()
    assert not network.unet_real.encoder2.conv1.weight.is_contiguous()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_of_the_authors_loads(variant):
    network, other = small(**variant), DualUNetResNet3D(small(**variant).config).eval()
    tensors = {network.authors_key(key): tensor.clone() for key, tensor in network.state_dict().items()}
    assert not set(tensors) & {key for key in tensors if "encoder" in key and ".enc" not in key}
    report = load_into(other, tensors)
    assert len(report.matched) == len(tensors)
    assert torch.equal(improve(other, images(3, 32, 32)), improve(network, images(3, 32, 32)))


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_channels", [3, 300])
def test_normalised_convolution_is_the_two_layers(n_channels):
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(n_channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm(torch.randn(4, 6, 5, 5) + 3)
    features = torch.randn(1, n_channels, 16, 12)
    assert (layer.weight[0].numel() > features[:, 0].numel()) == (n_channels == 300)
    for training in (False, True):
        norm.train(training)
        statistics = norm.running_mean.clone()
        result = normalised_convolution(features, layer.weight, norm)
        assert torch.equal(norm.running_mean, statistics) != training
        norm.running_mean.copy_(statistics)
        torch.testing.assert_close(result, norm(layer(features)), rtol=1e-4, atol=1e-4)


def test_many_channels_are_made_in_portions():
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(8, 600, 3, padding=1, bias=False), nn.BatchNorm2d(600).eval()
    features = torch.randn(1, 8, 4, 4)
    assert layer.weight[0].numel() > features[:, 0].numel()
    result = normalised_convolution(features, layer.weight, norm)
    torch.testing.assert_close(result, norm(layer(features)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1), (1, 4)])
def test_the_fusion_keeps_the_size(size):
    """An odd size is as if a line of zeros were behind it."""
    network = small(fusion="resnet").resnet
    frames = torch.rand(2, 3, *size)
    with torch.inference_mode():
        even = functional.pad(frames, (0, size[1] % 2, 0, size[0] % 2))
        assert network(frames).shape == frames.shape
        torch.testing.assert_close(network(frames), network(even)[..., : size[0], : size[1]])


def test_only_the_central_plane_of_the_fusion_counts():
    network = FusionResNet(3, 4, 3).eval()
    frames = torch.rand(1, 3, 8, 8)
    network(frames).sum().backward()
    for layer in (network.conv1, network.layer1[0].conv1, network.layer1[0].conv2):
        assert not layer.weight.grad[:, :, [0, 2]].any()
        assert layer.weight.grad[:, :, 1].any()


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    network, frames = UNet(3, 4, 0.3).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(frames), network(frames))
        network.train()
        assert not torch.equal(network(frames), network(frames))


def test_initial_weights():
    torch.manual_seed(0)
    network = UNet(3, 8, 0.3)
    expected = (2 / (1 + 0.01**2) / (128 * 9)) ** 0.5  # Kaiming, fan out
    assert network.bottleneck.conv1.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not any(module.bias.any() for module in network.modules() if isinstance(module, nn.ConvTranspose2d))


# --- image ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_entries_of_a_batch_do_not_know_of_each_other(variant):
    network, image = small(**variant), images(2, 3, 32, 24)
    both = improve(network, image)
    for i in (0, 1):
        torch.testing.assert_close(improve(network, image[i]), both[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 40), (17, 16)])
def test_odd_and_tiny_images(variant, size):
    result = improve(small(**variant), images(3, *size))
    assert result.shape == (3, *size)
    assert result.isfinite().all()
    assert (result.real > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_gives_nothing(variant):
    image = images(2, 3, 16, 16)
    image[0] = 0
    result = improve(small(**variant), image)
    assert not (result[0] != 0).any()
    assert result[1].real.all()


def test_other_numbers_of_frames_are_refused():
    network = small()
    assert network.minimum_frames == network.maximum_frames == 3
    with pytest.raises(DataError, match="takes 3 frames, got 4"):
        improve(network, images(4, 16, 16))


def test_one_frame_is_possible():
    assert improve(small(frames=1), images(1, 16, 16)).shape == (1, 16, 16)


@pytest.mark.parametrize("unets", [0, 3])
def test_other_numbers_of_unets_are_refused(unets):
    with pytest.raises(ModelError, match="one or two"):
        DualUNetResNet3DConfig(unets=unets)


# --- changes instead of images ----------------------------------------------------------------------------------------


def without_change(network):
    """Let the sigmoids of the U-Nets give a half, which is no change."""
    for part in network.modules():
        if isinstance(part, UNet):
            nn.init.zeros_(part.conv.weight)
            nn.init.zeros_(part.conv.bias)
    return network


@pytest.mark.parametrize("unets", [1, 2])
def test_without_a_change_the_image_passes(unets):
    image = 3 * images(2, 3, 40, 36)
    assert torch.equal(improve(without_change(small(residual=True, unets=unets)), image), image)


@pytest.mark.parametrize("unets", [1, 2])
def test_changes_are_added_to_the_image(unets):
    image = images(3, 40, 36)
    network, plain = small(residual=True, unets=unets), small(unets=unets)
    change = improve(network, image) - image
    assert max(change.real.abs().max(), change.imag.abs().max()) <= 1
    # the same U-Nets, whose results the other variant puts together to a magnitude
    halves = torch.hypot((change.real + 1) / 2, (change.imag + 1) / 2)
    assert relative(halves, improve(plain, image).real) < 1e-5
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_changes_reach_a_scan_with_any_phase():
    data = scan(n_y=32, n_x=30)
    network = without_change(small(residual=True))
    expected = DataConsistency(data.maps, data.mask, data.hybrid).zero_filled
    with torch.inference_mode():
        assert relative(network.reconstruct(data), expected) < 1e-5
        empty = dataclasses.replace(data, hybrid=0 * data.hybrid)
        assert not (small(residual=True).reconstruct(empty) != 0).any()


def test_changes_do_not_go_with_fusion():
    with pytest.raises(ModelError, match="residual goes with fusion=none"):
        DualUNetResNet3DConfig(residual=True, fusion="resnet")


# --- scan -------------------------------------------------------------------------------------------------------------


def test_the_smooth_phase_of_an_image_is_found():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 40), indexing="ij")
    angle = 0.8 * torch.sin(2 * y) + 0.7 * x + 1
    image = torch.polar(torch.exp(-2 * (x**2 + y**2)), angle).expand(4, 48, 40)
    mask = torch.rand(4, 48, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 16:33] = True
    maps = torch.polar(torch.full((2, 48, 40), 0.5**0.5), torch.stack((x, y)))
    hybrid = fft(maps * image[:, None], (-2,)) * mask[:, None, :, None]
    phase = smooth_phase(HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask)))
    assert phase.shape == (48, 40)
    torch.testing.assert_close(phase.abs(), torch.ones(48, 40))
    inside = x**2 + y**2 < 0.7
    assert (phase * torch.polar(torch.ones_like(angle), -angle)).angle()[inside].abs().max() < 0.1


def test_where_nothing_is_measured_the_phase_is_zero():
    data = scan()
    data.hybrid.zero_()
    assert torch.equal(smooth_phase(data), torch.ones(40, 36, dtype=torch.complex64))


def test_the_phase_of_a_scan_goes_through():
    """A network for images without phase must not mind the phase of the receiver."""
    network, data = small(), scan()
    turn = torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    turned = HybridSlice(data.hybrid * turn, data.mask, data.maps, data.reference * turn, data.measured)
    with torch.inference_mode():
        first, second = network.reconstruct(data), network.reconstruct(turned)
    assert relative(second, turn * first) < 1e-5
    plain = improve(network, DataConsistency(data.maps, data.mask, data.hybrid).zero_filled)
    assert relative(first.abs(), plain.abs()) > 1e-3  # it is not what the network makes of an image with phase


def test_the_result_has_the_phase_of_the_scan():
    data = scan()
    with torch.inference_mode():
        image = small().reconstruct(data)
    assert image.dtype == torch.complex64
    torch.testing.assert_close(image / smooth_phase(data), image.abs().to(torch.complex64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(20, 1, 96, 80), (20, 6, 64, 96), pytest.param((20, 8, 128, 128), marks=pytest.mark.slow)]
)
def test_memory(shape):
    network = DualUNetResNet3D(DualUNetResNet3DConfig(features=32)).eval()
    data = scan(*shape)
    with torch.inference_mode():
        measured = peak_bytes(lambda: network.reconstruct(data))
    assert measured <= network.working_bytes(shape) <= 1.5 * measured


# --- training and precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant):
    network, image = small(**variant), images(2, 3, 32, 32)
    for training in (True, False):
        network.train(training).zero_grad()
        result = network(image, fully_sampled(image))
        (result.abs() - 0.5).square().mean().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


def test_loading_after_use_counts():
    """Nothing of the weights is kept aside for inference."""
    network, other = small(), small()
    image = images(3, 32, 32)
    before = improve(network, image)
    with torch.no_grad():
        for buffer in other.buffers():
            buffer.mul_(2)
    network.load_state_dict(other.state_dict())
    assert relative(improve(network, image), before) > 1e-3
    assert torch.equal(improve(network, image), improve(other, image))


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision(variant):
    network, image = small(**variant), images(3, 32, 40)
    exact = improve(network, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = improve(network, image)
    assert result.dtype == torch.complex64
    assert 0 < relative(result, exact) < 1e-2


def test_the_fill_of_the_goldens():
    assert value("a.running_var", (5,)).min() >= 1
    assert value("a.weight", (5,)).mean() == pytest.approx(1, abs=0.2)
