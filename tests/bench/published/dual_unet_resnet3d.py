"""The Dual U-Net with 3-D ResNet as its authors run it, and its unrolled form.

3-D convolutions in the fusion, batch normalisation after every convolution, 2-D transforms with shifts for the data
consistency; github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction (2025).
"""

import copy
import functools

import torch
from torch.nn import functional


def forward(network, series):
    """The published forward pass with the weights of a network of ours.

    Parameters
    ----------
    network
        `recon_core.networks.dual_unet_resnet3d.DualUNetResNet3D` with two U-Nets, in evaluation mode; without its
        fusion the magnitude is given back, as in the authors' run without it.
    series
        ``(batch, frame, 2, y, x)`` float32, real and imaginary part of the zero-filled image.

    Returns
    -------
    torch.Tensor
        ``(batch, frame, y, x)`` float32.
    """
    network = in_published_order(network)
    real = unet(network.unet_real, series[:, :, 0])
    imaginary = unet(network.unet_imag, series[:, :, 1])
    magnitude = torch.sqrt(real**2 + imaginary**2)
    return resnet(network.resnet, magnitude) if network.config.fusion == "resnet" else magnitude


def unrolled(network, kspace, mask):
    """The published forward pass of the unrolled network.

    Parameters
    ----------
    network
        `recon_core.networks.unrolled_resnet3d.UnrolledResNet3D` without signed outputs, in evaluation mode.
    kspace
        ``(batch, frame, ky, kx)`` complex64 of one coil, centred, of a transform without normalisation; zero where
        nothing was measured.
    mask
        ``(batch, frame, ky, 1)`` float32, zeros and ones.

    Returns
    -------
    torch.Tensor
        ``(batch, frame, y, x)`` float32, the magnitude.
    """
    network = in_published_order(network)
    image = to_image(kspace)
    for cascade in network.cascades:
        real = unet(cascade.unet_real, image.real)
        imaginary = unet(cascade.unet_imag, image.imag)
        parts = resnet(cascade.resnet, torch.sqrt(real**2 + imaginary**2))
        parts = parts.reshape(parts.shape[0], -1, 2, *parts.shape[2:])
        own = to_kspace(torch.complex(parts[:, :, 0], parts[:, :, 1]))
        image = to_image(mask * (own + cascade.lam * kspace) / (1 + cascade.lam) + (1 - mask) * own)
    return image.abs()


@functools.lru_cache(1)
def in_published_order(network):
    """A copy whose weights lie in memory as published, channels first; weights that change later stay behind."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def unet(layers, features):
    """One U-Net; ``(batch, frame, y, x)``."""
    skips = []
    for level in (1, 2, 3, 4):
        features = block(getattr(layers, f"encoder{level}"), features)
        skips.append(features)
        features = functional.max_pool2d(features, 2, 2)
    features = attention(layers.attention, block(layers.bottleneck, features))
    for level in (4, 3, 2, 1):
        features = getattr(layers, f"upconv{level}")(features)
        skip = skips[level - 1]
        if features.shape[2:] != skip.shape[2:]:
            features = functional.interpolate(features, skip.shape[2:], mode="bilinear", align_corners=True)
        features = block(getattr(layers, f"decoder{level}"), torch.cat((features, skip), 1))
    features = functional.leaky_relu(layers.pre_conv(features), 0.1)
    return torch.sigmoid(layers.conv(features))


def block(layers, features):
    """Convolution, normalisation and rectification, twice."""
    features = functional.leaky_relu(layers.norm1(layers.conv1(features)), 0.1)
    return functional.leaky_relu(layers.norm2(layers.conv2(features)), 0.1)


def attention(layers, features):
    """Of the channels, then of the pixels."""
    mean = layers.channel_shared_mlp(functional.adaptive_avg_pool2d(features, 1))
    largest = layers.channel_shared_mlp(functional.adaptive_max_pool2d(features, 1))
    features = features * torch.sigmoid(mean + largest)
    pooled = torch.cat((features.mean(1, keepdim=True), features.max(1, keepdim=True)[0]), 1)
    return features * torch.sigmoid(layers.spatial_attention(pooled))


def resnet(layers, frames):
    """The fusion, in three dimensions of which the first has length one."""
    features = functional.conv3d(frames[:, :, None], layers.conv1.weight, None, (1, 2, 2), (1, 3, 3))
    features = functional.max_pool3d(functional.relu(normalise(layers.bn1, features)), 3, 1, 1)
    residual = layers.layer1[0]
    change = functional.relu(normalise(residual.bn1, residual.conv1(features)))
    features = functional.relu(normalise(residual.bn2, residual.conv2(change)) + features)
    features = functional.interpolate(features, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
    return torch.sigmoid(layers.conv2(features))[:, :, 0]


def normalise(norm, features):
    """Batch normalisation, whatever the number of axes."""
    return functional.batch_norm(
        features, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )


def to_kspace(image):
    """Centred, without normalisation."""
    spectrum = torch.fft.fft2(torch.fft.ifftshift(image, (-2, -1)))
    return torch.fft.fftshift(spectrum, (-2, -1))


def to_image(kspace):
    """Inverse of `to_kspace`."""
    image = torch.fft.ifft2(torch.fft.ifftshift(kspace, (-2, -1)))
    return torch.fft.fftshift(image, (-2, -1))
