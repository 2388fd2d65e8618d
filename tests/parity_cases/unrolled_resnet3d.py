"""Unrolled Dual U-Net: k-space ``(batch, frame, ky, kx)`` of one coil, of a transform without normalisation."""

import numpy as np
import torch

from recon_core.networks.unrolled_resnet3d import UnrolledResNet3D, UnrolledResNet3DConfig
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import ifft
from tests.parity_cases.dual_unet_resnet3d import fill


def run(arrays, config):
    kspace = torch.from_numpy(arrays["kspace"])
    n_batch, n_frames, n_y, n_x = kspace.shape
    network = UnrolledResNet3D(
        UnrolledResNet3DConfig(
            cascades=config["num_cascades"],
            frames=n_frames,
            features=config["init_features"],
            planes=config.get("resnet_planes", 32),
        )
    ).eval()
    fill(network)
    mask = torch.from_numpy(arrays["mask"].astype(bool)).expand(n_batch, n_frames, n_y)
    hybrid = ifft(kspace / (n_y * n_x) ** 0.5, (-1,))
    maps = torch.ones(1, n_y, n_x, dtype=torch.complex64)
    consistency = DataConsistency(maps, mask, hybrid[:, :, None])

    outputs = {"lam": np.array([cascade.lam.item() for cascade in network.cascades], np.float32)}
    weighted = consistency.weighted

    def keep(image, weight):
        place = len(outputs) // 2
        outputs[f"resnet_{place}"] = parts(image)
        result = weighted(image, weight)
        outputs[f"dc_{place}"] = parts(result)
        return result

    consistency.weighted = keep
    outputs["output"] = network(consistency.zero_filled, consistency).abs().numpy()
    return outputs


def parts(image):
    """``(batch, frame, y, x)`` to ``(batch, frame, part, y, x)``."""
    return torch.stack((image.real, image.imag), 2).numpy()
