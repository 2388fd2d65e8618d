import json

import numpy as np
import pytest
import torch
from torch import nn

from recon_core.data import HybridSlice
from recon_core.errors import DataError
from recon_core.networks.unrolled_resnet3d import Cascade, UnrolledResNet3D, UnrolledResNet3DConfig
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.weights.matching import load_into
from tests.bench.published import dual_unet_resnet3d as published
from tests.helpers.parity import run_case
from tests.parity_cases.dual_unet_resnet3d import fill
from tests.recon_core.networks.test_dual_unet_resnet3d import (
    GOLDEN,
    images,
    needs_golden,
    relative,
    scan,
    without_change,
)
from tests.recon_core.physics.test_memory import peak_bytes


def small(**config):
    defaults = {"cascades": 2, "frames": 3, "features": 4, "planes": 4}
    network = UnrolledResNet3D(UnrolledResNet3DConfig(**{**defaults, **config})).eval()
    fill(network)
    return network


def problem(n_y=32, n_x=28, n_coils=2, batch=(), seed=0):
    data = scan(3, n_coils, n_y, n_x, seed)
    hybrid = torch.stack([data.hybrid * (i + 1) for i in range(*batch)]) if batch else data.hybrid
    mask = data.mask.expand(*batch, *data.mask.shape)
    consistency = DataConsistency(data.maps, mask, hybrid)
    return consistency.zero_filled, consistency


def improve(network, image, consistency):
    with torch.inference_mode():
        return network(image, consistency)


# --- published --------------------------------------------------------------------------------------------------------


@needs_golden
def test_golden():
    config = json.loads((GOLDEN / "keys.json").read_text())["unrolled_reduced"]["config"]
    arrays = dict(np.load(GOLDEN / "case_unrolled_reduced.npz"))
    results = run_case("unrolled_resnet3d", {key: arrays[key] for key in ("kspace", "mask")}, config)
    names = set(arrays) - {"kspace", "mask"}
    assert set(results) == names
    for key in names:
        assert results[key].shape == arrays[key].shape
        assert results[key].dtype == arrays[key].dtype
        assert np.linalg.norm(results[key] - arrays[key]) < 5e-6 * np.linalg.norm(arrays[key])


@needs_golden
def test_parameters_are_as_published():
    listed = json.loads((GOLDEN / "keys.json").read_text())
    with torch.device("meta"):
        reduced = UnrolledResNet3D(UnrolledResNet3DConfig(cascades=2, features=8))
        network = UnrolledResNet3D()
    shapes = {reduced.authors_key(key): list(tensor.shape) for key, tensor in reduced.state_dict().items()}
    assert shapes == {key: facts[0] for key, facts in listed["unrolled_reduced"]["state_dict"].items()}
    for built, name in ((reduced, "unrolled_reduced"), (network, "unrolled_official")):
        assert sum(parameter.numel() for parameter in built.parameters()) == listed[name]["param_count"]


def test_parameter_count():
    with torch.device("meta"):
        network = UnrolledResNet3D()
    assert sum(parameter.numel() for parameter in network.parameters()) == 190_112_523


@pytest.mark.parametrize("size", [(32, 28), (34, 40)])
def test_the_transcription_gives_the_same(size):
    network = small()
    mask = torch.rand(2, 3, size[0], generator=torch.Generator().manual_seed(1)) < 0.4
    kspace = fft(images(2, 3, *size), (-2, -1)) * mask[..., None]
    maps = torch.ones(1, *size, dtype=torch.complex64)
    consistency = DataConsistency(maps, mask, ifft(kspace, (-1,))[:, :, None])
    result = improve(network, consistency.zero_filled, consistency).abs()
    with torch.inference_mode():
        expected = published.unrolled(network, kspace * (size[0] * size[1]) ** 0.5, mask[..., None].float())
    assert relative(result, expected) < 2e-6


def test_a_checkpoint_of_the_authors_loads():
    network, other = small(), UnrolledResNet3D(small().config).eval()
    tensors = {network.authors_key(key): tensor.clone() for key, tensor in network.state_dict().items()}
    assert {key.partition(".")[0] for key in tensors} == {"unet1_blocks", "unet2_blocks", "resnet_blocks", "dc_layers"}
    load_into(other, tensors)
    assert torch.equal(improve(other, *problem()), improve(network, *problem()))


# --- image ------------------------------------------------------------------------------------------------------------


def test_lambda_draws_the_image_to_the_data():
    network, (image, consistency) = small(), problem(n_coils=1)
    measured = []
    for weight in (0.0, 1e6):
        with torch.no_grad():
            for cascade in network.cascades:
                cascade.lam.fill_(weight)
        result = improve(network, image, consistency)
        measured.append(relative(consistency.operator.normal(result), consistency.zero_filled))
    assert measured[0] > 0.1
    assert measured[1] < 1e-5


def test_signed_outputs():
    """As published a cascade gives a real and an imaginary part above zero, which no phase beyond 90 degrees has."""
    series = images(1, 3, 32, 32)
    results = []
    for signed in (False, True):
        cascade = Cascade(UnrolledResNet3DConfig(frames=3, features=4, planes=4, signed_outputs=signed)).eval()
        torch.manual_seed(0)
        for parameter in cascade.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with torch.inference_mode():
            results.append(torch.view_as_real(cascade(series)))
    assert 0 < results[0].min() < 0.3
    assert results[0].max() < 1
    torch.testing.assert_close(results[1], 2 * results[0] - 1)


def test_entries_of_a_batch_do_not_know_of_each_other():
    network, (image, consistency) = small(), problem(batch=(2,))
    both = improve(network, image, consistency)
    single = problem()
    torch.testing.assert_close(improve(network, *single), both[0], rtol=1e-5, atol=1e-5)
    assert relative(both[1], both[0]) > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 21), (33, 16)])
@pytest.mark.parametrize("n_coils", [1, 3])
def test_odd_and_tiny_images(size, n_coils):
    result = improve(small(), *problem(*size, n_coils=n_coils))
    assert result.shape == (3, *size)
    assert result.isfinite().all()
    assert (result != 0).any()


def test_nothing_gives_nothing():
    maps = torch.ones(1, 16, 16, dtype=torch.complex64)
    measured = torch.zeros(2, 3, 1, 16, 16, dtype=torch.complex64)
    measured[1] = 1
    consistency = DataConsistency(maps, torch.ones(2, 3, 16, dtype=torch.bool), measured)
    result = improve(small(), consistency.zero_filled, consistency)
    assert not (result[0] != 0).any()
    assert (result[1] != 0).any()


def test_frames_without_samples():
    data = scan(3, 2, 32, 32)
    data.hybrid[1], data.mask[1] = 0, False
    with torch.inference_mode():
        assert small().reconstruct(data).isfinite().all()


def test_other_numbers_of_frames_are_refused():
    network = small(frames=4)
    assert network.minimum_frames == network.maximum_frames == 4
    with pytest.raises(DataError, match="takes 4 frames, got 3"):
        improve(network, *problem())


# --- other variants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["none", "resnet"])
def test_without_a_change_the_image_is_made_consistent_only(fusion):
    network = without_change(small(residual=True, fusion=fusion))
    with torch.no_grad():
        for weight, cascade in zip((0.5, 2.0), network.cascades, strict=True):
            if fusion == "resnet":
                nn.init.zeros_(cascade.resnet.conv2.weight)
                nn.init.zeros_(cascade.resnet.conv2.bias)
            cascade.lam.fill_(weight)
    image, consistency = problem()
    image = 0.5 * image
    expected = consistency.weighted(consistency.weighted(image, 0.5), 2.0)
    assert relative(improve(network, image, consistency), expected) < 1e-6
    assert relative(expected, image) > 0.01


def test_a_change_is_between_minus_one_and_one():
    series = images(2, 3, 32, 32)
    with torch.inference_mode():
        change = small(residual=True).cascades[0](series) - series
    assert torch.view_as_real(change).abs().max() <= 1
    assert change.abs().max() > 0.01


def test_without_fusion_the_u_nets_give_the_parts():
    cascade = small(fusion="none", signed_outputs=True).cascades[0]
    series = images(2, 3, 32, 32)
    with torch.inference_mode():
        result = cascade(series)
        real, imaginary = cascade.unet_real(series.real), cascade.unet_imag(series.imag)
    torch.testing.assert_close(result, torch.complex(2 * real - 1, 2 * imaginary - 1))
    assert not any(key.startswith("resnet") for key in cascade.state_dict())


# --- scan -------------------------------------------------------------------------------------------------------------


def test_the_phase_of_a_scan_goes_through():
    network, data = small(), scan(3, 2, 32, 32)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    turned = HybridSlice(data.hybrid * turn, data.mask, data.maps, data.reference, data.measured)
    with torch.inference_mode():
        first, second = network.reconstruct(data), network.reconstruct(turned)
    assert relative(second, turn * first) < 1e-5


def test_the_data_consistency_knows_of_the_phase():
    network, data = small(), scan(3, 1, 32, 32)
    with torch.no_grad():
        for cascade in network.cascades:
            cascade.lam.fill_(1e6)
    with torch.inference_mode():
        image = network.reconstruct(data)
    kept = fft(image, (-2,)) * data.mask[..., None]
    assert relative(kept, data.hybrid[:, 0]) < 1e-5


@pytest.mark.parametrize(
    "shape", [(20, 1, 96, 80), (20, 6, 64, 96), pytest.param((20, 8, 128, 128), marks=pytest.mark.slow)]
)
def test_memory(shape):
    network = UnrolledResNet3D(UnrolledResNet3DConfig(cascades=2, features=16)).eval()
    data = scan(*shape)
    with torch.inference_mode():
        measured = peak_bytes(lambda: network.reconstruct(data))
    assert measured <= network.working_bytes(shape) <= 1.5 * measured


# --- training and precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_gradients(signed):
    network = small(signed_outputs=signed).train()
    image, consistency = problem(batch=(2,))
    network(image, consistency).abs().square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_half_precision():
    network, (image, consistency) = small(), problem()
    exact = improve(network, image, consistency)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = improve(network, image, consistency)
    assert result.dtype == torch.complex64
    assert 0 < relative(result, exact) < 1e-2
