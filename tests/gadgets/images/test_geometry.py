"""A pixel of an exported image lies where the scan measured it, told from the plan alone, by header and by content."""

import dataclasses
import math

import nibabel
import numpy as np
import pydicom
import pytest

from gadgets.connection.server import SharedEngine
from gadgets.export.targets import ExportTargets, export_images
from gadgets.files.images import read_images
from gadgets.files.raw import write_scan
from gadgets.images.geometry import affine_lps, affine_ras, plane_of, slice_step
from gadgets.problems import Problems
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import Readouts
from tests.gadgets.export.support import image

SETTINGS = Settings.of(method="zero_filled")


def random_plan(seed):
    """An oblique slice off the centre; odd and even sizes, oversampling, partial Fourier, interpolation."""
    rng = np.random.default_rng([2024, seed])
    angles = rng.uniform(-170, 170, 3)
    offsets = rng.uniform(-80, 80, 3)
    return ScanPlan(
        matrix_x=int(rng.integers(40, 56)),
        matrix_y=int(rng.integers(28, 44)),
        field_of_view_x=float(rng.uniform(300, 420)),
        field_of_view_y=float(rng.uniform(240, 380)),
        frames=2,
        slices=2,
        coils=2,
        sampling="full",
        partial_fourier=float(rng.choice([1.0, 0.8, 0.7])),
        phase_oversampling=float(rng.choice([0.0, 0.2, 0.35])),
        asymmetric_echo=float(rng.choice([0.0, 0.15])),
        interpolation=float(rng.choice([1.0, 1.5])),
        rotation_x=float(angles[0]),
        rotation_y=float(angles[1]),
        rotation_z=float(angles[2]),
        offset_left=float(offsets[0]),
        offset_back=float(offsets[1]),
        offset_head=float(offsets[2]),
        snr=0.0,
        waveforms=False,
        seed=seed,
    )


# --- the place of a pixel, calculated from the plan without any code of the project -----------------------------------


def turned(vector, axis, degrees):
    """Rodrigues' formula."""
    angle = math.radians(degrees)
    vector, axis = np.array(vector, float), np.array(axis, float)
    along = axis * (axis @ vector) * (1 - math.cos(angle))
    return vector * math.cos(angle) + np.cross(axis, vector) * math.sin(angle) + along


def place(plan, number, column, row):
    """Patient coordinates (left, back, head) in mm of the pixel of a slice."""
    directions = []
    for vector in np.eye(3):
        for axis, degrees in ((2, plan.rotation_z), (0, plan.rotation_x), (1, plan.rotation_y)):
            vector = turned(vector, np.eye(3)[axis], degrees)
        directions.append(vector)
    read, phase, normal = directions
    columns, rows = round(plan.matrix_x * plan.interpolation), round(plan.matrix_y * plan.interpolation)
    x = (column - columns // 2) * plan.field_of_view_x / columns
    y = (row - rows // 2) * plan.field_of_view_y / rows
    z = (number - (plan.slices - 1) / 2) * (plan.slice_thickness + plan.slice_gap)
    centre = np.array([plan.offset_left, plan.offset_back, plan.offset_head])
    return centre + x * read + y * phase + z * normal


# --- how the formats say where a pixel is -----------------------------------------------------------------------------


def by_ismrmrd(header, column, row):
    columns, rows, _ = header["matrix_size"].tolist()
    width, height, _ = header["field_of_view"].tolist()
    x, y = (column - columns // 2) * width / columns, (row - rows // 2) * height / rows
    return header["position"] + x * header["read_dir"] + y * header["phase_dir"]


def by_dicom(position, orientation, spacing, column, row):
    """PS3.3 C.7.6.2.1.1: the first spacing is between rows, the first direction that of a row."""
    position, orientation = np.array(position, float), np.array(orientation, float)
    return position + column * float(spacing[1]) * orientation[:3] + row * float(spacing[0]) * orientation[3:]


def by_nifti(loaded, column, row, number):
    right, front, head, _ = loaded.affine @ [column, row, number, 1]
    return np.array([-right, -front, head])


# --- the chain --------------------------------------------------------------------------------------------------------


class Exported:
    """A scan through the chain and into all formats."""

    def __init__(self, plan, folder, items=None):
        scan = simulate(plan)
        raw, images = folder / "scan.h5", folder / "images.h5"
        write_scan(raw, scan.header, (items or (lambda scan: scan.items()))(scan))
        replay(raw, images, SETTINGS, SharedEngine())
        problems = Problems()
        export_images(images, "dataset", ExportTargets(dicom=folder / "classic", nifti=folder / "a.nii"), problems)
        enhanced = ExportTargets(dicom=folder / "enhanced", dicom_kind="enhanced")
        export_images(images, "dataset", enhanced, problems)
        assert not list(problems)
        self.plan, self.scan = plan, scan
        (self.images,) = read_images(images).values()
        self.classic = [pydicom.dcmread(path) for path in sorted((folder / "classic").iterdir())]
        (enhanced,) = (folder / "enhanced").iterdir()
        self.enhanced = pydicom.dcmread(enhanced)
        self.nifti = nibabel.load(folder / "a.nii")

    def places(self, number, frame, column, row):
        """Where each of the formats says a pixel lies."""
        (header,) = (i.header for i in self.images if (i.header["slice"], i.header["phase"]) == (number, frame))
        single = self.classic[frame * self.plan.slices + number]
        shared = self.enhanced.SharedFunctionalGroupsSequence[0]
        own = self.enhanced.PerFrameFunctionalGroupsSequence[number * self.plan.frames + frame]
        return {
            "ismrmrd": by_ismrmrd(header, column, row),
            "classic": by_dicom(
                single.ImagePositionPatient, single.ImageOrientationPatient, single.PixelSpacing, column, row
            ),
            "enhanced": by_dicom(
                own.PlanePositionSequence[0].ImagePositionPatient,
                shared.PlaneOrientationSequence[0].ImageOrientationPatient,
                shared.PixelMeasuresSequence[0].PixelSpacing,
                column,
                row,
            ),
            "nifti": by_nifti(self.nifti, column, row, number),
        }

    def pixels(self, number, frame):
        """The pixels ``(y, x)`` that each of the formats has."""
        return {
            "ismrmrd": next(
                np.abs(i.data[0, 0]) for i in self.images if (i.header["slice"], i.header["phase"]) == (number, frame)
            ),
            "classic": self.classic[frame * self.plan.slices + number].pixel_array.astype(float),
            "enhanced": self.enhanced.pixel_array[number * self.plan.frames + frame].astype(float),
            "nifti": np.asarray(self.nifti.dataobj[:, :, number, frame]).T,
        }


def with_marker(column, row):
    """Replace the object by a point in the middle of a pixel of the image, as the Fourier transform has it."""

    def items(scan):
        plan = scan.plan
        columns, rows = round(plan.matrix_x * plan.interpolation), round(plan.matrix_y * plan.interpolation)
        x = (column - columns // 2) * plan.field_of_view_x / columns
        y = (row - rows // 2) * plan.field_of_view_y / rows
        fov_y, fov_x = plan.encoded_fov
        for block in scan.items():
            if not isinstance(block, Readouts):
                continue
            lines = block.headers["idx"]["kspace_encode_step_1"].astype(int) + plan.dropped_lines - plan.encoded_y // 2
            samples = np.arange(block.data.shape[2]) - block.headers["center_sample"][:, None].astype(int)
            wave = np.exp(-2j * np.pi * (samples * x / fov_x + (lines * y / fov_y)[:, None]))
            # smooth, so that the image is bright in the pixels around too
            wave = wave * np.exp(-3.0 * (samples / plan.matrix_x) ** 2 - 3.0 * (lines / plan.matrix_y)[:, None] ** 2)
            coils = np.array([1.0, 0.6j])[:, None]
            yield Readouts(block.headers, (wave[:, None] * coils).astype(np.complex64))

    return items


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 8)) for seed in range(20)])
def test_a_point_of_the_patient_is_where_every_format_says(seed, tmp_path):
    plan = random_plan(seed)
    columns, rows = round(plan.matrix_x * plan.interpolation), round(plan.matrix_y * plan.interpolation)
    rng = np.random.default_rng(seed)
    column, row = int(rng.integers(5, columns - 5)), int(rng.integers(5, rows - 5))
    exported = Exported(plan, tmp_path, with_marker(column, row))
    for number in range(plan.slices):
        for corner in ((0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)):
            for name, found in exported.places(number, 1, *corner).items():
                assert np.allclose(found, place(plan, number, *corner), rtol=0, atol=0.1), (name, corner)
        wanted = place(plan, number, column, row)
        for name, pixels in exported.pixels(number, 1).items():
            assert pixels.shape == (rows, columns)
            brightest = np.unravel_index(np.argmax(pixels), pixels.shape)
            found = exported.places(number, 1, brightest[1], brightest[0])[name]
            assert np.allclose(found, wanted, rtol=0, atol=0.1), name
            # not between pixels either: the neighbours are equally bright
            around = pixels[row - 2 : row + 3, column - 2 : column + 3] / pixels.max()
            assert np.allclose(around, around[::-1, ::-1], rtol=0, atol=0.01), name


@pytest.mark.parametrize("seed", [1, 2])
def test_the_object_is_neither_turned_nor_mirrored(seed, tmp_path):
    plan = dataclasses.replace(random_plan(seed), slices=1)
    exported = Exported(plan, tmp_path)
    truth = np.abs(exported.scan.truth.image[0, 1])
    turned_ones = {"same": truth, "mirrored": truth[:, ::-1], "upside down": truth[::-1], "both": truth[::-1, ::-1]}
    for name, pixels in exported.pixels(0, 1).items():
        alike = {how: np.corrcoef(pixels.ravel(), each.ravel())[0, 1] for how, each in turned_ones.items()}
        assert alike["same"] > 0.9, name
        assert all(alike["same"] > value + 0.1 for how, value in alike.items() if how != "same"), name


# --- headers as others write them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_the_position_is_that_of_pixel_half_the_size(size):
    header = image(np.ones((size[1], size[0]), np.float32), position=(10, 20, 30)).header
    plane = plane_of(header, size)
    affine = affine_lps(plane, slice_step([plane]))
    assert affine @ [size[0] // 2, size[1] // 2, 0, 1] == pytest.approx([10, 20, 30, 1])
    assert affine_ras(plane, slice_step([plane]))[:3, 3] == pytest.approx(affine[:3, 3] * [-1, -1, 1])


@pytest.mark.parametrize(
    "fields",
    [
        {"read_dir": 0, "phase_dir": 0, "slice_dir": 0},
        {"phase_dir": (1, 0, 0)},
        {"read_dir": (math.nan, 0, 0)},
        {"read_dir": (2, 0, 0)},
    ],
)
def test_unusable_directions_are_taken_for_axial(fields):
    plane = plane_of(image(position=(1, 2, 3), **fields).header, (8, 6))
    assert "directions" in plane.doubt
    assert np.array_equal([plane.row, plane.column, plane.normal], np.eye(3))
    assert plane.position.tolist() == [1, 2, 3]


def test_a_missing_field_of_view_gives_pixels_of_a_millimetre():
    plane = plane_of(image(field_of_view=0).header, (8, 6))
    assert plane.pixel == (1, 1)
    assert plane.thickness == 0
    assert "field of view" in plane.doubt


def test_the_normal_follows_the_slice_direction_of_the_header():
    plane = plane_of(image(slice_dir=(0, 0, -1)).header, (8, 6))
    assert plane.normal.tolist() == [0, 0, -1]
    assert slice_step([plane]).tolist() == [0, 0, -8]


@pytest.mark.parametrize(
    ("positions", "even"),
    [
        ([(0, 0, 0), (0, 0, 10), (0, 0, 20)], True),
        ([(0, 0, 20), (0, 0, 10), (0, 0, 0)], True),
        ([(0, 0, 0), (0, 0, 10), (0, 0, 21)], False),
        ([(0, 0, 0), (3, 0, 10), (6, 0, 20)], False),
        ([(0, 0, 0), (0, 0, 0)], False),
    ],
)
def test_slices_make_a_stack_only_if_evenly_spaced_along_their_normal(positions, even):
    step = slice_step([plane_of(image(position=position).header, (8, 6)) for position in positions])
    assert (step is not None) == even
    if even:
        assert step == pytest.approx(np.subtract(positions[1], positions[0]))


def test_turned_slices_make_no_stack():
    turned_one = image(read_dir=(0, 1, 0), phase_dir=(-1, 0, 0), position=(0, 0, 10))
    assert slice_step([plane_of(image().header, (8, 6)), plane_of(turned_one.header, (8, 6))]) is None
