"""ATLF-Net: published layers, ``(image, channel, row, column)``, k-space with its centre at index 0; and CT slices."""

import json
import re
import zlib

import numpy as np
import torch

from recon_core.networks.atlf_layers import (
    BasicBlock,
    Decoder,
    Encoder,
    GlobalBlock,
    LocalBlock,
    LowRankFusion,
    PathAttention,
    adaptive_normalisation,
    channel_statistics,
    consistency_weight,
)
from recon_core.networks.golden import fill_value, normal
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft

# Ours to the authors' names, where they differ.
_NAMES = {
    "avat": [
        (r"^offset", "front.theta_offset.net"),
        (r"^(k|v)_stem", r"front.\1_stem.net"),
        (r"^(k|v)_paths.(path\d)", r"dpa.\1_\2.block"),
        (r"^(k|v)_paths.weights", r"dpa.dps_\1"),
        (r"^attention", "dpa.mha"),
        (r"^out", "dpa.out"),
    ],
    "brb": [(r"\.weight$", "")],
}


def run(arrays, config):
    """The outputs of a case: of all layers, or of the placing of a CT."""
    if isinstance(config, str | np.ndarray):
        config = json.loads(str(config))
    if "volume_ijk" in arrays:
        return place(arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fiu"}
    results = {**attend(tensors, config), **fuse(tensors, config), **reconstruct(tensors, config)}
    return {name: tensor.numpy() for name, tensor in results.items()}


def authors_key(component, key):
    """Name, in the authors' layers, of a tensor of one of ours."""
    for pattern, name in _NAMES.get(component, ()):
        key = re.sub(pattern, name, key)
    return f"{component}.{key}"


def value(key, shape):
    """The numbers that the authors' tensor `key` is filled with; see the roles in keys.json."""
    gain = 1.0
    if key == "lfab.p":
        return np.eye(shape[0], dtype=np.float32)[np.random.default_rng(zlib.crc32(key.encode())).permutation(shape[0])]
    if key == "lfab.sign_s":
        return np.sign(normal(key, shape))
    if re.search(r"lrfm_..\w+_factor", key):
        return normal(key, shape) * np.float32(2 / shape[1] ** 0.5)
    if re.search(r"(net|block|up)\.[124]\.weight|\.(ln\d|bn|norm)\.weight", key) and len(shape) == 1:
        return 1 + fill_value(key, shape)
    if key.endswith("running_var"):
        return 1 + np.abs(fill_value(key, shape))
    if re.search(r"subnet\.linear_\d\.weight", key):
        gain = 1.4
    return fill_value(key, shape, gain)


def filled(component, layer):
    """A layer with the weights that belong to its place."""
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                numbers = value(authors_key(component, key), tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
    return layer.eval()


def layers(config):
    """The layers of a case by the authors' names."""
    base, rank, avat = config["base_channels"], config["rank"], config["avat"]
    built = {
        "avat": PathAttention(avat["channels"], avat["num_heads"], avat["mu_classes"]),
        "rencoder": Encoder(base),
        "gfab": GlobalBlock(2 * base),
        "lrfm_g": LowRankFusion(2 * base, rank),
        "lrfm_l": LowRankFusion(base, rank),
        "lfab": LocalBlock(base),
        "rdecoder": Decoder(base),
        "brb": BasicBlock(1, 32),
    }
    return {name: filled(name, layer) for name, layer in built.items()}


def attend(tensors, config):
    """The attention block and what it makes on the way."""
    block = layers(config)["avat"]
    points, stripes, classes = (tensors.get(f"avat_{name}") for name in ("ref", "stripe", "mu"))
    alpha = {}
    for path in ("k", "v"):
        weights = getattr(block, f"{path}_paths").weights
        weights.register_forward_hook(lambda *call, path=path: alpha.update({path: call[-1]}))
    queries, keys, values = block.front(tensors["avat_q"], points, stripes)
    out = block(tensors["avat_q"], classes, points, stripes)
    outputs = {"qadj": queries, "k": keys, "v": values, "out": out, "alpha_k": alpha["k"], "alpha_v": alpha["v"]}
    return {f"avat_{name}": tensor for name, tensor in outputs.items()}


def fuse(tensors, config):
    """The fusion, layer by layer."""
    built = layers(config)
    ct_local, ct_global = built["rencoder"](tensors["ct"])
    mr_local, mr_global = built["rencoder"](tensors["mr"])
    ct_block, mr_block = built["gfab"](ct_global), built["gfab"](mr_global)
    ct_detail, mr_detail = built["lfab"](ct_local), built["lfab"](mr_local)
    fused_global, fused_local = built["lrfm_g"](ct_block, mr_block), built["lrfm_l"](ct_detail, mr_detail)
    return {
        "enc_ct_local": ct_local,
        "enc_ct_global": ct_global,
        "gfab_ct": ct_block,
        "gfab_mr": mr_block,
        "lrfm_g_out": fused_global,
        "lfab_ct": ct_detail,
        "lfab_mr": mr_detail,
        "lfab_logdet": (ct_local[0, 0].numel() * built["lfab"].log_s.sum()).expand(len(ct_local)).clone(),
        "lrfm_l_out": fused_local,
        "aux": built["rdecoder"](fused_global, fused_local),
    }


def reconstruct(tensors, config):
    """AdaIN, the basic block and data consistency."""
    block = layers(config)["brb"]
    features = block.expand(tensors["brb_in"])
    change, back = block.improve(features)

    real, imaginary = tensors["dc_x"].unbind(1)
    image = torch.complex(real, imaginary)
    mask = tensors["dc_mask"] > 0
    kspace = torch.where(mask, torch.view_as_complex(tensors["dc_y"].contiguous()), 0)
    # In the spectrum of an image that stays where it is, the centre of k-space moves by storage and phases only.
    measured = fft(torch.fft.ifft2(kspace, norm="ortho"), (-2, -1))[:, None]
    maps = torch.ones((1, *image.shape[1:]), dtype=image.dtype)
    consistency = DataConsistency(maps, torch.fft.fftshift(mask, (-2, -1)), measured)
    soft = consistency.gradient(image, consistency_weight(torch.tensor(float(config["dc_lambda"]))))
    hard = consistency.hard(image)
    of_real = consistency.hard(real.to(image.dtype))  # published for one channel: a real image in, the magnitude out
    return {
        "adain_out": adaptive_normalisation(tensors["avat_q"], channel_statistics(tensors["adain_style"])),
        "brb_out": tensors["brb_in"] + change,
        "brb_sym": back - features,
        "dc_soft_out": torch.stack((soft.real, soft.imag), 1),
        "dc_hard_out": torch.stack((hard.real, hard.imag), 1),
        "dc_hard_mag_out": of_real.abs()[:, None],
    }


def place(arrays):
    """The CT of a slice, and where there is any."""
    from recon_core.ct.geometry import SliceGeometry, resample
    from recon_core.ct.volume import CtVolume, ras_to_lps

    volume = CtVolume(arrays["volume_ijk"], ras_to_lps(arrays["affine_ras"]), "")
    columns, rows = (int(size) for size in arrays["matrix"])
    width, height, thickness = (float(size) for size in arrays["fov_mm"])
    position, read, phase, normal_ = (
        tuple(float(part) for part in arrays[name]) for name in ("position", "read_dir", "phase_dir", "slice_dir")
    )
    geometry = SliceGeometry(
        position=position,
        read_dir=read,
        phase_dir=phase,
        slice_dir=normal_,
        matrix=(columns, rows),
        field_of_view=(width, height),
        thickness=thickness,
    )
    hu, cover = resample(volume, geometry, slab_samples=1)
    return {"expected_hu": hu, "covered": cover}
