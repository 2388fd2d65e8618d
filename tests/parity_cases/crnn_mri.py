"""CRNN-MRI: images ``(batch, 2, y, x, frame)`` of one coil, k-space with its centre at index 0."""

import numpy as np
import torch
from safetensors.torch import load_file

from recon_core.networks.crnn_mri import CRNNMRI, CRNNMRIConfig
from recon_core.networks.golden import fill
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from tests.helpers.paths import SHARED

WEIGHTS = SHARED / "parity" / "crnn_mri" / "crnn_mri_d5_c5.safetensors"


def run(arrays, config):
    """The outputs of a case: of every iteration and the last, or, of the demo, the PSNR."""
    network = build(config)
    if "gt" in arrays:
        return demo(network, arrays)
    image, kspace = to_complex(arrays["x"]), to_complex(arrays["k"])
    mask = torch.from_numpy(arrays["mask"])[:, 0].permute(0, 3, 1, 2) > 0.5
    iterations = [from_complex(image) for image in improve(network, image, kspace, mask)]
    return {"iter_out": np.stack(iterations), "out": iterations[-1]}


def build(config):
    """The network with the authors' weights, or filled."""
    network = CRNNMRI(CRNNMRIConfig(iterations=config.get("nc", 5), channels=config.get("nf", 64))).eval()
    if "fill" in config.get("weights", "fill"):
        fill(network)
    else:
        load(network, load_file(WEIGHTS))
    return network


def load(network, tensors):
    """Tensors by the authors' names."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(tensors[network.authors_key(key)])


def improve(network, image, kspace, mask):
    """The image ``(batch, frame, y, x)`` after every iteration; the last is what the network gives back."""
    measured = torch.fft.ifft2(torch.where(mask, kspace, 0), norm="ortho")
    # In the spectrum of an image that stays where it is, the centre of k-space moves by storage and phases only.
    shifted = torch.fft.fftshift(mask, (-2, -1))
    lines = shifted[..., :1]
    if (shifted == lines).all():
        measured, shifted = fft(measured, (-2,)), lines[..., 0]
    else:
        measured = fft(measured, (-2, -1))
    maps = torch.ones((1, *image.shape[-2:]), dtype=image.dtype)
    consistency = DataConsistency(maps, shifted, measured[:, :, None])
    images, hard = [], consistency.hard
    consistency.hard = lambda image: images.append(hard(image)) or images[-1]
    images[-1] = network(image, consistency)
    return images


def demo(network, arrays):
    """PSNR of the zero-filled image of a fully sampled series, and of what the network makes of it."""
    truth = torch.from_numpy(arrays["gt"].astype(np.float32)).permute(0, 2, 3, 1).contiguous()
    truth = torch.view_as_complex(truth)[None]
    mask = torch.from_numpy(arrays["lines"].astype(bool))[None, :, :, None].expand(truth.shape)
    kspace = torch.where(mask, torch.fft.fft2(truth, norm="ortho"), 0)
    zero_filled = torch.fft.ifft2(kspace, norm="ortho")
    result = improve(network, zero_filled, kspace, mask)[-1]
    return {"psnr_zero_filled": psnr(zero_filled, truth), "psnr_crnn": psnr(result, truth)}


def psnr(image, truth):
    """Over the complex series, against its peak; in decibels."""
    peak, error = truth.abs().max().double(), (image - truth).abs().double().square().mean()
    return (10 * torch.log10(peak**2 / error)).numpy()


def to_complex(array):
    """``(batch, 2, y, x, frame)`` to ``(batch, frame, y, x)``."""
    real, imaginary = torch.from_numpy(array).permute(0, 4, 1, 2, 3).unbind(2)
    return torch.complex(real, imaginary)


def from_complex(image):
    """``(batch, frame, y, x)`` to ``(batch, 2, y, x, frame)``."""
    return torch.stack((image.real, image.imag), 1).permute(0, 1, 3, 4, 2).contiguous().numpy()
