"""CT volumes: a ramp of HU in the patient, written in every format, must come back as that ramp on any slice."""

import dataclasses
import hashlib
import importlib

import h5py
import ismrmrd
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from recon_core.ct.alignment import check_alignment, time_average_magnitude
from recon_core.ct.geometry import AIR, SliceGeometry, load_transform, resample, window
from recon_core.ct.load import load_volume
from recon_core.ct.placement import ScanCt
from recon_core.ct.settings import CtSettings
from recon_core.ct.volume import CtVolume
from recon_core.errors import DataError, ResourceError, SettingsError
from tests.helpers.parity import run_case
from tests.helpers.paths import SHARED, existing

PARITY = SHARED / "parity" / "atlf_net"
SHAPE = (22, 26, 18)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(*degrees):
    """About x, y and z, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        result = turn @ result
    return result


def affine(directions, spacing=(2.0, 3.0, 4.0), centre=(5.0, -8.0, 12.0), shape=SHAPE):
    """Index to LPS with the middle of the volume at a point."""
    result = np.eye(4)
    result[:3, :3] = directions * spacing
    result[:3, 3] = centre - result[:3, :3] @ ((np.array(shape) - 1) / 2)
    return result


OBLIQUE = affine(rotation(12, -20, 33))


def ramp(points):
    """HU at points in LPS, ``(..., 3)``."""
    return points @ np.array([2.0, -3.0, 5.0]) + 40


def ramp_volume(matrix, shape=SHAPE):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return ramp(index @ matrix[:3, :3].T + matrix[:3, 3])


def geometry(**changes):
    turn = rotation(-25, 10, 60)
    values = {
        "position": (4.0, -6.0, 11.0),
        "read_dir": tuple(turn[:, 0]),
        "phase_dir": tuple(turn[:, 1]),
        "slice_dir": tuple(turn[:, 2]),
        "matrix": (16, 12),
        "field_of_view": (24.0, 20.0),
        "thickness": 6.0,
    }
    return SliceGeometry(**{**values, **changes})


def points(slice_, x0=None, y0=None):
    """Of all pixels in LPS, by the definition."""
    n_x, n_y = slice_.matrix
    read, phase = (np.array(each) for each in (slice_.read_dir, slice_.phase_dir))
    column = (np.arange(n_x) - (n_x / 2 if x0 is None else x0)) * slice_.field_of_view[0] / n_x
    row = (np.arange(n_y) - (n_y / 2 if y0 is None else y0)) * slice_.field_of_view[1] / n_y
    return np.array(slice_.position) + row[:, None, None] * phase + column[:, None] * read


def volume(matrix=OBLIQUE):
    return CtVolume(ramp_volume(matrix).astype(np.float32), matrix, "")


# --- formats ----------------------------------------------------------------------------------------------------------


def write_nifti(path, matrix=OBLIQUE, *, sform=1, qform=0, units="mm", data=None):
    data = ramp_volume(matrix).astype(np.float32) if data is None else data
    image = nibabel.Nifti1Image(data, None)
    image.header.set_xyzt_units(units)
    image.header.set_sform(LPS_RAS @ matrix, sform)
    image.header.set_qform(LPS_RAS @ matrix, qform)
    image.to_filename(path)
    return path


def write_dicom(folder, matrix=OBLIQUE, *, shear=0.0, leave_out=(), slope=0.25, change=lambda number, dataset: None):
    """One file per slice, in an order that is not theirs."""
    folder.mkdir()
    stored = np.round((ramp_volume(matrix) + 1024) / slope)
    series, frame = generate_uid(), generate_uid()
    for k in range(SHAPE[2]):
        if k in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = pydicom.Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.Modality = "CT"
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series, frame
        dataset.Columns, dataset.Rows = SHAPE[:2]
        column, row, step = (matrix[:3, axis] for axis in range(3))
        dataset.PixelSpacing = [f"{np.linalg.norm(row):.6f}", f"{np.linalg.norm(column):.6f}"]
        unit = np.concatenate([column / np.linalg.norm(column), row / np.linalg.norm(row)])
        dataset.ImageOrientationPatient = [f"{part:.9f}" for part in unit]
        place = matrix[:3, 3] + k * (step + shear * row)
        dataset.ImagePositionPatient = [f"{part:.6f}" for part in place]
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope}", "-1024"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelData = stored[:, :, k].T.astype("<u2").tobytes()
        change(k, dataset)
        dataset.save_as(folder / f"{(k * 7) % SHAPE[2]:02d}.dcm", enforce_file_format=True)
    return folder


def write_hdf5(path, matrix=OBLIQUE, *, one_image=False, change=lambda headers: None, dtype=np.float32, groups=("ct",)):
    """By the ismrmrd package, slices in reverse order, or one image of three dimensions."""
    data = ramp_volume(matrix).astype(dtype)  # (x, y, z)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / spacing
    slabs = [data] if one_image else [data[:, :, k : k + 1] for k in reversed(range(SHAPE[2]))]
    images = []
    for number, slab in enumerate(slabs):
        first = 0 if one_image else SHAPE[2] - 1 - number
        half = [SHAPE[0] / 2, SHAPE[1] / 2, SHAPE[2] / 2 if one_image else first]
        image = ismrmrd.Image.from_array(np.ascontiguousarray(slab.T)[None], transpose=False)
        header = image.getHead()
        header.position[:] = matrix[:3, :3] @ half + matrix[:3, 3]
        header.field_of_view[:] = spacing * slab.shape
        for name, direction in zip(("read_dir", "phase_dir", "slice_dir"), directions.T, strict=True):
            getattr(header, name)[:] = direction
        image.setHead(header)
        images.append(image)
    change(images)
    for group in groups:
        with ismrmrd.Dataset(path, group) as dataset:
            for image in images:
                dataset.append_image("image_0", image)
    return path


def written(kind, folder, matrix=OBLIQUE):
    folder.mkdir(exist_ok=True)
    if kind.startswith("nifti"):
        codes = {"nifti sform": (2, 0), "nifti qform": (0, 1)}[kind]
        return write_nifti(folder / "ct.nii.gz", matrix, sform=codes[0], qform=codes[1])
    if kind == "dicom":
        return write_dicom(folder / "series", matrix)
    return write_hdf5(folder / "ct.h5", matrix, one_image=kind == "hdf5 volume")


KINDS = ["nifti sform", "nifti qform", "dicom", "hdf5 slices", "hdf5 volume"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "matrix", [OBLIQUE, affine(np.eye(3)), affine(rotation(90, 0, 0))], ids=["oblique", "axial", "coronal"]
)
def test_every_format_gives_the_ramp_on_an_oblique_slice(tmp_path, kind, matrix):
    ct = load_volume(written(kind, tmp_path, matrix))
    hu, cover = resample(ct, geometry())
    assert cover.all()
    # DICOM stores steps of 0.25 HU
    np.testing.assert_allclose(hu, ramp(points(geometry())), atol=0.13 if kind == "dicom" else 2e-3)


def test_the_digest_is_that_of_the_content(tmp_path):
    path = written("nifti sform", tmp_path / "a")
    assert load_volume(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = written("dicom", tmp_path / "b")
    before = load_volume(folder).digest
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"x{file.name}")
    assert load_volume(folder).digest == before
    (folder / "notes.txt").write_text("no DICOM")
    assert load_volume(folder).digest == before


def test_the_volume_does_not_need_its_file_any_more(tmp_path):
    path = write_nifti(tmp_path / "ct.nii")
    ct = load_volume(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    np.testing.assert_allclose(ct.hu, ramp_volume(OBLIQUE), atol=1e-3)


def test_images_that_are_no_ismrmrd_images(tmp_path):
    with h5py.File(tmp_path / "ct.h5", "w") as file:
        file["image/data"], file["image/header"] = np.zeros((1, 1, 4, 4, 4), np.float32), np.zeros(1)
    with pytest.raises(ResourceError, match="no ISMRMRD images"):
        load_volume(tmp_path / "ct.h5")


def test_the_sform_goes_before_the_qform(tmp_path):
    path = write_nifti(tmp_path / "ct.nii")
    image = nibabel.load(path)
    image.header.set_qform(np.eye(4), 1)
    image.to_filename(tmp_path / "both.nii")
    np.testing.assert_allclose(load_volume(tmp_path / "both.nii").affine, OBLIQUE, atol=1e-4)


def test_nifti_scaling_and_a_chosen_volume(tmp_path):
    data = np.stack([ramp_volume(OBLIQUE), ramp_volume(OBLIQUE) + 100], -1)
    image = nibabel.Nifti1Image(data, LPS_RAS @ OBLIQUE)
    image.header.set_xyzt_units("mm")
    image.header.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    image.to_filename(tmp_path / "two.nii")
    with pytest.raises(DataError, match=r"two\.nii: holds 2 volumes"):
        load_volume(tmp_path / "two.nii")
    second = load_volume(tmp_path / "two.nii", 1).hu
    np.testing.assert_allclose(second, ramp_volume(OBLIQUE) + 100, atol=0.05)
    with pytest.raises(DataError, match="index 2"):
        load_volume(tmp_path / "two.nii", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sform": 0, "qform": 0}, "sform_code and qform_code are 0"),
        ({"units": "micron"}, "not in mm"),
        ({"units": "unknown"}, "not in mm"),
        ({"data": np.zeros((4, 4, 4, 3), np.float32)}, "3 volumes"),
        ({"data": np.zeros((4, 4), np.float32)}, "axes"),
        ({"data": np.zeros((4, 4, 1), np.float32)}, "two voxels"),
        ({"data": np.full((4, 4, 4), np.nan, np.float32)}, "finite"),
        ({"data": np.zeros((4, 4, 4), np.complex64)}, "one number per voxel"),
    ],
)
def test_nifti_that_must_not_be_used(tmp_path, changes, message):
    path = write_nifti(tmp_path / "ct.nii", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_volume(path)
    assert str(path) in str(caught.value)


def test_a_singular_sform_is_refused(tmp_path):
    matrix = OBLIQUE.copy()
    matrix[:3, 2] = matrix[:3, 1]
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), None)
    image.header.set_xyzt_units("mm")
    image.header.set_sform(matrix, 1)
    image.to_filename(tmp_path / "ct.nii")
    with pytest.raises(DataError, match="singular"):
        load_volume(tmp_path / "ct.nii")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("ct.nii", b"\0" * 400, ResourceError, "cannot be read as NIfTI"),
        ("ct.nii.gz", b"no gzip", ResourceError, "ct.nii.gz"),
        ("ct.nii", b"", ResourceError, "ct.nii"),
        ("ct.h5", b"\x89HDF\r\n\x1a\n damaged", ResourceError, "ct.h5"),
        ("ct.png", b"\x89PNG", SettingsError, "neither a NIfTI file"),
        ("00.dcm", b"\0" * 128 + b"DICM", SettingsError, "give the folder"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_volume(tmp_path / name)


def test_a_cut_file_is_refused(tmp_path):
    path = write_nifti(tmp_path / "ct.nii")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ResourceError, match=r"ct\.nii"):
        load_volume(path)
    folder = write_dicom(tmp_path / "series")
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ResourceError, match=file.name):
        load_volume(folder)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_volume(tmp_path / "absent.nii")
    (tmp_path / "file.nii").write_bytes(b"")
    with pytest.raises(SettingsError, match="no such file"):
        load_volume(tmp_path / "file.nii" / "inside")
    with pytest.raises(DataError, match="no DICOM image"):
        load_volume(tmp_path)


def test_a_volume_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    paths = [written(kind, tmp_path / kind) for kind in KINDS]
    monkeypatch.setattr("recon_core.ct.volume.available_bytes", lambda device: 8 * 22 * 26 * 18 - 1)
    for path in paths:
        with pytest.raises(ResourceError, match="GiB are free"):
            load_volume(path)


@pytest.mark.parametrize("package", ["nibabel", "pydicom"])
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, package):
    path = written("nifti sform" if package == "nibabel" else "dicom", tmp_path)
    importlib.import_module("recon_core.ct.nifti"), importlib.import_module("recon_core.ct.dicom")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ResourceError, match=f"needs the package {package}"):
        load_volume(path)


def set_on(number, **values):
    def change(k, dataset):
        if number in (k, None):
            for name, value in values.items():
                if value is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, value)

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shear": np.tan(np.deg2rad(2)) * 4 / 3}, r"stacked 2\.0 degrees off .*gantry tilt"),
        ({"leave_out": (7,)}, "slices are missing"),
        ({"leave_out": range(1, SHAPE[2])}, "1 slice is no volume"),
        ({"change": set_on(3, SeriesInstanceUID="1.2.3")}, "mixes 2 series"),
        ({"change": set_on(3, FrameOfReferenceUID="1.2.3")}, "mixes 2 frames of reference"),
        ({"change": set_on(3, PixelSpacing=["3.1", "2.0"])}, "mixes 2 pixel spacings"),
        ({"change": set_on(3, ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])}, "mixes 2 orientations"),
        ({"change": set_on(3, Modality="MR")}, "modality CT, MR"),
        ({"change": set_on(3, RescaleSlope=None)}, "1 of 18 slices have no RescaleSlope"),
        ({"change": set_on(3, ImagePositionPatient=None)}, "ImagePositionPatient"),
        ({"change": set_on(3, ImagePositionPatient=["0", "0"])}, "3 numbers"),
        ({"change": set_on(None, PixelSpacing=["0", "0"])}, "2 numbers"),
        ({"change": set_on(None, NumberOfFrames="4")}, "multi-frame"),
        ({"change": set_on(None, SamplesPerPixel=3)}, "colour"),
        ({"change": set_on(None, ImagePositionPatient=["1", "2", "3"])}, "several slices"),
        ({"change": set_on(None, ImageOrientationPatient=["1", "0", "0", "0.5", "1", "0"])}, "perpendicular"),
    ],
)
def test_dicom_that_must_not_be_used(tmp_path, changes, message):
    folder = write_dicom(tmp_path / "series", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_volume(folder)
    assert str(folder) in str(caught.value)


def test_limits_of_tilt_and_spacing(tmp_path):
    load_volume(write_dicom(tmp_path / "tilt", shear=np.tan(np.deg2rad(0.9)) * 4 / 3))

    def moved(by):
        normal = OBLIQUE[:3, 2] / 4
        place = [f"{part:.6f}" for part in OBLIQUE[:3, 3] + (5 * 4 + by) * normal]
        return set_on(5, ImagePositionPatient=place)

    load_volume(write_dicom(tmp_path / "near", change=moved(0.015)))  # 0.75 % of the spacing between the two gaps
    with pytest.raises(DataError, match="equally far apart"):
        load_volume(write_dicom(tmp_path / "far", change=moved(0.03)))


def test_a_group_of_images_is_chosen(tmp_path):
    path = write_hdf5(tmp_path / "ct.h5", groups=("first", "second"))
    with pytest.raises(SettingsError, match=r"groups of images: .*first/image_0, .*second/image_0"):
        load_volume(path)
    with pytest.raises(SettingsError, match="no group of images 'third'"):
        load_volume(path / "third")
    np.testing.assert_allclose(load_volume(path / "second" / "image_0").affine, OBLIQUE, atol=1e-4)


def first_header(**values):
    def change(images):
        header = images[0].getHead()
        for name, value in values.items():
            getattr(header, name)[:] = value
        images[0].setHead(header)

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": np.uint16}, "signed"),
        ({"dtype": np.complex64}, "signed"),
        ({"change": first_header(field_of_view=(9, 9, 9))}, "different fields of view"),
        ({"change": first_header(read_dir=(1, 0, 0))}, "different read_dir"),
        ({"change": first_header(position=(0, 0, 999))}, "not equally far apart|degrees off"),
        ({"one_image": True, "change": first_header(read_dir=(0, 0, 0))}, "perpendicular"),
        ({"one_image": True, "change": first_header(field_of_view=(50, 50, 0))}, "field of view"),
    ],
)
def test_images_that_must_not_be_used(tmp_path, changes, message):
    path = write_hdf5(tmp_path / "ct.h5", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_volume(path)
    assert str(path) in str(caught.value)


def test_headers_that_contradict_the_images(tmp_path):
    path = write_hdf5(tmp_path / "ct.h5")
    with h5py.File(path, "r+") as file:
        headers = file["ct/image_0/header"][()]
        headers["matrix_size"][:, 0] += 1
        file["ct/image_0/header"][...] = headers
    with pytest.raises(DataError, match="headers that say"):
        load_volume(path)


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["case_ct_geometry", "case_ct_geometry_partial"])
def test_golden_slices(case):
    arrays = dict(np.load(existing(PARITY / f"{case}.npz")))
    inputs = {name: value for name, value in arrays.items() if name not in ("expected_hu", "covered", "meta")}
    outputs = run_case("atlf_net", inputs, arrays["meta"])
    covered = arrays["covered"]
    np.testing.assert_array_equal(outputs["covered"], covered)
    assert np.abs(outputs["expected_hu"] - arrays["expected_hu"])[covered].max() < 1e-3
    assert (outputs["expected_hu"][~covered] == AIR).all()


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_slab_of_a_ramp_is_its_middle(samples):
    hu, cover = resample(volume(), geometry(), slab_samples=samples)
    assert cover.all()
    np.testing.assert_allclose(hu, ramp(points(geometry())), atol=1e-3)


def test_a_slab_averages_across_the_thickness():
    axial = affine(np.eye(3), (2, 2, 1), (0, 0, 0), (12, 12, 21))
    hu = np.zeros((12, 12, 21), np.float32)
    hu[:, :, 10] = 1000  # a layer of 1 mm at z = 0
    slice_ = geometry(
        position=(0, 0, 0), read_dir=(1, 0, 0), phase_dir=(0, 1, 0), slice_dir=(0, 0, 1), matrix=(4, 4),
        field_of_view=(8, 8), thickness=8.0,
    )  # fmt: skip
    middle, _ = resample(CtVolume(hu, axial, ""), slice_, slab_samples=1)
    mean, _ = resample(CtVolume(hu, axial, ""), slice_, slab_samples=64)
    assert middle == pytest.approx(1000)
    assert mean == pytest.approx(1000 / 8)


def test_the_middle_pixel_of_odd_sizes():
    odd = geometry(matrix=(15, 11))
    np.testing.assert_allclose(resample(volume(), odd)[0], ramp(points(odd)), atol=1e-3)
    transformed = dataclasses.replace(odd, centre=(7, 5))  # N // 2, as the centred FFT has it
    hu, _ = resample(volume(), transformed)
    np.testing.assert_allclose(hu, ramp(points(odd, 7, 5)), atol=1e-3)
    assert hu[5, 7] == pytest.approx(ramp(np.array(odd.position)), abs=1e-3)


def test_a_slice_half_outside():
    beside = geometry(position=(25.0, -6.0, 11.0))
    hu, cover = resample(volume(), beside)
    assert 0.2 < cover.mean() < 0.8
    np.testing.assert_allclose(hu[cover], ramp(points(beside))[cover], atol=1e-3)
    far, nowhere = resample(volume(), geometry(position=(500.0, 0.0, 0.0)))
    assert not nowhere.any()
    assert (far == AIR).all()


def test_the_outermost_voxels_are_inside():
    axial = affine(np.eye(3), (2, 2, 2), (-1, -1, 0), (8, 8, 8))
    slice_ = geometry(
        position=(0, 0, 0), read_dir=(1, 0, 0), phase_dir=(0, 1, 0), slice_dir=(0, 0, 1), matrix=(8, 8),
        field_of_view=(16, 16), thickness=1.0,
    )  # fmt: skip
    hu, cover = resample(volume(axial), slice_)  # pixels from -8 to 6 mm
    assert cover.all()
    np.testing.assert_allclose(hu, ramp(points(slice_)), atol=1e-3)


def test_transforms_of_both_spaces(tmp_path):
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rotation(3, -5, 8), (4.0, -2.0, 1.5)
    text = "# from a registration\n" + "\n".join(" ".join(f"{value:.12f}" for value in row) for row in moved)
    (tmp_path / "m.txt").write_text(text)
    lps = load_transform(tmp_path / "m.txt")
    assert lps.digest == hashlib.sha256((tmp_path / "m.txt").read_bytes()).hexdigest()
    inside = points(geometry())
    for space, expected in (
        ("lps", inside @ moved[:3, :3].T + moved[:3, 3]),
        # to RAS, through the matrix, back to LPS
        ("ras", (inside * (-1, -1, 1) @ moved[:3, :3].T + moved[:3, 3]) * (-1, -1, 1)),
    ):
        transform = load_transform(tmp_path / "m.txt", space)
        hu, cover = resample(volume(), geometry(), transform=transform.matrix)
        assert cover.all()
        np.testing.assert_allclose(hu, ramp(expected), atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "4 x 4"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 2", "last four"),
        ("1 0 0 0\n0 1 0 0\n0 0 nan 0\n0 0 0 1", "finite"),
        ("-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1", "mirrors"),
        ("1 0 0 0\n0 1 0 0\n0 0 1\n0 0 0 1", "4 x 4"),
        ("#Insight Transform File V1.0\nTransform: Euler3D", "4 x 4"),
        ("", "4 x 4"),
    ],
)
def test_transforms_that_are_none(tmp_path, text, message):
    path = tmp_path / "m.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_transform(path)
    assert str(path) in str(caught.value)


def test_a_transform_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_transform(tmp_path / "absent.txt")
    with pytest.raises(ResourceError, match="cannot be read"):
        load_transform(tmp_path)


def test_the_table_is_taken_off():
    slice_ = geometry(position=(4.0, -6.0, 1011.0), table_position=(0.0, 0.0, 1000.0))
    hu, cover = resample(volume(), slice_, frame="table")
    assert cover.all()
    np.testing.assert_allclose(hu, ramp(points(geometry())), atol=1e-3)
    assert not resample(volume(), slice_)[1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"read_dir": (0.0, 0.0, 0.0)}, "perpendicular"),
        ({"phase_dir": geometry().read_dir}, "perpendicular"),
        ({"slice_dir": (float("nan"), 0.0, 0.0)}, "perpendicular"),
        ({"position": (float("inf"), 0.0, 0.0)}, "not finite"),
        ({"matrix": (0, 4)}, "pixels"),
        ({"field_of_view": (0.0, 20.0)}, "field of view"),
        ({"thickness": float("nan")}, "thickness"),
    ],
)
def test_slices_that_are_none(changes, message):
    with pytest.raises(DataError, match=message):
        resample(volume(), geometry(**changes))


def test_the_window():
    hu = np.array([-1000, -200, 300, 800, 3000], np.float32)
    result = window(hu, (-200, 800))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [0, 0, 0.5, 1, 1])


# --- alignment --------------------------------------------------------------------------------------------------------


def blobs(seed=3, size=96):
    """Ellipses with edges of many directions."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size))
    for _ in range(14):
        centre, axes, value = (
            generator.uniform(15, size - 15, 2),
            generator.uniform(4, 15, 2),
            generator.uniform(0.2, 1),
        )
        image += value * (((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 < 1)
    return image


def test_edges_that_agree_although_the_contrast_does_not():
    image = blobs()
    everywhere = np.ones(image.shape, bool)
    alignment = check_alignment(np.cos(2 * image), 1000 * image, everywhere)
    assert not alignment.suspect
    assert alignment.shift == (0, 0)


@pytest.mark.parametrize("shift", [(8, 0), (0, -8), (-16, 8)])
def test_edges_that_are_elsewhere(shift):
    image = blobs()
    moved = np.roll(image, shift, (0, 1))
    alignment = check_alignment(moved, image, np.ones(image.shape, bool))
    assert alignment.suspect
    assert alignment.shift == (-shift[0], -shift[1])


def test_alignment_looks_only_at_what_is_covered():
    image = blobs()
    cover = np.zeros(image.shape, bool)
    cover[:, :48] = True
    ct = np.where(cover, image, np.roll(image, 8, 0))
    assert not check_alignment(ct, image, cover).suspect


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 40), (64, 64)])
def test_no_edges_are_not_suspect(size):
    nothing, everywhere = np.zeros(size), np.ones(size, bool)
    assert not check_alignment(nothing, nothing, everywhere).suspect
    assert not check_alignment(nothing, nothing, ~everywhere).suspect


def test_the_image_to_compare_with():
    image = blobs(size=32)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    coils = np.stack([0.6 * kspace, 0.8j * kspace])
    mask = np.zeros((2, 32), bool)
    mask[0, ::2] = mask[1, 1::2] = True
    frames = (coils * mask[:, None, :, None]).astype(np.complex64)
    np.testing.assert_allclose(time_average_magnitude(frames, mask), image, atol=1e-5)


# --- policy -----------------------------------------------------------------------------------------------------------


def scan_ct(path, trained_without=True, **changes):
    settings = CtSettings(path="" if path is None else str(path), window_low=-400.0, window_high=600.0, **changes)
    return ScanCt(settings, trained_without=trained_without)


@pytest.fixture
def nifti(tmp_path):
    return write_nifti(tmp_path / "ct.nii")


def test_a_placed_ct(nifti):
    ct = scan_ct(nifti)
    placed = ct.place(geometry(), "slice 0")
    assert (placed.status, placed.coverage, placed.message, ct.problem) == ("ok", 1.0, "", "")
    np.testing.assert_allclose(placed.image, np.clip((ramp(points(geometry())) + 400) / 1000, 0, 1), atol=1e-5)
    assert placed.image.dtype == np.float32
    assert placed.cover.dtype == bool
    assert ct.digest == hashlib.sha256(nifti.read_bytes()).hexdigest()
    assert ct.transform_digest == ""


def test_slices_that_lie_the_same_are_resampled_once(nifti, monkeypatch):
    placement = importlib.import_module("recon_core.ct.placement")
    calls = []
    monkeypatch.setattr(placement, "resample", lambda *args, **more: calls.append(1) or resample(*args, **more))
    ct = scan_ct(nifti)
    first = ct.place(geometry(), "slice 0")
    assert ct.place(geometry(), "slice 0, repetition 1").image is first.image
    assert len(calls) == 1
    ct.place(geometry(position=(4.0, -6.0, 12.0)), "slice 1")
    assert len(calls) == 2
    with pytest.raises(ValueError, match="read-only"):
        first.image[0, 0] = 1


def test_settings_reach_the_resampling(nifti, tmp_path):
    (tmp_path / "m.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 -3\n0 0 0 1\n")
    ct = scan_ct(nifti, frame="table", transform=str(tmp_path / "m.txt"), slab_samples=1)
    slice_ = geometry(position=(4.0, -6.0, 1014.0), table_position=(0.0, 0.0, 1000.0))
    expected = np.clip((ramp(points(geometry())) + 400) / 1000, 0, 1)
    np.testing.assert_allclose(ct.place(slice_, "slice 0").image, expected, atol=1e-5)
    assert ct.transform_digest == hashlib.sha256((tmp_path / "m.txt").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("make", "reason", "error", "message"),
    [
        (lambda path: None, "empty", SettingsError, "^ct_path: is empty"),
        (lambda path: path / "absent.nii", "missing", SettingsError, "^ct_path: .*absent.nii.*no such file"),
        (
            lambda path: (path / "x.nii").write_bytes(b"x" * 400) and path / "x.nii",
            "unreadable",
            ResourceError,
            "^ct_path",
        ),
        (
            lambda path: write_nifti(path / "x.nii", sform=0),
            "geometry",
            DataError,
            "^ct_path: .*x.nii: does not say where",
        ),
    ],
)
def test_no_ct_at_all(tmp_path, make, reason, error, message):
    path = make(tmp_path)
    with pytest.raises(error, match=message):
        scan_ct(path)
    ct = scan_ct(path, policy="fallback")
    placed = ct.place(geometry(), "slice 0")
    assert (placed.status, placed.image, placed.cover) == (f"no_ct:{reason}", None, None)
    assert ct.problem.startswith("reconstructing without CT: ct_path: ")
    assert ct.digest == ""


def test_no_transform(nifti, tmp_path):
    with pytest.raises(SettingsError, match=r"^ct_transform: .*absent\.txt"):
        scan_ct(nifti, transform=str(tmp_path / "absent.txt"))
    ct = scan_ct(nifti, transform=str(tmp_path / "absent.txt"), policy="fallback")
    assert ct.place(geometry(), "slice 0").status == "no_ct:transform"


def test_partial_coverage(nifti):
    beside = geometry(position=(25.0, -6.0, 11.0))
    with pytest.raises(DataError, match=r"slice 4 at \(25\.0, -6\.0, 11\.0\) mm lies inside .*ct.nii with \d+%"):
        scan_ct(nifti).place(beside, "slice 4")
    placed = scan_ct(nifti, policy="fallback").place(beside, "slice 4")
    assert placed.status == f"no_ct:coverage={placed.coverage:.2f}"
    assert 0.2 < placed.coverage < 0.8
    assert placed.image is None
    assert "slice 4" in placed.message
    enough = scan_ct(nifti, min_coverage=placed.coverage).place(beside, "slice 4")
    assert enough.status == "ok"
    assert enough.cover.mean() == placed.coverage


def test_a_slice_that_does_not_say_where_it_lies(nifti):
    nowhere = geometry(read_dir=(0.0, 0.0, 0.0))
    with pytest.raises(DataError, match="slice 2 cannot be found"):
        scan_ct(nifti).place(nowhere, "slice 2")
    assert scan_ct(nifti, policy="fallback").place(nowhere, "slice 2").status == "no_ct:slice"


def test_poor_alignment(tmp_path):
    image = blobs()
    hu = np.repeat(1000 * image[..., None].transpose(1, 0, 2), 6, 2).astype(np.float32)
    flat = affine(np.eye(3), (1, 1, 4), (-0.5, -0.5, 0), hu.shape)
    path = write_nifti(tmp_path / "ct.nii", flat, data=hu)
    slice_ = geometry(
        position=(0, 0, 0), read_dir=(1, 0, 0), phase_dir=(0, 1, 0), slice_dir=(0, 0, 1), matrix=(96, 96),
        field_of_view=(96, 96), thickness=6.0,
    )  # fmt: skip
    assert scan_ct(path).place(slice_, "slice 0", image).status == "ok"
    moved = np.roll(image, 8, 0)
    suspect = scan_ct(path).place(slice_, "slice 0", moved)
    assert suspect.status == "ct_suspect"
    assert "8 rows and 0 columns" in suspect.message
    assert suspect.image is not None
    fallback = scan_ct(path, policy="fallback").place(slice_, "slice 0", moved)
    assert (fallback.status, fallback.image) == ("no_ct:alignment", None)
    with pytest.raises(DataError, match="must be"):
        scan_ct(path).place(slice_, "slice 0", image[:10])


def test_a_fallback_needs_weights_that_can_do_without(nifti):
    with pytest.raises(SettingsError, match=r"^ct_policy: .*CT dropout"):
        scan_ct(nifti, trained_without=False, policy="fallback")
    scan_ct(nifti, trained_without=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "ignore"}, "ct_policy"),
        ({"frame": "scanner"}, "ct_frame"),
        ({"transform_space": "xyz"}, "ct_transform_space"),
        ({"window_low": 800.0, "window_high": -200.0}, "ct_window_low must be below ct_window_high"),
        ({"window_high": float("nan")}, "ct_window_high"),
        ({"slab_samples": 0}, "ct_slab_samples"),
        ({"min_coverage": 1.5}, "ct_min_coverage"),
    ],
)
def test_settings_that_mean_nothing(changes, message):
    with pytest.raises(SettingsError, match=message):
        CtSettings(**changes)
