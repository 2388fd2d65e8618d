"""CRUNet-MR as its authors run it: frame by frame, a convolution for every term, lists joined again and again.

Lyu et al., "Convolutional recurrent U-net for cardiac cine MRI reconstruction via effective spatio-temporal feature
exploitation". Complex numbers are pairs of real ones on a last axis, transforms are 2-D and not centred.
"""

import torch
from torch.nn import functional


def forward(network, kspace, mask, maps):
    """The published forward pass with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.networks.crunet_mr.CRUNetMR` without gate.
    kspace
        ``(1, frame, coil, x, y, 2)`` float32: measured samples, zero elsewhere, k-space of `torch.fft.fft2` with
        ``norm="ortho"`` (centre at index 0).
    mask
        Zeros and ones that broadcast with `kspace`, ``(1, 1 or frame, 1, x, y, 1)`` float32.
    maps
        ``(1, 1 or frame, coil, x, y, 2)`` float32.

    Returns
    -------
    torch.Tensor
        ``(1, frame, x, y, 2)`` float32.
    """
    image = combine(kspace, maps)
    n_frames, n_rows, n_columns = image.shape[1:4]
    n_rows, n_columns = n_rows + -n_rows % 8, n_columns + -n_columns % 8
    channels = network.config.channels
    full = image.new_zeros(n_frames, channels, n_rows, n_columns)
    half = image.new_zeros(n_frames, channels, n_rows // 2, n_columns // 2)
    states = [full, half, torch.zeros_like(half)]
    for cascade in network.cascades:
        improved, states = improve(cascade, image, states)
        coils = to_pairs(torch.fft.fft2(to_complex(multiply(improved[:, :, None], maps)), norm="ortho"))
        image = combine((1 - mask) * coils + mask * kspace, maps)
    return image


def improve(cascade, image, states):
    """One cascade before the data consistency: ``(1, frame, x, y, 2)`` and the states."""
    series = image[0].permute(0, 3, 1, 2).contiguous()
    mean, deviation = series.mean(), series.std()
    normalised = (series - mean) / deviation
    rows, columns = series.shape[-2:]
    top, left = -rows % 8 // 2, -columns % 8 // 2
    padded = functional.pad(normalised, (left, -columns % 8 - left, top, -rows % 8 - top))
    stages = cascade.stages
    full, half, bottom = states
    first = cascade.first(padded)
    fine = recur(stages[0].unit, first, full) + stages[0].side(first)
    down = over_time(cascade.down, functional.relu(cascade.down.conv2d(fine)))
    coarse = space_time(cascade.encode, recur(stages[1].unit, down, half) + stages[1].side(down))
    both = recur(stages[2].unit, coarse, bottom) + recur(stages[2].unit, coarse, bottom, backward=True)
    new_bottom = space_time(cascade.deepen, both + stages[2].side(coarse))
    up = recur(stages[3].unit, new_bottom, half, backward=True) + stages[3].side(new_bottom)
    new_half = space_time(cascade.decode, torch.cat((coarse, up), 1))
    up = over_time(cascade.up, functional.relu(cascade.up.conv2d(new_half)))
    up = recur(stages[4].unit, up, full, backward=True) + stages[4].side(up)
    new_full = space_time(cascade.finish, torch.cat((fine, up), 1))
    padded = padded + cascade.last(new_full)
    series = padded[..., top : top + rows, left : left + columns] * deviation + mean
    return series.permute(0, 2, 3, 1).contiguous()[None], [new_full, new_half, new_bottom]


def recur(unit, features, state, *, backward=False):
    """The recurrence over ``(frame, channel, row, column)`` in one direction."""
    hidden = torch.zeros_like(state[:1])
    result = []
    order = range(len(features))
    for frame in reversed(order) if backward else order:
        place = slice(frame, frame + 1)
        hidden = unit.i2h(features[place]) + unit.h2h(hidden) + unit.ih2ih(state[place])
        hidden = functional.relu(hidden)
        result.append(hidden)
        joined = torch.cat(result[::-1] if backward else result)
    return joined


def space_time(layer, features):
    """Conv(2+1)D."""
    return over_time(layer, functional.relu(layer.conv2d(features)))


def over_time(layer, features):
    """The convolution over frames, with every pixel as a series of its own."""
    n_frames, channels, rows, columns = features.shape
    series = features.permute(2, 3, 1, 0).contiguous().view(-1, channels, n_frames)
    series = torch.cat((series[..., -1:], series, series[..., :1]), -1)
    series = layer.conv1d(series).view(rows, columns, -1, n_frames)
    return series.permute(3, 2, 0, 1).contiguous()


def combine(kspace, maps):
    """Combine the coils of k-space ``(1, frame, coil, x, y, 2)``."""
    images = to_pairs(torch.fft.ifft2(to_complex(kspace), norm="ortho"))
    return multiply(images, maps * maps.new_tensor((1, -1))).sum(2)


def multiply(left, right):
    """The product of pairs."""
    real = left[..., 0] * right[..., 0] - left[..., 1] * right[..., 1]
    imaginary = left[..., 0] * right[..., 1] + left[..., 1] * right[..., 0]
    return torch.stack((real, imaginary), -1)


def to_complex(pairs):
    """Pairs as complex numbers."""
    return torch.view_as_complex(pairs.contiguous())


def to_pairs(array):
    """Complex numbers as pairs."""
    return torch.view_as_real(array)
