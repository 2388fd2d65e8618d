"""Reading checkpoints of any origin without running code that is in them."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from recon_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recon_core.networks.base import Network

    Tensors = Mapping[str, torch.Tensor]
    Naming = Literal["own", "authors"]


# Where trainers keep the tensors of the network, the most telling name first.
_STATE_NAMES = ("state_dict", "model_state_dict", "model", "network", "net", "params", "module", "weights")
_TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_DEEPEST_NESTING = 4
SHOWN = 10  # names in a message

_REMEDY = """\
if you trust the file, save the bare tensors with the code that it belongs to, and import that:
    checkpoint = torch.load({name!r}, map_location="cpu", weights_only=False)
    torch.save(checkpoint["state_dict"], "bare.pth")  # or checkpoint.state_dict(), where it is a whole network"""


def read_checkpoint(path: Path, kind: type[Network] | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint; code that lies in it is never run.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or one that ``torch.save`` wrote, under any other suffix. The tensors may be nested, as
        trainers nest them: under ``state_dict``, ``model``, and so on.
    kind
        Class of the network that they are for, which may know where its authors keep them.

    Returns
    -------
    dict
        Tensors by the names in the file.

    Raises
    ------
    ModelError
        If the file is not there, is damaged, or holds other things that only code could read.
    """
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}")
    document = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    chosen = kind.from_checkpoint(document) if kind is not None and isinstance(document, dict) else None
    tensors = _find_tensors(document, path) if chosen is None else chosen
    for key, tensor in tensors.items():
        # A few bytes can claim to be a tensor of any size, if all its elements are the same one.
        if (
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.dtype not in _TYPES
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ModelError(f"{key!r} in {path} is no plain tensor; {_REMEDY.format(name=path.name)}")
    return {key: tensor.detach().resolve_conj().resolve_neg() for key, tensor in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read {path} as safetensors: {first_line(error)}") from error


def _read_pickle(path: Path) -> object:
    try:
        packed = _is_zip(path)
        # Mapped into memory, no tensor can reach beyond the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # a broken or forged pickle may raise anything
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise ModelError(
                f"{path} holds objects ({found[1]}) besides tensors; they are not read, because that would run code; "
                + _REMEDY.format(name=path.name)
            ) from error
        raise ModelError(
            f"cannot read {path} as a checkpoint (.safetensors, .pth, .pt or .ckpt): it is damaged, or none "
            f"({first_line(error)}); {_REMEDY.format(name=path.name)}"
        ) from error


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its text, for a message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}".rstrip(": ")


def _is_zip(path: Path) -> bool:
    """Whether a file has the format of torch 1.6 and later; refuses one that would grow when it is unpacked."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        with zipfile.ZipFile(file) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > file.seek(0, 2):
            raise ValueError("it is compressed, which torch.save never does")
    return True


def _find_tensors(document: object, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the network among whatever a trainer saved."""
    found: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    _collect(document, (), found)
    if not found:
        raise ModelError(f"{path} holds no tensors by name; {_REMEDY.format(name=path.name)}")
    most = max(map(len, found.values()))
    largest = [where for where, tensors in found.items() if len(tensors) == most]
    if len(largest) > 1:
        # Of several, such as the network and its running average, the one under a usual name.
        usual = [where for name in _STATE_NAMES for where in largest if where and where[-1] == name]
        if not usual:
            names = ", ".join(".".join(where) for where in largest[:SHOWN])
            raise ModelError(f"{path} holds several sets of tensors ({names}); save the one to use alone")
        largest = usual
    return found[largest[0]]


def _collect(document: object, where: tuple[str, ...], found: dict[tuple[str, ...], dict[str, torch.Tensor]]) -> None:
    if not isinstance(document, dict):
        return
    named = {key: value for key, value in document.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
    if tensors:
        found[where] = tensors
    if len(where) < _DEEPEST_NESTING:
        for key, value in named.items():
            if not key.startswith("optim"):  # what the optimiser remembers has as many tensors
                _collect(value, (*where, key), found)


def content_digest(tensors: Tensors) -> str:
    """SHA-256 of names, shapes and values, the same in whatever file format they came.

    Parameters
    ----------
    tensors
        By the names in the checkpoint; floating-point ones count as float32.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        plain = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(json.dumps([key, list(tensor.shape)]).encode() + b"\n")
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()
