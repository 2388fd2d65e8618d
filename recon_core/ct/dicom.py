"""CT volumes from a folder with one DICOM series."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_core.ct.volume import CtVolume, check_size, stack_slices
from recon_core.errors import DataError, ResourceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# What must be the same in all slices, and how a person calls it.
_COMMON = {
    "SeriesInstanceUID": "series",
    "FrameOfReferenceUID": "frames of reference",
    "Rows": "numbers of rows",
    "Columns": "numbers of columns",
    "PixelSpacing": "pixel spacings",
    "ImageOrientationPatient": "orientations",
}
_CLOSE = 1e-4  # of numbers that are written with few digits


def load_dicom(folder: Path) -> CtVolume:
    """Read a folder with one DICOM series, past other files; see `recon_core.ct.load.load_volume`."""
    try:
        import pydicom
    except ImportError as error:
        raise ResourceError("reading DICOM needs the package pydicom, which is not installed") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slices = {}
        for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
            header = _header(path)
            if header is not None:
                slices[path] = header
        paths, headers = list(slices), list(slices.values())
        _check(headers)
        spacing, orientation = (
            _numbers(headers[0], "PixelSpacing", 2),
            _numbers(headers[0], "ImageOrientationPatient", 6),
        )
        first = np.stack([_numbers(header, "ImagePositionPatient", 3) for header in headers])
        # The first spacing is between rows, the first direction that of increasing column.
        order, affine = stack_slices(first, orientation[:3] * spacing[1], orientation[3:] * spacing[0])
        rows, columns = int(headers[0].Rows), int(headers[0].Columns)
        check_size(rows * columns * len(headers))
        hu = np.empty((columns, rows, len(headers)), np.float32)
        digests = []
        for place, number in enumerate(order.tolist()):
            content = paths[number].read_bytes()
            digests.append(hashlib.sha256(content).digest())
            try:
                dataset: Any = pydicom.dcmread(io.BytesIO(content))
                stored = dataset.pixel_array
                hu[..., place] = stored.T * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            except Exception as error:
                raise ResourceError(
                    f"{paths[number].name} cannot be decoded ({type(error).__name__}: {str(error).splitlines()[0]}); "
                    "decompress the series (gdcmconv --raw) or copy it again"
                ) from error
    # of the contents, whatever the files are called
    return CtVolume(hu, affine, hashlib.sha256(b"".join(sorted(digests))).hexdigest())


def _header(path: Path) -> Any:  # noqa: ANN401 - pydicom's elements come by name
    """The header of an image; None of what is no DICOM image."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    except OSError:
        raise
    except Exception as error:
        raise ResourceError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
    return dataset if "Rows" in dataset else None  # no directory, report or plan


def _check(headers: list[Any]) -> None:
    """Refuse what is not the slices of one CT series."""
    if not headers:
        raise DataError("there is no DICOM image in the folder; give the folder that holds the slices themselves")
    modalities = {str(header.get("Modality", "none")) for header in headers}
    if modalities != {"CT"}:
        raise DataError(f"the folder holds images of modality {', '.join(sorted(modalities))}, not of CT alone")
    if any(int(header.get("NumberOfFrames", 1) or 1) > 1 for header in headers):
        raise DataError("enhanced (multi-frame) CT is not read; export the series as one file per slice")
    for name in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", *_COMMON):
        absent = sum(header.get(name) is None for header in headers)
        if absent and name != "FrameOfReferenceUID":
            raise DataError(f"{absent} of {len(headers)} slices have no {name}; export the original series")
    for name, what in _COMMON.items():
        values: list[NDArray[Any] | str]
        if name in ("PixelSpacing", "ImageOrientationPatient"):
            numbers = np.array([_numbers(header, name, 2 if name == "PixelSpacing" else 6) for header in headers])
            values = [str(row) for row in np.unique(np.round((numbers - numbers[0]) / _CLOSE), axis=0)]
        else:
            values = sorted({str(header.get(name)) for header in headers})
        if len(values) > 1:
            raise DataError(f"the folder mixes {len(values)} {what}; give a folder with one series only")
    if any(int(header.get("SamplesPerPixel", 1)) != 1 for header in headers):
        raise DataError("the images are in colour: screen captures, not CT")


def _numbers(header: Any, name: str, count: int) -> NDArray[np.float64]:  # noqa: ANN401 - pydicom's elements come by name
    try:
        values = np.array([float(value) for value in header.get(name)])
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} of a slice is not made of numbers: {header.get(name)!s:.60}") from error
    if values.shape != (count,) or not np.isfinite(values).all() or (name == "PixelSpacing" and values.min() <= 0):
        raise DataError(f"{name} of a slice must be {count} numbers, got {header.get(name)!s:.60}")
    return values
