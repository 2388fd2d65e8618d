"""Reconstructed slices in, ISMRMRD images out: field of view, intensity, headers and meta attributes.

One intensity factor holds for all images of a scan, so that frames and slices keep their relative brightness.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from gadgets.protocol import IMAGE_HEADER, IMAGE_TYPE_COMPLEX, IMAGE_TYPE_MAGNITUDE, Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from gadgets.buffer import CompleteSlice
    from gadgets.header import Encoding, ScanHeader
    from gadgets.pipeline import Settings
    from recon_core.data import Reconstruction

_BRIGHT = 1000.0  # value of bright tissue: far from both ends of the 12 bits that the stock converters keep
_MOST_INDICES = 65535  # of the 16 bits in the image header
# Added to the series index; that of the g-factor, and its factor, as Gadgetron has them.
G_FACTOR_SERIES, UNCERTAINTY_SERIES, FUSED_SERIES = 20, 21, 22
#: Added to the series index of a whole second reconstruction of a slice, by the role that it has.
SECOND_SERIES = {"preview": 23, "beside": 24}
_G_FACTOR_SCALE = 100.0
_FUSED_SCALE = 1000.0
_FUSED_COMMENT = "CT-MR fused, not an MR image"
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
_COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")


class _Series(NamedTuple):
    """Images of a slice besides those of its frames.

    Parameters
    ----------
    images
        ``(image, y, x)`` float32, not negative; one, or one per frame.
    offset
        Added to the series index.
    name
        Added to the series description.
    role
        What Gadgetron calls such images.
    scale
        Factor on the values.
    window
        Width of the display window; it begins at 0.
    comment
        What a reader must know first; may be empty.
    """

    images: NDArray[np.float32]
    offset: int
    name: str
    role: str
    scale: float
    window: float
    comment: str = ""


class ImageMaker:
    """Makes the images of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        What to send: magnitude or complex, intensity, series.
    """

    def __init__(self, header: ScanHeader, settings: Settings) -> None:
        self._header = header
        self._settings = settings
        self._scale = self._window = 0.0
        self._scales: dict[str, tuple[float, float]] = {}  # factor and window by units
        self._used: dict[int, set[int]] = {}

    def make(self, complete: CompleteSlice, reconstruction: Reconstruction, *, second: str = "") -> Iterator[Image]:
        """Turn the frames of a slice into images.

        Parameters
        ----------
        complete
            The slice with the acquisition headers of its frames.
        reconstruction
            Its frames ``(frame, y, x)`` complex64 over the encoded field of view.
        second
            Where these are not the images that were asked for, what they are to those: one of `SECOND_SERIES`.

        Yields
        ------
        Image
            One per frame, in the order of the frames: float32 magnitude or complex64, ``(1, 1, y, x)``; then what else
            there is, each in a series of its own: g-factor, uncertainty, fused image.
        """
        encoding = self._header.encodings[complete.key.encoding]
        frames = to_recon_space(reconstruction.image, encoding)
        if reconstruction.units == "snr":
            frames = frames * np.float32(_noise_lost(reconstruction.image, encoding))
        self._set_scale(frames, reconstruction.units)
        values = frames if self._settings.output == "complex" else np.abs(frames)
        values = values * np.float32(self._scale)
        common = self._common_meta(complete, reconstruction, encoding, second and f"_{second}")
        series_index = self._settings.series + SECOND_SERIES.get(second, 0)
        for header, frame, data in zip(
            self._headers(complete, encoding, values, series_index),
            complete.frames.tolist(),
            values,
            strict=True,
        ):
            yield _image(header, data, {**common, **_frame_meta(header, frame)})
        for series in () if second else self._further_series(reconstruction):
            yield from self._further_images(complete, series, encoding, common)

    def _further_series(self, reconstruction: Reconstruction) -> Iterator[_Series]:
        if reconstruction.g_factor is not None:
            yield _Series(
                reconstruction.g_factor[None], G_FACTOR_SERIES, "gfactor", "Gfactor", _G_FACTOR_SCALE, window=300
            )
        uncertainty, fused = (reconstruction.extra.get(name) for name in ("uncertainty", "fused"))
        if uncertainty is not None:
            window = self._window / 10  # a standard deviation is a small part of the signal
            yield _Series(uncertainty, UNCERTAINTY_SERIES, "uncertainty", "Uncertainty", self._scale, window)
        if fused is not None and self._settings.emit_fused:
            window = _FUSED_SCALE
            yield _Series(fused[None], FUSED_SERIES, "fused", "Fused", _FUSED_SCALE, window, _FUSED_COMMENT)

    def _further_images(
        self, complete: CompleteSlice, series: _Series, encoding: Encoding, common: dict[str, object]
    ) -> Iterator[Image]:
        values = to_recon_space(series.images.astype(np.complex64), encoding).real.clip(0) * np.float32(series.scale)
        headers = self._headers(complete, encoding, values, self._settings.series + series.offset)
        own: dict[str, object] = {
            "GADGETRON_DataRole": series.role,
            "GADGETRON_ScaleRatio": series.scale,
            "DataRole": "Quantitative",
        }
        for key in ("GADGETRON_SeqDescription", "SequenceDescriptionAdditional"):
            own[key] = f"{common[key]}_{series.name}"
        for prefix in ("", "GADGETRON_"):
            own[f"{prefix}WindowCenter"] = round(series.window / 2)
            own[f"{prefix}WindowWidth"] = max(1, round(series.window))
        if series.comment:
            for key in ("GADGETRON_ImageComment", "ImageComments"):
                own[key] = f"{series.comment}; {common[key]}"
        for header, frame, data in zip(headers, complete.frames.tolist(), values, strict=False):
            yield _image(header, data, {**common, **_frame_meta(header, frame), **own})

    def _set_scale(self, frames: NDArray[np.complex64], units: str) -> None:
        """Take the factor of the scan for images in these units; the first slice that has them sets it."""
        if units not in self._scales:
            bright = float(np.percentile(np.abs(frames), 99.0))
            scale = self._settings.scale
            if not scale:
                scale = _BRIGHT / bright if bright > 0 and units == "relative" else 1.0
            self._scales[units] = scale, bright * scale or 1.0
        self._scale, self._window = self._scales[units]

    def _headers(
        self, complete: CompleteSlice, encoding: Encoding, values: NDArray[Any], series: int
    ) -> NDArray[np.void]:
        """Headers for images ``(frame, y, x)`` of a series, one for each of them."""
        source = complete.headers[: len(values)]
        headers = np.zeros(len(source), IMAGE_HEADER)
        for name in _COPIED:
            headers[name] = source[name]
        for name in _COUNTERS:
            headers[name] = source["idx"][name]
        headers["average"] = 0  # averages are merged
        is_complex = np.iscomplexobj(values)
        headers["data_type"] = 7 if is_complex else 5
        headers["image_type"] = IMAGE_TYPE_COMPLEX if is_complex else IMAGE_TYPE_MAGNITUDE
        headers["channels"] = 1
        headers["matrix_size"] = (values.shape[2], values.shape[1], 1)
        headers["field_of_view"] = encoding.recon.field_of_view
        headers["image_series_index"] = series
        used = self._used.setdefault(series, set())
        headers["image_index"] = [_index(headers[i], encoding, used) for i in range(len(headers))]
        return headers

    def _common_meta(
        self, complete: CompleteSlice, reconstruction: Reconstruction, encoding: Encoding, suffix: str
    ) -> dict[str, object]:
        settings, source = self._settings, complete.headers[0]
        name = (settings.description or reconstruction.method) + suffix
        units = ["SNR units"] if reconstruction.units == "snr" else []
        comment = "; ".join([f"cinestream {reconstruction.method}", *units, *complete.notes, *reconstruction.notes])
        rows, columns = complete.cine.kspace.shape[2:]
        measured = np.flatnonzero(complete.cine.mask.any(axis=0))
        sampled = np.arange(columns) if complete.cine.columns is None else np.flatnonzero(complete.cine.columns)
        read, phase = source["read_dir"].tolist(), source["phase_dir"].tolist()
        meta: dict[str, object] = {
            "encoding": complete.key.encoding,
            "encoding_FOV": encoding.encoded.field_of_view,
            "recon_FOV": encoding.recon.field_of_view,
            "encoded_matrix": encoding.encoded.matrix,
            "recon_matrix": encoding.recon.matrix,
            "sampling_limits_RO": (int(sampled[0]), columns // 2, int(sampled[-1])),
            "sampling_limits_E1": (int(measured[0]), rows // 2, int(measured[-1])),
            "sampling_limits_E2": (0, 0, 0),
            "PatientPosition": source["position"].tolist(),
            "read_dir": read,
            "phase_dir": phase,
            "slice_dir": source["slice_dir"].tolist(),
            "patient_table_position": source["patient_table_position"].tolist(),
            "measurementID": self._header.measurement_id,
            "protocolName": self._header.protocol_name,
            "patient_position": self._header.patient_position,
            "GADGETRON_ImageProcessingHistory": ["GT", "cinestream"],
            "GADGETRON_ImageComment": comment,
            "GADGETRON_SeqDescription": f"_{name}",
            "GADGETRON_DataRole": "Image",
            "GADGETRON_ScaleRatio": self._scale,
            "GADGETRON_WindowCenter": round(self._window / 2),
            "GADGETRON_WindowWidth": round(self._window),
            "DataRole": "Image",
            "ImageProcessingHistory": ["cinestream", reconstruction.method],
            "ImageComments": comment,
            "SequenceDescriptionAdditional": name,
            "WindowCenter": round(self._window / 2),
            "WindowWidth": round(self._window),
            "ImageRowDir": read,
            "ImageColumnDir": phase,
            "Keep_image_geometry": 1,
            "cinestream_method": reconstruction.method,
            "cinestream_units": reconstruction.units,
            **complete.meta,
        }
        if reconstruction.units == "snr":
            meta["DataRole"] = "Quantitative"  # FIRE does not normalise these
        return {key: value for key, value in meta.items() if value not in ("", [], ())}


def _index(header: np.void, encoding: Encoding, used: set[int]) -> int:
    """Gadgetron's 1-based image number, slices fastest; the next free one where counters exceed their limits."""
    index = 0
    for name in ("repetition", "set", "phase", "contrast", "slice"):
        index = index * encoding.count(name) + int(header[name])
    index += 1
    if len(used) == _MOST_INDICES:
        used.clear()
    while index in used or index > _MOST_INDICES:
        index = index % _MOST_INDICES + 1
    used.add(index)
    return index


def _image(header: Any, data: NDArray[Any], meta: Mapping[str, object]) -> Image:  # noqa: ANN401 - one record of an array
    attributes = serialize_meta(meta)
    header["attribute_string_len"] = len(attributes.encode())
    return Image(header, data[None, None], attributes)


def _frame_meta(header: np.void, frame: int) -> dict[str, object]:
    return {
        "GADGETRON_ImageNumber": int(header["image_index"]),
        "acquisition_time_stamp": int(header["acquisition_time_stamp"]),
        "physiology_time_stamp": header["physiology_time_stamp"].tolist(),
        "cinestream_frame": frame,
    }


# XML 1.0 allows these neither as they are nor escaped; lone surrogates (from JSON) have no bytes at all.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def serialize_meta(meta: Mapping[str, object]) -> str:
    """Write meta attributes as ISMRMRD's XML; a list or tuple becomes several values of one name."""
    parts = ['<?xml version="1.0" encoding="UTF-8"?><ismrmrdMeta>']
    for name, value in meta.items():
        values: Iterable[object] = value if isinstance(value, list | tuple) else (value,)
        text = "".join(f"<value>{_value(item)}</value>" for item in values)
        parts.append(f"<meta><name>{escape(name)}</name>{text}</meta>")
    parts.append("</ismrmrdMeta>")
    return "".join(parts)


def _value(item: object) -> str:
    return f"{item:.9g}" if isinstance(item, float) else escape(_FORBIDDEN.sub("", str(item)))


def to_recon_space(image: NDArray[np.complex64], encoding: Encoding) -> NDArray[np.complex64]:
    """Bring images from the encoded field of view and matrix to those of the recon space.

    The field of view is cut (phase oversampling) or padded in the image; then the matrix is changed by padding
    (interpolation) or cutting in k-space, which keeps the values of the image.

    Parameters
    ----------
    image
        ``(frame, y, x)`` complex64; readout oversampling is gone already.
    encoding
        Gives both spaces.

    Returns
    -------
    ndarray
        ``(frame, y, x)`` complex64 of the recon matrix.
    """
    image = _to_field_of_view(image, encoding)
    for axis, size in ((1, encoding.recon.matrix[1]), (2, encoding.recon.matrix[0])):
        if image.shape[axis] != size:
            image = _interpolate(image, size, axis)
    return image


def _to_field_of_view(image: NDArray[np.complex64], encoding: Encoding) -> NDArray[np.complex64]:
    encoded, recon = encoding.encoded, encoding.recon
    wide = min(encoded.field_of_view[0], recon.field_of_view[0]), encoded.field_of_view[1]
    for axis, covered, wanted in ((1, wide[1], recon.field_of_view[1]), (2, wide[0], recon.field_of_view[0])):
        if covered > 0 and wanted > 0:
            image = _resize_centered(image, max(1, round(image.shape[axis] * wanted / covered)), axis)
    return image


def _noise_lost(image: NDArray[np.complex64], encoding: Encoding) -> float:
    """By which factor the noise falls in `to_recon_space`: where the recon matrix cuts k-space. More pixels keep it."""
    n_y, n_x = _to_field_of_view(image[:1], encoding).shape[1:]
    x, y, _ = encoding.recon.matrix
    return math.sqrt(max(1.0, n_y / y) * max(1.0, n_x / x))


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
