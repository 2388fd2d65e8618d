import dataclasses

import pytest
import torch

from recon_core.coils.calibration import time_average
from recon_core.errors import ResourceError
from recon_core.inference import method as method_module
from recon_core.inference import trained as trained_module
from tests.helpers.networks import tiny
from tests.helpers.slices import noise_slice, reconstruct


def test_the_peak_is_what_the_weights_were_trained_with(weights):
    """A network with biases does something else at another scale; the unit of the data must not matter."""
    weights("crnn_mri", input_peak=1.0)
    plain = reconstruct(noise_slice(), method="crnn_mri")
    torch.testing.assert_close(
        reconstruct(noise_slice(scale=50.0), method="crnn_mri"), 50 * plain, rtol=1e-4, atol=1e-4
    )
    weights("crnn_mri", input_peak=3.0)
    assert not torch.allclose(reconstruct(noise_slice(), method="crnn_mri"), plain, rtol=1e-2)


def test_the_peak_is_that_of_the_time_average(weights, monkeypatch):
    weights("crnn_mri", input_peak=2.0)
    seen = []
    network_class = type(tiny("crnn_mri"))
    original = network_class.reconstruct

    def spy(self, part, **more):
        seen.append(part)
        return original(self, part, **more)

    monkeypatch.setattr(network_class, "reconstruct", spy)
    reconstruct(noise_slice(scale=17.0), method="crnn_mri")
    (part,) = seen
    average, _ = time_average(part.hybrid, part.mask)
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(average, -2), dim=-2, norm="ortho"), -2)
    assert (part.maps.conj() * image).sum(0).abs().max().item() == pytest.approx(2.0, rel=1e-4)


def test_windows_go_around_the_cycle(weights):
    """Without anything recurrent over the windows, a shift of the series by a whole window shifts the result."""
    weights("unet3d_mr")
    first = noise_slice(n_frames=8)
    shifted = dataclasses.replace(first, hybrid=first.hybrid.roll(4, 0), mask=first.mask.roll(4, 0))
    images = [reconstruct(part, method="unet3d_mr", window=4) for part in (first, shifted)]
    torch.testing.assert_close(images[0].roll(4, 0), images[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(images[0], reconstruct(first, method="unet3d_mr"), rtol=1e-2)


def test_the_window_of_the_manifest_holds_unless_the_options_say_another(weights, monkeypatch):
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    monkeypatch.setattr(method_module, "find_weights", lambda *_: dataclasses.replace(entry, window=3))
    seen = []
    monkeypatch.setattr(
        trained_module, "over_windows", lambda _f, n, window, _d, **_: (seen.append(window), torch.zeros(n, 16, 12))[1]
    )
    for options in ({}, {"window": 5}):
        reconstruct(noise_slice(n_frames=6), method="crunet_mr", **options)
    assert seen == [3, 5]


@pytest.mark.parametrize("option", [0, 2_000_000_000])
@pytest.mark.parametrize("trained", [0, 9])
def test_a_series_shorter_than_the_window_is_taken_as_it_is(weights, monkeypatch, trained, option):
    """A cycle that is repeated costs time and memory, and shows nothing more."""
    weights("crunet_mr")
    entry = method_module.find_weights("crunet_mr", "")
    monkeypatch.setattr(method_module, "find_weights", lambda *_: dataclasses.replace(entry, window=trained))
    network_class = type(tiny("crunet_mr"))
    original, seen = network_class.reconstruct, []

    def counted(self, part, **more):
        seen.append(len(part.hybrid))
        return original(self, part, **more)

    monkeypatch.setattr(network_class, "reconstruct", counted)
    reconstruct(noise_slice(n_frames=4), method="crunet_mr", window=option)
    assert seen == [4]


def test_a_short_series_is_repeated_to_what_the_network_needs(weights):
    weights("cinenet")
    assert tiny("cinenet").minimum_frames > 2
    assert reconstruct(noise_slice(n_frames=2), method="cinenet").shape == (2, 16, 12)


def test_windows_shrink_to_the_memory(weights, monkeypatch):
    weights("crunet_mr")
    network = tiny("crunet_mr")
    needed = network.working_bytes((3, 2, 16, 12)) + 8 * 3 * 2 * 16 * 12
    monkeypatch.setattr(trained_module, "available_bytes", lambda _: needed)
    slice_ = noise_slice(n_frames=6)
    image = reconstruct(slice_, method="crunet_mr")
    assert any("windows of 3 frames" in note for note in slice_.notes)
    torch.testing.assert_close(image, reconstruct(noise_slice(n_frames=6), method="crunet_mr", window=3))


def test_too_little_memory_for_a_frame_is_an_error(weights, monkeypatch):
    weights("crunet_mr")
    monkeypatch.setattr(trained_module, "available_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match=r"crunet_mr needs .* GiB for 1 frames"):
        reconstruct(noise_slice(), method="crunet_mr")


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
    slice_ = noise_slice(n_frames=8)
    assert reconstruct(slice_, method="crunet_mr").shape == (8, 16, 12)
    assert seen[:3] == [8, 4, 2]
    assert any("windows of 2 frames" in note for note in slice_.notes)


def test_a_system_that_does_not_tell_its_memory_is_trusted(weights, monkeypatch):
    weights("crunet_mr")
    monkeypatch.setattr(trained_module, "available_bytes", lambda _: None)
    assert reconstruct(noise_slice(), method="crunet_mr").shape == (6, 16, 12)


def test_the_memory_is_that_of_the_device_of_the_data(weights, monkeypatch):
    weights("crunet_mr")
    asked = []
    monkeypatch.setattr(trained_module, "available_bytes", lambda device: asked.append(device))
    slice_ = noise_slice()
    reconstruct(slice_, method="crunet_mr")
    assert asked == [slice_.hybrid.device]


@pytest.mark.parametrize("window", [0, 4])
def test_an_uncertainty_has_the_units_and_the_frames_of_the_image(weights, window):
    weights("dstdm")
    options = {"method": "dstdm", "samples": 2, "sampler_steps": 2, "start_noise": 0.1, "window": window}
    found = []
    for scale in (1.0, 50.0):
        slice_ = noise_slice(scale=scale)
        image = reconstruct(slice_, **options)
        assert slice_.extra["uncertainty"].shape == image.shape
        found.append(slice_.extra["uncertainty"])
    assert (found[0] != 0).any()
    torch.testing.assert_close(found[1], 50 * found[0], rtol=1e-3, atol=1e-3)
