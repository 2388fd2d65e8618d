"""CST-Net as its authors run it: convolutions of frame after frame in either direction, the idle block, 2-D transforms.

Wang et al., Comput Biol Med 2024, doi:10.1016/j.compbiomed.2024.109133. One coil, pairs of real and imaginary part,
``(batch, frame, y, x, 2)``, k-space with its centre in the middle.
"""

import torch
from torch.nn import functional


def forward(network, image, measured, mask):
    """The published forward pass with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.networks.cst_net.CSTNet` with the ``official`` layout.
    image, measured, mask
        ``(batch, 16, y, x, 2)`` float32: starting image, k-space of the centred orthonormal transform, zero where
        nothing is measured, and mask of zeros and ones, the same in both parts of the pair.

    Returns
    -------
    torch.Tensor
        ``(batch, 16, y, x, 2)``.
    """
    n_batch, n_frames, n_y, n_x, _ = image.shape
    features = network.embedding(image.contiguous().view(-1, 2 * n_frames, n_y, n_x))
    outputs = []
    for stage in network.stages:
        for transformer in stage.transformers:
            features = attend(transformer, features) + features
            image = replace_samples(features.view(n_batch, n_frames, n_y, n_x, 2), measured, mask)
            features = image.contiguous().view(-1, 2 * n_frames, n_y, n_x)
        volume = image.permute(0, 4, 2, 3, 1).contiguous()
        for recurrence in stage.recurrences:
            volume = volume + recur(recurrence, volume)
            image = replace_samples(volume.permute(0, 4, 2, 3, 1), measured, mask)
            volume = image.permute(0, 4, 2, 3, 1).contiguous()
        outputs.append(volume)
        features = image.contiguous().view(-1, 2 * n_frames, n_y, n_x)
    merged = network.end(torch.cat(outputs, 1))
    return replace_samples(merged.permute(0, 4, 2, 3, 1), measured, mask)


def attend(transformer, features):
    """The two branches and their fusion; both blocks over the frames have the same input, and the last one counts."""
    space = transformer.space(features)
    for block in transformer.time:
        time = block(features)
    return transformer.fusion(torch.cat((space, time), 1))


def recur(recurrence, volume):
    """The recurrent layers and the last convolution over ``(batch, 2, y, x, frame)``."""
    frames = volume.permute(4, 0, 1, 2, 3).contiguous()
    for layer in recurrence.layers:
        frames = both_directions(layer, frames)
    n_frames, n_batch = frames.shape[:2]
    change = recurrence.conv4_x(frames.view(-1, *frames.shape[2:]))
    return change.view(n_frames, n_batch, *change.shape[1:]).permute(1, 2, 3, 4, 0)


def both_directions(layer, frames):
    """A recurrent layer, forth and back."""
    forth, back = [], []
    hidden = frames.new_zeros(frames.shape[1], layer.h2h.out_channels, *frames.shape[3:])
    nothing = hidden
    for frame in range(len(frames)):
        hidden = step(layer, frames[frame], hidden)
        forth.append(hidden)
    hidden = nothing
    for frame in range(len(frames)):
        hidden = step(layer, frames[len(frames) - frame - 1], hidden)
        back.append(hidden)
    return torch.stack(forth) + torch.stack(back[::-1])


def step(layer, frame, hidden):
    """One frame of the recurrence."""
    return functional.leaky_relu(layer.i2h(frame) + layer.h2h(hidden), 0.01)


def replace_samples(image, measured, mask):
    """The measured samples into the spectrum of every frame."""
    axes = (-2, -1)
    image = torch.view_as_complex(image.contiguous())
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, axes), norm="ortho"), axes)
    replaced = torch.view_as_complex((1 - mask) * torch.view_as_real(spectrum) + measured)
    return torch.view_as_real(
        torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(replaced, axes), norm="ortho"), axes)
    )
