import dataclasses

import numpy as np
import pytest
import torch

from recon_core import reconstruct
from recon_core.classical.kt_sense import KtSense
from recon_core.data import CineSlice, Receiver, Trajectory
from recon_core.engine import Engine
from recon_core.errors import DataError, ReconstructionWarning, SettingsError
from recon_core.inference.method import NetworkMethod
from recon_core.methods import method_names
from recon_core.networks.dual_unet_resnet3d import smooth_phase
from recon_core.off_grid.trajectory import spoke_positions
from recon_core.options import KtSenseOptions, NetworkOptions, ReconOptions
from recon_core.simulate.radial import simulate_radial
from recon_core.steps.load import load
from recon_core.trust.image_figures import image_figures
from recon_core.trust.ranges import TrainingRange
from recon_core.trust.weighing import Weighing
from recon_core.weights.manifest import find_weights
from tests.helpers.networks import write_tiny_weights

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


@pytest.mark.parametrize("method", ["grappa", "cst_net"])
def test_methods_that_need_a_grid_fall_back(scan, method):
    with pytest.warns(ReconstructionWarning, match=f"{method} needs samples on a Cartesian grid"):
        result = made(scan, method, fallback="kt_sense")
    assert result.method == "kt_sense"
    with pytest.raises(DataError, match="needs samples on a Cartesian grid"):
        made(scan, method)


def test_auto_takes_a_method_that_can(scan):
    assert made(scan, "auto").method == "kt_sense"


def loaded(scan):
    """The slice of a scan, whitened, before any method."""
    root = np.linalg.cholesky(scan.noise_covariance / 2)
    kspace = np.einsum("ij,fjrs->firs", np.linalg.inv(root), scan.kspace).astype(np.complex64)
    places = Trajectory(scan.trajectory, (SIZE, SIZE))
    mask = np.ones(scan.kspace.shape[:3:2], bool)
    cine = CineSlice(kspace, mask, receiver=Receiver(whitened=True), trajectory=places)
    return load(cine, ReconOptions.of(), torch.device("cpu"))


@pytest.mark.parametrize("method", method_names(lambda info: info.network and info.off_grid))
def test_networks_go_through_the_non_uniform_transform(scan, method, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_weights(tmp_path, method)
    weighed = {"start": "kt_sense", "reference": "kt_sense", "weighing": Weighing(level=0.0)}
    entry = dataclasses.replace(find_weights(method), **weighed)
    monkeypatch.setattr("recon_core.inference.method.find_weights", lambda *_: entry)
    data = loaded(scan)
    image = NetworkMethod(method, NetworkOptions())(data)
    assert (image.shape, image.dtype) == ((8, SIZE, SIZE), torch.complex64)
    assert bool(image.isfinite().all())
    assert any(f"weighed against kt_sense: {method} counts" in note for note in data.notes)


def test_a_network_sees_the_grid_of_the_image(scan):
    data = loaded(scan)
    seen = data.sampling(40.0)
    assert (seen.frames, seen.coils, seen.lines, seen.samples) == (8, 4, SIZE, SIZE)
    assert (seen.pattern, seen.empty_frames, seen.snr) == ("radial", 0, 40.0)
    assert seen.acceleration == pytest.approx(1 / data.sampled)
    assert not seen.repeats
    assert dataclasses.replace(data, positions=data.positions[:1].expand_as(data.positions)).sampling().repeats
    curved = dataclasses.replace(data, positions=data.positions * torch.linspace(0, 1, 2 * SIZE)[:, None])
    assert curved.sampling().pattern == "spiral"
    (reason,) = TrainingRange.parse({"patterns": ["random"]}).outside(seen)
    assert reason == "radial pattern, trained for random"


@pytest.mark.parametrize(
    ("known", "bend", "refused"), [((), 0.0, "radial"), (("radial",), 0.0, ""), (("radial",), 1.0, "spiral")]
)
def test_weighed_weights_are_for_patterns_on_which_they_help(scan, known, bend, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_weights(tmp_path, "cinenet")
    entry = dataclasses.replace(find_weights("cinenet"), weighing=Weighing(level=0.0), weighed_on=known)
    monkeypatch.setattr("recon_core.inference.method.find_weights", lambda *_: entry)
    data = loaded(scan)
    bent = dataclasses.replace(data, positions=data.positions * torch.linspace(1 - bend, 1, 2 * SIZE)[:, None])
    told = NetworkMethod("cinenet", NetworkOptions()).unlike_training(bent)
    text = f"the weights cinenet were not found to help on scans of {refused} pattern"
    assert told == (text if refused else "")


def test_the_noise_of_a_frame_is_that_of_its_counted_samples():
    data = loaded(simulate_radial(2, SIZE, 4, spokes=13, snr=0.01))  # noise, and little else
    energy = torch.view_as_real(data.hybrid).square().sum((1, 2, 3, 4))
    expected = 4 * data.noise_variance * data.counted_samples
    torch.testing.assert_close(energy, expected, rtol=0.1, atol=0.0)


def test_images_are_judged_by_their_data(scan):
    data = loaded(scan)
    reference = KtSense(KtSenseOptions())(data)
    assert image_figures(data, 0.98 * reference, reference).residual < 0.1
    assert image_figures(data, 0.5 * reference, reference).residual == pytest.approx(0.5, abs=0.1)
    assert image_figures(data, torch.zeros_like(reference), reference).residual == pytest.approx(1, abs=0.05)


def test_the_smooth_phase_is_that_of_the_average(scan):
    data = loaded(scan)
    phase = smooth_phase(data)
    turned = data.average_image() * phase.conj()
    bright = turned.abs() > 0.3 * turned.abs().max()
    assert float(turned[bright].angle().abs().median()) < 0.3


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
    data = loaded(simulate_radial(2, SIZE, 4, spokes=13, snr=5))
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
