"""Files of images, laid out as the stock Gadgetron client writes them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.files.hdf5 import BLOCK_BYTES, append_rows, output_file, read_header_of, with_fields, write_header_of
from gadgets.wire.messages import IMAGE_HEADER, Image
from recon_core.errors import DataError, ResourceError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_INCOMPLETE = "incomplete"  # attribute of the file: why images are missing


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

    def __init__(self, path: Path, group: str = "dataset", *, header: str = "", overwrite: bool = False) -> None:
        import h5py

        self._group = group
        self._waiting: dict[int, list[Image]] = {}
        self._kinds: dict[int, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        if path.exists() and not overwrite:
            raise SettingsError(f"{path} exists; choose another output or allow replacing it with --overwrite")
        with ExitStack() as stack:
            self._disk = stack.enter_context(output_file(path))
            self._file = stack.enter_context(h5py.File(self._disk, "w"))
            if header:
                write_header_of(self._file.create_group(group), header)
            self._stack = stack.pop_all()

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
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


def read_images(path: Path, group: str = "dataset") -> dict[int, list[Image]]:
    """Read every image of a file that the stock client or `ImageFile` wrote.

    Returns
    -------
    dict
        The images in stored order, by series index.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    """
    import h5py

    series: dict[int, list[Image]] = {}
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, node in file.get(group, {}).items():
                if not name.startswith("image_"):
                    continue
                data = node["data"][:]
                if data.dtype.names:
                    part = data.dtype["real"]
                    data = data.view(np.dtype(f"<c{2 * part.itemsize}"))
                headers = with_fields(node["header"][:], IMAGE_HEADER)
                texts = node["attributes"].asstr()[:]
                series[int(name.removeprefix("image_"))] = [
                    Image(header, values, str(text)) for header, values, text in zip(headers, data, texts, strict=True)
                ]
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error}") from error
    return series


def read_incomplete(path: Path) -> str:
    """Read why images are missing in a file; empty if none are, or if nothing is said of it.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs.get(_INCOMPLETE, ""))
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error}") from error


def read_header(path: Path, group: str = "dataset") -> str:
    """Read the ISMRMRD header that a file of images keeps; empty where it keeps none, as those of the stock client.

    Raises
    ------
    ResourceError
        If the file cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            node = file.get(group)
            return read_header_of(node) if isinstance(node, h5py.Group) and "xml" in node else ""
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error}") from error
