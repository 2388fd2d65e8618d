"""Magnitude images that series are made of: a folder of the Sunnybrook Cardiac Data, split by patient.

The images are those of Radau et al., MIDAS Journal 2009 (public domain, CC0 1.0): short-axis cines of four patients and
single end-diastolic and end-systolic images of more. None of them is packaged with cinestream.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from recon_core.errors import ResourceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: Patient of the validation, by the names of the cines and of the single images.
HELD_OUT = ("SCD0000301", "SC-HF-I-04")
#: Slices of the other patients that the semi-real scans of the evaluation were made from, with their neighbours.
_RESERVED = {"SCD0000101": (5, 6, 7), "SCD0000201": (5, 6, 7)}
_RESERVED_STILLS = ("SC-HF-I-01", "SC-HF-I-02")


@dataclass(frozen=True)
class Library:
    """Images to make series of."""

    cines: list[NDArray[np.float32]] = field(default_factory=list)
    """``(frame, y, x)`` float32 between 0 and 1, one cardiac cycle each, pixels of equal sides."""
    stills: list[NDArray[np.float32]] = field(default_factory=list)
    """``(y, x)`` float32 between 0 and 1."""


def read_library(folder: Path, part: Literal["training", "held out"]) -> Library:
    """Read one side of the split by patient.

    Parameters
    ----------
    folder
        Has ``scd_cine/*.npz`` (``img`` (slice, frame, y, x)) and ``scd_ed_es/*.npz`` (``img`` (image, y, x), ``name``).
    part
        ``held out`` is one patient with all slices; ``training`` the others without those that the semi-real scans were
        made of.

    Raises
    ------
    ResourceError
        If the folder holds no such images, or one of them cannot be read.
    """
    held_out = part == "held out"
    cines, stills = [], []
    for path in sorted(folder.glob("scd_cine/*.npz")):
        if (path.stem in HELD_OUT) is held_out:
            reserved = _RESERVED.get(path.stem, ())
            slices = _read(path, "img")[0]
            cines += [_normalised(cine) for number, cine in enumerate(slices) if number not in reserved]
    for path in sorted(folder.glob("scd_ed_es/*.npz")):
        images, names = _read(path, "img", "name")
        for image, name in zip(images, names.astype(str), strict=True):
            if name.startswith(HELD_OUT) is held_out and not name.startswith(_RESERVED_STILLS):
                stills.append(_normalised(image))
    if not cines and not stills:
        raise ResourceError(f"{folder} has no images for the {part} part: expected scd_cine/*.npz and scd_ed_es/*.npz")
    return Library(cines, stills)


def _read(path: Path, *names: str) -> list[NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return [arrays[name] for name in names]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ResourceError(f"cannot read {' and '.join(names)} from {path}: {error}") from error


def _normalised(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Scale to one at the brightest tissue; the very brightest pixels may be more."""
    magnitude = np.asarray(image, np.float32)
    return magnitude / max(float(np.quantile(magnitude, 0.998)), 1e-6)
