import dataclasses
import math

import numpy as np
import pytest
import torch

from recon_core.classical.cg_sense import CGSense
from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.options import CGSenseOptions
from recon_core.physics.sense import SenseOperator
from recon_core.trust.image_figures import image_figures
from recon_core.trust.ranges import Limits

N_FRAMES, N_COILS, N_Y, N_X = 8, 5, 32, 40


@pytest.fixture
def scan(smooth_maps):
    """A function that measures a pulsing disc with air around it; gives slice, truth and the image of cg_sense."""

    def measure(snr=40.0, step=2, pulse=0.5, known=True):
        y, x = np.mgrid[-1 : 1 : N_Y * 1j, -1 : 1 : N_X * 1j]
        beat = 1 + pulse * np.cos(2 * np.pi * np.arange(N_FRAMES) / N_FRAMES)[:, None, None] * (y**2 + x**2 < 0.15)
        truth = torch.tensor(snr * beat * (y**2 + x**2 < 0.7), dtype=torch.complex64)
        mask = torch.zeros(N_FRAMES, N_Y, dtype=torch.bool)
        for frame in range(N_FRAMES):
            mask[frame, frame % step :: step] = True
        mask[:, N_Y // 2 - 4 : N_Y // 2 + 4] = True
        maps = torch.tensor(smooth_maps(N_COILS, N_Y, N_X), dtype=torch.complex64)
        maps = maps / torch.linalg.vector_norm(maps, dim=0)
        generator = torch.Generator().manual_seed(0)
        noise = 2**0.5 * torch.randn(N_FRAMES, N_COILS, N_Y, N_X, dtype=torch.complex64, generator=generator)
        hybrid = SenseOperator(maps, mask).forward(truth) + noise * mask[:, None, :, None]
        data = HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask), 2.0 if known else None)
        return data, truth, CGSense(CGSenseOptions())(data)

    return measure


def test_the_residual_is_that_of_the_worst_frame_beyond_the_noise(scan):
    data, truth, _ = scan()
    image = truth.clone()
    image[3] *= 0.5
    left = (SenseOperator(data.maps, data.mask).forward(image) - data.hybrid).abs().square().sum((1, 2, 3))
    noise = 2.0 * data.mask.sum(1) * N_COILS * N_X
    signal = (data.hybrid.abs().square().sum((1, 2, 3)) - noise).mean()
    expected = ((left - noise).max() / signal).sqrt().item()
    assert image_figures(data, image).residual == pytest.approx(expected, rel=1e-3)
    assert 0.4 < expected < 0.65


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("snr", [10.0, 40.0])
def test_the_truth_leaves_the_noise_and_no_image_leaves_all(scan, snr, known):
    data, truth, reference = scan(snr, known=known)
    for compared in (reference, None):
        assert image_figures(data, truth, compared).residual < 0.25
        assert image_figures(data, 0 * truth, compared).residual == pytest.approx(1.0, abs=0.2)
        assert image_figures(data, -truth, compared).residual == pytest.approx(2.0, abs=0.4)


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 2.0])
def test_limits_by_default_pass_the_truth_and_refuse_what_is_wrong_as_a_whole(scan, factor):
    data, truth, reference = scan()
    assert Limits().objections(image_figures(data, truth, reference), "cg_sense") == []
    assert Limits().objections(image_figures(data, factor * truth, reference), "cg_sense")


def test_what_the_reference_leaves_too_is_nobodys_fault(scan):
    """Wrong coil maps leave much whatever the image."""
    data, _, _ = scan()
    wrong = dataclasses.replace(data, maps=data.maps.roll(1, 0))
    reference = CGSense(CGSenseOptions())(wrong)
    assert image_figures(wrong, reference).residual > 0.3
    assert image_figures(wrong, reference, reference).residual == 0.0


def test_the_change_is_that_of_the_worst_frame(scan):
    data, _, reference = scan()
    image = reference.clone()
    image[5] *= 1.5
    expected = 0.5 * reference[5].norm() / reference.norm() * N_FRAMES**0.5
    assert image_figures(data, image, reference).change == pytest.approx(expected.item(), rel=1e-4)
    assert image_figures(data, image, None).change is None
    assert image_figures(dataclasses.replace(data, noise_variance=None), image, reference).change is None


@pytest.mark.parametrize("known", [True, False])
def test_motion(scan, known):
    data, truth, reference = scan(known=known)
    assert image_figures(data, truth, reference).motion == pytest.approx(1.0, abs=0.3)
    still = truth.mean(0).expand_as(truth)
    assert image_figures(data, still, reference).motion == pytest.approx(0.0, abs=1e-6)
    assert image_figures(data, 0 * truth, reference).motion == 0.0
    assert Limits().objections(image_figures(data, still, reference), "cg_sense") == [
        "stands still while the data move"
    ]


def test_an_object_at_rest_may_stand_still(scan):
    data, truth, reference = scan(pulse=0.0)
    assert image_figures(data, truth, reference).motion is None
    assert Limits().objections(image_figures(data, truth, reference), "cg_sense") == []


@pytest.fixture
def streaked():
    """A function that lays a dark line of some depth and width through the bright disc of all frames."""

    def lay(image, depth, width=3):
        streaked = image.clone()
        streaked[:, N_Y // 2 - 8 : N_Y // 2 + 8, N_X // 2 : N_X // 2 + width] *= 1 - depth
        return streaked

    return lay


def figure(scan, image, deviation):
    data, _, reference = scan
    return image_figures(data, image, reference, deviation=torch.full(image.shape, deviation)).streak


@pytest.mark.parametrize("phase", [1, 1j])
def test_a_streak_is_seen_though_the_whole_is_little_changed(scan, streaked, phase):
    data, truth, reference = scan()
    image = phase * streaked(reference, 0.5)
    deviation = torch.full(truth.shape, 0.5)
    figures = image_figures(data, image, reference, deviation=deviation)
    assert 0.2 < figures.streak < 0.5
    assert image_figures(data, streaked(reference, 0.5), reference).change < 0.2  # the default limit is 0.8
    (reason,) = Limits().objections(dataclasses.replace(figures, residual=None, change=None), "kt_sense")
    assert reason.startswith("has a streak or spot of ")


def test_where_the_data_leave_more_open_the_reference_may_be_wrong(scan, streaked):
    measured = scan()
    image = streaked(measured[2], 0.5)
    assert figure(measured, image, 0.2) > 0.2
    assert figure(measured, image, 10.0) == 0.0


def test_noise_and_motion_and_half_the_depth_are_no_streak(scan, streaked):
    measured = scan()
    reference = measured[2]
    for image in (reference, measured[1], reference.roll(3, 0), streaked(reference, 0.05)):
        assert figure(measured, image, 0.5) < 0.1


def test_of_a_streak_nothing_is_said_without_a_deviation(scan, streaked):
    data, _, reference = scan()
    assert image_figures(data, streaked(reference, 0.9), reference).streak is None
    assert image_figures(data, 0 * reference, 0 * reference, deviation=0 * reference.abs()).streak in (0.0, None)


def test_frames_without_a_line_do_not_count(scan):
    data, truth, _ = scan()
    mask = data.mask.clone()
    mask[2] = False
    hybrid = data.hybrid * mask[:, None, :, None]
    empty = dataclasses.replace(data, mask=mask, hybrid=hybrid)
    reference = CGSense(CGSenseOptions())(empty)
    figures = image_figures(empty, truth, reference)
    assert figures.residual < 0.1
    assert figures.change < 0.3


def test_nothing_is_said_of_nothing(scan):
    data, truth, reference = scan()
    empty = dataclasses.replace(data, mask=data.mask & False, hybrid=0 * data.hybrid)
    assert image_figures(empty, truth, reference) == image_figures(empty, 0 * truth)
    silent = dataclasses.replace(data, hybrid=0 * data.hybrid)
    for known in (2.0, None):
        figures = image_figures(dataclasses.replace(silent, noise_variance=known), 0 * truth, 0 * truth)
        assert (figures.residual, figures.change, figures.motion) == (None, None, None)


@pytest.mark.parametrize("factor", [1e12, 1e25])
def test_an_image_beyond_measure_is_never_good(scan, factor):
    data, truth, reference = scan()
    figures = image_figures(data, factor * truth, reference)
    assert not math.isfinite(figures.residual) or figures.residual > 1e10
    assert len(Limits(residual=1e3, change=1e3).objections(figures, "cg_sense")) == 2
