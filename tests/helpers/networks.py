"""Small networks with deterministic weights, for what does not depend on what a network has learned."""

import dataclasses
import importlib
from pathlib import Path

import torch

from recon_core.methods import METHODS
from recon_core.networks.base import Network
from recon_core.networks.golden import fill
from recon_core.trust.weighing import Weighing
from recon_core.weights.loading import import_weights
from recon_core.weights.manifest import find_weights, write_entry

NETWORKS = [name for name, info in METHODS.items() if info.network]

#: Configurations that run in a fraction of a second.
TINY = {
    "crunet_mr": {"cascades": 2, "channels": 4},
    "crnn_mri": {"iterations": 2, "channels": 4},
    "unet3d_mr": {"cascades": 2, "channels": 4},
    "cinenet": {"cascades": 2, "cg_iterations": 2, "channels": 4, "pools": 2},
    "cst_net": {"channels": 4},
    "dual_unet_resnet3d": {"frames": 4, "features": 4, "planes": 4},
    "unrolled_resnet3d": {"frames": 4, "features": 4, "planes": 4, "cascades": 2},
    "atlf_net": {"base": 8, "rank": 2, "channels": 8, "phases": 2, "ct_dropout": True},
    "dstdm": {"channels": 32, "channel_factors": (1, 1, 1), "blocks": 1},
    "promptmr": {
        "cascades": 2,
        "adjacent_frames": 3,
        "features": 4,
        "feature_dim": (4, 4, 8),
        "prompt_dim": (4, 4, 4),
        "sens_features": 4,
        "sens_feature_dim": (4, 4, 8),
        "sens_prompt_dim": (4, 4, 4),
        "prompt_length": (2, 2, 2),
        "prompt_size": (4, 4, 4),
    },
}


def tiny(method: str) -> Network:
    """A small network of a method with its weights."""
    module, _, name = METHODS[method].network.partition(":")
    network = getattr(importlib.import_module(module), name)
    built: Network = network(network.Config(**TINY[method]))
    fill(built)
    return built.eval()


def write_tiny_weights(folder: Path, *methods: str, **facts) -> None:
    """Put the weights of small networks into a folder, as `cinestream import-weights` would."""
    for method in methods or NETWORKS:
        checkpoint = folder / "checkpoint.pth"
        folder.mkdir(parents=True, exist_ok=True)
        network = tiny(method)
        tensors = {network.authors_key(key): value.clone() for key, value in network.state_dict().items()}
        torch.save(tensors, checkpoint)
        import_weights(method, checkpoint, folder=folder, config=TINY[method], **facts)
        checkpoint.unlink()


def write_tiny_chain(folder: Path, first: str, second: str, **facts) -> None:
    """Put weights ``second`` into a folder, with facts of their own, that start from the image of weights ``first``.

    The folder must be one of those that are searched.
    """
    for name, method, more in (
        ("first", first, {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0)}),
        ("second", second, {"start": "first", **facts}),
    ):
        write_tiny_weights(folder, method, name=name)
        write_entry(folder, dataclasses.replace(find_weights(method, name), **more))
