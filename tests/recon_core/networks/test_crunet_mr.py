import json
import re

import numpy as np
import pytest
import torch

from recon_core.errors import ModelError
from recon_core.networks.crunet_mr import CRUNetMR, CRUNetMRConfig
from recon_core.networks.golden import fill
from recon_core.physics.consistency import DataConsistency
from tests.bench.published import crunet_mr as published
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, existing
from tests.recon_core.physics.test_memory import peak_bytes

GOLDEN = SHARED / "parity" / "crunet_mr"
INPUTS = ("kspace", "mask", "sens")


def network(**config):
    built = CRUNetMR(CRUNetMRConfig(**{"cascades": 2, "channels": 8, **config}))
    fill(built)
    if config.get("std_gate"):
        for cascade in built.cascades:
            torch.nn.init.normal_(cascade.pp, std=5)
    return built.eval()


def problem(n_frames=4, n_coils=3, n_y=21, n_x=27, n_batch=None, seed=0):
    """Maps of unit norm, mask and measured lines."""
    torch.manual_seed(seed)
    lead = () if n_batch is None else (n_batch,)
    maps = torch.randn(*lead, n_coils, n_y, n_x, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    mask = torch.rand(*lead, n_frames, n_y) < 0.4
    measured = torch.randn(*lead, n_frames, n_coils, n_y, n_x, dtype=torch.complex64)
    return maps, mask, measured * mask[..., None, :, None]


def reconstruct(built, maps, mask, measured):
    consistency = DataConsistency(maps, mask, measured)
    return built(consistency.zero_filled, consistency)


def error(result, expected):
    return float(abs(result - expected).max() / abs(expected).max())


@pytest.mark.parametrize(
    "name", ["case_reduced", "case_std_gate", pytest.param("case_default", marks=pytest.mark.slow)]
)
def test_golden_case(name):
    existing(GOLDEN)
    case = dict(np.load(GOLDEN / f"{name}.npz"))
    outputs = run_case("crunet_mr", {key: case[key] for key in INPUTS}, case["config"])
    expected = {key: value for key, value in case.items() if key not in (*INPUTS, "config")}
    assert set(expected) <= set(outputs)
    for key, value in expected.items():
        assert outputs[key].shape == value.shape
        assert outputs[key].dtype == value.dtype
        assert error(outputs[key], value) <= 2e-5, key


def test_golden_case_sees_a_swapped_direction(monkeypatch):
    existing(GOLDEN)
    case = dict(np.load(GOLDEN / "case_reduced.npz"))
    built = CRUNetMR._cascade

    def swapped(config):
        cascade = built(config)
        cascade.stages[0].unit._direction = "backward"
        return cascade

    monkeypatch.setattr(CRUNetMR, "_cascade", staticmethod(swapped))
    outputs = run_case("crunet_mr", {key: case[key] for key in INPUTS}, case["config"])
    assert error(outputs["out"], case["out"]) > 1e-2


@pytest.mark.parametrize(("gate", "expected"), [(False, 4_537_930), (True, 4_788_810)])
def test_number_of_parameters(gate, expected):
    assert sum(p.numel() for p in CRUNetMR(CRUNetMRConfig(std_gate=gate)).parameters()) == expected


@pytest.mark.parametrize("gate", [False, True])
def test_every_tensor_of_the_authors_has_its_place(gate):
    existing(GOLDEN)
    theirs = json.loads((GOLDEN / "keys.json").read_text())["state_dict"]
    built = CRUNetMR(CRUNetMRConfig(std_gate=gate))
    ours = {built.authors_key(key): list(value.shape) for key, value in built.named_parameters(remove_duplicate=False)}
    unused = [key for key in theirs if key not in ours]
    assert all(re.fullmatch(built.unused_keys, key) for key in unused)
    assert len(unused) == (0 if gate else 5)
    assert ours == {key: entry[0] for key, entry in theirs.items() if key not in unused}


def test_checkpoint_trained_with_the_gate_is_refused_without():
    built = network()
    tensors = {built.authors_key(key): value for key, value in network(std_gate=True).named_parameters()}
    with pytest.raises(ModelError, match=r"cascades\.0\.pp .* std_gate=true"):
        built.check_checkpoint(tensors)
    network(std_gate=True).check_checkpoint(tensors)
    built.check_checkpoint({key: value * (not key.endswith(".pp")) for key, value in tensors.items()})


def test_published_forward_pass_gives_the_same():
    built = network()
    maps, mask, measured = problem(5, 3, 21, 27)
    consistency = DataConsistency(maps, mask, measured)
    n_y = mask.shape[-1]
    coils = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(measured, -2), dim=-2, norm="ortho"), -2)
    kspace = torch.fft.fft2(coils.mT, norm="ortho")
    lines = torch.fft.ifftshift(mask, -1).view(1, -1, 1, 1, n_y, 1).float()
    with torch.inference_mode():
        ours = built(consistency.zero_filled, consistency)
        pairs = torch.view_as_real(kspace)[None], lines, torch.view_as_real(maps.mT.contiguous())[None, None]
        theirs = torch.view_as_complex(published.forward(built, *pairs))[0].mT
    assert error(theirs, ours) < 1e-5


@pytest.mark.parametrize("gate", [False, True])
def test_scaling_the_data_scales_the_image(gate):
    built = network(std_gate=gate)
    maps, mask, measured = problem()
    with torch.inference_mode():
        plain, scaled = reconstruct(built, maps, mask, measured), reconstruct(built, maps, mask, 37 * measured)
        turned = reconstruct(built, maps, mask, 1j * measured)
    assert error(scaled, 37 * plain) < 1e-5
    assert error(turned, 1j * plain) > 1e-2


@pytest.mark.parametrize("gate", [False, True])
def test_entries_of_a_batch_do_not_mix(gate):
    built = network(std_gate=gate)
    maps, mask, measured = problem(n_batch=2)
    measured[1] *= 5
    with torch.inference_mode():
        together = reconstruct(built, maps, mask, measured)
        for entry in range(2):
            alone = reconstruct(built, maps[entry], mask[entry], measured[entry])
            assert error(together[entry], alone) < 1e-5


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 20, 16), (3, 1, 5, 7), (2, 2, 1, 1), (1, 1, 1, 1), (2, 2, 9, 1)])
def test_any_size(gate, shape):
    built = network(std_gate=gate)
    with torch.inference_mode():
        image = reconstruct(built, *problem(*shape))
    assert image.shape == (shape[0], *shape[2:])
    assert image.dtype == torch.complex64
    assert image.isfinite().all()


def test_gate_of_one_frame_is_zero():
    gated = network(std_gate=True)
    plain = network()
    data = problem(1, 2, 16, 24)  # padded alike
    with torch.inference_mode():
        assert error(reconstruct(gated, *data), reconstruct(plain, *data)) == 0


@pytest.mark.parametrize("gate", [False, True])
def test_no_signal_gives_zeros(gate):
    maps, mask, measured = problem()
    with torch.inference_mode():
        image = reconstruct(network(std_gate=gate), maps, mask, torch.zeros_like(measured))
    assert not (image != 0).any()


def test_frames_without_lines():
    maps, mask, measured = problem()
    mask[1] = False
    with torch.inference_mode():
        image = reconstruct(network(), maps, mask, measured)
    assert image.isfinite().all()
    assert (image[1] != 0).any()


@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 3, 5)])
def test_gradients_reach_every_parameter(dilations):
    built = network(std_gate=True, dilations=dilations)
    image = reconstruct(built, *problem(n_batch=2))
    with torch.no_grad():
        assert error(reconstruct(built, *problem(n_batch=2)), image) < 1e-5
    image.abs().square().sum().backward()
    for key, parameter in built.named_parameters():
        if re.fullmatch(r"cascades\.0\.stages\.\d\.unit\.ih2ih\.weight", key):
            assert parameter.grad is None  # before the first cascade there are no states
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_gradient_without_signal_is_finite():
    built = network(std_gate=True)
    maps, mask, measured = problem()
    image = reconstruct(built, maps, mask, torch.zeros_like(measured))
    image.abs().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


@pytest.mark.parametrize("gate", [False, True])
def test_autocast(gate):
    built = network(std_gate=gate)
    data = problem()
    with torch.inference_mode():
        plain = reconstruct(built, *data)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = reconstruct(built, *data)
    assert rounded.dtype == torch.complex64
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
