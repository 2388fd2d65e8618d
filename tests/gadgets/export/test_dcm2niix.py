"""What dcm2niix makes of the DICOM files: the same as our NIfTI, whatever the vendor is called."""

import shutil
import subprocess

import nibabel
import numpy as np
import pytest

from gadgets.export.nifti import write_nifti
from gadgets.export.series import exportable_series
from gadgets.problems import Problems
from tests.gadgets.export.support import HEADER, cine
from tests.gadgets.export.test_dicom import export

pytestmark = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix (Debian package) is not installed")

VENDORS = [
    *("SIEMENS", "Siemens Healthineers", "GE MEDICAL SYSTEMS", "Philips Medical Systems", "Canon Medical Systems"),
    *("TOSHIBA", "UIH", "Bruker BioSpin", "HITACHI", "Hyperfine", ""),
]


def converted(folder, images, vendor="SIEMENS"):
    """Series number and image of every file that dcm2niix makes."""
    header = HEADER.replace(">SIEMENS<", f">{vendor}<")
    export(folder / "dicom", images, header)
    (folder / "converted").mkdir()
    # Philips has a file for every trigger time without, as of the scanner's own cines
    merge = ["-m", "y"] if vendor.startswith("Philips") else []
    command = ["dcm2niix", *merge, "-z", "n", "-f", "%s", "-o", folder / "converted", folder / "dicom"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: nibabel.load(path) for path in (folder / "converted").glob("*.nii")}


def ours(folder, images):
    problems = Problems()
    series = exportable_series({1: images}, 2.5, problems)
    (path,) = write_nifti(folder / "ours.nii", series, problems, overwrite=True)
    return nibabel.load(path)


def assert_same(theirs, mine):
    """The same value at the same place of the patient."""
    theirs, mine = map(nibabel.as_closest_canonical, (theirs, mine))
    assert theirs.shape == mine.shape
    np.testing.assert_allclose(theirs.affine, mine.affine, atol=1e-4)
    np.testing.assert_allclose(theirs.get_fdata(), mine.get_fdata(), atol=0.5)


@pytest.mark.parametrize("vendor", VENDORS)
def test_slices_and_frames_are_told_apart_whatever_the_vendor(vendor, tmp_path):
    images = cine(slices=3, frames=4)
    (name, theirs), *further = converted(tmp_path, images, vendor).items()
    assert not further, name
    assert_same(theirs, ours(tmp_path, images))


def test_slices_in_another_order_than_their_places(tmp_path):
    images = cine(slices=3, frames=4)
    for each in images:
        each.header["position"] = (0, 0, (0, 20, 10)[int(each.header["slice"])])
    (theirs,) = converted(tmp_path, images).values()
    assert_same(theirs, ours(tmp_path, images))


@pytest.mark.parametrize("counter", ["set", "repetition"])
def test_sets_and_repetitions_are_series_of_their_own(counter, tmp_path):
    first, second = (cine(slices=2, frames=3, **{counter: number}) for number in range(2))
    for each in second:
        each.data[:] += 300
    found = converted(tmp_path, [*first, *second])
    assert set(found) == {"1", "100001"}
    assert_same(found["1"], ours(tmp_path, first))
    assert_same(found["100001"], ours(tmp_path, second))
