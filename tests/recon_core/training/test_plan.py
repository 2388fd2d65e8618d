import dataclasses
import math

import numpy as np
import pytest
import torch

from recon_core.errors import SettingsError
from recon_core.training.plan import PRESETS, TrainingPlan, preset_plan, presets, read_plan
from recon_core.weights.config import build_network, parse_config
from tests.helpers.networks import NETWORKS
from tests.helpers.paths import SHARED, needs

GOLDEN = SHARED / "parity" / "dual_unet_resnet3d" / "case_metrics_lr.npz"


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NETWORKS)
def test_the_short_preset_builds_a_small_network(method):
    plan = preset_plan(method)
    with torch.device("meta"):
        network = build_network(method, plan.network)
    assert 10_000 < sum(parameter.numel() for parameter in network.parameters()) < 20_000_000
    assert (plan.method, plan.name) == (method, f"{method}-small")


@pytest.mark.parametrize("method", NETWORKS)
def test_the_published_preset_is_the_published_network(method):
    plan = preset_plan(method, "published")
    assert plan.name == method
    assert plan.start == "zero_filled"
    assert plan.precision == "float32"
    assert parse_config(method, plan.network) == parse_config(method, {})


def test_every_network_has_both_presets():
    known = {field.name for field in dataclasses.fields(TrainingPlan)}
    for name in PRESETS:
        assert set(presets(name)) == set(NETWORKS)
        assert all(set(values) <= known for values in presets(name).values())


def test_changes_win_and_lists_become_pairs():
    plan = preset_plan("crunet_mr", name="mine", frames=[4, 6], rate=1, network={"cascades": 2})
    assert (plan.name, plan.frames, plan.rate, plan.network) == ("mine", (4, 6), 1, {"cascades": 2})
    assert presets("short")["crunet_mr"]["network"] != plan.network


# --- schedules --------------------------------------------------------------------------------------------------------


def test_crunet_falls_to_its_floor():
    plan = preset_plan("crunet_mr", "published")
    epoch = plan.steps // 144
    rates = [plan.rate_at(number * epoch) for number in range(144)]
    assert rates[10] == pytest.approx(3e-4, rel=1e-6)
    assert rates[1] == pytest.approx(3e-5, rel=2e-3)
    assert rates[80] == pytest.approx(1.95e-4, rel=0.02)  # the published loop is one epoch late
    assert rates[143] == pytest.approx(1e-4, rel=1e-3)
    assert plan.rate_at(plan.steps - 1) == pytest.approx(1e-4, rel=1e-6)


@needs(GOLDEN)
def test_the_dual_u_net_follows_its_published_values():
    golden = np.load(GOLDEN)
    plan = preset_plan("dual_unet_resnet3d", "published", steps=800, warm_up=40)
    for epoch, value in zip(golden["lr_epoch"].tolist(), golden["lr_value"].tolist(), strict=True):
        found = plan.rate_at(epoch)
        if epoch >= plan.warm_up:
            assert found == pytest.approx(value, rel=1e-4, abs=1e-14)
        else:  # ours is one step further, and starts from zero
            assert value < found < value + 1.01 * plan.rate / plan.warm_up
    full = preset_plan("dual_unet_resnet3d", "published")
    assert full.warm_up == 0.05 * full.steps


def test_the_step_and_the_decay():
    plan = preset_plan("cinenet", "published")
    at = round(plan.steps * 140 / 150)
    assert plan.rate_at(0) == plan.rate_at(at - 1) == 1e-4
    assert plan.rate_at(at + 1) == plan.rate_at(plan.steps - 1) == pytest.approx(1e-6)
    plan = preset_plan("cst_net", "published")
    for epoch in (0, 1, 17, 49):
        assert plan.rate_at(epoch * plan.steps // 50) == pytest.approx(1e-3 * 0.95**epoch, rel=1e-9)
    plan = preset_plan("crnn_mri", "published")
    assert {plan.rate_at(step) for step in (0, 1000, plan.steps - 1)} == {1e-3}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "decay"])
def test_a_rate_is_never_above_that_of_the_plan(schedule):
    plan = preset_plan("crunet_mr", steps=50, warm_up=10, schedule=schedule, floor=0.1, step_at=0.5)
    rates = [plan.rate_at(step) for step in range(50)]
    assert all(0 < rate <= plan.rate * (1 + 1e-12) for rate in rates)
    assert rates[:10] == pytest.approx([plan.rate * step / 10 for step in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < plan.rate / 5 or schedule == "constant"
    assert all(map(math.isfinite, rates))


# --- what cannot be trained -------------------------------------------------------------------------------------------

WRONG = [
    ({"method": "cg_sense"}, "method must be a network, one of crunet_mr"),
    ({"preset": "long"}, "preset must be one of short, published, got 'long'"),
    ({"stepps": 5}, "has no 'stepps'; did you mean steps"),
    ({"steps": 0}, "steps must be a whole number from 1, got 0"),
    ({"steps": 2.5}, "steps must be a whole number from 1, got 2.5"),
    ({"steps": "many"}, "steps must be a whole number from 1, got 'many'"),
    ({"crops": True}, "crops must be a whole number from 1, got True"),
    ({"seed": -1}, "seed must be a whole number from 0, got -1"),
    ({"zeroed": "last.*"}, "zeroed must be a list of names of parameters, got 'last"),
    ({"passing": [1]}, r"passing must be a list of names of parameters, got \(1,"),
    ({"rate": "1e-3"}, "rate must be a number from 0, got '1e-3'; YAML takes"),
    ({"rate": 0}, "rate must be above 0"),
    ({"rate": float("nan")}, "rate must be a number from 0, got nan"),
    ({"average": 1}, "average below 1"),
    ({"floor": 2}, "floor must be a number from 0 to 1, got 2"),
    ({"clip": -1}, "clip must be a number from 0, got -1"),
    ({"frames": [8]}, r"frames must be \[least, most\], whole numbers from 1"),
    ({"frames": 8}, r"frames must be \[least, most\]"),
    ({"lines": [128, 96]}, r"lines must be \[least, most\]"),
    ({"lines": [16, 96]}, r"lines must be \[least, most\], whole numbers from 24"),
    ({"betas": [0.9, 1]}, "betas must be two numbers from 0 to below 1"),
    ({"decoupled": "no"}, "decoupled must be true or false, got 'no'"),
    ({"loss": "denoising"}, "loss of crunet_mr must be one of decibel"),
    ({"schedule": "linear"}, "schedule of crunet_mr must be one of constant, cosine, step, decay, got 'linear'"),
    ({"precision": "float16"}, "precision of crunet_mr must be one of auto, float32, bfloat16"),
    ({"start": 5}, "start must be a name, got 5"),
    ({"name": "mine", "start": "mine"}, "name must be another one than that of the start, .* got mine"),
    ({"name": "a/b"}, "letters, digits"),
    ({"name": 5}, "name must be a text, got 5"),
    ({"network": [1]}, "network must map the fields"),
    ({"points": 1.5}, "points must be a number from 0 to 1, got 1.5"),
    ({"method": "promptmr", "points": 0.5}, "points must be 0: promptmr needs whole lines"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_value_is_reported(changes, message):
    changes = dict(changes)
    with pytest.raises(SettingsError, match=message):
        preset_plan(changes.pop("method", "crunet_mr"), changes.pop("preset", "short"), **changes)


def test_the_diffusion_model_has_a_loss_of_its_own_besides():
    assert preset_plan("dstdm", "published").loss == "denoising"
    assert preset_plan("dstdm").loss == "decibel"
    with pytest.raises(SettingsError, match="loss of crunet_mr must be one of decibel"):
        preset_plan("crunet_mr", loss="denoising")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_from_yaml(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("preset: published\nmethod: crunet_mr\nsteps: 12\nbetas: [0.5, 0.9]\nnetwork: {cascades: 2}\n")
    expected = preset_plan("crunet_mr", "published", steps=12, betas=(0.5, 0.9), network={"cascades": 2})
    assert read_plan(path, "crunet_mr") == expected
    path.write_text("{}")
    assert read_plan(path, "crnn_mri") == preset_plan("crnn_mri")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps: [", "cannot read the training plan"),
        (b"\xff\xfe\xff", "cannot read the training plan"),
        (b"- 1", "must map names to values"),
        (b"", "must map names to values"),
        (b"1: 2", "must map names to values"),
        (b"method: crnn_mri", "is not for crunet_mr"),
        (b"steps: soon", "steps must be a whole number"),
        (b"rate: 1e-3", "YAML takes 1e-3 for a text"),
        (b"frames: [1, 2, 3]", r"frames must be \[least, most\]"),
        (b"preset: [short]", "preset must be one of"),
        (b"network: 3", "network must map"),
        (b"stats: 3", "has no 'stats'; did you mean start"),
    ],
)
def test_a_wrong_file_is_reported(tmp_path, content, message):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_plan(path, "crunet_mr")


def test_a_file_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(SettingsError, match="cannot read the training plan"):
        read_plan(tmp_path / "plan.yaml", "crunet_mr")


def test_the_presets_have_names():
    assert PRESETS == ("short", "published")
