import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.errors import DataError, ModelError
from recon_core.networks import golden
from recon_core.networks.promptmr import PromptMR, PromptMRConfig, central_lines
from recon_core.physics.fourier import fft, ifft
from tests.bench.published import promptmr as published
from tests.helpers import parity
from tests.helpers.paths import SHARED, existing
from tests.parity_cases.promptmr import published_count, settings, value
from tests.recon_core.physics.test_memory import peak_bytes

PARITY = SHARED / "parity" / "promptmr"
SMALL = PromptMRConfig(
    cascades=2,
    adjacent_frames=3,
    features=8,
    feature_dim=(12, 16, 20),
    prompt_dim=(4, 8, 12),
    sens_features=4,
    sens_feature_dim=(8, 12, 16),
    sens_prompt_dim=(4, 4, 8),
    prompt_length=(3, 4, 5),
    prompt_size=(12, 9, 6),
    encoder_blocks=(2, 1, 1),
    decoder_blocks=(1, 1, 1),
    skip_blocks=(1, 0, 1),
    bottleneck_blocks=1,
)
FIVE = replace(SMALL, adjacent_frames=5, cascades=1)


@pytest.fixture(autouse=True)
def _one_thread():
    # Many small convolutions: threads that wait for each other take far longer than one.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def keys():
    existing(PARITY)
    return json.loads((PARITY / "keys.json").read_text())


def filled(config=SMALL):
    network = PromptMR(config).eval()
    golden.fill(network, value)
    return network


def uniform(n_frames, n_lines, n_central=6):
    mask = torch.zeros(n_frames, n_lines, dtype=torch.bool)
    mask[:, ::3] = True
    first = (n_lines - n_central + 1) // 2
    mask[:, first : first + n_central] = True
    return mask


def interleaved(n_frames, n_lines, folds=4):
    return (torch.arange(n_lines) + torch.arange(n_frames)[:, None]) % folds == 0


def cine(mask, n_coils=3, n_x=20, seed=0):
    """A slice of noise with the spectrum of an image."""
    n_frames, n_lines = mask.shape
    generator = torch.Generator().manual_seed(seed)
    hybrid = torch.randn(n_frames, n_coils, n_lines, n_x, dtype=torch.complex64, generator=generator)
    decay = 1 / (1 + (torch.arange(n_lines) - n_lines // 2).abs())
    hybrid = hybrid * (decay * mask)[:, None, :, None]
    maps = torch.randn(n_coils, n_lines, n_x, dtype=torch.complex64, generator=generator)
    return HybridSlice(hybrid, mask, maps / maps.norm(dim=0), *time_average(hybrid, mask))


def learned_maps(network, data):
    caught = []
    handle = network.sens_net.register_forward_hook(lambda *call: caught.append(call[-1]))
    network.reconstruct(data)
    handle.remove()
    return torch.cat(caught)


def error(image, reference):
    return float((image - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", [pytest.param("default", marks=pytest.mark.slow), "reduced", "reduced_no_ca"])
def test_golden_case(name):
    config = keys()[name]["config"]
    case = dict(np.load(PARITY / f"case_{name}.npz"))
    result = parity.run_case("promptmr", case, config)
    assert set(result) == set(case) - {"kspace", "mask"}
    for array, numbers in result.items():
        assert numbers.shape == case[array].shape
        assert numbers.dtype == case[array].dtype
        assert np.linalg.norm(numbers - case[array]) <= 1e-5 * np.linalg.norm(case[array]), array


@pytest.mark.parametrize("name", ["default", "reduced", "reduced_no_ca"])
def test_parameters_have_the_authors_names(name):
    expected = keys()[name]
    with torch.device("meta"):
        network = PromptMR(settings(expected["config"]))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["param_count"]
    named = {network.authors_key(key): value for key, value in network.named_parameters(remove_duplicate=False)}
    shared = network.cascades[0].model.unet.bottleneck[0].body[1].weight
    aliases = {key for key, parameter in named.items() if parameter is shared}
    assert len(aliases) == expected["shared_prelu_entries"]
    if name != "default":
        assert aliases == set(expected["prelu_shared_aliases"])
    own = {key: list(parameter.shape) for key, parameter in named.items() if key not in aliases}
    assert own == {key: shape for key, (shape, *_) in expected["state_dict"].items()}


def test_defaults_are_the_published_ones():
    assert settings(keys()["default"]["config"]) == PromptMRConfig()


def test_prompts_are_not_trained_unless_asked():
    def trained(network):
        return {p.requires_grad for key, p in network.named_parameters() if key.endswith("prompt_param")}

    assert trained(PromptMR(SMALL)) == {False}
    assert trained(PromptMR(replace(SMALL, learnable_prompt=True))) == {True}
    assert "sens_net.norm_unet.unet.prompt_level1.prompt_param" in PromptMR(SMALL).state_dict()


def test_a_checkpoint_with_a_slope_per_block_is_refused():
    network = filled()
    tensors = dict(network.named_parameters(remove_duplicate=False))
    network.check_checkpoint(tensors)
    tensors["cascades.0.model.unet.bottleneck.0.body.1.weight"] = torch.tensor([0.5])
    with pytest.raises(ModelError, match="share one PReLU slope; this checkpoint has 2 different"):
        network.check_checkpoint(tensors)


@pytest.mark.parametrize(("config", "message"), [({"adjacent_frames": 4}, "must be odd"), ({"cascades": 0}, "cascade")])
def test_an_impossible_architecture_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        PromptMRConfig(**config)


@pytest.mark.parametrize(("n_lines", "n_x"), [(28, 20), (27, 21)])
def test_same_numbers_as_the_published_pass(n_lines, n_x):
    network, data = filled(), cine(uniform(4, n_lines), n_x=n_x)
    with torch.inference_mode():
        expected = published.forward(network, data.hybrid, data.mask)
        assert error(network.reconstruct(data).abs(), expected) < 1e-5


def test_masks_may_differ_between_frames():
    network, mask = filled(), interleaved(3, 26)
    mask[:, 10:16] = True
    data = cine(mask)
    kspace = fft(data.hybrid.mT, (-2,)).flatten(0, 1)[None]
    per_coil = mask.repeat_interleave(3, 0)[None, :, None, :, None]
    with torch.inference_mode():
        expected = published.one_window(network, torch.view_as_real(kspace), per_coil, low_frequencies=6).mT
        assert error(network(data.hybrid[None], mask[None]), expected) < 1e-5


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("10011111110010", 6),  # four before the centre at 7, three from there
        ("10000011110010", 2),
        ("0000011110000", 2),  # of 13 lines the centre is at 6: one before, three from there
        ("00000001000000", 1),  # nothing before the centre
        ("00000010100000", 1),  # the centre itself is missing
        ("11111111111111", 14),
        ("1111111111111", 12),
        ("11111111110000", 6),
        ("1", 1),
        ("00", 1),
    ],
)
def test_central_lines_are_counted(lines, count):
    measured = torch.tensor([character == "1" for character in lines])
    assert int(central_lines(measured)) == count
    assert central_lines(measured.expand(2, 3, -1)).tolist() == [[count] * 3] * 2


def test_the_count_is_the_published_one_where_both_halves_have_a_gap():
    mask = torch.rand(200, 15, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[:, 0] = mask[:, -1] = False
    assert np.array_equal(central_lines(mask).numpy(), published_count(mask.numpy()))


def test_a_given_count_of_central_lines_is_taken():
    network, data = filled(), cine(uniform(3, 28))
    window = data.hybrid[None], data.mask[None]
    with torch.inference_mode():
        found = network(*window)
        assert torch.equal(network(*window, 6), found)
        assert torch.equal(network(*window, 0), found)
        assert error(network(*window, 2), found) > 1e-3
        per_entry = network(*(torch.cat((part, part)) for part in window), torch.tensor([6, 2]))
        assert error(per_entry[0], found[0]) < 1e-6
        assert error(per_entry[1], network(*window, 2)[0]) < 1e-6


def test_without_a_common_centre_maps_are_those_of_the_reference():
    network, data = filled(), cine(interleaved(4, 32))
    with torch.inference_mode():
        maps = learned_maps(network, data)
        assert error(maps[1:], maps[:1].expand(3, -1, -1, -1)) < 1e-6
        # its 24 central lines are what counts, its outer ones are not
        outer = data.reference.clone()
        outer[:, :4] = outer[:, 28:] = 0
        assert error(learned_maps(network, replace(data, reference=outer)), maps) < 1e-6
        outer[:, 4] = 0
        assert error(learned_maps(network, replace(data, reference=outer)), maps) > 1e-3


def test_a_window_without_a_common_centre_is_its_own_reference():
    network, data = filled(), cine(interleaved(3, 32, folds=3))
    with torch.inference_mode():
        expected = network.reconstruct(data).abs()[1]
        assert error(network(data.hybrid[None], data.mask[None])[0], expected) < 1e-5


def test_a_separate_reference_makes_the_maps_of_lines_without_a_centre():
    network = filled()
    data = cine(torch.arange(28).remainder(4).eq(0).expand(3, -1))
    scan = cine(torch.ones(1, 28, dtype=torch.bool), seed=1)
    with torch.inference_mode():
        alone = learned_maps(network, data)
        maps = learned_maps(network, replace(data, reference=scan.hybrid[0], measured=scan.mask[0]))
    assert error(maps, alone) > 0.1
    assert error(maps[1], maps[0]) < 1e-6


def test_an_empty_frame_is_filled_from_its_neighbours():
    network, mask = filled(), uniform(4, 28)
    mask[2] = False
    data = cine(mask)
    with torch.inference_mode():
        image = network.reconstruct(data)
        own = learned_maps(network, cine(uniform(4, 28)))
        assert error(learned_maps(network, data)[:2], own[:2]) < 1e-6  # the others keep their own centre
    assert bool(image.isfinite().all())
    assert float(image[2].norm()) > 0


def test_positive_scale_goes_through():
    network, data = filled(), cine(uniform(4, 28))
    with torch.inference_mode():
        image = network.reconstruct(data)
        for scale in (3e-6, 7e4):
            scaled = replace(data, hybrid=scale * data.hybrid, reference=scale * data.reference)
            assert error(network.reconstruct(scaled) / scale, image) < 1e-5


def test_the_cycle_may_start_anywhere():
    network, data = filled(FIVE), cine(uniform(6, 28))
    with torch.inference_mode():
        image = network.reconstruct(data)
        rolled = network.reconstruct(replace(data, hybrid=data.hybrid.roll(2, 0)))
    assert error(rolled, image.roll(2, 0)) < 1e-6


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_a_short_series_is_repeated(n_frames):
    network, data = filled(FIVE), cine(uniform(n_frames, 28))
    twice = replace(data, hybrid=data.hybrid.repeat(6, 1, 1, 1), mask=data.mask.repeat(6, 1))
    with torch.inference_mode():
        assert error(network.reconstruct(data), network.reconstruct(twice)[:n_frames]) < 1e-6


def test_order_of_the_coils_does_not_matter():
    network, data = filled(), cine(uniform(3, 28))
    other = replace(data, hybrid=data.hybrid.flip(1), maps=data.maps.flip(0), reference=data.reference.flip(0))
    with torch.inference_mode():
        assert error(network.reconstruct(other), network.reconstruct(data)) < 1e-5


def test_phase_is_that_of_the_maps_combination():
    network, data = filled(), cine(uniform(3, 28))
    kept = torch.ones(28, 20)
    kept[5, 7] = 0
    with torch.inference_mode():
        image = network.reconstruct(data)
        turned = network.reconstruct(replace(data, maps=1j * data.maps))
        dark = network.reconstruct(replace(data, maps=kept * data.maps))
    assert error(turned, -1j * image) < 1e-6
    assert torch.equal(dark[:, 5, 7], image[:, 5, 7].abs().to(dark.dtype))
    with torch.inference_mode():
        coils = network.complete(data.hybrid[None], data.mask[None])[0, 1]
        combined = (data.maps.conj() * ifft(coils, (-2,))).sum(0)
    assert error(combined.sgn() * image[1].abs(), image[1]) < 1e-4


def test_entries_of_a_batch_are_independent():
    network = filled()
    first, second = cine(uniform(3, 28)), cine(interleaved(3, 28), seed=1)
    pair = [torch.stack(parts) for parts in ((first.hybrid, second.hybrid), (first.mask, second.mask))]
    with torch.inference_mode():
        both = network(*pair)
        for entry, data in zip(both, (first, second), strict=True):
            assert error(entry, network(data.hybrid[None], data.mask[None])[0]) < 1e-6


def test_what_the_mask_excludes_is_ignored():
    network, data = filled(), cine(uniform(3, 28))
    noise = torch.where(data.mask[:, None, :, None], data.hybrid, 5 + 3j)
    with torch.inference_mode():
        assert torch.equal(network(noise[None], data.mask[None]), network(data.hybrid[None], data.mask[None]))


def test_nothing_gives_nothing():
    network = filled()
    for mask in (uniform(3, 28), torch.zeros(3, 28, dtype=torch.bool)):
        data = cine(mask)
        data = replace(data, hybrid=torch.zeros_like(data.hybrid), reference=torch.zeros_like(data.reference))
        with torch.inference_mode():
            assert torch.equal(network.reconstruct(data), torch.zeros(3, 28, 20, dtype=torch.complex64))


def test_a_dead_coil_changes_nothing():
    network, data = filled(), cine(uniform(3, 28))
    dead = torch.zeros_like(data.hybrid[:, :1])
    with_dead = replace(
        data,
        hybrid=torch.cat((data.hybrid, dead), 1),
        maps=torch.cat((data.maps, torch.zeros_like(data.maps[:1]))),
        reference=torch.cat((data.reference, dead[0])),
    )
    with torch.inference_mode():
        assert error(network.reconstruct(with_dead), network.reconstruct(data)) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 17), (15, 8)])
@pytest.mark.parametrize("n_coils", [1, 2])
def test_any_size_works(size, n_coils):
    n_lines, n_x = size
    data = cine(torch.ones(1, n_lines, dtype=torch.bool), n_coils, n_x)
    with torch.inference_mode():
        image = filled().reconstruct(data)
    assert image.shape == (1, *size)
    assert image.dtype == torch.complex64
    assert bool(image.isfinite().all())


def test_windows_of_the_wrong_shape_are_refused():
    network, data = filled(), cine(uniform(4, 28))
    with pytest.raises(DataError, match=r"\(batch, 3 frames, coil, ky, x\).*got \(1, 4, 3, 28, 20\)"):
        network(data.hybrid[None], data.mask[None])
    with pytest.raises(DataError, match="got"):
        network(data.hybrid[None, :3], data.mask[None, :3, 1:])


@pytest.mark.parametrize("channel_attention", [True, False])
def test_gradients_are_finite_everywhere(channel_attention):
    network = filled(replace(SMALL, channel_attention=channel_attention, learnable_prompt=True)).train()
    data = cine(uniform(3, 28))
    hybrid = data.hybrid.clone()
    hybrid[:, 2] = 0  # where roots and quotients have no derivative
    network(hybrid[None], data.mask[None]).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        # in the first cascade nothing differs from the data yet; a rectifier of one channel may be shut
        assert bool(parameter.grad.any()) or key == "cascades.0.dc_weight" or ".CA." in key, key


def test_gradients_of_nothing_are_finite():
    network = filled().train()
    network(torch.zeros(1, 3, 2, 28, 20, dtype=torch.complex64), uniform(3, 28)[None]).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())


def test_gradient_is_the_slope_of_the_loss():
    network = filled()
    data = cine(uniform(3, 28))
    weight = network.sens_net.norm_unet.unet.conv_last.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.detach().abs().mean()

    def loss():
        return network(data.hybrid[None], data.mask[None]).double().square().sum()

    loss().backward()
    slope = float((weight.grad * direction).sum())
    with torch.no_grad():
        weight.add_(direction, alpha=0.01)
        above = float(loss())
        weight.sub_(direction, alpha=0.02)
        below = float(loss())
    assert (above - below) / 0.02 == pytest.approx(slope, rel=0.02)


def test_half_precision_stays_near():
    network, data = filled(), cine(uniform(3, 28))
    with torch.inference_mode():
        image = network.reconstruct(data)
        with torch.autocast("cpu", torch.bfloat16):
            half = network.reconstruct(data)
    assert half.dtype == torch.complex64
    assert 1e-5 < error(half, image) < 0.03


@pytest.mark.parametrize(
    ("shape", "different"),
    [
        pytest.param((2, 2, 130, 100), {}, marks=pytest.mark.slow),
        ((5, 20, 40, 32), {}),  # the largest: the prompts of small images
        ((1, 30, 64, 64), {"adjacent_frames": 5}),  # the coils of a window
        ((2, 1, 101, 96), {"features": 32}),  # the feature maps of a cascade
        pytest.param((2, 4, 96, 80), {"learned_maps": False}, marks=pytest.mark.slow),
    ],
)
def test_prediction_is_near_the_measured_peak(shape, different):
    n_frames, n_coils, n_lines, n_x = shape
    network = filled(replace(SMALL, prompt_size=(64, 32, 16), **different))
    data = cine(uniform(n_frames, n_lines), n_coils, n_x)
    with torch.inference_mode():
        measured = peak_bytes(lambda: network.reconstruct(data))
    assert measured <= network.working_bytes(shape) <= 1.5 * measured


# --- with the maps of the slice ---------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """Changes no image."""

    def forward(self, image):
        return torch.zeros_like(image)


def test_without_learned_maps_those_of_the_slice_are_used():
    network, data = filled(replace(SMALL, learned_maps=False)), cine(uniform(3, 28))
    assert not any(name.startswith("sens_net") for name in network.state_dict())
    with torch.inference_mode():
        image = network.reconstruct(data)
        other = network.reconstruct(replace(data, maps=data.maps.flip(0)))
        assert error(other, image) > 0.01
        learned = filled()
        assert (
            error(learned.reconstruct(replace(data, maps=data.maps.flip(0))).abs(), learned.reconstruct(data).abs())
            < 1e-6
        )
    for cascade in network.cascades:
        cascade.model = Nothing()
    truth = torch.randn(3, 28, 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    hybrid = fft(data.maps * truth[:, None], (-2,)) * data.mask[:, None, :, None]
    with torch.inference_mode():
        image = network.reconstruct(replace(data, hybrid=hybrid, start=truth))
    assert error(image, truth) < 1e-5


def test_without_learned_maps_there_is_nothing_to_do_without_a_slice():
    network, data = filled(replace(SMALL, learned_maps=False)), cine(uniform(3, 28))
    for method in (network, network.complete):
        with pytest.raises(ModelError, match="no network for coil maps"):
            method(data.hybrid[None], data.mask[None])
