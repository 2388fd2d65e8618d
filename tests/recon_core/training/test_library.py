import numpy as np
import pytest

from recon_core.errors import ResourceError
from recon_core.training.library import read_library
from tests.helpers.paths import SHARED, needs

DATA = SHARED / "data"
needs_data = needs(DATA / "scd_cine")


def write_folder(folder, cines=("SCD0000101", "SCD0000301", "SCD0000401"), names=("SC-HF-I-01-3", "SC-HF-I-04-1", "x")):
    """Images whose values say where they are from: patient, slice and frame."""
    for kind in ("scd_cine", "scd_ed_es"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(cines):
        place = np.arange(9 * 4).reshape(9, 4, 1, 1)
        np.savez(folder / "scd_cine" / f"{name}.npz", img=np.uint16(1000 * (number + 1) + place + np.zeros((6, 5))))
    images = [np.full((6, 5), 10 * (number + 1), np.uint8) for number in range(len(names))]
    np.savez(folder / "scd_ed_es" / "stills.npz", img=np.stack(images), name=np.array(names))
    return folder


def test_the_parts_of_a_made_up_folder(tmp_path):
    folder = write_folder(tmp_path)
    training, held_out = (read_library(folder, part) for part in ("training", "held out"))
    assert (len(training.cines), len(training.stills)) == (6 + 9, 1)  # without three slices and a reserved patient
    assert (len(held_out.cines), len(held_out.stills)) == (9, 1)
    for library in (training, held_out):
        for image in (*library.cines, *library.stills):
            assert image.dtype == np.float32
            assert 0 < image.min() <= image.max() <= 1.01
    assert {cine.shape for cine in training.cines} == {(4, 6, 5)}
    assert training.stills[0].shape == (6, 5)


def test_the_reserved_slices_are_left_out(tmp_path):
    folder = write_folder(tmp_path, cines=("SCD0000201",), names=("x",))
    with np.load(folder / "scd_cine" / "SCD0000201.npz") as arrays:
        raw = arrays["img"].astype(np.float64)
    kept = [cine / cine.max() for cine in read_library(folder, "training").cines]
    expected = [raw[number] / raw[number].max() for number in (0, 1, 2, 3, 4, 8)]
    np.testing.assert_allclose(kept, expected, rtol=1e-6)


def test_the_brightest_tissue_is_one(tmp_path):
    (tmp_path / "scd_cine").mkdir()
    image = np.random.default_rng(0).gamma(2.0, 100.0, (1, 3, 40, 40))
    np.savez(tmp_path / "scd_cine" / "a.npz", img=image)
    (cine,) = read_library(tmp_path, "training").cines
    assert np.quantile(cine, 0.998) == pytest.approx(1, rel=1e-5)
    assert cine.max() > 1
    np.testing.assert_allclose(cine / cine.max(), image[0] / image.max(), rtol=1e-5)


def test_an_empty_image_stays_finite(tmp_path):
    (tmp_path / "scd_cine").mkdir()
    np.savez(tmp_path / "scd_cine" / "a.npz", img=np.zeros((1, 2, 4, 4)))
    assert not read_library(tmp_path, "training").cines[0].any()


@pytest.mark.parametrize("part", ["training", "held out"])
def test_a_folder_without_images_is_reported(tmp_path, part):
    with pytest.raises(ResourceError, match=rf"no images for the {part} part: expected scd_cine/\*\.npz"):
        read_library(tmp_path, part)


def test_a_folder_of_one_side_has_no_other(tmp_path):
    folder = write_folder(tmp_path, cines=("SCD0000301",), names=("SC-HF-I-04-1",))
    assert read_library(folder, "held out").cines
    with pytest.raises(ResourceError, match="no images for the training part"):
        read_library(folder, "training")


@pytest.mark.parametrize("damage", ["truncated", "no zip", "other names", "pickled"])
def test_a_damaged_file_is_reported_by_name(tmp_path, damage):
    folder = write_folder(tmp_path)
    path = folder / "scd_cine" / "SCD0000401.npz"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no zip":
        path.write_bytes(b"PK\x03\x04 and then nothing")
    elif damage == "other names":
        np.savez(path, image=np.ones((1, 2, 3, 4)))
    else:
        np.savez(path, img=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ResourceError, match=r"cannot read img from .*SCD0000401\.npz"):
        read_library(folder, "training")


# --- the real images --------------------------------------------------------------------------------------------------


def fingerprints(images):
    """``(image, value)`` of unit norm and zero mean; the same picture has a product of about one in any scale."""
    small = np.stack([image.reshape(64, 4, 64, 4).mean((1, 3)).ravel() for image in images])
    small = small - small.mean(1, keepdims=True)
    return small / np.linalg.norm(small, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def learned():
    """Fingerprints of the images of the training, and how many cines there are."""
    library = read_library(DATA, "training")
    images = [*(frame for cine in library.cines for frame in cine[::4]), *library.stills]
    return fingerprints(images), len(library.cines)


@pytest.mark.slow  # compares all images with all others
@needs_data
def test_no_image_of_the_held_out_patient_is_learned_from(learned):
    ours, n_cines = learned
    held_out = read_library(DATA, "held out")
    assert (n_cines, len(held_out.cines)) == (12 + 13 + 11 - 6, 10)
    patient = fingerprints([frame for cine in held_out.cines for frame in cine])
    stills = fingerprints(held_out.stills)
    # the single images are of the same patient as the cines, which shows that the comparison finds a patient
    assert (stills @ patient.T).max(1).min() > 0.999
    assert (ours @ np.concatenate([patient, stills]).T).max() < 0.95


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", ["SCD0000101", "SCD0000201"])
def test_the_slices_of_the_semi_real_scans_are_not_learned_from(name, learned):
    with np.load(DATA / "scd_cine" / f"{name}.npz") as arrays:
        reserved = fingerprints(arrays["img"][5:8, ::4].astype(np.float32).reshape(-1, 256, 256))
    assert (reserved @ learned[0].T).max() < 0.95
