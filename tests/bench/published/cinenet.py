"""CineNet as its authors run it: pairs of real numbers, 2-D transforms with shifts, all planes at once.

Kofler et al., Med Phys 2021, doi:10.1002/mp.14809, in Cartesian form. Real and imaginary part on the last axis.
"""

import torch
from torch.nn import functional


def forward(network, kspace, mask, maps):
    """The published forward pass with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.networks.cinenet.CineNet`, of any denoiser but ``CRNN``.
    kspace
        ``(1, frame, coil, ky, kx, 2)`` float32, centred, zero where nothing was measured.
    mask
        ``(1, frame, 1, ky, 1, 1)``, zeros and ones.
    maps
        ``(1, 1, coil, y, x, 2)`` float32.

    Returns
    -------
    torch.Tensor
        ``(1, frame, y, x)`` magnitude.
    """
    reference = reduce(kspace, maps)
    image = reference
    for cascade in network.cascades:
        weight = functional.softplus(cascade.lambda_reg)
        image = solve(network, denoise(network, image), reference, weight, mask, maps)
    return image.square().sum(-1).sqrt()


def solve(network, image, reference, weight, mask, maps):
    """Conjugate gradients that start from the denoised image; images ``(1, frame, y, x, 2)``."""
    right_side = reference + weight * image
    residual = right_side - apply(image, weight, mask, maps)
    direction = residual.clone()
    power = residual.square().sum().item()
    for _ in range(network.config.cg_iterations):
        applied = apply(direction, weight, mask, maps)
        step = power / (direction * applied).sum().item()
        image = image + step * direction
        residual = residual - step * applied
        previous, power = power, residual.square().sum().item()
        direction = residual + power / previous * direction
    return image


def apply(image, weight, mask, maps):
    """``A^H A + lambda``."""
    expanded = transform(product(image.unsqueeze(2), maps), torch.fft.fftn)
    return reduce(expanded * mask + 0.0, maps) + weight * image


def reduce(kspace, maps):
    """The coil images of k-space, combined."""
    conjugate = torch.stack((maps[..., 0], -maps[..., 1]), -1)
    return product(transform(kspace, torch.fft.ifftn), conjugate).sum(2)


def product(left, right):
    """Complex product of pairs, by four real ones."""
    real = left[..., 0] * right[..., 0] - left[..., 1] * right[..., 1]
    imaginary = left[..., 0] * right[..., 1] + left[..., 1] * right[..., 0]
    return torch.stack((real, imaginary), -1)


def transform(pairs, function, axes=(-3, -2)):
    """Centred unitary transform of pairs."""
    pairs = torch.fft.ifftshift(pairs, axes)
    axes_of_complex = tuple(axis + 1 for axis in axes)
    pairs = torch.view_as_real(function(torch.view_as_complex(pairs.contiguous()), dim=axes_of_complex, norm="ortho"))
    return torch.fft.fftshift(pairs, axes)


def denoise(network, image):
    """The denoiser of the series ``(1, frame, y, x, 2)``."""
    kind, unets = network.config.dynamic_type, network.model.unets
    if kind == "2D":
        return unet(unets[0], image[0].permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)[None]
    if kind == "3D":
        return unet(unets[0], image.permute(0, 4, 1, 2, 3).contiguous()).permute(0, 2, 3, 4, 1)
    mean = image.mean(1, keepdim=True)
    dynamics = image - mean
    if kind == "XF":
        dynamics = over_time(dynamics, torch.fft.fftn)
    of_x = unet(unets[0], dynamics[0].permute(1, 3, 2, 0).contiguous()).permute(3, 0, 2, 1)
    of_y = unet(unets[-1], dynamics[0].permute(2, 3, 1, 0).contiguous()).permute(3, 2, 0, 1)
    dynamics = 0.5 * (of_x + of_y)[None]
    if kind == "XF":
        dynamics = over_time(dynamics, torch.fft.ifftn)
    return dynamics + mean


def over_time(dynamics, function):
    """Centred unitary transform along the frames of ``(1, frame, y, x, 2)``."""
    return transform(dynamics.permute(0, 2, 3, 1, 4), function, (-2,)).permute(0, 3, 1, 2, 4)


def unet(layers, features):
    """A U-Net of all images at once."""
    pool = functional.avg_pool2d if features.ndim == 4 else functional.avg_pool3d
    skipped = []
    for down in layers.down_sample_layers:
        features = block(down, features)
        skipped.append(features)
        features = pool(features, 2, 2)
    features = block(layers.conv, features)
    *inner, (last, head) = layers.up_conv
    for up, merge in zip(layers.up_transpose_conv, [*inner, last], strict=True):
        features, skip = activate(up(features)), skipped.pop()
        padding = []
        for axis in range(-1, 1 - features.ndim, -1):
            padding += [0, skip.shape[axis] - features.shape[axis]]
        if any(padding):
            features = functional.pad(features, padding)
        features = block(merge, torch.cat([features, skip], 1))
    return head(features)


def block(layers, features):
    """Two convolutions."""
    return activate(layers.second(activate(layers.first(features))))


def activate(features):
    """Normalisation and activation."""
    return functional.leaky_relu(functional.instance_norm(features), 0.2)
