"""K-space files of other layouts as ISMRMRD scans, slice by slice.

What such a file lacks is assumed, and every assumption is reported: field of view, slice thickness, heart rate.
Lines that hold nothing but zeros were not measured and are not written.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from ismrmrd import xsd

from gadgets.files.other_formats import open_foreign, read_info, read_mask
from gadgets.files.progress import with_progress
from gadgets.files.raw import write_scan
from gadgets.wire.header import parse_header
from gadgets.wire.messages import ACQUISITION_HEADER, AcquisitionFlag, Readouts
from gadgets.wire.vendor import tick_length
from recon_core.errors import DataError, SettingsError
from recon_core.points.find import find_points
from recon_core.storage import refuse_same_file
from recon_core.trust.ranges import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gadgets.files.other_formats import ForeignScan

_PIXEL = 1.5  # mm, where nothing says how large one is
_THICKNESS = 8.0  # mm, usual in cine
_NEAR_LINES, _NEAR_SHARE = 2, 0.02  # of the middle: a centre found there is that
_LEAST_ACS = 4  # lines around the centre that count as a reference
_UNKNOWN_FREQUENCY = 63_500_000  # Hz; the schema wants one


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a file may leave open."""

    field_of_view: tuple[float, float] | None = None
    """Of the image in mm along x (readout) and y; None takes it from the file or the one next to it."""
    slice_thickness: float | None = None
    """In mm; None as `field_of_view`."""
    rr: float = 1000.0
    """Length in ms of the cardiac cycle that the frames of a slice show."""
    oversampling: float | None = None
    """Samples of a readout over the columns of its image; None as `field_of_view`, else what the layout usually has."""
    mask: Path | None = None
    """File with the lines that were measured; None takes all that are not zero."""


@dataclass
class Conversion:
    """What was converted."""

    readouts: int = 0
    """How many were written."""
    notes: list[str] = field(default_factory=list)
    """What was found and what was assumed."""


def convert(
    source: Path, output: Path, options: ConvertOptions | None = None, *, overwrite: bool = False
) -> Conversion:
    """Write a k-space file as ISMRMRD HDF5.

    Parameters
    ----------
    source
        CMRxRecon ``.mat``, HDF5 as fastMRI or PromptMR have it, or an array ``([slice,] frame, coil, ky, kx)`` of
        NumPy, HDF5 or BART.
    output
        The file to make, group ``dataset``.
    options
        What the file leaves open.
    overwrite
        Replace an existing output.

    Raises
    ------
    CinestreamError
        If the file cannot be read or its layout is not known, or the output cannot be written.
    """
    refuse_same_file(source, output)
    if output.exists() and not overwrite:
        raise SettingsError(f"{output} exists; choose another output or allow replacing it with --overwrite")
    options = options or ConvertOptions()
    with open_foreign(source) as scan:
        slices = scan.slices()
        mask = None
        if options.mask is not None:
            mask = read_mask(options.mask, scan.shape[1], *scan.shape[3:])
        slices = (_masked(kspace, mask) for kspace in slices)
        first = next(slices)
        measured = _measured(first)
        grid = _Grid.of(first, measured)
        result = Conversion(notes=list(_found(scan, grid)))
        spaces = _spaces(source, scan, grid, options, result.notes)
        sampling = _sampling(first, grid)
        if sampling.pattern == "points":
            spaces = spaces.whole()
            result.notes.append(
                f"a mask of points, not of whole lines: zeros are written where nothing was measured, and all "
                f"{spaces.recon_matrix[0]} columns of the readout are kept"
            )
        acceleration = _acceleration(sampling, grid.placed(measured))
        header = _header_xml(scan, grid, spaces, sampling, acceleration)
        slices = itertools.chain([first], slices)
        del first  # so that it is gone once it is written
        items = _readouts(slices, scan, grid, spaces, acceleration, options.rr)
        shown = with_progress(items, None, "converting")
        result.readouts = write_scan(output, header, shown)
    made_up = (
        f"time stamps and positions are made up: one cycle of {options.rr:g} ms in every slice, slices side by side"
    )
    result.notes.append(made_up)
    return result


@dataclass(frozen=True)
class _Grid:
    """Where the k-space centre lies, and the grid around it that has room for all lines and samples."""

    size: tuple[int, int]
    """Lines and samples that are stored."""
    center: tuple[int, int]
    """Stored line and sample of the k-space centre."""

    @classmethod
    def of(cls, kspace: NDArray[np.complex64], measured: NDArray[np.bool_]) -> _Grid:
        """Find the centre from the first slice, all frames together.

        Images change their phase slowly, so that k-space is nearly Hermitian about its centre and its convolution with
        itself has its peak at twice the centre. The sample of most energy may lie next to it. A centre that is found
        near the middle of the array lies there: what is left is no more than a ramp of the phase.
        """
        average = kspace.sum(axis=0) / np.maximum(measured.sum(axis=0), 1)[:, None]
        if not np.isfinite(average).all():
            raise DataError("the k-space of the first slice holds values that are not finite")
        _, *size = average.shape
        peak = np.zeros((2 * size[0], 2 * size[1]))
        for coil in average:
            peak += np.abs(np.fft.ifft2(np.fft.fft2(coil, peak.shape) ** 2))
        found = [round(int(at) / 2) for at in np.unravel_index(np.argmax(peak), peak.shape)]
        near = [abs(at - n // 2) <= max(_NEAR_LINES, _NEAR_SHARE * n) for at, n in zip(found, size, strict=True)]
        center = [n // 2 if close else at for at, n, close in zip(found, size, near, strict=True)]
        return cls((size[0], size[1]), (center[0], center[1]))

    @property
    def encoded(self) -> tuple[int, int]:
        """Lines and samples of a grid around the centre; the stored one where that is centred."""
        (ny, nx), (cy, cx) = self.size, self.center
        return _around(ny, cy), _around(nx, cx)

    def placed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bring a mask ``(frame, ky)`` or ``(frame, ky, kx)`` to the encoded lines."""
        lines = self.encoded[0]
        begin = lines // 2 - self.center[0]
        return np.pad(mask, ((0, 0), (begin, lines - begin - self.size[0]), (0, 0))[: mask.ndim])


def _around(size: int, center: int) -> int:
    """Size of a grid around a centre that may be off by a sample: matrices are multiples of four as a rule."""
    return size if center == size // 2 else 4 * -(-max(center, size - center) // 2)


@dataclass(frozen=True)
class _Spaces:
    """Fields of view in mm ``(x, y, z)`` and matrices ``(x, y)``."""

    encoded_matrix: tuple[int, int]
    encoded_fov: tuple[float, float, float]
    recon_matrix: tuple[int, int]
    recon_fov: tuple[float, float, float]

    def whole(self) -> _Spaces:
        """The same with all columns of the readout, of which cutting some would mix what was measured with zeros."""
        (columns, _), (_, rows) = self.encoded_matrix, self.recon_matrix
        return replace(
            self, recon_matrix=(columns, rows), recon_fov=(self.encoded_fov[0], self.recon_fov[1], self.recon_fov[2])
        )


def _masked(kspace: NDArray[np.complex64], mask: NDArray[np.bool_] | None) -> NDArray[np.complex64]:
    """The k-space without what a mask ``(frame, ky, kx)`` leaves out."""
    return kspace if mask is None else np.where(mask[:, None], kspace, np.complex64(0))


def _sampling(kspace: NDArray[np.complex64], grid: _Grid) -> Sampling:
    """What of a slice was measured, on the encoded lines."""
    measured = _measured(kspace)
    points = find_points(kspace, measured)
    return Sampling.of(grid.placed(measured if points is None else points), kspace.shape[1], kspace.shape[3])


def _measured(kspace: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Lines ``(frame, ky)`` that hold anything."""
    return np.asarray((kspace != 0).any(axis=(1, 3)))


def _found(scan: ForeignScan, grid: _Grid) -> Iterator[str]:
    slices, frames, coils, lines, samples = scan.shape
    yield (
        f"{scan.origin} layout, {scan.key}: {slices} slices of {frames} frames, {coils} coils, {lines} lines of "
        f"{samples} samples"
    )
    if scan.note:
        yield scan.note
    for what, n, center in zip(("line", "sample"), grid.size, grid.center, strict=True):
        if center != n // 2:
            yield f"the k-space centre is at {what} {center}, not in the middle of {n}: the data are Hermitian about it"


def _spaces(source: Path, scan: ForeignScan, grid: _Grid, options: ConvertOptions, notes: list[str]) -> _Spaces:
    """Settle fields of view and matrices; what is assumed is added to the notes."""
    info = read_info(source)
    lines, samples = grid.encoded
    if scan.header:
        space = parse_header(scan.header).encodings[0]
        wide, narrow = space.encoded.field_of_view, space.recon.field_of_view
        fov: tuple[float, ...] | None = narrow[:2] if min(wide[:2]) > 0 else None
        known = wide[0] / narrow[0] if fov else None
        beyond = wide[1] / narrow[1] if fov else 1.0
        recon, thickness = space.recon.matrix[:2], narrow[2]
    else:
        fov = (info["FOVx"], info["FOVy"]) if info.get("FOVx", 0) > 0 and info.get("FOVy", 0) > 0 else None
        thickness = info.get("SliceThickness", 0.0)
        known, beyond = (max(1.0, info["ReadOutOversample"]), 1.0) if "ReadOutOversample" in info else (None, 1.0)
    oversampling = options.oversampling or known or scan.oversampling
    if not scan.header or options.oversampling:
        recon = (round(samples / oversampling), lines if not scan.header else recon[1])
    if options.oversampling is None and known is None:
        notes.append(
            f"no oversampling of the readout is known: {oversampling:g} is assumed, so that {samples} samples become "
            f"{recon[0]} columns; --oversampling sets it"
        )
    x, y = options.field_of_view or fov or (_PIXEL * samples / oversampling, _PIXEL * lines)
    if options.field_of_view is None:
        where = "the file" if scan.header else f"{source.stem}_info.csv"
        notes.append(
            f"field of view {x:g} x {y:g} mm from {where}"
            if fov
            else f"no field of view is known: {x:g} x {y:g} mm is assumed ({_PIXEL:g} mm a pixel); --fov X,Y sets it"
        )
    deep = options.slice_thickness or (thickness if thickness > 0 else _THICKNESS)
    if options.slice_thickness is None and thickness <= 0:
        notes.append(f"no slice thickness is known: {deep:g} mm is assumed; --slice-thickness sets it")
    kept = round(samples / oversampling)
    encoded_fov = (x * samples / kept if not scan.header else x * oversampling, y * beyond, deep)
    return _Spaces((samples, lines), encoded_fov, (recon[0], recon[1]), (x, y, deep))


def _acceleration(sampling: Sampling, mask: NDArray[np.bool_]) -> int:
    """Distance of regular lines outside the centre, else the lines of k-space over the fewest of a frame."""
    if sampling.pattern == "full":
        return 1
    steps = [np.diff(np.flatnonzero(frame & ~_reference(sampling))) for frame in mask]
    step = int(np.gcd.reduce(np.concatenate([*steps, [0]]).astype(np.int64)))
    fewest = int(mask.sum(axis=1)[mask.any(axis=1)].min(initial=sampling.lines))
    return step if step > 1 else max(1, -(-sampling.lines // fewest))


def _reference(sampling: Sampling) -> NDArray[np.bool_]:
    """The central lines ``(ky,)`` that all frames have; none where they are too few for a reference."""
    rows = np.zeros(sampling.lines, np.bool_)
    if sampling.centre_lines >= _LEAST_ACS:
        first = sampling.lines // 2 - sampling.centre_lines // 2
        rows[first : first + sampling.centre_lines] = True
    return rows


def _readouts(
    slices: Iterator[NDArray[np.complex64]],
    scan: ForeignScan,
    grid: _Grid,
    spaces: _Spaces,
    acceleration: int,
    rr: float,
) -> Iterator[Readouts]:
    """One block of readouts for every frame."""
    n_slices, frames, coils, _, samples = scan.shape
    tick = tick_length(_vendor(scan))
    shift = grid.encoded[0] // 2 - grid.center[0]
    sent = 0
    for number, kspace in enumerate(slices):
        measured = _measured(kspace)
        sampling = _sampling(kspace, grid)
        reference = _reference(sampling)[shift : shift + grid.size[0]] & (sampling.pattern != "full")
        for frame in range(frames):
            rows = np.flatnonzero(measured[frame])
            if not len(rows):
                continue
            headers = np.zeros(len(rows), ACQUISITION_HEADER)
            headers["version"] = 1
            headers["scan_counter"] = sent + 1 + np.arange(len(rows))
            headers["number_of_samples"], headers["center_sample"] = samples, grid.center[1]
            headers["available_channels"] = headers["active_channels"] = coils
            since = frame / frames * rr
            headers["physiology_time_stamp"][:, 0] = round(since / tick)
            headers["acquisition_time_stamp"] = round((number * rr + since) / tick)
            headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = np.eye(3)
            headers["position"][:, 2] = (number - (n_slices - 1) / 2) * spaces.recon_fov[2]
            headers["idx"]["kspace_encode_step_1"] = rows
            headers["idx"]["slice"], headers["idx"]["phase"] = number, frame
            headers["flags"] = _reference_flags(rows, reference, acceleration)
            headers["flags"][0] |= AcquisitionFlag.FIRST_IN_SLICE.bit
            headers["flags"][-1] |= AcquisitionFlag.LAST_IN_SLICE.bit
            if number == n_slices - 1 and not measured[frame + 1 :].any():
                headers["flags"][-1] |= AcquisitionFlag.LAST_IN_MEASUREMENT.bit
            sent += len(rows)
            yield Readouts(headers, np.ascontiguousarray(kspace[frame][:, rows].swapaxes(0, 1)))
    if not sent:
        raise DataError("the k-space holds nothing but zeros")


def _reference_flags(rows: NDArray[np.intp], reference: NDArray[np.bool_], acceleration: int) -> NDArray[np.uint64]:
    """Central lines of a regular pattern serve as a reference only, unless they belong to the pattern too."""
    own = rows[~reference[rows]]
    regular = acceleration > 1 and len(own) > 1 and not (np.diff(own) % acceleration).any()
    on_grid = (rows - own[0]) % acceleration == 0 if regular else np.ones(len(rows), np.bool_)
    both, only = AcquisitionFlag.CALIBRATION_AND_IMAGING.bit, AcquisitionFlag.PARALLEL_CALIBRATION.bit
    return np.asarray(np.where(reference[rows], np.where(on_grid, both, only), np.uint64(0)), np.uint64)


def _vendor(scan: ForeignScan) -> str:
    return f"cinestream conversion of {scan.origin}"


def _header_xml(scan: ForeignScan, grid: _Grid, spaces: _Spaces, sampling: Sampling, acceleration: int) -> str:
    """ISMRMRD header as XML."""
    slices, frames, coils, lines, _ = scan.shape
    mode = "other"
    if sampling.pattern == "interleaved":
        mode = "interleaved"
    if sampling.pattern != "full" and sampling.centre_lines >= _LEAST_ACS:
        mode = "embedded"
    limits = {
        "kspace_encoding_step_1": (lines - 1, grid.center[0]),
        "slice": (slices - 1, 0),
        "phase": (frames - 1, 0),
        **dict.fromkeys(("average", "contrast", "repetition", "set", "segment"), (0, 0)),
    }
    encoding = xsd.encodingType(
        encodedSpace=_space(spaces.encoded_matrix, spaces.encoded_fov),
        reconSpace=_space(spaces.recon_matrix, spaces.recon_fov),
        encodingLimits=xsd.encodingLimitsType(
            **{name: xsd.limitType(minimum=0, maximum=most, center=at) for name, (most, at) in limits.items()}
        ),
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=acceleration, kspace_encoding_step_2=1
            ),
            calibrationMode=xsd.calibrationModeType(mode),
        ),
    )
    header = xsd.ismrmrdHeader(
        measurementInformation=xsd.measurementInformationType(protocolName="cine", patientPosition="HFS"),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor=_vendor(scan), receiverChannels=coils
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=_UNKNOWN_FREQUENCY),
        encoding=[encoding],
    )
    return str(xsd.ToXML(header))


def _space(matrix: tuple[int, int], field_of_view: tuple[float, float, float]) -> xsd.encodingSpaceType:
    x, y, z = field_of_view
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=x, y=y, z=z),
    )
