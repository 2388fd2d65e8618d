import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from recon_core.coils.calibration import time_average
from recon_core.data import CineSlice, CtImage, HybridSlice
from recon_core.errors import DataError, ModelError
from recon_core.networks import atlf_net
from recon_core.networks.atlf_layers import (
    LocalBlock,
    LowRankFusion,
    MultiHeadAttention,
    PathWeights,
    adaptive_normalisation,
    channel_statistics,
    reflect_to_multiple,
)
from recon_core.networks.atlf_net import ATLFNet, ATLFNetConfig, StripeAttention
from recon_core.physics.consistency import DataConsistency
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, existing
from tests.parity_cases import atlf_net as case
from tests.recon_core.physics.test_memory import peak_bytes

PARITY = SHARED / "parity" / "atlf_net"
COMPONENTS = ["case_components_default_width", "case_components_small_cond"]
CONDITIONS = ["adain", "spade", "none"]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def network(**config):
    """A small one whose layers all do something: the usual first weights shrink what goes through."""
    settings = {"base": 8, "rank": 2, "channels": 8, "phases": 2, "ct_dropout": True, **config}
    torch.manual_seed(0)
    built = ATLFNet(ATLFNetConfig(**settings))
    for name, parameter in built.named_parameters():
        if name.endswith("factor"):
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
        elif parameter.ndim > 1 and not name.endswith(("lower", "upper")):
            torch.nn.init.normal_(parameter, std=1.4 * parameter.shape[1:].numel() ** -0.5)
    for name, buffer in built.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.7)
    return built.eval()


def measurement(n_frames=3, n_coils=2, n_y=20, n_x=18, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*batch, *shape, 2, generator=generator).view(torch.complex64)[..., 0]

    mask = torch.rand(*batch, n_frames, n_y, generator=generator) < 0.4
    maps = random(n_coils, n_y, n_x)
    maps = maps / maps.abs().square().sum(-3, keepdim=True).sqrt()
    ct = torch.rand(*batch, n_y, n_x, generator=generator)
    return random(n_frames, n_coils, n_y, n_x) * mask[..., None, :, None], mask, maps, ct


def consistency_of(hybrid, mask, maps):
    return DataConsistency(maps, mask, hybrid)


@pytest.fixture(autouse=True)
def without_autograd(request):
    with torch.inference_mode("gradient" not in request.node.name):
        yield


# --- published layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPONENTS)
def test_golden_layers(name):
    arrays = dict(np.load(existing(PARITY / f"{name}.npz")))
    config = arrays.pop("meta")
    inputs = {"avat_q", "avat_ref", "avat_stripe", "avat_mu", "ct", "mr", "adain_style", "brb_in"}
    inputs |= {"dc_x", "dc_mask", "dc_y"}
    outputs = run_case("atlf_net", {key: array for key, array in arrays.items() if key in inputs}, config)
    expected = arrays.keys() - inputs
    assert outputs.keys() >= expected
    for key in expected:
        assert outputs[key].shape == arrays[key].shape, key
        assert outputs[key].dtype == arrays[key].dtype, key
        assert relative_error(outputs[key], arrays[key]) < 1e-5, key


@pytest.mark.parametrize("width", ["default_width", "small_cond"])
def test_the_layers_have_the_published_tensors(width):
    keys = json.loads(existing(PARITY / "keys.json").read_text())
    config = keys["config"][width]
    avat = dict(zip(("channels", "num_heads", "mu_classes"), config["avat"], strict=True))
    layers = case.layers({**config, "avat": avat})
    own = {case.authors_key(name, key) for name, layer in layers.items() for key in layer.state_dict()}
    # The gradient step is done outside of the block; the published threshold is not used.
    assert own | {"brb.lambda_step", "brb.soft_thr"} == keys["state_dict"][width].keys()


def test_published_parameter_counts():
    avat = {"channels": 32, "num_heads": 4, "mu_classes": 0}
    layers = case.layers({"base_channels": 64, "rank": 4, "avat": avat})
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()}
    counts["brb"] += 2
    assert counts == {
        "avat": 40676,
        "rencoder": 112384,
        "gfab": 295424,
        "lrfm_g": 231812,
        "lrfm_l": 58564,
        "lfab": 8256,
        "rdecoder": 205121,
        "brb": 37442,
    }
    assert sum(counts.values()) + 8 * (counts["brb"] + counts["avat"]) + 9 == 1614632


@pytest.mark.parametrize(
    ("config", "count"), [({}, 1_551_259), ({"base": 32}, 872_000), ({"base": 32, "phases": 6}, 657_000)]
)
def test_parameter_counts_of_the_assembly(config, count):
    found = sum(p.numel() for p in ATLFNet(ATLFNetConfig(**config)).parameters())
    assert found == pytest.approx(count, rel=0.005 if config else 0)


def test_the_invertible_convolution():
    block = LocalBlock(12)
    features = torch.randn(2, 12, 5, 6)
    assert relative_error(block.inverse(block(features)), features) < 1e-5
    sign, logarithm = torch.linalg.slogdet(block.matrix())
    assert float(block.log_s.sum()) == pytest.approx(float(logarithm), abs=1e-5)
    assert abs(sign) == 1


def test_the_low_rank_fusion_is_that_of_vectors():
    layer = LowRankFusion(6, 3).eval()
    ct, mr = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
    fused = layer(ct, mr)
    z_ct, z_mr = layer.ct_subnet(ct)[1, :, 2, 3], layer.mri_subnet(mr)[1, :, 2, 3]
    one = torch.ones(1)
    terms = [
        weight * (torch.cat((one, z_ct)) @ of_ct) * (torch.cat((one, z_mr)) @ of_mr)
        for weight, of_ct, of_mr in zip(layer.fusion_weights[0], layer.ct_factor, layer.mri_factor, strict=True)
    ]
    torch.testing.assert_close(fused[1, :, 2, 3], sum(terms) + layer.fusion_bias[0])


def test_path_weights_sum_to_one():
    weights = PathWeights(8, 3)
    shares = weights(5 * torch.randn(4, 8, 6, 6), torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert shares.std() > 0.01


def test_attention_is_that_of_torch():
    own, theirs = MultiHeadAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(own.state_dict())
    tokens = torch.randn(3, 2, 7, 16).unbind()
    torch.testing.assert_close(own(*tokens), theirs(*tokens)[0])


def test_the_place_of_style_values_does_not_matter_to_adain():
    features, style = torch.randn(2, 3, 6, 7), torch.randn(2, 3, 6, 7)
    permuted = style.flatten(-2)[..., torch.randperm(42)].reshape(style.shape)
    expected = adaptive_normalisation(features, channel_statistics(style))
    torch.testing.assert_close(adaptive_normalisation(features, channel_statistics(permuted)), expected)
    mean, deviation = channel_statistics(expected)
    torch.testing.assert_close((mean, deviation), channel_statistics(style), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (5, 6), (1, 1), (2, 3), (1, 7)])
def test_reflection(size):
    image = torch.randn(2, *size)
    result = reflect_to_multiple(image, 4)
    assert result.shape == (2, *(4 * -(-n // 4) for n in size))
    torch.testing.assert_close(result[:, : size[0], : size[1]], image)
    if min(size) > 3:
        more = [result.shape[2] - size[1], result.shape[1] - size[0]]
        torch.testing.assert_close(result, functional.pad(image, (0, more[0], 0, more[1]), mode="reflect"))
    assert all(bool((image[0] == value).any()) for value in result[0].flatten())


# --- stripes ----------------------------------------------------------------------------------------------------------


def stripe_layer(scale=3.0):
    layer = StripeAttention(8, 2).eval()
    torch.nn.init.normal_(layer.bias)
    layer.offset[3].weight.data *= scale
    return layer


def test_stripes_are_straight_where_nothing_moves_them():
    layer = stripe_layer(0)
    layer.offset[3].bias.data.zero_()
    positions = layer.positions(torch.randn(1, 8, 8, 12))
    assert positions.shape == (1, 2, 3, 18, 2)
    rows, columns = positions[0, 1, 2].unbind(-1)
    along = 4.0 * torch.arange(-4, 5)
    torch.testing.assert_close(rows, torch.cat((torch.full((9,), 5.5), 5.5 + along)))
    torch.testing.assert_close(columns, torch.cat((9.5 + along, torch.full((9,), 9.5))))


def test_stripes_are_connected():
    positions = stripe_layer().positions(torch.randn(2, 8, 16, 16))
    horizontal, vertical = positions.split(9, 3)
    for stripe, aside, middle in ((horizontal, 0, 4), (vertical, 1, 4)):
        steps = stripe.diff(dim=3)
        torch.testing.assert_close(steps[..., 1 - aside], torch.full_like(steps[..., 0], 4))
        assert steps[..., aside].abs().max() <= 2
        assert steps[..., aside].abs().max() > 1
        centres = 4 * torch.arange(4) + 1.5
        torch.testing.assert_close(stripe[0, :, 0, middle, 0], centres)
        torch.testing.assert_close(stripe[0, 0, :, middle, 1], centres)


def bilinear(maps, row, column):
    """``(channel, row, column)`` at one place, the border going on."""
    n_rows, n_columns = maps.shape[1:]
    row, column = min(max(row, 0), n_rows - 1), min(max(column, 0), n_columns - 1)
    top, left = int(row), int(column)
    below, right = min(top + 1, n_rows - 1), min(left + 1, n_columns - 1)
    v, h = row - top, column - left
    upper = (1 - h) * maps[:, top, left] + h * maps[:, top, right]
    return (1 - v) * upper + v * ((1 - h) * maps[:, below, left] + h * maps[:, below, right])


def test_stripe_attention_pixel_by_pixel():
    layer = stripe_layer()
    features, classes = torch.randn(2, 8, 8, 12), torch.tensor([0, 1])
    result = layer(features, classes)
    keys = layer.k_paths(layer.k_stem(features), classes)
    values = layer.v_paths(layer.v_stem(features), classes)
    positions, queries = layer.positions(features), layer.query(features)
    for image, row, column in ((0, 0, 0), (0, 5, 10), (1, 7, 3), (1, 2, 6)):
        places = positions[image, row // 4, column // 4].tolist()
        sampled_keys = layer.key(torch.stack([bilinear(keys[image], *place) for place in places]))
        sampled_values = layer.value(torch.stack([bilinear(values[image], *place) for place in places]))
        attended = []
        for head in range(4):
            own = slice(2 * head, 2 * head + 2)
            scores = sampled_keys[:, own] @ queries[image, own, row, column] * 2**-0.5
            scores = scores + layer.bias[head, 4 * (row % 4) + column % 4]
            attended.append(scores.softmax(0) @ sampled_values[:, own])
        change = layer.out(torch.cat(attended)[None, :, None, None])[0, :, 0, 0]
        torch.testing.assert_close(result[image, :, row, column], features[image, :, row, column] + change)


# --- assembly ---------------------------------------------------------------------------------------------------------


def plainly(net, hybrid, mask, maps, ct, cover):
    """The assembly of section 3 frame by frame, for sizes that are multiples of four."""
    config = net.config
    consistency = consistency_of(hybrid, mask, maps)
    zero_filled = consistency.zero_filled
    magnitude = zero_filled.mean(0, keepdim=True).abs() if config.fusion_frames == "mean" else zero_filled.abs()
    parts = net.fusion

    def features(image):
        local, coarse = parts.encoder(image[:, None])
        return parts.global_block(coarse), parts.local_block(local)

    (ct_global, ct_local), (mr_global, mr_local) = features(ct[None].expand_as(magnitude)), features(magnitude)
    fused = parts.decoder(parts.global_fusion(ct_global, mr_global), parts.local_fusion(ct_local, mr_local))
    maps_of_style = net.style(fused)
    image = zero_filled
    for number, phase in enumerate(net.phases):
        image = image - phase.lambda_step * consistency.residual(image)
        frames = []
        for frame, one in enumerate(image):
            r = torch.stack((one.real, one.imag))[None]
            d = phase.attention(phase.block.conv_D(r), torch.tensor([number]))
            style = maps_of_style[frame % len(maps_of_style)][None]
            mean, std = d.mean((2, 3), keepdim=True), (d.var((2, 3), keepdim=True) + 1e-5).sqrt()
            if config.condition == "adain":
                style_std = (style.var((2, 3), keepdim=True) + 1e-5).sqrt()
                d = (d - mean) / std * style_std + style.mean((2, 3), keepdim=True)
            else:
                gamma, beta = phase.gamma(style) * cover, phase.beta(style) * cover
                d = (d - mean) / std * (1 + gamma) + beta
            f = phase.block.conv2_forward(functional.relu(phase.block.conv1_forward(d)))
            h = phase.block.conv2_backward(functional.relu(phase.block.conv1_backward(f)))
            r = (r + phase.block.conv_G(h))[0]
            frames.append(torch.complex(r[0], r[1]))
        image = torch.stack(frames)
        weight = phase.dc_weight.relu() / (1 + phase.dc_weight.relu()) if config.dc == "soft" else 1
        image = image - weight * consistency.residual(image)
    return image, fused[:, 0]


@pytest.mark.parametrize("attention", ["stripe", "full"])
@pytest.mark.parametrize(
    ("condition", "frames", "dc"), [("adain", "mean", "soft"), ("spade", "each", "hard"), ("adain", "each", "hard")]
)
def test_the_assembly_is_that_of_its_description(attention, condition, frames, dc):
    net = network(attention=attention, condition=condition, fusion_frames=frames, dc=dc)
    hybrid, mask, maps, ct = measurement(n_y=16, n_x=20)
    cover = ct > 0.3
    consistency = consistency_of(hybrid, mask, maps)
    output = net.run(consistency.zero_filled, consistency, ct, cover)
    image, fused = plainly(net, hybrid, mask, maps, ct, cover)
    # What a change of the input by 1e-7 does with these weights is 3e-5.
    assert relative_error(output.image, image) < 1e-4
    assert relative_error(output.fused, fused) < 1e-5
    assert output.symmetry is None


@pytest.mark.parametrize("condition", CONDITIONS)
def test_hard_data_consistency(condition):
    net = network(dc="hard", condition=condition)
    hybrid, mask, _, ct = measurement(n_coils=1, n_y=22, n_x=17)
    maps = torch.ones(1, 22, 17, dtype=torch.complex64)
    consistency = consistency_of(hybrid, mask, maps)
    image = net(consistency.zero_filled, consistency, ct)
    assert relative_error(consistency.operator.forward(image), hybrid) < 1e-5
    assert relative_error(image, consistency.zero_filled) > 0.01
    torch.testing.assert_close(net(consistency.zero_filled, consistency, ct), image, rtol=0, atol=0)


def test_what_the_ct_changes():
    hybrid, mask, maps, ct = measurement()
    consistency = consistency_of(hybrid, mask, maps)
    for condition in CONDITIONS:
        net = network(condition=condition)
        image = net(consistency.zero_filled, consistency, ct)
        other = net(consistency.zero_filled, consistency, 1 - ct)
        without = net(consistency.zero_filled, consistency)
        if condition == "none":
            assert net.fusion is None
            torch.testing.assert_close((image, image), (other, without), rtol=0, atol=0)
            assert net.run(consistency.zero_filled, consistency, ct).fused is None
        else:
            assert relative_error(other, image) > 1e-4
            assert relative_error(without, image) > 1e-4


def test_spade_looks_away_where_there_is_no_ct():
    net = network(condition="spade")
    hybrid, mask, maps, ct = measurement()
    consistency = consistency_of(hybrid, mask, maps)
    nowhere = torch.zeros_like(ct, dtype=torch.bool)
    image = net(consistency.zero_filled, consistency, ct, nowhere)
    torch.testing.assert_close(net(consistency.zero_filled, consistency, 1 - ct, nowhere), image)
    everywhere = net(consistency.zero_filled, consistency, ct, ~nowhere)
    torch.testing.assert_close(net(consistency.zero_filled, consistency, ct), everywhere, rtol=0, atol=0)
    assert relative_error(everywhere, image) > 1e-4


def test_weights_that_need_a_ct_refuse_to_go_without():
    hybrid, mask, maps, ct = measurement()
    consistency = consistency_of(hybrid, mask, maps)
    net = network(ct_dropout=False)
    with pytest.raises(ModelError, match="there is no CT for this slice"):
        net(consistency.zero_filled, consistency)
    net(consistency.zero_filled, consistency, ct)
    network(ct_dropout=False, condition="none")(consistency.zero_filled, consistency)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("frames", ["mean", "each"])
def test_entries_of_a_batch_are_independent(condition, frames):
    net = network(condition=condition, fusion_frames=frames)
    hybrid, mask, maps, ct = measurement(batch=(2,))
    both = consistency_of(hybrid, mask, maps)
    together = net.run(both.zero_filled, both, ct, ct > 0.2)
    for entry in range(2):
        alone = consistency_of(hybrid[entry], mask[entry], maps[entry])
        single = net.run(alone.zero_filled, alone, ct[entry], ct[entry] > 0.2)
        assert relative_error(together.image[entry], single.image) < 1e-4
        if condition != "none":
            torch.testing.assert_close(together.fused[entry], single.fused, rtol=1e-4, atol=1e-5)


def test_frames_are_independent_but_for_the_fused_average():
    hybrid, mask, maps, ct = measurement(4)
    order = torch.tensor([2, 0, 3, 1])
    for config in ({}, {"condition": "spade", "fusion_frames": "each"}):
        net = network(**config)
        consistency = consistency_of(hybrid, mask, maps)
        permuted = consistency_of(hybrid[order], mask[order], maps)
        expected = net(consistency.zero_filled, consistency, ct)[order]
        assert relative_error(net(permuted.zero_filled, permuted, ct), expected) < 1e-4


@pytest.mark.parametrize("config", [{}, {"condition": "spade", "fusion_frames": "each"}])
def test_portions_leave_no_trace(monkeypatch, config):
    net = network(**config)
    hybrid, mask, maps, ct = measurement(5)
    consistency = consistency_of(hybrid, mask, maps)
    expected = net.run(consistency.zero_filled, consistency, ct)
    for frames in (1, 2):
        monkeypatch.setattr(atlf_net, "PORTION_BYTES", {"cpu": frames * 4 * 8 * 20 * 20, "cuda": 1})
        found = net.run(consistency.zero_filled, consistency, ct)
        assert relative_error(found.image, expected.image) < 1e-4
        assert relative_error(found.fused, expected.fused) < 1e-5


def test_features_of_the_ct_are_made_once(monkeypatch):
    monkeypatch.setattr(atlf_net, "PORTION_BYTES", {"cpu": 1, "cuda": 1})
    net = network(fusion_frames="each")
    hybrid, mask, maps, ct = measurement(4)
    consistency = consistency_of(hybrid, mask, maps)
    images = []
    net.fusion.encoder.register_forward_hook(lambda module, inputs, output: images.append(len(inputs[0])))
    net(consistency.zero_filled, consistency, ct)
    assert images == [1] * 5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (13, 9), (4, 31)])
@pytest.mark.parametrize("config", [{}, {"condition": "spade"}, {"attention": "full"}])
def test_any_size(size, config):
    net = network(**config)
    hybrid, mask, maps, ct = measurement(1, 1, *size)
    consistency = consistency_of(hybrid, mask | True, maps)
    output = net.run(consistency.zero_filled, consistency, ct)
    assert output.image.shape == output.fused.shape == (1, *size)
    assert output.image.isfinite().all()
    assert output.fused.isfinite().all()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_nothing_measured(condition):
    net = network(condition=condition)
    hybrid, mask, maps, ct = measurement()
    for kept in (0, 1):
        some = mask.clone()
        some[kept:] = False
        consistency = consistency_of(torch.where(some[:, None, :, None], hybrid, 0), some, maps)
        image = net(consistency.zero_filled, consistency, ct)
        assert image.isfinite().all()
        assert bool((image == 0).all()) == (kept == 0)
    consistency = consistency_of(0 * hybrid, mask, maps)
    assert (net(consistency.zero_filled, consistency, ct) == 0).all()


def slice_of(hybrid, mask, maps, **more):
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask), **more)


@pytest.mark.parametrize("frames", ["mean", "each"])
def test_a_slice_with_its_ct(frames):
    net = network(condition="spade", fusion_frames=frames)
    hybrid, mask, maps, ct = measurement()
    cover = ct > 0.2
    data = slice_of(hybrid, mask, maps, ct=ct, ct_cover=cover)
    image = net.reconstruct(data)
    consistency = consistency_of(hybrid, mask, maps)
    output = net.run(consistency.zero_filled, consistency, ct, cover)
    torch.testing.assert_close(image, output.image, rtol=0, atol=0)
    torch.testing.assert_close(data.extra["fused"], output.fused.mean(0), rtol=0, atol=0)
    without = slice_of(hybrid, mask, maps)
    assert relative_error(net.reconstruct(without), image) > 1e-4
    assert without.extra == {}


def test_a_ct_on_another_grid_is_refused():
    hybrid, mask, maps, ct = measurement()
    with pytest.raises(DataError, match="ct must be"):
        slice_of(hybrid, mask, maps, ct=ct.mT)
    with pytest.raises(DataError, match="ct_cover must be"):
        slice_of(hybrid, mask, maps, ct=ct, ct_cover=ct[1:] > 0)
    kspace, lines = np.zeros((1, 1, 4, 6), np.complex64), np.zeros((1, 4), bool)
    image, cover = np.zeros((4, 6), np.float32), np.ones((4, 6), bool)
    CineSlice(kspace, lines, ct=CtImage(image, cover))
    with pytest.raises(DataError, match="ct must be"):
        CineSlice(kspace, lines, ct=CtImage(image.T, cover))
    with pytest.raises(DataError, match="cover must be"):
        CineSlice(kspace, lines, ct=CtImage(image, cover.T))
    consistency = consistency_of(hybrid, mask, maps)
    with pytest.raises(DataError, match="ct must be"):
        network()(consistency.zero_filled, consistency, ct[None])


@pytest.mark.parametrize(
    "config",
    [{"condition": "film"}, {"attention": "none"}, {"fusion_frames": "all"}, {"dc": "none"}, {"channels": 6}],
)
def test_settings_that_cannot_be_built(config):
    with pytest.raises(ModelError, match=next(iter(config))):
        ATLFNetConfig(**config)


def test_a_network_without_ct_does_not_fuse():
    with pytest.raises(ModelError, match="does not fuse"):
        network(condition="none").fuse(torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4))


# --- training, precision, memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"condition": "spade", "dc": "hard"}, {"attention": "full"}])
def test_gradients_reach_every_parameter(config):
    net = network(**config).train()
    hybrid, mask, maps, ct = measurement(batch=(2,), n_y=13)
    consistency = consistency_of(hybrid, mask, maps)
    output = net.run(consistency.zero_filled, consistency, ct)
    assert output.symmetry > 0
    (output.image.abs().square().mean() + 0.01 * output.symmetry).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Softmax does not see what is added to all keys, nor batch and group normalisation what is before them.
        if not name.endswith(("key.bias", "in_proj_bias")) and "lower" not in name and "upper" not in name:
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("config", [{}, {"condition": "spade"}, {"attention": "full"}])
def test_half_precision(config):
    net = network(**config)
    hybrid, mask, maps, ct = measurement(n_y=30, n_x=33)
    consistency = consistency_of(hybrid, mask, maps)
    expected = net.run(consistency.zero_filled, consistency, ct)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.run(consistency.zero_filled, consistency, ct)
    assert found.image.dtype == torch.complex64
    assert 0 < relative_error(found.image, expected.image) < 0.06
    assert 0 < relative_error(found.fused, expected.fused) < 0.05


def test_far_stripes_keep_their_place_in_half_precision():
    layer, features = stripe_layer(), torch.randn(1, 8, 4, 400)
    expected = layer.positions(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert (layer.positions(features) - expected).abs().max() < 0.2


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        *[({}, shape) for shape in ((4, 3, 64, 80), (24, 6, 32, 30), (2, 1, 41, 52))],
        pytest.param({"condition": "spade", "fusion_frames": "each"}, (24, 6, 32, 30), marks=pytest.mark.slow),
        ({"condition": "none"}, (2, 1, 41, 52)),
        pytest.param({"base": 16, "channels": 16}, (4, 3, 64, 80), marks=pytest.mark.slow),
        ({"attention": "full"}, (24, 6, 32, 30)),
    ],
)
def test_predicted_memory(config, shape):
    net = ATLFNet(ATLFNetConfig(phases=1, ct_dropout=True, **config)).eval()
    hybrid, mask, maps, ct = measurement(*shape)
    data = slice_of(hybrid, mask, maps, ct=ct)
    measured = peak_bytes(lambda: net.reconstruct(data))
    assert measured <= net.working_bytes(shape) <= 1.5 * measured
