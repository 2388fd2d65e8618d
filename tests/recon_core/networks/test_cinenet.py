import json

import numpy as np
import pytest
import torch

from recon_core.data import HybridSlice
from recon_core.errors import SettingsError
from recon_core.networks.blocks import PORTION_BYTES
from recon_core.networks.cinenet import CineNet, CineNetConfig
from recon_core.networks.golden import fill
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from tests.bench.published import cinenet as published
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, needs
from tests.parity_cases.cinenet import build, value
from tests.recon_core.networks.support import random_series
from tests.recon_core.physics.test_memory import peak_bytes

GOLDEN = SHARED / "parity" / "cinenet"
CASES = ["constructor_default", "script_default", "reduced_3d", "reduced_xt_shared", "reduced_crnn"]
KINDS = ["XF", "XT", "2D", "3D", "CRNN"]
needs_golden = needs(GOLDEN)


def case(name):
    return json.loads((GOLDEN / "keys.json").read_text())[name]


def small(**config):
    config = {"cascades": 2, "cg_iterations": 2, "channels": 4, "pools": 2, **config}
    network = CineNet(CineNetConfig(**config)).eval()
    fill(network, value)
    return network


def series(n_frames=9, n_coils=3, n_y=14, n_x=11, **more):
    return random_series(n_frames, n_coils, n_y, n_x, **more)


def difference(result, expected):
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


@needs_golden
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "constructor_default" else name for name in CASES]
)
def test_golden(name):
    arrays = dict(np.load(GOLDEN / f"case_{name}.npz"))
    results = run_case("cinenet", arrays, case(name)["config"])
    outputs = set(arrays) - {"kspace", "mask", "sens_maps"}
    assert outputs <= set(results)
    for key in outputs:
        limit = 2e-4 if "default" in name and key in ("output", "cascade_last") else 1e-5
        assert results[key].shape == arrays[key].shape
        assert difference(results[key], arrays[key]) < limit


@needs_golden
@pytest.mark.parametrize("name", CASES)
def test_every_published_tensor_has_its_place(name):
    listed = case(name)
    network = build(listed["config"])
    assert sum(parameter.numel() for parameter in network.parameters()) == listed["param_count"]
    named = list(network.named_parameters(remove_duplicate=False))
    shapes = {network.authors_key(key): tuple(parameter.shape) for key, parameter in named}
    expected = {key: tuple(entry[0]) for key, entry in listed["state_dict"].items()}
    if "cascades.0.lambda_reg" in expected:
        own = {key: shape for key, shape in expected.items() if key.startswith("model.")}
        for i in range(listed["config"]["num_cascades"]):
            expected |= {f"cascades.{i}.{key}": shape for key, shape in own.items()}
    assert shapes == expected
    assert len(shapes) == listed["entries"]
    # Each tensor once, under the name that does not repeat.
    once = {network.authors_key(key) for key, _ in network.named_parameters()}
    assert once == set(listed["state_dict"])


def test_lambda_is_one_before_training():
    for kind in KINDS:
        network = CineNet(CineNetConfig(channels=2, pools=1, dynamic_type=kind))
        for key, parameter in network.named_parameters():
            if "lambda" in key:
                torch.testing.assert_close(torch.nn.functional.softplus(parameter), torch.ones(1))


@pytest.mark.parametrize(
    "config", [{}, {"weight_sharing": True, "dynamic_type": "XT"}, *({"dynamic_type": k} for k in ("2D", "3D"))]
)
def test_published_form_gives_the_same(config):
    network = small(cg_iterations=3, **config)
    image, consistency, (maps, mask, measured) = series()
    kspace = fft(measured, (-1,)) * mask[:, None, :, None]
    expected = published.forward(
        network,
        torch.view_as_real(kspace)[None],
        mask[None, :, None, :, None, None].float(),
        torch.view_as_real(maps)[None, None],
    )
    result = network(image, consistency).abs()
    assert difference(result.detach().numpy(), expected[0].detach().numpy()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_entries_of_a_batch_do_not_meet(kind):
    network = small(dynamic_type=kind)
    image, consistency, (maps, mask, measured) = series(batch=(2,))
    together = network(image, consistency).detach()
    for i in range(2):
        alone = network(image[i], DataConsistency(maps, mask[i], measured[i])).detach()
        assert difference(together[i].numpy(), alone.numpy()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_portions_change_nothing(kind, monkeypatch):
    network = small(dynamic_type=kind)
    image, consistency, _ = series()
    with torch.inference_mode():
        expected = network(image, consistency)
        monkeypatch.setitem(PORTION_BYTES, "cpu", 1)
        assert difference(network(image, consistency).numpy(), expected.numpy()) < 1e-4


def test_the_mean_over_time_passes_the_denoiser():
    network = small()
    image, _, _ = series()
    still = 100 * torch.randn(1, 14, 11, dtype=torch.complex64)
    change = network.model(image + still, {}) - network.model(image, {})
    torch.testing.assert_close(change, still.expand_as(change), rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 2, 9, 6), (3, 1, 1, 7), (4, 2, 7, 7), (5, 2, 20, 1)])
def test_any_size(kind, size):
    image, consistency, _ = series(*size)
    result = small(dynamic_type=kind)(image, consistency)
    assert result.shape == image.shape
    assert result.isfinite().all()


def test_planes_are_padded_only_where_the_published_fail():
    """Two pixels in the last level are taken as they are, one is not."""
    unet = small(dynamic_type="2D").model.unets[0]
    seen = []
    unet.conv.register_forward_hook(lambda *call: seen.append(tuple(call[-1].shape[2:])))
    for size in ((4, 8), (8, 4), (7, 7), (4, 4), (3, 30), (2, 2)):
        assert unet(torch.randn(1, 2, *size)).shape == (1, 2, *size)
    assert seen == [(1, 2), (2, 1), (2, 2), (2, 2), (2, 7), (2, 2)]


@pytest.mark.parametrize(("kind", "expected"), [("XF", 16), ("XT", 16), ("3D", 16), ("2D", 1), ("CRNN", 1)])
def test_minimum_of_frames(kind, expected):
    assert CineNet(CineNetConfig(channels=2, dynamic_type=kind)).minimum_frames == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_signal_gives_zeros_in_its_entry_only(kind):
    network = small(dynamic_type=kind)
    _, _, (maps, mask, measured) = series(batch=(2,))
    measured[1] = 0
    consistency = DataConsistency(maps, mask, measured)
    result = network(consistency.zero_filled, consistency)
    assert (result[1] == 0).all()
    assert result[0].abs().max() > 0
    assert result.isfinite().all()


def test_frames_without_samples():
    _, _, (maps, mask, measured) = series()
    mask[1:3] = False
    consistency = DataConsistency(maps, mask, measured)
    result = small()(consistency.zero_filled, consistency)
    assert result.isfinite().all()
    assert result[1].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    network = small(dynamic_type=kind)
    image, consistency, _ = series()
    (network(image, consistency) - 1).abs().square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_step_sizes_are_constants_in_training_as_published():
    """The gradients of the published form, whose step sizes are numbers; those of the whole solution are others."""
    _, _, (maps, mask, measured) = series()
    kspace = fft(measured, (-1,)) * mask[:, None, :, None]
    gradients = {}
    for constant in (True, False):
        network = small(constant_steps=constant)
        consistency = DataConsistency(maps, mask, measured)
        network(consistency.zero_filled, consistency).abs().sum().backward()
        gradients[constant] = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    network = small()
    arguments = mask[None, :, None, :, None, None].float(), torch.view_as_real(maps)[None, None]
    published.forward(network, torch.view_as_real(kspace)[None], *arguments).sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert difference(gradients[True], expected) < 1e-3
    assert difference(gradients[False], expected) > 1e-2


def test_reduced_precision():
    network = small(channels=8)
    image, consistency, _ = series(n_frames=16, n_y=24, n_x=20)
    with torch.inference_mode():
        expected = network(image, consistency)
        with torch.autocast("cpu", torch.bfloat16):
            result = network(image, consistency)
    assert result.dtype == torch.complex64
    assert 1e-5 < difference(result.numpy(), expected.numpy()) < 0.05


def test_an_unknown_denoiser_is_refused():
    with pytest.raises(SettingsError, match="one of XF, XT, 2D, 3D, CRNN; got 4D"):
        CineNet(CineNetConfig(dynamic_type="4D"))


@pytest.mark.parametrize(("kind", "shape"), [*[(kind, (8, 3, 48, 64)) for kind in KINDS], ("XT", (16, 8, 60, 50))])
def test_prediction_of_memory(kind, shape):
    network = CineNet(CineNetConfig(cascades=2, cg_iterations=2, pools=3, channels=16, dynamic_type=kind)).eval()
    _, _, (maps, mask, measured) = series(*shape)
    data = HybridSlice(measured, mask, maps, measured[0], mask[0])
    with torch.inference_mode():
        taken = peak_bytes(lambda: network.reconstruct(data))
    # In three dimensions torch may unfold convolutions, or not.
    assert taken < network.working_bytes(shape) < (4 if kind == "3D" else 1.5) * taken
