"""NIfTI files: axes, units, which slices share a file."""

import logging

import nibabel
import numpy as np
import pytest

from gadgets.export.nifti import write_nifti
from gadgets.export.series import exportable_series
from gadgets.problems import Problems
from recon_core.errors import ResourceError, SettingsError
from tests.gadgets.export.support import cine, image


def export(target, images, **options):
    by_series = {}
    for each in images:
        by_series.setdefault(int(each.header["image_series_index"]), []).append(each)
    problems = Problems()
    return write_nifti(target, exportable_series(by_series, 2.5, problems), problems, **options)


def test_axes_units_and_time(tmp_path):
    (path,) = export(tmp_path / "a.nii.gz", cine(slices=2, frames=3, rr=900))
    loaded = nibabel.load(path)
    assert loaded.shape == (8, 6, 2, 3)
    assert loaded.header.get_xyzt_units() == ("mm", "sec")
    assert loaded.header.get_zooms() == pytest.approx((10, 15, 10, 0.3), abs=0.0025)
    assert (loaded.header["sform_code"], loaded.header["qform_code"]) == (1, 1)
    assert np.allclose(loaded.get_sform(), loaded.get_qform(), atol=1e-4)
    assert loaded.affine @ [0, 0, 1, 1] == pytest.approx([40, 45, 10, 1])  # right, front, head
    assert np.asarray(loaded.dataobj)[0, 0].tolist() == [[100, 101, 102], [110, 111, 112]]


def test_columns_are_x_and_rows_are_y(tmp_path):
    (path,) = export(tmp_path / "a.nii", [image()])
    loaded = nibabel.load(path)
    assert loaded.shape == (8, 6, 1, 1)
    assert np.asarray(loaded.dataobj)[7, 0, 0, 0] == 160
    assert loaded.header.get_zooms()[3] == 0  # unknown


def test_series_and_sets_have_files_of_their_own(tmp_path):
    images = [image(set=0), image(set=1), image(series=21)]
    paths = export(tmp_path / "folder", images)
    assert [path.name for path in paths] == ["series001_set0.nii.gz", "series001_set1.nii.gz", "series021.nii.gz"]
    paths = export(tmp_path / "A.nii.gz", images)
    assert [path.name for path in paths] == ["A.nii.gz", "A_series001_set1.nii.gz", "A_series021.nii.gz"]


@pytest.mark.parametrize("places", [(0, 20, 10), (20, 0, 10), (10, 20, 0)])
def test_slices_are_sorted_by_their_places(places, tmp_path):
    images = cine(slices=3, frames=2)
    for each in images:
        each.header["position"] = (0, 0, places[int(each.header["slice"])])
    (path,) = export(tmp_path / "a.nii", images)
    loaded = nibabel.load(path)
    assert loaded.shape == (8, 6, 3, 2)
    assert loaded.affine[2] == pytest.approx([0, 0, 10, 0])
    by_place = np.argsort(places)
    assert np.asarray(loaded.dataobj)[0, 0, :, 0].tolist() == [100 + 10 * slice_ for slice_ in by_place]


def test_slices_from_above_to_below_keep_their_order(tmp_path):
    (path,) = export(tmp_path / "a.nii", cine(slices=3, frames=2, gap=-10.0))
    loaded = nibabel.load(path)
    assert loaded.affine[2, 2] == pytest.approx(-10)
    assert np.asarray(loaded.dataobj)[0, 0, :, 0].tolist() == [100, 110, 120]


@pytest.mark.parametrize("broken", ["spacing", "turn", "frames"])
def test_slices_that_are_no_stack_have_files_of_their_own(broken, tmp_path, caplog):
    images = cine(slices=3, frames=2)
    last = images[-1].header
    if broken == "spacing":
        images[-1].header["position"] = images[-2].header["position"] = (0, 0, 25)
    elif broken == "turn":
        for each in images[-2:]:
            each.header["read_dir"], each.header["phase_dir"] = (0, 1, 0), (-1, 0, 0)
    else:
        images = images[:-1]
    with caplog.at_level(logging.WARNING):
        paths = export(tmp_path / "folder", images)
    assert [path.name for path in paths] == [f"series001_slice{i}.nii.gz" for i in range(3)]
    assert "separate NIfTI file" in caplog.text
    place = nibabel.load(paths[2]).affine @ [4, 3, 0, 1]
    assert place[:3] == pytest.approx(last["position"] * [-1, -1, 1], abs=1e-4)


def test_images_without_geometry_claim_none(tmp_path):
    (path,) = export(tmp_path / "a.nii", [image(read_dir=0, phase_dir=0, slice_dir=0)])
    header = nibabel.load(path).header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert b"no usable directions" in bytes(header["descrip"])


def test_existing_files_are_kept_unless_overwritten(tmp_path):
    (tmp_path / "a_series021.nii").write_text("mine")
    images = [image(), image(series=21)]
    with pytest.raises(SettingsError, match="--overwrite"):
        export(tmp_path / "a.nii", images)
    assert not (tmp_path / "a.nii").exists()
    export(tmp_path / "a.nii", images, overwrite=True)
    assert nibabel.load(tmp_path / "a_series021.nii").shape == (8, 6, 1, 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another folder"):
        export(tmp_path / "file" / "folder", [image()])
