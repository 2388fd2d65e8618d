"""State of a training in files of limited size, written so that an interruption never leaves half of one."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import safetensors.torch

from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

#: Largest file, in bytes: what mail, version control and transfer tools take without a question.
LARGEST_FILE = 15 * 2**20
_INDEX = "state.json"


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the checkpoint in a folder.

    Parameters
    ----------
    folder
        Made if it is not there; its former content stays until the new one is complete.
    tensors
        By name.
    facts
        What JSON can hold.

    Raises
    ------
    ResourceError
        If it cannot be written; the former checkpoint is still there then.
    """
    content = safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    parts = [content[begin : begin + LARGEST_FILE] for begin in range(0, len(content), LARGEST_FILE)]
    index = {"facts": dict(facts), "parts": len(parts), "sha256": hashlib.sha256(content).hexdigest()}
    fresh, former = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for number, part in enumerate(parts):
            (fresh / f"state.{number:03d}").write_bytes(part)
        (fresh / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if folder.exists():  # else the former one is all there is, after an interruption between these lines
            shutil.rmtree(former, ignore_errors=True)
            folder.replace(former)
        fresh.replace(folder)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"cannot write the checkpoint {folder}: {error.strerror or error}") from error


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read tensors and facts back; None where there is no checkpoint.

    Raises
    ------
    ResourceError
        If a part is missing or differs from what was written.
    """
    if not (folder / _INDEX).is_file():  # stopped between taking the former away and putting the new one there
        folder = folder.with_name(folder.name + ".old")
    if not (folder / _INDEX).is_file():
        return None
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        content = b"".join((folder / f"state.{number:03d}").read_bytes() for number in range(index["parts"]))
        if hashlib.sha256(content).hexdigest() != index["sha256"]:
            raise ValueError("its parts do not belong together")
        return safetensors.torch.load(content), index["facts"]
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ResourceError(f"cannot read the checkpoint {folder}: {error}; remove it to start again") from error
