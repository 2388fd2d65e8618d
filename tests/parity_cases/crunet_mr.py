"""CRUNet-MR: k-space ``(batch, frame, coil, H, W)``, H along the readout and W along phase encoding."""

import numpy as np
import torch

from recon_core.networks.crunet_mr import CRUNetMR, CRUNetMRConfig
from recon_core.networks.golden import fill, fill_value, normal
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import ifft

LEVELS = {"full": ("x0", "x4"), "half": ("x1", "x3"), "bottom": ("x2",)}


def run(arrays, config):
    """The outputs of a case: images of every cascade and the last, and the states that each hands on."""
    gate = config.get("std_gate", False)
    cascades, channels = config.get("num_cascades", 5), config.get("chans", 64)
    network = CRUNetMR(CRUNetMRConfig(cascades=cascades, channels=channels, std_gate=gate)).eval()
    pp_scale = config.get("pp_scale", 5.0)
    fill(network, lambda key, shape: pp_scale * normal(key, shape) if key.endswith(".pp") else fill_value(key, shape))
    images, states = improve(network, arrays, centred=config.get("fft") == "centred")
    outputs = {"cascade_out": images[1:, 0], "out": images[-1], "x_init": images[0]}
    for cascade, state in enumerate(states):
        for level, names in LEVELS.items():
            for name in names:
                outputs[f"feat_c{cascade}_{name}"] = getattr(state, level)[0].contiguous().numpy()
    return outputs


def improve(network, arrays, *, centred):
    """The image ``(batch, frame, H, W)``, at first and after every cascade, and what the cascades give beside it."""
    consistency = prepare(arrays, centred=centred)
    image = consistency.zero_filled
    improved, states = [], []
    hooks = [
        cascade.register_forward_hook(lambda _, __, given: states.append(given[1])) for cascade in network.cascades
    ]
    hard = consistency.hard
    consistency.hard = lambda image: improved.append(hard(image)) or improved[-1]
    improved[-1:] = [network(image, consistency)]
    for hook in hooks:
        hook.remove()
    return np.stack([series.mT.numpy() for series in (image, *improved)]), states


def prepare(arrays, *, centred):
    """The data in the form of the project, from the arrays of a case."""
    kspace = torch.from_numpy(arrays["kspace"]).mT
    n_batch, n_frames, _, n_y, n_x = kspace.shape
    maps = torch.from_numpy(arrays["sens"]).mT.expand(n_batch, -1, -1, -1, -1)
    maps = maps[:, 0] if maps.shape[1] == 1 else maps
    mask = torch.from_numpy(arrays["mask"]).mT[:, :, 0].expand(n_batch, n_frames, n_y, n_x) > 0
    if not centred:
        # Images stay where they are, so that the centre of k-space moves by storage and phases only.
        plain = torch.fft.ifft2(kspace, norm="ortho")
        shifted = torch.fft.ifftshift(plain, (-2, -1))
        kspace = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), (-2, -1))
        mask = torch.fft.fftshift(mask, (-2, -1))
    lines = mask[..., :1]
    if (mask == lines).all():
        consistency = DataConsistency(maps, lines[..., 0], ifft(kspace, (-1,)))
    else:
        consistency = DataConsistency(maps, mask, kspace)
    return consistency
