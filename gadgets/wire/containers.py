"""Messages that hold many things at once, both directions together: buffers, image arrays, buckets, and waveforms.

A waveform is a message of its own and also an item of image arrays and buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.wire.framing import BUCKET_SIZES, STATS_SETS, U2, U8, MessageId
from gadgets.wire.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    SAMPLING_DESCRIPTION,
    WAVEFORM_HEADER,
    Message,
    Readouts,
    Waveform,
)
from gadgets.wire.parts import array_parts, bytes_of, optional_array_parts, text_parts, zero_padded
from recon_core.errors import ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.wire.parts import Buffer
    from gadgets.wire.source import Source

_COMPLEX64 = np.dtype("<c8")
_FLOAT32 = np.dtype("<f4")
_MOST_SPACES, _MOST_VALUES = 1 << 10, 1 << 16  # encodings, and values of a counter of 16 bits

# --- waveform (1026) --------------------------------------------------------------------------------------------------


def read_waveform(source: Source) -> Waveform:
    """Read the body of a `Waveform`."""
    header = source.take(WAVEFORM_HEADER.itemsize).view(WAVEFORM_HEADER)[0]
    channels, samples = int(header["channels"]), int(header["number_of_samples"])
    source.check(4 * channels * samples, source.limits.message_bytes, "bytes for one waveform")
    data = source.take(4 * channels * samples).copy().view(np.uint32).reshape(channels, samples)
    return Waveform(header.copy(), data)


def waveform_parts(waveform: Waveform) -> list[Buffer]:
    """Write the body of a `Waveform`: its header, and its values."""
    data = np.ascontiguousarray(waveform.data, "<u4")
    header = zero_padded(waveform.header, WAVEFORM_HEADER)
    header["channels"], header["number_of_samples"] = data.shape
    return [header.tobytes(), data]


# --- buffered k-space (1023) ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BufferedData:
    """One buffer of `ReconData`.

    ``data`` ``[E0, E1, E2, CHA, N, S, LOC]`` complex64, ``trajectory`` ``[TRAJ, E0, E1, E2, N, S, LOC]`` and
    ``density`` ``[E0, E1, E2, N, S, LOC]`` float32 or None, ``headers`` ``[E1, E2, N, S, LOC]`` of
    `ACQUISITION_HEADER` (all zero where a line was never measured), ``sampling`` one `SAMPLING_DESCRIPTION`. Arrays
    are in Fortran order, as sent.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    sampling: NDArray[np.void]
    trajectory: NDArray[np.float32] | None = None
    density: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ReconData(Message):
    """Buffered k-space (id 1023): a (data, reference or None) pair for every encoding space."""

    bits: tuple[tuple[BufferedData, BufferedData | None], ...]


def read_recon_data(source: Source) -> ReconData:
    """Read the body of a `ReconData`."""
    count = source.count("encoding spaces")
    return ReconData(
        tuple((_read_buffered(source), _read_buffered(source) if source.flag() else None) for _ in range(count))
    )


def recon_data_parts(recon: ReconData) -> list[Buffer]:
    """Write a `ReconData`, with its id."""
    parts: list[Buffer] = [U2.pack(MessageId.RECON_DATA) + U8.pack(len(recon.bits))]
    for data, reference in recon.bits:
        parts += _buffered_parts(data)
        parts += [b"\0"] if reference is None else [b"\1", *_buffered_parts(reference)]
    return parts


def _read_buffered(source: Source) -> BufferedData:
    data = source.array(_COMPLEX64)
    trajectory = source.array(_FLOAT32) if source.flag() else None
    density = source.array(_FLOAT32) if source.flag() else None
    headers = source.array(ACQUISITION_HEADER)
    sampling = source.take(SAMPLING_DESCRIPTION.itemsize).view(SAMPLING_DESCRIPTION)[0].copy()
    return BufferedData(data, headers, sampling, trajectory, density)


def _buffered_parts(buffered: BufferedData) -> list[Buffer]:
    return [
        *array_parts(buffered.data, _COMPLEX64),
        *optional_array_parts(buffered.trajectory, _FLOAT32),
        *optional_array_parts(buffered.density, _FLOAT32),
        *array_parts(buffered.headers, ACQUISITION_HEADER),
        zero_padded(buffered.sampling, SAMPLING_DESCRIPTION).tobytes(),
    ]


# --- image array (1024) -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageArray(Message):
    """Complex images together (id 1024).

    ``data`` ``[X, Y, Z, CHA, N, S, LOC]`` complex64, ``headers`` ``[N, S, LOC]`` of `IMAGE_HEADER`, ``attributes`` one
    XML text per image (index ``n + s*N + loc*N*S``) or none, ``waveforms`` and ``acquisitions`` ``[Y, Z, N, S, LOC]``
    or None. Arrays are in Fortran order, as sent.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    attributes: tuple[str, ...] = ()
    waveforms: tuple[Waveform, ...] | None = None
    acquisitions: NDArray[np.void] | None = None


def read_image_array(source: Source) -> ImageArray:
    """Read the body of an `ImageArray`."""
    data = source.array(_COMPLEX64)
    headers = source.array(IMAGE_HEADER)
    attributes = tuple(source.text(U8) for _ in range(source.count("meta texts")))
    waveforms = tuple(read_waveform(source) for _ in range(source.count("waveforms"))) if source.flag() else None
    acquisitions = source.array(ACQUISITION_HEADER) if source.flag() else None
    return ImageArray(data, headers, attributes, waveforms, acquisitions)


def image_array_parts(images: ImageArray) -> list[Buffer]:
    """Write an `ImageArray`, with its id."""
    parts: list[Buffer] = [U2.pack(MessageId.IMAGE_ARRAY)]
    parts += array_parts(images.data, _COMPLEX64)
    parts += array_parts(images.headers, IMAGE_HEADER)
    parts.append(U8.pack(len(images.attributes)))
    for text in images.attributes:
        parts += text_parts(text)
    if images.waveforms is None:
        parts.append(b"\0")
    else:
        parts.append(b"\1" + U8.pack(len(images.waveforms)))
        for waveform in images.waveforms:
            parts += waveform_parts(waveform)
    parts += optional_array_parts(images.acquisitions, ACQUISITION_HEADER)
    return parts


# --- bucket (1050) ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket(Message):
    """Readouts that were gathered by a trigger (id 1050).

    ``data_stats`` and ``reference_stats`` hold, per encoding space, the sets of counter values seen, in the order E1,
    E2, slice, phase, contrast, repetition, set, segment, average.
    """

    data: tuple[Readouts, ...]
    reference: tuple[Readouts, ...]
    data_stats: tuple[tuple[tuple[int, ...], ...], ...]
    reference_stats: tuple[tuple[tuple[int, ...], ...], ...]
    waveforms: tuple[Waveform, ...]


def read_bucket(source: Source) -> Bucket:
    """Read the body of a `Bucket`."""
    sizes = BUCKET_SIZES.unpack(source.take(BUCKET_SIZES.size).data)
    for claimed in sizes:
        source.check(claimed, source.limits.container_bytes, "bytes in a bucket")
    data = _read_bucket_readouts(source, *sizes[0:4])
    data_stats = _read_bucket_stats(source)
    reference = _read_bucket_readouts(source, *sizes[4:8])
    reference_stats = _read_bucket_stats(source)
    return Bucket(data, reference, data_stats, reference_stats, _read_bucket_waveforms(source, *sizes[10:13]))


def bucket_parts(bucket: Bucket) -> list[Buffer]:
    """Write a `Bucket`, with its id."""
    sizes: list[int] = []
    parts: list[Buffer] = []
    stats_sizes: list[int] = []
    for readouts, stats in ((bucket.data, bucket.data_stats), (bucket.reference, bucket.reference_stats)):
        headers = b"".join(part.headers.tobytes() for part in readouts)
        trajectories = b"".join(part.trajectory.tobytes() for part in readouts if part.trajectory is not None)
        data = b"".join(part.data.tobytes() for part in readouts)
        stats_bytes = U8.pack(len(stats)) + b"".join(
            U8.pack(len(values)) + np.array(values, "<u2").tobytes() for space in stats for values in space
        )
        sizes += [sum(len(part) for part in readouts), len(headers), len(data), len(trajectories)]
        stats_sizes.append(len(stats_bytes))
        parts += [headers, trajectories, data, stats_bytes]
    waveforms = [waveform_parts(waveform) for waveform in bucket.waveforms]
    waveform_headers = b"".join(bytes_of(head) for head, _ in waveforms)
    waveform_data = b"".join(bytes_of(data) for _, data in waveforms)
    sizes += [*stats_sizes, len(waveforms), len(waveform_headers), len(waveform_data)]
    return [U2.pack(MessageId.BUCKET) + BUCKET_SIZES.pack(*sizes), *parts, waveform_headers, waveform_data]


def _read_bucket_readouts(
    source: Source, count: int, header_bytes: int, data_bytes: int, trajectory_bytes: int
) -> tuple[Readouts, ...]:
    headers = _read_bucket_headers(source, count, header_bytes, ACQUISITION_HEADER)
    trajectories, data = source.take(trajectory_bytes).copy(), source.take(data_bytes).copy()
    readouts, t, d = [], 0, 0
    for i in range(count):
        samples, coils = int(headers["number_of_samples"][i]), int(headers["active_channels"][i])
        dimensions = int(headers["trajectory_dimensions"][i])
        t_end, d_end = t + 4 * samples * dimensions, d + 8 * samples * coils
        if t_end > trajectory_bytes or d_end > data_bytes:
            raise ProtocolError(f"readout {i} of a bucket needs more bytes than the bucket says it holds")
        readouts.append(
            Readouts(
                headers[i : i + 1],
                data[d:d_end].view(np.complex64).reshape(1, coils, samples),
                trajectories[t:t_end].view(np.float32).reshape(1, samples, dimensions) if dimensions else None,
            )
        )
        t, d = t_end, d_end
    return tuple(readouts)


def _read_bucket_headers(source: Source, count: int, header_bytes: int, dtype: np.dtype[Any]) -> NDArray[np.void]:
    if header_bytes != count * dtype.itemsize:
        raise ProtocolError(
            f"a bucket of {count} items must hold {count * dtype.itemsize} header bytes, it claims {header_bytes}"
        )
    return source.take(header_bytes).copy().view(dtype)


def _read_bucket_stats(source: Source) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(
            tuple(int(n) for n in source.take(2 * source.count("counter values", _MOST_VALUES)).copy().view("<u2"))
            for _ in range(STATS_SETS)
        )
        for _ in range(source.count("encoding spaces", _MOST_SPACES))
    )


def _read_bucket_waveforms(source: Source, count: int, header_bytes: int, data_bytes: int) -> tuple[Waveform, ...]:
    headers = _read_bucket_headers(source, count, header_bytes, WAVEFORM_HEADER)
    data = source.take(data_bytes).copy()
    waveforms, begin = [], 0
    for header in headers:
        channels, samples = int(header["channels"]), int(header["number_of_samples"])
        end = begin + 4 * channels * samples
        if end > data_bytes:
            raise ProtocolError("a waveform of a bucket needs more bytes than the bucket says it holds")
        waveforms.append(Waveform(header, data[begin:end].view(np.uint32).reshape(channels, samples)))
        begin = end
    return tuple(waveforms)
