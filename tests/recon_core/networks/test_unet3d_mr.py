import pytest
import torch
from torch.nn import functional

from recon_core.errors import ModelError
from recon_core.networks import blocks
from recon_core.networks.golden import fill
from recon_core.networks.unet3d_mr import PeriodicConvolution, UNet3DMR, UNet3DMRConfig
from recon_core.physics.fourier import fft
from tests.helpers.parity import run_case
from tests.recon_core.networks.test_crunet_mr import error, problem, reconstruct
from tests.recon_core.physics.test_memory import peak_bytes


def network(**config):
    built = UNet3DMR(UNet3DMRConfig(**{"cascades": 2, "channels": 8, **config}))
    fill(built)
    return built.eval()


@pytest.mark.parametrize(("kernel", "expected"), [(1, 4_002_250), (3, 4_534_730)])
def test_number_of_parameters(kernel, expected):
    assert sum(p.numel() for p in UNet3DMR(UNet3DMRConfig(bottleneck_kernel=kernel)).parameters()) == expected


def test_kernel_that_changes_the_size_is_refused():
    with pytest.raises(ModelError, match="must be 1 or 3, got 2"):
        UNet3DMRConfig(bottleneck_kernel=2)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("n_frames", "kernel"), [(1, 3), (2, 3), (5, 3), (3, 1)])
def test_convolution_is_its_definition(n_frames, kernel, grad, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(blocks.PORTION_BYTES, "cpu", 1)
    block = PeriodicConvolution(3, 2, kernel)
    features = torch.randn(2, n_frames, 3, 6, 7)
    around = torch.cat((features[:, -1:], features, features[:, :1]), 1).transpose(1, 2)
    margin = 2 * (kernel // 2)
    expected = functional.conv3d(
        around, block.conv3d.weight, block.conv3d.bias, padding=(0, margin, margin), dilation=(1, 2, 2)
    )
    expected = expected[:, :, 1:-1] if kernel == 1 else expected
    with torch.set_grad_enabled(grad):
        result = block(features, None)
    torch.testing.assert_close(result, functional.relu(expected).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_measured_lines_of_one_coil_are_kept():
    maps, mask, measured = problem(n_coils=1)
    with torch.inference_mode():
        image = reconstruct(network(), maps, mask, measured)
    lines = fft(maps * image[:, None], (-2,)).movedim(1, -1)[mask]
    assert error(lines, measured.movedim(1, -1)[mask]) < 1e-5


@pytest.mark.parametrize("kernel", [1, 3])
def test_shifting_the_frames_shifts_the_image(kernel):
    built = network(bottleneck_kernel=kernel)
    maps, mask, measured = problem(5)
    with torch.inference_mode():
        plain = reconstruct(built, maps, mask, measured)
        shifted = reconstruct(built, maps, mask.roll(2, 0), measured.roll(2, 0))
    assert error(shifted, plain.roll(2, 0)) < 1e-5
    assert error(shifted, plain) > 1e-2


def test_frames_see_their_neighbours():
    built = network(cascades=1, bottleneck_kernel=3)
    maps, mask, measured = problem(5)
    changed = measured.clone()
    changed[2] *= 1.5
    with torch.inference_mode():
        difference = reconstruct(built, maps, mask, changed) - reconstruct(built, maps, mask, measured)
    assert difference.abs().amax((1, 2)).min() > 1e-3


def test_scaling_the_data_scales_the_image():
    built = network()
    maps, mask, measured = problem()
    with torch.inference_mode():
        plain, scaled = reconstruct(built, maps, mask, measured), reconstruct(built, maps, mask, 37 * measured)
    assert error(scaled, 37 * plain) < 1e-5


def test_entries_of_a_batch_do_not_mix():
    built = network()
    maps, mask, measured = problem(n_batch=2)
    measured[1] *= 5
    with torch.inference_mode():
        together = reconstruct(built, maps, mask, measured)
        for entry in range(2):
            assert error(together[entry], reconstruct(built, maps[entry], mask[entry], measured[entry])) < 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 20, 16), (3, 1, 5, 7), (2, 2, 1, 1), (1, 1, 1, 1)])
def test_any_size(shape):
    with torch.inference_mode():
        image = reconstruct(network(), *problem(*shape))
    assert image.shape == (shape[0], *shape[2:])
    assert image.isfinite().all()


def test_no_signal_gives_zeros():
    maps, mask, measured = problem()
    with torch.inference_mode():
        assert not (reconstruct(network(), maps, mask, torch.zeros_like(measured)) != 0).any()


def test_frames_without_lines():
    maps, mask, measured = problem()
    mask[1] = False
    with torch.inference_mode():
        assert reconstruct(network(), maps, mask, measured).isfinite().all()


def test_gradients_reach_every_parameter():
    built = network(bottleneck_kernel=3)
    image = reconstruct(built, *problem(n_batch=2))
    with torch.no_grad():
        assert error(reconstruct(built, *problem(n_batch=2)), image) < 1e-5
    image.abs().square().sum().backward()
    for key, parameter in built.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_autocast():
    built, data = network(), problem()
    with torch.inference_mode():
        plain = reconstruct(built, *data)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = reconstruct(built, *data)
    assert 0 < torch.linalg.vector_norm(rounded - plain) / torch.linalg.vector_norm(plain) < 0.03


@pytest.mark.parametrize(
    "shape", [(2, 4, 130, 120), (3, 8, 27, 40), pytest.param((12, 10, 64, 96), marks=pytest.mark.slow)]
)
def test_memory_prediction(shape):
    built = network(channels=32)
    data = problem(*shape)
    with torch.inference_mode():
        measured = peak_bytes(lambda: reconstruct(built, *data))
    assert measured <= built.working_bytes(shape) < 1.5 * measured


def test_arrays_of_the_authors_form():
    maps, mask, measured = problem(3, 2, 12, 10)
    kspace = fft(measured, (-1,)).mT[None].numpy()
    arrays = {"kspace": kspace, "sens": maps.mT[None, None].numpy(), "mask": mask[None, :, None, None].float().numpy()}
    config = {"num_cascades": 2, "chans": 8, "bottleneck_kernel": 3, "fft": "centred"}
    outputs = run_case("unet3d_mr", arrays, config)
    with torch.inference_mode():
        expected = reconstruct(network(bottleneck_kernel=3), maps, mask, measured).mT.numpy()
    assert error(outputs["out"][0], expected) < 1e-5
    assert outputs["cascade_out"].shape == (2, *expected.shape)
    assert error(outputs["cascade_out"][1], expected) < 1e-5
