import dataclasses

import numpy as np
import pytest
import torch

from recon_core import reconstruct
from recon_core.data import CineSlice, Receiver, Trajectory
from recon_core.engine import Engine
from recon_core.errors import DataError, ReconstructionWarning, SettingsError
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.options import ReconOptions
from recon_core.simulate.radial import simulate_radial
from recon_core.steps.load import load

pytest.importorskip("finufft", reason="no wheel of finufft for this platform")

SIZE = 48


@pytest.fixture(scope="module")
def scan():
    return simulate_radial(8, SIZE, 4, spokes=13, snr=60)


def error(image, truth):
    """NRMSE of magnitudes, whatever the scale."""
    image, truth = np.abs(image), np.abs(truth)
    scale = (image * truth).sum() / np.square(image).sum()
    return float(np.linalg.norm(scale * image - truth) / np.linalg.norm(truth))


def made(scan, method, **more):
    more = {"noise_covariance": scan.noise_covariance, "fallback": "none", **more}
    return reconstruct(scan.kspace, method, trajectory=scan.trajectory, matrix=(SIZE, SIZE), **more)


def test_methods_come_near_the_truth_in_their_order(scan):
    errors = [error(made(scan, name).image, scan.image) for name in ("zero_filled", "cg_sense", "kt_sense")]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.2 * errors[0]
    assert errors[2] < 0.8 * errors[1]
    assert error(made(scan, "low_rank_sparse").image, scan.image) < 0.5 * errors[0]


def test_gridding_of_all_spokes_gives_the_image_in_its_units():
    full = simulate_radial(1, SIZE, 4, spokes=96, law="uniform", snr=0)
    weight = np.linalg.norm(full.coil_maps, axis=0)
    result = made(full, "zero_filled", noise_covariance=None, coil_maps=full.coil_maps)
    assert error(result.image, full.image) < 0.05
    inside = weight > 0
    ratio = np.vdot(np.abs(full.image[0][inside]), np.abs(result.image[0][inside]))
    assert ratio / np.square(np.abs(full.image[0][inside])).sum() == pytest.approx(1, abs=0.03)


def test_positions_per_field_of_view_and_density_weights_give_the_same(scan):
    plain = made(scan, "zero_filled").image
    wide = dataclasses.replace(scan, trajectory=scan.trajectory * SIZE)
    np.testing.assert_allclose(made(wide, "zero_filled").image, plain, rtol=1e-3, atol=1e-4 * np.abs(plain).max())
    uniform = simulate_radial(2, SIZE, 4, spokes=13, law="uniform", snr=60)
    ramp = 7.0 * np.linalg.norm(uniform.trajectory, axis=-1, keepdims=True)
    weighted = dataclasses.replace(uniform, trajectory=np.concatenate([uniform.trajectory, ramp], -1))
    one, other = made(uniform, "zero_filled").image, made(weighted, "zero_filled").image
    assert error(other, one) < 0.03


def test_what_was_not_measured_does_not_count(scan):
    mask = np.ones((8, 13), bool)
    mask[:, 10:] = False
    fewer = dataclasses.replace(scan, kspace=scan.kspace[:, :, :10], trajectory=scan.trajectory[:, :10])
    expected = made(fewer, "cg_sense", iterations=5).image
    np.testing.assert_allclose(made(scan, "cg_sense", mask=mask, iterations=5).image, expected, rtol=1e-3, atol=1e-3)


def test_an_empty_frame_is_predicted_or_zero(scan):
    mask = np.ones((8, 13), bool)
    mask[3] = False
    assert error(made(scan, "kt_sense", mask=mask).image, scan.image) < 0.25
    for method in ("cg_sense", "low_rank_sparse"):
        assert not made(scan, method, mask=mask, iterations=3).image[3].any()


@pytest.mark.parametrize("method", ["grappa", "crunet_mr"])
def test_methods_that_need_a_grid_fall_back(scan, method):
    with pytest.warns(ReconstructionWarning, match=f"{method} needs samples on a Cartesian grid"):
        result = made(scan, method, fallback="kt_sense")
    assert result.method == "kt_sense"
    with pytest.raises(DataError, match="needs samples on a Cartesian grid"):
        made(scan, method)


def test_auto_takes_a_method_that_can(scan):
    assert made(scan, "auto").method == "kt_sense"


def test_uncertainty_is_near_the_error(scan):
    result = made(scan, "kt_sense", extra_series="uncertainty")
    weight = np.abs(scan.image) > 0.2 * np.abs(scan.image).max()
    scale = np.vdot(np.abs(result.image), np.abs(scan.image)) / np.square(np.abs(result.image)).sum()
    deviation = np.abs(scale * np.abs(result.image) - np.abs(scan.image))[weight]
    found = scale * result.extra["uncertainty"][weight]
    assert 0.3 < np.sqrt(np.mean(found**2)) / np.sqrt(np.mean(deviation**2)) < 3


def test_options_without_meaning_are_noted(scan):
    result = made(scan, "cg_sense", iterations=2, units="snr", partial_fourier="pocs", g_factor=True, kspace_filter=0.2)
    text = " ".join(result.notes)
    assert "relative units instead of SNR" in text
    assert "no g-factor" in text
    assert "partial_fourier=pocs is for samples on a Cartesian grid" in text
    assert result.units == "relative"


def test_stated_and_seen_noise_agree():
    scan = simulate_radial(2, SIZE, 4, spokes=13, snr=5)
    root = np.linalg.cholesky(scan.noise_covariance / 2)
    kspace = np.einsum("ij,fjrs->firs", np.linalg.inv(root), scan.kspace).astype(np.complex64)
    places = Trajectory(scan.trajectory, (SIZE, SIZE))
    cine = CineSlice(kspace, np.ones((2, 13), bool), receiver=Receiver(whitened=True), trajectory=places)
    data = load(cine, ReconOptions.of(), torch.device("cpu"))
    assert 2 * data.seen_noise() ** 2 == pytest.approx(data.noise_variance, rel=0.3)


def test_refusals(scan):
    engine, options = Engine("cpu"), ReconOptions.of(method="zero_filled", fallback="none")
    for changes, message in (
        ({"trajectory": np.full_like(scan.trajectory, np.nan)}, "not finite"),
        ({"trajectory": scan.trajectory * 7}, "expected 0.5"),
        ({"trajectory": scan.trajectory * 0}, "expected 0.5"),
        ({"trajectory": scan.trajectory[:, :2]}, r"trajectory must be \(frame, readout, sample, 2 or 3\)"),
        ({"trajectory": scan.trajectory[..., :1]}, r"trajectory must be"),
    ):
        with pytest.raises(DataError, match=message):
            made(dataclasses.replace(scan, **changes), "zero_filled")
    with pytest.raises(SettingsError, match="matrix"):
        reconstruct(scan.kspace, trajectory=scan.trajectory)
    with pytest.raises(SettingsError, match="matrix"):
        reconstruct(scan.kspace, matrix=(SIZE, SIZE))
    with pytest.raises(SettingsError, match="reference"):
        made(scan, "zero_filled", reference=scan.coil_maps)
    places = Trajectory(scan.trajectory, (SIZE, SIZE))
    with pytest.raises(DataError, match=r"positions must be"):
        CineSlice(scan.kspace[:, :, 1:], np.ones((8, 12), bool), trajectory=places)
    with pytest.raises(DataError, match=r"maps must be \(coil, y, x\)"):
        CineSlice(scan.kspace, np.ones((8, 13), bool), trajectory=places, maps=scan.coil_maps[:, 1:])
    with pytest.raises(DataError, match="no readout was measured"):
        engine.reconstruct(CineSlice(scan.kspace, np.zeros((8, 13), bool), trajectory=places), options)


def test_one_spoke_still_gives_an_image():
    positions = spoke_positions(np.array([[0.3]]), 2 * SIZE, SIZE, (SIZE, SIZE))
    kspace = np.ones((1, 2, 1, 2 * SIZE), np.complex64)
    result = reconstruct(kspace, "zero_filled", trajectory=positions, matrix=(SIZE, SIZE))
    assert np.isfinite(result.image).all()
    assert result.image.any()


def test_delays_are_corrected_and_noted(scan):
    moved = simulate_radial(8, SIZE, 4, spokes=13, snr=60, delays=(1.2, -0.8, 0.1))
    right = error(made(scan, "kt_sense").image, scan.image)
    result = made(moved, "kt_sense")
    assert error(result.image, scan.image) < 1.05 * right
    assert any(note.startswith("gradient delays in samples, corrected: 1.2") for note in result.notes)
    left = made(moved, "kt_sense", delay_correction="off")
    assert error(left.image, scan.image) > 2 * right
    assert not any("delays" in note for note in (*left.notes, *made(scan, "zero_filled").notes))


def test_a_context_helps_and_is_not_shown(scan):
    places = Trajectory(scan.trajectory, (SIZE, SIZE))
    cine = CineSlice(scan.kspace, np.ones((8, 13), bool), trajectory=places, context=6, maps=unit(scan.coil_maps))
    alone = dataclasses.replace(cine, context=0)
    engine = Engine("cpu")
    for method in ("zero_filled", "cg_sense", "kt_sense"):
        options = ReconOptions.of(method=method, fallback="none", delay_correction="off")
        found, expected = engine.reconstruct(cine, options).image, engine.reconstruct(alone, options).image
        assert len(found) == 2
        assert error(found, expected[6:]) < 1e-3


def unit(maps):
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)
