"""The interface for arrays: images as the engine makes them, what is said of them, and errors of wrong input."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import recon_core
from recon_core import ReconstructionWarning, reconstruct
from recon_core.data import CineSlice, Receiver
from recon_core.engine import Engine
from recon_core.errors import DataError, ModelError, SettingsError
from recon_core.options import FinishOptions, ReconOptions
from recon_core.simulate.kspace import simulate_cine

FRAMES, COILS, ROWS, COLUMNS = 6, 4, 48, 40
FOUND = "mask from the lines that are not zero: 16 of 48 in each frame"


@pytest.fixture(scope="module")
def scan():
    return simulate_cine(FRAMES, (ROWS, COLUMNS), COILS, acceleration=3, seed=2)


def correlation(image, truth):
    """Of the magnitudes; the phase is that of the coil maps."""
    return np.vdot(np.abs(image), np.abs(truth)) / np.linalg.norm(image) / np.linalg.norm(truth)


# --- images -----------------------------------------------------------------------------------------------------------


def test_the_images_are_those_of_the_engine(scan):
    result = reconstruct(scan.kspace)
    expected = Engine().reconstruct(CineSlice(scan.kspace, scan.mask), ReconOptions())
    np.testing.assert_array_equal(result.image, expected.image)
    assert (result.method, result.units) == ("cg_sense", "relative")
    assert set(result.seconds) == {"maps", "reconstruct"}
    assert result.notes == (FOUND, *expected.notes)
    assert str(result).splitlines() == [
        "6 frames of 48 x 40 pixels with cg_sense, relative units",
        f"note: {FOUND}",
    ]


@pytest.mark.parametrize("method", ["zero_filled", "low_rank_sparse"])
def test_other_methods(scan, method):
    assert reconstruct(scan.kspace, method).method == method


def test_noise_covariance_whitens(scan):
    root = np.linalg.cholesky(scan.noise_covariance.astype(np.complex128) / 2)
    whitened = np.einsum("ij,fjyx->fiyx", np.linalg.inv(root), scan.kspace).astype(np.complex64)
    cine = CineSlice(whitened, scan.mask, receiver=Receiver(root.astype(np.complex64)))
    expected = Engine().reconstruct(cine, ReconOptions())
    result = reconstruct(scan.kspace, noise_covariance=scan.noise_covariance)
    np.testing.assert_allclose(result.image, expected.image, rtol=1e-4, atol=1e-4 * np.abs(expected.image).max())
    assert correlation(result.image, scan.image) > correlation(reconstruct(scan.kspace).image, scan.image)
    assert correlation(result.image, scan.image) > 0.97


def test_noise_covariance_may_be_real(scan):
    real = reconstruct(scan.kspace, "zero_filled", noise_covariance=np.eye(COILS))
    same = reconstruct(scan.kspace, "zero_filled", noise_covariance=np.eye(COILS) + 0j)
    np.testing.assert_array_equal(real.image, same.image)
    with pytest.raises(DataError, match="noise_covariance must be complex, got <U"):
        reconstruct(scan.kspace, "zero_filled", noise_covariance=np.full((COILS, COILS), "a"))


def test_the_noise_of_whitened_coils_has_unit_deviation(scan):
    air = simulate_cine(FRAMES, (ROWS, COLUMNS), COILS, sampling="full", seed=2)
    still = simulate_cine(FRAMES, (ROWS, COLUMNS), COILS, sampling="full", snr=0, seed=2)
    result = reconstruct(air.kspace, "zero_filled", noise_covariance=air.noise_covariance, units="snr")
    clean = reconstruct(still.kspace, "zero_filled", noise_covariance=air.noise_covariance, coil_maps=result.maps)
    assert result.units == "snr"
    assert clean.units == "relative"
    assert 0.5 < np.std(np.abs(result.image[:, :4, :4])) < 0.8  # Rayleigh, of unit deviation in each part


def test_whitened_data(scan):
    root = np.linalg.cholesky(scan.noise_covariance.astype(np.complex128) / 2)
    kspace = np.einsum("ij,fjyx->fiyx", np.linalg.inv(root), scan.kspace).astype(np.complex64)
    result = reconstruct(kspace, whitened=True)
    expected = Engine().reconstruct(CineSlice(kspace, scan.mask, receiver=Receiver(whitened=True)), ReconOptions())
    np.testing.assert_array_equal(result.image, expected.image)
    assert result.notes == (FOUND, *expected.notes)


def test_data_that_cannot_be_whitened_are_taken_without_their_noise(scan):
    result = reconstruct(scan.kspace * 1e-6, whitened=True)
    np.testing.assert_array_equal(result.image, reconstruct(scan.kspace * 1e-6).image)
    assert any("noise level taken as unknown" in note for note in result.notes)


def test_known_coil_maps_of_any_norm(scan):
    norm = np.linalg.norm(scan.coil_maps, axis=0)
    results = [reconstruct(scan.kspace, coil_maps=maps) for maps in (scan.coil_maps, 3 * scan.coil_maps / norm)]
    np.testing.assert_allclose(results[0].image, results[1].image, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(results[0].maps, axis=0), 1, rtol=1e-5)
    assert correlation(results[0].image, scan.image) > 0.92


def test_coil_maps_are_whitened_with_the_data(scan):
    result = reconstruct(scan.kspace, noise_covariance=scan.noise_covariance, coil_maps=scan.coil_maps)
    assert correlation(result.image, scan.image) > 0.98


def test_separate_reference(scan):
    complete = simulate_cine(1, (ROWS, COLUMNS), COILS, sampling="full", seed=2).kspace[0]
    result = reconstruct(scan.kspace, reference=complete)
    expected = Engine().reconstruct(CineSlice(scan.kspace, scan.mask, calibration=complete), ReconOptions())
    np.testing.assert_array_equal(result.image, expected.image)


def test_a_mask_undersamples_complete_data(scan):
    complete = simulate_cine(FRAMES, (ROWS, COLUMNS), COILS, sampling="full", seed=2)
    result = reconstruct(complete.kspace, mask=scan.mask)
    np.testing.assert_array_equal(result.image, reconstruct(scan.kspace).image)
    assert result.notes == ()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_one_mask_for_all_frames(dtype):
    scan = simulate_cine(FRAMES, (ROWS, COLUMNS), COILS, sampling="uniform", acceleration=2, acs_lines=8)
    result = reconstruct(scan.kspace, mask=scan.mask[0].astype(dtype))
    np.testing.assert_array_equal(result.image, reconstruct(scan.kspace).image)


@pytest.mark.parametrize(
    "convert",
    [
        lambda kspace: kspace.astype(np.complex128),
        torch.from_numpy,
        lambda kspace: torch.from_numpy(kspace).requires_grad_(),
        lambda kspace: torch.from_numpy(kspace.conj()).conj(),
        lambda kspace: np.asfortranarray(kspace),
    ],
)
def test_other_arrays(scan, convert):
    np.testing.assert_array_equal(reconstruct(convert(scan.kspace)).image, reconstruct(scan.kspace).image)


def test_what_is_given_stays_as_it_is(scan):
    arrays = dataclasses.asdict(scan)
    copies = {name: array.copy() for name, array in arrays.items()}
    mask = np.roll(scan.mask, 1, axis=0) & scan.mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reconstruct(scan.kspace, mask=mask | scan.mask, coil_maps=scan.coil_maps, noise_covariance=np.eye(COILS) + 0j)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, copies[name])


def test_columns_that_were_not_measured(scan):
    kspace = scan.kspace.copy()
    kspace[..., :9] = 0
    result = reconstruct(kspace, "zero_filled", partial_fourier="pocs")
    assert any("9 of 40 columns" in note for note in result.notes)
    columns = np.arange(COLUMNS) >= 9
    cine = CineSlice(kspace, scan.mask, receiver=Receiver(columns=columns))
    expected = Engine().reconstruct(cine, ReconOptions.of(method="zero_filled", partial_fourier="pocs"))
    np.testing.assert_array_equal(result.image, expected.image)


def test_real_time(scan):
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(Engine, "reconstruct", lambda self, cine, options: seen.append(cine.periodic) or _nothing(cine))
        reconstruct(scan.kspace, periodic=False)
        reconstruct(scan.kspace)
    assert seen == [False, True]


def _nothing(cine):
    shape = (len(cine.kspace), *cine.kspace.shape[2:])
    return recon_core.Reconstruction(np.zeros(shape, np.complex64), np.zeros(shape, np.complex64), "cg_sense")


# --- another method, doubts -------------------------------------------------------------------------------------------


def test_the_fallback_is_not_silent(scan):
    with pytest.warns(ReconstructionWarning, match="images are of kt_sense, not of crunet_mr: .*no weights") as caught:
        result = reconstruct(scan.kspace, "crunet_mr")
    assert result.method == "kt_sense"
    assert any("instead of crunet_mr" in note for note in result.notes)
    assert caught[0].filename == __file__


def test_without_a_fallback_it_is_an_error(scan):
    with pytest.raises(ModelError, match="no weights"):
        reconstruct(scan.kspace, "crunet_mr", fallback="none")


def test_doubts_are_not_silent(scan):
    doubtful = dataclasses.replace(reconstruct(scan.kspace), doubts=("far from the data",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "reconstruct", lambda self, cine, options: doubtful)
        with pytest.warns(ReconstructionWarning, match="images of cg_sense are doubtful: far from the data"):
            reconstruct(scan.kspace)


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_options(scan):
    few, many = (reconstruct(scan.kspace, iterations=number).image for number in (1, 20))
    assert not np.array_equal(few, many)
    with pytest.raises(SettingsError, match="unknown setting 'iteration'; did you mean iterations"):
        reconstruct(scan.kspace, iteration=20)
    with pytest.raises(SettingsError, match="unknown setting 'zzz'; cinestream pipelines lists all"):
        reconstruct(scan.kspace, zzz=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k[0], r"\(frame, coil, ky, kx\), got \(4, 48, 40\); for a single frame give kspace\[None\]"),
        (lambda k: k[None], r"\(frame, coil, ky, kx\), got \(1, 6, 4, 48, 40\)"),
        (lambda k: k[:0], "empty"),
        (lambda k: k[..., :0], "empty"),
        (lambda k: k.real, "complex, got float32; join"),
        (lambda k: (k.real * 100).astype(np.int16), "complex, got int16"),
        (lambda k: 0 * k, "only zeros"),
        (lambda k: None, "must be"),
        (lambda k: [[1, 2], [3]], "no array"),
    ],
)
def test_wrong_kspace(scan, change, message):
    with pytest.raises(DataError, match=f"kspace .*{message}"):
        reconstruct(change(scan.kspace))


@pytest.mark.parametrize(("value", "why"), [(np.nan, "is not finite"), (1e300, "is too large for complex64")])
def test_values_that_are_not_finite(scan, value, why):
    kspace = scan.kspace.astype(np.complex128)
    kspace[2, 1, 3, 4] = value
    with pytest.raises(DataError, match=f"1 values .*{why}: frame 2, coil 1, ky 3, kx 4"):
        reconstruct(kspace)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((ROWS, FRAMES)), r"\(frame, ky\) = \(6, 48\) or \(ky,\) = \(48,\), got \(48, 6\)"),
        (np.ones((FRAMES, ROWS, COLUMNS + 1)), "must be"),
        (np.full((FRAMES, ROWS), 0.5), "0 and 1"),
        (np.full((FRAMES, ROWS), np.nan), "0 and 1"),
        (np.zeros((FRAMES, ROWS)), "no line"),
        (np.ones((FRAMES, ROWS)), r"192 lines that hold only zeros \(the first: frame 0, line 1\); check its axes"),
    ],
)
def test_wrong_mask(scan, mask, message):
    with pytest.raises(DataError, match=f"mask .*{message}"):
        reconstruct(scan.kspace, mask=mask)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"coil_maps": np.ones((COILS, COLUMNS, ROWS)) + 0j}, r"coil_maps .*\(coil, y, x\) = \(4, 48, 40\), got"),
        ({"coil_maps": np.ones((COILS + 1, ROWS, COLUMNS)) + 0j}, r"coil_maps .*got \(5, 48, 40\)"),
        ({"coil_maps": np.ones((COILS, ROWS, COLUMNS))}, "coil_maps must be complex, got float64"),
        ({"coil_maps": np.zeros((COILS, ROWS, COLUMNS)) + 0j}, "coil_maps hold only zeros"),
        ({"coil_maps": np.full((COILS, ROWS, COLUMNS), np.nan) + 0j}, "coil_maps has .*not finite: coil 0, y 0, x 0"),
        ({"reference": np.ones((FRAMES, COILS, ROWS, COLUMNS)) + 0j}, r"reference must be \(coil, ky, kx\)"),
        ({"noise_covariance": np.eye(COILS + 1) + 0j}, r"noise_covariance must be \(coil, coil\) = \(4, 4\)"),
        ({"noise_covariance": np.triu(np.ones((COILS, COILS))) + 0j}, "noise_covariance must be Hermitian"),
        ({"noise_covariance": np.ones((COILS, COILS)) + 0j}, "not positive definite"),
        ({"noise_covariance": -np.eye(COILS) + 0j}, "not positive definite"),
        ({"ct": np.zeros((COLUMNS, ROWS))}, r"ct must be \(y, x\) = \(48, 40\)"),
        ({"ct": np.full((ROWS, COLUMNS), -800.0)}, r"ct must be in \[0, 1\]"),
        ({"ct": np.full((ROWS, COLUMNS), np.nan)}, r"ct must be in \[0, 1\]"),
        ({"ct": np.zeros((ROWS, COLUMNS), int)}, "floating-point"),
    ],
)
def test_wrong_arrays(scan, arrays, message):
    with pytest.raises(DataError, match=message):
        reconstruct(scan.kspace, **arrays)


@pytest.mark.parametrize("matrix", [32, (32,), (32, 32, 32), ("32", 32), (32.5, 32), (0, 32), {32, 48}])
def test_wrong_matrix(scan, matrix):
    trajectory = np.zeros((FRAMES, ROWS, COLUMNS, 2))
    with pytest.raises(SettingsError, match=r"matrix must be \(y, x\) pixels, got"):
        reconstruct(scan.kspace, trajectory=trajectory, matrix=matrix)


def test_further_series_with_blanks_between():
    assert FinishOptions(extra_series="zero_filled, fallback").extras == {"zero_filled", "fallback"}


def test_whitened_twice(scan):
    with pytest.raises(SettingsError, match="give one of them"):
        reconstruct(scan.kspace, noise_covariance=np.eye(COILS) + 0j, whitened=True)


def test_unknown_method(scan):
    with pytest.raises((ModelError, SettingsError), match="magic"):
        reconstruct(scan.kspace, "magic")


# --- import -----------------------------------------------------------------------------------------------------------


def test_importing_is_light():
    code = "import sys, recon_core; from recon_core import reconstruct; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = recon_core.magic
    assert {getattr(recon_core, name).__name__ for name in recon_core.__all__} == set(recon_core.__all__)
