import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recon_core.data import HybridSlice
from recon_core.errors import DataError, SettingsError
from recon_core.networks.cst_net import CSTNet, CSTNetConfig, normalise, pack, unpack
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from tests.bench.published import cst_net as published
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, needs
from tests.parity_cases.cst_net import build, fill_all, make_consistency, start
from tests.recon_core.networks.support import random_series
from tests.recon_core.physics.test_memory import peak_bytes

GOLDEN = SHARED / "parity" / "cst_net"
CASES = [
    "case_small_16x48x40",
    pytest.param("case_batch2_empty_frames", marks=pytest.mark.slow),
    "ext_planar_16x40x32",
    pytest.param("ext_multicoil_c3", marks=pytest.mark.slow),
    pytest.param("ext_frames10", marks=pytest.mark.slow),
    pytest.param("ext_frames25", marks=pytest.mark.slow),
    "units",
    pytest.param("case_default_16x128x128", marks=pytest.mark.slow),
]
INPUTS = {"meta", "kspace", "maps", "mask", "x", "view_in", "stt_in", "crnn_in"}
INPUTS |= {
    f"{name}_{size}_{what}" for size in ("even", "odd") for name, what in (("fft", "in"), ("dc", "mask"), ("dc", "k0"))
}
needs_golden = needs(GOLDEN)


def small(**config):
    network = CSTNet(CSTNetConfig(channels=4, **config)).eval()
    fill_all(network)
    return network


def series(n_coils=3, n_y=12, n_x=10, n_frames=16, **more):
    return random_series(n_frames, n_coils, n_y, n_x, **more)


def difference(result, expected):
    return float(np.linalg.norm(np.asarray(result) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected)))


# --- the published network --------------------------------------------------------------------------------------------


@needs_golden
@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    results = run_case("cst_net", arrays, {"layout": "planar"} if "planar" in name else {})
    outputs = set(arrays) - INPUTS
    assert outputs
    assert outputs <= set(results)
    for key in outputs:
        assert results[key].shape == arrays[key].shape, key
        assert results[key].dtype == arrays[key].dtype, key
        assert difference(results[key], arrays[key]) < 5e-5, key


@needs_golden
def test_it_starts_from_the_normalised_combination_of_the_coils():
    arrays = dict(np.load(GOLDEN / "ext_multicoil_c3.npz"))
    kspace, maps, mask = (torch.from_numpy(arrays[name]) for name in ("kspace", "maps", "mask"))
    assert difference(start(make_consistency(kspace, maps, mask.bool())), arrays["x"]) < 1e-6


@needs_golden
def test_every_published_tensor_has_its_place():
    listed = json.loads((GOLDEN / "keys.json").read_text())
    network = CSTNet()
    shapes = {network.authors_key(key): list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == {key: entry[0] for key, entry in listed["state_dict"].items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == listed["param_count"] == 2_388_344


@needs_golden
def test_every_parameter_but_the_idle_ones_gets_a_gradient():
    listed = json.loads((GOLDEN / "keys.json").read_text())
    network = build({})
    image, consistency, _ = series(n_y=6, n_x=5)
    (network(image, consistency) - 1).abs().square().sum().backward()
    idle = set()
    for key, parameter in network.named_parameters():
        if parameter.grad is None:
            idle.add(network.authors_key(key))
        else:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
    assert idle == set(listed["dead_parameters"])


@pytest.mark.slow
def test_published_form_gives_the_same_with_a_quarter_more_work():
    network = build({})
    image, _, (_, mask, measured) = series(n_coils=1, n_y=8, n_x=6)
    ones = torch.ones(1, 8, 6, dtype=torch.complex64)
    kspace = fft(measured, (-1,))[:, 0] * mask[..., None]
    image = ifft(kspace, (-2, -1))
    pairs = [torch.view_as_real(array)[None].contiguous() for array in (image, kspace)]
    points = mask[None, :, :, None, None].float().expand(pairs[0].shape)
    consistency = DataConsistency(ones, mask, measured)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as their_work:
            expected = torch.view_as_complex(published.forward(network, *pairs, points).contiguous())[0]
        with FlopCounterMode(display=False) as our_work:
            result = network(image, consistency)
    assert difference(result, expected) < 1e-5
    assert our_work.get_total_flops() < 0.75 * their_work.get_total_flops()


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_y", "n_x"), [(1, 1), (4, 6), (33, 47)])
@pytest.mark.parametrize("layout", ["official", "planar"])
def test_unpacking_undoes_packing(layout, n_y, n_x):
    image = torch.randn(2, 16, n_y, n_x, dtype=torch.complex64)
    packed = pack(image.mT.contiguous().mT, layout)
    assert packed.shape == (2, 32, n_y, n_x)
    assert torch.equal(unpack(packed, layout), image)


def test_where_the_official_layout_puts_a_value():
    image = torch.zeros(1, 16, 8, 6, dtype=torch.complex64)
    image[0, 3, 5, 4] = 2 + 7j  # frame, y, x
    packed = pack(image, "official")
    assert packed[0, 7, 3, 2] == 2
    assert packed[0, 7, 3, 3] == 7
    assert packed.count_nonzero() == 2


def test_planar_channels_are_real_and_imaginary_parts():
    image = torch.randn(1, 16, 3, 4, dtype=torch.complex64)
    packed = pack(image, "planar")
    assert torch.equal(packed[:, ::2], image.real)
    assert torch.equal(packed[:, 1::2], image.imag)


def test_weights_of_one_layout_are_of_no_use_in_the_other():
    image, consistency, _ = series()
    results = [small(layout=layout)(image, consistency).detach() for layout in ("official", "planar")]
    assert difference(*results) > 0.1


def test_an_unknown_layout_is_refused():
    with pytest.raises(SettingsError, match="official or planar, got flat"):
        CSTNet(CSTNetConfig(layout="flat"))


# --- data consistency -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [False, True])
def test_the_result_has_the_measured_samples(points):
    maps = torch.ones(1, 9, 8, dtype=torch.complex64)
    mask = torch.rand(16, 9, 8) < 0.3
    mask[3] = False
    kspace = torch.randn(16, 1, 9, 8, dtype=torch.complex64)
    if not points:
        mask[:] = mask[..., :1]
    consistency = (
        DataConsistency(maps, mask, kspace) if points else DataConsistency(maps, mask[..., 0], ifft(kspace, (-1,)))
    )
    result = small()(consistency.zero_filled, consistency).detach()
    torch.testing.assert_close(fft(result, (-2, -1))[mask], kspace[:, 0][mask], rtol=1e-4, atol=1e-4)
    assert result[3].abs().max() > 0


def test_frames_without_samples_pass_data_consistency_as_they_are():
    _, _, (maps, mask, measured) = series()
    mask[::2] = False
    consistency = DataConsistency(2 * maps, mask, measured)
    image = torch.randn(16, 12, 10, dtype=torch.complex64)
    result = normalise(consistency.hard(image), consistency)
    torch.testing.assert_close(result[::2], image[::2])
    assert difference(result[1::2], image[1::2]) > 0.1


def test_the_unit_of_the_coil_maps_does_not_matter():
    network = small()
    _, _, (maps, mask, measured) = series()
    results = []
    for unit in (1, 30):
        data = HybridSlice(unit * measured, mask, unit * maps, measured[0], mask[0])
        with torch.inference_mode():
            results.append(network.reconstruct(data))
    assert difference(results[1], results[0]) < 1e-4


def test_no_image_where_the_coils_see_nothing():
    _, _, (maps, mask, measured) = series(batch=(2,))
    maps = torch.stack((1e4 * maps, maps))
    maps[..., :3] *= 1e-4
    consistency = DataConsistency(maps, mask, measured)
    result = small()(start(consistency), consistency)
    assert (result[..., :3] == 0).all()
    assert (result[..., 3:] != 0).all()
    result.abs().sum().backward()


# --- what may come in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "planar"])
def test_entries_of_a_batch_do_not_meet(layout):
    network = small(layout=layout)
    image, consistency, (maps, mask, measured) = series(batch=(2,))
    together = network(image, consistency).detach()
    for i in range(2):
        alone = network(image[i], DataConsistency(maps, mask[i], measured[i])).detach()
        assert difference(together[i], alone) < 1e-4


@pytest.mark.parametrize("n_frames", [1, 2, 5, 16])
def test_recurrences_take_any_series_and_either_direction_alike(n_frames):
    recurrence = small().stages[0].recurrences[0]
    image = torch.randn(2, n_frames, 2, 7, 6)
    with torch.inference_mode():
        forth, back = recurrence(image), recurrence(image.flip(1)).flip(1)
    assert forth.shape == image.shape
    torch.testing.assert_close(forth, back, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "n_coils", "n_y", "n_x"),
    [("official", 1, 1, 1), ("planar", 2, 2, 3), ("official", 3, 1, 7), ("planar", 1, 9, 1), ("official", 2, 13, 15)],
)
def test_any_size(layout, n_coils, n_y, n_x):
    image, consistency, _ = series(n_coils, n_y, n_x)
    result = small(layout=layout)(image, consistency)
    assert result.shape == image.shape
    assert result.isfinite().all()


@pytest.mark.parametrize("n_frames", [1, 15, 17])
def test_other_numbers_of_frames_are_refused(n_frames):
    network = small()
    assert network.minimum_frames == network.maximum_frames == 16
    image, consistency, _ = series(n_frames=n_frames)
    with pytest.raises(DataError, match=f"takes 16 frames, got {n_frames}"):
        network(image, consistency)


def test_no_signal_gives_zeros_in_its_entry_only():
    _, _, (maps, mask, measured) = series(batch=(2,))
    measured[1] = 0
    consistency = DataConsistency(maps, mask, measured)
    result = small()(consistency.zero_filled, consistency)
    assert (result[1] == 0).all()
    assert result[0].abs().max() > 0
    assert result.isfinite().all()


@pytest.mark.slow
def test_it_trains():
    """With the statistics of the batch, which it keeps."""
    network = small(layout="planar").train()
    image, consistency, _ = series(batch=(2,))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    before = network.stages[0].transformers[0].space[0].norm.running_mean.clone()
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = network(image, consistency).abs().square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(network.stages[0].transformers[0].space[0].norm.running_mean, before)


def test_reduced_precision():
    network = small()
    image, consistency, _ = series(n_y=20, n_x=16)
    with torch.inference_mode():
        expected = network(image, consistency)
        with torch.autocast("cpu", torch.bfloat16):
            result = network(image, consistency)
    assert result.dtype == torch.complex64
    assert 1e-5 < difference(result, expected) < 0.1


@pytest.mark.parametrize(
    ("channels", "shape"),
    [
        pytest.param(64, (16, 1, 24, 20), marks=pytest.mark.slow),
        pytest.param(64, (16, 10, 40, 32), marks=pytest.mark.slow),
        (64, (16, 3, 7, 9)),
        (4, (16, 8, 48, 48)),
    ],
)
def test_prediction_of_memory(channels, shape):
    network = CSTNet(CSTNetConfig(channels=channels)).eval()
    _, _, (maps, mask, measured) = series(*shape[1:])
    data = HybridSlice(measured, mask, maps, measured[0], mask[0])
    with torch.inference_mode():
        taken = peak_bytes(lambda: network.reconstruct(data))
    assert taken < network.working_bytes(shape) < 1.5 * taken
