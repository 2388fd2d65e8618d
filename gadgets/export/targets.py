"""Writes the requested files from a file of images."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gadgets.export.movie import check_movies, write_mp4
from gadgets.export.nifti import names_file, write_nifti
from gadgets.export.places import check_file, check_folder
from gadgets.export.scan_facts import ScanFacts
from gadgets.export.series import exportable_series
from gadgets.files.images import read_header, read_images, read_incomplete
from gadgets.images.collection import tick_of_images
from gadgets.problems import Kind
from recon_core.errors import DataError, HeaderError
from recon_core.storage import refuse_missing_folder

if TYPE_CHECKING:
    from pathlib import Path

    from gadgets.problems import Problems


@dataclass(frozen=True)
class ExportTargets:
    """What to write."""

    dicom: Path | None = None
    """Folder for DICOM files."""
    dicom_kind: str = "classic"
    """``classic`` or ``enhanced``."""
    nifti: Path | None = None
    """NIfTI file, or a folder for several."""
    mp4: Path | None = None
    """Film of the first series."""
    overwrite: bool = False
    """Replace what is there."""

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return any((self.dicom, self.nifti, self.mp4))

    def check(self) -> None:
        """Refuse targets that cannot be written, before a long reconstruction rather than after.

        Raises
        ------
        SettingsError
            If something is there that may not be replaced.
        ResourceError
            If there is no folder for a file, or the package for films is missing.
        """
        files = [path for path in (self.nifti, self.mp4) if path and (path is self.mp4 or names_file(path))]
        for path in files:
            check_file(path, overwrite=self.overwrite)
            refuse_missing_folder(path)
        for folder in (self.dicom, self.nifti):
            if folder and folder not in files:
                check_folder(folder, overwrite=self.overwrite)
        if self.mp4:
            check_movies()


def export_images(source: Path, group: str, targets: ExportTargets, problems: Problems, header: str = "") -> list[str]:
    """Write the images of a file in other formats.

    Parameters
    ----------
    source
        HDF5 file with images, as `gadgets.files.images.ImageFile` or the stock client writes it.
    group
        HDF5 group of the images.
    targets
        What to write; `ExportTargets.check` has been called.
    problems
        Where to note what is wrong with the images.
    header
        ISMRMRD header of the scan; empty takes the one in the file, if it has one.

    Returns
    -------
    list of str
        What was written, in words.

    Raises
    ------
    DataError
        If the file holds no images.
    SettingsError
        If a further NIfTI file is there already and may not be replaced.
    ResourceError
        If something cannot be read or written.
    """
    text = header or read_header(source, group)
    try:
        facts = ScanFacts(text)
    except HeaderError as error:
        problems.add(Kind.EXPORT_HEADER, f"{error}; exam and patient are left out of the exported images", damage=False)
        facts = ScanFacts()
    if why := read_incomplete(source):
        problems.add(Kind.STREAM, f"{source} does not hold all images of its scan: {why}", damage=True)
    images = read_images(source, group)
    if not images:
        raise DataError(f"{source} has no images in the group {group!r}; --group names another")
    series = exportable_series(images, tick_of_images(text), problems)
    if not series:
        raise DataError("there are no 2-D images to export; look whether --group names the right HDF5 group")
    written = []
    if targets.dicom:
        from gadgets.export.dicom import write_dicom  # pydicom takes a while to import

        made = datetime.fromtimestamp(source.stat().st_mtime).astimezone()
        files = write_dicom(targets.dicom, series, facts, problems, kind=targets.dicom_kind, made=made)
        written.append(f"DICOM in {targets.dicom}, {len(files)} {'file' if len(files) == 1 else 'files'}")
    if targets.nifti:
        files = write_nifti(targets.nifti, series, problems, overwrite=targets.overwrite)
        written.append(f"NIfTI in {', '.join(map(str, files))}")
    if targets.mp4:
        write_mp4(targets.mp4, series[0])
        written.append(f"film in {targets.mp4}")
    return written
