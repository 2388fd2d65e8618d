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
    USUAL_GROUP,
    append_rows,
    complex_of,
    damage_of,
    each_of,
    find_group,
    is_hdf5,
    numbers_of,
    open_hdf5,
    output_file,
    read_header_of,
    read_sound_rows,
    stored_rows,
    with_fields,
    write_header_of,
)
from gadgets.wire.header import parse_header
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Query,
    Readouts,
    Text,
    Waveform,
)
from gadgets.wire.reader import Reader
from recon_core.errors import CinestreamError, DataError, HeaderError, ProtocolError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

    from gadgets.wire.messages import Message


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
def open_scan(path: Path, group: str = USUAL_GROUP) -> Iterator[RawScan]:
    """Open a raw scan for reading: an ISMRMRD HDF5 file, or a stream of messages as ``--save-raw`` leaves it.

    Parameters
    ----------
    path
        The file; it is opened read-only and without HDF5's file lock, so several readers may share it.
    group
        HDF5 group of the measurement, as `gadgets.files.hdf5.find_group` takes it; ignored for a message stream.

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
            begin = file.read(len(_MATLAB))
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error
    if begin == _MATLAB:
        raise DataError(f"{path} is a MATLAB file, not ISMRMRD; {_OTHER_LAYOUT}")
    with _open_measurement(path, group) if is_hdf5(path) else _open_stream(path) as scan:
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
        yield RawScan(message.text, None, _stream_items(path, reader))


def _stream_items(path: Path, reader: Reader) -> Iterator[Message]:
    """The messages of the first scan; that others follow is an error behind its last one."""
    yield from each_of(path, reader)
    try:
        while isinstance(reader.read(), Close):
            pass
    except ProtocolError:
        return  # nothing, or nothing that a stream could hold
    raise DataError(f"{path} goes on behind the end of its scan: only the first scan is read; give one scan a file")


@contextmanager
def _open_measurement(path: Path, group: str) -> Iterator[RawScan]:
    with open_hdf5(path) as file:
        try:
            node = find_group(file, group, _is_measurement, "raw data")
        except DataError as error:
            with damage_of(path):
                hint = f"; {_OTHER_LAYOUT}" if "kspace" in file else ""
            raise DataError(f"{error}{hint}") from error
        with damage_of(path):
            if "xml" not in node or not node["xml"].size:
                raise HeaderError(f"group {node.name!r} of {path} has no ISMRMRD header (dataset 'xml')")
            header = read_header_of(node)
            readouts = _readout_blocks(node["data"], header)
            waveforms = _waveforms(node["waveforms"]) if "waveforms" in node else iter(())
            count = stored_rows(node["data"])
        yield RawScan(header, count, _items(path, readouts, waveforms))


def _is_measurement(node: h5py.Group) -> bool:
    import h5py

    data = node.get("data")
    return isinstance(data, h5py.Dataset) and {"head", "data"} <= set(data.dtype.names or ()) and data.ndim == 1


def _items(path: Path, readouts: Iterator[Readouts], waveforms: Iterator[Waveform]) -> Iterator[Message]:
    """Readouts and waveforms in order; damaged waveforms are reported when all readouts came."""
    errors: list[CinestreamError] = []

    def sound() -> Iterator[Waveform]:
        try:
            yield from each_of(path, waveforms)
        except CinestreamError as error:
            errors.append(error)

    yield from each_of(path, _merge(readouts, sound()))
    if errors:
        raise errors[0]


def _readout_blocks(dataset: h5py.Dataset, header: str) -> Iterator[Readouts]:
    """Read rows in blocks of some megabytes and hand out runs of equal shape."""
    begin, rows_per_block = 0, 1
    stored = stored_rows(dataset)
    while begin < stored:
        rows = read_sound_rows(dataset, begin, min(stored, begin + rows_per_block))
        begin += len(rows)
        headers = with_fields(rows["head"], ACQUISITION_HEADER)
        lengths = np.fromiter(map(len, rows["data"]), np.int64, len(rows))
        _fill_counts(headers, lengths // _parts(rows.dtype["data"]), header)
        paths = rows["traj"] if "traj" in (rows.dtype.names or ()) else np.empty((len(rows), 0))
        shapes = np.stack(
            [
                headers["active_channels"],
                headers["number_of_samples"],
                headers["trajectory_dimensions"],
                lengths,
                np.fromiter(map(len, paths), np.int64, len(rows)),
            ],
            axis=1,
        )
        edges = np.flatnonzero((shapes[1:] != shapes[:-1]).any(axis=1)) + 1
        for first, last in zip([0, *edges], [*edges, len(rows)], strict=True):
            data = numbers_of(rows["data"][first:last], rows.dtype["data"])
            trajectory = numbers_of(paths[first:last], paths.dtype)
            yield _readouts(headers[first:last], complex_of(data), trajectory)
        rows_per_block = max(1, int(BLOCK_BYTES // (ACQUISITION_HEADER.itemsize + 4 * max(1, lengths.mean()))))
    if stored < len(dataset):
        raise DataError(
            f"{dataset.file.filename} is damaged or was never finished: it announces {len(dataset)} readouts and holds "
            f"{stored}"
        )


def _parts(kind: np.dtype[Any]) -> int:
    """How many numbers make a sample: one that is complex, or its two parts."""
    base = dict(kind.metadata or {}).get("vlen", kind.base)
    return 1 if base.names or base.kind == "c" else 2


def _fill_counts(headers: NDArray[np.void], lengths: NDArray[np.intp], header: str) -> None:
    """Take coils and samples that some writers leave at 0 from the length of what is stored, and from each other.

    Parameters
    ----------
    headers
        ``(readout,)`` of acquisition headers; changed in place.
    lengths
        ``(readout,)`` complex numbers that are stored.
    header
        ISMRMRD header as XML, asked for the coils where the readouts have none.
    """
    coils, samples = headers["active_channels"].astype(np.intp), headers["number_of_samples"].astype(np.intp)
    unset = (coils * samples == 0) & (lengths > 0)
    if not unset.any():
        return
    try:
        said = parse_header(header).receiver_channels
    except CinestreamError:
        said = 0  # the reason is given by whoever needs the header
    coils = np.where(coils > 0, coils, np.where(samples > 0, lengths // np.maximum(samples, 1), 0))
    coils = np.where(coils > 0, coils, headers["available_channels"])
    coils = np.where(coils > 0, coils, said)
    fitting = lengths // np.maximum(coils, 1)
    found = unset & (coils * fitting == lengths) & (fitting <= np.iinfo(np.uint16).max)
    found &= (samples == 0) | (samples == fitting)
    headers["active_channels"][found] = coils[found]
    headers["number_of_samples"][found] = fitting[found]


def _readouts(headers: NDArray[np.void], data: NDArray[Any], trajectory: NDArray[Any]) -> Readouts:
    """One block of its numbers one after the other: complex ones, or real and imaginary parts in turn."""
    count = len(headers)
    coils, samples = int(headers["active_channels"][0]), int(headers["number_of_samples"][0])
    dimensions = int(headers["trajectory_dimensions"][0])
    parts = 1 if data.dtype.kind == "c" else 2
    if len(data) != count * parts * coils * samples:
        # What is stored is not what the header says: passed on as an empty readout, which the chain reports.
        return Readouts(headers, np.empty((count, coils, 0), np.complex64))
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which the chain reports
        values = data.astype(np.complex64 if parts == 1 else np.float32, copy=False).view(np.complex64)
    path = None
    if not dimensions and 0 < len(trajectory) in (2 * count * samples, 3 * count * samples):  # some leave it at 0
        dimensions = len(trajectory) // (count * samples)
    if dimensions and len(trajectory) == count * samples * dimensions:
        path = trajectory.astype(np.float32, copy=False).reshape(count, samples, dimensions)
    return Readouts(headers, values.reshape(count, coils, samples), path)


def _waveforms(dataset: h5py.Dataset) -> Iterator[Waveform]:
    begin, stored = 0, stored_rows(dataset)
    while begin < stored:
        rows = read_sound_rows(dataset, begin, min(stored, begin + _WAVEFORM_BLOCK))
        begin += len(rows)
        headers = with_fields(rows["head"], WAVEFORM_HEADER)
        for i, header in enumerate(headers):
            data = numbers_of(rows["data"][i : i + 1], rows.dtype["data"])
            channels, samples = int(header["channels"]), int(header["number_of_samples"])
            if len(data) == channels * samples:
                yield Waveform(header, data.astype(np.uint32, copy=False).reshape(channels, samples))
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
        node = file.require_group(group)
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
    rows["head"]["trajectory_dimensions"] = 0 if readouts.trajectory is None else readouts.trajectory.shape[2]
    data = np.ascontiguousarray(readouts.data).view(np.float32)
    for i in range(len(readouts)):
        rows["data"][i] = data[i].reshape(-1)
        rows["traj"][i] = np.empty(0, np.float32) if readouts.trajectory is None else readouts.trajectory[i].reshape(-1)
    return rows
