"""CineNet: k-space ``(frame, coil, ky, kx)`` as ours."""

import numpy as np
import torch

from recon_core.networks.cinenet import CineNet, CineNetConfig
from recon_core.networks.golden import fill, fill_value
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import ifft


def run(arrays, config):
    """The outputs of a case; of the complex ones as many frames as the case holds."""
    network = build(config)
    kspace, mask = torch.from_numpy(arrays["kspace"]), torch.from_numpy(arrays["mask"]) > 0
    consistency = DataConsistency(torch.from_numpy(arrays["sens_maps"]), mask, ifft(kspace, (-1,)))
    denoised, solved = [], []
    network.model.register_forward_hook(lambda *result: denoised.append(result[-1]))
    solve = consistency.solve
    consistency.solve = lambda *given, **more: solved.append(solve(*given, **more)) or solved[-1]
    image = network(consistency.zero_filled, consistency)
    n_frames = len(arrays.get("denoiser_0", kspace))
    stages = {"denoiser_0": denoised[0], "cascade_0": solved[0], "cascade_last": solved[-1]}
    return {
        "output": image.abs().numpy(),
        **{name: np.ascontiguousarray(stage[:n_frames].numpy()) for name, stage in stages.items()},
    }


def build(config):
    """The network, filled."""
    network = CineNet(
        CineNetConfig(
            cascades=config["num_cascades"],
            cg_iterations=config["CG_iters"],
            channels=config["chans"],
            pools=config.get("pools", 4),
            dynamic_type=config.get("dynamic_type", "CRNN"),
            weight_sharing=config.get("weight_sharing", False),
        )
    ).eval()
    fill(network, value)
    return network


def value(key, shape):
    """As everywhere, but for the last convolution of every U-Net."""
    last = len(shape) > 1 and set(shape[2:]) == {1}
    return fill_value(key, shape, 0.3 if last else 1.0)
