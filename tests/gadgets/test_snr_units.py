"""Images in units of the noise, measured on simulated scans of known SNR."""

from types import SimpleNamespace

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.header import parse_header
from gadgets.wire.messages import Image
from recon_core.engine import Engine
from recon_core.errors import SettingsError

PLAN = {"matrix_x": 64, "matrix_y": 48, "frames": 8, "coils": 4, "snr": 25.0, "noise_readouts": 128, "waveforms": False}


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu")


def measured(engine, scan, method, **settings):
    """Complex images ``(frame, y, x)`` and the headers' meta."""
    options = Settings.of(method=method, units="snr", output="complex", device="cpu", **settings)
    chain = Chain(parse_header(scan.header), options, lambda: engine)
    images = [item for item in chain(scan.items()) if isinstance(item, Image)]
    return np.stack([image.data[0, 0] for image in images]), images[0].attributes


def true_snr(scan):
    """Of the best combination of the coils, fully sampled, ``(frame, y, x)``: sqrt(c^H P^-1 c), P of one real part."""
    truth = scan.truth
    maps, image = truth.coil_maps[0], truth.image[0]
    inverse = np.linalg.inv(truth.noise_covariance / 2)
    weight = np.einsum("cyx,cd,dyx->yx", maps.conj(), inverse, maps).real
    return np.abs(image) * np.sqrt(weight / (np.abs(maps) ** 2).sum(0))


def noise_of(images, signal):
    """Standard deviation of the real part, where there is no signal.

    Of differences between frames: maps are learned from the average of the frames, and lean towards its noise.
    """
    background = signal.max(0) < 0.02 * signal.max()
    assert background.sum() > 200
    odd = (images[1::2] - images[::2])[:, background]
    return float(np.concatenate([odd.real, odd.imag]).std() / np.sqrt(2))


def error_of(images, signal):
    """Median ratio of the measured to the true SNR, where there is signal."""
    bright = signal > 0.3 * signal.max()
    return float(np.median(np.abs(images)[bright] / signal[bright]))


@pytest.mark.parametrize("method", ["zero_filled", "cg_sense"])
@pytest.mark.parametrize("coils", [1, 4])
def test_a_fully_sampled_scan_has_its_true_snr(engine, method, coils):
    scan = simulate(ScanPlan(**{**PLAN, "coils": coils}, sampling="full"))
    images, meta = measured(engine, scan, method)
    signal = true_snr(scan)
    assert error_of(images, signal) == pytest.approx(1, abs=0.04)
    assert noise_of(images, signal) == pytest.approx(1, abs=0.04)
    assert "<name>cinestream_units</name><value>snr</value>" in meta
    assert "<name>DataRole</name><value>Quantitative</value>" in meta


@pytest.mark.parametrize("method", ["grappa", "cg_sense"])
def test_an_accelerated_scan_loses_the_root_of_r_and_the_g_factor(engine, method):
    plan = {**PLAN, "coils": 8, "sampling": "uniform", "acceleration": 2, "acs_lines": 16}
    scan = simulate(ScanPlan(**plan))
    images, _ = measured(engine, scan, method)
    signal = true_snr(scan)
    assert noise_of(images, signal) == pytest.approx(1, abs=0.1)
    share = scan.truth.mask.mean()
    assert share < 0.75
    # the g-factor of 8 coils at R = 2 with reference lines is little above one
    assert 0.85 < error_of(images, signal) / np.sqrt(share) < 1.15


@pytest.mark.parametrize(
    "changes",
    [
        {"averages": 4},
        {"asymmetric_echo": 0.25},
        {"phase_oversampling": 0.5},
        {"interpolation": 2.0},
        {"oversampling": 1.0},
        {"sampling": "uniform", "acceleration": 3, "acs_lines": 8, "snr": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_noise_has_unit_deviation_whatever_the_scan(engine, changes):
    scan = simulate(ScanPlan(**{**PLAN, "sampling": "full", **changes}))
    images, _ = measured(engine, scan, "zero_filled")
    signal = np.abs(scan.truth.image[0])
    assert noise_of(images, signal) == pytest.approx(1, abs=0.05)


def test_averages_raise_the_snr(engine):
    scan = simulate(ScanPlan(**PLAN, sampling="full", averages=4))
    images, _ = measured(engine, scan, "zero_filled")
    assert error_of(images, true_snr(scan)) == pytest.approx(2, rel=0.04)


def test_a_smaller_matrix_keeps_the_unit(engine):
    scan = simulate(ScanPlan(**PLAN, sampling="full"))
    scan.header = scan.header.replace(
        "<matrixSize><x>64</x><y>48</y><z>1</z>", "<matrixSize><x>40</x><y>30</y><z>1</z>"
    )
    images, _ = measured(engine, scan, "zero_filled")
    assert images.shape[1:] == (30, 40)
    corner = (images[1::2] - images[::2])[:, :3]
    assert corner.real.std() / np.sqrt(2) == pytest.approx(1, abs=0.06)


def test_coil_compression_keeps_the_unit(engine):
    scan = simulate(ScanPlan(**{**PLAN, "coils": 8}, sampling="full"))
    images, _ = measured(engine, scan, "zero_filled", virtual_coils=4)
    assert noise_of(images, np.abs(scan.truth.image[0])) == pytest.approx(1, abs=0.05)


def test_a_factor_that_is_set_holds(engine):
    scan = simulate(ScanPlan(**PLAN, sampling="full"))
    once, _ = measured(engine, scan, "zero_filled")
    tenfold, _ = measured(engine, scan, "zero_filled", scale=10.0)
    np.testing.assert_allclose(tenfold, 10 * once, rtol=1e-5)


def without_dwell_time(item):
    item.headers["sample_time_us"] = 0
    return item


@pytest.mark.parametrize(
    ("changes", "settings", "why"),
    [
        ({"noise_readouts": 0}, {}, "no noise was measured"),
        ({"gating": "retrospective", "segments": 8, "averages": 2}, {}, "interpolated between readouts"),
        ({"vendor": "timeless"}, {}, "no dwell times"),
        ({}, {"whiten": False}, "no noise was measured"),
    ],
    ids=["no noise", "gated", "no dwell times", "not whitened"],
)
def test_relative_units_where_the_noise_is_not_known(engine, changes, settings, why):
    scan = simulate(ScanPlan(**{**PLAN, "sampling": "full", **changes}))
    if "vendor" in changes:
        scan = SimpleNamespace(header=scan.header, items=lambda items=scan.items: map(without_dwell_time, items()))
    images, meta = measured(engine, scan, "zero_filled", **settings)
    assert why in meta
    assert "<name>cinestream_units</name><value>relative</value>" in meta
    assert np.percentile(np.abs(images), 99) == pytest.approx(1000, rel=0.3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": "low_rank_sparse"}, "low_rank_sparse"),
        ({"method": "crunet_mr"}, "crunet_mr"),
        ({"partial_fourier": "pocs"}, "cg_sense with partial_fourier"),
        ({"kspace_filter": 0.5}, "cg_sense with kspace_filter"),
    ],
)
def test_units_that_cannot_be_had_are_refused_at_once(engine, settings, word):
    header = parse_header(simulate(ScanPlan(**PLAN)).header)
    with pytest.raises(SettingsError, match=f"zero_filled, cg_sense, grappa .*not so of {word}"):
        Chain(header, Settings.of(**{"units": "snr", **settings}), lambda: engine)
