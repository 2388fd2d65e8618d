import dataclasses
import itertools

import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.gating.heartbeat import find_heartbeat
from gadgets.images.maker import (
    MOST_ENCODINGS,
    SECOND_SERIES,
    SLICE_SERIES,
    ImageMaker,
    series_index,
    to_recon_space,
)
from gadgets.preparation.noise import ScanNoise
from gadgets.preparation.readouts import Preparation
from gadgets.problems import Problems
from gadgets.settings.settings import FIELDS, Settings
from gadgets.slices.buffers import SliceBuffers
from gadgets.slices.complete import CompleteSlice, SliceKey
from gadgets.wire.header import parse_header
from gadgets.wire.messages import ACQUISITION_HEADER, IMAGE_HEADER
from gadgets.wire.writer import encode
from recon_core.data import CineSlice, Receiver, Reconstruction
from recon_core.errors import DataError
from tests.helpers.builders import encoding_xml, header_xml, readouts

SQUARE = {
    "encoded": (8, 6, 1),
    "recon": (8, 6, 1),
    "encoded_fov": (160.0, 120.0, 7.0),
    "recon_fov": (160.0, 120.0, 7.0),
}


def complete_slice(frames=3, key=None, notes=(), tick=2.5, **fields):
    """A slice whose k-space does not matter, with headers of which every field differs from frame to frame."""
    key = key or SliceKey(0, 0, 0, 0, 0)
    headers = np.zeros(frames, ACQUISITION_HEADER)
    rng = np.random.default_rng(0)
    headers["version"] = 1
    headers["measurement_uid"] = 4711
    headers["acquisition_time_stamp"] = 50_000 + 17 * np.arange(frames)
    headers["physiology_time_stamp"] = rng.integers(0, 400, (frames, 3))
    headers["position"] = rng.normal(size=3)
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    headers["patient_table_position"] = rng.normal(size=3)
    headers["user_int"] = rng.integers(-99, 99, (frames, 8))
    headers["user_float"] = rng.normal(size=(frames, 8))
    headers["idx"]["phase"] = np.arange(frames)
    headers["idx"]["average"] = 1
    for name in ("repetition", "set", "contrast", "slice"):
        headers["idx"][name] = getattr(key, name)
    for name, value in fields.items():
        (headers["idx"] if name in headers["idx"].dtype.names else headers)[name] = value
    cine = CineSlice(np.zeros((frames, 1, 6, 8), np.complex64), np.ones((frames, 6), bool))
    heartbeat = find_heartbeat(headers, headers[:0], tick)
    return CompleteSlice(key, cine, headers, heartbeat, np.arange(frames), np.full(frames, 6), notes)


def reconstruction(image=None, frames=3, seed=0, method="cg_sense", notes=()):
    if image is None:
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(frames, 6, 8)) + 1j * rng.normal(size=(frames, 6, 8))
    image = np.asarray(image, np.complex64)
    return Reconstruction(image, np.ones((1, *image.shape[1:]), np.complex64), method, notes=notes)


def maker(xml=None, *, limits=None, **settings):
    header = parse_header(xml or header_xml(**SQUARE, limits=limits))
    return ImageMaker(header, Settings.of(**settings))


def vendor_xml(vendor):
    system = f"<systemVendor>{vendor}</systemVendor>"
    return f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"


def meta_of(image):
    return ismrmrd.Meta.deserialize(image.attributes)


# --- geometry ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a scan; field of view in mm, (x, y)."""

    encoded: tuple
    encoded_fov: tuple
    recon: tuple
    recon_fov: tuple
    center: int | None = None
    lines: tuple | None = None
    first_sample: int = 0

    def header(self):
        middle = self.encoded[1] // 2
        low, high = self.lines or (0, self.encoded[1] - 1)
        center = middle if self.center is None else self.center
        xml = header_xml(
            encoded=(*self.encoded, 1),
            recon=(*self.recon, 1),
            encoded_fov=(*self.encoded_fov, 8.0),
            recon_fov=(*self.recon_fov, 8.0),
            limits={"kspace_encoding_step_1": (low, high, center)},
        )
        return parse_header(xml), low, high, center


GEOMETRIES = {
    "plain": Geometry((32, 24), (320, 240), (32, 24), (320, 240)),
    "odd": Geometry((31, 23), (310, 230), (31, 23), (310, 230)),
    "readout oversampling": Geometry((64, 24), (640, 240), (32, 24), (320, 240)),
    "odd oversampling": Geometry((62, 27), (620, 270), (31, 21), (310, 210)),
    "phase oversampling": Geometry((32, 40), (320, 400), (32, 30), (320, 300)),
    "interpolation": Geometry((32, 24), (320, 240), (64, 72), (320, 240)),
    "odd interpolation": Geometry((31, 23), (310, 230), (62, 69), (310, 230)),
    "all at once": Geometry((64, 40), (640, 400), (64, 60), (320, 300)),
    "all at once, odd": Geometry((62, 35), (620, 350), (93, 75), (310, 250)),
    "smaller matrix": Geometry((64, 48), (320, 240), (32, 24), (320, 240)),
    "partial Fourier": Geometry((64, 40), (640, 400), (64, 60), (320, 300), center=12, lines=(0, 31)),
    "asymmetric echo": Geometry((64, 40), (640, 400), (64, 60), (320, 300), first_sample=18),
    "padded": Geometry((32, 24), (320, 240), (32, 32), (320, 320)),
    "padded and interpolated": Geometry((64, 24), (640, 240), (64, 64), (320, 320)),
    "padded readout": Geometry((24, 32), (240, 320), (32, 32), (320, 320)),
}
# The recon space ends between pixels of the measured size.
UNEVEN = {
    "uneven": Geometry((63, 41), (640, 412), (32, 29), (317, 289)),
    "uneven, interpolated": Geometry((64, 41), (640, 412), (48, 60), (317, 289)),
}
POSITION = np.array([31.25, -47.5, 12.75])
DIRECTIONS = np.linalg.qr(np.array([[0.8, 0.3, -0.5], [0.2, 0.9, 0.4], [0.6, -0.3, 0.7]]))[0].T


def scan_of_point(geometry, u, v):
    """Exact signal of a point `u` mm along read_dir and `v` mm along phase_dir from the middle of the slice."""
    header, low, high, center = geometry.header()
    columns, (wide, tall) = geometry.encoded[0], geometry.encoded_fov
    sample = np.arange(geometry.first_sample, columns)
    kx = (sample - columns // 2) / wide
    line = np.arange(low, high + 1)
    ky = (line - center) / tall
    signal = np.exp(-2j * np.pi * (ky[:, None, None] * v + kx * u)).astype(np.complex64)
    block = readouts(
        data=signal,
        center_sample=columns // 2 - geometry.first_sample,
        kspace_encode_step_1=line,
        position=POSITION,
        read_dir=DIRECTIONS[0],
        phase_dir=DIRECTIONS[1],
        slice_dir=DIRECTIONS[2],
    )
    return header, block


def images_of(header, block, **settings):
    """The stream's own stages around a plain inverse FFT."""
    problems = Problems()
    preparation = Preparation(header, problems, ScanNoise(header, problems, whiten=True))
    buffers = SliceBuffers(header, problems, Settings())
    make = ImageMaker(header, Settings.of(**settings)).make
    slices = [done for part in preparation(block) for done in buffers.add(part)] + list(buffers.flush())
    images = []
    for complete in slices:
        axes = (2, 3)
        kspace = np.fft.ifftshift(complete.cine.kspace, axes=axes)
        image = np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"), axes=axes)[:, 0]
        images += make(complete, reconstruction(image))
    assert problems.damage == []
    return images


def patient_coordinate(header, row, column):
    """Where a pixel lies; pixel N//2 of both axes lies at the header's position."""
    nx, ny, _ = header["matrix_size"].astype(int)
    wide, tall, _ = header["field_of_view"].astype(float)
    read, phase = header["read_dir"].astype(float), header["phase_dir"].astype(float)
    return header["position"] + (column - nx // 2) * wide / nx * read + (row - ny // 2) * tall / ny * phase


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(("u", "v"), [(0, 0), (50, -70), (-120, 80), (100, 100), (-140, -90), (10, 10)])
def test_a_point_appears_where_it_is_in_the_patient(name, u, v):
    geometry = GEOMETRIES[name]
    if name == "smaller matrix" or name.startswith("padded"):
        u, v = min(max(u, -110), 110), min(max(v, -110), 110)
    header, block = scan_of_point(geometry, u, v)
    (image,) = images_of(header, block, scale=1.0)
    pixels = image.data[0, 0]
    assert pixels.shape == geometry.recon[::-1]
    row, column = np.unravel_index(np.argmax(pixels), pixels.shape)
    truth = POSITION + u * DIRECTIONS[0] + v * DIRECTIONS[1]
    np.testing.assert_allclose(patient_coordinate(image.header, row, column), truth, atol=0.1)


@pytest.mark.parametrize("name", ["plain", "odd", "interpolation", "odd interpolation", "smaller matrix", *UNEVEN])
@pytest.mark.parametrize(("u", "v"), [(3.3, -1.7), (-57.9, 81.2), (104.6, 44.4)])
def test_a_point_between_pixels_lies_between_them(name, u, v):
    """The phase slope of the image's spectrum tells the place of a point to a small part of a pixel."""
    header, block = scan_of_point((GEOMETRIES | UNEVEN)[name], u, v)
    (image,) = images_of(header, block, scale=1.0, output="complex")
    pixels = image.data[0, 0].astype(complex)
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(pixels)))
    spectrum[np.abs(spectrum) < 0.5 * np.abs(spectrum).max()] = 0
    place = []
    for axis in (0, 1):
        size = pixels.shape[axis]
        ahead, behind = np.delete(spectrum, 0, axis), np.delete(spectrum, size - 1, axis)
        place.append(size // 2 - np.angle((ahead * behind.conj()).sum()) * size / (2 * np.pi))
    truth = POSITION + u * DIRECTIONS[0] + v * DIRECTIONS[1]
    # The tails of the point are cut off unevenly, which this way of looking at it takes for a shift.
    closeness = 0.5 if name in UNEVEN else 0.1
    np.testing.assert_allclose(patient_coordinate(image.header, *place), truth, atol=closeness)


@pytest.mark.parametrize("name", UNEVEN)
def test_the_field_of_view_is_that_of_whole_measured_pixels(name):
    header, block = scan_of_point(UNEVEN[name], 0, 0)
    (image,) = images_of(header, block)
    wide, tall, _ = image.header["field_of_view"].tolist()
    encoded, encoded_fov = UNEVEN[name].encoded, UNEVEN[name].encoded_fov
    columns, rows = wide * encoded[0] / encoded_fov[0], tall * encoded[1] / encoded_fov[1]
    assert (columns, rows) == pytest.approx(({63: 31, 64: 32}[encoded[0]], 29), abs=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_corners_and_directions_are_those_of_the_recon_space(name):
    geometry = GEOMETRIES[name]
    header, block = scan_of_point(geometry, 0, 0)
    (image,) = images_of(header, block)
    (nx, ny), (wide, tall) = geometry.recon, geometry.recon_fov
    for row, column in itertools.product((0, ny - 1), (0, nx - 1)):
        x, y = (column - nx // 2) * wide / nx, (row - ny // 2) * tall / ny
        expected = POSITION + x * DIRECTIONS[0] + y * DIRECTIONS[1]
        np.testing.assert_allclose(patient_coordinate(image.header, row, column), expected, atol=0.1)
    np.testing.assert_array_equal(image.header["slice_dir"], DIRECTIONS[2].astype(np.float32))
    np.testing.assert_allclose(image.header["field_of_view"], (*geometry.recon_fov, 8.0))
    assert image.header["matrix_size"].tolist() == [*geometry.recon, 1]


def spaces(encoded, recon, encoded_fov, recon_fov):
    fields = {"encoded": encoded, "recon": recon, "encoded_fov": encoded_fov, "recon_fov": recon_fov}
    xml = encoding_xml(**{name: (*value, 1) for name, value in fields.items()})
    return parse_header(header_xml(xml)).encodings[0]


@pytest.mark.parametrize(
    ("before", "after"), [((6, 8), (12, 24)), ((5, 7), (15, 21)), ((6, 7), (6, 14)), ((5, 8), (10, 8))]
)
def test_interpolation_keeps_the_values_of_the_pixels_it_started_from(before, after):
    rng = np.random.default_rng(0)
    image = (rng.normal(size=(2, *before)) + 1j * rng.normal(size=(2, *before))).astype(np.complex64)
    encoding = spaces(before[::-1], after[::-1], (100, 100), (100, 100))
    out = to_recon_space(image, encoding)
    assert out.dtype == np.complex64
    assert out.shape == (2, *after)
    rows, columns = (
        after[i] // 2 + (np.arange(before[i]) - before[i] // 2) * (after[i] // before[i]) for i in range(2)
    )
    np.testing.assert_allclose(out[:, rows][:, :, columns], image, atol=1e-5)


@pytest.mark.parametrize("sizes", [((16, 12), (33, 20)), ((15, 13), (7, 8)), ((12, 16), (8, 40))])
def test_a_uniform_image_stays_uniform_in_any_matrix(sizes):
    before, after = sizes
    out = to_recon_space(np.full((1, *before), 3 - 4j, np.complex64), spaces(before[::-1], after[::-1], (9, 9), (9, 9)))
    np.testing.assert_allclose(out, np.full((1, *after), 3 - 4j), atol=1e-5)


def test_phase_oversampling_is_cut_around_the_centre():
    image = np.arange(12, dtype=np.complex64)[None, :, None] * np.ones((1, 1, 4), np.complex64)
    out = to_recon_space(image, spaces((4, 12), (4, 8), (40, 120), (40, 80)))
    np.testing.assert_array_equal(out[0, :, 0].real, np.arange(2, 10))


def test_the_image_comes_through_untouched_where_spaces_agree():
    image = reconstruction().image
    np.testing.assert_array_equal(to_recon_space(image, parse_header(header_xml(**SQUARE)).encodings[0]), image)


# --- intensity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_one_factor_holds_for_all_frames_and_slices(output):
    make = maker(output=output, limits={"slice": (0, 1, 0), "phase": (0, 2, 0)}).make
    first = reconstruction(seed=1)
    second = reconstruction(7 * reconstruction(seed=2).image)
    images = [*make(complete_slice(), first), *make(complete_slice(key=SliceKey(0, 0, 0, 0, 1)), second)]
    source = np.concatenate([first.image, second.image])
    values = np.stack([image.data[0, 0] for image in images])
    expected = source if output == "complex" else np.abs(source)
    factor = 1000 / np.percentile(np.abs(first.image), 99)
    np.testing.assert_allclose(values, factor * expected, rtol=1e-4)
    assert values.dtype == (np.complex64 if output == "complex" else np.float32)
    for image in images:
        assert float(meta_of(image)["GADGETRON_ScaleRatio"]) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("brightness", [1e-8, 1.0, 1e7])
def test_bright_tissue_lands_near_a_thousand(brightness):
    images = list(maker().make(complete_slice(), reconstruction(brightness * reconstruction().image)))
    assert np.percentile([image.data for image in images], 99) == pytest.approx(1000, rel=1e-4)
    image = images[0]
    center, width = (float(meta_of(image)[f"GADGETRON_Window{name}"]) for name in ("Center", "Width"))
    assert width == pytest.approx(1000, abs=1)
    assert center == pytest.approx(width / 2, abs=1)


def test_a_scale_that_is_set_is_used():
    result = reconstruction()
    images = maker(scale=2.5).make(complete_slice(), result)
    np.testing.assert_allclose(np.stack([image.data[0, 0] for image in images]), 2.5 * np.abs(result.image), rtol=1e-6)


def test_an_empty_image_stays_empty():
    for image in maker().make(complete_slice(), reconstruction(np.zeros((3, 6, 8)))):
        assert not image.data.any()
        assert float(meta_of(image)["GADGETRON_ScaleRatio"]) == 1


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_the_reconstruction_is_not_changed(output):
    result = reconstruction()
    before = result.image.copy()
    result.image.flags.writeable = False
    list(maker(output=output).make(complete_slice(), result))
    np.testing.assert_array_equal(result.image, before)


# --- g-factor ---------------------------------------------------------------------------------------------------------


def with_g_factor(frames=3, seed=0):
    g_factor = np.random.default_rng(seed).uniform(0.9, 3, (6, 8)).astype(np.float32)
    return dataclasses.replace(reconstruction(frames=frames, seed=seed), g_factor=g_factor)


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_the_g_factor_is_a_series_of_its_own(output):
    result, complete = with_g_factor(), complete_slice()
    *frames, image = maker(output=output, series=4, scale=7.0).make(complete, result)
    assert [int(frame.header["image_series_index"]) for frame in frames] == [4, 4, 4]
    header, meta = image.header, meta_of(image)
    assert (header["image_series_index"], header["image_index"]) == (23, 1)
    assert (header["data_type"], header["image_type"], header["channels"]) == (5, 1, 1)
    assert image.data.dtype == np.float32
    np.testing.assert_allclose(image.data[0, 0], 100 * result.g_factor, rtol=1e-6)
    np.testing.assert_array_equal(header["position"], complete.headers["position"][0])
    assert header["attribute_string_len"] == len(image.attributes.encode())
    assert meta["GADGETRON_DataRole"] == "Gfactor"
    assert meta["DataRole"] == "Quantitative"
    assert meta["GADGETRON_SeqDescription"] == "_cg_sense_gfactor"
    assert float(meta["GADGETRON_ScaleRatio"]) == 100
    assert meta_of(frames[0])["GADGETRON_DataRole"] == "Image"
    assert float(meta_of(frames[0])["GADGETRON_ScaleRatio"]) == 7


def test_the_g_factor_leaves_the_images_as_they_are():
    limits = {"slice": (0, 1, 0), "phase": (0, 2, 0)}
    with_it, without = maker(limits=limits).make, maker(limits=limits).make
    g_factor_indices = []
    for number in range(2):
        complete, result = complete_slice(key=SliceKey(0, 0, 0, 0, number)), with_g_factor(seed=number)
        *frames, g_factor = with_it(complete, result)
        plain = list(without(complete, dataclasses.replace(result, g_factor=None)))
        assert len(frames) == len(plain) == 3
        for image, expected in zip(frames, plain, strict=True):
            assert image.header.tobytes() == expected.header.tobytes()
            assert image.attributes == expected.attributes
            np.testing.assert_array_equal(image.data, expected.data)
        assert g_factor.header["slice"] == number
        g_factor_indices.append(int(g_factor.header["image_index"]))
    assert g_factor_indices == [1, 2]


def test_the_g_factor_has_the_geometry_of_the_images():
    header, *_ = GEOMETRIES["phase oversampling"].header()
    result = Reconstruction(
        np.ones((3, 40, 32), np.complex64),
        np.ones((1, 40, 32), np.complex64),
        "cg_sense",
        g_factor=np.broadcast_to(np.arange(40, dtype=np.float32)[:, None], (40, 32)),
    )
    *frames, image = ImageMaker(header, Settings()).make(complete_slice(), result)
    assert image.data.shape == frames[0].data.shape == (1, 1, 30, 32)
    np.testing.assert_array_equal(image.header["matrix_size"], frames[0].header["matrix_size"])
    np.testing.assert_allclose(image.data[0, 0, :, 0], 100 * np.arange(5, 35), rtol=1e-6)


def with_extra(frames=3, seed=0):
    rng = np.random.default_rng(seed)
    uncertainty = rng.uniform(0, 0.2, (frames, 6, 8)).astype(np.float32)
    fused = rng.uniform(0, 1, (6, 8)).astype(np.float32)
    extra = {"fused": fused, "uncertainty": uncertainty}
    return dataclasses.replace(with_g_factor(frames, seed), extra=extra)


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_the_uncertainty_is_a_series_in_the_units_of_the_images(output):
    result, complete = with_extra(), complete_slice()
    images = list(maker(output=output, series=3).make(complete, result))
    frames, uncertainty = ([each for each in images if each.header["image_series_index"] == n] for n in (3, 24))
    assert len(frames) == len(uncertainty) == 3
    factor = float(meta_of(frames[0])["GADGETRON_ScaleRatio"])
    for number, (image, of) in enumerate(zip(uncertainty, frames, strict=True)):
        assert (image.header["data_type"], image.header["image_type"], image.data.dtype) == (5, 1, np.float32)
        np.testing.assert_allclose(image.data[0, 0], factor * result.extra["uncertainty"][number], rtol=1e-5)
        for name in ("image_index", "phase", "acquisition_time_stamp", "position", "read_dir", "matrix_size"):
            np.testing.assert_array_equal(image.header[name], of.header[name])
        meta = meta_of(image)
        assert meta["cinestream_frame"] == str(number)
        assert meta["DataRole"] == "Quantitative"
        assert meta["GADGETRON_DataRole"] == "Uncertainty"
        assert meta["GADGETRON_SeqDescription"] == "_cg_sense_uncertainty"
        assert float(meta["GADGETRON_ScaleRatio"]) == pytest.approx(factor)


def test_the_fused_image_comes_when_asked_for_and_says_that_it_is_no_mr_image():
    result = with_extra()
    *others, image = maker(series=3, emit_fused=True).make(complete_slice(), result)
    assert image.header["image_series_index"] == 25
    assert [each.header["image_series_index"] for each in others].count(25) == 0
    np.testing.assert_allclose(image.data[0, 0], 1000 * result.extra["fused"], rtol=1e-5)
    meta = meta_of(image)
    for key in ("GADGETRON_ImageComment", "ImageComments"):
        assert meta[key].startswith("CT-MR fused, not an MR image; ")
        assert not any("fused" in meta_of(each)[key] for each in others)
    assert meta["SequenceDescriptionAdditional"] == "cg_sense_fused"
    assert meta["DataRole"] == "Quantitative"
    assert meta["GADGETRON_DataRole"] == "Fused"

    silent = list(maker(series=3).make(complete_slice(), result))
    assert len(silent) == len(others)
    assert all(each.header["image_series_index"] != 25 for each in silent)


def test_values_below_zero_are_not_mirrored():
    result = dataclasses.replace(reconstruction(), extra={"fused": np.full((6, 8), -0.5, np.float32)})
    *_, image = maker(emit_fused=True).make(complete_slice(), result)
    assert not image.data.any()


def test_other_images_leave_those_of_the_frames_as_they_are():
    plain = list(maker().make(complete_slice(), reconstruction()))
    images = list(maker(emit_fused=True).make(complete_slice(), with_extra()))
    assert len(images) == 3 + 1 + 3 + 1
    for image, expected in zip(images, plain, strict=False):
        assert image.attributes == expected.attributes
        np.testing.assert_array_equal(image.data, expected.data)


def test_attributes_of_a_slice_reach_all_of_its_images():
    complete = dataclasses.replace(complete_slice(), meta={"ct_status": "ok", "ct_hash": ""})
    for image in maker(emit_fused=True).make(complete, with_extra()):
        assert meta_of(image)["ct_status"] == "ok"
        assert "ct_hash" not in meta_of(image)


def test_the_largest_series_leaves_room_for_those_of_other_images():
    largest = FIELDS["series"].allowed.maximum
    *_, image = maker(series=largest).make(complete_slice(), reconstruction(), second="zero_filled")
    assert image.header["image_series_index"] == largest + max(SECOND_SERIES.values()) == 65535


@pytest.mark.parametrize(("second", "offset"), [("preview", 23), ("beside", 24)])
@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_a_second_reconstruction_is_a_series_of_its_own(second, offset, output):
    make = maker(series=3, output=output).make
    first = list(make(complete_slice(), reconstruction(method="crunet_mr")))
    images = list(make(complete_slice(), with_extra(), second=second))
    assert len(first) == len(images) == 3  # and nothing else of it
    for image, of in zip(images, first, strict=True):
        assert image.header["image_series_index"] == 3 + offset
        assert meta_of(image)["SequenceDescriptionAdditional"] == f"cg_sense_{second}"
        assert meta_of(image)["DataRole"] == "Image"
        assert meta_of(image)["GADGETRON_ScaleRatio"] == meta_of(of)["GADGETRON_ScaleRatio"]
        for name in ("image_index", "phase", "position", "matrix_size", "data_type"):
            np.testing.assert_array_equal(image.header[name], of.header[name])


def with_others(**fields):
    """A reconstruction with everything that can come beside its images."""
    beside, zero_filled = (
        reconstruction(seed=seed, method=name) for seed, name in ((7, "cg_sense"), (8, "zero_filled"))
    )
    return dataclasses.replace(with_extra(), method="crunet_mr", beside=beside, zero_filled=zero_filled, **fields)


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_the_difference_is_that_of_the_magnitudes_that_are_sent_and_says_that_it_is_no_anatomy(output):
    make, result = maker(output=output, extra_series="difference").make, with_others()
    images = {index: [] for index in (1, 20, 21, 22, 25, 26)}
    for image in make(complete_slice(), result):
        images[int(image.header["image_series_index"])].append(image)
    beside = list(make(complete_slice(), result.beside, second="beside"))
    assert len(images[26]) == 3
    for image, one, other in zip(images[26], images[1], beside, strict=True):
        np.testing.assert_allclose(image.data, 5 * np.abs(np.abs(one.data) - np.abs(other.data)), rtol=1e-4, atol=1e-2)
        meta = meta_of(image)
        assert meta["ImageComments"].startswith("difference of crunet_mr and cg_sense x 5, not anatomy; ")
        assert meta["GADGETRON_DataRole"] == "Difference"
        assert meta["DataRole"] == "Quantitative"
        assert float(meta["GADGETRON_ScaleRatio"]) == pytest.approx(5 * float(meta_of(one)["GADGETRON_ScaleRatio"]))
        assert meta["WindowWidth"] == meta_of(one)["WindowWidth"]


def test_other_series_change_nothing_of_the_images():
    plain = list(maker().make(complete_slice(), dataclasses.replace(reconstruction(), method="crunet_mr")))
    for image, of in zip(maker(extra_series="difference").make(complete_slice(), with_others()), plain, strict=False):
        np.testing.assert_array_equal(image.data, of.data)
        assert image.attributes == of.attributes


def test_the_scale_of_a_scan_is_not_that_of_a_doubtful_image():
    images = list(maker().make(complete_slice(), with_others(doubts=("far off",))))
    wanted = list(maker().make(complete_slice(), with_others().beside))
    assert meta_of(images[0])["GADGETRON_ScaleRatio"] == meta_of(wanted[0])["GADGETRON_ScaleRatio"]


def test_a_dark_preview_does_not_make_the_images_bright():
    make = maker().make
    dark = dataclasses.replace(reconstruction(), image=0.25 * reconstruction().image)
    ahead = list(make(complete_slice(), dark, second="preview"))
    images = list(make(complete_slice(), reconstruction()))
    for made in (ahead, images):
        assert np.percentile([image.data for image in made], 99) == pytest.approx(1000, rel=1e-4)


# --- window -----------------------------------------------------------------------------------------------------------


def windows_of(images):
    found = {}
    for image in images:
        meta = meta_of(image)
        for name in ("Center", "Width"):
            assert meta[f"Window{name}"] == meta[f"GADGETRON_Window{name}"]
        window = float(meta["WindowCenter"]), float(meta["WindowWidth"])
        assert found.setdefault(int(image.header["image_series_index"]), window) == window
    return found


@pytest.mark.parametrize("output", ["magnitude", "complex"])
def test_every_series_has_the_window_of_its_own_values(output):
    make, result = maker(output=output).make, with_others()
    dark = dataclasses.replace(result.zero_filled, image=0.2 * result.image)
    windows = windows_of([*make(complete_slice(), result), *make(complete_slice(), dark, second="zero_filled")])
    assert windows == {1: (500, 1000), 20: (150, 300), 22: (50, 100), 27: (100, 200)}


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({"window_center": 300}, (300, 600)),
        ({"window_width": 500}, (250, 500)),
        ({"window_center": 300, "window_width": 500}, (300, 500)),
        ({"scale": 1e-9, "window_width": 0.00123456}, (0.0006173, 0.001235)),
    ],
)
def test_the_window_of_the_images_can_be_set(settings, window):
    windows = windows_of(maker(**settings).make(complete_slice(), with_g_factor()))
    assert windows[1] == pytest.approx(window, rel=1e-6)
    assert windows[20] == (150, 300)


def test_images_of_small_values_have_a_window_too():
    (window,) = set(windows_of(maker(scale=1e-4).make(complete_slice(), reconstruction())).values())
    bright = 1e-4 * np.percentile(np.abs(reconstruction().image), 99)
    assert window == pytest.approx((bright / 2, bright), rel=1e-3)


# --- series -----------------------------------------------------------------------------------------------------------


def test_every_slice_can_have_a_series_of_its_own():
    make = maker(limits={"slice": (0, 2, 0), "phase": (0, 2, 0)}, series=4, series_by="slice").make
    for number in (2, 0, 1):
        complete = complete_slice(key=SliceKey(0, 0, 0, 0, number))
        images = [*make(complete, with_extra()), *make(complete, reconstruction(), second="zero_filled")]
        found = [(int(image.header["image_series_index"]), int(image.header["image_index"])) for image in images]
        first = 4 + SLICE_SERIES * number
        expected = [
            (first + kind, i) for kind, count in ((0, 3), (19, 1), (21, 3), (26, 3)) for i in range(1, count + 1)
        ]
        assert found == expected
        names = [meta_of(image)["SequenceDescriptionAdditional"] for image in images]
        assert names[0] == f"cg_sense_slice{number}"
        assert names[3] == f"cg_sense_slice{number}_gfactor"
        assert names[-1] == f"cg_sense_zero_filled_slice{number}"
        assert [image.kind for image in images] == [""] * 3 + ["g-factor"] + ["uncertainty"] * 3 + ["zero-filled"] * 3


@given(
    first=st.integers(1, 65509),
    slices=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    encodings=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    by=st.sampled_from(["scan", "slice"]),
)
def test_series_never_leave_sixteen_bits_nor_collide(first, slices, encodings, by):
    settings = Settings.of(series=first, series_by=by)
    kinds = (0, 19, 21, 22, 25, *SECOND_SERIES.values())
    places = [*itertools.product(set(slices), set(encodings))]
    indices = {(*place, kind): series_index(settings, kind, *place) for place in places for kind in kinds}
    assert all(first <= index <= 65535 for index in indices.values())
    for (*_, kind), index in indices.items():
        assert all(other == kind for (*_, other), same in indices.items() if same == index)
    apart = set(slices) if by == "slice" else {0}
    if max(encodings) < MOST_ENCODINGS and first + 26 + 60 + SLICE_SERIES * max(apart) <= 65535:
        assert len(set(indices.values())) == len(apart) * len(set(encodings)) * len(kinds)


@pytest.mark.parametrize("by", ["scan", "slice"])
def test_every_encoding_has_a_series_of_its_own_in_the_order_of_the_images(by):
    problems = Problems()
    header = parse_header(header_xml(*[encoding_xml(**SQUARE)] * 5))
    make = ImageMaker(header, Settings.of(series_by=by), problems).make
    found = {}
    for number in (2, 0, 3):
        images = [*make(complete_slice(key=SliceKey(number, 0, 0, 0, 0)), with_g_factor())]
        found[number] = {int(image.header["image_series_index"]) for image in images}
        named = "" if number == 2 else f"_encoding{number}"
        assert meta_of(images[0])["SequenceDescriptionAdditional"].removesuffix("_slice0") == f"cg_sense{named}"
    assert found == {2: {1, 20}, 0: {31, 50}, 3: {61, 80}}
    assert not list(problems)
    images = [*make(complete_slice(key=SliceKey(4, 0, 0, 0, 0)), reconstruction())]
    assert {int(image.header["image_series_index"]) for image in images} == {61}
    assert "encoding 4 has no series of its own" in str(next(iter(problems)))


def test_slices_without_a_series_of_their_own_share_the_last_and_are_named():
    problems = Problems()
    make = ImageMaker(parse_header(header_xml(**SQUARE)), Settings.of(series=65500, series_by="slice"), problems).make
    made = [list(make(complete_slice(key=SliceKey(0, 0, 0, 0, number)), reconstruction())) for number in (0, 1)]
    assert {int(image.header["image_series_index"]) for images in made for image in images} == {65500}
    assert len({int(image.header["image_index"]) for images in made for image in images}) == 6
    (problem,) = problems
    assert "slice 1 has no series of its own" in str(problem)
    assert not problem.damage


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(("u", "v"), [(0, 0), (50, -70), (-80, 80)])
def test_a_turned_image_shows_every_point_where_it_is(name, u, v):
    header, block = scan_of_point(GEOMETRIES[name], u, v)
    (as_it_was,) = images_of(header, block, scale=1.0)
    (turned,) = images_of(header, block, scale=1.0, orientation="flipped")
    np.testing.assert_array_equal(turned.data[0, 0], as_it_was.data[0, 0, ::-1, ::-1])
    np.testing.assert_array_equal(turned.magnitude, as_it_was.magnitude)
    row, column = np.unravel_index(np.argmax(turned.data[0, 0]), turned.data.shape[2:])
    truth = POSITION + u * DIRECTIONS[0] + v * DIRECTIONS[1]
    np.testing.assert_allclose(patient_coordinate(turned.header, row, column), truth, atol=0.1)
    rows, columns = turned.data.shape[2:]
    for row, column in itertools.product((0, rows // 3, rows - 1), (0, columns // 3, columns - 1)):
        before = patient_coordinate(as_it_was.header, rows - 1 - row, columns - 1 - column)
        np.testing.assert_allclose(patient_coordinate(turned.header, row, column), before, atol=1e-3)
    meta = meta_of(turned)
    for keys, field, expected in (
        (("read_dir", "ImageRowDir"), "read_dir", -DIRECTIONS[0]),
        (("phase_dir", "ImageColumnDir"), "phase_dir", -DIRECTIONS[1]),
        (("slice_dir", "ImageSliceDir"), "slice_dir", DIRECTIONS[2]),
        (("PatientPosition",), "position", turned.header["position"]),
    ):
        np.testing.assert_allclose(turned.header[field], expected, atol=1e-6)
        for key in keys:
            np.testing.assert_array_equal(np.array(meta[key], np.float32), turned.header[field])
    assert meta["Keep_image_geometry"] == "1"


def test_all_series_are_turned_alike():
    result = with_others()
    plain = maker(extra_series="difference", output="complex").make
    turned = maker(extra_series="difference", output="complex", orientation="flipped").make
    for second in ("", "zero_filled"):
        made = [list(make(complete_slice(), result, second=second)) for make in (plain, turned)]
        for one, other in zip(*made, strict=True):
            np.testing.assert_array_equal(other.data, one.data[..., ::-1, ::-1])
            np.testing.assert_array_equal(other.header["read_dir"], -one.header["read_dir"])


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers_hold_what_the_readouts_held():
    complete = complete_slice(key=SliceKey(0, 1, 2, 1, 3))
    limits = {"slice": (0, 3, 0), "phase": (0, 2, 0), "set": (0, 2, 0), "contrast": (0, 1, 0), "repetition": (0, 1, 0)}
    images = list(maker(limits=limits, series=5).make(complete, reconstruction()))
    for i, image in enumerate(images):
        header = image.header
        for name in IMAGE_HEADER.names:
            if name in ACQUISITION_HEADER.names and name != "flags":
                np.testing.assert_array_equal(header[name], complete.headers[name][i], name)
        found = [int(header[name]) for name in ("repetition", "set", "contrast", "slice", "phase", "average")]
        assert found == [1, 2, 1, 3, i, 0]
        assert (header["data_type"], header["image_type"], header["channels"]) == (5, 1, 1)
        assert (header["image_series_index"], header["flags"]) == (5, 0)
        assert image.data.shape == (1, 1, 6, 8)


def test_complex_images_are_marked_as_such():
    image = next(maker(output="complex").make(complete_slice(), reconstruction()))
    assert (image.header["data_type"], image.header["image_type"], image.data.dtype) == (7, 5, np.complex64)


def test_image_index_follows_the_formula_and_is_unique():
    sizes = {"repetition": 2, "set": 2, "phase": 3, "contrast": 2, "slice": 4}
    make = maker(limits={name: (0, size - 1, 0) for name, size in sizes.items()}).make
    keys = [SliceKey(0, *values) for values in itertools.product(range(2), range(2), range(2), range(4))]
    indices = {}
    for key in keys:
        for image in make(complete_slice(key=key), reconstruction()):
            head = {name: int(image.header[name]) for name in sizes}
            expected = (
                head["repetition"] * 2 * 3 * 2 * 4
                + head["set"] * 3 * 2 * 4
                + head["phase"] * 2 * 4
                + head["contrast"] * 4
                + head["slice"]
                + 1
            )
            assert image.header["image_index"] == expected
            assert meta_of(image)["GADGETRON_ImageNumber"] == str(expected)
            indices[expected] = head
    assert sorted(indices) == list(range(1, 97))


def test_image_index_stays_unique_where_counters_exceed_the_limits():
    make = maker(limits={"phase": (0, 1, 0), "slice": (0, 1, 0)}).make
    found = []
    for number in range(4):
        images = make(complete_slice(5, key=SliceKey(0, 0, 0, 0, number)), reconstruction(frames=5))
        found += [int(image.header["image_index"]) for image in images]
    assert len(set(found)) == 20
    assert min(found) >= 1


def test_image_index_fits_its_sixteen_bits():
    make = maker(limits={"slice": (0, 299, 0), "phase": (0, 299, 0), "repetition": (0, 9, 0)}).make
    found = []
    for number in (0, 299):
        complete = complete_slice(key=SliceKey(0, 9, 0, 0, number), phase=[0, 218, 299])
        found += [int(image.header["image_index"]) for image in make(complete, reconstruction())]
    assert len(set(found)) == 6
    assert 1 <= min(found) <= max(found) <= 65535


def test_more_images_than_indices_do_not_stall_the_scan():
    make = maker(limits={"phase": (0, 2, 0)})
    make._used[1] = set(range(1, 65535))
    images = list(make.make(complete_slice(), reconstruction()))
    assert [int(image.header["image_index"]) for image in images] == [65535, 2, 3]


def test_ismrmrd_accepts_the_images():
    result = reconstruction()
    for image in maker(scale=1.0).make(complete_slice(), result):
        theirs = ismrmrd.Image(ismrmrd.ImageHeader.from_buffer_copy(image.header.tobytes()))
        assert theirs.data.shape == image.data.shape
        assert theirs.data.dtype == image.data.dtype
        assert list(theirs.field_of_view) == [160.0, 120.0, 7.0]
        assert theirs.getHead().image_type == ismrmrd.IMTYPE_MAGNITUDE
        np.testing.assert_array_equal(np.array(theirs.position), image.header["position"])
        theirs.attribute_string = image.attributes
        assert theirs.getHead().attribute_string_len == image.header["attribute_string_len"]
        assert b"".join(bytes(part) for part in encode(image))


# --- meta -------------------------------------------------------------------------------------------------------------

GADGETRON_KEYS = [
    "ImageNumber",
    "ImageProcessingHistory",
    "ImageComment",
    "SeqDescription",
    "DataRole",
    "WindowCenter",
    "WindowWidth",
    "ScaleRatio",
]
FIRE_KEYS = [
    "DataRole",
    "ImageProcessingHistory",
    "WindowCenter",
    "WindowWidth",
    "SequenceDescriptionAdditional",
    "ImageComments",
    "ImageRowDir",
    "ImageColumnDir",
    "Keep_image_geometry",
]
GENERIC_KEYS = [
    "encoding",
    "encoding_FOV",
    "recon_FOV",
    "encoded_matrix",
    "recon_matrix",
    "sampling_limits_RO",
    "sampling_limits_E1",
    "sampling_limits_E2",
    "PatientPosition",
    "read_dir",
    "phase_dir",
    "slice_dir",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
    "measurementID",
    "protocolName",
    "patient_position",
]


def full_header(protocol="cine_short_axis"):
    information = (
        "<measurementInformation><measurementID>1_2_3_4</measurementID><patientPosition>HFS</patientPosition>"
        f"<protocolName>{protocol}</protocolName></measurementInformation>"
    )
    limits = {f"kspace_encoding_step_{i}": (i, i + 5, i + 3) for i in range(3)}
    return header_xml(**SQUARE, limits=limits, before=information)


def test_ranges_of_the_time_stamps_are_those_of_the_readouts_of_a_frame():
    stamps = np.arange(24, dtype=np.uint32).reshape(3, 4, 2)
    complete = dataclasses.replace(complete_slice(), stamps=stamps)
    for image, (acquisition, *physiology) in zip(maker().make(complete, reconstruction()), stamps, strict=True):
        meta = meta_of(image)
        assert [int(value) for value in meta["acquisition_time_range"]] == acquisition.tolist()
        assert [int(value) for value in meta["physiology_time_range"]] == np.ravel(physiology).tolist()


@pytest.mark.parametrize("text", ["", "57", "1_2_3"])
def test_a_measurement_id_of_fewer_parts_names_nothing_else(text):
    xml = full_header().replace("1_2_3_4", text)
    meta = meta_of(next(maker(xml).make(complete_slice(), reconstruction())))
    assert meta.get("measurementID", "") == text
    assert not {"deviceID", "patientID", "studyID", "measurementNumber"} & set(meta)


def test_encoded_space_is_given_without_readout_oversampling():
    """As gadgets behind the stock reconstruction have it."""
    space = {**SQUARE, "encoded": (16, 6, 1), "encoded_fov": (320.0, 120.0, 7.0)}
    meta = meta_of(next(maker(header_xml(**space)).make(complete_slice(), reconstruction())))
    assert [float(value) for value in meta["encoding_FOV"]] == [160, 120, 7]
    assert [int(value) for value in meta["encoded_matrix"]] == [8, 6, 1]


def test_meta_has_the_keys_of_gadgetron_and_fire():
    complete = complete_slice()
    images = list(maker(full_header()).make(complete, reconstruction()))
    for i, image in enumerate(images):
        meta = meta_of(image)
        for key in [*(f"GADGETRON_{name}" for name in GADGETRON_KEYS), *FIRE_KEYS, *GENERIC_KEYS]:
            assert key in meta, key
        assert meta["measurementID"] == "1_2_3_4"
        assert meta["patient_position"] == "HFS"
        parts = ("deviceID", "patientID", "studyID", "measurementNumber")
        assert [meta[name] for name in parts] == ["1", "2", "3", "4"]
        assert [float(v) for v in meta["encoding_FOV"]] == [160, 120, 7]
        assert [int(v) for v in meta["recon_matrix"]] == [8, 6, 1]
        assert [int(v) for v in meta["sampling_limits_E1"]] == [0, 3, 5]  # all six lines, centre at 6 // 2
        assert [int(v) for v in meta["sampling_limits_RO"]] == [0, 4, 7]
        for key, field in {
            "PatientPosition": "position",
            "read_dir": "read_dir",
            "phase_dir": "phase_dir",
            "slice_dir": "slice_dir",
            "patient_table_position": "patient_table_position",
            "ImageRowDir": "read_dir",
            "ImageColumnDir": "phase_dir",
        }.items():
            np.testing.assert_array_equal(np.array(meta[key], np.float32), complete.headers[field][i])
        assert int(meta["acquisition_time_stamp"]) == complete.headers["acquisition_time_stamp"][i]
        assert [int(v) for v in meta["physiology_time_stamp"]] == complete.headers["physiology_time_stamp"][i].tolist()
        for name in ("user_int", "user_float"):
            values = np.array([meta[f"{name}_{number}"] for number in range(8)], np.float32)
            np.testing.assert_array_equal(values, complete.headers[name][i])
        assert "acquisition_time_range" not in meta  # nothing is known of other readouts than that of the header
        assert meta["GADGETRON_DataRole"] == meta["DataRole"] == "Image"
        assert "cinestream" in " ".join(meta["ImageProcessingHistory"])


def test_meta_says_which_columns_of_an_asymmetric_echo_were_measured():
    complete = complete_slice()
    cine = dataclasses.replace(complete.cine, receiver=Receiver(columns=np.arange(8) >= 2))
    image, *_ = maker().make(dataclasses.replace(complete, cine=cine), reconstruction())
    assert [int(v) for v in meta_of(image)["sampling_limits_RO"]] == [2, 4, 7]


def test_meta_names_the_method_and_what_differed():
    complete = complete_slice(notes=("slice 0 lacks lines",))
    image = next(maker().make(complete, reconstruction(method="zero_filled", notes=("maps may be aliased",))))
    meta = meta_of(image)
    for key in ("GADGETRON_ImageComment", "ImageComments"):
        for words in ("zero_filled", "slice 0 lacks lines", "maps may be aliased"):
            assert words in meta[key]
    assert meta["GADGETRON_SeqDescription"] == "_zero_filled"
    assert meta["SequenceDescriptionAdditional"] == "zero_filled"


def test_a_description_of_the_users_own():
    image = next(maker(description="my cine").make(complete_slice(), reconstruction()))
    assert meta_of(image)["GADGETRON_SeqDescription"] == "_my cine"
    assert meta_of(image)["SequenceDescriptionAdditional"] == "my cine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b & c > d", "a < b & c > d"),
        ("<value>x</value>]]>", "<value>x</value>]]>"),
        ("\"quotes\" and 'more'", "\"quotes\" and 'more'"),
        ("Herz-Kurzachse äöü 心臓 \U0001fac0", "Herz-Kurzachse äöü 心臓 \U0001fac0"),
        ("bell\x07 null\x00 escape\x1b", "bell null escape"),
        ("no characters \ufffe\uffff", "no characters "),
        ("half a pair \ud83d", "half a pair "),
    ],
    ids=["markup", "tags", "quotes", "unicode", "control", "not characters", "surrogate"],
)
def test_special_characters_in_names(text, expected):
    image = next(maker(description=text).make(complete_slice(), reconstruction()))
    assert meta_of(image)["SequenceDescriptionAdditional"] == expected
    assert b"".join(bytes(part) for part in encode(image))


def test_special_characters_in_the_protocol_name():
    image = next(maker(full_header("A &amp; B &lt;cine&gt;")).make(complete_slice(), reconstruction()))
    assert meta_of(image)["protocolName"] == "A & B <cine>"


# --- heartbeat --------------------------------------------------------------------------------------------------------


def test_images_tell_when_in_the_heartbeat_they_were_measured():
    stamps = np.array([10, 30, 50])
    for tick in (2.5, 4.0):
        complete = complete_slice(tick=tick, physiology_time_stamp=np.stack([stamps, stamps, stamps], axis=1))
        for image in maker(header_xml(**SQUARE)).make(complete, with_extra()):
            stamp = stamps[int(image.header["phase"])]
            assert image.header["physiology_time_stamp"].tolist() == [stamp] * 3
            assert float(meta_of(image)["cinestream_trigger_time_ms"]) == tick * stamp
            assert float(meta_of(image)["cinestream_frame_time_ms"]) == 20 * tick
            assert "cinestream_no_trigger_time" not in meta_of(image)


def test_absurd_stamps_make_no_trigger_times_and_it_is_said_why_once():
    absurd = 4304495 + 12 * np.arange(3)
    ticks = np.stack([absurd, [1, 2, 3], [4, 5, 6]], axis=1)
    problems = Problems()
    make = ImageMaker(parse_header(header_xml(**SQUARE)), Settings(), problems).make
    complete = complete_slice(tick=1.0, physiology_time_stamp=ticks)
    images = [*make(complete, reconstruction()), *make(complete, reconstruction(), second="preview")]
    for i, image in enumerate(images):
        meta = meta_of(image)
        assert "cinestream_trigger_time_ms" not in meta
        assert "4305 s: no gating was on" in meta["cinestream_no_trigger_time"]
        assert image.header["physiology_time_stamp"].tolist() == [0, 1 + i % 3, 4 + i % 3]
        assert [int(v) for v in meta["physiology_time_stamp"]] == [absurd[i % 3], 1 + i % 3, 4 + i % 3]
    (problem,) = problems
    assert str(problem).startswith("slice 0: the time since the R wave is 430")
    assert problem.count == 1
    assert not problem.damage


def test_stamps_that_were_left_empty_are_nothing_to_tell_the_sender():
    problems = Problems()
    make = ImageMaker(parse_header(header_xml(**SQUARE)), Settings(), problems).make
    for image in make(complete_slice(physiology_time_stamp=0), reconstruction()):
        assert "no time since an R wave" in meta_of(image)["cinestream_no_trigger_time"]
    assert list(problems) == []


def test_images_beyond_float32_are_refused_and_black_ones_are_said():
    with pytest.raises(DataError, match="exceed what float32 holds; set scale to a smaller number"):
        list(maker(scale=1e12).make(complete_slice(), reconstruction(np.full((3, 6, 8), 1e30))))
    problems = Problems()
    make = ImageMaker(parse_header(header_xml(**SQUARE)), Settings(), problems).make
    images = list(make(complete_slice(), reconstruction(np.zeros((3, 6, 8)))))
    assert not any(image.data.any() for image in images)
    assert "slice 0 are black" in str(*problems)
    assert not problems.damage
