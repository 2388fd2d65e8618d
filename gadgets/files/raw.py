"""Raw scans on disk: ISMRMRD HDF5 in blocks, and raw message streams as the wire carries them.

HDF5 is read and written many rows at a time; one row at a time costs some 30 times more CPU. Both kinds of raw file are
opened by `open_scan` and look alike from there on.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.files.hdf5 import (
    BLOCK_BYTES,
    append_rows,
    output_file,
    read_header_of,
    read_rows,
    with_fields,
    write_header_of,
)
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    WAVEFORM_HEADER,
    ConfigFile,
    ConfigText,
    Header,
    Query,
    Readouts,
    Text,
    Waveform,
)
from gadgets.wire.reader import Reader
from recon_core.errors import DataError, HeaderError, ProtocolError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

    from gadgets.wire.messages import Message


_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MATLAB = b"MATLAB "
_OTHER_LAYOUT = "cinestream convert makes a raw file of the layouts of CMRxRecon and fastMRI"
_WAVEFORM_BLOCK = 256


@dataclass(frozen=True)
class RawScan:
    """A raw file that is open for reading."""

    header: str
    """The ISMRMRD header as XML text."""
    readouts: int | None
    """How many readouts the file holds; None where it is known only after reading it through."""
    items: Iterator[Message]
    """Readouts in the order of acquisition with the waveforms between them; can be walked through once."""


@contextmanager
def open_scan(path: Path, group: str = "dataset") -> Iterator[RawScan]:
    """Open a raw scan for reading: an ISMRMRD HDF5 file, or a stream of messages as ``--save-raw`` leaves it.

    Parameters
    ----------
    path
        The file; it is opened read-only and without HDF5's file lock, so several readers may share it.
    group
        HDF5 group of the measurement; ignored for a message stream.

    Raises
    ------
    ResourceError
        If the file cannot be opened.
    HeaderError
        If it holds no ISMRMRD header.
    DataError
        If the group does not exist (the message lists those that do), or the file has another layout.
    """
    try:
        with path.open("rb") as file:
            signature = file.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error
    if signature.startswith(_MATLAB):
        raise DataError(f"{path} is a MATLAB file, not ISMRMRD; {_OTHER_LAYOUT}")
    with _open_hdf5(path, group) if signature == _HDF5_SIGNATURE else _open_stream(path) as scan:
        yield scan


@contextmanager
def _open_stream(path: Path) -> Iterator[RawScan]:
    with path.open("rb", buffering=0) as file:
        reader = Reader(file.readinto)
        refusal = f"{path} is neither an HDF5 file nor a stream of ISMRMRD messages that begins with a scan header"
        try:
            message = reader.read()
            while isinstance(message, ConfigFile | ConfigText | Text | Query):  # these may precede it
                message = reader.read()
        except ProtocolError as error:
            raise HeaderError(f"{refusal}: {error}") from error
        if not isinstance(message, Header):
            raise HeaderError(f"{refusal}: got {type(message).__name__} first")
        yield RawScan(message.text, None, iter(reader))


@contextmanager
def _open_hdf5(path: Path, group: str) -> Iterator[RawScan]:
    import h5py

    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ResourceError(f"cannot read {path} as HDF5: {error}") from error
    with file:
        node = file.get(group)
        if not _is_measurement(node):
            found = sorted(name for name, item in file.items() if _is_measurement(item))
            hint = f"; {_OTHER_LAYOUT}" if "kspace" in file else ""
            others = ", ".join(found) or "none"
            raise DataError(f"{path} has no measurement in group {group!r}; groups with raw data: {others}{hint}")
        if "xml" not in node or not node["xml"].size:
            raise HeaderError(f"group {group!r} of {path} has no ISMRMRD header (dataset 'xml')")
        header = read_header_of(node)
        readouts = _readout_blocks(node["data"])
        waveforms = _waveforms(node["waveforms"]) if "waveforms" in node else iter(())
        yield RawScan(header, len(node["data"]), _merge(readouts, waveforms))


def _is_measurement(item: Any) -> bool:  # noqa: ANN401 - whatever an HDF5 file holds under a name
    import h5py

    data = item.get("data") if isinstance(item, h5py.Group) else None
    return isinstance(data, h5py.Dataset) and {"head", "traj", "data"} <= set(data.dtype.names or ())


def _readout_blocks(dataset: h5py.Dataset) -> Iterator[Readouts]:
    """Read rows in blocks of some megabytes and hand out runs of equal shape."""
    begin, rows_per_block = 0, 1
    while begin < len(dataset):
        rows = read_rows(dataset, slice(begin, begin + rows_per_block))
        begin += len(rows)
        headers = with_fields(rows["head"], ACQUISITION_HEADER)
        lengths = np.fromiter(map(len, rows["data"]), np.int64, len(rows))
        shapes = np.stack(
            [
                headers["active_channels"],
                headers["number_of_samples"],
                headers["trajectory_dimensions"],
                lengths,
                np.fromiter(map(len, rows["traj"]), np.int64, len(rows)),
            ],
            axis=1,
        )
        edges = np.flatnonzero((shapes[1:] != shapes[:-1]).any(axis=1)) + 1
        for first, last in zip([0, *edges], [*edges, len(rows)], strict=True):
            yield _readouts(headers[first:last], rows["data"][first:last], rows["traj"][first:last])
        rows_per_block = max(1, int(BLOCK_BYTES // (ACQUISITION_HEADER.itemsize + 4 * max(1, lengths.mean()))))


def _readouts(headers: NDArray[np.void], data: NDArray[Any], trajectory: NDArray[Any]) -> Readouts:
    count = len(headers)
    coils, samples = int(headers["active_channels"][0]), int(headers["number_of_samples"][0])
    dimensions = int(headers["trajectory_dimensions"][0])
    if len(data[0]) != 2 * coils * samples:
        # What is stored is not what the header says: passed on as an empty readout, which the chain reports.
        return Readouts(headers, np.empty((count, coils, 0), np.complex64))
    values = np.concatenate(list(data)).view(np.complex64).reshape(count, coils, samples)
    path = None
    if dimensions and len(trajectory[0]) == samples * dimensions:
        path = np.concatenate(list(trajectory)).reshape(count, samples, dimensions)
    return Readouts(headers, values, path)


def _waveforms(dataset: h5py.Dataset) -> Iterator[Waveform]:
    for begin in range(0, len(dataset), _WAVEFORM_BLOCK):
        rows = read_rows(dataset, slice(begin, begin + _WAVEFORM_BLOCK))
        headers = with_fields(rows["head"], WAVEFORM_HEADER)
        for header, data in zip(headers, rows["data"], strict=True):
            channels, samples = int(header["channels"]), int(header["number_of_samples"])
            if len(data) == channels * samples:
                yield Waveform(header, np.asarray(data, np.uint32).reshape(channels, samples))
            else:  # damaged: passed on as an empty one, like such a readout
                yield Waveform(header, np.empty((channels, 0), np.uint32))


def _merge(readouts: Iterator[Readouts], waveforms: Iterator[Waveform]) -> Iterator[Message]:
    """Put each waveform before the first readout that is later than its start, as the stock client sends them."""
    waiting = next(waveforms, None)
    for block in readouts:
        begin = 0
        while waiting is not None:
            later = block.headers["acquisition_time_stamp"][begin:] > waiting.header["time_stamp"]
            if not later.any():
                break
            split = begin + int(np.argmax(later))
            if split > begin:
                yield block[begin:split]
            yield waiting
            begin, waiting = split, next(waveforms, None)
        yield block[begin:] if begin else block
    while waiting is not None:
        yield waiting
        waiting = next(waveforms, None)


def write_scan(path: Path, header: str, items: Iterable[Message], group: str = "dataset") -> int:
    """Write a raw scan as ISMRMRD HDF5, as the stock tools read it.

    Parameters
    ----------
    path
        The file to make; an existing one is replaced.
    header
        ISMRMRD header as XML.
    items
        `Readouts` and `Waveform` messages; anything else is left out.
    group
        HDF5 group of the measurement.

    Returns
    -------
    int
        How many readouts were written.

    Raises
    ------
    ResourceError
        If the file cannot be written, for instance because the disk is full.
    """
    import h5py

    values = h5py.vlen_dtype(np.dtype("<f4"))
    acquisition = np.dtype([("head", ACQUISITION_HEADER), ("traj", values), ("data", values)])
    waveform = np.dtype([("head", WAVEFORM_HEADER), ("data", h5py.vlen_dtype(np.dtype("<u4")))])
    count = 0
    with output_file(path) as disk, h5py.File(disk, "w") as file:
        node = file.create_group(group)
        write_header_of(node, header)
        rows = node.create_dataset("data", (0,), acquisition, maxshape=(None,), chunks=(64,))
        waves = None
        for item in items:
            if isinstance(item, Readouts):
                append_rows(rows, _acquisition_rows(item, acquisition))
                count += len(item)
            elif isinstance(item, Waveform):
                if waves is None:
                    waves = node.create_dataset("waveforms", (0,), waveform, maxshape=(None,), chunks=(64,))
                row = np.empty(1, waveform)
                row["head"] = item.header
                row["data"][0] = item.data.reshape(-1)
                append_rows(waves, row)
            disk.check()
    return count


def _acquisition_rows(readouts: Readouts, dtype: np.dtype[Any]) -> NDArray[np.void]:
    rows = np.empty(len(readouts), dtype)
    rows["head"] = readouts.headers
    data = np.ascontiguousarray(readouts.data).view(np.float32)
    for i in range(len(readouts)):
        rows["data"][i] = data[i].reshape(-1)
        rows["traj"][i] = np.empty(0, np.float32) if readouts.trajectory is None else readouts.trajectory[i].reshape(-1)
    return rows
