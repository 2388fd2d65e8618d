"""Buffers and buckets of a Gadgetron's own gadgets, taken apart into readouts again.

Where a Gadgetron sorts k-space itself (AcquisitionAccumulateTrigger, BucketToBuffer) it arrives as `ReconData`. What
the axes N, S and LOC are, its pipeline says, and an index on them is not always the counter that it stands for. But
every measured line brings its acquisition header along. So every line becomes a readout again, and from here on a
scan is the same as one that came as readouts: the same checks, frames, slices, completeness and messages.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gadgets.preparation.readouts import ReadoutGrid
from gadgets.problems import Kind
from gadgets.wire.messages import AcquisitionFlag, Readouts, join_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.wire.containers import Bucket, BufferedData, ReconData
    from gadgets.wire.header import ScanHeader

_AXES = "(RO, E1, E2, CHA, N, S, LOC)"
_MOST = 65535  # samples and coils that a header can count
_LAST = AcquisitionFlag.LAST_IN_MEASUREMENT.bit
_REMEDY = "Take the pipeline that is named after the method alone: it works from readouts and needs no gadgets in front"


def readouts_of_buffers(data: ReconData, header: ScanHeader, problems: Problems) -> Iterator[Readouts]:
    """Take the buffers of a `ReconData` apart.

    Parameters
    ----------
    data
        As a Gadgetron's BucketToBuffer gadget, or one behind it, sent it.
    header
        The scan's header.
    problems
        Where to note what is left out.

    Yields
    ------
    Readouts
        Every measured line ``(readout, coil, sample)`` with its own header, in the order of acquisition, its k-space
        centre at sample ``n // 2``. Lines of the reference buffer are among them, but for those that serve as image
        lines too, which the data buffer holds as well.
    """
    for buffered, reference in data.bits:
        parts: list[Readouts | None] = []
        if buffered.data.size:
            lines = _image_lines(buffered, header, problems)
            if lines is None:  # its reference lines would make images by themselves
                continue
            parts.append(lines)
        if reference is not None and reference.data.size:
            parts.append(_reference_lines(reference, problems))
        if not parts:
            problems.add(Kind.EMPTY_BUFFER, "a buffer without data came; it is passed over", damage=False)
        yield from _in_order([part for part in parts if part is not None and len(part)])


def readouts_of_bucket(bucket: Bucket) -> Iterator[Readouts]:
    """Hand out the readouts of a bucket in the order of acquisition, each of them once, in runs of equal shape."""
    reference = (part[part.flagged(AcquisitionFlag.PARALLEL_CALIBRATION)] for part in bucket.reference)
    return _in_order([*bucket.data, *(part for part in reference if len(part))])


def _in_order(parts: list[Readouts]) -> Iterator[Readouts]:
    """Join readouts in the order of their scan counters, in runs of equal shape."""
    by_shape: dict[tuple[int, ...], list[Readouts]] = {}
    for part in parts:
        by_shape.setdefault(part.data.shape[1:], []).append(part)
    joined = [
        Readouts(join_headers(one.headers for one in same), np.concatenate([one.data for one in same]))
        for same in by_shape.values()
    ]
    counters = np.concatenate([one.headers["scan_counter"] for one in joined]) if joined else np.empty(0, np.uint32)
    shape = np.repeat(np.arange(len(joined)), [len(one) for one in joined])
    place = np.concatenate([np.arange(len(one)) for one in joined]) if joined else shape
    order = np.argsort(counters, kind="stable")
    edges = np.flatnonzero(np.diff(shape[order])) + 1
    for begin, end in itertools.pairwise([0, *edges.tolist(), len(order)]):
        if end > begin:
            run = order[begin:end]
            yield joined[shape[run[0]]][place[run]]


def _image_lines(buffered: BufferedData, header: ScanHeader, problems: Problems) -> Readouts | None:
    """The lines of a buffer; none of one that is empty, None of one that cannot be used."""
    data, headers = _with_axes(buffered.data, 7), _with_axes(buffered.headers, 5)
    why = _why_not(data, headers)
    if why:
        problems.add(Kind.BUFFER, f"{why}; its data are left out", damage=True)
        return None
    lines = _lines(data, headers, problems)
    if not len(lines):
        if not _measured(headers).any():
            problems.add(Kind.EMPTY_BUFFER, "a buffer without a measured line came; it is passed over", damage=False)
        return lines
    without_header = data[data.shape[0] // 2].any(axis=2) & ~_measured(headers)
    if without_header.any():
        text = f"{np.count_nonzero(without_header)} lines of a buffer hold data but no header; they are not used, "
        problems.add(
            Kind.LINES_WITHOUT_HEADER, f"{text}because nothing says when and where they were measured", damage=False
        )
    space = int(lines.headers["encoding_space_ref"][0])
    if space < len(header.encodings):
        encoding = header.encodings[space]
        columns, rows = data.shape[0], encoding.encoded.matrix[1]
        grid = ReadoutGrid.of(encoding, columns, columns // 2)
        if columns != grid.encoded:
            text = (
                f"a buffer has {columns} columns, expected {grid.kept} without readout oversampling or {grid.encoded} "
            )
            text += "with it: an asymmetric echo needs AsymmetricEchoAdjustRO in front, and <parallelImaging> in the "
            problems.add(Kind.BUFFER_COLUMNS, f"{text}header; it is left out. {_REMEDY}", damage=True, count=len(lines))
            return None
        if data.shape[1] < rows:
            text = f"a buffer has room for {data.shape[1]} of the {rows} lines of the encoded matrix: without "
            text += "<parallelImaging> in the header a Gadgetron drops the lines that do not fit in"
            problems.add(Kind.BUFFER_ROWS, f"{text}. {_REMEDY}", damage=False)
    reverse = lines.flagged(AcquisitionFlag.REVERSE)
    if reverse.any():
        text = (
            f"readout {lines.headers['scan_counter'][np.argmax(reverse)]} was measured from its other end, which the "
        )
        text += f"gadgets in front do not turn round; it is left out. {_REMEDY}"
        problems.add(Kind.REVERSED_LINE, text, damage=True, count=int(np.count_nonzero(reverse)))
        problems.left_out.add(lines.headers[reverse])
    return lines[~reverse]


def _reference_lines(buffered: BufferedData, problems: Problems) -> Readouts | None:
    data, headers = _with_axes(buffered.data, 7), _with_axes(buffered.headers, 5)
    why = _why_not(data, headers)
    if why:
        text = f"the reference buffer is not used, because {why}; a gadget in front may have averaged or cut it "
        problems.add(Kind.REFERENCE_BUFFER, f"{text}(GenericReconCartesianReferencePrep is not needed)", damage=False)
        return None
    lines = _lines(data, headers, problems)
    return lines[lines.flagged(AcquisitionFlag.PARALLEL_CALIBRATION)]


def _with_axes(array: NDArray[Any], axes: int) -> NDArray[Any]:
    """Append axes of length one that a sender may have left out."""
    return array.reshape(*array.shape, *[1] * (axes - array.ndim), order="F")


def _why_not(data: NDArray[Any], headers: NDArray[np.void]) -> str:
    """Say why data and headers cannot be taken apart; empty if they can."""
    if data.ndim != 7 or headers.shape != data.shape[1:3] + data.shape[4:]:
        wanted = f"{data.shape[1:3] + data.shape[4:]} (E1, E2, N, S, LOC)" if data.ndim == 7 else f"7 axes {_AXES}"
        return f"a buffer of {data.shape} {_AXES} has headers of {headers.shape}, expected {wanted}"
    if max(data.shape[0], data.shape[3]) > _MOST:
        return f"a buffer of {data.shape} {_AXES} is larger than any readout; at most {_MOST} samples and coils are"
    if data.shape[2] > 1:
        return f"a buffer of {data.shape} {_AXES} has {data.shape[2]} partitions; only 2-D slices can be reconstructed"
    return ""


def _measured(headers: NDArray[np.void]) -> NDArray[np.bool_]:
    """Tell lines that were measured from those that never were: the headers of these are all zero."""
    return np.asarray((headers["number_of_samples"] != 0) | (headers["scan_counter"] != 0))


def _fit(headers: NDArray[np.void], coils: int, problems: Problems) -> NDArray[np.bool_]:
    """Which lines ``(line,)`` are like most of their buffer.

    Of a readout with fewer coils or samples BucketToBuffer fills a part only, and leaves in the rest what was in the
    memory before. A gadget in front that compresses coils leaves all headers with more of them.
    """
    fits = np.ones(len(headers), np.bool_)
    for kind, name, what in (
        (Kind.COILS, "active_channels", "coils"),
        (Kind.SAMPLES, "number_of_samples", "samples"),
    ):
        values, counts = np.unique(headers[name], return_counts=True)
        usual = int(values[np.argmax(counts)]) if len(values) else 0
        if kind is Kind.COILS:
            usual = max(usual, coils)
        other = headers[name] != usual
        if other.any():
            first = headers[np.argmax(other)]
            text = f"readout {first['scan_counter']} has {first[name]} {what}, expected {usual} as most of its buffer; "
            text += "the gadgets in front leave the rest of its line undefined, so that it is left out"
            problems.add(kind, text, damage=True, count=int(np.count_nonzero(other)))
        fits &= ~other
    return fits


def _lines(data: NDArray[np.complex64], headers: NDArray[np.void], problems: Problems) -> Readouts:
    """Take the measured lines out of ``[RO, E1, E2, CHA, N, S, LOC]``, their headers made to fit what they are now."""
    places = np.argwhere(_measured(headers))
    fits = _fit(headers[tuple(places.T)], data.shape[3], problems)
    problems.left_out.add(headers[tuple(places[~fits].T)])
    places = places[fits]
    e1, e2, n, s, loc = places.T
    own = headers[e1, e2, n, s, loc]
    values = np.ascontiguousarray(data[:, e1, e2, :, n, s, loc].swapaxes(1, 2))  # (readout, coil, sample)
    columns = data.shape[0]
    samples, center, pre, post = (
        own[name].astype(np.int64) for name in ("number_of_samples", "center_sample", "discard_pre", "discard_post")
    )
    # where BucketToBuffer puts the samples pre to samples - post
    in_place = (samples == columns) & ((center == columns // 2) | (center >= samples))
    begin = np.where(in_place, pre, columns // 2 - center)
    end = (begin + samples - pre - post).clip(0, columns)
    begin = begin.clip(0, columns)
    senseless = end <= begin
    own["discard_pre"] = np.where(senseless, 0, begin)
    own["discard_post"] = np.where(senseless, 0, columns - end)
    own["number_of_samples"], own["center_sample"] = columns, columns // 2
    own["active_channels"] = data.shape[3]
    own["flags"] &= ~_LAST  # a further buffer may hold what was measured before it
    own["trajectory_dimensions"] = 0
    return Readouts(own, values)
