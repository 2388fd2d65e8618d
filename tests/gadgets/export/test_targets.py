"""From an image file to DICOM, NIfTI and film, as `replay` and `export` do it."""

import nibabel
import pydicom
import pytest

from gadgets.commands.main import main
from gadgets.export.targets import ExportTargets, export_images
from gadgets.files.images import ImageFile, read_header, read_images
from gadgets.problems import Problems
from gadgets.simulation import ScanPlan, write_simulation
from recon_core.errors import DataError, ResourceError, SettingsError
from tests.gadgets.export.support import HEADER, cine, store


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    plan = ScanPlan(
        matrix_x=32, matrix_y=24, frames=3, slices=2, coils=2, sampling="full", snr=0.0, rotation_x=30, seed=5
    )
    write_simulation(plan, path)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_replay_and_export_write_the_same(scan, tmp_path, capsys):
    images = tmp_path / "images.h5"
    replayed = ("--dicom", tmp_path / "a", "--nifti", tmp_path / "a.nii")
    assert run("replay", scan, "-o", images, "-p", "zero_filled", *replayed) == 0
    assert "DICOM in" in capsys.readouterr().out
    assert run("export", images, "--dicom", tmp_path / "b", "--nifti", tmp_path / "b.nii") == 0
    assert len(list((tmp_path / "a").iterdir())) == 6
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()
    assert nibabel.load(tmp_path / "a.nii").shape == (32, 24, 2, 3)


def test_the_image_file_keeps_the_header(scan, tmp_path):
    images = tmp_path / "images.h5"
    assert run("replay", scan, "-o", images, "-p", "zero_filled") == 0
    assert read_header(images) == read_header(scan)
    assert len(read_images(images)[1]) == 6


def test_the_header_of_the_raw_file_serves_images_without_one(tmp_path, scan):
    images = store(tmp_path / "images.h5", cine())
    assert read_header(images) == ""
    assert run("export", images, "--scan", scan, "--dicom", tmp_path / "a", "--dicom-kind", "enhanced") == 0
    (path,) = (tmp_path / "a").iterdir()
    assert pydicom.dcmread(path).ProtocolName == "cine_simulation"


def test_ticks_are_those_of_the_vendor(tmp_path):
    images = store(tmp_path / "images.h5", cine(slices=1, frames=4, rr=1000, tick=1.0), HEADER.replace("SIEMENS", "GE"))
    export_images(images, "dataset", ExportTargets(nifti=tmp_path / "a.nii"), Problems())
    assert nibabel.load(tmp_path / "a.nii").header.get_zooms()[3] == pytest.approx(0.25)


def test_a_header_that_cannot_be_read_costs_only_its_facts(tmp_path):
    images = store(tmp_path / "images.h5", cine(), "<no")
    problems = Problems()
    export_images(images, "dataset", ExportTargets(dicom=tmp_path / "a"), problems)
    assert "left out" in str(next(iter(problems)))
    assert len(list((tmp_path / "a").iterdir())) == 6


def test_images_that_are_missing_are_said(tmp_path):
    path, images = tmp_path / "images.h5", read_images(store(tmp_path / "first.h5", cine()))[1]
    with ImageFile(path) as file:
        file.append(images[0])
        file.mark_incomplete("the server's stream broke")
    problems = Problems()
    export_images(path, "dataset", ExportTargets(dicom=tmp_path / "a"), problems)
    assert "does not hold all images of its scan: the server's stream broke" in str(problems.damage[0])
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_nothing_there_is_replaced_without_leave(tmp_path, capsys):
    images = store(tmp_path / "images.h5", cine())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "a.nii").write_text("mine")
    for option, path in (("--dicom", folder), ("--nifti", folder), ("--nifti", tmp_path / "a.nii")):
        assert run("export", images, option, path) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert run("export", images, "--dicom", folder, "--nifti", tmp_path / "a.nii", "--overwrite") == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 7


def test_what_cannot_be_is_refused_before_the_scan_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for option, path in (("--dicom", tmp_path / "file"), ("--mp4", tmp_path), ("--nifti", tmp_path / "x" / "a.nii")):
        assert run("replay", tmp_path / "no.h5", "-o", tmp_path / "out.h5", option, path) in (1, 2)
        assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()
    with pytest.raises(SettingsError, match="is a file"):
        ExportTargets(dicom=tmp_path / "file").check()
    with pytest.raises(ResourceError, match="no folder"):
        ExportTargets(mp4=tmp_path / "x" / "a.mp4").check()


def test_images_are_never_overwritten_by_their_export(tmp_path, capsys):
    images = store(tmp_path / "images.nii", cine())
    assert run("export", images, "--nifti", images, "--overwrite") == 2
    assert len(read_images(images)[1]) == 6


def test_export_wants_something_to_do(tmp_path, capsys):
    images = store(tmp_path / "images.h5", cine())
    assert run("export", images) == 2
    assert "--dicom" in capsys.readouterr().err
    with pytest.raises(DataError, match="--group"):
        export_images(images, "other", ExportTargets(dicom=tmp_path / "a"), Problems())
    assert run("export", tmp_path / "none.h5", "--dicom", tmp_path / "a") == 1


def test_the_exit_status_shows_that_images_were_left_out(tmp_path):
    images = cine(slices=1, frames=2)
    images[0].data[0, 0, 0, 0] = float("nan")
    assert run("export", store(tmp_path / "images.h5", images), "--nifti", tmp_path / "a.nii") == 1
    assert (tmp_path / "a.nii").exists()
