import pytest
import torch
from torch import nn
from torch.nn import functional

from recon_core.networks import blocks
from recon_core.networks.blocks import (
    ConvolutionalRecurrence,
    SpaceTimeConvolution,
    around,
    frame_by_frame,
    merge_frames,
    pad_to_multiple,
    portions,
    split_frames,
    to_channels,
    to_complex,
)


@pytest.fixture(params=["inference", "small portions", "autograd"])
def mode(request, monkeypatch):
    """The ways in which frames are put together: all, in portions, or all with what autograd allows."""
    torch.manual_seed(0)
    if request.param == "small portions":
        monkeypatch.setitem(blocks.PORTION_BYTES, "cpu", 1)
    with torch.set_grad_enabled(request.param == "autograd"):
        yield


def plain_recurrence(unit, features, state, *, backward):
    hidden = torch.zeros_like(unit.h2h(state[:, 0]))
    frames = list(range(features.shape[1]))
    result = {}
    for frame in frames[::-1] if backward else frames:
        hidden = functional.relu(unit.i2h(features[:, frame]) + unit.ih2ih(state[:, frame]) + unit.h2h(hidden))
        result[frame] = hidden
    return torch.stack([result[frame] for frame in frames], 1)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("n_frames", [1, 4])
def test_recurrence_is_its_definition(mode, direction, n_frames, with_state):
    unit = ConvolutionalRecurrence(3, 5, 2, direction)
    features = torch.randn(2, n_frames, 3, 6, 7)
    state = torch.randn(2, n_frames, 5, 6, 7) * with_state
    expected = torch.zeros_like(state)
    for backward in (False, True):
        if direction in ("both", "backward" if backward else "forward"):
            expected = expected + plain_recurrence(unit, features, state, backward=backward)
    result = unit(features, state if with_state else None)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_frames", [1, 2, 5])
@pytest.mark.parametrize("n_batch", [1, 2])
def test_space_time_convolution_is_its_definition(mode, n_batch, n_frames):
    layer = SpaceTimeConvolution(nn.Conv2d(7, 4, 3, padding=1), 4)
    first, second = torch.randn(n_batch, n_frames, 3, 6, 5), torch.randn(n_batch, n_frames, 4, 6, 5)
    result = layer(first, second)
    for entry in range(n_batch):
        images = functional.relu(layer.conv2d(torch.cat((first[entry], second[entry]), 1)))
        series = images.permute(2, 3, 1, 0).flatten(0, 1)
        series = layer.conv1d(torch.cat((series[..., -1:], series, series[..., :1]), -1))
        expected = series.unflatten(0, (6, 5)).permute(3, 2, 0, 1)
        torch.testing.assert_close(result[entry], expected, rtol=1e-5, atol=1e-5)


def test_space_time_convolution_of_another_size(mode):
    layer = SpaceTimeConvolution(nn.ConvTranspose2d(3, 3, 2, stride=2), 3)
    assert layer(torch.randn(1, 3, 3, 4, 5)).shape == (1, 3, 3, 8, 10)


@pytest.mark.parametrize("make", ["recurrence", "convolution"])
def test_gradients_reach_every_parameter(make):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    if make == "recurrence":
        layer = ConvolutionalRecurrence(4, 4).double()
        result = layer(features, features.detach())
    else:
        layer = SpaceTimeConvolution(nn.Conv2d(4, 4, 1), 4).double()
        result = layer(features)
    result.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    step = 1e-6
    with torch.no_grad():
        moved = features.clone()
        moved[1, 2, 3, 4, 2] += step
        again = layer(moved, features.detach()) if make == "recurrence" else layer(moved)
        slope = (again.square().sum() - result.square().sum()) / step
    assert features.grad[1, 2, 3, 4, 2] == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("n_batch", [1, 3])
def test_layers_between_keep_the_order_in_memory(n_batch):
    images = torch.randn(4 * n_batch, 8, 6, 6).to(memory_format=torch.channels_last)
    features = split_frames(images, 4)
    assert features.shape == (n_batch, 4, 8, 6, 6)
    assert torch.equal(features[n_batch - 1, 2], images[2 * n_batch + n_batch - 1])
    assert merge_frames(features).data_ptr() == images.data_ptr()
    with torch.inference_mode():
        unit = ConvolutionalRecurrence(8, 8, 1, "backward")
        result = merge_frames(unit(frame_by_frame(nn.Conv2d(8, 8, 1), features), features))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_portions_are_all_frames_in_order(monkeypatch):
    features = torch.randn(2, 5, 3, 4, 4)
    monkeypatch.setitem(blocks.PORTION_BYTES, "cpu", 2 * 2 * 2 * 3 * 16 * 4)  # two frames of two arrays and entries
    with torch.no_grad():
        pieces = portions(features, features)
    assert [len(first) for first, _ in pieces] == [4, 4, 2]
    assert torch.equal(split_frames(torch.cat([second for _, second in pieces]), 5), features)
    assert len(portions(features)) == 1  # with autograd


@pytest.mark.parametrize(("start", "length", "total"), [(0, 3, 3), (2, 3, 5), (4, 3, 5), (-1, 5, 5), (5, 1, 5)])
def test_places_around_a_cycle(start, length, total):
    cycle, piece = [None] * total, list(range(length))
    for place, part in around(start, length, total):
        cycle[place] = piece[part]
    assert len(cycle) == total
    assert [cycle[(start + i) % total] for i in range(length)] == piece


@pytest.mark.parametrize(("size", "padded", "first"), [((8, 16), (8, 16), (0, 0)), ((27, 1), (32, 8), (2, 3))])
def test_padding_is_around_the_image(size, padded, first):
    image = torch.randn(2, *size, 2)
    result, (rows, columns) = pad_to_multiple(image, 8)
    assert result.shape[1:3] == padded
    assert (rows.start, columns.start) == first
    assert torch.equal(result[:, rows, columns], image)
    assert result.abs().sum() == pytest.approx(float(image.abs().sum()))


@pytest.mark.parametrize("conjugate", [True, False])
def test_complex_numbers_are_channels(conjugate):
    image = torch.randn(2, 3, 4, 5, dtype=torch.complex64)
    image = image.conj() if conjugate else image
    channels = to_channels(image)
    assert torch.equal(channels, torch.stack((image.real, image.imag), -3))
    assert torch.equal(to_complex(channels), image)
    assert torch.equal(to_complex(channels.contiguous()), image)
    assert to_complex(channels.bfloat16()).dtype == torch.complex64
