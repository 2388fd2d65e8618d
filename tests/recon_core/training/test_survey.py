import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.engine import create_method
from recon_core.errors import ModelError
from recon_core.inference.start import with_start
from recon_core.networks.base import ImageNetwork
from recon_core.options import ReconOptions
from recon_core.training.coverage import covered
from recon_core.training.library import Library
from recon_core.training.survey import Finding, found_limits, narrowed, reliable, survey
from recon_core.training.trainer import draw_scan, scores
from recon_core.trust.ranges import ImageFigures, Limits, Sampling, TrainingRange
from tests.recon_core.training.test_trainer import tiny_plan

DRAWN = TrainingRange(
    acceleration=(2.0, 16.0),
    frames=(8.0, 1000.0),
    coils=(4.0, 32.0),
    lines=(96.0, 168.0),
    centre_lines=(0.0, 24.0),
    snr=(15.0, 600.0),
    patterns=("constant", "interleaved", "random"),
)


def finding(gain, pattern="constant", acceleration=4.0, centre_lines=12, coils=8, snr=60.0, **figures):
    scan = Sampling(16, coils, 128, 128, acceleration, centre_lines, pattern, 0, snr)
    return Finding(scan, gain, ImageFigures(**figures))


class Start(ImageNetwork):
    """Gives back the image that it starts from."""

    def forward(self, image, consistency):
        return image

    def working_bytes(self, shape):
        return 0


def test_a_survey_compares_with_kt_sense_on_the_same_data():
    plan = tiny_plan(survey=2)
    found = list(survey(Start().eval(), plan, Library()))
    assert len(found) == 2
    assert found == list(survey(Start().eval(), plan, Library()))
    whole = draw_scan((800_000, plan.seed, 0), plan, Library())  # narrower than a crop
    method = create_method("kt_sense", ReconOptions())
    with torch.inference_mode():
        ours = scores(with_start(whole.slice(), plan.start).start.numpy(), whole.target.numpy())[0]
        theirs = scores(method(whole.slice()).numpy(), whole.target.numpy())[0]
    assert found[0].gain == pytest.approx(ours - theirs, abs=0.011)
    assert found[0].gain != 0
    scan = found[0].scan
    assert (scan.frames, scan.coils, scan.lines, scan.samples) == whole.hybrid.shape
    assert scan.snr > 1
    assert found[0].figures.change > 0


def test_surveyed_scans_are_like_those_of_the_training_but_others():
    plan = tiny_plan(survey=1)
    trained, surveyed = (draw_scan(seed, plan, Library()) for seed in ((plan.seed, 0), (800_000, plan.seed, 0)))
    assert trained.target.shape != surveyed.target.shape or not torch.equal(trained.target, surveyed.target)
    assert {*covered(plan).lines} == {float(surveyed.hybrid.shape[2])}


def test_a_good_network_keeps_its_range():
    assert narrowed(DRAWN, [finding(3.0), finding(-0.2, "random"), finding(0.0, acceleration=12.0)]) == DRAWN


def test_a_pattern_that_it_does_not_do_is_left_out():
    findings = [finding(1.0, pattern, acceleration=a) for pattern in ("constant", "random") for a in (2.5, 8.0, 15.0)]
    findings += [finding(-1.0, "interleaved", acceleration=a) for a in (2.5, 5.0, 15.0)]
    assert narrowed(DRAWN, findings) == dataclasses.replace(DRAWN, patterns=("constant", "random"))


def test_too_high_an_acceleration_is_left_out():
    findings = [finding(1.0, p, acceleration=a) for p in ("constant", "random", "interleaved") for a in (2.5, 8.04)]
    findings += [finding(-1.0, p, acceleration=a) for p in ("constant", "random", "interleaved") for a in (8.2, 15.0)]
    assert narrowed(DRAWN, findings) == dataclasses.replace(DRAWN, acceleration=(2.0, 8.0))


def test_noise_and_calibration_are_cut_at_either_end():
    findings = [finding(1.0, snr=s, centre_lines=c) for s in (30.0, 200.0) for c in (8, 20)]
    bad = [finding(-0.5, snr=20.0), finding(-0.5, centre_lines=2), finding(-0.3, snr=500.0)]
    cut = narrowed(DRAWN, findings + bad)
    assert cut == dataclasses.replace(DRAWN, snr=(30.0, 200.0), centre_lines=(8.0, 24.0))


def test_a_network_that_is_good_for_nothing_is_refused():
    findings = [finding(-1.0, "random"), finding(-2.0)]
    assert narrowed(DRAWN, findings) is None
    with pytest.raises(ModelError, match="no kind of scan"):
        reliable(DRAWN, findings)


def test_scans_where_nothing_is_to_be_gained_are_known_by_the_change():
    good = [finding(1.0, snr=s, change=c) for s, c in ((30.0, 0.4), (200.0, 0.21), (500.0, 0.3))]
    easy = [finding(g, snr=s, change=0.11) for g, s in ((-1.0, 20.0), (0.5, 40.0), (-2.0, 300.0))]
    cut, limits, inside = reliable(DRAWN, good + easy)
    assert cut == DRAWN
    assert limits == Limits(change=0.48, least_change=0.12)  # the smallest that tells them
    assert inside == good


def test_no_change_is_too_small_for_a_network_that_is_always_good():
    findings = [finding(1.0, change=0.01), finding(1.0, change=None), finding(2.0, change=0.5)]
    assert reliable(DRAWN, findings) == (DRAWN, Limits(change=0.6), findings)


found = st.builds(
    finding,
    st.floats(-2, 3),
    st.sampled_from(DRAWN.patterns),
    st.floats(2, 16),
    st.integers(0, 24),
    st.sampled_from((4, 8, 12, 32)),
    st.floats(15, 600),
)


@settings(deadline=None)
@given(st.lists(found, min_size=1, max_size=25))
def test_no_bad_scan_is_inside_and_the_range_only_shrinks(findings):
    if not any(one.gain >= -0.2 for one in findings):
        return
    cut = narrowed(DRAWN, findings)
    if cut is None:  # good and bad ones may be the same scan
        return
    kept = [one for one in findings if not cut.outside(one.scan)]
    assert kept
    assert all(one.gain >= -0.2 for one in kept)
    for name in ("acceleration", "coils", "centre_lines", "snr", "lines", "frames"):
        (low, high), (least, most) = getattr(cut, name), getattr(DRAWN, name)
        assert least <= low <= high <= most
    assert set(cut.patterns) <= set(DRAWN.patterns)
    assert TrainingRange.parse(cut.mapping()) == cut


def test_limits_are_a_little_above_what_was_found():
    findings = [finding(1.0, residual=0.1, change=None), finding(1.0, residual=0.05, change=0.4)]
    assert found_limits(findings) == Limits(residual=0.12, change=0.48)
    assert found_limits([finding(1.0, residual=0.0)]) == Limits()  # the limits by default hold
    assert np.isclose(found_limits(findings).change / 0.4, 1.2)
