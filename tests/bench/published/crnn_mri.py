"""CRNN-MRI as its authors run it: one frame after the other, a convolution for every term, 2-D transforms.

Qin et al., IEEE Trans Med Imaging 2019, doi:10.1109/TMI.2018.2863670. One coil, channels of real and imaginary part,
``(batch, 2, y, x, frame)``, k-space with its centre at index 0.
"""

import torch
from torch.nn import functional


def forward(network, image, measured, mask):
    """The published forward pass with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.networks.crnn_mri.CRNNMRI`.
    image, measured, mask
        ``(batch, 2, y, x, frame)`` float32: starting image, k-space of `torch.fft.fft2` with ``norm="ortho"``, and
        mask of zeros and ones, the same in both channels.

    Returns
    -------
    torch.Tensor
        ``(batch, 2, y, x, frame)``.
    """
    n_batch, _, n_y, n_x, n_frames = image.shape
    channels = network.config.channels
    states = [image.new_zeros(n_frames * n_batch, channels, n_y, n_x) for _ in range(4)]
    for iteration in range(network.config.iterations):
        layers = network.denoisers[iteration % len(network.denoisers)]
        series = image.permute(4, 0, 1, 2, 3).contiguous()
        previous = states[0].view(n_frames, n_batch, channels, n_y, n_x)
        recurrent = both_directions(layers.bcrnn, series, previous)
        states[0] = features = recurrent.view(-1, channels, n_y, n_x)
        for i in (1, 2, 3):
            from_features = getattr(layers, f"conv{i}_x")(features)
            from_state = getattr(layers, f"conv{i}_h")(states[i])
            states[i] = features = functional.relu(from_features + from_state)
        change = layers.conv4_x(features)
        improved = series.view(-1, 2, n_y, n_x) + change
        improved = improved.view(n_frames, n_batch, 2, n_y, n_x).permute(1, 2, 3, 4, 0).contiguous()
        image = replace_samples(improved, measured, mask)
    return image


def both_directions(unit, series, previous):
    """The recurrence over the frames, forth and back."""
    forth, back = [], []
    hidden = torch.zeros_like(previous[0])
    for frame in range(len(series)):
        hidden = step(unit, series[frame], previous[frame], hidden)
        forth.append(hidden)
    hidden = torch.zeros_like(previous[0])
    for frame in range(len(series)):
        last = len(series) - frame - 1
        hidden = step(unit, series[last], previous[last], hidden)
        back.append(hidden)
    return torch.stack(forth) + torch.stack(back[::-1])


def step(unit, frame, previous, hidden):
    """One frame of the recurrence."""
    return functional.relu(unit.i2h(frame) + unit.h2h(hidden) + unit.ih2ih(previous))


def replace_samples(image, measured, mask):
    """The measured samples into the spectrum of every frame."""
    pairs = image.permute(0, 4, 2, 3, 1).contiguous()
    spectrum = torch.view_as_real(torch.fft.fft2(torch.view_as_complex(pairs), norm="ortho"))
    measured, mask = measured.permute(0, 4, 2, 3, 1).contiguous(), mask.permute(0, 4, 2, 3, 1).contiguous()
    replaced = (1 - mask) * spectrum + mask * measured
    pairs = torch.view_as_real(torch.fft.ifft2(torch.view_as_complex(replaced), norm="ortho"))
    return pairs.permute(0, 4, 2, 3, 1).contiguous()
