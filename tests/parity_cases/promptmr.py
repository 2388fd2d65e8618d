"""PromptMR: the authors' k-space `(batch, frame and coil, readout, phase)` in, every array of the case out."""

import zlib

import numpy as np
import torch

from recon_core.networks import golden
from recon_core.networks.promptmr import PromptMR, PromptMRConfig, central_lines, from_lines
from recon_core.physics.fourier import fft, ifft


def settings(config):
    """Our settings from the authors' constructor arguments."""
    return PromptMRConfig(
        cascades=config["num_cascades"],
        adjacent_frames=config["num_adj_slices"],
        features=config["n_feat0"],
        feature_dim=tuple(config["feature_dim"]),
        prompt_dim=tuple(config["prompt_dim"]),
        sens_features=config["sens_n_feat0"],
        sens_feature_dim=tuple(config["sens_feature_dim"]),
        sens_prompt_dim=tuple(config["sens_prompt_dim"]),
        prompt_length=tuple(config["len_prompt"]),
        prompt_size=tuple(config["prompt_size"]),
        encoder_blocks=tuple(config["n_enc_cab"]),
        decoder_blocks=tuple(config["n_dec_cab"]),
        skip_blocks=tuple(config["n_skip_cab"]),
        bottleneck_blocks=config["n_bottleneck_cab"],
        channel_attention=not config["no_use_ca"],
    )


def value(key, shape):
    """The numbers that the authors' parameter `key` is filled with."""
    if key.endswith("prompt_param"):
        return np.random.default_rng(zlib.crc32(key.encode())).random(shape).astype(np.float32)
    if key.endswith(".body.1.weight"):
        own = key.endswith("enc_level1.encoder.0.body.1.weight")
        return 0.25 + golden.fill_value(key if own else "prelu_shared", shape)
    if key.endswith("dc_weight"):
        return 1 + golden.fill_value(key, shape)
    last_of_cascade = key.startswith("cascades.") and key.endswith("conv_last.weight")
    return golden.fill_value(key, shape, 0.3 if last_of_cascade else 1.0)


def published_count(mask):
    """The authors' number of central lines of `(batch, phase)`: where a half has no gap, argmin says zero."""
    centre = mask.shape[1] // 2
    before, after = np.argmin(mask[:, :centre][:, ::-1], 1), np.argmin(mask[:, centre:], 1)
    return np.maximum(2 * np.minimum(before, after), 1)


def run(arrays, config):
    network = PromptMR(settings(config)).eval()
    golden.fill(network, value)
    n_frames = config["num_adj_slices"]
    mask = arrays["mask"].astype(bool)
    hybrid = ifft(torch.from_numpy(arrays["kspace"]), (-2,)).unflatten(1, (n_frames, -1)).mT
    every = torch.from_numpy(mask)[:, None].expand(-1, n_frames, -1)

    # Ours differs on purpose where a half has no gap.
    count = central_lines(torch.from_numpy(mask)).numpy()
    published = published_count(mask)
    low_frequencies = None if np.array_equal(count, published) else torch.from_numpy(published)

    caught = {"maps": []}
    first = network.cascades[0]
    network.sens_net.register_forward_hook(lambda *call: caught["maps"].append(call[-1]))
    first.model.register_forward_hook(lambda *call: caught.update(denoised=call[-1]))
    first.register_forward_hook(lambda *call: caught.update(first=call[-1]))
    completed = network.complete(hybrid, every, low_frequencies)
    maps, denoised = torch.cat(caught["maps"]), caught["denoised"]
    after_first = from_lines(caught["first"])
    output = network(hybrid, every, low_frequencies)

    def full(kspace):
        return fft(kspace.mT.flatten(1, 2), (-2,)).numpy()

    return {
        "sens_maps": maps.reshape(arrays["kspace"].shape).numpy(),
        "denoiser_0": denoised.numpy(),
        "kspace_0": full(after_first),
        "kspace_last": full(completed),
        "output": output.mT.numpy(),
        "num_low": published.astype(np.int64) if low_frequencies is not None else count,
        "pad": ((mask.shape[1] - (published if low_frequencies is not None else count) + 1) // 2).astype(np.int64),
    }
