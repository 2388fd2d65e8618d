import contextlib
import dataclasses
import re

import numpy as np
import pytest
import torch

from recon_core.classical.kt_sense import settle
from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.engine import create_method
from recon_core.errors import ResourceError
from recon_core.inference import method as method_module
from recon_core.inference.method import NetworkMethod, signal_to_noise
from recon_core.inference.start import with_start
from recon_core.networks.base import Network
from recon_core.options import NetworkOptions, ReconOptions
from recon_core.physics import memory
from recon_core.physics.sense import SenseOperator
from recon_core.simulate.sampling import interleaved_mask
from recon_core.trust.ranges import Limits, TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import tiny, write_tiny_weights


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A function that puts tiny weights in place, with facts of their own."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))

    def write(method, **facts):
        write_tiny_weights(tmp_path, method, **facts)

    return write


def data(n_frames=6, n_coils=2, n_y=16, n_x=12, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    mask = torch.from_numpy(interleaved_mask(n_frames, n_y, 2))
    hybrid = scale * torch.randn(n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    hybrid = hybrid * mask[:, None, :, None]
    maps = torch.full((n_coils, n_y, n_x), n_coils**-0.5, dtype=torch.complex64)
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask))


def run(slice_, **options):
    with torch.inference_mode():
        return create_method(options["method"], ReconOptions.of(**options))(slice_)


def test_it_is_the_network_on_all_frames(weights):
    weights("crunet_mr")
    with torch.inference_mode():
        expected = tiny("crunet_mr").reconstruct(data())
    torch.testing.assert_close(run(data(), method="crunet_mr"), expected)


def test_the_peak_is_what_the_weights_were_trained_with(weights):
    """A network with biases does something else at another scale; the unit of the data must not matter."""
    weights("crnn_mri", input_peak=1.0)
    plain = run(data(), method="crnn_mri")
    torch.testing.assert_close(run(data(scale=50.0), method="crnn_mri"), 50 * plain, rtol=1e-4, atol=1e-4)
    weights("crnn_mri", input_peak=3.0)
    assert not torch.allclose(run(data(), method="crnn_mri"), plain, rtol=1e-2)


def test_the_peak_is_that_of_the_time_average(weights, monkeypatch):
    weights("crnn_mri", input_peak=2.0)
    seen = []
    original = Network.reconstruct

    def spy(self, part, **more):
        seen.append(part)
        return original(self, part, **more)

    network_class = type(tiny("crnn_mri"))
    original = network_class.reconstruct
    monkeypatch.setattr(network_class, "reconstruct", spy)
    run(data(scale=17.0), method="crnn_mri")
    (part,) = seen
    average, _ = time_average(part.hybrid, part.mask)
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(average, -2), dim=-2, norm="ortho"), -2)
    assert (part.maps.conj() * image).sum(0).abs().max().item() == pytest.approx(2.0, rel=1e-4)


def test_windows_go_around_the_cycle(weights):
    """Without anything recurrent over the windows, a shift of the series by a whole window shifts the result."""
    weights("unet3d_mr")
    first = data(n_frames=8)
    shifted = dataclasses.replace(first, hybrid=first.hybrid.roll(4, 0), mask=first.mask.roll(4, 0))
    images = [run(part, method="unet3d_mr", window=4) for part in (first, shifted)]
    torch.testing.assert_close(images[0].roll(4, 0), images[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(images[0], run(first, method="unet3d_mr"), rtol=1e-2)


def test_the_window_of_the_manifest_holds_unless_the_options_say_another(weights, monkeypatch):
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    monkeypatch.setattr(method_module, "find_weights", lambda *_: dataclasses.replace(entry, window=3))
    seen = []
    monkeypatch.setattr(
        method_module, "over_windows", lambda _f, n, window, _d, **_: (seen.append(window), torch.zeros(n, 16, 12))[1]
    )
    for options in ({}, {"window": 5}):
        run(data(n_frames=6), method="crunet_mr", **options)
    assert seen == [3, 5]


def test_no_window_repeats_the_cycle_more_often_than_the_weights_want(weights, monkeypatch):
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    seen = []
    monkeypatch.setattr(
        method_module, "over_windows", lambda _f, n, window, _d, **_: (seen.append(window), torch.zeros(n, 16, 12))[1]
    )
    for trained in (0, 9):
        monkeypatch.setattr(method_module, "find_weights", lambda *_, n=trained: dataclasses.replace(entry, window=n))
        run(data(n_frames=4), method="crunet_mr", window=2_000_000_000)
    assert seen == [4, 9]


def test_a_short_series_is_repeated_to_what_the_network_needs(weights):
    weights("cinenet")
    assert tiny("cinenet").minimum_frames > 2
    assert run(data(n_frames=2), method="cinenet").shape == (2, 16, 12)


def test_windows_shrink_to_the_memory(weights, monkeypatch):
    weights("crunet_mr")
    network = tiny("crunet_mr")
    needed = network.working_bytes((3, 2, 16, 12)) + 8 * 3 * 2 * 16 * 12
    monkeypatch.setattr(method_module, "available_bytes", lambda _: needed)
    slice_ = data(n_frames=6)
    image = run(slice_, method="crunet_mr")
    assert any("windows of 3 frames" in note for note in slice_.notes)
    torch.testing.assert_close(image, run(data(n_frames=6), method="crunet_mr", window=3))


def test_too_little_memory_for_a_frame_is_an_error(weights, monkeypatch):
    weights("crunet_mr")
    monkeypatch.setattr(method_module, "available_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match=r"crunet_mr needs .* GiB for 1 frames"):
        run(data(), method="crunet_mr")


def test_a_gpu_that_runs_out_of_memory_gets_less_to_do(weights, monkeypatch):
    weights("crunet_mr")
    network_class = type(tiny("crunet_mr"))
    original, seen = network_class.reconstruct, []

    def tight(self, part, **more):
        seen.append(len(part.hybrid))
        if len(part.hybrid) > 2:
            raise torch.cuda.OutOfMemoryError
        return original(self, part, **more)

    monkeypatch.setattr(network_class, "reconstruct", tight)
    slice_ = data(n_frames=8)
    assert run(slice_, method="crunet_mr").shape == (8, 16, 12)
    assert seen[:3] == [8, 4, 2]
    assert any("windows of 2 frames" in note for note in slice_.notes)


def test_a_system_that_does_not_tell_its_memory_is_trusted(weights, monkeypatch):
    weights("crunet_mr")
    monkeypatch.setattr(method_module, "available_bytes", lambda _: None)
    assert run(data(), method="crunet_mr").shape == (6, 16, 12)


def network(method="crunet_mr"):
    return NetworkMethod(method, NetworkOptions())


def test_a_scan_unlike_the_training_is_reported_and_can_be_run(weights):
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [4, 12], "patterns": ["constant"]}))
    told = network().unlike_training(data())
    assert told.startswith("the scan is not like the training of the weights crunet_mr: acceleration 2, trained for 4")
    assert "interleaved pattern, trained for constant" in told
    assert run(data(), method="crunet_mr").shape == (6, 16, 12)
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [2, 12]}))
    assert network().unlike_training(data()) == ""
    weights("crunet_mr")
    assert network().unlike_training(data()) == ""


def test_the_snr_is_the_peak_of_the_time_average_over_the_noise():
    slice_ = data()
    assert signal_to_noise(slice_) is None
    average, _ = time_average(slice_.hybrid, slice_.mask)
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(average, -2), dim=-2, norm="ortho"), -2)
    peak = (slice_.maps.conj() * image).sum(0).abs().max().item()
    assert signal_to_noise(dataclasses.replace(slice_, noise_variance=4.0)) == pytest.approx(peak / 2)


def test_the_snr_is_checked_where_the_noise_is_known(weights):
    weights("crunet_mr", range=TrainingRange(snr=(1000, 2000)))
    assert network().unlike_training(data()) == ""
    told = network().unlike_training(dataclasses.replace(data(), noise_variance=2.0))
    assert re.search(r"SNR [0-9.]+, trained for 1000 to 2000$", told)


def test_an_image_is_judged_by_the_limits_of_the_weights(weights, monkeypatch):
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    maps = data(n_coils=1).maps
    mask = torch.ones(6, 16, dtype=torch.bool)
    reference = torch.randn(6, 16, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    hybrid = SenseOperator(maps, mask).forward(reference)
    slice_ = HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask), noise_variance=1e-6)
    assert network().doubts(slice_, 1.1 * reference, reference) == ""
    limited = dataclasses.replace(entry, limits=Limits(change=0.05))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: limited)
    told = network().doubts(slice_, 1.1 * reference, reference)
    assert re.fullmatch(
        r"the image of crunet_mr differs by 1\d(\.\d)? % from that of cg_sense, at most 5 % on scans of its training",
        told,
    )
    assert "of the signal in the data unexplained, at most 40 % by default" in network().doubts(
        slice_, -reference, reference
    )


def test_every_image_says_which_weights_made_it(weights):
    weights("crunet_mr")
    slice_ = data()
    run(slice_, method="crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    assert f"weights crunet_mr (sha256 {entry.sha256[:8]})" in slice_.notes
    assert any("not known" in note for note in slice_.notes)
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [1, 12]}))
    slice_ = data()
    run(slice_, method="crunet_mr")
    assert len(slice_.notes) == 1


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 0.0), ("bfloat16", 0.1)])
def test_precision(weights, precision, limit):
    """On the CPU tf32 is float32. Lower precision changes the image a little, and nothing after it."""
    weights("crunet_mr")
    exact = run(data(), method="crunet_mr")
    image = run(data(), method="crunet_mr", precision=precision)
    error = ((image - exact).norm() / exact.norm()).item()
    assert 0 <= error <= limit
    assert (error > 0) == (limit > 0)
    assert image.dtype == torch.complex64
    assert not torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(run(data(), method="crunet_mr"), exact)


@pytest.mark.parametrize("query", [None, "_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_auto_is_the_precision_that_the_processor_has(weights, monkeypatch, query):
    """Also with a torch that cannot tell: that is float32."""
    for name in method_module._BFLOAT16_QUERIES:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    if query:
        monkeypatch.setattr(torch.cpu, query, lambda: True, raising=False)
    weights("crunet_mr")
    image = run(data(), method="crunet_mr", precision="auto")
    expected = run(data(), method="crunet_mr", precision="bfloat16" if query else "float32")
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_auto_is_the_precision_that_the_gpu_has(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    seen = []
    monkeypatch.setattr(torch, "autocast", lambda *_, dtype, enabled: seen.append(dtype) or contextlib.nullcontext())
    with method_module.precision_of_convolutions("auto", torch.device("cuda")):
        assert seen == [dtype]


def test_memory_that_is_available_is_asked_of_the_device():
    assert method_module.available_bytes is memory.available_bytes
    assert np.isfinite(memory.available_bytes(torch.device("cpu")) or 0)


@pytest.mark.parametrize("window", [0, 4])
def test_an_uncertainty_has_the_units_and_the_frames_of_the_image(weights, window):
    weights("dstdm")
    options = {"method": "dstdm", "samples": 2, "sampler_steps": 2, "start_noise": 0.1, "window": window}
    found = []
    for scale in (1.0, 50.0):
        slice_ = data(scale=scale)
        image = run(slice_, **options)
        assert slice_.extra["uncertainty"].shape == image.shape
        found.append(slice_.extra["uncertainty"])
    assert (found[0] != 0).any()
    torch.testing.assert_close(found[1], 50 * found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [0, 4])
def test_the_image_is_weighed_against_its_start(weights, monkeypatch, window):
    """The less the weights are trusted, the nearer it is to k-t SENSE, in windows of frames too."""
    weights("crunet_mr")
    entry, start = find_weights("crunet_mr", ""), with_start(data(8), "kt_sense").start
    distances = []
    for level in (8.0, 0.0, -1.5):
        ours = dataclasses.replace(entry, start="kt_sense", weighing=Weighing(level=level))
        monkeypatch.setattr(method_module, "find_weights", lambda *_, ours=ours: ours)
        slice_ = data(8)
        image = NetworkMethod("crunet_mr", NetworkOptions(window=window))(slice_)
        distances.append(float((image - start).norm()))
        assert any("weighed against kt_sense: crunet_mr counts" in note for note in slice_.notes)
        assert not slice_.doubts
    assert distances[0] > distances[1] > distances[2] > 0
    assert distances[2] < 0.3 * distances[0]


def test_an_image_is_settled_before_it_is_weighed(weights, monkeypatch):
    weights("crunet_mr")
    entry, whole = find_weights("crunet_mr", ""), with_start(data(8), "kt_sense")
    made = []
    for weighing in (None, Weighing(level=40.0)):  # the second leaves nothing of the start
        ours = dataclasses.replace(entry, start="kt_sense", weighing=weighing)
        monkeypatch.setattr(method_module, "find_weights", lambda *_, ours=ours: ours)
        made.append(NetworkMethod("crunet_mr", NetworkOptions())(whole))
    alone, sent = made
    torch.testing.assert_close(sent, settle(whole, alone, whole.start_deviation), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sent, alone, rtol=1e-2)


def test_an_image_that_is_not_finite_is_left_to_who_refuses_it(weights, monkeypatch):
    weights("crunet_mr")
    entry = dataclasses.replace(find_weights("crunet_mr", ""), start="kt_sense", weighing=Weighing(level=0.0))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: entry)
    broken = torch.full((8, 16, 12), complex("nan"), dtype=torch.complex64)
    monkeypatch.setattr(type(tiny("crunet_mr")), "reconstruct", lambda _, part, **__: broken[: len(part.mask)])
    assert not NetworkMethod("crunet_mr", NetworkOptions())(data(8)).isfinite().any()


def test_what_hardly_counts_is_doubted(weights, monkeypatch):
    weights("crunet_mr")
    entry = dataclasses.replace(find_weights("crunet_mr", ""), weighing=Weighing(level=-8.0))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: entry)
    slice_ = data(8)
    NetworkMethod("crunet_mr", NetworkOptions())(slice_)
    (doubt,) = slice_.doubts
    assert "the image of crunet_mr counts 0.03 % of what the data leave open" in doubt


def test_what_is_weighed_need_not_be_like_the_training(weights, monkeypatch):
    weights("crunet_mr")
    narrow = TrainingRange(acceleration=(50, 60))
    entry = dataclasses.replace(find_weights("crunet_mr", ""), range=narrow)
    for weighing, unlike in ((None, True), (Weighing(level=0.0), False)):
        ours = dataclasses.replace(entry, weighing=weighing)
        monkeypatch.setattr(method_module, "find_weights", lambda *_, ours=ours: ours)
        assert bool(NetworkMethod("crunet_mr", NetworkOptions()).unlike_training(data(8))) == unlike
