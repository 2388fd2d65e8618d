"""dSTDM as its authors run it: every score twice, all slices in one batch, data consistency with 2-D transforms.

Wang et al., IEEE Trans Comput Imaging 2025, doi:10.1109/TCI.2025.3598421. Sampler ``reverse_pdual``.
"""

import math

import torch


def forward(network, kspace, mask, maps, noise, n_steps=100):
    """The published reconstruction with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.diffusion.method.DSTDM`, with the parametrisation ``score``.
    kspace, mask, maps
        ``(x, coil, frame, y)`` complex64, divided by the peak of the image; of the mask zeros and ones, one coil. The
        first axis of `kspace` is kx.
    noise
        Called with a shape, gives standard normal numbers.
    n_steps
        Steps; the noise levels are those of the configuration.

    Returns
    -------
    torch.Tensor
        ``(x, 2, frame, y)`` float32, real and imaginary part.
    """
    n_x, _, n_frames, n_y = kspace.shape
    low, high = network.score.config.sigma_min, network.score.config.sigma_max
    table = torch.exp(torch.linspace(math.log(low), math.log(high), n_steps))
    state = high * noise((n_x, 2, n_frames, n_y))
    mean = state
    for time in torch.linspace(1, 1e-5, n_steps):
        index = int(torch.floor(time * (n_steps - 1)))
        label = low * torch.full_like(time, high / low) ** time
        lower = table[index - 1] if index > 0 else torch.zeros(())
        gain = torch.sqrt(table[index] ** 2 - lower**2)
        first_mean, first = step(network, state, label, gain, noise)
        second_mean, second = step(network, state.permute(3, 1, 2, 0), label, gain, noise)
        mean = (first_mean + second_mean.permute(3, 1, 2, 0)) / 2
        state = replace_samples((first + second.permute(3, 1, 2, 0)) / 2, kspace, mask, maps)
    return replace_samples(mean, kspace, mask, maps)


def step(network, slices, label, gain, noise):
    """The reverse step of one orientation; the second score is given back by the published code and never used."""
    labels = label.expand(len(slices))
    mean = slices + gain**2 * network.score(slices, labels)
    network.score(slices, labels)
    return mean, mean + gain * noise(tuple(slices.shape))


def replace_samples(state, kspace, mask, maps):
    """The measured samples into the k-space of the coils."""
    image = (state[:, 0:1] + 1j * state[:, 1:2]) * maps
    simulated = transform(image, torch.fft.fftn)
    replaced = mask * kspace + (1 - mask) * simulated
    combined = torch.sum(maps.conj() * transform(replaced, torch.fft.ifftn), 1, keepdim=True)
    return torch.cat((combined.real, combined.imag), 1)


def transform(array, function):
    """Centred and orthonormal, over x and y."""
    axes = (0, -1)
    return torch.fft.fftshift(function(torch.fft.ifftshift(array, axes), dim=axes, norm="ortho"), axes)
