"""Files of images, laid out as the stock Gadgetron client writes them."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.files.hdf5 import (
    BLOCK_BYTES,
    USUAL_GROUP,
    append_rows,
    as_text,
    complex_of,
    damage_of,
    find_group,
    groups_of,
    open_hdf5,
    output_file,
    read_header_of,
    read_rows,
    with_fields,
    write_header_of,
)
from gadgets.wire.messages import IMAGE_DTYPES, IMAGE_HEADER, Image
from recon_core.errors import DataError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import h5py
    from numpy.typing import NDArray

logger = logging.getLogger("cinestream")

_INCOMPLETE = "incomplete"  # attribute of the file: why images are missing
_RECORD = "cinestream_record"  # attribute of the file: how its images were made


class _NotKeptError(Exception):
    """Ends the context of a file that is not to be kept."""


class ImageFile:
    """An HDF5 file that images are appended to within a context, laid out as the stock client does.

    ``/<group>/image_<series>/{header, data, attributes}``; ``data`` is ``(image, channel, z, y, x)``. Images are held
    back and written in blocks, the rest at the end. The file has its name, and replaces another one, only when the
    context is left without an error; killed before, ``.<name>.<number>.part`` holds what was flushed.

    Parameters
    ----------
    path
        The file to make.
    group
        HDF5 group for all series.
    header
        ISMRMRD header of the scan, kept as ``/<group>/xml`` as in raw files; empty keeps none.
    overwrite
        Replace an existing file instead of refusing.

    Raises
    ------
    SettingsError
        If the file exists and may not be replaced.
    ResourceError
        If it cannot be made or written.
    """

    def __init__(self, path: Path, group: str = USUAL_GROUP, *, header: str = "", overwrite: bool = False) -> None:
        import h5py

        self._group = group
        self._kept = True
        self._waiting: dict[int, list[Image]] = {}
        self._kinds: dict[int, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        if path.exists() and not overwrite:
            raise SettingsError(f"{path} exists; choose another output or allow replacing it with --overwrite")
        with ExitStack() as stack:
            self._disk = stack.enter_context(output_file(path))
            self._file = stack.enter_context(h5py.File(self._disk, "w"))
            if header:
                write_header_of(self._file.require_group(group), header)
            self._stack = stack.pop_all()

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._kept:
            nothing = _NotKeptError()
            self._stack.__exit__(_NotKeptError, nothing, None)
        elif error is None:
            with self._stack:
                self.flush()
        else:
            self._stack.__exit__(kind, error, trace)

    def append(self, image: Image) -> None:
        """Add one image to its series.

        Raises
        ------
        DataError
            If the images of its series have another size or type.
        ResourceError
            If the file cannot be written.
        """
        number = int(image.header["image_series_index"])
        kind = image.data.shape, image.data.dtype
        held = self._kinds.setdefault(number, kind)
        if kind != held:
            raise DataError(
                f"series {number} holds {held[1]} images of {held[0]}, got {kind[1]} of {kind[0]}; all images of a "
                "series must have one size and type"
            )
        series = self._waiting.setdefault(number, [])
        series.append(image)
        if sum(waiting.data.nbytes for waiting in series) >= BLOCK_BYTES:
            self.flush()

    def mark_incomplete(self, why: str) -> None:
        """Say in the file that images are missing, for who reads it."""
        self._file.attrs[_INCOMPLETE] = why

    def keep_record(self, record: str) -> None:
        """Keep a text of up to 60 000 bytes on how the images were made, for `read_record`."""
        self._file.attrs[_RECORD] = record

    def discard(self) -> None:
        """Leave no file, and one that was there before as it was."""
        self._kept = False

    def flush(self) -> None:
        """Write what is held back."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for series, images in waiting.items():
            self._write(f"{self._group}/image_{series}", images)
            self._disk.check()
        self._file.flush()
        self._disk.check()

    def _write(self, name: str, images: list[Image]) -> None:
        import h5py

        data = np.stack([image.data for image in images])
        if data.dtype.kind == "c":
            part = np.dtype(f"<f{data.dtype.itemsize // 2}")
            data = data.view([("real", part), ("imag", part)])
        if name not in self._file:
            node = self._file.create_group(name)
            shape = data.shape[1:]
            node.create_dataset("header", (0,), IMAGE_HEADER, maxshape=(None,), chunks=(64,))
            node.create_dataset("data", (0, *shape), data.dtype, maxshape=(None, *shape), chunks=(1, *shape))
            node.create_dataset("attributes", (0,), h5py.string_dtype(), maxshape=(None,), chunks=(64,))
        node = self._file[name]
        append_rows(node["header"], np.array([image.header for image in images], IMAGE_HEADER))
        append_rows(node["data"], data)
        append_rows(node["attributes"], np.array([image.attributes for image in images], object))


def read_images(path: Path, group: str = USUAL_GROUP) -> dict[int, list[Image]]:
    """Read every image of a file that the stock client, `ImageFile` or another tool of ISMRMRD wrote.

    Parameters
    ----------
    path
        The file. A series is a group with the data set ``data``, ``([image, [channel, [z,]]] y, x)`` of any number
        type, and as a rule ``header`` and ``attributes``. Without headers the images are taken for consecutive frames
        with pixels of 1 mm.
    group
        HDF5 group of all series, as `gadgets.files.hdf5.find_group` takes it.

    Returns
    -------
    dict
        The images in stored order, by series index; empty if the group is there and holds none.

    Raises
    ------
    ResourceError
        If the file cannot be read, or holds more than the memory.
    DataError
        If it is damaged, has images in other groups only, or what is stored is no image.
    """
    series: dict[int, list[Image]] = {}
    with open_hdf5(path) as file, damage_of(path):
        node = _group_of(file, group)
        for name in _series_of(node):
            digits = re.search(r"\d{1,9}$", name)
            number = int(digits[0]) if digits else 0
            while number in series:
                number += 1
            series[number] = _read_series(node[name], number)
    return series


def _group_of(file: h5py.File, group: str) -> h5py.Group:
    """The group of all series; one without any where it is the one that was asked for."""
    import h5py

    own = file.get(group or "/")
    of_scan = (isinstance(own, h5py.Group) and "xml" in own) or not len(file)
    if of_scan and not any(map(_series_of, groups_of(file))):
        return own or file
    return find_group(file, group, _series_of, "images")


def _series_of(node: h5py.Group) -> list[str]:
    """Names of the series in a group."""
    import h5py

    names = []
    for name in node:
        series = node.get(name)
        data = series.get("data") if isinstance(series, h5py.Group) else None
        if isinstance(data, h5py.Dataset) and data.ndim > 1:
            names.append(name)
    return names


def _read_series(node: h5py.Group, number: int) -> list[Image]:
    data = complex_of(read_rows(node["data"], ()))
    if data.ndim > 5:
        raise DataError(f"{node.name} holds arrays of {data.ndim} axes; expected (image, channel, z, y, x)")
    if data.dtype.kind == "b":
        data = data.astype(np.uint16)
    while data.ndim < 5:  # the axes of images are the last, that of the series the first
        data = data[None] if data.ndim == 2 else data[:, None]
    headers = (
        with_fields(np.ravel(read_rows(node["header"], ())), IMAGE_HEADER)
        if "header" in node
        else _made_up(data, number)
    )
    texts = [as_text(text) for text in np.ravel(read_rows(node["attributes"], ()))] if "attributes" in node else []
    if len(headers) != len(data):
        raise DataError(f"{node.name} holds {len(data)} images and {len(headers)} headers; one is needed for each")
    texts += [""] * (len(data) - len(texts))
    return [Image(header, values, text) for header, values, text in zip(headers, data, texts, strict=False)]


def _made_up(data: NDArray[Any], number: int) -> NDArray[np.void]:
    """Headers ``(image,)`` for images that are stored without."""
    logger.warning("series %d has no headers: its images are taken for frames in order, with pixels of 1 mm", number)
    count, channels, *shape = data.shape
    headers = np.zeros(count, IMAGE_HEADER)
    headers["version"], headers["image_type"], headers["channels"] = 1, 1, channels
    headers["data_type"] = next((key for key, kind in IMAGE_DTYPES.items() if kind == data.dtype), 0)
    headers["matrix_size"] = headers["field_of_view"] = shape[::-1]
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = np.eye(3)
    headers["phase"], headers["image_index"] = np.arange(count) % (1 << 16), np.arange(1, count + 1) % (1 << 16)
    headers["image_series_index"] = number % (1 << 16)
    return headers


def read_incomplete(path: Path) -> str:
    """Read why images are missing in a file; empty if none are, or if nothing is said of it.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    DataError
        If it is damaged.
    """
    return _read_attribute(path, _INCOMPLETE)


def read_record(path: Path) -> str:
    """Read what `ImageFile.keep_record` has kept in a file; empty if that is nothing.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    DataError
        If it is damaged.
    """
    return _read_attribute(path, _RECORD)


def _read_attribute(path: Path, name: str) -> str:
    with open_hdf5(path) as file, damage_of(path):
        return as_text(file.attrs.get(name, ""))


def read_header(path: Path, group: str = USUAL_GROUP) -> str:
    """Read the ISMRMRD header that a file of images keeps; empty where it keeps none, as those of the stock client.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    DataError
        If it is damaged, or has images in other groups only.
    """
    with open_hdf5(path) as file, damage_of(path):
        node = _group_of(file, group)
        return read_header_of(node) if "xml" in node else ""
