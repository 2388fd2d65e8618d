"""Loading a CT from NIfTI, DICOM or HDF5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.errors import CinestreamError, DataError, ResourceError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from recon_core.ct.volume import CtVolume


_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


def load_volume(path: Path, volume_index: int | None = None) -> CtVolume:
    """Read a CT volume.

    Parameters
    ----------
    path
        A NIfTI file (``.nii``, ``.nii.gz``), a folder with one DICOM series, an ISMRMRD HDF5 file with one group of
        images, or such a group: ``FILE.h5/dataset/image_0``.
    volume_index
        Which volume of a 4-D NIfTI file; None takes 3-D files only.

    Returns
    -------
    CtVolume
        In Hounsfield units and LPS.

    Raises
    ------
    SettingsError
        If there is no such file, or it is none of these.
    ResourceError
        If it cannot be read, does not fit into memory, or the package that reads it is not installed.
    DataError
        If it can be read and must not be used: geometry, units, or what it holds.
    """
    file, inside = _split(path)
    try:
        return _load(file, inside, volume_index)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except ResourceError as error:
        raise ResourceError(f"{path}: {error}") from error
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise ResourceError(f"{path}: does not fit into memory") from error
    except CinestreamError:
        raise
    except Exception as error:  # packages raise nearly anything about a damaged file
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error})") from error


def _split(path: Path) -> tuple[Path, str]:
    """The file or folder that exists, and the path inside of it."""
    for parent in (path, *path.parents):
        if parent.is_file() or (parent == path and parent.is_dir()):
            return parent, path.relative_to(parent).as_posix() if parent != path else ""
    raise SettingsError(
        f"{path}: there is no such file or folder; give a NIfTI file, a DICOM folder, or an ISMRMRD HDF5 file"
    )


def _load(file: Path, inside: str, volume_index: int | None) -> CtVolume:
    # Each reader brings a package of its own, and needs this module.
    if file.is_dir():
        from recon_core.ct.dicom import load_dicom

        return load_dicom(file)
    with file.open("rb") as stream:
        signature = stream.read(len(_HDF5_SIGNATURE))
    if signature == _HDF5_SIGNATURE:
        from recon_core.ct.hdf5 import load_hdf5

        return load_hdf5(file, inside)
    if inside:
        raise SettingsError(f"{file / inside}: there is no such file or folder; {file} is no HDF5 file")
    if file.name.lower().endswith(_NIFTI_SUFFIXES):
        from recon_core.ct.nifti import load_nifti

        return load_nifti(file, volume_index)
    raise SettingsError(
        f"{file}: is neither a NIfTI file ({', '.join(_NIFTI_SUFFIXES)}) nor HDF5; of a DICOM series give the folder"
    )
