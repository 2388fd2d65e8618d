import dataclasses

import numpy as np
import pytest
import torch

from recon_core.engine import create_method
from recon_core.errors import ModelError
from recon_core.inference.fusion import Evidence, weights
from recon_core.networks.base import ImageNetwork
from recon_core.options import ReconOptions
from recon_core.training import survey as module
from recon_core.training.library import Library
from recon_core.training.survey import Finding, Gain, gains, summarise, survey, weigh
from recon_core.training.trainer import draw_scan
from recon_core.trust.weighing import Beyond, Weighing
from tests.helpers.networks import write_tiny_chain
from tests.recon_core.training.test_trainer import tiny_plan


def finding(variance, error, seed=0, beyond=Beyond()):  # noqa: B008 - it is constant
    """A scan whose reference has this variance, and whose network has an error of its own, in parts of the peak."""
    rng = np.random.default_rng(seed)
    missing, wrong = (s**0.5 * rng.standard_normal((8, 24, 20)) for s in (variance / 2, error / 2))
    changes = torch.from_numpy(missing + wrong).float()
    missing = torch.from_numpy(missing).float()
    evidence = Evidence(torch.full((24, 20), float(variance)), torch.tensor(float(variance + error) / variance))
    moving = torch.zeros(24, 20, dtype=torch.bool)
    moving[5:8] = True
    parts = missing.square(), missing * changes, changes.square()
    return Finding(evidence, *(part.mean(0) for part in parts), moving, beyond)


class Start(ImageNetwork):
    """Gives back the image that it starts from."""

    def forward(self, image, consistency):
        return image

    def working_bytes(self, shape):
        return 0


def test_a_survey_compares_with_kt_sense_on_the_same_data():
    plan = tiny_plan(survey=2, method="promptmr")  # of lines alone
    found = list(survey(Start().eval(), plan, Library()))
    assert len(found) == 2
    whole = draw_scan((800_000, plan.seed, 0), plan, Library())  # narrower than a crop
    with torch.inference_mode():
        reference = create_method("kt_sense", ReconOptions())(whole.slice())
    missing = whole.target.abs() - reference.abs()
    torch.testing.assert_close(found[0].error, missing.square().mean(0), rtol=1e-3, atol=1e-7)
    assert float(found[0].change.mean()) > 0
    assert float(found[0].evidence.variance.min()) > 0
    assert found[0].moving.float().mean() == pytest.approx(0.1, abs=0.02)


def test_a_network_that_starts_from_the_reference_and_leaves_it_gains_nothing():
    found = list(survey(Start().eval(), tiny_plan(survey=1, start="kt_sense", method="promptmr"), Library()))
    (gained,) = gains(found, Weighing(level=3.0))
    assert gained.whole == pytest.approx(0, abs=0.05)  # but for one more round of it


def test_a_network_that_starts_from_weights_gets_their_image(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_tiny_chain(tmp_path, "crunet_mr", "unet3d_mr")
    ours, theirs = (
        next(survey(Start().eval(), tiny_plan(survey=1, start=start, method="promptmr"), Library()))
        for start in ("kt_sense", "first")
    )
    assert torch.equal(ours.error, theirs.error)
    assert float(theirs.change.mean()) > 2 * float(ours.change.mean())


def test_surveyed_scans_are_like_those_of_the_training_but_others():
    plan = tiny_plan(survey=1)
    trained, surveyed = (draw_scan(seed, plan, Library()) for seed in ((plan.seed, 0), (800_000, plan.seed, 0)))
    assert trained.target.shape != surveyed.target.shape or not torch.equal(trained.target, surveyed.target)


def test_the_gain_is_that_of_the_weighed_image():
    scan, weighing = finding(1e-3, 1e-3), Weighing(level=0.4, change=-0.5)
    weight = weights(scan.evidence, weighing)
    left = scan.error - 2 * weight * scan.agreement + weight**2 * scan.change
    other = finding(1e-4, 1e-3, seed=1)
    for found in (gains([scan], weighing)[0], gains([other, scan], weighing)[1]):
        assert found.whole == pytest.approx(float(-10 * torch.log10(left.mean() / scan.error.mean())), abs=1e-3)
        region = scan.moving
        moving = float(-10 * torch.log10(left[region].mean() / scan.error[region].mean()))
        assert found.moving == pytest.approx(moving, abs=1e-3)
        assert found.share == pytest.approx(float(weight.mean()), abs=1e-3)


def test_the_weights_are_those_of_the_smaller_error():
    """With independent errors the best weight is v / (v + e), whatever the scan."""
    scans = [finding(v, 1e-4, seed) for seed, v in enumerate((1e-5, 1e-4, 1e-3, 1e-2) * 50)]
    weighing = weigh(scans).weighing
    found = [float(weights(scan.evidence, weighing).mean()) for scan in scans[:4]]
    best = [v / (v + 1e-4) for v in (1e-5, 1e-4, 1e-3, 1e-2)]
    assert found == sorted(found)
    np.testing.assert_allclose(found, best, atol=0.35)


def test_a_network_that_claims_too_much_is_not_believed():
    """Where it goes much further than the data leave open it was wrong, and right where it does not."""
    scans = [finding(1e-4, e, seed) for seed, e in enumerate((1e-5, 2e-5, 3e-3, 5e-3) * 50)]
    gained = gains(scans, weigh(scans).weighing)[:4]
    assert min(each.share for each in gained[:2]) > 0.5
    assert max(each.share for each in gained[2:]) < 0.1
    assert all(each.whole > -0.2 for each in gained)


@pytest.mark.parametrize("field", Beyond._fields)
def test_a_network_that_fails_on_scans_beyond_usual_ones_is_not_believed_there(field):
    """Although nothing else tells them apart from those on which it is right."""
    beyond = Beyond(**{field: 1.0})
    scans = [finding(1e-4, 1e-3 if n % 2 else 1e-5, n, beyond if n % 2 else Beyond()) for n in range(100)]
    alike = [dataclasses.replace(scan, evidence=scans[0].evidence) for scan in scans]
    good, bad = (each.share for each in gains(alike[:2], weigh(alike).weighing))
    assert good > 0.5
    assert bad < 0.2


def test_few_scans_change_little_of_what_is_usual():
    usual = Weighing(level=0.0, variance=0.5, change=-1.0, snr=-1.0, acceleration=-1.0)
    few, many = (weigh([finding(1e-3, 1e-4, seed) for seed in range(n)]).weighing for n in (1, 100))
    assert abs(few.level - usual.level) < abs(many.level - usual.level)


def test_each_scan_is_judged_by_the_others():
    scans = [finding(1e-4, 1e-1 if seed == 2 else 1e-5, seed) for seed in range(8)]
    judged = weigh(scans).judged
    assert len(judged) == 8
    alone = judged.pop(2)  # nothing like it was among those of the other quarters
    assert alone.whole < min(each.whole for each in judged)


def test_it_is_dared_as_far_as_little_becomes_worse(monkeypatch):
    """A network that fails on some scans which nothing tells from the others."""
    scans = [finding(1e-4, 4e-4 if seed % 25 == 24 else 1e-5, seed) for seed in range(100)]
    scans = [dataclasses.replace(scan, evidence=scans[0].evidence) for scan in scans]

    def worse(found):
        return sum(min(each[:2]) < -0.2 for each in found.judged)

    found = weigh(scans)
    monkeypatch.setattr(module, "_DREADS", (20.0,))
    daring = weigh(scans)
    monkeypatch.setattr(module, "_DREADS", (1000.0,))
    shy = weigh(scans)
    assert worse(daring) > 1 >= worse(found)
    assert daring.judged[0].share > found.judged[0].share >= shy.judged[0].share


def test_shyness_that_keeps_nothing_from_becoming_worse_is_not_taken():
    """Two scans of few fail, whatever the weighing."""
    scans = [finding(1e-4, 1.0 if seed % 10 == 9 else 1e-5, seed) for seed in range(20)]
    scans = [dataclasses.replace(scan, evidence=scans[0].evidence) for scan in scans]
    found = weigh(scans)
    assert sum(min(each[:2]) < -0.2 for each in found.judged) == 2
    assert found.judged[0].share > 0.5


@pytest.mark.parametrize("method", ["crunet_mr", "promptmr"])
def test_some_scans_have_points_where_the_network_takes_them(method):
    plan = tiny_plan(survey=2, method=method, start="kt_sense")
    found = [one.kind == "points" for one in survey(Start().eval(), plan, Library())]
    assert found == [method == "crunet_mr", False]


def test_weights_help_on_points_where_such_scans_gain():
    lines = [finding(1e-3, 1e-4, seed) for seed in range(20)]
    points = [finding(1e-3, 1e-4, seed, Beyond(points=1.0)) for seed in range(20, 26)]
    spoilt = [finding(1e-3, 3e-2, seed, Beyond(points=1.0)) for seed in range(20, 26)]
    alike = [dataclasses.replace(scan, evidence=lines[0].evidence) for scan in spoilt]
    assert weigh([*lines, *points]).helps_on_points
    assert not weigh([*lines, *alike]).helps_on_points
    assert not weigh(lines).helps_on_points


def test_scans_of_points_do_not_change_how_far_a_network_is_believed_on_lines():
    """However many of them fail; they are judged in their places."""
    lines = [finding(1e-3, 1e-4, seed) for seed in range(12)]
    spoilt = [finding(1e-3, 3e-2, seed, Beyond(points=1.0)) for seed in range(20, 24)]
    alone, both = weigh(lines), weigh([*spoilt[:2], *lines, *spoilt[2:]])
    assert dataclasses.replace(both.weighing, points=0.0) == alone.weighing
    assert both.judged[2:-2] == alone.judged
    assert both.weighing.points < -1
    shares = [each.share for each in both.judged]
    assert max(*shares[:2], *shares[-2:]) < 0.2 < min(shares[2:-2])


def test_a_network_of_points_alone_is_weighed_on_them():
    found = weigh([finding(1e-3, 1e-4, seed, Beyond(points=1.0)) for seed in range(20)])
    assert found.helps_on_points
    assert min(each.whole for each in found.judged) > 3


def test_the_summary_counts_what_is_sent():
    judged = [Gain(1.0, 0.5, 0.4), Gain(0.6, -0.3, 0.3), Gain(0.4, 0.2, 0.2), Gain(0.0, -0.1, 0.01)]
    assert summarise(judged) == {
        "scans": 4,
        "served": 3,
        "median_gain": 0.6,
        "median_moving_gain": 0.2,
        "least_gain": -0.3,
        "worse": 0.333,
    }


@pytest.mark.parametrize("judged", [[Gain(-1.0, 0.0, 0.5)], [Gain(1.0, 1.0, 0.01)]])
def test_a_network_that_is_good_for_nothing_is_refused(judged):
    with pytest.raises(ModelError, match="add nothing to those of kt_sense"):
        summarise(judged)
