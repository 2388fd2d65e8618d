import dataclasses
import re

import pytest
import torch

from recon_core.classical.kt_sense import settle
from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.inference import method as method_module
from recon_core.inference.fusion import limited
from recon_core.inference.method import NetworkMethod
from recon_core.inference.signal import signal_to_noise
from recon_core.inference.start import with_start
from recon_core.options import NetworkOptions
from recon_core.physics.sense import SenseOperator
from recon_core.trust.ranges import Limits, TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights.manifest import find_weights, write_entry
from tests.helpers.networks import tiny, write_tiny_chain
from tests.helpers.slices import noise_slice, reconstruct


def test_it_is_the_network_on_all_frames(weights):
    weights("crunet_mr")
    with torch.inference_mode():
        expected = tiny("crunet_mr").reconstruct(noise_slice())
    torch.testing.assert_close(reconstruct(noise_slice(), method="crunet_mr"), expected)


def network(method="crunet_mr"):
    return NetworkMethod(method, NetworkOptions())


def test_a_scan_unlike_the_training_is_reported_and_can_be_run(weights):
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [4, 12], "patterns": ["constant"]}))
    told = network().unlike_training(noise_slice())
    assert told.startswith("the scan is not like the training of the weights crunet_mr: acceleration 2, trained for 4")
    assert "interleaved pattern, trained for constant" in told
    assert reconstruct(noise_slice(), method="crunet_mr").shape == (6, 16, 12)
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [2, 12]}))
    assert network().unlike_training(noise_slice()) == ""
    weights("crunet_mr")
    assert network().unlike_training(noise_slice()) == ""


def test_the_snr_is_the_peak_of_the_time_average_over_the_noise():
    slice_ = noise_slice()
    assert signal_to_noise(slice_) is None
    average, _ = time_average(slice_.hybrid, slice_.mask)
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(average, -2), dim=-2, norm="ortho"), -2)
    peak = (slice_.maps.conj() * image).sum(0).abs().max().item()
    assert signal_to_noise(dataclasses.replace(slice_, noise_variance=4.0)) == pytest.approx(peak / 2)


def test_the_snr_is_checked_where_the_noise_is_known(weights):
    weights("crunet_mr", range=TrainingRange(snr=(1000, 2000)))
    assert network().unlike_training(noise_slice()) == ""
    told = network().unlike_training(dataclasses.replace(noise_slice(), noise_variance=2.0))
    assert re.search(r"SNR [0-9.]+, trained for 1000 to 2000$", told)


def test_an_image_is_judged_by_the_limits_of_the_weights(weights, monkeypatch):
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    maps = noise_slice(n_coils=1).maps
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
    slice_ = noise_slice()
    reconstruct(slice_, method="crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    assert f"weights crunet_mr (sha256 {entry.sha256[:8]})" in slice_.notes
    assert any("not known" in note for note in slice_.notes)
    weights("crunet_mr", range=TrainingRange.parse({"acceleration": [1, 12]}))
    slice_ = noise_slice()
    reconstruct(slice_, method="crunet_mr")
    assert len(slice_.notes) == 1


@pytest.mark.parametrize("window", [0, 4])
def test_the_image_is_weighed_against_its_start(weights, monkeypatch, window):
    """The less the weights are trusted, the nearer it is to k-t SENSE, in windows of frames too."""
    weights("crunet_mr")
    entry, start = find_weights("crunet_mr", ""), with_start(noise_slice(8), "kt_sense").start
    distances = []
    for level in (8.0, 0.0, -1.5):
        ours = dataclasses.replace(entry, start="kt_sense", weighing=Weighing(level=level))
        monkeypatch.setattr(method_module, "find_weights", lambda *_, ours=ours: ours)
        slice_ = noise_slice(8)
        image = NetworkMethod("crunet_mr", NetworkOptions(window=window))(slice_)
        distances.append(float((image - start).norm()))
        assert any("weighed against kt_sense: crunet_mr counts" in note for note in slice_.notes)
        assert not slice_.doubts
    assert distances[0] > distances[1] > distances[2] > 0
    assert distances[2] < 0.3 * distances[0]


def test_an_image_is_limited_and_settled_before_it_is_weighed(weights, monkeypatch):
    weights("crunet_mr")
    entry, whole = find_weights("crunet_mr", ""), with_start(noise_slice(8), "kt_sense")
    made = []
    for weighing in (None, Weighing(level=40.0)):  # the second leaves nothing of the start
        ours = dataclasses.replace(entry, start="kt_sense", weighing=weighing)
        monkeypatch.setattr(method_module, "find_weights", lambda *_, ours=ours: ours)
        made.append(NetworkMethod("crunet_mr", NetworkOptions())(whole))
    alone, sent = made
    near = limited(whole.start, whole.start_deviation, alone, repeats=False)
    torch.testing.assert_close(sent, settle(whole, near, whole.start_deviation), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near, alone, rtol=1e-2)
    assert not torch.allclose(sent, near, rtol=1e-2)


def test_an_image_that_is_not_finite_is_left_to_who_refuses_it(weights, monkeypatch):
    weights("crunet_mr")
    entry = dataclasses.replace(find_weights("crunet_mr", ""), start="kt_sense", weighing=Weighing(level=0.0))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: entry)
    broken = torch.full((8, 16, 12), complex("nan"), dtype=torch.complex64)
    monkeypatch.setattr(type(tiny("crunet_mr")), "reconstruct", lambda _, part, **__: broken[: len(part.mask)])
    assert not NetworkMethod("crunet_mr", NetworkOptions())(noise_slice(8)).isfinite().any()


def test_what_hardly_counts_is_doubted(weights, monkeypatch):
    weights("crunet_mr")
    entry = dataclasses.replace(find_weights("crunet_mr", ""), weighing=Weighing(level=-8.0))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: entry)
    slice_ = noise_slice(8)
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
        assert bool(NetworkMethod("crunet_mr", NetworkOptions()).unlike_training(noise_slice(8))) == unlike


def test_a_network_goes_on_from_the_image_of_other_weights(tmp_path, monkeypatch):
    """As it is sent; its error is taken to be smaller than that of k-t SENSE, against which both are weighed."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    seen = []
    kind = type(tiny("unet3d_mr"))
    original = kind.reconstruct
    monkeypatch.setattr(
        kind, "reconstruct", lambda self, part, **more: seen.append(part) or original(self, part, **more)
    )

    slice_ = noise_slice(8)
    alone = NetworkMethod("unet3d_mr", NetworkOptions())
    assert (alone.start_method, alone.first_network) == ("kt_sense", "crunet_mr")
    alone(slice_)
    known = with_start(noise_slice(8), "kt_sense")
    image = NetworkMethod("crunet_mr", NetworkOptions())(noise_slice(8))  # as it is sent
    torch.testing.assert_close(seen[0].start, image, rtol=1e-4, atol=1e-4)
    assert (seen[0].start_deviation < known.start_deviation).all()
    digest = find_weights("crunet_mr", "first").sha256
    (note,) = (note for note in slice_.notes if "first" in note)
    assert re.fullmatch(rf"from the image of the weights first \(sha256 {digest[:8]}\), which counts \d+ %", note)

    weighed = dataclasses.replace(find_weights("unet3d_mr", ""), weighing=Weighing(level=-40.0))
    monkeypatch.setattr(method_module, "find_weights", lambda *_: weighed)
    torch.testing.assert_close(NetworkMethod("unet3d_mr", NetworkOptions())(noise_slice(8)), known.start)


def test_where_the_first_weights_know_nothing_the_start_is_that_of_kt_sense(tmp_path, monkeypatch):
    """Neither a scan on which they count nothing nor one of a pattern on which they do not help is spoilt by them."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    first, known = find_weights("crunet_mr", "first"), with_start(noise_slice(8), "kt_sense")
    write_entry(tmp_path, dataclasses.replace(first, weighing=Weighing(level=-40.0)))
    found = with_start(known, "first")
    torch.testing.assert_close(found.start, known.start)
    torch.testing.assert_close(found.start_deviation, known.start_deviation)

    write_entry(tmp_path, first)
    assert not torch.allclose(with_start(known, "first").start, known.start, rtol=1e-2)
    monkeypatch.setattr(type(first), "why_not_on", lambda *_: "the weights first were not found to help")
    found = with_start(known, "first")
    assert torch.equal(found.start, known.start)
    assert found.notes[-1] == "not from their image: the weights first were not found to help"


def test_window_and_precision_are_those_of_both_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    seen = []
    for kind in map(type, map(tiny, ("crunet_mr", "unet3d_mr"))):

        def reconstruct(self, part, original=kind.reconstruct, **more):
            seen.append((type(self).__name__, len(part.mask), torch.is_autocast_enabled("cpu")))
            return original(self, part, **more)

        monkeypatch.setattr(kind, "reconstruct", reconstruct)
    NetworkMethod("unet3d_mr", NetworkOptions(window=4, precision="bfloat16"))(noise_slice(8))
    assert set(seen) == {("CRUNetMR", 4, True), ("UNet3DMR", 4, True)}
