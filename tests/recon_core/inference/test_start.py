import dataclasses

import pytest
import torch

from recon_core.engine import create_method
from recon_core.errors import ModelError, SettingsError
from recon_core.inference import trained as trained_module
from recon_core.inference.start import with_start
from recon_core.networks.cst_net import normalise
from recon_core.options import ReconOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.simulate.sampling import interleaved_mask
from recon_core.training.library import Library
from recon_core.training.measurements import measure
from recon_core.training.series import draw_series
from recon_core.weights.config import build_network
from recon_core.weights.manifest import STARTS
from tests.helpers.networks import NETWORKS, TINY, tiny, write_tiny_chain


def scan(n_frames=4, n_coils=4, size=32, empty=()):
    series = draw_series((11,), Library(), kind="view", frames=n_frames, matrix=(size, size))
    mask = interleaved_mask(n_frames, size, 3, 6)
    mask[list(empty)] = False
    return measure((11,), series, mask=mask, n_coils=n_coils, snr=60).slice()


def network_of(method, **config):
    """A small network with the weights that training starts from."""
    torch.manual_seed(0)
    return build_network(method, {**TINY[method], **config}).eval()


def for_network(network, **more):
    """A slice with as many frames as a network takes."""
    return scan(network.maximum_frames or 4, **more)


def reconstruct(network, data):
    torch.manual_seed(0)
    with torch.inference_mode():
        return network.reconstruct(data)


# --- the start --------------------------------------------------------------------------------------------------------


def test_zero_filled_is_none():
    data = dataclasses.replace(scan(), start=torch.ones(4, 32, 32, dtype=torch.complex64))
    assert with_start(data, "zero_filled").start is None
    assert STARTS[0] == "zero_filled"


def test_cg_sense_is_the_method_with_ten_iterations():
    data = scan()
    found = with_start(data, "cg_sense")
    expected = create_method("cg_sense", ReconOptions.of(method="cg_sense", iterations=10))(data)
    assert torch.equal(found.start, expected)
    more = create_method("cg_sense", ReconOptions.of(method="cg_sense", iterations=20))(data)
    assert not torch.equal(found.start, more)
    assert found.hybrid is data.hybrid
    assert data.start is None


def test_empty_frames_start_from_the_mean_of_the_others():
    start = with_start(scan(empty=(1, 3)), "cg_sense").start
    assert start[0].abs().max() > 0.1
    assert not torch.equal(start[0], start[2])
    for frame in (1, 3):
        torch.testing.assert_close(start[frame], (start[0] + start[2]) / 2)


@pytest.mark.parametrize("start", STARTS[1:])
def test_without_any_line_the_start_is_zero(start):
    assert not (with_start(scan(empty=range(4)), start).start != 0).any()


def test_kt_sense_is_the_method_whatever_the_precision_of_the_network():
    data = scan(empty=(1,))
    expected = create_method("kt_sense", ReconOptions())(dataclasses.replace(data, notes=[]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_start(data, "kt_sense")
    assert torch.equal(found.start, expected)
    assert found.start[1].abs().max() > 0.1  # of a frame without a line
    assert (found.notes, data.start) == (["frames without a line are predicted from the others: 1"], None)


def test_kt_sense_tells_how_well_it_is_known():
    data = scan()
    deviation = with_start(data, "kt_sense").start_deviation
    assert deviation.shape == (4, 32, 32)
    assert (deviation > 0).any()
    assert with_start(data, "cg_sense").start_deviation is None


def test_another_start_is_refused():
    with pytest.raises(SettingsError, match=r"cannot start from 'grappa'; .*zero_filled, cg_sense, kt_sense"):
        with_start(scan(), "grappa")


@pytest.fixture
def _first(tmp_path, monkeypatch):
    """Weights of the name ``first`` to start from."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")


@pytest.mark.usefixtures("_first")
def test_weights_go_on_from_the_start_that_there_is():
    """And from k-t SENSE where none of known error is there."""
    data = with_start(scan(8), "kt_sense")
    found = with_start(data, "first")
    for before in (scan(8), with_start(scan(8), "cg_sense")):
        assert torch.equal(with_start(before, "first").start, found.start)
    other = with_start(dataclasses.replace(data, start=0.5 * data.start), "first")
    assert not torch.allclose(other.start, found.start, rtol=1e-2)
    assert not torch.allclose(found.start, data.start, rtol=1e-2)
    assert (found.start_deviation <= data.start_deviation).all()


@pytest.mark.usefixtures("_first")
def test_what_weights_had_to_do_differently_is_noted_with_their_name(monkeypatch):
    """What follows, which may need less memory, has notes of its own."""
    needed = tiny("crunet_mr").working_bytes((2, 4, 32, 32)) + 8 * 2 * 4 * 32 * 32
    monkeypatch.setattr(trained_module, "available_bytes", lambda _: needed)
    (made_of, windows) = with_start(scan(), "first").notes
    assert made_of.startswith("from the image of the weights first")
    assert windows == "first: in windows of 2 frames, because more do not fit into memory"


@pytest.mark.usefixtures("_first")
def test_an_image_of_weights_that_is_not_finite_is_nothing_to_start_from(monkeypatch):
    broken = torch.full((4, 32, 32), complex("nan"), dtype=torch.complex64)
    monkeypatch.setattr(type(tiny("crunet_mr")), "reconstruct", lambda *_, **__: broken)
    with pytest.raises(ModelError, match="the weights first, which are started from, gave values that are not finite"):
        with_start(scan(), "first")


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NETWORKS)
def test_every_network_takes_a_start(method):
    network = network_of(method)
    data = with_start(for_network(network), "cg_sense")
    image = reconstruct(network, data)
    assert image.shape == data.start.shape
    assert image.isfinite().all()
    assert image.abs().max() > 0


@pytest.mark.parametrize("method", [method for method in NETWORKS if method != "dstdm"])
def test_the_start_matters(method):
    # before training, nothing gets through the fusion
    network = network_of(method, **({"residual": True, "fusion": "none"} if method == "unrolled_resnet3d" else {}))
    data = for_network(network)
    plain = reconstruct(network, data)
    other = reconstruct(network, dataclasses.replace(data, start=0.3 * with_start(data, "cg_sense").start))
    assert (other - plain).norm() > 1e-4 * plain.norm()


@pytest.mark.parametrize("method", NETWORKS)
def test_nothing_gives_nothing(method):
    network = network_of(method)
    data = for_network(network)
    empty = dataclasses.replace(data, hybrid=0 * data.hybrid, reference=0 * data.reference)
    for start in STARTS[:2]:  # of nothing, all but the first are alike
        assert not (reconstruct(network, with_start(empty, start)) != 0).any()


@pytest.mark.parametrize("method", NETWORKS)
def test_the_zero_filled_image_as_a_start_is_as_no_start(method):
    network = network_of(method)
    # of one coil, what that image says of lines that were not measured is nothing, as in the k-space of PromptMR
    data = for_network(network, n_coils=1 if method == "promptmr" else 4)
    consistency = DataConsistency(data.maps, data.mask, data.hybrid)
    own = consistency.zero_filled
    if method == "cst_net":  # divides by the intensity of the maps first
        own = normalise(own, consistency)
    plain = reconstruct(network, data)
    started = reconstruct(network, dataclasses.replace(data, start=own))
    assert (started - plain).norm() < 2e-5 * plain.norm()
