"""The CT of a scan in the stream: which files a peer may name, where the slices lie, and what the images say of it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, cast

from gadgets.problems import Kind
from gadgets.slices.complete import describe
from recon_core.errors import CinestreamError, DataError, ModelError, SettingsError
from recon_core.methods import find_method
from recon_core.weights.manifest import find_weights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np

    from gadgets.problems import Problems
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice
    from gadgets.wire.header import Encoding, ScanHeader
    from recon_core.ct.geometry import SliceGeometry, Vector
    from recon_core.ct.placement import PlacedCt, ScanCt

logger = logging.getLogger("cinestream")


def confine(settings: Settings, trusted: Settings, folders: Iterable[Path]) -> Settings:
    """Let a peer name files for CT in the operator's folders only.

    Parameters
    ----------
    settings
        As the peer wants them.
    trusted
        What the operator said; files that are named here may lie anywhere.
    folders
        Where a peer may name files, relative to one of them.

    Returns
    -------
    Settings
        With whole paths.

    Raises
    ------
    SettingsError
        If a file is not in the folders; the message does not say whether it is elsewhere.
    """
    wanted, named = settings.ct, trusted.ct
    if wanted.path and wanted.path != named.path:
        wanted = dataclasses.replace(wanted, path=str(_inside("ct_path", wanted.path, folders)))
    if wanted.transform and wanted.transform != named.transform:
        wanted = dataclasses.replace(wanted, transform=str(_inside("ct_transform", wanted.transform, folders)))
    return dataclasses.replace(settings, ct=wanted)


def _inside(name: str, value: str, folders: Iterable[Path]) -> Path:
    folders = [folder.resolve() for folder in folders]
    if not folders:
        raise SettingsError(
            f"{name}: this server takes no files for CT from its peers; its operator allows a folder with --ct-folder, "
            "or names the file in a pipeline or with --set"
        )
    for folder in folders:
        try:
            path = (folder / value).resolve()
            # A group inside of an HDF5 file is no file: what counts is where the path begins.
            if path.is_relative_to(folder) and folder.joinpath(*path.relative_to(folder).parts[:1]).exists():
                return path
        except (OSError, ValueError, RuntimeError):  # too long, with a NUL, or links in a circle
            continue
    raise SettingsError(
        f"{name}: {value[:60]!r} is not in the folders that this server's operator allows with --ct-folder; "
        "give a path relative to one of them"
    )


def load_ct(header: ScanHeader, settings: Settings, problems: Problems) -> SliceCt | None:
    """Read the CT of a scan before its data come.

    Parameters
    ----------
    header
        The scan's header.
    settings
        The pipeline's settings.
    problems
        Where to note that the scan goes on without the CT that it should have.

    Returns
    -------
    SliceCt or None
        None where the method takes no CT, or its weights are missing or were trained for none.

    Raises
    ------
    CinestreamError
        As `recon_core.ct.placement.ScanCt` says, if there is no fallback for scans without CT.
    """
    if not find_method(settings.method).takes_ct:
        return None
    try:
        config = find_weights(settings.method, settings.network.weights).config
    except ModelError:
        return None  # check_weights has said so
    if config.get("condition") == "none":
        return None
    from recon_core.ct.placement import ScanCt  # imports torch

    fallback = "" if settings.fallback in ("none", settings.method) else settings.fallback
    try:
        ct = ScanCt(settings.ct, trained_without=bool(config.get("ct_dropout", False)))
    except CinestreamError as error:
        if not fallback:
            raise
        problems.add(Kind.CT, f"{fallback} is used instead of {settings.method}: {error}", damage=False)
        return SliceCt(str(error), header, problems, fallback)
    if ct.problem and settings.ct.path:
        problems.add(Kind.CT, ct.problem, damage=False)
    elif ct.problem:
        logger.warning("%s", ct.problem)  # as the operator wants it: not reported to the sender in every scan
    return SliceCt(ct, header, problems, fallback)


class SliceCt:
    """Brings the CT of a scan to its slices.

    Parameters
    ----------
    ct
        The CT, or why there is none and no slice may go without.
    header
        The scan's header.
    problems
        Where to note what is wrong with the CT of a slice.
    fallback
        Method for slices that may not go without CT and have none; empty if there is no such method.
    """

    def __init__(self, ct: ScanCt | str, header: ScanHeader, problems: Problems, fallback: str = "") -> None:
        self._ct = ct
        self._header = header
        self._problems = problems
        self._fallback = fallback

    def place(self, complete: CompleteSlice) -> PlacedCt:
        """Bring the CT to a slice.

        Raises
        ------
        DataError
            If that cannot be, the policy is ``error``, and there is no fallback.
        """
        from recon_core.ct.alignment import time_average_magnitude
        from recon_core.ct.placement import PlacedCt

        if isinstance(self._ct, str):
            return PlacedCt("no_ct:refused", unfit=self._ct)
        cine = complete.cine
        geometry = slice_geometry(complete, self._header.encodings[complete.key.encoding])
        try:
            placed = self._ct.place(geometry, describe(complete.key), time_average_magnitude(cine.kspace, cine.mask))
        except DataError as error:
            if not self._fallback:
                raise
            text = f"{self._fallback} is used for it: {error}"
            self._problems.add(Kind.CT_SLICE, text, damage=False)
            return PlacedCt("no_ct:refused", unfit=str(error))
        if placed.message:
            self._problems.add(Kind.CT_SLICE, placed.message, damage=False)
        return placed

    def label(self, complete: CompleteSlice, placed: PlacedCt) -> CompleteSlice:
        """Let the images of a slice say which CT they were made with, or why with none."""
        note = f"CT {placed.status}" + (f" ({placed.message})" if placed.message else "")
        meta = {
            "ct_status": placed.status,
            "ct_coverage": placed.coverage,
            "ct_hash": "" if isinstance(self._ct, str) else self._ct.digest,
            "ct_transform_hash": "" if isinstance(self._ct, str) else self._ct.transform_digest,
        }
        return dataclasses.replace(complete, notes=(*complete.notes, note), meta={**complete.meta, **meta})


def slice_geometry(complete: CompleteSlice, encoding: Encoding) -> SliceGeometry:
    """Say where the pixels of a slice lie, on the grid on which it is reconstructed.

    Parameters
    ----------
    complete
        The slice; the header of its first frame has the place.
    encoding
        Its encoding.

    Returns
    -------
    SliceGeometry
        Of the encoded field of view, without the oversampling of the readout where that was removed; pixel ``N//2``
        lies at the position of the header.
    """
    from recon_core.ct.geometry import SliceGeometry

    source = complete.headers[0]
    rows, columns = complete.cine.kspace.shape[2:]
    return SliceGeometry(
        position=_vector(source["position"]),
        read_dir=_vector(source["read_dir"]),
        phase_dir=_vector(source["phase_dir"]),
        slice_dir=_vector(source["slice_dir"]),
        matrix=(columns, rows),
        field_of_view=(encoding.width_of(columns), encoding.encoded.field_of_view[1]),
        thickness=encoding.recon.field_of_view[2],
        table_position=_vector(source["patient_table_position"]),
        centre=(columns // 2, rows // 2),
    )


def _vector(values: np.ndarray[Any, Any]) -> Vector:
    return cast("Vector", tuple(values.tolist()))
