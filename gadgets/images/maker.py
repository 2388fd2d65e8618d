"""Reconstructed slices in, ISMRMRD images out: field of view, intensity, headers and meta attributes.

One intensity factor holds for all images of a scan, so that frames and slices keep their relative brightness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gadgets.problems import Kind, Problems
from gadgets.slices.complete import describe
from gadgets.wire.attributes import meta_entries, serialize_meta
from gadgets.wire.header import split_measurement_id
from gadgets.wire.messages import IMAGE_HEADER, IMAGE_TYPE_COMPLEX, IMAGE_TYPE_MAGNITUDE, Image
from recon_core.budget import Budget
from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from gadgets.gating.gate import Gating
    from gadgets.gating.heartbeat import Heartbeat
    from gadgets.settings.settings import Settings
    from gadgets.slices.complete import CompleteSlice, SliceKey
    from gadgets.wire.header import Encoding, ScanHeader
    from recon_core.data import Reconstruction

_IMAGE_BYTES = 64  # of a pixel, while images are brought to the recon space and sent
_BRIGHT = 1000.0  # value of bright tissue: far from both ends of the 12 bits that the stock converters keep
_MOST_INDICES = 65535  # of the 16 bits in the image header
# Added to the series index. The g-factor of series 1 is series 20, and has its factor, as in Gadgetron.
G_FACTOR_SERIES, UNCERTAINTY_SERIES, FUSED_SERIES, DIFFERENCE_SERIES = 19, 21, 22, 25
#: Added to the series index of a whole second reconstruction of a slice, by the role that it has.
SECOND_SERIES = {"preview": 23, "beside": 24, "zero_filled": 26}
#: From the series of a slice to those of the next, where every slice has its own.
SLICE_SERIES = 100
#: From the series of an encoding to those of the next one that gives images, and of how many there is room.
ENCODING_SERIES, MOST_ENCODINGS = 30, 3
#: What a series holds, by what is added to its index; nothing to name for the images that were asked for.
SERIES_KINDS = {
    0: "",
    G_FACTOR_SERIES: "g-factor",
    UNCERTAINTY_SERIES: "uncertainty",
    FUSED_SERIES: "fused",
    DIFFERENCE_SERIES: "difference",
    **{offset: name.replace("_", "-") for name, offset in SECOND_SERIES.items()},
}
_LAST_SERIES = max(SERIES_KINDS)
_G_FACTOR_SCALE = 100.0
_FUSED_SCALE = 1000.0
_FUSED_COMMENT = "CT-MR fused, not an MR image"
_DIFFERENCE_GAIN = 5  # a difference of a tenth is as bright as half of the tissue
_EXACT_WINDOW = 20.0  # windows above it are whole numbers, as readers of the attributes expect
_COPIED = (
    "version",
    "measurement_uid",
    "position",
    "read_dir",
    "phase_dir",
    "slice_dir",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
    "user_int",
    "user_float",
)
#: Ends of the meta attributes that gadgets behind set when they scale an image array.
_SET_BY_GADGETS = ("WindowCenter", "WindowWidth", "ScaleRatio")
_COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")


@dataclass(frozen=True, kw_only=True)
class CineImage(Image):
    """An image of `ImageMaker`, with facts that its attributes hold as text."""

    kind: str
    """What it is where it is not one of the images that were asked for, as `SERIES_KINDS` has it."""
    window: float
    """Width of the display window, which begins at 0."""
    flipped: bool
    """Rows and columns run against their order in the scan."""

    @property
    def magnitude(self) -> NDArray[np.float32]:
        """``(y, x)`` magnitudes in the order of the scan."""
        pixels = np.asarray(np.abs(self.data[0, 0]), np.float32)
        return pixels[::-1, ::-1] if self.flipped else pixels


class _Series(NamedTuple):
    """Images of a slice besides those of its frames."""

    images: NDArray[np.float32]
    """``(image, y, x)`` float32 in recon space; one, or one per frame. What is below zero is shown as zero."""
    offset: int
    """Added to the series index."""
    name: str
    """Added to the series description."""
    role: str
    """What Gadgetron calls such images."""
    scale: float
    """Factor on the values."""
    window: float
    """Width of the display window; it begins at 0."""
    comment: str = ""
    """What a reader must know first; may be empty."""


class _Level(NamedTuple):
    """Factor on the values of a series, and how bright its tissue is after it."""

    scale: float
    bright: float


def series_index(settings: Settings, offset: int, slice_number: int, encoding: int = 0) -> int:
    """The image_series_index of some images of a slice; what is beyond 16 bits shares the last ones.

    Parameters
    ----------
    settings
        Those of the series.
    offset
        By what the images are, one of `SERIES_KINDS`.
    slice_number
        Counter of the slice.
    encoding
        How many other encodings gave images before this one.
    """
    index = settings.series.index
    if settings.series.by == "slice":
        index += SLICE_SERIES * min(slice_number, _slices_of_their_own(settings) - 1)
    return index + offset + ENCODING_SERIES * min(encoding, _encodings_of_their_own(index) - 1)


def _encodings_of_their_own(index: int) -> int:
    return min(MOST_ENCODINGS, (_MOST_INDICES - _LAST_SERIES - index) // ENCODING_SERIES + 1)


def _slices_of_their_own(settings: Settings) -> int:
    return (_MOST_INDICES - _LAST_SERIES - settings.series.index) // SLICE_SERIES + 1


class ImageMaker:
    """Makes the images of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        What to send: magnitude or complex, intensity, series.
    problems
        Where to note time stamps that cannot be believed; None keeps that to the attributes.
    budget
        Memory for the images; None takes what a process may have.
    """

    def __init__(
        self,
        header: ScanHeader,
        settings: Settings,
        problems: Problems | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget or Budget()
        self._header = header
        self._settings = settings
        self._for_gadgets = settings.images.emit == "image_array"  # they cut, scale and set the window themselves
        self._problems = problems or Problems()
        self._scales: dict[tuple[str, str], float] = {}
        self._levels: dict[tuple[str, str], _Level] = {}
        self._used: dict[int, set[int]] = {}
        self._encodings: dict[int, int] = {}  # those that gave images, in order: their images differ in size as a rule

    def make(self, complete: CompleteSlice, reconstruction: Reconstruction, *, second: str = "") -> Iterator[CineImage]:
        """Turn the frames of a slice into images.

        Parameters
        ----------
        complete
            The slice with the acquisition headers of its frames.
        reconstruction
            Its frames ``(frame, y, x)`` complex64 over the encoded field of view, which is left as it is where an image
            array is asked for.
        second
            Where these are not the images that were asked for, what they are to those: one of `SECOND_SERIES`.

        Raises
        ------
        DataError
            If there is not one image for every frame.
        ResourceError
            If the recon space is too large for the memory that there is.

        Yields
        ------
        CineImage
            One per frame, in the order of the frames: float32 magnitude or complex64, ``(1, 1, y, x)``; then what else
            there is, each in a series of its own: g-factor, uncertainty, fused image, difference.
        """
        if len(reconstruction.image) != len(complete.headers):
            made, wanted = len(reconstruction.image), len(complete.headers)
            raise DataError(f"{reconstruction.method} made {made} images of {wanted} frames, expected one of each")
        encoding = self._header.encodings[complete.key.encoding]
        self._encodings.setdefault(complete.key.encoding, len(self._encodings))
        if not second:
            self._report_doubts(complete)
        frames = self._in_view(reconstruction.image, encoding)
        if reconstruction.units == "snr" and not self._for_gadgets:
            frames = frames * np.float32(_noise_lost(reconstruction.image.shape, encoding))
        fallback = None if reconstruction.beside is None else self._in_view(reconstruction.beside.image, encoding)
        # the scale of the scan must not be that of a doubtful image
        level = self._level(second, reconstruction.units, frames, fallback if reconstruction.doubts else None)
        values = frames if self._settings.images.output == "complex" or self._for_gadgets else np.abs(frames)
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            values = values * np.float32(level.scale)
        if not np.isfinite(values).all():
            raise DataError(
                f"times {level.scale:g} the images exceed what float32 holds; set scale to a smaller number"
            )
        if not second and not values.any():
            text = f"the images of {describe(complete.key)} are black: its readouts hold nothing but zeros"
            self._problems.add(Kind.BLACK, text, damage=False)
        common = self._common_meta(complete, reconstruction, encoding, second)
        center, width = self._window(level)
        common |= _level_meta(level.scale, center, width)
        yield from self._images(complete, values, SECOND_SERIES.get(second, 0), width, common)
        for series in () if second else self._further_series(reconstruction, encoding, level, frames, fallback):
            shown = series.images.clip(0) * np.float32(series.scale)
            meta = {**common, **_further_meta(series, common)}
            yield from self._images(complete, shown, series.offset, series.window, meta)

    def _images(
        self,
        complete: CompleteSlice,
        values: NDArray[Any],
        offset: int,
        window: float,
        meta: Mapping[str, object],
    ) -> Iterator[CineImage]:
        """Images ``(image, y, x)`` of a series, one for each of the first frames."""
        if self._for_gadgets:
            meta = {key: value for key, value in meta.items() if not key.endswith(_SET_BY_GADGETS)}
        common = meta_entries(meta)  # the same text in all of them
        for i, header in enumerate(self._headers(complete, values.shape, offset)):
            header["data_type"] = 7 if np.iscomplexobj(values) else 5
            # what the image is to become: gadgets behind make magnitudes of complex values
            shown_complex = np.iscomplexobj(values) and self._settings.images.output == "complex"
            header["image_type"] = IMAGE_TYPE_COMPLEX if shown_complex else IMAGE_TYPE_MAGNITUDE
            data = np.ascontiguousarray(values[i, ::-1, ::-1]) if self._flipped else values[i]
            own = _frame_meta(header, complete, i)
            attributes = serialize_meta({**common, **meta_entries(own)})
            header["attribute_string_len"] = len(attributes.encode())
            yield CineImage(
                header,
                data[None, None],
                attributes,
                kind=SERIES_KINDS[offset],
                window=window,
                flipped=self._flipped,
            )

    @property
    def _flipped(self) -> bool:
        return self._settings.images.orientation == "flipped"

    def _further_series(
        self,
        reconstruction: Reconstruction,
        encoding: Encoding,
        level: _Level,
        frames: NDArray[np.complex64],
        fallback: NDArray[np.complex64] | None,
    ) -> Iterator[_Series]:
        def spread(images: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._in_view(images.astype(np.complex64), encoding).real

        if reconstruction.g_factor is not None:
            scale = 1.0 if self._for_gadgets else _G_FACTOR_SCALE  # ImageArrayScaling has the same factor
            g_factor = spread(reconstruction.g_factor[None])
            yield _Series(g_factor, G_FACTOR_SERIES, "gfactor", "Gfactor", scale, window=300)
        uncertainty, fused = (reconstruction.extra.get(name) for name in ("uncertainty", "fused"))
        if uncertainty is not None:
            window = level.bright / 10  # a standard deviation is a small part of the signal
            yield _Series(spread(uncertainty), UNCERTAINTY_SERIES, "uncertainty", "Uncertainty", level.scale, window)
        if fused is not None and self._settings.series.fused:
            image, window = spread(fused[None]), _FUSED_SCALE
            yield _Series(image, FUSED_SERIES, "fused", "Fused", _FUSED_SCALE, window, _FUSED_COMMENT)
        if fallback is not None and reconstruction.beside and "difference" in self._settings.finish.extras:
            difference = np.abs(np.abs(frames) - np.abs(fallback))
            scale = _DIFFERENCE_GAIN * level.scale
            methods = f"{reconstruction.method} and {reconstruction.beside.method}"
            comment = f"difference of {methods} x {_DIFFERENCE_GAIN}, not anatomy"
            yield _Series(difference, DIFFERENCE_SERIES, "difference", "Difference", scale, level.bright, comment)

    def _in_view(self, images: NDArray[np.complex64], encoding: Encoding) -> NDArray[np.complex64]:
        if self._for_gadgets:
            return images
        rows, columns = _pixels_wanted(encoding, *images.shape[1:])
        x, y, _ = encoding.recon.matrix
        rows, columns = max(rows, y, images.shape[1]), max(columns, x, images.shape[2])
        count, size = _IMAGE_BYTES * len(images) * rows * columns, f"{len(images)} images of {columns} x {rows} pixels"
        with self._budget.lent(count, f"{size}, which matrix and field of view of the recon space ask for,"):
            return to_recon_space(images, encoding)

    def _level(
        self, second: str, units: str, frames: NDArray[np.complex64], trusted: NDArray[np.complex64] | None
    ) -> _Level:
        """What holds for all images of a series: one factor for the whole scan, and how bright its tissue is.

        Images in other units have a factor of their own, and so has a preview, which goes ahead of the images.
        """
        if (second, units) not in self._levels:
            own = second if second == "preview" else "", units
            bright = float(np.percentile(np.abs(frames), 99.0))
            if own not in self._scales:
                tissue = bright if trusted is None else float(np.percentile(np.abs(trusted), 99.0))
                as_they_are = self._for_gadgets or units == "snr" or not tissue > 0
                self._scales[own] = self._settings.images.scale or (1.0 if as_they_are else _BRIGHT / tissue)
            self._levels[second, units] = _Level(self._scales[own], bright * self._scales[own] or 1.0)
        return self._levels[second, units]

    def _window(self, level: _Level) -> tuple[float, float]:
        """Centre and width of the display window of magnitudes, which those of complex images are too."""
        center, width = self._settings.images.window_center, self._settings.images.window_width
        width = width or 2 * center or level.bright
        return center or width / 2, width

    def _report_doubts(self, complete: CompleteSlice) -> None:
        heartbeat = complete.heartbeat
        if heartbeat.doubt and heartbeat.stamped:
            text = f"{describe(complete.key)}: {heartbeat.doubt}; its images have no time since the R wave"
            self._problems.add(Kind.TRIGGER_TIMES, text, damage=False)
        if self._settings.series.by == "slice" and complete.key.slice >= _slices_of_their_own(self._settings):
            text = f"{describe(complete.key)} has no series of its own, as image_series_index ends at {_MOST_INDICES}"
            self._problems.add(Kind.SERIES_NUMBER, f"{text}; set series_by to scan, or series to 1", damage=False)
        indices = [self._series(complete.key, 0, encoding) for encoding in self._encodings]
        if len(set(indices)) < len(indices):
            text = f"encoding {complete.key.encoding} has no series of its own: there is room for those of"
            text += f" {MOST_ENCODINGS} encodings, and image_series_index ends at {_MOST_INDICES}"
            self._problems.add(Kind.SERIES_NUMBER, f"{text}; send others by themselves", damage=False, of="encoding")

    def _series(self, key: SliceKey, offset: int, encoding: int) -> int:
        return series_index(self._settings, offset, key.slice, self._encodings[encoding])

    def _headers(self, complete: CompleteSlice, shape: tuple[int, ...], offset: int) -> NDArray[np.void]:
        """Headers for images of that shape ``(image, y, x)``, one for each of them."""
        encoding = self._header.encodings[complete.key.encoding]
        source = complete.headers[: shape[0]]
        headers = np.zeros(len(source), IMAGE_HEADER)
        for name in _COPIED:
            headers[name] = source[name]
        # other writers make trigger times of them
        headers["physiology_time_stamp"][:, 0][np.isnan(complete.heartbeat.since[: shape[0]])] = 0
        for name in _COUNTERS:
            headers[name] = source["idx"][name]
        headers["average"] = 0  # averages are merged
        headers["channels"] = 1
        headers["matrix_size"] = (shape[2], shape[1], 1)
        recon = encoding.recon.field_of_view
        rows, columns = complete.cine.plane
        headers["field_of_view"] = recon if self._for_gadgets else shown_field_of_view(encoding, rows, columns)
        if self._flipped:
            _flip(headers)
        series = self._series(complete.key, offset, complete.key.encoding)
        headers["image_series_index"] = series
        used = self._used.setdefault(series, set())
        counters = ["repetition", "set", "phase", "contrast"]
        if self._settings.series.by == "scan":
            counters.append("slice")
        headers["image_index"] = [_index(header, encoding, counters, used) for header in headers]
        return headers

    def _common_meta(
        self, complete: CompleteSlice, reconstruction: Reconstruction, encoding: Encoding, second: str
    ) -> dict[str, object]:
        settings, encoded = self._settings, encoding.encoded
        name = settings.series.description or reconstruction.method
        if second and second != name:
            name += f"_{second}"
        if self._encodings[complete.key.encoding]:
            name += f"_encoding{complete.key.encoding}"
        if settings.series.by == "slice":
            name += f"_slice{complete.key.slice}"
        units = ["SNR units"] if reconstruction.units == "snr" else []
        comment = "; ".join([f"cinestream {reconstruction.method}", *units, *complete.notes, *reconstruction.notes])
        rows, columns = complete.cine.plane
        on_grid = complete.cine.trajectory is None
        measured = np.flatnonzero(complete.cine.mask.any(axis=0)) if on_grid else np.arange(rows)
        held = complete.cine.receiver.columns
        sampled = np.arange(columns) if held is None else np.flatnonzero(held)
        meta: dict[str, object] = {
            **_heartbeat_meta(complete.heartbeat),
            "encoding": complete.key.encoding,
            # the generic gadgets take the readout oversampling as gone in both spaces
            "encoding_FOV": (encoding.width_of(columns), *encoded.field_of_view[1:]),
            "recon_FOV": encoding.recon.field_of_view,
            "encoded_matrix": (columns, *encoded.matrix[1:]),
            "recon_matrix": encoding.recon.matrix,
            "sampling_limits_RO": (int(sampled[0]), columns // 2, int(sampled[-1])),
            "sampling_limits_E1": (int(measured[0]), rows // 2, int(measured[-1])),
            "sampling_limits_E2": (0, 0, 0),
            "measurementID": self._header.measurement_id,
            **split_measurement_id(self._header.measurement_id),
            "protocolName": self._header.protocol_name,
            "patient_position": self._header.patient_position,
            "GADGETRON_ImageProcessingHistory": ["GT", "cinestream"],
            "GADGETRON_DataRole": "Image",
            "DataRole": "Image",
            "ImageProcessingHistory": ["cinestream", reconstruction.method],
            "Keep_image_geometry": 1,
            "cinestream_method": reconstruction.method,
            "cinestream_units": reconstruction.units,
            "cinestream_orientation": settings.images.orientation,
            **_name_meta(name),
            **_comment_meta(comment),
            **_gating_meta(complete.gating),
            **complete.meta,
        }
        if reconstruction.units == "snr":
            meta["DataRole"] = "Quantitative"  # FIRE does not normalise these
        return {key: value for key, value in meta.items() if value not in ("", [], ())}


def _flip(headers: NDArray[np.void]) -> None:
    """Turn images by 180 degrees in their headers: the directions of rows and columns, and what lies in the middle.

    Pixel ``N//2`` lies at the position. Where N is even it is another pixel once the order is reversed.
    """
    for axis, name in ((0, "read_dir"), (1, "phase_dir")):
        size = headers["matrix_size"][:, axis].astype(np.float64)
        step = headers["field_of_view"][:, axis] / size * (size % 2 == 0)
        headers["position"] -= step[:, None] * headers[name]
        headers[name] *= -1


def _name_meta(name: str) -> dict[str, object]:
    """What the series is called, by the names that Gadgetron, FIRE and the MRD documentation have for it."""
    return {
        "GADGETRON_SeqDescription": f"_{name}",
        "SequenceDescriptionAdditional": name,
        "SeriesDescriptionAdditional": name,
    }


def _comment_meta(comment: str) -> dict[str, object]:
    return dict.fromkeys(("GADGETRON_ImageComment", "ImageComments", "ImageComment"), comment)


def _level_meta(scale: float, center: float, width: float) -> dict[str, object]:
    meta: dict[str, object] = {"GADGETRON_ScaleRatio": scale}
    for prefix in ("", "GADGETRON_"):
        for name, value in (("Center", center), ("Width", width)):
            meta[f"{prefix}Window{name}"] = round(value) if width >= _EXACT_WINDOW else float(f"{value:.4g}")
    return meta


def _further_meta(series: _Series, common: Mapping[str, object]) -> dict[str, object]:
    meta: dict[str, object] = {"GADGETRON_DataRole": series.role, "DataRole": "Quantitative"}
    meta |= _level_meta(series.scale, series.window / 2, series.window)
    meta |= _name_meta(f"{common['SequenceDescriptionAdditional']}_{series.name}")
    if series.comment:
        meta |= _comment_meta(f"{series.comment}; {common['ImageComments']}")
    return meta


def _heartbeat_meta(heartbeat: Heartbeat) -> dict[str, object]:
    meta: dict[str, object] = {}
    if heartbeat.rr:
        meta["cinestream_rr_ms"] = round(heartbeat.rr, 1)
    if heartbeat.frame_time:
        meta["cinestream_frame_time_ms"] = round(heartbeat.frame_time, 2)
    if heartbeat.doubt:
        meta["cinestream_no_trigger_time"] = heartbeat.doubt
    return meta


def _gating_meta(gating: Gating | None) -> dict[str, object]:
    if gating is None:
        return {}
    meta: dict[str, object] = {"cinestream_gating": "retrospective", "cinestream_gating_source": gating.source}
    if gating.beat is None:
        meta["cinestream_beats"] = gating.beats
    else:
        meta["cinestream_beat"] = gating.beat
    return meta


def _index(header: np.void, encoding: Encoding, counters: Iterable[str], used: set[int]) -> int:
    """Gadgetron's 1-based image number, the last counter fastest; the next free one where counters exceed limits."""
    index = 0
    for name in counters:
        promised = encoding.promised(name)
        index = index * len(promised) + max(0, int(header[name]) - promised.start)
    index += 1
    if len(used) == _MOST_INDICES:
        used.clear()
    while index in used or index > _MOST_INDICES:
        index = index % _MOST_INDICES + 1
    used.add(index)
    return index


def _frame_meta(header: np.void, complete: CompleteSlice, index: int) -> dict[str, object]:
    """Attributes of one frame, with the header of its image."""
    source, since = complete.headers[index], float(complete.heartbeat.since[index])
    meta: dict[str, object] = {
        "PatientPosition": header["position"].tolist(),
        "read_dir": header["read_dir"].tolist(),
        "phase_dir": header["phase_dir"].tolist(),
        "slice_dir": header["slice_dir"].tolist(),
        "patient_table_position": header["patient_table_position"].tolist(),
        "ImageRowDir": header["read_dir"].tolist(),
        "ImageColumnDir": header["phase_dir"].tolist(),
        "ImageSliceDir": header["slice_dir"].tolist(),
        "GADGETRON_ImageNumber": int(header["image_index"]),
        "acquisition_time_stamp": int(source["acquisition_time_stamp"]),
        "physiology_time_stamp": source["physiology_time_stamp"].tolist(),
        "cinestream_frame": int(complete.frames[index]),
    }
    if complete.stamps is not None:
        ranges = complete.stamps[index]
        meta["acquisition_time_range"] = ranges[0].tolist()
        meta["physiology_time_range"] = ranges[1:].ravel().tolist()
    for name in ("user_int", "user_float"):
        meta |= {f"{name}_{i}": value for i, value in enumerate(header[name].tolist())}
    if not math.isnan(since):
        meta["cinestream_trigger_time_ms"] = round(since, 2)
    return meta


def to_recon_space(image: NDArray[np.complex64], encoding: Encoding) -> NDArray[np.complex64]:
    """Bring images from the encoded field of view and matrix to those of the recon space.

    The field of view is cut (phase oversampling) or padded in the image; then the matrix is changed by padding
    (interpolation) or cutting in k-space, which keeps the values of the image.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64; readout oversampling is gone already, but where the readouts have gaps.
    encoding
        Gives both spaces.

    Returns
    -------
    ndarray
        ``(frame, y, x)`` complex64 of the recon matrix.
    """
    recon = encoding.recon
    for axis, size in enumerate(_pixels_wanted(encoding, *image.shape[1:]), 1):
        image = _resize_centered(image, size, axis)
    for axis, size in ((1, recon.matrix[1]), (2, recon.matrix[0])):
        if image.shape[axis] != size:
            image = _interpolate(image, size, axis)
    return image


def _pixels_wanted(encoding: Encoding, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the measured size that make up the recon space."""
    columns, rows = (
        max(1, round(size * wanted / there)) if there > 0 and wanted > 0 else size
        for size, there, wanted in (
            (columns, encoding.width_of(columns), encoding.widths[1]),
            (rows, encoding.encoded.field_of_view[1], encoding.recon.field_of_view[1]),
        )
    )
    return rows, columns


def shown_field_of_view(encoding: Encoding, rows: int, columns: int) -> tuple[float, float, float]:
    """Field of view ``(x, y, z)`` in mm that the images of a slice cover.

    That of the recon space, but for what it takes to cut between whole pixels: at the far side of the image that may
    be half a pixel.

    Parameters
    ----------
    encoding
        Gives both spaces.
    rows, columns
        Of the slice as it is reconstructed.
    """
    encoded, recon = encoding.encoded, encoding.recon
    shown_rows, shown_columns = _pixels_wanted(encoding, rows, columns)
    x, y = (
        size * there / matrix if there > 0 and wanted > 0 else wanted
        for size, there, matrix, wanted in zip(
            (shown_columns, shown_rows), encoded.field_of_view, encoded.matrix, recon.field_of_view, strict=False
        )
    )
    return x, y, recon.field_of_view[2]


def _noise_lost(shape: tuple[int, ...], encoding: Encoding) -> float:
    """By which factor the noise falls in `to_recon_space`: where the recon matrix cuts k-space. More pixels keep it."""
    rows, columns = _pixels_wanted(encoding, *shape[1:])
    x, y, _ = encoding.recon.matrix
    return math.sqrt(max(1.0, rows / y) * max(1.0, columns / x))


def _interpolate(image: NDArray[np.complex64], size: int, axis: int) -> NDArray[np.complex64]:
    before = image.shape[axis]
    spectrum = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=axis), axis=axis), axes=axis)
    kspace = _resize_centered(np.asarray(spectrum, np.complex64), size, axis)
    resized = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, axes=axis), axis=axis), axes=axis)
    return np.asarray(resized * (size / before), np.complex64)


def _resize_centered(array: NDArray[np.complex64], size: int, axis: int) -> NDArray[np.complex64]:
    """Cut or zero-pad an axis so that its centre ``N//2`` stays the centre."""
    before = array.shape[axis]
    if size == before:
        return array
    offset = size // 2 - before // 2
    shape = list(array.shape)
    shape[axis] = size
    out = np.zeros(shape, array.dtype)
    begin, end = max(0, offset), min(size, before + offset)
    into = [slice(None)] * array.ndim
    source = list(into)
    into[axis], source[axis] = slice(begin, end), slice(begin - offset, end - offset)
    out[tuple(into)] = array[tuple(source)]
    return out
