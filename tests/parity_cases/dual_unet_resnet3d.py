"""Dual U-Net: `(batch, frame, part, y, x)` of real and imaginary parts; also the masks and the metrics of that work."""

import re

import numpy as np
import torch

from recon_core.metrics.measures import block_psnr, block_ssim
from recon_core.networks import golden
from recon_core.networks.dual_unet_resnet3d import DualUNetResNet3D, DualUNetResNet3DConfig
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from tests.helpers.published_masks import kt_focuss_mask, quadratic_density_mask

GAIN = 1.6
MASKS = {"vd": (quadratic_density_mask, "c"), "cm": (kt_focuss_mask, "n")}


def value(key, shape):
    """The numbers that a parameter or buffer of the authors is filled with."""
    if key.endswith(("running_mean", ".bias")):
        return golden.fill_value(key, shape)
    if key.endswith("running_var"):
        return 1 + np.abs(golden.fill_value(key, shape))
    if key.endswith(".lam") or len(shape) == 1:
        return 1 + golden.fill_value(key, shape)
    return golden.fill_value(key, shape, GAIN)


def fill(network):
    """Parameters, and the statistics of the batch normalisations."""
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                numbers = value(network.authors_key(key), tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(np.asarray(numbers)))


def run(arrays, config):
    """The outputs of a case of the network, or of the masks, or of the metrics."""
    if "x" in arrays:
        return run_network(arrays["x"], config)
    if "ref" in arrays:
        image, reference = arrays["rec"], arrays["ref"]
        return {"psnr": np.float32(block_psnr(image, reference)), "ssim": np.float32(block_ssim(image, reference))}
    return {name: run_mask(name) for name in arrays}


def settings(config, n_frames):
    """Ours, from the arguments of the authors' constructors."""
    return DualUNetResNet3DConfig(
        frames=n_frames,
        features=config["init_features"],
        fusion=config.get("fusion", "resnet"),
        unets=1 if config["in_channels"] == 2 * n_frames else 2,
        planes=config.get("resnet_planes", 32),
    )


def run_network(series, config):
    network = DualUNetResNet3D(settings(config, series.shape[1])).eval()
    fill(network)
    caught = {}
    for name, module in network.named_children():
        if name.startswith("unet"):
            module.register_forward_hook(lambda *call, name=name: caught.update({name: call[-1].numpy()}))
    image = torch.complex(*torch.from_numpy(series).unbind(2))
    output = network(image, fully_sampled(image))
    if "unet_real" in caught:
        caught["magnitude"] = np.hypot(caught["unet_real"], caught["unet_imag"])
    caught["output"] = output.real.numpy()
    return caught


def fully_sampled(image):
    """The data of an image ``(batch, frame, y, x)`` of one coil."""
    maps = torch.ones(1, *image.shape[-2:], dtype=torch.complex64)
    mask = torch.ones(image.shape[:-1], dtype=torch.bool)
    return DataConsistency(maps, mask, fft(image, (-2,))[:, :, None])


def run_mask(name):
    """By the name that says all: ``vd_1x20x192_R5_c11_seed42``. A batch is a longer series."""
    make, block = MASKS[name.partition("_")[0]]
    pattern = rf"_(\d+)x(\d+)x(\d+)_R(\d+)_{block}(\d+)_seed(\d+)"
    batch, frames, lines, acceleration, acs_lines, seed = map(int, re.search(pattern, name).groups())
    mask = make(batch * frames, lines, acceleration, acs_lines, seed=seed)
    return mask.reshape(batch, frames, lines).astype(np.uint8)
