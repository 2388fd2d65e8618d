"""Images as NIfTI for analysis: (x, y, slice, frame), in mm towards right, front and head, and seconds."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gadgets.export.places import check_file, replace_files
from gadgets.images.geometry import affine_ras, slice_step
from gadgets.problems import Kind
from recon_core.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.images.collection import Loop, Series
    from gadgets.problems import Problems

_OURS = re.compile(r"series\d+(_(contrast|set|repetition|slice)\d+)*\.nii\.gz")
_SCANNER = 1  # code of the affines: coordinates of the scanner
_LONGEST_TEXT = 79


class _Volume(NamedTuple):
    """Slices that make one file."""

    name: str
    """Distinguishes it from the others."""
    series: Series
    loops: tuple[Loop, ...]
    """`series`, `loops`: What it holds."""
    step: NDArray[np.float64]
    """``(3,)`` from slice to slice in mm, LPS."""


def names_file(target: Path) -> bool:
    """Whether a path is that of a NIfTI file; else it is a folder."""
    return target.name.lower().endswith((".nii", ".nii.gz"))


def write_nifti(target: Path, series: Sequence[Series], problems: Problems, *, overwrite: bool = False) -> list[Path]:
    """Write series as NIfTI.

    Slices that are parallel, evenly spaced and of equally many frames share a file, others have one each.

    Parameters
    ----------
    target
        A file (``.nii`` or ``.nii.gz``), with further ones next to it, or a folder for all.
    series
        What to write.
    problems
        Where to note what is wrong.
    overwrite
        Replace existing files.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    SettingsError
        If a file exists and may not be replaced.
    ResourceError
        If a file cannot be written.
    """
    volumes = [volume for one in series for volume in _volumes(one, problems)]
    if names_file(target):
        stem, dot, ending = re.split(r"(\.)(?=nii(?:\.gz)?$)", target.name, flags=re.IGNORECASE)
        names = [target.name, *(f"{stem}_{volume.name}{dot}{ending}" for volume in volumes[1:])]
        paths = [target.with_name(name) for name in names]
        for path in paths:
            check_file(path, overwrite=overwrite)
        for path, volume in zip(paths, volumes, strict=True):
            write_file(path, _content(volume, compressed=path.name.lower().endswith(".gz")))
        return paths
    files = ((f"{volume.name}.nii.gz", _content(volume, compressed=True)) for volume in volumes)
    return replace_files(target, files, lambda path: bool(_OURS.fullmatch(path.name)))


def _content(volume: _Volume, *, compressed: bool) -> bytes:
    content: bytes = _image(volume).to_bytes()
    return gzip.compress(content, mtime=0) if compressed else content


def _volumes(series: Series, problems: Problems) -> Iterator[_Volume]:
    several = {name for name in ("contrast", "set", "repetition") if len(_counts(series, name)) > 1}
    for stack in series.stacks:
        key = stack[0].key
        labels = [f"{name}{getattr(key, name)}" for name in ("contrast", "set", "repetition") if name in several]
        name = "_".join([f"series{series.number:03d}", *labels])
        step = slice_step([loop.planes[0] for loop in stack])
        if step is not None and len({len(loop.values) for loop in stack}) == 1:
            yield _Volume(name, series, stack, step)
            continue
        text = (
            f"the {len(stack)} slices of {name} are not parallel and evenly spaced with equally many frames; "
            "each is written to a separate NIfTI file"
        )
        problems.add(Kind.STACK, text, damage=False, of=name)
        for loop in stack:
            plane = loop.planes[0]
            yield _Volume(f"{name}_slice{loop.key.slice}", series, (loop,), plane.normal * (plane.thickness or 1.0))


def _counts(series: Series, name: str) -> set[int]:
    return {getattr(loop.key, name) for loop in series.loops}


def _image(volume: _Volume) -> Any:  # noqa: ANN401 - nibabel's classes are untyped
    import nibabel

    plane = volume.loops[0].planes[0]
    affine = affine_ras(plane, volume.step)
    values = np.stack([loop.values for loop in volume.loops])  # (slice, frame, y, x)
    make: Any = nibabel.Nifti1Image
    image = make(np.ascontiguousarray(values.transpose(3, 2, 0, 1)), affine)
    code = 0 if plane.doubt else _SCANNER
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    zooms = image.header.get_zooms()[:3]
    image.header.set_zooms((*zooms, (volume.series.frame_time or 0.0) / 1000))
    image.header["descrip"] = (plane.doubt or volume.series.name).encode("ascii", "replace")[:_LONGEST_TEXT]
    return image
