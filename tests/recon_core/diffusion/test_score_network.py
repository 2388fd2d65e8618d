import json

import pytest
import torch

from recon_core.diffusion import score_network
from recon_core.diffusion.score_network import ScoreConfig, ScoreNetwork
from tests.helpers.paths import existing
from tests.recon_core.diffusion.support import TINY, filled
from tests.recon_core.diffusion.test_parity import FOLDER

SIGMA = torch.tensor([0.3])


def slices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "count"), [(128, 24254210), (64, 6073218), (32, 1523138)])
def test_parameter_count(channels, count):
    with torch.device("meta"):
        network = ScoreNetwork(ScoreConfig(channels=channels))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("channels", [128, 32])
def test_names_shapes_and_order_are_the_authors(channels):
    existing(FOLDER)
    keys = json.loads((FOLDER / "keys.json").read_text())
    table = (keys if channels == 128 else keys["variants"]["nf32"])["state_dict"]
    with torch.device("meta"):
        network = ScoreNetwork(ScoreConfig(channels=channels))
    own = [(network.authors_key(name), list(value.shape)) for name, value in network.named_parameters()]
    assert own == [(name, facts[0]) for name, facts in table.items() if name != "sigmas"]


def test_a_fresh_network_leaves_the_image_to_its_bias():
    """The branches and the last convolution start at almost nothing, as published."""
    with torch.inference_mode():
        assert ScoreNetwork(TINY)(slices(2, 2, 4, 4), SIGMA).abs().max() < 1e-3


@pytest.mark.parametrize("parametrisation", ["score", "edm"])
def test_every_parameter_learns(parametrisation):
    network = filled(parametrisation=parametrisation)
    network(slices(2, 2, 4, 8), torch.tensor([0.1, 1.0])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_slices_do_not_know_of_each_other_and_one_level_serves_all():
    network = filled()
    given = slices(3, 2, 4, 8)
    with torch.inference_mode():
        together = network(given, SIGMA)
        alone = torch.cat([network(one[None], SIGMA) for one in given])
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(network(given, SIGMA.expand(3)), together)


def test_portions_change_nothing(monkeypatch):
    network = filled()
    given = slices(7, 2, 4, 8)
    with torch.inference_mode():
        whole = network.evaluate(given, SIGMA, 1 << 30)
        calls = []
        network.register_forward_hook(lambda *call: calls.append(len(call[-1])))
        for portion in (1, 3 * network.slice_bytes(4, 8)):
            # Kernels for other numbers of slices round differently: 2e-5 on some processors, of values up to 2.3.
            torch.testing.assert_close(network.evaluate(given, SIGMA, portion), whole, atol=1e-4, rtol=0)
        assert calls == [1] * 7 + [3, 3, 1]
        monkeypatch.setitem(score_network._PORTION_BYTES, "cpu", 2 * network.slice_bytes(4, 8))
        network.evaluate(given, SIGMA)
        assert calls[10:] == [2, 2, 2, 1]


@pytest.mark.parametrize(("n_frames", "n_positions"), [(1, 1), (2, 3), (5, 9), (4, 2), (3, 8), (13, 6)])
def test_any_size(n_frames, n_positions):
    network = filled()
    given = slices(2, 2, n_frames, n_positions)
    with torch.inference_mode():
        score = network.evaluate(given, SIGMA)
    assert score.shape == given.shape
    assert torch.isfinite(score).all()


def test_frames_are_continued_around_the_cycle_and_positions_mirrored():
    network = filled()
    given = slices(1, 2, 6, 7)
    larger = given[:, :, [0, 1, 2, 3, 4, 5, 0, 1]][..., [0, 1, 2, 3, 4, 5, 6, 5]]
    with torch.inference_mode():
        expected = network(larger, SIGMA)[:, :, :6, :7]
        torch.testing.assert_close(network.evaluate(given, SIGMA), expected)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_preconditioned_output_is_the_denoised_image_over_the_variance(sigma):
    """Karras et al., equation 7: D = c_skip x + c_out F(c_in x), here with the network's 2x - 1 undone."""
    network = filled(parametrisation="edm", data_deviation=0.3)
    given, deviation = slices(2, 2, 4, 4).double(), 0.3
    total = sigma**2 + deviation**2
    with torch.inference_mode():
        features = network._features((given.float() / total**0.5 + 1) / 2, 10 * torch.tensor([sigma]).log()).double()
        denoised = deviation**2 / total * given + sigma * deviation / total**0.5 * features
        expected = ((denoised - given) / sigma**2).float()
        found = network(given.float(), torch.tensor([sigma]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_bfloat16_is_close_and_gives_float32():
    network = filled()
    given = slices(3, 2, 8, 12)
    with torch.inference_mode():
        exact = network.evaluate(given, SIGMA)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network.evaluate(given, SIGMA)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


def test_statistics_stay_in_float32():
    """In bfloat16 the mean of these features, or their square, would take the variation with it."""
    norm = score_network.GroupNorm(32)
    features = 1000 + torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 32, 8, 8).contiguous() * 8
    features = features.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = norm(features)
    assert found.dtype == torch.bfloat16
    centred = features.double() - features.double().mean((2, 3), keepdim=True)
    expected = centred / centred.square().mean((2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


def test_widths_must_fill_the_groups():
    with pytest.raises(ValueError, match="divisible"):
        ScoreNetwork(ScoreConfig(channels=48))
