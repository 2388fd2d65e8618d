"""Trained weights: reading the authors' checkpoints without running code in them, keeping them, loading them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from recon_core.errors import ModelError, SettingsError
from recon_core.storage import replacing
from recon_core.weights.checkpoint import content_digest, read_checkpoint
from recon_core.weights.config import build_network, instantiate, network_class, parse_config
from recon_core.weights.manifest import (
    MANIFEST,
    WeightsEntry,
    WeightsFacts,
    check_name,
    known_weights,
    read_manifest,
    user_folder,
    write_entry,
)
from recon_core.weights.matching import ImportReport, load_into

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recon_core.networks.base import Network
    from recon_core.trust.ranges import TrainingRange

    Tensors = Mapping[str, torch.Tensor]
    Naming = Literal["own", "authors"]


def import_weights(
    method: str,
    path: Path,
    *,
    name: str = "",
    folder: Path | None = None,
    config: Mapping[str, object] = types.MappingProxyType({}),
    range: TrainingRange | None = None,  # noqa: A002 - the name that it has in the manifest
    input_peak: float | None = None,
    window: int | None = None,
    licence: str = "",
    source: str = "",
    notes: str = "",
) -> tuple[WeightsEntry, ImportReport]:
    """Bring a checkpoint to where `recon_core.weights.manifest.find_weights` looks.

    Published checkpoints are known by their content, and bring what was found out about them along; the arguments win.

    Parameters
    ----------
    method
        The method of the network.
    path
        The checkpoint, as for `read_checkpoint`.
    name
        Name of the weights; empty takes the method's.
    folder
        Where to put them; None is the user's own folder.
    config
        As for `build_network`.
    range, input_peak, window, licence, source, notes
        Facts as in `recon_core.weights.manifest.WeightsFacts`.

    Returns
    -------
    tuple
        The new entry of the manifest, and how the tensors were matched.

    Raises
    ------
    ModelError
        If there is no such network, or the checkpoint cannot be read or does not fit it.
    SettingsError
        If the name or the configuration is not possible, or a file that is not in the manifest would be replaced.
    ResourceError
        If the files cannot be written.
    """
    name, folder = name or method, folder or user_folder()
    check_name(name)
    kind = network_class(method)
    target = folder / f"{name}.safetensors"
    if target.exists() and target.name not in _files_of(folder):
        raise SettingsError(f"{target} exists and is not in {folder / MANIFEST}; move it away or choose another --name")
    tensors = read_checkpoint(path, kind)
    facts = known_weights(content_digest(tensors)) or WeightsFacts(method=method, source=f"imported from {path.name}")
    if facts.method != method:
        raise ModelError(f"{path} is known as weights of {facts.method}, not of {method}")
    settings = parse_config(method, {**facts.config, **config})
    network = instantiate(method, settings)
    try:
        report = load_into(network, tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    facts = dataclasses.replace(
        facts,
        config={key: _plain(value) for key, value in dataclasses.asdict(settings).items()},
        range=range or facts.range,
        input_peak=facts.input_peak if input_peak is None else input_peak,
        window=facts.window if window is None else window,
        licence=licence or facts.licence or (kind.licence_notice if report.naming == "authors" else ""),
        source=source or facts.source,
        notes=notes or facts.notes,
    )
    return write_weights(network, facts, name, folder), report


def write_weights(network: Network, facts: WeightsFacts, name: str, folder: Path) -> WeightsEntry:
    """Put the weights of a network into a folder and its manifest.

    Parameters
    ----------
    network
        The network; its configuration takes the place of that in `facts`.
    facts
        What is known of the weights.
    name
        Under which they will be listed.
    folder
        Made if it is not there; weights of that name are replaced.

    Raises
    ------
    SettingsError
        If the name is not possible, or a file that is not in the manifest would be replaced.
    ResourceError
        If the files cannot be written.
    """
    check_name(name)
    target = folder / f"{name}.safetensors"
    if target.exists() and target.name not in _files_of(folder):
        raise SettingsError(f"{target} exists and is not in {folder / MANIFEST}; move it away or choose another name")
    settings = {key: _plain(value) for key, value in dataclasses.asdict(network.config).items()}
    facts = dataclasses.replace(facts, config=settings)
    # One key, because those of several have no fixed order in the file, which is to be the same for the same weights.
    metadata = {"cinestream": json.dumps({"method": facts.method, "config": settings})}
    return _store(_own_tensors(network), metadata, WeightsEntry(**vars(facts), name=name, file=target, sha256=""))


def _store(tensors: Tensors, metadata: dict[str, str], entry: WeightsEntry) -> WeightsEntry:
    """Write the file of weights and their entry of the manifest, with the digest that the file has now."""
    content = save(dict(tensors), metadata)
    entry = dataclasses.replace(entry, sha256=hashlib.sha256(content).hexdigest())
    with replacing(entry.file) as part:
        part.write_bytes(content)
    write_entry(entry.file.parent, entry)
    return entry


def halve(entry: WeightsEntry) -> WeightsEntry:
    """Store the float32 numbers of weights in half precision, which halves their file; reading them widens them again.

    Rounding moved the images of no weights that come with cinestream by 0.01 dB. Weights that are trained or imported
    keep float32 until this is called.

    Parameters
    ----------
    entry
        Of a manifest; its file and its digest there are replaced.

    Returns
    -------
    WeightsEntry
        With the new digest.

    Raises
    ------
    ModelError
        If the file is not the one that the manifest describes, or a number is too large for half precision.
    ResourceError
        If the files cannot be written.
    """
    tensors, metadata = _read(entry)
    narrow = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    too_large = [name for name, tensor in narrow.items() if not torch.isfinite(tensor).all()]
    if too_large:
        raise ModelError(f"the weights {entry.name!r}, {entry.file}: {too_large[0]} does not fit into half precision")
    return _store(narrow, metadata, entry)


def load_network(entry: WeightsEntry, device: torch.device | str) -> Network:
    """Build the network of trained weights, ready to reconstruct.

    Parameters
    ----------
    entry
        Of a manifest.
    device
        Where it is to compute.

    Raises
    ------
    ModelError
        If the file is not the one that the manifest describes, or does not fit the network.
    """
    tensors, _ = _read(entry)
    try:
        network = build_network(entry.method, entry.config)
        load_into(network, tensors, naming="own")
    except (ModelError, SettingsError) as error:
        raise ModelError(f"the weights {entry.name!r}, {entry.file}: {error}") from error
    return network.eval().requires_grad_(False).to(device)


def _read(entry: WeightsEntry) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of weights and what else their file says, once it is known to be the one of the manifest."""
    try:
        content = entry.file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the weights {entry.name!r}, {entry.file}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ModelError(
            f"the weights {entry.name!r}, {entry.file}, are not those of the manifest: expected sha256 "
            f"{entry.sha256[:12]}..., found {found[:12]}...; the file is damaged or was replaced, so import it again"
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ModelError(f"the weights {entry.name!r}, {entry.file}: {error}") from error
    length = int.from_bytes(content[:8], "little")  # of the header, which `load` does not give
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _files_of(folder: Path) -> set[str]:
    """Names of the files in a folder that its manifest speaks for."""
    path = folder / MANIFEST
    return {str(fields.get("file")) for fields in read_manifest(path).values() if isinstance(fields, dict)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _own_tensors(network: Network) -> dict[str, torch.Tensor]:
    """Every tensor of a network once, by its own first name."""
    own: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        own.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in own.values()}
