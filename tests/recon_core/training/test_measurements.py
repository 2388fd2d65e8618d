import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.coils.calibration import time_average
from recon_core.inference.start import with_start
from recon_core.physics.consistency import DataConsistency
from recon_core.simulate.sampling import uniform_mask
from recon_core.training import measurements
from recon_core.training.measurements import COILS, FAMILIES, SNR, draw_mask, draw_points, measure
from recon_core.training.series import Series
from tests.recon_core.conftest import centred_fft, centred_ifft


def made(shape=(6, 40, 30), air=10):
    """A series that changes, with columns of nothing at the left."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    image = np.exp(-4 * y**2 - x**2 + 1j * (x + 2 * y)) * (1 + 0.3 * np.sin(np.arange(shape[0]))[:, None, None])
    image = image + 0.05 * rng.standard_normal(shape)
    image[..., :air] = 0
    image = (image / np.abs(image).max()).astype(np.complex64)
    return Series(image, np.abs(image[0]), "cine")


@lru_cache
def measured(seed=0, true_maps=False, **more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "_TRUE_MAPS", 1.0 if true_maps else 0.0)
        return measure((seed,), made(), **more)


def rebuilt(scan):
    """What maps and target make of the plain definition of a measurement."""
    coils = scan.maps.numpy() * scan.target.numpy()[:, None]
    return centred_fft(coils, -2) * scan.mask.numpy()[:, None, :, None]


# --- one measurement --------------------------------------------------------------------------------------------------


def test_without_noise_true_maps_explain_the_data():
    scan = measured(true_maps=True, snr=1e7)
    hybrid = scan.hybrid.numpy()
    assert np.linalg.norm(rebuilt(scan) - hybrid) < 1e-5 * np.linalg.norm(hybrid)
    # and the target is the series but for the shading of the array, which all frames have in common
    shading = scan.target.numpy()[:, :, 10:] / made().image[:, :, 10:]
    np.testing.assert_allclose(shading, np.broadcast_to(shading[:1], shading.shape), rtol=2e-3)
    assert (np.abs(shading.imag) < 1e-3 * np.abs(shading)).all()


def test_the_target_is_what_the_estimated_maps_make_of_complete_data():
    complete = np.ones((6, 40), bool)
    scan = measured(mask=None, snr=1e7)
    full = dataclasses.replace(scan, hybrid=measured_complete(scan), mask=torch.from_numpy(complete))
    expected = (scan.maps.numpy().conj() * centred_ifft(full.hybrid.numpy(), -2)).sum(1)
    assert np.linalg.norm(scan.target.numpy() - expected) < 1e-4 * np.linalg.norm(expected)


def measured_complete(scan):
    """Hybrid data of all lines, from the measurement of the same seed with true maps."""
    true = measured(true_maps=True, snr=1e7)
    assert torch.equal(true.mask, scan.mask)
    hybrid = torch.from_numpy(centred_fft(true.maps.numpy() * true.target.numpy()[:, None], -2).astype(np.complex64))
    lines = scan.mask[:, None, :, None]
    # both are scaled by the peak of their own time average
    scale = (scan.hybrid.abs().sum() / (hybrid * lines).abs().sum()).item()
    return hybrid * scale


@pytest.mark.parametrize("true_maps", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_image_of_the_time_average_has_a_peak_of_one(seed, true_maps):
    scan = measured(seed, true_maps)
    reference, _ = time_average(scan.hybrid, scan.mask)
    image = (scan.maps.numpy().conj() * centred_ifft(reference.numpy(), -2)).sum(0)
    assert np.abs(image).max() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("snr", [5.0, 40.0])
def test_the_noise_is_as_stated(snr):
    scan = measured(snr=snr, mask=uniform_mask_of(6, 40, 2), n_coils=8)
    air = scan.hybrid[..., :10].permute(0, 2, 1, 3)[scan.mask]
    assert air.abs().square().mean().item() == pytest.approx(scan.noise_variance, rel=0.05)
    assert air.real.square().mean().item() == pytest.approx(scan.noise_variance / 2, rel=0.08)
    assert abs((air.real * air.imag).mean().item()) < 0.05 * scan.noise_variance
    # coils are independent, because they are whitened
    first, second = air[:, 0], air[:, 1]
    assert abs((first * second.conj()).mean().item()) < 0.1 * scan.noise_variance


def uniform_mask_of(*arguments):
    """A mask that can be an argument of something cached."""
    return _Hashable(uniform_mask(*arguments))


class _Hashable(np.ndarray):
    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def __hash__(self):
        return hash(self.tobytes())

    def __eq__(self, other):
        return self.tobytes() == other.tobytes()


def test_the_snr_is_that_of_the_brightest_tissue_in_a_complete_image():
    series = made()
    clean, noisy = (
        measure((1,), series, mask=np.ones((6, 40), bool), n_coils=8, snr=snr).hybrid for snr in (1e7, 25.0)
    )
    noisy = noisy * (clean.norm() / noisy.norm())  # the scales differ by little
    ratio = (noisy - clean).abs().square().mean().sqrt().item()
    scale = measure((1,), series, mask=np.ones((6, 40), bool), n_coils=8, snr=25.0).noise_variance ** 0.5 * 25
    assert ratio == pytest.approx(scale / 25, rel=0.1)


def test_nothing_is_outside_the_mask():
    for seed in range(4):
        scan = measured(seed)
        assert not scan.hybrid[~scan.mask[:, None, :, None].expand_as(scan.hybrid)].any()
        assert scan.hybrid.isfinite().all()
        assert scan.hybrid.dtype == scan.maps.dtype == scan.target.dtype == torch.complex64
        norms = torch.linalg.vector_norm(scan.maps, dim=0)
        assert ((norms - 1).abs() < 1e-4).logical_or(norms == 0).all()


def test_the_same_seed_measures_the_same_and_another_one_does_not():
    first, other = measured(7), measured(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "_TRUE_MAPS", 0.0)
        again = measure((7,), made())
    for name in ("hybrid", "mask", "maps", "target", "anatomy"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert (first.family, first.noise_variance) == (again.family, again.noise_variance)
    assert first.maps.shape != other.maps.shape or not torch.equal(first.maps, other.maps)


def test_what_is_asked_for_is_taken():
    mask = uniform_mask(6, 40, 4, 8)
    scan = measure((0,), made(), mask=mask, n_coils=5, snr=30.0)
    assert scan.family == "given"
    assert scan.hybrid.shape == (6, 5, 40, 30)
    np.testing.assert_array_equal(scan.mask, mask)
    np.testing.assert_array_equal(scan.anatomy, made().anatomy)


def test_what_is_not_asked_for_is_within_bounds():
    scans = [measured(seed) for seed in range(12)]
    assert {scan.family for scan in scans} <= set(FAMILIES)
    assert {scan.maps.shape[0] for scan in scans} <= set(COILS)
    assert len({scan.maps.shape[0] for scan in scans}) > 2
    many = measure((0,), Series(np.ones((150, 24, 8), np.complex64), np.ones((24, 8), np.float32), "cine"))
    assert 150 * many.maps.shape[0] <= 400
    ratios = [made_snr(scan) for scan in scans]
    assert SNR[0] * 0.9 < min(ratios) < max(ratios) < SNR[1] * 1.1


def made_snr(scan):
    """SNR that was drawn, from the noise in the air and the series."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "SNR", (1.0, 1.0))
        number = next(seed for seed in range(12) if measured(seed) is scan)
        patch.setattr(measurements, "_TRUE_MAPS", 0.0)
        one = measure((number,), made())
    # the noise of both has the same numbers, so its part of the unscaled data gives the ratio
    air = scan.hybrid[..., :10].norm() / scan.noise_variance**0.5
    assert air.item() == pytest.approx((one.hybrid[..., :10].norm() / one.noise_variance**0.5).item(), rel=1e-3)
    bright = scan.target.norm() / scan.noise_variance**0.5
    return (bright / (one.target.norm() / one.noise_variance**0.5)).item()


# --- crops ------------------------------------------------------------------------------------------------------------


def test_a_crop_is_the_measurement_of_the_cropped_series():
    scan = measured(true_maps=True, snr=1e7)
    crop = scan.crop(12, 9)
    assert crop.hybrid.shape[-1] == crop.maps.shape[-1] == crop.target.shape[-1] == crop.anatomy.shape[-1] == 9
    assert np.linalg.norm(rebuilt(crop) - crop.hybrid.numpy()) < 1e-5 * crop.hybrid.norm()
    assert torch.equal(crop.mask, scan.mask)


def test_a_crop_of_the_zero_filled_image_is_that_of_the_crop():
    scan = measured(2)
    whole, part = (DataConsistency(each.maps, each.mask, each.hybrid).zero_filled for each in (scan, scan.crop(5, 11)))
    torch.testing.assert_close(part, whole[..., 5:16], rtol=1e-5, atol=1e-6)


def test_the_start_is_that_of_the_whole_scan():
    scan = measured(2)
    whole = with_start(scan.slice(), "kt_sense").start
    part = scan.started("kt_sense").crop(5, 11)
    assert torch.equal(part.start, whole[..., 5:16])
    assert part.slice().start is part.start
    assert scan.started("zero_filled").crop(5, 11).start is None


def test_a_slice_has_the_average_of_the_frames():
    scan = measured(3)
    data = scan.slice()
    reference, lines = time_average(scan.hybrid, scan.mask)
    assert torch.equal(data.reference, reference)
    assert torch.equal(data.measured, lines)
    assert (data.noise_variance, data.start, data.ct) == (scan.noise_variance, None, None)


# --- points -----------------------------------------------------------------------------------------------------------


def points_scan(**more):
    return measured(mask=draw_points(np.random.default_rng(0), 6, (40, 30)).view(_Hashable), **more)


def test_points_are_measured_as_their_definition_says():
    scan = points_scan(true_maps=True, snr=1e7)
    coils = scan.maps.numpy() * scan.target.numpy()[:, None]
    expected = centred_fft(centred_fft(coils, -2), -1) * scan.mask.numpy()[:, None]
    kspace = centred_fft(scan.hybrid.numpy(), -1)
    assert np.linalg.norm(kspace - expected) < 1e-5 * np.linalg.norm(expected)
    assert (scan.family, scan.mask.shape) == ("points", (6, 40, 30))


def test_a_scan_of_points_is_a_slice_of_points():
    scan = points_scan()
    data = scan.slice()
    assert not data.whole_lines
    assert torch.equal(data.sampling_mask, scan.mask)
    image = (scan.maps.conj() * data.average_images()).sum(0)
    assert float(image.abs().max()) == pytest.approx(1, rel=1e-4)
    started = scan.started("kt_sense")
    assert started.slice().start is started.start is not None


def test_no_column_of_a_scan_of_points_is_left_out():
    scan, lines = points_scan(), measured(2)
    assert [one.width_of_crop(8) for one in (scan, lines)] == [30, 8]
    assert lines.width_of_crop(50) == 30
    assert torch.equal(scan.crop(0, 30).hybrid, scan.hybrid)


def test_points_turn_or_stand_still():
    drawn = [draw_points(np.random.default_rng(seed), 6, (96, 120)) for seed in range(30)]
    np.testing.assert_array_equal(drawn[3], draw_points(np.random.default_rng(3), 6, (96, 120)))
    still = np.mean([(mask == mask[0]).all() for mask in drawn])
    assert 0.1 < still < 0.5
    accelerations = [1 / mask.mean() for mask in drawn]
    assert 1.5 < min(accelerations) < 2.5
    assert 6 < max(accelerations) < 20
    assert all(mask[:, 48, 60].all() for mask in drawn)
    assert len({mask[0].tobytes() for mask in drawn}) > 20


# --- masks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), frames=st.integers(1, 40), lines=st.integers(24, 200))
def test_any_mask_has_lines_in_most_frames(seed, frames, lines):
    mask, family = draw_mask(np.random.default_rng(seed), frames, lines)
    again, _ = draw_mask(np.random.default_rng(seed), frames, lines)
    np.testing.assert_array_equal(mask, again)
    assert family in FAMILIES
    assert mask.shape == (frames, lines)
    assert mask.dtype == np.bool_
    assert mask.flags.c_contiguous
    empty = (~mask.any(1)).sum()
    assert empty <= (frames // 4 if family in ("variable_density", "golden") else 0)
    counts = mask.sum(1)[mask.any(1)]
    assert 1 <= counts.min() <= counts.max() <= lines


def test_the_families_are_drawn_as_often_as_they_should():
    rng = np.random.default_rng(1)
    drawn = [draw_mask(rng, 8, 128) for _ in range(600)]
    for family, share in FAMILIES.items():
        assert np.mean([name == family for _, name in drawn]) == pytest.approx(share, abs=0.07)
    assert sum(FAMILIES.values()) == pytest.approx(1)
    by_family = {family: [mask for mask, name in drawn if name == family] for family in FAMILIES}
    assert all((mask == mask[0]).all() for mask in by_family["uniform"])
    assert all(mask.all() or (mask != mask[0]).any() for mask in by_family["interleaved"])
    assert 0.02 < np.mean([mask.all() for mask, _ in drawn]) < 0.1, "complete data"
    # of few lines all may be the centre
    assert np.mean([(mask != mask[0]).any() for family in [*FAMILIES][2:] for mask in by_family[family]]) > 0.85
    # a centre in every frame of the regular family, sometimes elsewhere
    assert all(mask[:, 60:68].all() for mask in by_family["uniform"])
    # frames without lines, and one side of k-space left out, now and then
    irregular = by_family["variable_density"] + by_family["golden"]
    assert 0.04 < np.mean([not mask.any(1).all() for mask in irregular]) < 0.2
    one_sided = [mask for mask, _ in drawn if mask.any(0)[:12].any() != mask.any(0)[-12:].any()]
    assert 0.06 < len(one_sided) / 600 < 0.2
    assert {bool(mask.any(0)[:12].any()) for mask in one_sided} == {False, True}
