import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recon_core.data import HybridSlice
from recon_core.networks.blocks import PORTION_BYTES
from recon_core.networks.crnn_mri import CRNNMRI, CRNNMRIConfig
from recon_core.networks.golden import fill
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from tests.bench.published import crnn_mri as published
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, needs
from tests.recon_core.networks.support import random_series
from tests.recon_core.physics.test_memory import peak_bytes

GOLDEN = SHARED / "parity" / "crnn_mri"
needs_golden = needs(GOLDEN)


def small(**config):
    network = CRNNMRI(CRNNMRIConfig(**{"iterations": 2, "channels": 6, **config})).eval()
    fill(network)
    return network


def series(n_frames=4, n_coils=1, n_y=12, n_x=10, **more):
    return random_series(n_frames, n_coils, n_y, n_x, **more)


@needs_golden
@pytest.mark.parametrize(
    "name",
    ["fill_default", "fill_reduced_batch2", "pretrained", pytest.param("psnr_demo", marks=pytest.mark.slow)],
)
def test_golden(name):
    arrays = dict(np.load(GOLDEN / f"case_{name}.npz"))
    config = json.loads(str(arrays.pop("config")))
    results = run_case("crnn_mri", arrays, config)
    names = {"psnr_zero_filled", "psnr_crnn"} if name == "psnr_demo" else {"iter_out", "out"}
    assert set(results) == names
    for key in names:
        assert results[key].shape == arrays[key].shape
        limit = 0.01 if name == "psnr_demo" else 2e-5 * np.abs(arrays[key]).max()
        assert np.abs(results[key] - arrays[key]).max() < limit


@needs_golden
def test_the_published_weights_fit():
    network = CRNNMRI()
    names = {network.authors_key(key): tuple(tensor.shape) for key, tensor in network.named_parameters()}
    listed = json.loads((GOLDEN / "keys.json").read_text())
    assert names == {key: tuple(entry[0]) for key, entry in listed["state_dict"].items()}
    tensors = load_file(GOLDEN / "crnn_mri_d5_c5.safetensors")
    assert names == {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize(("shared", "expected"), [(True, 297_794), (False, 1_488_970)])
def test_number_of_parameters(shared, expected):
    network = CRNNMRI(CRNNMRIConfig(shared_weights=shared))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_separate_weights_are_used_in_turn():
    shared, separate = small(), small(shared_weights=False)
    image, consistency, _ = series()
    for denoiser in separate.denoisers:
        denoiser.load_state_dict(shared.denoisers[0].state_dict())
    expected = shared(image, consistency)
    torch.testing.assert_close(separate(image, consistency), expected)
    with torch.no_grad():
        separate.denoisers[1].conv4_x.bias.add_(1)
    assert (separate(image, consistency) - expected).abs().max() > 0.1
    assert len({separate.authors_key(key) for key, _ in separate.named_parameters()}) == 2 * 20


@pytest.mark.parametrize("config", [{}, {"shared_weights": False, "iterations": 3}])
def test_published_form_gives_the_same(config):
    network = small(**config)
    image, _, (_, mask, _) = series(n_frames=5, batch=(2,))
    sampled = mask[..., None].expand(image.shape)
    kspace = torch.where(sampled, torch.fft.fft2(image, norm="ortho"), 0)
    start = torch.fft.ifft2(kspace, norm="ortho")
    maps = torch.ones(1, *image.shape[-2:], dtype=image.dtype)
    consistency = DataConsistency(maps, torch.fft.fftshift(mask, -1), fft(start, (-2,))[:, :, None])

    def pairs(array):
        return torch.stack((array.real, array.imag), 1).permute(0, 1, 3, 4, 2)

    expected = published.forward(network, pairs(start), pairs(kspace), pairs(torch.complex(*[sampled.float()] * 2)))
    torch.testing.assert_close(pairs(network(start, consistency)), expected, rtol=1e-4, atol=1e-5)


def test_time_can_be_reversed():
    network = small()
    image, consistency, (maps, mask, measured) = series(n_coils=3)
    backwards = DataConsistency(maps, mask.flip(0), measured.flip(0))
    result = network(image.flip(0), backwards).flip(0)
    torch.testing.assert_close(result, network(image, consistency), rtol=1e-4, atol=1e-5)


def test_entries_of_a_batch_do_not_meet():
    network = small()
    image, consistency, (maps, mask, measured) = series(n_coils=3, batch=(2,))
    together = network(image, consistency)
    for i in range(2):
        alone = network(image[i], DataConsistency(maps, mask[i], measured[i]))
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_portions_change_nothing(monkeypatch):
    network = small()
    image, consistency, _ = series()
    with torch.inference_mode():
        expected = network(image, consistency)
        monkeypatch.setitem(PORTION_BYTES, "cpu", 1)
        torch.testing.assert_close(network(image, consistency), expected, rtol=1e-4, atol=1e-5)


def test_points_of_a_plane():
    """A mask that varies along the readout, here the same everywhere."""
    network = small()
    image, consistency, (maps, mask, measured) = series(n_coils=2)
    points = DataConsistency(maps, mask[..., None].expand(*mask.shape, 10), fft(measured, (-1,)))
    torch.testing.assert_close(network(image, points), network(image, consistency), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 3, 5, 4), (2, 1, 1, 7), (3, 2, 9, 1)])
def test_any_size(size):
    n_frames, n_coils, n_y, n_x = size
    image, consistency, _ = series(n_frames, n_coils, n_y, n_x)
    result = small()(image, consistency)
    assert result.shape == image.shape
    assert result.isfinite().all()


def test_no_signal_gives_zeros_in_its_entry_only():
    network = small()
    image, _, (maps, mask, measured) = series(n_coils=2, batch=(2,))
    measured[1] = 0
    consistency = DataConsistency(maps, mask, measured)
    result = network(consistency.zero_filled, consistency)
    assert (result[1] == 0).all()
    torch.testing.assert_close(result[0], network(image, series(n_coils=2, batch=(2,))[1])[0])


def test_frames_without_samples():
    _, _, (maps, mask, measured) = series(n_coils=2)
    mask[1:3] = False
    consistency = DataConsistency(maps, mask, measured)
    result = small()(consistency.zero_filled, consistency)
    assert result.isfinite().all()
    assert result[1].abs().max() > 0


def test_every_parameter_gets_a_gradient():
    network = small()
    image, consistency, _ = series(n_coils=2)
    network(image, consistency).abs().square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_gradient_is_that_of_a_small_step():
    network = small()
    image, consistency, _ = series(n_coils=2)
    bias = network.denoisers[0].conv2_h.bias

    def loss():
        return network(image, consistency).abs().square().sum().double()

    loss().backward()
    with torch.no_grad():
        bias[2] += 1e-2
        above = loss()
        bias[2] -= 2e-2
        below = loss()
    assert abs((above - below) / 2e-2 - bias.grad[2]) < 0.02 * bias.grad.abs().max()


def test_reduced_precision():
    network = small(channels=16)
    image, consistency, _ = series(n_coils=2, n_y=24, n_x=20)
    with torch.inference_mode():
        expected = network(image, consistency)
        with torch.autocast("cpu", torch.bfloat16):
            result = network(image, consistency)
    assert result.dtype == torch.complex64
    assert 1e-5 < (result - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize(
    "shape",
    [
        (12, 4, 48, 64),
        pytest.param((8, 8, 120, 90), marks=pytest.mark.slow),
        pytest.param((20, 10, 96, 40), marks=pytest.mark.slow),
    ],
)
def test_prediction_of_memory(shape):
    network = CRNNMRI(CRNNMRIConfig(channels=16, iterations=2)).eval()
    _, _, (maps, mask, measured) = series(*shape)
    data = HybridSlice(measured, mask, maps, measured[0], mask[0])
    with torch.inference_mode():
        taken = peak_bytes(lambda: network.reconstruct(data))
    assert taken < network.working_bytes(shape) < 1.5 * taken
